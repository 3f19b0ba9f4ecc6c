"""CUDA kernels on the CPU: problems as lines of numbers, and the compiling and running of the programs that check them.

For tests/test_cuda_emulator.py and its siblings. See there, and tests/emulator/cuda_runtime.h.
"""

import fcntl
import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = Path("tests") / "emulator"
CUDA = Path("csrc") / "cuda"
CPU_REFERENCES = [Path(f"csrc/cpu/{name}.cpp") for name in ("conv_naive", "pool_naive", "unpool", "k_max")]
CHECKS = [EMULATOR / "check.cpp", EMULATOR / "check_other_pools.cpp"]
GXX = shutil.which("g++")
# Tiles and the workspace are made so small that small problems have many of them, and so are the tensors that the
# kernels count in 32 bits.
FLAGS = [
    *("-std=c++17", "-O1", "-U_FORTIFY_SOURCE", f"-I{EMULATOR}"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-missing-field-initializers"),
    *("-DCONVEXT_GEMM_ENOUGH_TILES=2", f"-DCONVEXT_IM2COL_PANEL_BYTES={48 << 10}", "-DCONVEXT_MAX_ELEMENTS=40000"),
    *("-DCONVEXT_POOL_STAGE_BYTES=1500", "-DCONVEXT_ENOUGH_BLOCKS=16"),
    "-DCONVEXT_ONLY_ISA=0",  # of the references' vectors
    *("-fsanitize=bounds,signed-integer-overflow,shift", "-fsanitize-undefined-trap-on-error"),
]

NEEDED = [
    pytest.mark.skipif(GXX is None, reason="g++ is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="the stand-in uses Linux' fibers and loader"),
]

Triple = tuple[int, int, int]
FLOATING, INTEGER = ("float32", "float64", "float16", "bfloat16"), ("uint8", "int8", "int16", "int32", "int64")
DTYPES = {name: i for i, name in enumerate((*FLOATING, *INTEGER))}
MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")
LAYOUTS = ("contiguous", "channels_last")
ONES, NONE = (1, 1, 1), (0, 0, 0)


def output_size(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    room = size + before + after - dilation * (kernel - 1) - 1
    return room // stride + 1 if room >= 0 else 0


@dataclass(frozen=True)
class Conv:
    channels: int = 3
    outputs: int = 4
    input: Triple = (1, 7, 6)
    kernel: Triple = (1, 3, 3)
    batch: int = 2
    groups: int = 1
    stride: Triple = ONES
    dilation: Triple = ONES
    before: Triple = NONE
    after: Triple = NONE
    mode: str = "zeros"
    flip: bool = False
    layout: str = "contiguous"
    dtype: str = "float32"
    tf32: bool = False

    def line(self) -> str:
        head = (DTYPES[self.dtype], LAYOUTS.index(self.layout), MODES.index(self.mode), int(self.flip))
        sizes = (self.batch, self.channels, self.outputs, self.groups)
        space = (self.input, self.kernel, self.stride, self.dilation, self.before, self.after)
        return " ".join(map(str, ("conv", *head, *sizes, *itertools.chain(*space), int(self.tf32))))

    def output(self) -> list[int]:
        space = (self.input, self.kernel, self.stride, self.dilation, self.before, self.after)
        return [output_size(*axis) for axis in zip(*space, strict=True)]

    def work(self) -> int:
        return self.batch * self.outputs * (self.channels // self.groups) * prod(self.kernel) * prod(self.output())


@dataclass(frozen=True)
class Pool:
    input: Triple = (1, 9, 8)
    kernel: Triple = (1, 3, 3)
    stride: Triple = ONES
    batch: int = 2
    channels: int = 3
    dilation: Triple = ONES
    before: Triple = NONE
    after: Triple = NONE
    ceil: bool = False
    include_pad: bool = True
    divisor: int = 0
    parts: Triple = NONE  # windows per dimension of an adaptive pooling
    special: bool = False  # NaN and -infinity among the inputs
    layout: str = "contiguous"
    dtype: str = "float32"

    def line(self) -> str:
        head = (DTYPES[self.dtype], LAYOUTS.index(self.layout), int(self.special), self.batch, self.channels)
        kernel = self.kernel
        if self.parts != NONE:  # the widest window, or a little more
            wide = [
                n // p + (0 if n % p == 0 else 1 if p % (n % p) == 0 else 2)
                for n, p in zip(self.input, self.parts, strict=True)
            ]
            kernel = wide[0], wide[1], wide[2]
        space = (self.input, kernel, self.stride, self.dilation, self.before, self.after)
        tail = (int(self.ceil), int(self.include_pad), self.divisor, *self.parts)
        return " ".join(map(str, ("pool", *head, *itertools.chain(*space), *tail)))

    def output(self) -> list[int]:
        space = (self.input, self.kernel, self.stride, self.dilation, self.before, self.after)
        return [output_size(*axis) for axis in zip(*space, strict=True)]

    def work(self) -> int:
        return self.batch * self.channels * prod(self.kernel) * prod(self.input)


@dataclass(frozen=True)
class Other:
    """A problem of check_other_pools.cpp: its kind and its numbers after the dtype."""

    kind: str
    numbers: tuple[int, ...]
    dtype: str = "float32"

    def line(self) -> str:
        return " ".join(map(str, (self.kind, DTYPES[self.dtype], *self.numbers)))


Problem = Conv | Pool | Other


def sampled(problems: Sequence[Problem]) -> list[Problem]:
    """Where .ci/run has no time for all of them, half, of every pair of layouts one."""
    few = os.environ.get("CONVEXT_TEST_GPUS") == "newest"
    return [problem for i, problem in enumerate(problems) if not few or (i // 2 + i) % 2 == 0]


def in_both_layouts(problems: Sequence[Problem]) -> list[Problem]:
    return [replace(problem, layout=layout) for problem in problems for layout in LAYOUTS]


def random_conv(rng: random.Random) -> Conv:
    spatial = rng.choice((1, 2, 2, 3))
    longest = {1: 60, 2: 14, 3: 6}[spatial]
    mode = rng.choice(MODES)

    def axes(choose: list[int], default: int) -> Triple:
        values = [default] * (3 - spatial) + [rng.choice(choose) for _ in range(spatial)]
        return values[0], values[1], values[2]

    size = axes([1, 2, *range(1, longest)], 1)
    most = [{"reflect": n - 1, "circular": n, "symmetric": n}.get(mode, 6) for n in size]

    def padding() -> Triple:
        values = [
            0 if i < 3 - spatial else rng.choice((0, min(1, n), rng.randint(0, min(n, 6)))) for i, n in enumerate(most)
        ]
        return values[0], values[1], values[2]

    groups = rng.choice((1, 1, 1, 2, 5, 33))
    inputs, outputs = rng.choice((1, 3, 4, 16, 33)), rng.choice((1, 3, 8, 9, 17, 33, 65))
    if groups > 1:
        inputs, outputs = rng.choice((1, 1, 2, 4)), rng.choice((1, 2, 9))
    return Conv(
        channels=groups * inputs,
        outputs=groups * outputs,
        input=size,
        kernel=axes([1, 1, 2, 3, 3, 4, 5], 1),
        batch=rng.choice((1, 2, 3)),
        groups=groups,
        stride=axes([1, 1, 1, 2, 3], 1),
        dilation=axes([1, 1, 1, 2, 3], 1),
        before=padding(),
        after=padding(),
        mode=mode,
        flip=rng.random() < 0.5,
        layout=rng.choice(LAYOUTS),
        dtype=rng.choice(("float32", *FLOATING)),
    )


def random_pool(rng: random.Random) -> Pool:
    spatial = rng.choice((1, 2, 2, 3))
    longest = {1: 80, 2: 40, 3: 9}[spatial]

    def axes(choose: list[int], default: int) -> Triple:
        values = [default] * (3 - spatial) + [rng.choice(choose) for _ in range(spatial)]
        return values[0], values[1], values[2]

    return Pool(
        input=axes(list(range(1, longest)), 1),
        kernel=axes([1, 2, 2, 3, 3, 3, 5, 13, 17], 1),
        stride=axes([1, 1, 2, 2, 3, 5], 1),
        batch=rng.choice((1, 2, 3)),
        channels=rng.choice((1, 3, 5, 31, 33)),
        dilation=axes([1, 1, 1, 2, 3], 1),
        before=axes([0, 0, 1, 2, 5], 0),
        after=axes([0, 0, 1, 2, 5], 0),
        ceil=rng.random() < 0.5,
        include_pad=rng.random() < 0.5,
        divisor=rng.choice((0, 0, 0, 3)),
        special=rng.random() < 0.3,
        layout=rng.choice(LAYOUTS),
        dtype=rng.choice(("float32", "float32", *DTYPES)),
    )


def random_problems(kind: type[Problem], count: int, seed: int, most_work: int) -> Iterator[Problem]:
    rng = random.Random(seed)
    while count > 0:
        problem = random_conv(rng) if kind is Conv else random_pool(rng)
        if min(problem.output()) > 0 and problem.work() <= most_work:
            count -= 1
            yield problem


def compile_object(source: Path, folder: Path, root: Path = ROOT, flags: Sequence[str] = ()) -> Path:
    """The object of a source. That of an unchanged one is made once for all test processes of a run."""
    assert GXX is not None
    command = [GXX, *FLAGS, *flags, "-x", "c++", "-c", str(source), "-o"]
    if root != ROOT:
        result = folder / f"{source.stem}_{source.parent.name}.o"
        _compile(command, result, root)
        return result
    workers = [parent for parent in folder.parents if parent.name.startswith("popen-gw")]  # pytest-xdist's
    shared = (workers[0].parent if workers else folder.parent) / "emulated"
    shared.mkdir(exist_ok=True)
    result = shared / (hashlib.sha256("\0".join(command).encode()).hexdigest()[:16] + f"_{source.stem}.o")
    with result.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be at it
        if not result.exists():
            warnings = _compile(command, result, root)
            # nvcc compiles the kernels' device code only (tests/test_cuda_compile.py): the host's is for g++.
            if "warning" in warnings:
                result.unlink()
                raise AssertionError(warnings[:4000])
    return result


def compile_all(sources: Mapping[Path, Sequence[str]], folder: Path) -> dict[Path, Path]:
    """The objects of sources, each with flags of its own, two at a time in their order."""
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda source: compile_object(source, folder, flags=sources[source]), sources)
        return dict(zip(sources, made, strict=True))


def _compile(command: list[str], result: Path, root: Path) -> str:
    done = subprocess.run([*command, str(result)], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return done.stderr


def link(objects: list[Path], program: Path, flags: Sequence[str] = ()) -> Path:
    assert GXX is not None
    subprocess.run([GXX, *flags, "-o", str(program), *map(str, objects)], check=True)
    return program


def run_check(program: Path, problems: list[Problem], mode: str = "exact") -> subprocess.CompletedProcess[str]:
    lines = "".join(problem.line() + "\n" for problem in problems)
    return subprocess.run([program, mode], input=lines, capture_output=True, text=True, check=False, timeout=300)


def counts(output: str) -> dict[str, int]:
    """Of the lines that check.cpp ends with: NAME NUMBER."""
    lines = [
        line.rsplit(" ", 1) for line in output.splitlines() if line.split()[0] in ("comparisons", "barriers", "refused")
    ]
    return {name: int(number) for name, number in lines}


def expect_exact(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    assert done.returncode == 0, (done.stdout + done.stderr)[:4000]
    return counts(done.stdout)


def plant(folder: Path, file: str, old: str, new: str, which: int) -> None:
    """Copies the sources to the folder, with one mistake: of the text `old` in a kernel file, one occurrence."""
    for part in ("csrc", EMULATOR):
        shutil.copytree(ROOT / part, folder / part)
    path = folder / CUDA / file
    pieces = path.read_text().split(old)
    assert len(pieces) > which + 1
    path.write_text(old.join(pieces[: which + 1]) + new + old.join(pieces[which + 1 :]))
