"""Direct's kernels for few channels on one side, on the CPU: both layouts, every direction, equal naive exactly.

As tests/test_cuda_depthwise.py, which see, with the same program.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.emulated import FLOATING, MODES, NEEDED, ONES, Conv, Problem, expect_exact, in_both_layouts, run_check
from tests.test_cuda_depthwise import BARRIER, STEPS, Mutant, expect_mistake, objects, program

__all__ = ["objects", "program"]  # fixtures
pytestmark = NEEDED


def layer(channels: tuple[int, int], size: tuple[int, int], kernel: tuple[int, int], **rest: object) -> Conv:
    """Padded to keep the size, if nothing else is said."""
    rest.setdefault("before", (0, kernel[0] // 2, kernel[1] // 2))
    rest.setdefault("after", (0, (kernel[0] - 1) // 2, (kernel[1] - 1) // 2))
    rest.setdefault("batch", 1)
    return Conv(*channels, (1, *size), (1, *kernel), **rest)  # type: ignore[arg-type]


# By what they could bring to light. Tile constants: conv_direct_few.cu 8 columns of 4 or 8 channels a thread, 64
# columns (256 of a line), 16 rows, 64 channels a block, channels by 8, four taps; _few_weight.cu segments of 16, 64 x 5
# places (or more rows of less), 16 or 32 k, 8 c, four taps.
CONVS: dict[str, list[Problem]] = {
    "columns": in_both_layouts(
        [layer((3, 9), (2, n), (3, 3)) for n in (1, 7, 8, 9, 15, 17, 63, 65)]
        + [layer((9, 3), (2, n), (2, 3)) for n in (4, 16, 64, 66)]
    ),
    "rows": in_both_layouts(
        [layer((3, 5), (n, 3), (3, 2)) for n in (2, 15, 16, 17)]
        + [layer((2, 17), (n, 62), (3, 1)) for n in (4, 6)]
        + [layer((3, 5), (2, 3), (3, 3), batch=40)]
        + [layer((8, 4), (n, 9), (3, 3)) for n in (17, 35)]
    ),
    "channels": in_both_layouts(
        [
            layer((c, k), (3, 5), (2, 3), flip=k % 2 == 0)
            for c, k in ((1, 4), (2, 3), (2, 5), (3, 8), (4, 9), (1, 16), (3, 17), (1, 32), (3, 33), (1, 64), (4, 65))
        ]
        + [
            layer((c, k), (3, 5), (2, 3), flip=k % 2 == 0)
            for c, k in ((5, 1), (1, 1), (1, 3), (4, 4), (7, 2), (8, 3), (9, 4), (16, 5), (17, 7), (12, 8), (33, 2))
        ]
    ),
    "kernels": in_both_layouts(
        [
            layer(channels, (5, 9), kernel, flip=kernel[1] % 2 == 0)
            for channels in ((3, 10), (9, 3))
            for kernel in ((1, 1), (1, 4), (5, 5), (4, 7), (1, 9))
        ]
        + [layer((1, 34), (6, 7), (15, 15)), layer((4, 12), (3, 4), (9, 8)), layer((2, 5), (2, 70), (3, 41))]
    ),
    "padding_modes": in_both_layouts(
        [
            layer(channels, (6, 9), (3, 4), before=(0, 1, 3), after=(0, 2, 0), mode=mode, stride=(1, s, s))
            for mode in MODES
            for channels, s in (((3, 9), 1), ((3, 9), 2), ((9, 3), 1))
        ]
        + [
            layer((3, 5), (3, 3), (2, 2), before=(0, 5, 9), after=(0, 7, 4), mode=mode, stride=(1, 1, s))
            for mode in ("zeros", "replicate")
            for s in (1, 2)
        ]
    ),
    "strides_and_dilations": in_both_layouts(
        [
            layer(channels, (11, 14), (3, 3), stride=s, dilation=d, before=(0, 2, 3), after=(0, 4, 1), flip=True)
            for channels in ((2, 9), (9, 2))
            for s, d in (*STEPS, ((1, 2, 2), (1, 4, 2)), (ONES, (1, 2, 1)), ((1, 4, 6), (1, 2, 4)))
        ]
        + [
            layer((3, 12), (18, 37), (7, 7), stride=(1, 2, 2)),
            layer((3, 12), (8, 40), (4, 4), stride=(1, 4, 4), before=(0, 0, 0), after=(0, 0, 0)),
            layer((3, 5), (7, 8), (1, 1), stride=(1, 2, 3)),
            layer((5, 3), (4, 5), (3, 3), before=(0, 9, 9), after=(0, 9, 9), stride=(1, 5, 7)),
        ]
    ),
    "groups": in_both_layouts(
        [
            layer((c, k), (5, 6), (3, 3), groups=g, mode=mode, stride=(1, s, s))
            for c, k, g in ((8, 8, 2), (4, 18, 2), (27, 6, 3), (2, 32, 2), (12, 24, 3), (3, 3, 3), (9, 9, 9))
            for mode, s in (("circular", 1), ("zeros", 2))
        ]
    ),
    "depth": in_both_layouts(
        [
            Conv(1, 9, (4, 5, 6), (3, 3, 3), before=(1, 1, 1), after=(1, 1, 1), mode="reflect", batch=1),
            Conv(9, 2, (3, 5, 4), (2, 3, 2), before=(2, 0, 1), stride=(1, 2, 2), flip=True),
            Conv(3, 5, (5, 4, 5), (3, 2, 4), stride=(2, 1, 1), dilation=(2, 1, 1), before=(2, 1, 1), batch=1),
        ]
    ),
    "lines": in_both_layouts(
        [
            layer((2, 5), (1, 257), (1, 10), stride=(1, 1, 5)),
            layer((1, 9), (1, 270), (1, 3)),
            layer((9, 2), (1, 257), (1, 3), mode="reflect"),
            layer((4, 4), (1, 33), (1, 4), dilation=(1, 1, 3)),
        ]
    ),
    "dtypes": in_both_layouts(
        [
            problem
            for dtype in FLOATING
            for problem in (
                layer((3, 16), (4, 16), (3, 3), dtype=dtype, mode="symmetric"),
                layer((16, 8), (4, 8), (3, 3), dtype=dtype),
                layer((16, 4), (5, 12), (2, 3), dtype=dtype, stride=(1, 2, 2)),
                layer((4, 6), (5, 7), (3, 3), dtype=dtype, dilation=(1, 1, 2)),
            )
        ]
    ),
    "batch_in_pieces": in_both_layouts(
        [layer((3, 5), (50, 60), (3, 1), batch=4), layer((13, 2), (30, 40), (1, 3), batch=4, stride=(1, 2, 2))]
    ),
}


@pytest.mark.parametrize("hazard", CONVS)
def test_convolution(program: Path, hazard: str) -> None:
    seen = expect_exact(run_check(program, CONVS[hazard]))
    assert seen["comparisons"] == 6 * len(CONVS[hazard])
    assert seen["barriers"] > 0


def test_misaligned_tensors(program: Path) -> None:
    assert expect_exact(run_check(program, CONVS["dtypes"], "misaligned"))["comparisons"] == 6 * len(CONVS["dtypes"])


def test_images_do_not_see_each_other(program: Path) -> None:
    problems = [p for hazard in ("rows", "channels", "padding_modes", "groups") for p in CONVS[hazard][::4]]
    problems = [replace(problem, batch=3) for problem in problems if isinstance(problem, Conv)]
    assert expect_exact(run_check(program, list(problems), "bits"))["comparisons"] == 6 * len(problems)


MUTANTS = {
    "rows_barrier": Mutant("few", BARRIER, "", "channels"),
    "weights_kept": Mutant("few", "if (first_r > 0) __syncthreads();", "", "kernels"),
    "weights_barrier": Mutant("few", BARRIER, "", "channels", which=2),
    "window": Mutant("few", "seen[0] = seen[1], seen[1]", "seen[0] = seen[1], seen[0]", "kernels"),
    "chunk": Mutant("few", "(first_c + c) * what.weight_read", "c * what.weight_read", "channels"),
    "phase": Mutant("few", "h.first + (first_h", "(first_h", "strides_and_dilations"),
    "weight_stage_barrier": Mutant("few_weight", BARRIER, "", "columns", which=1),
    "weight_item_barrier": Mutant("few_weight", BARRIER, "", "rows"),
    "weight_teams_barrier": Mutant("few_weight", BARRIER, "", "columns", which=3),
    "weight_chunk": Mutant("few_weight", "mine.chunk + begin", "mine.chunk", "columns"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_come_to_light(name: str, objects: dict[Path, Path], tmp_path: Path) -> None:
    expect_mistake(MUTANTS[name], CONVS, objects, tmp_path)
