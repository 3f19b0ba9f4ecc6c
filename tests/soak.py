"""Soak: very many calls of changing operators, shapes, dtypes and layouts, from several threads at once.

python -m tests.soak --calls 100000      # make soak; the short form is tests/test_soak.py

A pool of calls is drawn once, and each is answered once, alone: convolutions, pools, normalisations, and small networks
made by convext.optimize, whose layers run in chains. Then threads call them in orders of their own: plain, with
gradients, with weights that are new, edited and die (what is packed of them must go, too). Every answer must have the
bits of the first one. Memory is read once all threads have made every call, and again at the end; in between it may not
grow: neither what malloc has handed out (to the byte: mallinfo2), nor Python's blocks, nor the arena, nor the resident
set; and the packed weights kept and the arena's blocks in use must be the same to the byte.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn

import convext
import convext.functional as C
from convext import _C

DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
MODES = ("zeros", "zeros", "reflect", "replicate", "circular", "symmetric")
THREADS = 3


@dataclass(frozen=True)
class Call:
    """One call: its operands, the first of which is the input, and whether its gradients are asked for."""

    name: str
    operands: tuple[Tensor, ...]
    run: Callable[..., Tensor]
    gradients: bool

    def answers(self, operands: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        tensors = [t.detach() for t in (self.operands if operands is None else operands)]
        if not self.gradients:
            return [self.run(*tensors)]
        leaves = [t.requires_grad_() for t in tensors]
        output = self.run(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]

    def answers_of_new_weights(self) -> list[Tensor]:
        """The same from operands that are new, used twice, edited, edited back, and die."""
        operands = tuple(t.clone() for t in self.operands)
        for _ in range(2):
            self.answers(operands)
        if len(operands) > 1:
            for factor in (2.0, 0.5):  # exact in every dtype
                operands[1].mul_(factor)
                found = self.answers(operands)
            return found
        return self.answers(operands)


def _input(rng: random.Random, spatial: int, channels: int, dtype: torch.dtype, last: bool) -> Tensor:
    size = {1: (8, 40), 2: (5, 12), 3: (4, 6)}[spatial]
    x = torch.randn(rng.randint(1, 3), channels, *(rng.randint(*size) for _ in range(spatial))).to(dtype)
    if last and spatial > 1:
        x = x.contiguous(memory_format=torch.channels_last if spatial == 2 else torch.channels_last_3d)
    return x


def _convolution(rng: random.Random, index: int) -> Call:
    spatial, dtype, last = rng.choice((1, 2, 2, 2, 3)), rng.choice(DTYPES), rng.random() < 0.5
    groups = rng.choice((1, 1, 1, 2, 8))
    inputs, outputs = (groups * rng.choice((1, 2)) for _ in range(2)) if groups > 1 else rng.choices((1, 3, 8, 17), k=2)
    x = _input(rng, spatial, inputs, dtype, last)
    kernel = [rng.choice((1, 2, 3, 3)) for _ in range(spatial)]
    bias = (torch.randn(outputs).to(dtype),) if rng.random() < 0.5 else ()
    options: dict[str, Any] = {"stride": rng.choice((1, 1, 2)), "groups": groups}
    if rng.random() < 0.25:
        function = getattr(C, f"conv_transpose{spatial}d")
        weight = torch.randn(inputs, outputs // groups, *kernel).to(dtype)
    else:
        function = getattr(C, f"conv{spatial}d")
        weight = torch.randn(outputs, inputs // groups, *kernel).to(dtype)
        options |= {"padding": rng.choice((0, 1, "same")), "padding_mode": rng.choice(MODES)}

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        answer: Tensor = function(x, w, b, **options)
        return answer

    name = f"{index}: {function.__name__} {tuple(x.shape)} {tuple(weight.shape)} {dtype} {options}"
    return Call(name, (x, weight, *bias), run, rng.random() < 0.5)


def _pool(rng: random.Random, index: int) -> Call:
    spatial, dtype, last = rng.choice((1, 2, 2, 2, 3)), rng.choice(DTYPES), rng.random() < 0.5
    x = _input(rng, spatial, rng.choice((1, 3, 17)), dtype, last)
    kind = rng.choice(("max_pool", "avg_pool", "lp_pool", "adaptive_max_pool", "adaptive_avg_pool"))
    function = getattr(C, f"{kind}{spatial}d")
    arguments: tuple[Any, ...] = (rng.choice((2, 3)), rng.choice((1, 2)), 1)
    if kind == "lp_pool":
        arguments = (float(rng.choice((1, 2, 3))), *arguments[:2])
    elif kind.startswith("adaptive"):
        arguments = (rng.choice((1, 2, 3)),)

    def run(x: Tensor) -> Tensor:
        answer: Tensor = function(x, *arguments)
        return answer

    return Call(f"{index}: {function.__name__} {tuple(x.shape)} {dtype} {arguments}", (x,), run, rng.random() < 0.5)


def _normalisation(rng: random.Random, index: int) -> Call:
    """By a batch's statistics, with an activation; some of float64, which is torch's."""
    spatial, dtype, last = rng.choice((1, 2, 2, 2, 3)), rng.choice(DTYPES), rng.random() < 0.5
    x = _input(rng, spatial, rng.choice((1, 3, 17, 40)), dtype, last)
    activation = rng.choice(("none", "clamp", "leaky_relu", "silu", "hardswish"))
    parameters = dtype if dtype == torch.float64 else torch.float32
    weight, bias = (torch.randn(x.shape[1], dtype=parameters) for _ in range(2))

    def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return C.batch_norm(x, None, None, w, b, True, activation=activation, a=0.0, b=6.0)

    return Call(
        f"{index}: batch_norm {tuple(x.shape)} {dtype} {activation}", (x, weight, bias), run, rng.random() < 0.5
    )


class _Excited(nn.Module):
    """x * sigmoid(conv(mean of x)), and x beside it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(torch.cat([x * self.conv(self.mean(x)).sigmoid(), x], 1)).relu()
        return result


def _network(rng: random.Random, index: int) -> Call:
    """Layers whose maps are large enough for chains, by bands of rows and by blocks of channels."""
    channels, size, stride = rng.choice((8, 12)), rng.randint(26, 40), rng.choice((1, 2))
    hidden = channels * rng.choice((4, 6, 8))
    activation = rng.choice((nn.ReLU, nn.ReLU6, nn.SiLU))
    stem = [nn.Conv2d(3, 24, 3, padding=1), activation(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(24, channels, 3, padding=1)]
    kernel = rng.choice((3, 5))
    mobile = [
        *(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), activation()),
        nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden),
        *(nn.BatchNorm2d(hidden), activation(), nn.Conv2d(hidden, channels, 1)),
    ]
    layers = rng.choice(([*stem, *mobile], mobile, [*stem, _Excited(channels)]))
    x = torch.randn(
        rng.randint(1, 2), 3 if layers[0] is stem[0] else channels, *(size * (layers[0] is stem[0]) + size,) * 2
    )
    layout = rng.choice(("channels_last", "channels_last", "contiguous"))
    network = convext.optimize(nn.Sequential(*layers), x, memory_format=layout)
    name = f"{index}: {[type(layer).__name__ for layer in layers]} {tuple(x.shape)} {layout}"
    return Call(name, (x,), network, False)


def draw(count: int, seed: int = 0) -> list[Call]:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kinds = (_pool, _convolution, _convolution, _pool, _convolution, _convolution, _normalisation, _network)
    return [kinds[i % len(kinds)](rng, i) for i in range(count)]


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


@dataclass(frozen=True)
class Memory:
    """Bytes, and Python's blocks."""

    handed_out: int
    resident: int
    blocks: int
    packed: int
    arena_held: int
    arena_used: int

    @staticmethod
    def now() -> Memory:
        gc.collect()
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallinfo2.restype = _Mallinfo2
        info = libc.mallinfo2()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return Memory(
            info.uordblks + info.hblkhd,
            pages * os.sysconf("SC_PAGE_SIZE"),
            sys.getallocatedblocks(),
            convext.packed_weight_bytes(),
            *_C.arena_bytes(),
        )


@dataclass(frozen=True)
class Outcome:
    calls: int
    different: tuple[str, ...]  # calls that were answered in other bits than the first time
    before: Memory
    after: Memory

    def grown(self, quantity: str) -> int:
        return int(getattr(self.after, quantity) - getattr(self.before, quantity))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _same_bits(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(_bytes(f), _bytes(e)) for f, e in zip(found, expected, strict=True))


def soak(calls: int, kinds: int, threads: int = THREADS) -> Outcome:
    """So many calls of so many kinds."""
    pool = draw(kinds)
    different: set[str] = set()
    convext.clear_packed_weights()
    expected = [call.answers() for call in pool]

    def check(index: int, new_weights: bool) -> None:
        call = pool[index]
        found = call.answers_of_new_weights() if new_weights else call.answers()
        if not _same_bits(found, expected[index]):
            different.add(call.name)

    def warm(barrier: Barrier) -> None:
        barrier.wait()  # every thread of the executor has one
        for index in range(kinds):
            check(index, False)
            check(index, True)

    def work(seed: int, share: int) -> None:
        rng = random.Random(seed)
        for _ in range(share):
            check(rng.randrange(kinds), rng.random() < 0.125)

    def all_of(jobs: list[Any]) -> None:
        for job in jobs:
            job.result()

    def read() -> Memory:
        for index in range(kinds):  # whatever was packed last, by whichever thread: kept is what these calls keep
            for _ in range(2):
                check(index, False)
        return Memory.now()

    with ThreadPoolExecutor(threads) as executor:
        barrier = Barrier(threads)
        all_of([executor.submit(warm, barrier) for _ in range(threads)])
        all_of([executor.submit(work, -1 - seed, kinds) for seed in range(threads)])
        before = read()
        all_of([executor.submit(work, seed, calls // threads) for seed in range(threads)])
        after = read()
        return Outcome(calls, tuple(sorted(different)), before, after)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Very many calls, and flat memory.")
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--kinds", type=int, default=400)
    arguments = parser.parse_args()
    outcome = soak(arguments.calls, arguments.kinds)
    limits = {"handed_out": 1 << 20, "resident": 16 << 20, "blocks": 10_000, "packed": 0}
    limits |= {"arena_held": 32 << 20, "arena_used": 0}  # a slab
    print(f"{outcome.calls} calls of {arguments.kinds} kinds from {THREADS} threads")
    print("\n".join(f"other bits than the first time: {name}" for name in outcome.different) or "the bits are the same")
    for quantity, limit in limits.items():
        before, grown = getattr(outcome.before, quantity), outcome.grown(quantity)
        print(f"{quantity}: {before} before, grown by {grown} (at most {limit})")
    if outcome.different or any(outcome.grown(quantity) > limit for quantity, limit in limits.items()):
        raise SystemExit("memory has grown, or bits have changed")


if __name__ == "__main__":
    main()
