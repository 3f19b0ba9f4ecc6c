"""implicit_gemm on the CPU: its kernels, tensor cores and asynchronous copies emulated, equal naive exactly.

As tests/test_cuda_emulator.py, which see, with a program of its own: what a tensor core does takes the emulator long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.emulated import (
    CHECKS,
    CPU_REFERENCES,
    CUDA,
    MODES,
    NEEDED,
    ONES,
    Conv,
    Problem,
    Triple,
    compile_all,
    compile_object,
    expect_exact,
    in_both_layouts,
    link,
    plant,
    random_problems,
    run_check,
    sampled,
)

pytestmark = NEEDED

UNITS = [CUDA / f"conv_implicit_gemm{part}.cu" for part in ("", "_weight")]
HOPPER = [CUDA / f"conv_implicit_gemm_hopper{part}.cu" for part in ("", "_weight")]  # which suits no call here
FLAGS = [
    "-DCONVEXT_CHECK_ONLY=conv_implicit_gemm",
    f"-DCONVEXT_IMPLICIT_GEMM_FOLD_BYTES={32 << 10}",
    *("-DCONVEXT_SHORTEST_SEGMENT=2", "-UCONVEXT_GEMM_ENOUGH_TILES", "-DCONVEXT_GEMM_ENOUGH_TILES=4"),
]

# How a tile is multiplied: with the tensor cores' three kinds of numbers, and without.
KINDS = {
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "tf32": {"dtype": "float32", "tf32": True},
    "float32": {"dtype": "float32"},
}


def in_all_kinds(problems: list[Conv]) -> list[Problem]:
    return in_both_layouts([replace(problem, **kind) for problem in problems for kind in KINDS.values()])


def along(channels: int, outputs: int, places: int, kernel: int = 1, batch: int = 1) -> Conv:
    return Conv(channels, outputs, (1, 1, places + kernel - 1), (1, 1, kernel), batch)


def one_side(n: int) -> Triple:
    return 0, n, 2 * n


# By what they could bring to light. tile_product.cuh: tiles of 64, of 128 where there are four of them (FLAGS), slices
# of 32 or 16 numbers, chunks of 8 or 4, three stages.
CONVS: dict[str, list[Problem]] = {
    "one_element": in_all_kinds([Conv(1, 1, ONES, ONES, 1)]),
    "channels": in_all_kinds([along(c, k, 5) for c, k in ((7, 9), (8, 8), (16, 24), (31, 63), (32, 64), (33, 65))]),
    "places": in_all_kinds([along(8, 8, n) for n in (63, 64, 65)]),
    "stages": in_all_kinds([along(c, 3, 4) for c in (64, 96, 128, 160)]),
    "large_tiles": in_all_kinds([along(8, 129, 130), along(130, 9, 131, batch=2), along(72, 136, 9, 2)]),
    "segments": in_all_kinds([along(130, 3, 6, batch=2), along(40, 8, 33, 4, 5), along(8, 8, 300, batch=2)]),
    "large_tiles_in_segments": in_all_kinds([along(40, 72, 40, 4, 10)]),
    "padding_modes": in_all_kinds(
        [
            Conv(8, 5, (1, 6, 7), (1, 3, 2), stride=stride, before=one_side(1), after=one_side(2), mode=mode)
            for mode in MODES
            for stride in (ONES, (1, 2, 1))
        ]
    ),
    "strides_and_dilation": in_all_kinds(
        [
            Conv(8, 16, (1, 11, 13), (1, 3, 2), stride=(1, *s), dilation=(1, *d), before=(0, 2, 1), after=(0, 1, 2))
            for s, d in (((2, 3), (1, 1)), ((2, 4), (2, 2)), ((3, 1), (2, 3)))
        ]
        + [Conv(3, 4, (1, 9, 9), (1, 2, 2), stride=(1, 7, 3))]
    ),
    "dimensions": in_all_kinds(
        [
            Conv(3, 9, (1, 1, 50), (1, 1, 4), before=(0, 0, 3)),
            Conv(8, 5, (5, 4, 6), (3, 2, 3), stride=(2, 1, 2), before=ONES, after=(1, 0, 1), flip=True),
            Conv(4, 9, (3, 3, 3), (2, 3, 3), before=(3, 1, 2), after=(1, 3, 2), mode="circular", flip=True),
        ]
    ),
    "groups": in_all_kinds(
        [
            Conv(g * c, g * k, (1, 6, 5), groups=g, flip=f)
            for g, c, k, f in ((2, 3, 4, False), (3, 8, 16, True), (9, 1, 2, False))
        ]
    ),
    "batch_in_pieces": in_all_kinds(
        [
            Conv(72, 8, (1, 16, 17), ONES, 3, stride=(1, 2, 2)),
            Conv(72, 1, (1, 16, 15), (1, 2, 2), 3, before=(0, 1, 1), stride=(1, 2, 2), mode="replicate"),
        ]
    ),
    "random": [
        replace(problem, tf32=i % 2 == 0)
        for i, problem in enumerate(random_problems(Conv, 60, 5, 50_000))
        if isinstance(problem, Conv) and problem.dtype != "float64"
    ],
}


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    folder = tmp_path_factory.mktemp("implicit_gemm")
    flags: dict[Path, Sequence[str]] = dict.fromkeys((*UNITS, *HOPPER, CHECKS[0]), FLAGS)
    return compile_all(flags | dict.fromkeys(CPU_REFERENCES[:2], ()), folder)


@pytest.fixture(scope="session")
def program(objects: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link(list(objects.values()), tmp_path_factory.mktemp("implicit_gemm_program") / "check")


@pytest.mark.parametrize("hazard", CONVS)
def test_convolution(program: Path, hazard: str) -> None:
    problems = sampled(CONVS[hazard])
    seen = expect_exact(run_check(program, problems))
    # Three directions, two thread orders; nothing is refused but what strides into too many pieces.
    assert seen["comparisons"] + 2 * seen.get("refused implicit_gemm", 0) == 6 * len(problems)
    assert seen.get("refused implicit_gemm", 0) == 0
    assert seen["barriers"] > 0


def test_images_do_not_see_each_other(program: Path) -> None:
    """Alone, an image has few tiles and its sums are shared out among blocks; in company they are not."""
    chosen = [*CONVS["segments"], *CONVS["large_tiles_in_segments"], *CONVS["padding_modes"][::3]]
    problems = [problem for problem in chosen if isinstance(problem, Conv)]
    problems = [replace(problem, batch=max(problem.batch, 2)) for problem in problems]
    assert expect_exact(run_check(program, list(problems), "bits"))["comparisons"] > 200


def test_what_is_refused(program: Path) -> None:
    problems: list[Problem] = [
        Conv(dtype="float64"),  # in all directions
        Conv(2, 2, (1, 90, 10), (1, 2, 2), 1, stride=(1, 70, 1)),  # the gradient of the input: 70 remainders
        Conv(1, 1, (1, 3, 250), ONES, 1, stride=(1, 70, 70)),  # 210 of them
    ]
    assert expect_exact(run_check(program, problems))["refused implicit_gemm"] == 5


def test_numbers_that_old_tensor_cores_do_not_have(objects: dict[Path, Path], tmp_path: Path) -> None:
    """Before sm_80 bfloat16, and float32 even where TF32 is allowed, are multiplied and added in plain registers."""
    old = {unit: compile_object(unit, tmp_path, flags=[*FLAGS, "-DCONVEXT_OLD_TENSOR_CORES"]) for unit in UNITS}
    program = link([*{**objects, **old}.values()], tmp_path / "check")
    problems = [
        problem
        for hazard in ("channels", "large_tiles")
        for problem in CONVS[hazard]
        if isinstance(problem, Conv) and (problem.tf32 or problem.dtype == "bfloat16")
    ]
    assert expect_exact(run_check(program, list(problems)))["comparisons"] == 6 * len(problems)


@dataclass(frozen=True)
class Mutant:
    """A kernel source with one mistake, and the problems that must bring it to light."""

    file: str
    unit: int  # of UNITS
    old: str
    new: str
    hazard: str
    which: int = 0  # of several occurrences


MUTANTS = {
    "slice_barrier": Mutant("tile_product.cuh", 0, "__syncthreads();", "", "stages"),
    "async_wait": Mutant("tile_product.cuh", 0, "wait_async<kStages - 2>();", "", "channels"),
    "late_wait": Mutant("tile_product.cuh", 0, "wait_async<kStages - 2>();", "wait_async<kStages - 1>();", "stages"),
    "fragment_of_a": Mutant("tile_product.cuh", 0, "kIsA ? matrix % 2 : matrix / 2", "matrix / 2", "channels"),
    "turned_fragment": Mutant("tile_product.cuh", 1, "chunk * 8 + lane % 8", "chunk * 8 + lane / 4", "channels"),
    "swizzle_of_loads": Mutant(
        "conv_implicit_gemm.cu", 0, "chunk_at<T, kTile, true>(line, chunk)", "line * 4 + chunk", "channels"
    ),
    "edges": Mutant("implicit_gemm.cuh", 0, "e.high_scale * i + e.high", "e.low_scale * i + e.low", "padding_modes"),
    "segment": Mutant(
        "conv_implicit_gemm.cu", 0, "sum += parts[element + i * part]", "sum = parts[element + i * part]", "segments"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_come_to_light(name: str, objects: dict[Path, Path], tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    plant(tmp_path, mutant.file, mutant.old, mutant.new, mutant.which)
    unit = UNITS[mutant.unit]
    changed = {**objects, unit: compile_object(unit, tmp_path, tmp_path, [*FLAGS, "-O0"])}
    done = run_check(link(list(changed.values()), tmp_path / "check"), CONVS[mutant.hazard])
    assert done.returncode in (1, 3, 4), (done.stdout + done.stderr)[:4000]
