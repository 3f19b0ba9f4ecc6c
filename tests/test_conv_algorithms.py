"""Every convolution algorithm, all three directions, against naive; naive against the definition.

Outputs and workspaces arrive poisoned, inputs lie between NaN sentinels (tests/calls.py). On integers bits must agree;
on floats the error must stay under the derived bound. Problems are those of tests/cases.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import convext
from benchmarks.shapes import ConvProblem
from convext import _C, ops
from convext.choice import DIRECTIONS
from tests import calls, cases, numerics, winograd

problems = pytest.mark.parametrize("problem", cases.CONVOLUTIONS, ids=str)
core_problems = pytest.mark.parametrize("problem", cases.CONV_CORE, ids=str)
algorithms = pytest.mark.parametrize("algorithm", calls.CONV_ALGORITHMS)
variants = calls.variants(calls.CONV_ALGORITHMS)
# Problems made for a kernel of one algorithm.
of_one_kernel = pytest.mark.parametrize(
    ("problem", "algorithm", "isa"),
    [
        pytest.param(problem, name, isa, id=f"{problem}-{isa}")
        for name, problems in (
            ("im2col", cases.CONV_COL2IM + cases.CONV_CLIPPED + cases.CONV_PATCHES),
            ("direct", cases.CONV_FEW_LANES),
            ("winograd", cases.CONV_DILATED),
        )
        for problem in problems
        for isa in numerics.ISAS
        if isa != "baseline" or len(numerics.ISAS) == 1 or "core" in problem.tags
    ],
    indirect=["isa"],
)


def check_naive_is_the_definition(problem: ConvProblem, dtype: torch.dtype) -> None:
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(problem, numerics.integers(dtype), channels_last)
        expected = calls.reference_conv(problem, operands)
        for direction in DIRECTIONS:
            actual = calls.run_conv(problem, direction, operands, "naive")
            numerics.assert_equal(actual, expected[direction].to(dtype), direction)


def check_directions_equal_naive(problem: ConvProblem, operands: calls.ConvOperands, algorithm: str) -> None:
    for direction in calls.directions(problem, operands, algorithm):
        expected = calls.run_conv(problem, direction, operands, "naive")
        actual = calls.run_conv(problem, direction, operands, algorithm)
        what = f"{direction}, strides {operands.input.stride()}"
        if algorithm == "winograd":
            winograd.assert_nearest(actual, expected, what)
        else:
            numerics.assert_same_bits(actual, expected, what)


def check_equals_naive(problem: ConvProblem, dtype: torch.dtype, algorithm: str) -> None:
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(problem, numerics.integers(dtype), channels_last)
        check_directions_equal_naive(problem, operands, algorithm)


def check_floats(problem: ConvProblem, dtype: torch.dtype, algorithm: str) -> None:
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(problem, numerics.normals(dtype), channels_last)
        directions = calls.directions(problem, operands, algorithm)
        expected = calls.reference_conv(problem, operands)
        bounds = calls.conv_bounds(problem, operands, expected, dtype, algorithm)
        for direction in directions:
            actual = calls.run_conv(problem, direction, operands, algorithm)
            numerics.assert_within(actual, expected[direction], bounds[direction], direction)


def check_threads(problem: ConvProblem, algorithm: str) -> None:
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(problem, numerics.normals(), channels_last)
        for direction in calls.directions(problem, operands, algorithm):
            with numerics.threads(1):
                once = calls.run_conv(problem, direction, operands, algorithm)
                again = calls.run_conv(problem, direction, operands, algorithm)
            numerics.assert_same_bits(again, once, f"{direction}, second run")
            for count in (2, 3):
                with numerics.threads(count):
                    shared = calls.run_conv(problem, direction, operands, algorithm)
                numerics.assert_same_bits(shared, once, f"{direction}, {count} threads")


def check_batch(problem: ConvProblem, algorithm: str) -> None:
    several, single = problem.with_(batch=3), problem.with_(batch=1)
    for channels_last in calls.layouts(problem.spatial):
        many = calls.conv_operands(several, numerics.normals(), channels_last)
        for direction in calls.directions(problem, many, algorithm):
            if direction == "backward_weight":
                continue
            together = calls.run_conv(several, direction, many, algorithm)
            for n in range(3):
                one = calls.ConvOperands(many.input[n : n + 1], many.weight, many.bias, many.grad_output[n : n + 1])
                alone = calls.run_conv(single, direction, one, algorithm)
                numerics.assert_same_bits(alone[0], together[n], f"{direction}, image {n}")


@problems
@calls.over_dtypes
def test_naive_is_the_definition(problem: ConvProblem, dtype: torch.dtype) -> None:
    check_naive_is_the_definition(problem, dtype)


@calls.problem_variants(cases.CONVOLUTIONS, cases.CONV_CORE, calls.OTHER_CONV_ALGORITHMS)
@calls.over_dtypes
def test_integers_equal_naive(problem: ConvProblem, algorithm: str, isa: str, dtype: torch.dtype) -> None:
    check_equals_naive(problem, dtype, algorithm)


@given(cases.conv_problems(), st.sampled_from(numerics.FLOATS))
def test_naive_is_the_definition_on_random_geometry(problem: ConvProblem, dtype: torch.dtype) -> None:
    check_naive_is_the_definition(problem, dtype)


@pytest.mark.parametrize("algorithm", [name for name in calls.OTHER_CONV_ALGORITHMS if name != "winograd"])
@pytest.mark.parametrize("isa_name", _C.available_isas())
@given(problem=cases.conv_problems(), of=st.sampled_from(numerics.FLOATS), channels_last=st.booleans())
def test_integers_equal_naive_on_random_geometry(
    algorithm: str, isa_name: str, problem: ConvProblem, of: torch.dtype, channels_last: bool
) -> None:
    operands = calls.conv_operands(problem, numerics.integers(of), channels_last and problem.spatial > 1)
    assume(calls.refusal(calls.explain_conv(problem, operands), algorithm) is None)
    with numerics.instruction_set(isa_name):
        check_directions_equal_naive(problem, operands, algorithm)


@core_problems
@variants
@calls.over_dtypes
def test_floats_stay_within_the_bound(problem: ConvProblem, algorithm: str, isa: str, dtype: torch.dtype) -> None:
    check_floats(problem, dtype, algorithm)


@of_one_kernel
@calls.over_dtypes
def test_one_kernels_problems(problem: ConvProblem, algorithm: str, isa: str, dtype: torch.dtype) -> None:
    check_equals_naive(problem, dtype, algorithm)
    check_floats(problem, dtype, algorithm)


@pytest.mark.parametrize(
    ("problem", "direction", "algorithm", "phase"),
    [
        *((problem, "backward_input", "im2col", "write") for problem in cases.CONV_COL2IM),
        *((problem, "forward", "im2col", "write") for problem in cases.CONV_CLIPPED),
        *((problem, "backward_input", "im2col", "fold") for problem in cases.CONV_PATCHES),
        *((problem, direction, "winograd", "split") for problem in cases.CONV_DILATED for direction in DIRECTIONS),
    ],
    ids=str,
)
def test_the_road_that_these_problems_are_about_is_taken(
    problem: ConvProblem, direction: str, algorithm: str, phase: str
) -> None:
    operands = calls.conv_operands(problem, numerics.integers(torch.float32))
    with convext.profile() as phases:
        calls.run_conv(problem, direction, operands, algorithm)
    assert phase in phases.nanoseconds()


@core_problems
@algorithms
def test_non_finite_numbers_reach_what_sees_them(problem: ConvProblem, algorithm: str) -> None:
    """A NaN or infinity in the input shows in exactly the outputs whose window covers it."""
    operands = calls.conv_operands(problem, numerics.integers(torch.float32, seed=1))
    calls.skip_if_refused(calls.explain_conv(problem, operands), algorithm)
    if algorithm == "winograd":
        pytest.skip("winograd spreads them over a tile: tests/test_winograd.py")
    x = operands.input
    x[-1, 0].view(-1)[x[-1, 0].numel() // 2] = float("nan")
    x[-1, -1].view(-1)[0] = float("inf")
    weight = operands.weight.abs() + 1
    changed = calls.ConvOperands(x, weight, operands.bias, operands.grad_output)
    numerics.assert_equal(
        calls.run_conv(problem, "forward", changed, algorithm), calls.run_conv(problem, "forward", changed, "naive")
    )


# Reproducible --------------------------------------------------------------------------------------------------------


@core_problems
@variants
def test_bits_do_not_depend_on_threads_or_earlier_calls(problem: ConvProblem, algorithm: str, isa: str) -> None:
    check_threads(problem, algorithm)


@core_problems
@calls.variants(["auto", *calls.CONV_ALGORITHMS])
def test_bits_do_not_depend_on_the_batch(problem: ConvProblem, algorithm: str, isa: str) -> None:
    """An image alone gives what it gives among others: outputs and gradients of the input."""
    check_batch(problem, algorithm)


@of_one_kernel
def test_bits_of_one_kernels_problems(problem: ConvProblem, algorithm: str, isa: str) -> None:
    check_threads(problem, algorithm)
    check_batch(problem, algorithm)


# Views and layouts ---------------------------------------------------------------------------------------------------


@core_problems
@algorithms
def test_strided_views_equal_their_contiguous_copies(problem: ConvProblem, algorithm: str) -> None:
    operands = calls.conv_operands(problem, numerics.integers(torch.float32))
    directions = calls.directions(problem, operands, algorithm)
    x, w, dy = operands.input, operands.weight, operands.grad_output
    options = (*problem.options, algorithm)

    def run(direction: str, input: Tensor, weight: Tensor, bias: Tensor | None, grad_output: Tensor) -> Tensor:
        if direction == "forward":
            return ops.conv_forward(input, weight, bias, *options)
        if direction == "backward_input":
            return ops.conv_backward_input(grad_output, weight, x.shape, *options)
        return ops.conv_backward_weight(grad_output, input, w.shape, *options)

    for (name, vx), vw, vdy in zip(
        calls.views(x).items(), calls.views(w).values(), calls.views(dy).values(), strict=True
    ):
        cx, cw, cdy = vx.contiguous(), vw.contiguous(), vdy.contiguous()
        bias = None if operands.bias is None else operands.bias.repeat_interleave(2)[::2]
        for direction in directions:
            actual = run(direction, vx, vw, bias, vdy)
            expected = run(direction, cx, cw, operands.bias, cdy)
            numerics.assert_same_bits(actual, expected, f"{direction}, {name}")


@core_problems
@algorithms
def test_results_keep_the_memory_format(problem: ConvProblem, algorithm: str) -> None:
    """Outputs that of the input, its gradient that of grad_output (contiguous where that has one place), the weight's
    that of both, as torch's."""
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(problem, numerics.integers(), channels_last)
        expected = calls.memory_format(problem.spatial, channels_last)
        backward = calls.memory_format(problem.spatial, ops.is_channels_last(operands.grad_output))
        either = channels_last or ops.is_channels_last(operands.grad_output)
        weight = calls.memory_format(problem.spatial, either)
        formats = dict(zip(DIRECTIONS, (expected, backward, weight), strict=True))
        for direction in calls.directions(problem, operands, algorithm):
            wanted = formats[direction]
            result = calls.run_conv(problem, direction, operands, algorithm)
            assert result.is_contiguous(memory_format=wanted), f"{direction}: strides {result.stride()}"


@pytest.mark.parametrize("problem", [p for p in cases.CONV_CORE if p.spatial > 1], ids=str)
def test_channels_last_equals_contiguous(problem: ConvProblem) -> None:
    """The layout is a matter of memory, not of values; also where only the weight is laid out channels last."""
    plain = calls.conv_operands(problem, numerics.integers())
    last = plain.map(
        lambda t: t.contiguous(memory_format=calls.memory_format(problem.spatial, t.dim() == problem.spatial + 2))
    )
    for direction in DIRECTIONS:
        actual = calls.run_conv(problem, direction, last, "auto")
        chosen = {calls.explain_conv(problem, operands, direction).chosen for operands in (plain, last)}
        if "winograd" in chosen and len(chosen) > 1:  # taken in one layout only, where its tiles of four outputs round
            winograd.assert_nearest(actual, calls.run_conv(problem, direction, plain, "naive"), direction)
        else:
            numerics.assert_equal(actual, calls.run_conv(problem, direction, plain, "auto"), direction)


# Empty ---------------------------------------------------------------------------------------------------------------


@core_problems
@algorithms
def test_an_empty_batch_gives_empty_results(problem: ConvProblem, algorithm: str) -> None:
    empty = problem.with_(batch=0)
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(empty, numerics.integers(), channels_last)
        calls.skip_if_refused(calls.explain_conv(problem, operands), algorithm)
        assert calls.run_conv(empty, "forward", operands, algorithm).shape == empty.output_shape
        assert calls.run_conv(empty, "backward_input", operands, algorithm).shape == empty.input_shape
        weight_gradient = calls.run_conv(empty, "backward_weight", operands, algorithm)
        numerics.assert_same_bits(weight_gradient, torch.zeros(empty.weight_shape), "an empty sum")


@algorithms
@pytest.mark.parametrize("bias", [False, True])
def test_no_input_channels_give_the_bias(algorithm: str, bias: bool) -> None:
    problem = ConvProblem("no inputs", (0, 4), (5, 6), (3, 3), batch=2, padding=1, bias=bias)
    operands = calls.conv_operands(problem, numerics.integers())
    expected = torch.zeros(problem.output_shape)
    if operands.bias is not None:
        expected += operands.bias.view(1, -1, 1, 1)
    numerics.assert_same_bits(calls.run_conv(problem, "forward", operands, algorithm), expected)
    assert calls.run_conv(problem, "backward_input", operands, algorithm).shape == problem.input_shape
    assert calls.run_conv(problem, "backward_weight", operands, algorithm).shape == problem.weight_shape


# Gradient of the bias ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 17), (3, 17, 4, 5), (2, 65, 3, 33), (1, 5, 300), (2, 6, 3, 4, 5)])
def test_bias_gradient(shape: tuple[int, ...], isa: str, dtype: torch.dtype) -> None:
    spatial = len(shape) - 2
    places = [0, *range(2, len(shape))]
    for channels_last in calls.layouts(spatial):
        laid_out = {"memory_format": calls.memory_format(spatial, channels_last)}
        exact = numerics.integers(dtype)(*shape).contiguous(**laid_out)
        with numerics.poisoned(), numerics.guarded(exact) as (dy,):
            numerics.assert_equal(ops.conv_backward_bias(dy), exact.double().sum(places).to(dtype))
        rough = numerics.normals(dtype)(*shape).contiguous(**laid_out)
        expected, magnitude = rough.double().sum(places), rough.double().abs().sum(places)
        terms = torch.full((shape[1],), rough.numel() / shape[1])
        bound = numerics.error_bound(expected, magnitude, terms, dtype)
        with numerics.poisoned(), numerics.guarded(rough) as (dy,), numerics.threads(1):
            alone = ops.conv_backward_bias(dy)
        numerics.assert_within(alone, expected, bound)
        with numerics.threads(3):
            numerics.assert_same_bits(ops.conv_backward_bias(rough), alone, "three threads")
        view = rough.repeat_interleave(2, -1)[..., ::2]
        numerics.assert_within(ops.conv_backward_bias(view), expected, bound, "strided view")


def test_bias_gradient_of_nothing_is_zero() -> None:
    with numerics.poisoned():
        numerics.assert_same_bits(ops.conv_backward_bias(torch.empty(0, 3, 4, 5)), torch.zeros(3))
        numerics.assert_same_bits(ops.conv_backward_bias(torch.empty(2, 0, 4, 5)), torch.zeros(0))
