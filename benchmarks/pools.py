"""The pools beyond max and average, beside torch's: verified, then timed in turns.

    python -m benchmarks.pools [--threads 1 2] [--only TEXT] [--output FILE]

Adaptive and global pooling, power averages, k-max and fractional pooling, maxima with indices, max unpooling, in the
layouts they have;
forward under torch.inference_mode, and forward and gradient together. torch has no k-max: its topk, put in order,
stands for it. What moves numbers must equal torch's; sums may differ by LIMIT, norm-wise.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import convext
import convext.functional as C
from benchmarks.timing import Call, Mismatch, disturbed_share, geometric_mean, take_turns
from convext import _C

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1e-5
BUDGET_SECONDS = 0.5
FORMATS = {
    "contiguous": dict.fromkeys((3, 4, 5), torch.contiguous_format),
    "channels_last": {4: torch.channels_last, 5: torch.channels_last_3d},
}

Pooled = Tensor | tuple[Tensor, Tensor]  # maxima may come with their indices
Pool = Callable[[Tensor], Pooled]


@dataclass(frozen=True)
class Case:
    """A pool of both libraries, and the input's shape."""

    name: str
    shape: tuple[int, ...]
    ours: Pool
    theirs: Pool
    exact: bool = True


def _of(name: str, *args: Any, **kwargs: Any) -> tuple[Pool, Pool]:
    """The function of that name in convext and in torch, with these arguments after the input."""
    ours, theirs = getattr(C, name), getattr(F, name)
    return lambda x: ours(x, *args, **kwargs), lambda x: theirs(x, *args, **kwargs)


def _in_order(lines: Tensor, k: int) -> Tensor:
    """torch's k-max: the greatest, put in their order."""
    places = lines.topk(k, -1).indices.sort(-1).values
    return lines.gather(-1, places)


def _unpool(shape: tuple[int, ...]) -> tuple[Pool, Pool]:
    """2x2 max unpooling in both libraries, by the indices that a pooling of some image of that shape gives."""
    image = torch.randn(shape)
    indices = {
        layout: F.max_pool2d(image.contiguous(memory_format=formats[4]), 2, return_indices=True)[1]
        for layout, formats in FORMATS.items()
    }

    def of(library: Any) -> Pool:
        return lambda x: library.max_unpool2d(x, indices["contiguous" if x.is_contiguous() else "channels_last"], 2)

    return of(C), of(F)


ADAPTIVE = (
    ("global, 2048 7", (1, 2048, 7, 7), 1),
    ("global, 512 14, batch 8", (8, 512, 14, 14), 1),
    ("global, 64 56", (1, 64, 56, 56), 1),
    ("global 1d, 256 8000", (1, 256, 8000), 1),
    ("global 3d, 32 16x28x28", (1, 32, 16, 28, 28), 1),
    ("512 14 to 7", (1, 512, 14, 14), 7),
    ("256 13 to 6 (AlexNet)", (1, 256, 13, 13), 6),
    ("512 7 to 5", (1, 512, 7, 7), 5),
    ("2048 20 to 3 (pyramid)", (1, 2048, 20, 20), 3),
    ("512 60 to 6 (pyramid)", (1, 512, 60, 60), 6),
    ("64 100 to 32", (1, 64, 100, 100), 32),
    ("256 7 to 14", (1, 256, 7, 7), 14),
    ("1d, 8 x 64 1000 to 99", (8, 64, 1000), 99),
    ("3d, 16 30^3 to 8^3", (1, 16, 30, 30, 30), 8),
)


def cases() -> Iterator[Case]:
    for kind in ("avg", "max"):
        for name, shape, size in ADAPTIVE:
            functions = _of(f"adaptive_{kind}_pool{len(shape) - 2}d", size)
            yield Case(f"adaptive {kind} {name}", shape, *functions, exact=kind == "max")
    yield Case("power 2, 2x2 s2, 64 112", (1, 64, 112, 112), *_of("lp_pool2d", 2.0, 2), exact=False)
    yield Case("power 3, 3x3 s2, 64 56", (1, 64, 56, 56), *_of("lp_pool2d", 3.0, 3, 2), exact=False)
    yield Case("power 2, 4 s4, 64 4096", (1, 64, 4096), *_of("lp_pool1d", 2.0, 4), exact=False)
    yield Case("power 2, 2^3 s2, 16 32^3", (1, 16, 32, 32, 32), *_of("lp_pool3d", 2.0, 2), exact=False)
    for k, shape in ((5, (64, 100, 300)), (100, (8, 64, 1000))):
        yield Case(
            f"{k} greatest of {shape[2]}, {shape[0] * shape[1]} lines",
            shape,
            lambda x, k=k: C.k_max_pool1d(x, k),
            lambda x, k=k: _in_order(x, k),
        )
    yield Case(
        "4 greatest of 56x56, 64", (1, 64, 56, 56), lambda x: C.k_max_pool(x, 4), lambda x: _in_order(x.flatten(2), 4)
    )
    for name, window in (("2x2 s2", (2,)), ("3x3 s2", (3, 2, 1)), ("5x5", (5, 1, 2))):
        functions = _of("max_pool2d", *window, return_indices=True)
        yield Case(f"max {name} with indices, 64 56", (1, 64, 56, 56), *functions)
    functions = _of("adaptive_max_pool2d", 7, return_indices=True)
    yield Case("adaptive max 512 14 to 7 with indices", (1, 512, 14, 14), *functions)
    yield Case("unpool 2x2, 64 224", (1, 64, 112, 112), *_unpool((1, 64, 224, 224)))
    samples = torch.rand(1, 64, 2)
    drawn = _of("fractional_max_pool2d", 2, 78, _random_samples=samples)
    yield Case("fractional 2x2, 64 112 to 78", (1, 64, 112, 112), *drawn)
    samples = torch.rand(1, 16, 3)
    drawn = _of("fractional_max_pool3d", 2, 22, _random_samples=samples)
    yield Case("fractional 2^3, 16 32 to 22", (1, 16, 32, 32, 32), *drawn)


def _tensors(pooled: Pooled) -> tuple[Tensor, ...]:
    return (pooled,) if isinstance(pooled, Tensor) else tuple(pooled)


def _forward(pool: Pool, x: Tensor) -> Call:
    def call() -> Pooled:
        with torch.inference_mode():
            return pool(x)

    return call


def _both(pool: Pool, x: Tensor, grad_output: Tensor) -> Call:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()

    def call() -> Tensor:
        return torch.autograd.grad(_tensors(pool(leaf))[0], leaf, grad_output)[0]

    return call


def _verify(case: Case, what: str, actual: Pooled, expected: Pooled) -> None:
    for ours, theirs in zip(_tensors(actual), _tensors(expected), strict=True):
        error = float((ours - theirs).double().norm() / theirs.double().norm())
        if not (torch.equal(ours, theirs) if case.exact and what == "forward" else error <= LIMIT):
            raise Mismatch(f"{case.name}, {what}: the norm-wise error is {error:.3g}, allowed is {LIMIT:.3g}")


def measure(case: Case, layout: str, threads: int) -> list[dict[str, Any]]:
    """Rows of both passes. Raises Mismatch where convext's result is not torch's."""
    torch.set_num_threads(threads)
    x = (torch.rand(case.shape) + 0.1).contiguous(memory_format=FORMATS[layout][len(case.shape)])
    grad_output = torch.rand_like(_tensors(case.theirs(x))[0])
    rows = []
    for what in ("forward", "forward and gradient"):
        calls = {
            who: _forward(pool, x) if what == "forward" else _both(pool, x, grad_output)
            for who, pool in (("torch", case.theirs), ("convext", case.ours))
        }
        _verify(case, what, calls["convext"](), calls["torch"]())
        timings = take_turns(calls, BUDGET_SECONDS, random.Random(0))
        times = {who: timing.median for who, timing in timings.items()}
        row: dict[str, Any] = {"pool": case.name, "layout": layout, "pass": what, "threads": threads, "seconds": times}
        rows.append(row | {"ratio": times["torch"] / times["convext"], "disturbed": disturbed_share(timings)})
    return rows


def line(rows: Sequence[dict[str, Any]]) -> str:
    passes = ", ".join(
        f"{row['pass']} {' / '.join(f'{1e3 * t:.3f}' for t in row['seconds'].values())} ms, x {row['ratio']:.2f}"
        for row in rows
    )
    return f"{rows[0]['pool']}, {rows[0]['layout']}, {rows[0]['threads']} thread(s): torch / convext {passes}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pools", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--only", default="", metavar="TEXT", help="pools with this in their name")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the JSON")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    rows = []
    for threads in options.threads:
        for case in cases():
            if options.only not in case.name:
                continue
            for layout, formats in FORMATS.items():
                if len(case.shape) in formats:
                    rows += measure(case, layout, threads)
                    print(line(rows[-2:]), flush=True)
    if not rows:
        parser.error(f"no pool has {options.only!r} in its name")
    for what in ("forward", "forward and gradient"):
        for layout in FORMATS:
            ratios = [r["ratio"] for r in rows if r["pass"] == what and r["layout"] == layout]
            if ratios:
                print(f"{what}, {layout}: geometric mean {geometric_mean(ratios):.2f}, lowest {min(ratios):.2f}")
    today = datetime.datetime.now(datetime.timezone.utc)
    path = options.output or ROOT / "benchmarks" / "results" / f"{today:%Y-%m-%d}-{_C.active_isa()}-pools.json"
    about = {"mode": "pools", "date": today.isoformat(timespec="seconds"), "isa": _C.active_isa()}
    about |= {"torch": torch.__version__, "convext": convext.__version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
