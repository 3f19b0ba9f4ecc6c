"""Whole networks, forward, before and after convext.convert: verified, then timed in turns.

    python -m benchmarks.models [--threads 1 2] [--networks VGG-16 ...] [--output FILE]

Each network runs as torch.nn and converted, in both memory formats, batch 1, under torch.inference_mode. Nothing else
is done to it: batch normalisation, activations and linear layers stay torch's. The converted output must lie within
NORM_LIMIT of torch's, norm-wise.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convext
from benchmarks.networks import NETWORKS
from benchmarks.timing import Call, Mismatch, take_turns
from convext import _C

ROOT = Path(__file__).resolve().parent.parent
NORM_LIMIT = 1e-4
BUDGET_SECONDS = 12.0
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def network(name: str) -> nn.Module:
    """In eval mode, with statistics and weights under which activations keep their size."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


def call_of(model: nn.Module, x: Tensor) -> Call:
    def call() -> Tensor:
        with torch.inference_mode():
            result: Tensor = model(x)
            return result

    return call


def calls_of(name: str) -> tuple[dict[str, Call], float]:
    """The four contenders, and how far convext's outputs are from torch's. Raises Mismatch where that is too far."""
    calls: dict[str, Call] = {}
    model, image = network(name), torch.randn(1, 3, 224, 224)
    expected = call_of(model, image)()
    worst = 0.0
    for layout, memory_format in FORMATS.items():
        theirs = copy.deepcopy(model).to(memory_format=memory_format)
        ours = copy.deepcopy(theirs)
        convext.convert(ours)
        x = image.contiguous(memory_format=memory_format)
        calls[f"torch {layout}"], calls[f"convext {layout}"] = call_of(theirs, x), call_of(ours, x)
        error = float((calls[f"convext {layout}"]() - expected).norm() / expected.norm())
        if not error <= NORM_LIMIT:
            raise Mismatch(f"{name}, {layout}: the norm-wise error is {error:.3g}, allowed is {NORM_LIMIT:.3g}")
        worst = max(worst, error)
    return calls, worst


def measure(name: str, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    calls, error = calls_of(name)
    timings = take_turns(calls, BUDGET_SECONDS, random.Random(0))
    times = {who: timing.median for who, timing in timings.items()}
    ours = min(times[f"convext {layout}"] for layout in FORMATS)
    ratios = {layout: times[f"torch {layout}"] / times[f"convext {layout}"] for layout in FORMATS}
    ratios["any"] = min(times[f"torch {layout}"] for layout in FORMATS) / ours
    return {"network": name, "threads": threads, "seconds": times, "ratios": ratios, "error": error}


def line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{who} {1e3 * seconds:.1f}" for who, seconds in row["seconds"].items())
    ratios = ", ".join(f"{layout} {ratio:.2f}" for layout, ratio in row["ratios"].items())
    return f"{row['network']}, {row['threads']} thread(s), ms: {times}; times as fast: {ratios}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the JSON")
    options = parser.parse_args(arguments)
    rows = []
    for threads in options.threads:
        for name in options.networks:
            rows.append(measure(name, threads))
            print(line(rows[-1]), flush=True)
    today = datetime.datetime.now(datetime.timezone.utc)
    path = options.output or ROOT / "benchmarks" / "results" / f"{today:%Y-%m-%d}-{_C.active_isa()}-models.json"
    about = {"mode": "models", "date": today.isoformat(timespec="seconds"), "isa": _C.active_isa()}
    about |= {"torch": torch.__version__, "convext": convext.__version__, "batch": 1, "size": 224}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
