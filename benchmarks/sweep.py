"""Layers of other networks, and random ones: where is convext slower than torch, and where does auto choose wrongly?

    python -m benchmarks.sweep [--seconds 300] [--threads 1 2] [--seed 1] [--kinds networks dense ...] [--output FILE]

The benchmark's own layers (shapes.py) are those that kernels were written for. These are others: of networks that it
does not have (layers.py), each once, and layers of ordinary sizes that nobody has seen, drawn until time is up. A row
is a layer, a layout and a direction: torch, convext's auto and every algorithm that can do it, float32, within LIMIT of
torch's result norm-wise, timed in turns. Weights stay packed from call to call, as in inference.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import convext
import convext.functional as C
from benchmarks import tables
from benchmarks.layers import OTHER_NETWORKS, Layer
from benchmarks.timing import Mismatch, take_turns
from convext import _C

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 2e-5
BUDGET_SECONDS = 0.1
"""Of a row."""
ALGORITHMS = ("winograd", "im2col", "direct")
DIRECTIONS = ("forward", "input", "weight")
RANDOM = ("dense", "depthwise", "groups", "few", "1d", "3d", "transposed")
KINDS = ("networks", *RANDOM)
CHANNELS = (8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)
SIZES = (7, 10, 14, 20, 28, 32, 40, 56, 64, 80, 112)


def random_layer(rng: random.Random, kinds: Sequence[str] = RANDOM) -> Layer:
    """One that fits. Every second to third one is dense, where that is among the kinds."""
    while True:
        kind = rng.choice([*kinds, *(["dense", "dense"] if "dense" in kinds else [])])
        dims, batch, size = 2, rng.choice((1, 1, 1, 2, 4, 8)), rng.choice(SIZES)
        kernel, stride, dilation = rng.choice((1, 3, 3, 3, 5, 7)), rng.choice((1, 1, 1, 2)), rng.choice((1, 1, 1, 1, 2))
        inputs, outputs, groups = rng.choice(CHANNELS), rng.choice(CHANNELS), 1
        if kind == "depthwise":
            outputs = groups = inputs
            kernel = rng.choice((3, 3, 5, 7, 9))
        elif kind == "groups":
            groups, each = rng.choice((2, 4, 8, 16, 32)), rng.choice((1, 2, 4, 8, 16, 32))
            inputs, outputs = groups * each, groups * each * rng.choice((1, 1, 2))
        elif kind == "few":
            few, kernel = rng.choice((1, 2, 3, 4, 6)), rng.choice((1, 3, 5, 7, 9))
            inputs, outputs = (few, outputs) if rng.random() < 0.5 else (inputs, few)
        elif kind == "1d":
            dims, size, kernel = 1, rng.choice((64, 256, 1024, 4096)), rng.choice((1, 2, 3, 4, 5, 7, 9, 15))
            groups = rng.choice((1, 1, inputs))
            outputs = outputs if groups == 1 else inputs
        elif kind == "3d":
            dims, size, kernel = 3, rng.choice((8, 12, 16, 24, 32)), rng.choice((1, 2, 3, 3))
            inputs, outputs = min(inputs, 64), min(outputs, 64)
        elif kind == "transposed":
            kernel, stride, dilation = rng.choice((2, 3, 4)), 2, 1
        padding = 0 if kind == "transposed" else rng.choice((0, kernel // 2))
        sizes = ((v,) * dims for v in (size, kernel, stride, padding, dilation))
        layer = Layer(kind, batch, inputs, outputs, *sizes, groups, kind == "transposed")
        if layer.fits():
            return layer


def _pass(layer: Layer, library: Any, direction: str, x: Tensor, w: Tensor, **options: Any) -> Callable[[], Tensor]:
    """The forward pass without gradients, or one gradient alone."""
    run = layer.of(library)
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return run(x, w, **options)

        return forward
    leaf = (x if direction == "input" else w).detach().requires_grad_()
    y = run(leaf, w, **options) if direction == "input" else run(x, leaf, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    dy = torch.empty_like(y).copy_(dy)  # in the layout of y
    return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)[0]


def time_row(layer: Layer, layout: str, direction: str, budget: float, rng: random.Random) -> dict[str, Any]:
    """Raises Mismatch for a wrong result."""
    torch.manual_seed(0)
    x, w = torch.randn(layer.input_shape), torch.randn(layer.weight_shape)
    if layout == "channels_last":
        x, w = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, w))
    calls = {"torch": _pass(layer, F, direction, x, w), "auto": _pass(layer, C, direction, x, w)}
    for name in ALGORITHMS:
        try:
            call = _pass(layer, C, direction, x, w, algorithm=name)
            call()
        except NotImplementedError:  # it cannot do this layer
            continue
        calls[name] = call
    expected = calls["torch"]()
    for name in calls.keys() - {"torch"}:
        error = ((calls[name]() - expected).norm() / expected.norm()).item()
        if not error <= LIMIT:
            raise Mismatch(f"{layer}, {layout}, {direction}: {name} is {error:.2g} from torch, allowed is {LIMIT:.2g}")
    return {
        "layer": str(layer),
        "kind": layer.kind,
        "layout": layout,
        "direction": direction,
        "threads": torch.get_num_threads(),
        "seconds": {name: float(f"{timing.median:.4g}") for name, timing in take_turns(calls, budget, rng).items()},
    }


def sweep(threads: int, seed: int, kinds: Sequence[str], seconds: float, budget: float) -> list[dict[str, Any]]:
    """Rows of the networks' layers, if they are asked for, and of as many random ones as there is time for. Raises
    Mismatch for a wrong result."""
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []

    def time_layer(layer: Layer) -> None:
        for layout in ("contiguous", "channels_last") if layer.dims == 2 else ("contiguous",):
            rows.extend(time_row(layer, layout, direction, budget, random.Random(0)) for direction in DIRECTIONS)

    for layer in OTHER_NETWORKS if "networks" in kinds else ():
        time_layer(layer)
    rng, drawn = random.Random(seed), [kind for kind in RANDOM if kind in kinds]
    end = time.monotonic() + seconds
    while drawn and time.monotonic() < end:
        time_layer(random_layer(rng, drawn))
    return rows


def slowest(rows: Sequence[dict[str, Any]], count: int) -> list[str]:
    """A line for each of the rows that lose most to torch."""
    lines = []
    for row in sorted(rows, key=tables.sweep_ratio)[:count]:
        spent = ", ".join(f"{name} {tables.milliseconds(seconds)}" for name, seconds in row["seconds"].items())
        what = f"{row['layer']}, {row['layout']}, {row['direction']}, {row['threads']} threads"
        lines.append(f"{tables.sweep_ratio(row):.2f}  {what}: {spent} ms")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="of random layers, for each number of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds of a row")
    parser.add_argument("--slowest", type=int, default=30, help="rows to list")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = []
    try:
        for threads in options.threads:
            rows += sweep(threads, options.seed, options.kinds, options.seconds, options.budget)
    except Mismatch as mismatch:
        sys.exit(f"sweep: {mismatch}")
    result = {
        "mode": "sweep",
        "date": date,
        "seed": options.seed,
        "isa": _C.active_isa(),
        "torch": torch.__version__,
        "convext": convext.__version__,
        "rows": rows,
    }
    output = options.output or ROOT / "benchmarks" / "results" / f"{date[:10]}-{result['isa']}-sweep.json"
    lines = ",\n".join(json.dumps(row) for row in rows)
    output.write_text(json.dumps(result | {"rows": []}).replace('"rows": []', f'"rows": [\n{lines}\n]') + "\n")
    print(*tables.sweep_table(result), *slowest(rows, options.slowest), f"-> {output}", sep="\n")


if __name__ == "__main__":
    main()
