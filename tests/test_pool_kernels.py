"""The fast kernels of direct pooling at the edges of what they are made of: rows, bands, parts, lines of channels.

Each problem is held to naive bit for bit (an average: to the derived bound), on numbers that tie, on zeros of both
signs, and with NaN or infinities at a single place, which sends a part of the plane to the slower kernels.
"""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.shapes import PoolProblem
from convext import _C
from tests import calls, numerics

SMALL = (((2, 2), 2, 0), ((3, 3), 1, 1), ((3, 3), 2, 1), ((5, 5), 1, 2), ((1, 3), 1, 0), ((3, 2), 2, 0))
ROWS = tuple(
    PoolProblem(f"rows_{h}x{w}", False, 2, (h, w), kernel, stride=stride, padding=padding)
    for kernel, stride, padding in SMALL
    for h, w in ((7, 7), (9, 16), (12, 35), (6, 64), (5, 79), (150, 34), (40, 256), (8, 1500))
)
VOLUMES = (
    PoolProblem("volume_halves", False, 2, (6, 10, 34), (2, 2, 2), stride=2),
    PoolProblem("volume_halves_tall", False, 1, (4, 160, 64), (2, 2, 2), stride=2),
    PoolProblem("volume_flat_windows", False, 2, (3, 9, 40), (1, 3, 3), stride=(2, 1, 1), padding=(0, 1, 1)),
)
BANDS = (
    PoolProblem("window_4", False, 17, (30, 33), (4, 4), stride=1, padding=2),
    PoolProblem("window_6x7_stride_2", False, 16, (30, 41), (6, 7), stride=2, padding=(3, 3)),
    PoolProblem("window_9_stride_3", False, 3, (40, 50), (9, 9), stride=3, padding=(4, 4)),
    PoolProblem("window_13_channels_33", False, 33, (20, 20), (13, 13), stride=1, padding=6),
    PoolProblem("window_16_tall", False, 5, (200, 30), (16, 16), stride=1, padding=8),
    PoolProblem("window_1x100", False, 2, (3, 900), (1, 100), stride=1, padding=(0, 50)),
    PoolProblem("window_3_channels_15", False, 15, (28, 28), (3, 3), stride=1, padding=1),
    PoolProblem("line_of_20000", False, 1, (20000,), (7,), stride=1, padding=3),
)
MAXIMA = ROWS + VOLUMES + BANDS
AVERAGES = tuple(p.with_(average=True, count_include_pad=counted) for p in ROWS + VOLUMES for counted in (True, False))
isas = pytest.mark.parametrize("isa", _C.available_isas())


def numbers(problem: PoolProblem, dtype: torch.dtype, kind: str, channels_last: bool) -> torch.Tensor:
    x = problem.operand(numerics.integers(dtype, largest=40), channels_last)
    if kind == "zeros":
        x[x.abs() > 2] = -5.0
        x[x == 1] = -0.0
    elif kind != "finite":
        value = {"nan": math.nan, "low": -math.inf}[kind]
        places = torch.randint(x.numel(), (2,), generator=torch.Generator().manual_seed(x.numel()))
        corner = (0,) * x.dim()
        for at in (corner, tuple(n - 1 for n in x.shape), *(torch.unravel_index(p, x.shape) for p in places)):
            x[at] = value
    return x


@pytest.mark.parametrize("problem", MAXIMA, ids=lambda p: f"{p.name}_{p}")
@pytest.mark.parametrize("kind", ["finite", "zeros", "nan", "low"])
@isas
def test_maxima_equal_naive(problem: PoolProblem, kind: str, isa: str) -> None:
    for dtype in (torch.float32, torch.float16):
        for channels_last in calls.layouts(problem.spatial):
            x = numbers(problem, dtype, kind, channels_last)
            expected, expected_places = calls.run_max_pool(problem, x, "naive")
            with numerics.instruction_set(isa):
                output, places = calls.run_max_pool(problem, x, "direct")
            numerics.assert_same_bits(output, expected, "maximum")
            numerics.assert_same_bits(places, expected_places, "places")


@pytest.mark.parametrize("problem", AVERAGES, ids=lambda p: f"{p.name}_{p}_{p.count_include_pad}")
@isas
def test_averages_stay_within_the_bound(problem: PoolProblem, isa: str) -> None:
    for dtype in (torch.float32, torch.float16):
        x = problem.operand(numerics.normals(dtype), False)
        counting = problem.with_(divisor_override=1)
        terms = calls.reference_pool(counting, torch.ones_like(x).double())
        expected = calls.reference_pool(problem, x.double())
        magnitude = calls.reference_pool(problem, x.double().abs())
        with numerics.instruction_set(isa):
            output = calls.run_avg_pool(problem, x, "direct")
        numerics.assert_within(output, expected, numerics.error_bound(expected, magnitude, terms + 1, dtype), "average")


def test_parts_of_a_large_plane_do_not_show() -> None:
    problem = PoolProblem("large", False, 1, (700, 300), (3, 3), stride=2, padding=1)
    x = problem.operand(numerics.normals(), False)
    x[0, 0, 350, 150] = math.nan
    expected = calls.run_max_pool(problem, x, "naive")
    for count in (1, 2, 3):
        with numerics.threads(count):
            for result, wanted in zip(calls.run_max_pool(problem, x, "direct"), expected, strict=True):
                numerics.assert_same_bits(result, wanted)
