"""Whole networks, before and after convext.convert: verified, then timed in turns.

    python -m benchmarks.models [--passes forward training] [--threads 1 2] [--networks VGG-16 ...] [--output FILE]

Each network runs as torch.nn and converted, in both memory formats. Nothing else is done to it: batch normalisation,
activations and linear layers stay torch's.

forward: batch 1, in eval mode under torch.inference_mode. The converted output must lie within NORM_LIMIT of torch's,
norm-wise.
training: a step of stochastic gradient descent on a batch of 4, in training mode. In float64 the loss and the gradient
of the first layer's weight, the last that the step computes, must lie within WIDE_LIMIT of torch's. In float32, which
is timed, within TRAINING_LIMIT of these: a wide limit, because a gradient jumps wherever rounding turns a ReLU or the
winner of a window (torch's own kernels, with and without oneDNN, are 3e-3 apart in ResNet-18). The peak of torch's
memory during a step is measured beside its time.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convext
from benchmarks.networks import CLASSIFIERS, NETWORKS
from benchmarks.timing import Call, Mismatch, disturbed_share, peak_bytes, take_turns
from convext import _C

ROOT = Path(__file__).resolve().parent.parent
NORM_LIMIT, TRAINING_LIMIT, WIDE_LIMIT = 1e-4, 0.2, 1e-10
PASSES = {"forward": 1, "training": 4}
"""Pass -> batch size."""
SIZE = 224
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


def contenders(model: nn.Module, images: Tensor) -> Iterator[tuple[str, nn.Module, nn.Module, Tensor]]:
    """Layout, torch's and convext's network in it, and the images."""
    for layout, memory_format in FORMATS.items():
        theirs = copy.deepcopy(model).to(memory_format=memory_format)
        ours = copy.deepcopy(theirs)
        convext.convert(ours)
        yield layout, theirs, ours, images.contiguous(memory_format=memory_format)


def calls_of(name: str) -> tuple[dict[str, Call], float]:
    """The four contenders, and how far convext's outputs are from torch's. Raises Mismatch where that is too far."""
    calls: dict[str, Call] = {}
    model, image = network(name), torch.randn(PASSES["forward"], 3, SIZE, SIZE)
    expected = call_of(model, image)()
    worst = 0.0
    for layout, theirs, ours, x in contenders(model, image):
        calls[f"torch {layout}"], calls[f"convext {layout}"] = call_of(theirs, x), call_of(ours, x)
        error = float((calls[f"convext {layout}"]() - expected).norm() / expected.norm())
        if not error <= NORM_LIMIT:
            raise Mismatch(f"{name}, {layout}: the norm-wise error is {error:.3g}, allowed is {NORM_LIMIT:.3g}")
        worst = max(worst, error)
    return calls, worst


def step_of(model: nn.Module, x: Tensor, labels: Tensor) -> Call:
    """A training step that returns its loss and the gradient of the first weight."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    first = next(model.parameters())

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        assert first.grad is not None
        return torch.cat([loss.detach().reshape(1), first.grad.flatten()])

    return step


def _distance(a: Tensor, b: Tensor) -> float:
    """Of (loss, gradient): the larger of the two relative distances."""
    parts = ((a[:1].double(), b[:1].double()), (a[1:].double(), b[1:].double()))
    return max(float((x - y).norm() / y.norm()) for x, y in parts)


def _hold(name: str, result: Tensor, expected: Tensor, limit: float) -> float:
    error = _distance(result, expected)
    if not error <= limit:
        raise Mismatch(f"{name}: a step's error is {error:.3g} in {result.dtype}, allowed is {limit:.3g}")
    return error


def steps_of(name: str) -> tuple[dict[str, Call], float]:
    """The four contenders' steps, and how far convext's are from torch's in float64. Raises Mismatch where that is too
    far."""
    calls: dict[str, Call] = {}
    model, images = network(name).train(), torch.randn(PASSES["training"], 3, SIZE, SIZE)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()  # each contender would drop others
    labels = torch.arange(PASSES["training"])
    expected = step_of(copy.deepcopy(model).double(), images.double(), labels)()
    worst = 0.0
    for layout, theirs, ours, x in contenders(model, images):
        _hold(f"{name}, {layout}", step_of(copy.deepcopy(ours).double(), x.double(), labels)(), expected, WIDE_LIMIT)
        calls[f"torch {layout}"], calls[f"convext {layout}"] = step_of(theirs, x, labels), step_of(ours, x, labels)
        error = _hold(f"{name}, {layout}", calls[f"convext {layout}"](), expected, TRAINING_LIMIT)
        worst = max(worst, error)
    return calls, worst


def measure(name: str, threads: int, what: str = "forward") -> dict[str, Any]:
    torch.set_num_threads(threads)
    calls, error = calls_of(name) if what == "forward" else steps_of(name)
    row: dict[str, Any] = {"network": name, "pass": what, "threads": threads, "error": error}
    if what == "training":
        row["peak_bytes"] = {who: peak_bytes(call) for who, call in calls.items()}
    timings = take_turns(calls, BUDGET_SECONDS, random.Random(0))
    times = {who: timing.median for who, timing in timings.items()}
    ours = min(times[f"convext {layout}"] for layout in FORMATS)
    ratios = {layout: times[f"torch {layout}"] / times[f"convext {layout}"] for layout in FORMATS}
    ratios["any"] = min(times[f"torch {layout}"] for layout in FORMATS) / ours
    return row | {"seconds": times, "ratios": ratios, "disturbed": disturbed_share(timings)}


def line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{who} {1e3 * seconds:.1f}" for who, seconds in row["seconds"].items())
    ratios = ", ".join(f"{layout} {ratio:.2f}" for layout, ratio in row["ratios"].items())
    peaks = ", ".join(f"{who} {size / 2**20:.0f}" for who, size in row.get("peak_bytes", {}).items())
    memory = f"; peak, MB: {peaks}" if peaks else ""
    return f"{row['network']}, {row['pass']}, {row['threads']} thread(s), ms: {times}; times as fast: {ratios}{memory}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__.split("\n")[0])
    parser.add_argument("--passes", nargs="+", choices=list(PASSES), default=list(PASSES))
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--networks", nargs="+", choices=CLASSIFIERS, default=CLASSIFIERS)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the JSON")
    options = parser.parse_args(arguments)
    rows = []
    for what in options.passes:
        for threads in options.threads:
            for name in options.networks:
                rows.append(measure(name, threads, what))
                print(line(rows[-1]), flush=True)
    today = datetime.datetime.now(datetime.timezone.utc)
    path = options.output or ROOT / "benchmarks" / "results" / f"{today:%Y-%m-%d}-{_C.active_isa()}-models.json"
    about = {"mode": "models", "date": today.isoformat(timespec="seconds"), "isa": _C.active_isa()}
    about |= {"torch": torch.__version__, "convext": convext.__version__, "batch": PASSES, "size": SIZE}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
