"""The fast kernels of direct pooling at the edges of what they are made of: rows, bands, parts, lines of channels;
and those of its gradients.

Each problem is held to naive bit for bit (an average: to the derived bound), on numbers that tie, on zeros of both
signs, and with NaN or infinities at a single place, which sends a part of the plane to the slower kernels.
"""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.shapes import PoolProblem, laid_out
from tests import calls, numerics
from tests.cases import ADAPTIVE_WINDOWS

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
BOXES = (
    *(PoolProblem(f"boxes_{k}_{c}", False, c, (13, 40), (k, k), stride=k) for k in (3, 4) for c in (1, 5, 8, 17)),
    PoolProblem("boxes_of_30_columns", False, 3, (6, 95), (2, 30), stride=(2, 31)),
    PoolProblem("boxes_apart", False, 9, (9, 50), (2, 3), stride=(5, 4)),
    PoolProblem("boxes_of_a_volume", False, 9, (7, 7, 22), (3, 3, 3), stride=3),
    *(
        PoolProblem(f"boxes_of_16x{w}_{c}", False, c, (16, w), (3, 4), stride=(4, 3))
        for w in (16, 17)
        for c in (3, 7, 8, 9, 15, 16, 17, 33)
    ),
    PoolProblem("boxes_of_a_small_volume", False, 17, (4, 7, 9), (2, 3, 4), stride=(1, 2, 3)),
)
LINES = (
    *(
        PoolProblem(f"lines_{k}", False, 3, (9, 17 * k + 5), (1, k), stride=(1, max(k, 3)))
        for k in (3, 4, 5, 8, 9, 16, 17)
    ),
    *(
        PoolProblem(f"lines_{w}_to_{q}", False, 2, (w,), (q,), adaptive=True)
        for w, q in ((1000, 99), (601, 150), (300, 299), (257, 16), (290, 17), (3000, 700), (700, 43))
    ),
)
PADDED_BOXES = tuple(PoolProblem(f"padded_boxes_{c}", False, c, (11, 14), (4, 4), stride=3, padding=2) for c in (7, 17))
ALL = tuple(
    PoolProblem(f"all_of_{h}x{w}_{c}", False, c, (h, w), (h, w))
    for h, w in ((4, 5), (60, 70))
    for c in (1, 15, 16, 17, 31, 33, 64, 96, 127, 128, 129)
)
MAXIMA = ROWS + VOLUMES + BANDS + BOXES + LINES + ADAPTIVE_WINDOWS
AVERAGES = tuple(
    p.with_(average=True, count_include_pad=counted)
    for p in ROWS + VOLUMES + BOXES + PADDED_BOXES + ALL
    for counted in (True, False)
)
isas = pytest.mark.parametrize("isa", numerics.ISAS)


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


# Gradients -----------------------------------------------------------------------------------------------------------

OVERLAPPING = (((3, 3), 1, 1), ((3, 3), 2, 1), ((3, 3), 2, 0), ((5, 5), 1, 2), ((2, 3), 1, ((0, 1), (2, 0))))
EXPANDED = tuple(
    PoolProblem(f"halves_{h}x{w}_{ceil}", False, 5, (h, w), kernel, stride=2, ceil_mode=ceil)
    for h, w in ((9, 30), (8, 31), (7, 33), (6, 35), (5, 64))
    for kernel in ((2, 2), (1, 2))
    for ceil in (False, True)
)
APART = (
    *(PoolProblem(f"apart_{c}", False, c, (11, 14), (3, 2), stride=(4, 3), padding=1) for c in (1, 7, 8, 9, 33)),
    PoolProblem("apart_16_halves", False, 16, (6, 7), (2, 2), stride=2),
    PoolProblem("apart_volume_27", False, 9, (7, 8, 9), (3, 3, 3), stride=3),
    PoolProblem("apart_28", False, 9, (9, 15), (4, 7)),
)
LOOKED_UP = tuple(
    PoolProblem(f"gather_{h}x{w}", False, 3, (h, w), kernel, stride=stride, padding=padding)
    for kernel, stride, padding in OVERLAPPING
    for h, w in ((5, 5), (8, 15), (6, 16), (9, 17), (60, 31), (13, 33), (7, 63), (9, 64), (10, 66), (6, 97), (4, 1300))
)
PAIRS = tuple(
    PoolProblem(f"pairs_{c}", False, c, (h, w), (3, 3), stride=2, padding=padding)
    for c, h, w in ((1, 9, 12), (8, 8, 7), (15, 7, 8), (16, 5, 9), (17, 6, 6), (33, 9, 3), (64, 10, 11))
    for padding in (1, 0, ((0, 1), (1, 0)))
)
SCATTERED = (
    *(PoolProblem(f"planes_{c}", False, c, (9, 20), (4, 4), stride=1, padding=2) for c in (1, 3, 4, 5, 17)),
    PoolProblem("rolls_on", False, 6, (150, 90), (7, 6), stride=(2, 1), padding=(3, 3)),
    PoolProblem("columns_in_turn", False, 2, (40, 2500), (4, 7), stride=(1, 2), padding=(2, 3)),
    PoolProblem("gaps", False, 5, (70, 80), (3, 2), stride=(29, 31), padding=(1, 1)),
    PoolProblem("deep", False, 18, (5, 8, 9), (3, 3, 3), stride=1, padding=1),
    PoolProblem(
        "deep_dilated", False, 5, (9, 9, 12), (2, 3, 3), stride=(1, 2, 1), padding=(1, 2, 2), dilation=(3, 2, 2)
    ),
    PoolProblem("window_of_1080", False, 3, (40, 40), (30, 36), stride=3, padding=3),
    PoolProblem("window_of_a_plane", False, 3, (34, 34), (34, 34)),
    PoolProblem("padding_beyond_the_window", False, 2, (9, 9), (2, 2), stride=1, padding=((3, 2), (2, 3)), dilation=3),
)
# Around a vector of outputs, eight planes, sixteen channels, the rows held, and where rows are taken as one.
WON = (
    *(PoolProblem(f"won_{c}", False, c, (11, 10), (5, 5), stride=1, padding=2) for c in (7, 8, 9, 15, 16, 17, 33)),
    *(PoolProblem(f"won_wide_{w}", False, 9, (9, w), (5, 5), stride=1, padding=2) for w in (3, 7, 8, 9, 15, 17, 31)),
    *(PoolProblem(f"won_halves_{h}", False, 9, (h, h), (3, 3), stride=2, padding=1) for h in (7, 14, 16, 33, 63)),
    *(PoolProblem(f"won_{k}", False, 17, (20, 20), (k, k), stride=1, padding=k // 2) for k in (7, 9, 13)),
    PoolProblem("won_7_stride_2", False, 16, (30, 29), (7, 7), stride=2, padding=3),
    PoolProblem("won_not_padded", False, 8, (40, 13), (5, 6), stride=(3, 1)),
    PoolProblem("won_parts", False, 18, (230, 70), (6, 5), stride=(1, 2), padding=(3, 2)),
    PoolProblem("won_flat_volume", False, 9, (5, 12, 20), (1, 5, 5), stride=(2, 1, 1), padding=(0, 2, 2)),
    PoolProblem("won_low_input", False, 9, (4, 9), (7, 7), stride=1, padding=3),
)


def name_of(problem: PoolProblem) -> str:
    return f"{problem.name}_{problem.kernel}_{problem.stride}_{problem.padding}"


GRADIENTS = (*ROWS, *VOLUMES, *BANDS, *EXPANDED, *APART, *LOOKED_UP, *PAIRS, *SCATTERED, *WON)


@pytest.mark.parametrize("problem", GRADIENTS, ids=name_of)
@isas
def test_gradients_of_maxima_equal_naive(problem: PoolProblem, isa: str) -> None:
    for dtype in numerics.FLOATS:
        for channels_last in calls.layouts(problem.spatial):
            places = calls.run_max_pool(problem, numbers(problem, dtype, "finite", channels_last), "naive")[1]
            dy = laid_out(numerics.integers(dtype, seed=3)(*problem.output_shape), channels_last)
            expected = calls.run_max_pool_backward(problem, dy, places, "naive")
            with numerics.instruction_set(isa):
                actual = calls.run_max_pool_backward(problem, dy, places, "direct")
            numerics.assert_equal(actual, expected, f"{dtype}")


@pytest.mark.parametrize("problem", [*LOOKED_UP, *PAIRS, *SCATTERED, *WON, *EXPANDED, *APART], ids=name_of)
@isas
def test_gradients_read_and_write_in_bounds_whatever_the_places(problem: PoolProblem, isa: str) -> None:
    """Places that no pooling made."""
    for channels_last in calls.layouts(problem.spatial):
        of = torch.uint8 if math.prod(problem.kernel) <= 256 else torch.int32
        generator = torch.Generator().manual_seed(0)
        places = torch.randint(0, 256 if of == torch.uint8 else 2**30, problem.output_shape, generator=generator)
        dy = laid_out(numerics.normals()(*problem.output_shape), channels_last)
        with numerics.instruction_set(isa):
            calls.run_max_pool_backward(problem, dy, laid_out(places.to(of), channels_last), "direct")


AVERAGED = tuple(
    p.with_(average=True, count_include_pad=counted, divisor_override=override)
    for p in (*ROWS, *VOLUMES, *EXPANDED, *APART, *LOOKED_UP, *SCATTERED)
    for counted, override in ((True, None), (False, None), (True, -5))
)


@pytest.mark.parametrize("problem", AVERAGED, ids=lambda p: f"{name_of(p)}_{p.count_include_pad}_{p.divisor_override}")
@isas
def test_gradients_of_averages_stay_within_the_bound(problem: PoolProblem, isa: str) -> None:
    for dtype in (torch.float32, torch.float16):
        for channels_last in calls.layouts(problem.spatial):
            dy = laid_out(numerics.normals(dtype)(*problem.output_shape), channels_last)

            def exactly(grad_output: torch.Tensor, problem: PoolProblem = problem) -> torch.Tensor:
                return calls.run_avg_pool_backward(problem, grad_output.double(), "naive")

            seen = exactly(torch.ones_like(dy), problem.with_(divisor_override=1))
            expected, magnitude = exactly(dy), exactly(dy.abs()).abs()
            with numerics.instruction_set(isa):
                actual = calls.run_avg_pool_backward(problem, dy, "direct")
            numerics.assert_within(actual, expected, numerics.error_bound(expected, magnitude, seen + 1, dtype))


@pytest.mark.parametrize("average", [False, True])
def test_parts_of_a_large_gradient_do_not_show(average: bool) -> None:
    for kernel, stride, padding in (((2, 2), 2, 0), ((3, 3), 2, 1), ((5, 5), 1, 2), ((4, 7), 1, 2), ((7, 7), 2, 3)):
        problem = PoolProblem("large", average, 3, (300, 200), kernel, stride=stride, padding=padding)
        for channels_last in (False, True):
            dy = laid_out(numerics.normals()(*problem.output_shape), channels_last)
            results = []
            for count in (1, 2, 3):
                with numerics.threads(count):
                    if average:
                        results.append(calls.run_avg_pool_backward(problem, dy, "direct"))
                    else:
                        places = calls.run_max_pool(
                            problem, problem.operand(numerics.normals(), channels_last), "naive"
                        )[1]
                        results.append(calls.run_max_pool_backward(problem, dy, places, "direct"))
            for result in results[1:]:
                numerics.assert_same_bits(result, results[0])
