"""The GPU's benchmark: verifies, then times by CUDA events, every row of what convext must reach there.

    python -m benchmarks.gpu                 every row; writes benchmarks/results/DATE-gpu-NAME.json
    python -m benchmarks.gpu --quick         a row or two of each group; writes outputs/benchmark-gpu.json
    python -m benchmarks.gpu --only TEXT     rows whose name or group contains the text; likewise

The peer is torch with cudnn.benchmark on and TF32 off, in the better of both layouts. Every timed call is first held to
a float64 reference (torch's, computed on the device) within the bound of a sum of its length; a wrong one ends its row
with an error and the program with status 1. Contenders take turns in random order; calls shorter than GRAPH_SECONDS
are captured several at a time in a CUDA graph and replayed, so that neither library's launching counts, medians count.
The share of the bound is the time that a row would take at the measured peak, bytes over the bandwidth of a copy or
operations over the rate of a large torch matmul of its dtype, whichever is longer, over the time it took.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import convext
from benchmarks import contenders
from benchmarks.contenders import SIXTEEN_BIT_SUMS, WINOGRAD_FACTOR, WINOGRAD_NORM, Operands, normal
from benchmarks.shapes import CONVOLUTIONS, POOLS, ConvProblem, PoolProblem
from benchmarks.timing import (
    Call,
    Mismatch,
    Reference,
    Timing,
    check,
    geometric_mean,
    peak_bytes,
    seconds_of,
    take_turns,
)
from convext import _C
from convext.choice import DIRECTIONS

ROOT = Path(__file__).resolve().parent.parent
GRAPH_SECONDS = 300e-6
CAPTURED_SECONDS, MOST_CAPTURED = 1e-3, 50
"""A graph holds about so many seconds of calls, at most so many."""
ROW_SECONDS, QUICK_ROW_SECONDS = 1.0, 0.2
SEED = 1
WIDTH = 170
HALVES = (torch.float16, torch.bfloat16)
TRAINING = "training"
"""Forward and all gradients, through autograd."""
NAIVE_LIMIT = 2**31

TARGETS = {
    ("dense", "forward"): 0.9,
    ("dense", "backward_input"): 0.9,
    ("dense", "backward_weight"): 0.9,
    ("dense float32", "forward"): 1.3,
    ("dense float32", "backward_input"): 1.3,
    ("dense float32", "backward_weight"): 1.3,
    ("depthwise", "forward"): 2.0,
    ("depthwise", "backward_input"): 3.0,
    ("depthwise", "backward_weight"): 3.0,
    ("causal", "forward"): 3.0,
    ("causal", "backward_input"): 3.0,
    ("causal", "backward_weight"): 3.0,
    ("few channels", "forward"): 1.0,
    ("few channels", "backward_input"): 1.0,
    ("few channels", "backward_weight"): 1.0,
    ("padding", "forward"): 1.5,
    ("padding", TRAINING): 1.5,
    ("pooling", "forward"): 1.2,
    ("pooling", TRAINING): 1.8,
}
"""What the ratio to the peer must reach on an H200, by group and pass."""
SHARES = {("causal", "forward"): 0.8, ("pooling", "forward"): 0.85, ("pooling", TRAINING): 0.85}
"""And the share of the bound."""


# Rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A problem in a dtype and a pass: forward, one gradient, or training."""

    group: str
    problem: ConvProblem | PoolProblem
    dtype: torch.dtype
    what: str
    quick: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.group, self.what

    @property
    def name(self) -> str:
        return f"{self.problem.name}, batch {self.problem.batch}"

    @property
    def operations(self) -> int:
        """Of a convolution: two per multiply-add, of every pass that runs."""
        if isinstance(self.problem, PoolProblem):
            return 0
        return 2 * self.problem.multiply_adds * (3 if self.what == TRAINING else 1)

    @property
    def bytes(self) -> int:
        """What each pass must read and write, once. Max pooling saves a byte per output for its gradient."""
        p, size = self.problem, self.dtype.itemsize
        moved = p.bytes_moved(size)
        if self.what != TRAINING:
            return moved
        if isinstance(p, ConvProblem):
            return 3 * moved
        return 2 * moved + (0 if p.average else 2 * math.prod(p.output_shape))

    def terms(self) -> tuple[int, ...]:
        """How many rounded terms make an element of each result."""
        p = self.problem
        taps = math.prod(p.kernel)
        if isinstance(p, PoolProblem):
            return (taps + 2 if p.average else 0, taps + 2 if p.average else taps)[: 2 if self.what == TRAINING else 1]
        inputs, outputs = (c // p.groups for c in p.channels)
        shown = 3**p.spatial if p.padding_mode != "zeros" else 1  # an input place in the padding
        each = (inputs * taps, outputs * taps * shown, p.batch * math.prod(p.output_shape[2:]))
        return each if self.what == TRAINING else (each[DIRECTIONS.index(self.what)],)

    def operands(self, device: torch.device, layout: str) -> Operands:
        """The same numbers in both layouts."""
        make = normal(SEED)
        last = layout == "channels_last"
        if isinstance(self.problem, ConvProblem):
            x, w, _ = self.problem.operands(make, last)
        else:
            x, w = self.problem.operand(make, last), None
        dy = make(*self.problem.output_shape)
        laid = [None if t is None else t.to(device, self.dtype) for t in (x, w, dy)]
        if last:
            laid = [None if t is None else contenders.laid_out(t, True) for t in laid]
        return Operands(*laid)  # type: ignore[arg-type]

    @property
    def layouts(self) -> tuple[str, ...]:
        return ("contiguous",) if self.problem.spatial == 1 else ("contiguous", "channels_last")


def _named(problems: Sequence[Any], *names: str) -> list[Any]:
    by_name = {p.name: p for p in problems}
    return [by_name[name] for name in names]


def _depthwise(kernel: int, channels: int, size: int) -> ConvProblem:
    return ConvProblem(
        f"depthwise {kernel}x{kernel} {channels} {size}",
        (channels, channels),
        (size, size),
        (kernel, kernel),
        padding=kernel // 2,
        groups=channels,
        batch=32,
    )


def rows() -> Iterator[Row]:
    """Those of the table of what must be reached."""
    threes = _named(CONVOLUTIONS, "3x3 64-64 56", "3x3 128-128 28", "3x3 256-256 14", "3x3 512-512 7")
    threes += _named(CONVOLUTIONS, "3x3 64-64 224 (VGG)", "3x3 256-256 56 (VGG)", "3x3 512-512 14 (VGG)")
    ones = _named(CONVOLUTIONS, "1x1 64-256 56", "1x1 256-64 56", "1x1 1024-256 14", "1x1 512-2048 7")
    strided = _named(CONVOLUTIONS, "3x3 s2 128-128 56", "7x7 s2 3-64 224 (ResNet stem)")
    for problem in (*threes, *ones, *strided):
        quick = problem.name in ("3x3 256-256 14", "1x1 1024-256 14")
        for dtype in (*HALVES, torch.float32):
            group = "dense" if dtype in HALVES else "dense float32"
            for direction in DIRECTIONS:
                batched = problem.with_(batch=32)
                yield Row(group, batched, dtype, direction, quick and dtype != torch.bfloat16)
    for kernel, channels, size in ((3, 144, 56), (3, 960, 7), (5, 240, 28), (7, 96, 56), (13, 192, 28), (31, 128, 56)):
        for dtype in (torch.float16, torch.float32):
            for direction in DIRECTIONS:
                yield Row("depthwise", _depthwise(kernel, channels, size), dtype, direction, kernel == 7)
    (causal,) = _named(CONVOLUTIONS, "causal depthwise conv1d k4 1024 x 2048")
    for dtype in (*HALVES, torch.float32):
        for direction in DIRECTIONS:
            yield Row("causal", causal.with_(batch=8), dtype, direction, dtype == torch.float16)
    few = _named(CONVOLUTIONS, "3x3 1-32 28 batch 64 (MNIST)", "3x3 3-64 256 (U-Net in)", "3x3 64-3 256 (image out)")
    few += _named(CONVOLUTIONS, "15x15 1-16 256 (filter bank)", "3x3 1-1 512 (one filter)", "conv3d 3x3x3 1-32 64^3")
    for problem in few:
        batched = problem.with_(batch=4 if problem.spatial == 3 else 32)
        for dtype in (torch.float16, torch.float32):
            for direction in DIRECTIONS:
                yield Row("few channels", batched, dtype, direction, problem is few[1] and dtype == torch.float32)
    for mode in ("reflect", "replicate", "circular"):
        for problem in (*threes[0:3:2], _depthwise(7, 96, 56)):
            padded = problem.with_(name=f"{problem.name} {mode}", padding_mode=mode, batch=32)
            for dtype in (torch.float16, torch.float32):
                for what in ("forward", TRAINING):
                    yield Row("padding", padded, dtype, what, mode == "reflect" and problem is threes[2])
    for problem in POOLS:
        quick = problem.name in ("max 3 s2 p1, 64 112", "avg 3 s1 p1, 288 35")
        for dtype in (torch.float16, torch.float32):
            for what in ("forward", TRAINING):
                yield Row("pooling", problem.with_(batch=32), dtype, what, quick)


# Contenders --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A call that gives a row's results, or why it takes no part."""

    library: str
    variant: str
    layout: str
    algorithm: str | None = None
    refusal: str | None = None

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.library, self.variant, self.layout) if part not in ("", "contiguous"))


def _torch_forward(p: ConvProblem | PoolProblem, o: Operands) -> Tensor:
    if isinstance(p, PoolProblem):
        return contenders.torch_pool(p, "forward")(o)()  # type: ignore[no-any-return]
    if p.padding_mode == "zeros":
        return contenders.torch_conv(p, "forward")(o)()  # type: ignore[no-any-return]
    stride, pads, dilation, groups = p.options[:4]
    sides = [side for axis in reversed(range(p.spatial)) for side in pads[2 * axis : 2 * axis + 2]]
    conv: Any = (F.conv1d, F.conv2d, F.conv3d)[p.spatial - 1]
    return conv(F.pad(o.x, sides, p.padding_mode), o.w, None, stride, 0, dilation, groups)  # type: ignore[no-any-return]


def _our_forward(p: ConvProblem | PoolProblem, o: Operands, algorithm: str) -> Tensor:
    make: Any = contenders.convext_pool if isinstance(p, PoolProblem) else contenders.convext_conv
    return make(p, "forward", algorithm)(o)()  # type: ignore[no-any-return]


def _trained(forward: Any, o: Operands) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in (o.x, o.w) if t is not None]
    y = forward(Operands(leaves[0], leaves[1] if len(leaves) > 1 else None, o.dy))
    return y.detach(), *torch.autograd.grad(y, leaves, o.dy)


def call_of(row: Row, entry: Entry, o: Operands) -> Call:
    """Gives a tuple of results."""
    p, ours = row.problem, entry.library == "convext"

    def forward(o: Operands) -> Tensor:
        return _our_forward(p, o, entry.variant) if ours else _torch_forward(p, o)

    if row.what == "forward":
        return lambda: (forward(o),)
    if row.what == TRAINING:
        return lambda: _trained(forward, o)
    assert isinstance(p, ConvProblem)
    prepare = contenders.convext_conv(p, row.what, entry.variant) if ours else contenders.torch_conv(p, row.what)
    call = prepare(o)
    return lambda: (call(),)


def references(row: Row, o: Operands) -> list[Reference]:
    """Of contiguous operands; torch in float64."""
    theirs = Entry("torch", "", "contiguous")
    wide = Operands(*(None if t is None else t.double() for t in o))
    signed = isinstance(row.problem, PoolProblem) and not row.problem.average  # who wins depends on the signs
    absolute = Operands(wide.x if signed else wide.x.abs(), None if wide.w is None else wide.w.abs(), wide.dy.abs())
    values, magnitudes = (call_of(row, theirs, operands)() for operands in (wide, absolute))
    return [
        Reference(value, magnitude, terms, row.dtype)
        for value, magnitude, terms in zip(values, magnitudes, row.terms(), strict=True)
    ]


def explain(row: Row, o: Operands) -> convext.Explanation:
    p, what = row.problem, "forward" if row.what == TRAINING else row.what
    if isinstance(p, ConvProblem):
        more: dict[str, Any] = {"padding_mode": p.padding_mode, "flip_kernel": p.flip_kernel, "direction": what}
        rest = (p.stride, p.padding, p.dilation, p.groups)
        return convext.explain(f"conv{p.spatial}d", o.x, o.w, None, *rest, **more)
    op = f"{'avg' if p.average else 'max'}_pool{p.spatial}d"
    more = {"dilation": p.dilation, "ceil_mode": p.ceil_mode}
    return convext.explain(op, o.x, p.kernel, p.stride, p.padding, direction=what, **more)


def entries(row: Row, operands: dict[str, Operands]) -> list[Entry]:
    """torch and "auto" in both layouts, and every algorithm for a single pass."""
    result = []
    for layout, o in operands.items():
        result.append(Entry("torch", "", layout))
        said = explain(row, o)
        result.append(Entry("convext", "auto", layout, said.chosen))
        for verdict in said.verdicts if row.what != TRAINING else ():
            refusal = verdict.refusal
            if refusal is None and verdict.name == "naive" and row.operations > NAIVE_LIMIT:
                refusal = f"naive is timed up to {NAIVE_LIMIT:,} operations, here are {row.operations:,}"
            result.append(Entry("convext", verdict.name, layout, verdict.name, refusal))
    return result


def verify(row: Row, entry: Entry, call: Call, expected: Sequence[Reference]) -> float:
    """The largest error as a share of what was allowed. Raises Mismatch."""
    factor, limit = 1.0, math.inf
    if entry.library == "torch" and row.dtype in HALVES:
        factor = SIXTEEN_BIT_SUMS
    # A gradient may be winograd's where the forward pass is not.
    free = row.what == TRAINING and row.dtype == torch.float32
    if entry.library == "convext" and (entry.algorithm == "winograd" or free):
        factor, limit = WINOGRAD_FACTOR, WINOGRAD_NORM if row.dtype == torch.float32 else math.inf
    if entry.library == "torch" and row.dtype == torch.float32:
        factor = WINOGRAD_FACTOR  # cuDNN has it too
    results = call()
    try:
        return max(check(got, want, factor, limit).of_bound for got, want in zip(results, expected, strict=True))
    except Mismatch as error:
        raise Mismatch(f"{entry.name}: {error}") from None


# Timing ------------------------------------------------------------------------------------------------------------


class Events:
    """A call on the current CUDA stream that times itself by events; a short one by replaying a graph of several."""

    def __init__(self, call: Call) -> None:
        self._run, self._calls, self.graph = call, 1, False
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # as capturing wants it; cuDNN chooses here
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        rough = self.seconds(5)
        if rough > GRAPH_SECONDS:
            return
        count = max(1, min(MOST_CAPTURED, math.ceil(CAPTURED_SECONDS / rough)))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for _ in range(count):
                    call()
        except RuntimeError:  # it cannot be captured: its launches count, and the result says so
            torch.cuda.synchronize()
            return
        self._run, self._calls, self.graph = graph.replay, count, True

    def __call__(self) -> Any:
        return self._run()

    def seconds(self, repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            self._run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / (repeats * self._calls)


def timed(call: Call, device: torch.device) -> Call:
    return Events(call) if device.type == "cuda" else call


def peak_memory(call: Call, device: torch.device) -> int:
    """The most bytes held at once during a call, beyond what was held before."""
    if device.type != "cuda":
        return peak_bytes(call)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@dataclass(frozen=True)
class Peaks:
    """The yardsticks: GB/s of a large copy, read and written, and TFLOP/s of a large matmul by dtype."""

    copy_gbs: float
    matmul_tflops: dict[str, float]

    @staticmethod
    def measure(device: torch.device, copy_bytes: int = 2**30, size: int = 8192) -> Peaks:
        def best(call: Call) -> float:
            clock = timed(call, device)
            seconds_of(clock, 1)
            return min(seconds_of(clock, 3) for _ in range(5))

        source = torch.ones(copy_bytes // 4, device=device)
        target = torch.empty_like(source)
        copy = 2 * copy_bytes / best(lambda: target.copy_(source)) / 1e9
        rates = {}
        for dtype in (*HALVES, torch.float32):
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            call = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # noqa: E731
            rates[_name(dtype)] = 2 * size**3 / best(call) / 1e12
        return Peaks(copy, rates)

    def least_seconds(self, row: Row) -> tuple[str, float]:
        """What bounds a row, "copy" or "matrix", and how long it takes there."""
        memory = row.bytes / (self.copy_gbs * 1e9)
        matrix = row.operations / (self.matmul_tflops[_name(row.dtype)] * 1e12)
        return ("matrix", matrix) if matrix > memory else ("copy", memory)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(row: Row, peaks: Peaks, device: torch.device, budget: float) -> dict[str, Any]:
    """A row of the result. ``error`` is None, or the first mismatch; then nothing was timed."""
    bound, least = peaks.least_seconds(row)
    about: dict[str, Any] = {"group": row.group, "problem": row.name, "dtype": _name(row.dtype), "pass": row.what}
    about |= {"operations": row.operations, "bytes": row.bytes, "bound": bound, "least_seconds": least}
    about |= {"target": TARGETS[row.key], "target_share": SHARES.get(row.key), "error": None}
    operands = {layout: row.operands(device, layout) for layout in row.layouts}
    contestants = entries(row, operands)
    calls: dict[str, Call] = {}
    errors, memory = {}, {}
    try:
        expected = references(row, operands["contiguous"])
        for entry in contestants:
            if entry.refusal is None:
                call = call_of(row, entry, operands[entry.layout])
                errors[entry.name] = verify(row, entry, call, expected)
                memory[entry.name] = peak_memory(call, device)
                calls[entry.name] = call
        del expected
    except Mismatch as error:
        return about | {"error": str(error), "contenders": []}
    clocks = {name: timed(call, device) for name, call in calls.items()}
    timings = take_turns(clocks, budget, random.Random(SEED), undisturbed=lambda: True)
    said = []
    for entry in contestants:
        told: dict[str, Any] = {"name": entry.name, "library": entry.library, "variant": entry.variant}
        told |= {"layout": entry.layout, "algorithm": entry.algorithm}
        if entry.name not in timings:
            said.append(told | {"refused": entry.refusal})
            continue
        timing: Timing = timings[entry.name]
        told |= {"seconds": timing.median, "quartiles": [timing.lower, timing.upper], "turns": timing.turns}
        told |= {"graph": getattr(clocks[entry.name], "graph", False), "share_of_bound": least / timing.median}
        told |= {"error_of_bound": errors[entry.name], "peak_bytes": memory[entry.name]}
        said.append(told)
    return about | {"contenders": said} | ratios(said)


def fastest(said: Sequence[dict[str, Any]], library: str, variant: str | None = None) -> dict[str, Any] | None:
    mine = [c for c in said if "seconds" in c and c["library"] == library and variant in (None, c["variant"])]
    return min(mine, key=lambda c: c["seconds"], default=None)


def ratios(said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """torch's time over convext's, each in its better layout: of "auto", and of the fastest algorithm; torch's peak of
    memory over that of "auto"."""
    theirs, ours, best = fastest(said, "torch"), fastest(said, "convext", "auto"), fastest(said, "convext")
    if theirs is None or ours is None or best is None:
        return {}
    memory = theirs["peak_bytes"] / max(1, ours["peak_bytes"])
    times = {"ratio": theirs["seconds"] / ours["seconds"], "best_ratio": theirs["seconds"] / best["seconds"]}
    return times | {"memory_ratio": memory, "share_of_bound": ours["share_of_bound"]}


# The program -------------------------------------------------------------------------------------------------------


def gpu(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": platform.processor() or platform.machine(), "driver": "none"}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False) if shutil.which(query[0]) else None
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver": driver.stdout.split("\n")[0].strip() if driver is not None and driver.returncode == 0 else "unknown",
    }


def means(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means per group and pass, and in how many rows the target was reached."""
    result = []
    for group, what in dict.fromkeys((row["group"], row["pass"]) for row in measured):
        mine = [row for row in measured if (row["group"], row["pass"]) == (group, what) and "ratio" in row]
        if mine:
            of = {
                name: geometric_mean([row[name] for row in mine]) for name in ("ratio", "best_ratio", "share_of_bound")
            }
            reached = sum(row["ratio"] >= row["target"] for row in mine)
            result.append(
                {"group": group, "pass": what, "rows": len(mine), "target": mine[0]["target"], "reached": reached} | of
            )
    return result


def table(measured: Sequence[dict[str, Any]], group: str) -> Any:
    from rich.table import Table

    result = Table(title=group, caption="ms, medians; x: torch's better layout over convext's; %: share of the bound")
    for title in (
        "row",
        "dtype",
        "pass",
        "torch",
        "convext",
        "algorithm",
        "x",
        "must",
        "best x",
        "%",
        "bound",
        "memory x",
    ):
        result.add_column(title, justify="left" if title in ("row", "dtype", "pass", "algorithm", "bound") else "right")
    for row in measured:
        if row["group"] != group:
            continue
        if row["error"]:
            result.add_row(row["problem"], row["dtype"], row["pass"], "[red]WRONG[/red]")
            continue
        theirs, ours = fastest(row["contenders"], "torch"), fastest(row["contenders"], "convext", "auto")
        if theirs is None or ours is None:
            continue
        colour = "green" if row["ratio"] >= row["target"] else "red"
        last = [" cl" if c["layout"] == "channels_last" else "" for c in (theirs, ours)]
        result.add_row(
            *(row["problem"], row["dtype"], row["pass"]),
            *(f"{1e3 * theirs['seconds']:.3g}{last[0]}", f"{1e3 * ours['seconds']:.3g}{last[1]}", ours["algorithm"]),
            *(f"[{colour}]{row['ratio']:.2f}[/{colour}]", f"{row['target']:g}", f"{row['best_ratio']:.2f}"),
            *(f"{100 * row['share_of_bound']:.0f}", row["bound"], f"{row['memory_ratio']:.2f}"),
        )
    return result


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a row or two of each group, short turns")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name or group contains TEXT")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the JSON")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # cpu: for the tests of this program
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda":
        from tests.on_gpu import require

        require("benchmarks.gpu", with_sanitizer=False)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        from rich.console import Console
    except ImportError:
        sys.exit("The benchmark shows its progress with rich, which is missing: pip install rich")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    wanted = [r for r in rows() if options.only in f"{r.group}: {r.name}" and (r.quick or not options.quick)]
    if not wanted:
        console.print(f"[red]no row's name or group contains {options.only!r}[/red]")
        return 2
    full = not options.quick and not options.only and device.type == "cuda"
    today, start = datetime.datetime.now(datetime.timezone.utc), time.perf_counter()
    card = gpu(device)
    console.print(f"{card['name']}, driver {card['driver']}, torch {torch.__version__}; {len(wanted)} rows")
    peaks = Peaks.measure(device) if device.type == "cuda" else Peaks.measure(device, 2**22, 128)
    console.print(f"copy {peaks.copy_gbs:.0f} GB/s; matmul, TFLOP/s: {peaks.matmul_tflops}", highlight=False)
    measured = []
    for row in wanted:
        measured.append(measure(row, peaks, device, QUICK_ROW_SECONDS if options.quick else ROW_SECONDS))
        said = measured[-1]["error"] or f"x {measured[-1].get('ratio', math.nan):.2f}"
        console.print(f"{row.group}: {row.name}, {_name(row.dtype)}, {row.what}: {said}", highlight=False, markup=False)
    for group in dict.fromkeys(row.group for row in wanted):
        console.print(table(measured, group))
    summary = means(measured)
    for mean in summary:
        console.print(
            f"{mean['group']}, {mean['pass']}: x {mean['ratio']:.2f} (must {mean['target']:g}; reached in "
            f"{mean['reached']} of {mean['rows']}), {100 * mean['share_of_bound']:.0f}% of the bound",
            highlight=False,
        )
    result = {
        "mode": "gpu" if full else "gpu partial",
        "date": today.isoformat(timespec="seconds"),
        "gpu": card,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
            "convext": convext.__version__,
            "compiler": _C.compiler(),
        },
        "method": "verified, then timed by CUDA events in turns in random order, short calls replayed from graphs; "
        "medians; cudnn.benchmark on, TF32 off; caches are not flushed",
        "seconds": round(time.perf_counter() - start, 1),
        "peaks": {"copy_gbs": round(peaks.copy_gbs, 1), "matmul_tflops": peaks.matmul_tflops},
        "means": summary,
        "rows": measured,
    }
    name = "-".join("".join(c if c.isalnum() else " " for c in card["name"].lower()).split())
    results = ROOT / "benchmarks" / "results" / f"{today:%Y-%m-%d}-gpu-{name}.json"
    path = options.output or (results if full else ROOT / "outputs" / "benchmark-gpu.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    wrong = sum(row["error"] is not None for row in measured)
    console.print(f"{len(measured)} rows in {result['seconds']:.0f} s, {wrong} wrong; written to {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
