"""torch.compile around convext's operators: compiled against eager, inference and training, verified, timed in turns.

    python -m benchmarks.compiled [--passes inference training] [--threads 1] [--cases NAME ...] [--seconds 4]
                                  [--output FILE]

A case is a layer with what users put around it (activation, residual, normalisation), or a whole network of torch.nn's
layers after convext.convert. Contenders: torch's and convext's, each eager and under torch.compile(fullgraph=True).

inference: batch 1, in eval mode under torch.inference_mode; outputs within NORM_LIMIT of eager torch's, norm-wise.
training: forward and gradient of the mean square of the output, batch 4, in training mode; loss and gradients of the
parameters within NORM_LIMIT of eager torch's, of whole networks within TRAINING_LIMIT (benchmarks/models.py says why).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convext
from benchmarks.models import NORM_LIMIT, SIZE, TRAINING_LIMIT, call_of, network
from benchmarks.timing import Call, Mismatch, disturbed_share, geometric_mean, take_turns
from convext import _C

ROOT = Path(__file__).resolve().parent.parent
BUDGET_SECONDS = 4.0
PASSES = {"inference": 1, "training": 4}
"""Pass -> batch size."""


class _Residual(nn.Module):
    """silu(conv(x) + x)"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.conv(x) + x)


class _Scaled(nn.Module):
    """gelu(conv(x)) * scale"""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)
        self.scale = nn.Parameter(torch.full((outputs, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.conv(x)) * self.scale


def _depthwise(channels: int) -> nn.Module:
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU6())


LAYERS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "3x3 64-64 56, ReLU": (lambda: nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()), 64, 56),
    "3x3 128-128 28, residual, SiLU": (lambda: _Residual(128), 128, 28),
    "1x1 64-256 56, GELU, scale": (lambda: _Scaled(64, 256), 64, 56),
    "depthwise 3x3 144 56, norm, ReLU6": (lambda: _depthwise(144), 144, 56),
    "3x3 16-16 8, ReLU (small)": (lambda: nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()), 16, 8),
}
"""Name -> module, channels and size of its input."""
NETWORKS = ("ResNet-18", "MobileNetV2")


def case(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    if name in NETWORKS:
        return network(name), torch.randn(batch, 3, SIZE, SIZE)
    make, channels, size = LAYERS[name]
    torch.manual_seed(0)
    return make(), torch.randn(batch, channels, size, size)


def step_of(model: nn.Module, x: Tensor) -> Call:
    """Loss and the gradients of the parameters, in one line."""

    def step() -> Tensor:
        model.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return torch.cat(
            [loss.detach().reshape(1), *(p.grad.flatten() for p in model.parameters() if p.grad is not None)]
        )

    return step


def contenders(name: str, what: str) -> tuple[dict[str, Call], dict[str, float]]:
    """Each contender's call, and how far its result is from eager torch's. Raises Mismatch where that is too far."""
    model, x = case(name, PASSES[what])
    model.train(what == "training")
    calls: dict[str, Call] = {}
    for library in ("torch", "convext"):
        own = copy.deepcopy(model)
        if library == "convext":
            convext.convert(own)
        torch._dynamo.reset()
        compiled: Any = torch.compile(copy.deepcopy(own), fullgraph=True)
        make = step_of if what == "training" else call_of
        calls |= {library: make(own, x), f"{library} compiled": make(compiled, x)}
        calls[f"{library} compiled"]()
    limit = TRAINING_LIMIT if what == "training" and name in NETWORKS else NORM_LIMIT
    expected = calls["torch"]()
    errors = {}
    for who, call in calls.items():
        errors[who] = float((call() - expected).norm() / expected.norm())
        if not errors[who] <= limit:
            raise Mismatch(f"{name}, {what}, {who}: the norm-wise error is {errors[who]:.3g}, allowed is {limit:.3g}")
    return calls, errors


def measure(name: str, what: str, threads: int, budget: float) -> dict[str, Any]:
    torch.set_num_threads(threads)
    calls, errors = contenders(name, what)
    timings = take_turns(calls, budget, random.Random(0))
    seconds = {who: timing.median for who, timing in timings.items()}
    row: dict[str, Any] = {"case": name, "pass": what, "threads": threads, "seconds": seconds, "errors": errors}
    row["disturbed"] = disturbed_share(timings)
    row["ratio"] = seconds["convext"] / seconds["convext compiled"]
    row["ratio_torch"] = seconds["torch compiled"] / seconds["convext compiled"]
    return row


def line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{who} {1e3 * seconds:.3g}" for who, seconds in row["seconds"].items())
    return (
        f"{row['case']}, {row['pass']}, {row['threads']} thread(s), ms: {times}; compiled {row['ratio']:.2f} times as "
        f"fast as eager, {row['ratio_torch']:.2f} as torch compiled"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__.split("\n")[0])
    parser.add_argument("--passes", nargs="+", choices=list(PASSES), default=list(PASSES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--cases", nargs="+", choices=[*LAYERS, *NETWORKS], default=[*LAYERS, *NETWORKS])
    parser.add_argument("--seconds", type=float, default=BUDGET_SECONDS, help="to time a row in")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the JSON")
    options = parser.parse_args(arguments)
    rows = []
    for what in options.passes:
        for threads in options.threads:
            for name in options.cases:
                rows.append(measure(name, what, threads, options.seconds))
                print(line(rows[-1]), flush=True)
    for which in ("ratio", "ratio_torch"):
        print(f"geometric mean, {which}: {geometric_mean([row[which] for row in rows]):.2f}")
    today = datetime.datetime.now(datetime.timezone.utc)
    path = options.output or ROOT / "benchmarks" / "results" / f"{today:%Y-%m-%d}-{_C.active_isa()}-compiled.json"
    about = {"mode": "compiled", "date": today.isoformat(timespec="seconds"), "isa": _C.active_isa()}
    about |= {"torch": torch.__version__, "convext": convext.__version__, "batch": PASSES}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
