"""The fast paths of direct on the CPU: depthwise and few channels, lines, both layouts, equal naive exactly.

As tests/test_cuda_emulator.py, which see, with a program of its own that holds the files of direct alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.emulated import (
    CHECKS,
    CPU_REFERENCES,
    CUDA,
    FLOATING,
    MODES,
    NEEDED,
    ONES,
    ROOT,
    Conv,
    Problem,
    Triple,
    compile_all,
    compile_object,
    expect_exact,
    in_both_layouts,
    link,
    plant,
    run_check,
)

pytestmark = NEEDED
ONLY_DIRECT = ["-DCONVEXT_CHECK_ONLY=conv_direct"]
UNITS = sorted(path.relative_to(ROOT) for path in (ROOT / CUDA).glob("conv_direct*.cu"))


def depthwise(channels: int, size: tuple[int, int], kernel: tuple[int, int], outputs: int = 1, **rest: object) -> Conv:
    """Padded to keep the size, if nothing else is said; `outputs` per channel."""
    rest.setdefault("before", (0, kernel[0] // 2, kernel[1] // 2))
    rest.setdefault("after", (0, (kernel[0] - 1) // 2, (kernel[1] - 1) // 2))
    height, width = size
    return Conv(channels, channels * outputs, (1, height, width), (1, *kernel), groups=channels, **rest)  # type: ignore[arg-type]


def line(length: int, kernel: int, before: int, **rest: object) -> Conv:
    """Keeps its length: causal where `before` is the kernel less one."""
    return depthwise(3, (1, length), (1, kernel), before=(0, 0, before), after=(0, 0, kernel - 1 - before), **rest)


STEPS: list[tuple[Triple, Triple]] = [  # strides and dilations
    ((1, 2, 2), ONES),
    ((1, 1, 3), (1, 2, 1)),
    ((1, 3, 2), (1, 1, 2)),
    ((1, 4, 4), (1, 2, 6)),
    ((1, 8, 9), ONES),
    (ONES, (1, 2, 3)),
]

# By what they could bring to light. Tile constants: conv_direct_depthwise.cu 4 x 4 or 4 x 8 a thread, 64 x 64 a block
# or several small planes; _strided.cu 4 rows a thread, 32 x 32; _last.cu strips of 3 or 6, 8 rows, vectors of 16 bytes;
# _weight.cu 64 x 64, segments of 36 and 20, 4 or 8 taps; _last_weight.cu pieces of 64, 3 or 6 taps; causal.cu 2 vectors
# a thread.
CONVS: dict[str, list[Problem]] = {
    "thread_tiles": in_both_layouts(
        [
            depthwise(4, (h, w), (k, k), flip=k == 4, batch=1)
            for h, w in ((1, 1), (3, 7), (4, 8), (5, 9), (9, 4), (8, 17))
            for k in (3, 4)
        ]
    ),
    "block_tiles": in_both_layouts(
        [depthwise(1, size, (3, 2), batch=1) for size in ((5, 63), (3, 64), (4, 65), (63, 5), (64, 3), (65, 4))]
        + [depthwise(4, (2, n), (2, 3), batch=1) for n in (35, 36, 37, 71, 129)]
    ),
    "small_planes": in_both_layouts(
        [
            depthwise(c, (n, n), (3, 3), batch=b)
            for c, n, b in ((63, 7, 1), (32, 7, 2), (5, 7, 13), (17, 7, 20), (17, 3, 4))
        ]
        + [depthwise(9, (6, 5), (3, 3), stride=(1, 2, 2), batch=5)]
    ),
    "kernels": in_both_layouts(
        [depthwise(4, (9, 13), (k, k), flip=k % 2 == 0, batch=1) for k in (1, 2, 5, 6, 7, 8, 9, 13)]
        + [depthwise(4, (12, 14), k, batch=1) for k in ((1, 7), (7, 1), (5, 3), (2, 17))]
        + [depthwise(4, (17, 18), (31, 31), batch=1)]
    ),
    "padding_modes": in_both_layouts(
        [
            depthwise(4, (10, 9), (k, k), before=(0, a, b), after=(0, b, a), mode=mode, flip=k == 3)
            for mode in MODES
            for k, a, b in ((3, 1, 2), (4, 3, 0), (5, 2, 3), (7, 4, 3))
        ]
    ),
    "padding_past_the_kernel": in_both_layouts(
        [
            depthwise(4, (5, 3), (2, 2), before=(0, 5, 9), after=(0, 7, 4), mode=mode, stride=(1, 1, s))
            for mode in ("zeros", "replicate")
            for s in (1, 2)
        ]
    ),
    "strides_and_dilations": in_both_layouts(
        [
            depthwise(
                4, (11, 14), (3, 3), stride=s, dilation=d, before=(0, 2, 3), after=(0, 4, 1), mode=mode, flip=True
            )
            for mode in ("zeros", "circular", "reflect")
            for s, d in STEPS
        ]
        + [
            depthwise(2, (35, 66), (5, 5), stride=(1, 2, 2), batch=1),
            depthwise(2, (35, 66), (3, 2), dilation=(1, 2, 2)),
        ]
    ),
    "multipliers": in_both_layouts(
        [
            depthwise(c, (7, 6), (3, 3), m, stride=(1, s, s), mode=mode)
            for c, m in ((4, 2), (3, 3), (33, 2))
            for s, mode in ((1, "symmetric"), (2, "zeros"))
        ]
    ),
    "few_channels": in_both_layouts(
        [
            Conv(c, k, (1, 9, 10), kernel, groups=g, before=(0, 1, 1), after=(0, 1, 1), mode=mode, stride=(1, s, s))
            for c, k, g in ((3, 9, 1), (9, 3, 1), (6, 4, 2), (1, 16, 1))
            for kernel, s, mode in (((1, 3, 3), 1, "circular"), ((1, 4, 2), 2, "zeros"))
        ]
    ),
    "depth": in_both_layouts(
        [
            Conv(4, 4, (4, 6, 7), (3, 3, 3), groups=4, before=(1, 1, 1), after=(1, 1, 1), mode="reflect"),
            Conv(4, 4, (3, 6, 5), (2, 3, 2), groups=4, before=(2, 0, 1), stride=(1, 2, 2), flip=True),
            Conv(2, 4, (5, 5, 6), (3, 2, 4), groups=2, stride=(2, 1, 1), dilation=(2, 1, 1), before=(2, 1, 1)),
        ]
    ),
    "lines": in_both_layouts(
        [line(n, k, k - 1, batch=1) for n in (4, 8, 12, 24, 36, 48) for k in (2, 4)]
        + [line(48, k, b, flip=k == 8) for k in (3, 8) for b in range(k)]
        + [line(48, 4, b, mode=mode) for mode in MODES for b in (0, 3)]
        + [line(47, 4, 3), line(48, 9, 8), line(1100, 4, 3, batch=1), line(8, 4, 3, batch=9)]
        + [depthwise(4, (1, 48), (1, 4), before=(0, 0, 9), after=(0, 0, 14))]
    ),
    "dtypes": in_both_layouts(
        [
            problem
            for dtype in FLOATING
            for problem in (
                *(depthwise(16, (6, 9), (k, k), dtype=dtype, mode="symmetric", batch=1) for k in (3, 4, 5, 7)),
                depthwise(16, (9, 8), (3, 3), stride=(1, 2, 2), dtype=dtype),
                depthwise(5, (6, 8), (3, 3), dtype=dtype),
                *(line(48, 8, b, dtype=dtype) for b in (7, 5, 2, 0)),
                line(64, 4, 3, dtype=dtype, mode="replicate"),
            )
        ]
    ),
    "batch_in_pieces": in_both_layouts(
        [
            depthwise(52, (16, 16), (3, 3), batch=4),
            depthwise(52, (16, 16), (3, 3), batch=4, stride=(1, 2, 2)),
            depthwise(52, (1, 256), (1, 4), batch=4),
        ]
    ),
}


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    folder = tmp_path_factory.mktemp("depthwise")
    # All but the first are those of tests/test_cuda_emulator.py.
    return compile_all({CHECKS[0]: ONLY_DIRECT, **dict.fromkeys((*UNITS, *CPU_REFERENCES), ())}, folder)


@pytest.fixture(scope="session")
def program(objects: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link(list(objects.values()), tmp_path_factory.mktemp("depthwise_program") / "check")


@pytest.mark.parametrize("hazard", CONVS)
def test_convolution(program: Path, hazard: str) -> None:
    seen = expect_exact(run_check(program, CONVS[hazard]))
    # Three directions, two thread orders; nothing is refused.
    assert seen["comparisons"] == 6 * len(CONVS[hazard])
    assert seen["barriers"] > 0


@pytest.mark.parametrize("hazard", ["dtypes", "lines"])
def test_misaligned_tensors(program: Path, hazard: str) -> None:
    assert expect_exact(run_check(program, CONVS[hazard], "misaligned"))["comparisons"] == 6 * len(CONVS[hazard])


def test_images_do_not_see_each_other(program: Path) -> None:
    hazards = ("small_planes", "padding_modes", "multipliers", "few_channels", "lines")
    problems = [p for hazard in hazards for p in CONVS[hazard][::2] if isinstance(p, Conv)]
    problems = [replace(problem, batch=3) for problem in problems]
    assert expect_exact(run_check(program, list(problems), "bits"))["comparisons"] == 6 * len(problems)


@dataclass(frozen=True)
class Mutant:
    """A file of direct with one mistake, and the problems that must bring it to light."""

    file: str
    old: str
    new: str
    hazard: str
    which: int = 0  # of several occurrences


BARRIER = "__syncthreads();"
MUTANTS = {
    "stage_barrier": Mutant("depthwise", BARRIER, "", "thread_tiles", which=2),
    "halo": Mutant("depthwise", "first_h + what.h.start + h", "first_h + h", "thread_tiles"),
    "weights_barrier": Mutant("depthwise_last", BARRIER, "", "kernels", which=1),
    "strip": Mutant("depthwise_last", "seen[(u + q) % kQ]", "seen[u]", "thread_tiles"),
    "remainder": Mutant("depthwise_strided", "return {tap, place};", "return {0, place};", "strides_and_dilations"),
    "tile_barrier": Mutant("depthwise_weight", BARRIER, "", "small_planes", which=1),
    "teams_barrier": Mutant("depthwise_last_weight", BARRIER, "", "thread_tiles"),
    "funnel": Mutant("causal", "words[i] >> 16 | words[i + 1] << 16", "words[i] >> 16", "dtypes"),
}


def expect_mistake(
    mutant: Mutant, problems: Mapping[str, list[Problem]], objects: dict[Path, Path], folder: Path
) -> None:
    unit = CUDA / f"conv_direct_{mutant.file}.cu"
    plant(folder, unit.name, mutant.old, mutant.new, mutant.which)
    changed = {**objects, unit: compile_object(unit, folder, folder, ["-O0"])}
    done = run_check(link(list(changed.values()), folder / "check"), problems[mutant.hazard])
    assert done.returncode in (1, 3, 4), (done.stdout + done.stderr)[:4000]


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_come_to_light(name: str, objects: dict[Path, Path], tmp_path: Path) -> None:
    expect_mistake(MUTANTS[name], CONVS, objects, tmp_path)
