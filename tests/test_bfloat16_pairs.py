"""im2col on pairs of bfloat16 (csrc/cpu/bfloat16_pairs.h): where the processor has AVX512-BF16, or it is emulated.

The tables of tests/test_conv_algorithms.py go through this instruction set too. Here: sizes around its tiles of 14
rows, 32 columns and 768 summed channels, odd numbers of channels, whose last one has a zero beside it, and what "auto"
makes of products at twice the rate.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import convext
from benchmarks.shapes import ConvProblem
from convext import _C
from tests import calls, numerics

pytestmark = pytest.mark.skipif(
    numerics.PAIRING not in _C.available_isas(), reason=f"no {numerics.PAIRING} here (make test-emulated)"
)


def _conv(
    name: str, inputs: int, outputs: int, size: tuple[int, ...], kernel: tuple[int, ...], **rest: object
) -> ConvProblem:
    return ConvProblem(name, (inputs, outputs), size, kernel, **rest)  # type: ignore[arg-type]


SUMS = [
    _conv(f"pointwise_{inputs}_{outputs}", inputs, outputs, (5, 7), (1, 1), bias=True)
    for inputs, outputs in ((1, 1), (2, 13), (3, 14), (15, 15), (16, 31), (17, 32), (31, 33), (33, 65), (64, 34))
]
DEEP = [
    _conv(f"deep_{inputs}", inputs, 15, (3, 5), (1, 1), batch=2) for inputs in (766, 767, 768, 769, 770, 1537, 2 * 770)
]
WINDOWS = [
    _conv("one_row_of_tiles", 18, 20, (1, 33), (1, 3), padding=(0, 1)),
    _conv("odd_channels", 5, 9, (9, 18), (3, 3), padding=1, bias=True, batch=2),
    _conv("even_channels", 6, 29, (9, 18), (3, 3), padding=1, bias=True, batch=2),
    _conv("several_blocks", 90, 33, (6, 17), (3, 3), padding=1),
    _conv("several_blocks_odd", 91, 17, (6, 17), (3, 3), padding=1),
    _conv("strided", 7, 16, (13, 35), (3, 3), padding=1, stride=2),
    _conv("strided_by_3", 8, 16, (13, 35), (4, 4), padding=2, stride=3),
    _conv("dilated", 9, 15, (14, 37), (3, 3), padding=2, dilation=2),
    _conv("groups_of_odd", 9, 6, (8, 19), (3, 3), padding=1, groups=3),
    _conv("groups_of_even", 12, 9, (8, 19), (3, 3), padding=1, groups=3),
    _conv("flipped", 7, 5, (8, 19), (3, 2), padding=1, flip_kernel=True),
    _conv("reflected", 6, 5, (8, 19), (3, 3), padding=1, padding_mode="reflect"),
    _conv("line", 11, 12, (70,), (5,), padding=2),
    _conv("volume", 4, 6, (4, 5, 18), (3, 3, 3), padding=1),
    _conv("far_reach", 2, 3, (3, 9000), (1, 3), padding=(0, 4400), dilation=(1, 4400)),
    _conv("far_reach_odd", 3, 3, (3, 9000), (1, 3), padding=(0, 4400), dilation=(1, 4400)),
]
PROBLEMS = [*SUMS, *DEEP, *WINDOWS]
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


@pytest.fixture(autouse=True, params=[numerics.PAIRING])
def pairing(request: pytest.FixtureRequest) -> Iterator[None]:
    with numerics.instruction_set(request.param):
        yield


@problems
def test_integers_equal_naive(problem: ConvProblem) -> None:
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(problem, numerics.integers(torch.bfloat16), channels_last)
        for direction in ("forward", "backward_input"):
            expected = calls.run_conv(problem, direction, operands, "naive")
            actual = calls.run_conv(problem, direction, operands, "im2col")
            numerics.assert_same_bits(actual, expected, f"{direction}, strides {operands.input.stride()}")


@problems
def test_channels_last_weights(problem: ConvProblem) -> None:
    if problem.spatial == 1:
        pytest.skip("torch has no such format in one dimension")
    operands = calls.conv_operands(problem, numerics.integers(torch.bfloat16), True)
    format = calls.memory_format(problem.spatial, True)
    turned = calls.ConvOperands(
        operands.input, operands.weight.contiguous(memory_format=format), operands.bias, operands.grad_output
    )
    for direction in ("forward", "backward_input"):
        expected = calls.run_conv(problem, direction, operands, "naive")
        numerics.assert_same_bits(calls.run_conv(problem, direction, turned, "im2col"), expected, direction)


@problems
def test_floats_stay_within_the_bound(problem: ConvProblem) -> None:
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(problem, numerics.normals(torch.bfloat16), channels_last)
        expected = calls.reference_conv(problem, operands)
        bounds = calls.conv_bounds(problem, operands, expected, torch.bfloat16)
        for direction in ("forward", "backward_input"):
            actual = calls.run_conv(problem, direction, operands, "im2col")
            numerics.assert_within(actual, expected[direction], bounds[direction], direction)


@problems
def test_bits_depend_on_one_image_alone(problem: ConvProblem) -> None:
    """Neither on the number of threads, nor on earlier calls, nor on the rest of the batch."""
    several, single = problem.with_(batch=3), problem.with_(batch=1)
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(several, numerics.normals(torch.bfloat16), channels_last)
        x, dy = operands.input, operands.grad_output
        for direction in ("forward", "backward_input"):
            with numerics.threads(1):
                once = calls.run_conv(several, direction, operands, "im2col")
            for count in (1, 2, 3):
                with numerics.threads(count):
                    again = calls.run_conv(several, direction, operands, "im2col")
                numerics.assert_same_bits(again, once, f"{direction}, {count} threads")
            for n in range(3):
                one = calls.ConvOperands(x[n : n + 1], operands.weight, operands.bias, dy[n : n + 1])
                alone = calls.run_conv(single, direction, one, "im2col")
                numerics.assert_same_bits(alone[0], once[n], f"{direction}, image {n}")


def test_subnormal_numbers_count_as_zero() -> None:
    """As the instruction has it, whatever the processor's mode."""
    tiny, one = torch.full((1, 2, 4, 8), 1e-39, dtype=torch.bfloat16), torch.ones(1, 2, 1, 1, dtype=torch.bfloat16)
    assert (tiny != 0).all()
    assert (convext.functional.conv2d(tiny, one, algorithm="im2col") == 0).all()
    with numerics.instruction_set("avx512"):
        assert (convext.functional.conv2d(tiny, one, algorithm="im2col") != 0).all()


def test_packed_weights_take_half_the_bytes() -> None:
    x = torch.ones(1, 64, 8, 8, dtype=torch.bfloat16)
    weight = torch.nn.Parameter(torch.ones(64, 64, 3, 3, dtype=torch.bfloat16), requires_grad=False)
    kept = {}
    for isa in (numerics.PAIRING, "avx512"):
        convext.clear_packed_weights()
        with numerics.instruction_set(isa):
            for _ in range(3):
                convext.functional.conv2d(x, weight, padding=1, algorithm="im2col")
        kept[isa] = convext.packed_weight_bytes()
    convext.clear_packed_weights()
    assert 0 < kept[numerics.PAIRING] <= 0.55 * kept["avx512"]


@pytest.mark.parametrize(("kernel", "stride", "chosen"), [(2, 1, "im2col"), (3, 2, "im2col"), (3, 1, "winograd")])
def test_auto_knows_the_rate_of_pairs(kernel: int, stride: int, chosen: str) -> None:
    """Winograd, on floats, stays where it saves more than twice the products and its transforms besides."""
    x, weight = torch.ones(1, 128, 56, 56), torch.ones(128, 128, kernel, kernel)
    names = {
        of: convext.explain("conv2d", x.to(of), weight.to(of), None, stride, kernel // 2).chosen
        for of in (torch.float32, torch.bfloat16, torch.float16)
    }
    assert names == {torch.float32: "winograd", torch.float16: "winograd", torch.bfloat16: chosen}
