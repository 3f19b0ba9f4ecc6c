"""Direct pooling's CUDA kernels on the CPU: every way a number can take, equal to naive exactly, in both thread orders.

As tests/test_cuda_emulator.py, whose machinery this is; a program of its own (tests/emulator/check_pools.cpp) holds
nothing but pooling. Shared memory is made so small there that small planes have many bands of rows.
"""

import itertools
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.emulated import (
    CUDA,
    EMULATOR,
    FLOATING,
    GXX,
    NEEDED,
    ROOT,
    Pool,
    Triple,
    compile_all,
    compile_object,
    expect_exact,
    link,
    plant,
    run_check,
)

pytestmark = NEEDED

KERNELS = [CUDA / f"{name}.cu" for name in ("pool_direct", "pool_direct_forward", "pool_direct_backward", "pool_naive")]
SOURCES = [*KERNELS, Path("csrc/cpu/pool_naive.cpp"), EMULATOR / "check_pools.cpp"]
COMPARISONS = 2 * 7
"""Of a problem of a floating dtype: both thread orders, seven results."""
PACK = {"float32": 4, "float64": 2, "float16": 8, "bfloat16": 8}
SQUARES = ((2, 2), (3, 2), (3, 1), (2, 1), (3, 4))


@dataclass(frozen=True)
class Placed(Pool):
    """A pooling whose tensors begin ``skew`` elements before where they would lie well."""

    skew: int = 0

    def line(self) -> str:
        return f"{super().line()} {self.skew}"


def square(side: int, step: int, size: tuple[int, int], **rest: object) -> Placed:
    return Placed((1, *size), (1, side, side), (1, step, step), **rest)  # type: ignore[arg-type]


def in_packs(problem: Placed, packs: int = 1) -> Placed:
    return replace(problem, layout="channels_last", channels=packs * PACK[problem.dtype])


ONE: Triple = (0, 1, 1)
# By what they could bring to light. pool_direct_forward.cu: packs of 16 bytes, strips of 2 outputs, planes or rows of
# 1500 bytes (FLAGS) in shared memory; pool_direct_backward.cu: patches of 1 or 2x2 places.
POOLS: dict[str, list[Placed]] = {
    "packs": [
        in_packs(square(side, step, (9, 8), dtype=dtype, before=before, after=before), packs)
        for dtype in FLOATING
        for packs, before in ((1, ONE), (3, (0, 0, 0)))
        for side, step in SQUARES
    ],
    "pack_sizes": [
        in_packs(square(side, step, size, dtype="float16", before=ONE, after=ONE), 2)
        for side, step in SQUARES[:3]
        for size in itertools.product((1, 2, 3, 7), (1, 2, 5))
        if min(size) + 2 >= side
    ],
    "packs_of_any_window": [
        in_packs(Placed((1, 11, 12), (1, 5, 5), (1, *s), dilation=(1, *d), before=(0, 2, 1), dtype=dtype))
        for dtype in FLOATING
        for s, d in (((1, 1), (1, 1)), ((2, 3), (2, 1)))
    ]
    + [
        in_packs(Placed((1, 40, 6), (1, 31, 1), (1, 2, 1), dtype="float16")),
        in_packs(Placed((5, 6, 7), (2, 3, 2), (2, 1, 2), before=(1, 1, 0), after=(0, 1, 1), dtype="float16")),
        in_packs(Placed((3, 8, 9), (1, 3, 3), (1, 2, 2), dtype="bfloat16")),
        in_packs(Placed((9, 9, 9), (1, 2, 2), (3, 2, 2))),
        in_packs(Placed((12, 12, 12), (7, 7, 7), (4, 4, 4), dtype="float16", batch=1)),  # places of 4 bytes
    ],
    "packs_that_lie_badly": [
        replace(in_packs(square(side, step, (7, 6), dtype=dtype), 2), skew=1)
        for dtype in ("float32", "float16")
        for side, step in SQUARES[:3]
    ],
    "rows": [
        square(side, step, (9, 8), dtype=dtype, before=before, after=before, channels=channels)
        for dtype in FLOATING
        for side, step in SQUARES
        for before, channels in ((ONE, 9), ((0, 0, 0), 1))
    ],
    "bands": [
        square(side, step, (h, w), dtype=dtype, before=ONE, after=(0, 0, 2))
        for dtype in ("float32", "float16")
        for side, step in SQUARES
        for h, w in ((41, 30), (24, 57))
    ],
    "rows_wherever_they_begin": [
        square(side, step, (13, 11), dtype=dtype, skew=skew, channels=5, before=ONE)
        for dtype in ("float32", "float16")
        for side, step in SQUARES[:3]
        for skew in (1, 2, 3)
    ],
    "wide_rows": [square(3, s, (4, 3000), channels=1, batch=1) for s in (1, 2)]
    + [square(2, 2, (3, 9000), channels=1, batch=1)],
    "planes_in_depth": [Placed((4, 9, 8), (1, 3, 3), (1, 2, 2)), Placed((3, 20, 21), (1, 2, 2), (1, 2, 2))],
    "special_numbers": [
        problem
        for side, step in SQUARES[:3]
        for base in [square(side, step, (9, 10), special=True, before=ONE, after=ONE)]
        for problem in (base, in_packs(base), in_packs(replace(base, dtype="bfloat16")))
    ],
    "windows_outside": [
        problem
        for side, step in SQUARES[:3]
        for base in [square(side, step, (2, 3), before=(0, 4, 3), after=(0, 5, 4))]
        for problem in (base, in_packs(base), replace(base, input=(1, 40, 30)))
    ],
    "divisors": [
        problem
        for side, step in SQUARES[:3]
        for ceil, pad, divisor in (
            (True, True, 0),
            (False, False, 0),
            (True, False, 0),
            (False, True, 7),
            (True, True, -3),
        )
        for base in [square(side, step, (8, 9), before=ONE, after=ONE, ceil=ceil, include_pad=pad, divisor=divisor)]
        for problem in (base, in_packs(base))
    ],
    "batch_in_pieces": [square(3, 2, (60, 57), batch=4, channels=5), in_packs(square(3, 2, (60, 57), batch=4), 2)],
    "adaptive": [
        replace(problem, layout=layout)
        for dtype in FLOATING
        for channels in (3, 2 * PACK[dtype])
        for n, p in (((1, 7, 9), (1, 5, 4)), ((5, 6, 3), (2, 4, 7)))
        for problem in [Placed(n, parts=p, channels=channels, dtype=dtype, special=n[0] == 5)]
        for layout in ("contiguous", "channels_last")
    ],
}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    folder = tmp_path_factory.mktemp("pooling")
    return compile_all(dict.fromkeys(SOURCES, ()), folder)


@pytest.fixture(scope="module")
def program(objects: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link(list(objects.values()), tmp_path_factory.mktemp("pooling_program") / "check")


@pytest.mark.parametrize("hazard", POOLS)
def test_pooling(program: Path, hazard: str) -> None:
    seen = expect_exact(run_check(program, list(POOLS[hazard])))
    assert seen["comparisons"] == COMPARISONS * len(POOLS[hazard])
    if hazard in ("rows", "bands", "rows_wherever_they_begin"):
        assert seen["barriers"] > 0


@dataclass(frozen=True)
class Mutant:
    """A kernel source with one mistake, and problems that must bring it to light."""

    file: str
    old: str
    new: str
    hazard: str
    which: int = 0  # of several occurrences


FORWARD, BACKWARD, BARRIER = "pool_direct_forward", "pool_direct_backward", "__syncthreads();"
MUTANTS = {
    "rows_barrier_in": Mutant(FORWARD, BARRIER, "", "rows"),
    "rows_barrier_out": Mutant(FORWARD, BARRIER, "", "rows", which=1),
    "gradient_barrier_in": Mutant(BACKWARD, BARRIER, "", "rows"),
    "gradient_barrier_out": Mutant(BACKWARD, BARRIER, "", "rows", which=1),
    "wrong_tap": Mutant(FORWARD, "r * kSide + row.tap[c]", "r * kSide + r", "packs"),
    "wrong_row": Mutant(BACKWARD, "row - i * kStep", "row + i * kStep", "packs"),
    "past_the_end": Mutant(FORWARD, "if (p >= task.out[1]) continue;", "", "packs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_come_to_light(name: str, objects: dict[Path, Path], tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    unit = CUDA / f"{mutant.file}.cu"
    plant(tmp_path, unit.name, mutant.old, mutant.new, mutant.which)
    changed = {**objects, unit: compile_object(unit, tmp_path, tmp_path, ["-O0"])}
    done = run_check(link(list(changed.values()), tmp_path / "check"), list(POOLS[mutant.hazard]))
    assert done.returncode in (1, 3, 4), (done.stdout + done.stderr)[:4000]


DIVISION = """
#include <cmath>
#include <cstdio>
#include <cstring>
int main() {{
  long wrong = 0;
  for (int d = 1; d < 1 << 20; d = d < 1100 ? d + 1 : d * 9 / 8)
    for (unsigned i = 0; i < 1 << 23; i += d < 64 ? 13 : 4099) {{
      const unsigned bits = 0x3f800000u + i;
      float sum;
      std::memcpy(&sum, &bits, 4);
      const float value = float(d), reciprocal = 1 / value;
      {body}
      wrong += result != sum / value;
    }}
  std::printf("%ld\\n", wrong);
}}
"""


def test_division_by_a_known_number_rounds_correctly(tmp_path: Path) -> None:
    """The three steps of Divisor, on numbers across a binade, for windows of all sizes."""
    assert GXX is not None
    text = (ROOT / CUDA / "pool_direct.cuh").read_text()
    body = text[text.index("const float quotient =") : text.index("// infinity and NaN stay")]
    source = tmp_path / "division.cpp"
    source.write_text(DIVISION.format(body=body.replace("return", "const float result =")))
    machine = ["-mfma"] if "fma" in Path("/proc/cpuinfo").read_text() else []
    subprocess.run([GXX, "-O2", *machine, "-o", tmp_path / "division", source], check=True)
    done = subprocess.run([tmp_path / "division"], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
