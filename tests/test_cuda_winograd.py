"""Gate 2 for winograd on CUDA: its tiles, panels and fused kernel on the CPU stand-in (see test_cuda_emulator.py).

Two programs run the same problems: ``fused`` as it is built, where few channels in float32 mean the fused F(2x2,3x3),
and ``panels``, where transforms through memory cost nothing and the workspace is so small that weights and tiles pass
in pieces. Small integers must come out exactly after rounding, as on the CPU; random numbers within the bound that
tests/winograd.py derives, and within the norm-wise error that mode accurate allows.
"""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from benchmarks.shapes import ConvProblem
from convext.choice import DIRECTIONS
from tests import calls, winograd
from tests.emulated import (
    CHECKS,
    CUDA,
    GXX,
    LAYOUTS,
    MODES,
    NEEDED,
    ROOT,
    Conv,
    compile_object,
    expect_exact,
    in_both_layouts,
    plant,
    run_check,
    sampled,
)
from tests.test_cuda_emulator import BARRIER, Mutant

pytestmark = NEEDED

WORKSPACE = 384 << 10  # of the program with panels
PROGRAMS = {
    "fused": (),
    "panels": (f"-DCONVEXT_WINOGRAD_BYTES={WORKSPACE}", "-DCONVEXT_WINOGRAD_TRANSFORM_COST=0"),
}
DRIVER, FUSED, TRANSFORMS = (CUDA / f"conv_winograd{part}.cu" for part in ("", "_fused", "_transforms"))
# check.cpp for winograd alone, and what it is linked with.
ALONE = ("-DCONVEXT_CHECK_CONVS=&cuda::conv_winograd",)
SHARED = {FUSED: (), TRANSFORMS: (), Path("csrc/cpu/conv_naive.cpp"): (), CHECKS[0]: ALONE}

PADDED = {"before": (0, 1, 1), "after": (0, 1, 1)}
ROW, COLUMN5 = (1, 1, 3), (1, 1, 5)

# By what they could bring to light. Tile constants: outputs of a tile 2 or 4 a side; fused 32 tiles x 32 or 64 channels
# and 8 rows a chunk; gemm.cuh 64 a side and slices of 16.
PROBLEMS: dict[str, list[Conv]] = {
    "remainders_of_a_tile": in_both_layouts(
        [Conv(2, 3, (1, h, w), batch=1, **PADDED) for h, w in ((1, 1), (2, 3), (3, 4), (4, 5), (5, 9), (8, 2))]
    ),
    "output_channels": in_both_layouts(
        [Conv(3, k, (1, 5, 6), batch=1, **PADDED) for k in (15, 17, 31, 32, 33, 63, 64, 65, 97)]
    ),
    "input_channels": in_both_layouts([Conv(c, 5, (1, 5, 6), batch=1) for c in (1, 7, 8, 9, 15, 16, 17, 33)]),
    "tiles": in_both_layouts([Conv(2, 3, (1, 4, 2 * n + 2), batch=1) for n in (31, 32, 33, 65)]),
    "padding_modes": in_both_layouts(
        [
            Conv(4, 6, (1, 5, 7), before=(0, *before), after=(0, *after), mode=mode, groups=groups, flip=groups == 2)
            for mode in MODES
            for before, after, groups in (((2, 0), (1, 3), 2), ((4, 4), (3, 4), 1))
        ]
    ),
    "one_dimension": in_both_layouts(
        [
            Conv(5, 7, (1, 1, 21), kernel, before=(0, 0, 2), mode=mode, dtype=dtype)
            for kernel in (ROW, COLUMN5)
            for mode, dtype in (("zeros", "float32"), ("circular", "float64"))
        ]
    ),
    "depths": in_both_layouts(
        [
            Conv(3, 5, (4, 5, 6), (3, 3, 3), before=(1, 1, 1), after=(1, 1, 0), mode=mode)
            for mode in ("zeros", "circular", "replicate")
        ]
        + [Conv(3, 5, (5, 4, 6), (2, 3, 3), stride=(2, 1, 1)), Conv(9, 4, (4, 3, 9), (3, 1, 3), flip=True)]
    ),
    "five": in_both_layouts([Conv(3, 4, (1, 7, 8), (1, 5, 5), before=(0, 2, 2), after=(0, 2, 1), dtype="float64")]),
    "groups": in_both_layouts(
        [Conv(8, 8, (1, 5, 6), groups=8, **PADDED), Conv(6, 66, (1, 5, 6), groups=2, flip=True, dtype="float64")]
    ),
    "pieces": in_both_layouts(
        [
            Conv(24, 70, (1, 9, 10), batch=3, **PADDED),  # of the weight
            Conv(20, 20, (1, 14, 14), mode="reflect", **PADDED),  # of the tiles
            Conv(1, 40, (1, 32, 32)),  # of the batch
        ]
    ),
    # A part is at most 256 tiles.
    "parts_of_sums": in_both_layouts([Conv(2, 3, (1, 1, width), ROW, batch=3) for width in (700, 2500)]),
}


@dataclass(frozen=True)
class Built:
    """Compiled files by source, and the program of each name."""

    objects: dict[Path, Path]
    programs: dict[str, Path]


def link(objects: list[Path], program: Path) -> Path:
    """What check.cpp does with pools is left out: nothing here calls it."""
    assert GXX is not None
    flags = ("-no-pie", "-Wl,--unresolved-symbols=ignore-all")
    subprocess.run([GXX, *flags, "-o", str(program), *map(str, objects)], check=True)
    return program


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folders = {name: tmp_path_factory.mktemp(f"winograd_{name}") for name in ("shared", *PROGRAMS)}
    jobs = [(source, folders["shared"], ROOT, flags) for source, flags in SHARED.items()]
    jobs += [(DRIVER, folders[name], ROOT, flags) for name, flags in PROGRAMS.items()]
    with ThreadPoolExecutor(2) as pool:
        compiled = list(pool.map(lambda job: compile_object(*job), jobs))
    shared = dict(zip(SHARED, compiled[: len(SHARED)], strict=True))
    drivers = compiled[len(SHARED) :]
    programs = {
        name: link([driver, *shared.values()], folders[name] / "check")
        for name, driver in zip(PROGRAMS, drivers, strict=True)
    }
    return Built(shared | {DRIVER / name: driver for name, driver in zip(PROGRAMS, drivers, strict=True)}, programs)


programs = pytest.mark.parametrize("name", PROGRAMS)


@programs
@pytest.mark.parametrize("hazard", PROBLEMS)
def test_convolution(built: Built, name: str, hazard: str) -> None:
    problems = [problem for problem in sampled(PROBLEMS[hazard]) if isinstance(problem, Conv)]
    seen = expect_exact(run_check(built.programs[name], list(problems)))
    strided = sum(problem.stride[0] > 1 for problem in problems)  # no gradient of the input
    assert seen.get("refused winograd", 0) == strided
    assert seen["comparisons"] == 6 * len(problems) - 2 * strided
    assert seen["barriers"] > 0


@programs
def test_images_do_not_see_each_other(built: Built, name: str) -> None:
    some = (PROBLEMS[hazard][::step] for hazard, step in (("padding_modes", 7), ("pieces", 5), ("one_dimension", 3)))
    alike = [replace(problem, batch=2) for problems in some for problem in problems]
    assert expect_exact(run_check(built.programs[name], alike, "bits"))["comparisons"] == 4 * len(alike)


REALS = [
    Conv(40, 20, (1, 15, 14), batch=1, **PADDED),
    Conv(4, 4, (1, 50, 52), batch=1, **PADDED),
    Conv(2, 3, (1, 1, 2500), ROW),
    Conv(8, 8, (1, 12, 12), (1, 5, 5)),
    Conv(5, 6, (3, 9, 8), (3, 3, 3), **PADDED),
]


@programs
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reals_stay_within_the_bound(built: Built, name: str, layout: str) -> None:
    for conv in REALS:
        done = run_check(built.programs[name], [replace(conv, layout=layout)], "error")
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("error winograd")]
        assert len(lines) == 3
        padding = tuple(zip(conv.before, conv.after, strict=True))
        problem = ConvProblem(
            "reals", (conv.channels, conv.outputs), conv.input, conv.kernel, batch=conv.batch, padding=padding
        )
        for direction, numbers in zip(DIRECTIONS, lines, strict=True):
            norm_wise, most, x, w, dy, workspace = map(float, numbers[1:])
            assert norm_wise < 2.5e-6, f"{direction} of {conv}"
            largest = calls.ConvOperands(torch.tensor(x), torch.tensor(w), None, torch.tensor(dy))
            zero = torch.zeros((), dtype=torch.float64)
            bound = float(winograd.error_bound(problem, largest, direction, zero, torch.float32))
            assert most <= bound, f"{direction} of {conv}: {most}, bound {bound}"
            assert name == "fused" or workspace <= WORKSPACE + 4 * 64


@programs
def test_sixteen_bits_and_huge_weights_are_refused(built: Built, name: str) -> None:
    for dtype in ("float16", "bfloat16"):
        assert expect_exact(run_check(built.programs[name], [Conv(dtype=dtype)]))["refused winograd"] == 3
    if name == "panels":  # 36 points x 2000 channels do not fit
        huge = Conv(2000, 1, (1, 3, 3), batch=1, dtype="float64")
        assert expect_exact(run_check(built.programs[name], [huge]))["refused winograd"] >= 2


CIRCULAR = [Conv(2, 2, (1, 2, 2), before=(0, 1, 1), after=(0, 2, 1), mode="circular", layout=at) for at in LAYOUTS]
MUTANTS = {
    "chunk_barrier": Mutant(FUSED.name, FUSED.name, BARRIER, "", PROBLEMS["input_channels"], which=1),
    "round_barrier": Mutant(FUSED.name, FUSED.name, BARRIER, "", PROBLEMS["output_channels"], which=3),
    "wrong_tile": Mutant(FUSED.name, FUSED.name, "w0 = out.j * 2", "w0 = out.i * 2", PROBLEMS["tiles"]),
    "past_the_padding": Mutant(
        "conv_winograd.cuh", FUSED.name, "i < window.in[axis] + window.after[axis] ?", "true ?", CIRCULAR
    ),
    "wrong_step": Mutant(TRANSFORMS.name, TRANSFORMS.name, "tile.j * kStepW", "tile.i * kStepW", PROBLEMS["five"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_come_to_light(name: str, built: Built, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    plant(tmp_path, mutant.file, mutant.old, mutant.new, mutant.which)
    unit = CUDA / mutant.unit
    objects = {**built.objects, unit: compile_object(unit, tmp_path, tmp_path, ["-O0"])}
    del objects[DRIVER / "panels"]
    done = run_check(link(list(objects.values()), tmp_path / "check"), mutant.problems)
    assert done.returncode in (1, 3, 4), (done.stdout + done.stderr)[:4000]
