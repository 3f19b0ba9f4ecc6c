"""Every pooling algorithm, forward and backward, against naive; naive against the definition and against torch.

Maxima are compared bit for bit, with the place that won. Averages of integers are compared as values: the sign of a
zero is nobody's promise. Their gradients are exact where grad_output is divisible by every divisor; the gradient of a
maximum sums what arrived, so on integers it is exact too. Outputs are poisoned, inputs lie between sentinels.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.shapes import PoolProblem
from convext import ops
from tests import calls, cases, numerics

max_problems = pytest.mark.parametrize("problem", cases.MAX_POOLS, ids=str)
average_problems = pytest.mark.parametrize("problem", cases.AVERAGE_POOLS, ids=str)
max_core = pytest.mark.parametrize("problem", cases.MAX_CORE, ids=str)
average_core = pytest.mark.parametrize("problem", cases.AVERAGE_CORE, ids=str)
algorithms = pytest.mark.parametrize("algorithm", calls.POOL_ALGORITHMS)
variants = calls.variants(calls.POOL_ALGORITHMS)
other_algorithms = pytest.mark.parametrize("algorithm", calls.OTHER_POOL_ALGORITHMS)
isas = pytest.mark.parametrize("isa_name", numerics.ISAS)


def skip_if_refused(problem: PoolProblem, input: torch.Tensor, algorithm: str) -> None:
    calls.skip_if_refused(calls.explain_pool(problem, input), algorithm)


def divisible(problem: PoolProblem, make: numerics.Maker) -> torch.Tensor | None:
    """Integers that every divisor of the problem divides; None where they or their sums cannot be held exactly."""
    small = make(*problem.output_shape)
    multiple = math.lcm(*(int(d) for d in calls.divisors(problem).unique()))
    exact = 2**53 if small.dtype == torch.float64 else 2**24
    if 3 * multiple * problem.taps >= exact:
        return None
    grad_output = small * multiple
    return grad_output if torch.equal(grad_output.double(), small.double() * multiple) else None


# Maximum -------------------------------------------------------------------------------------------------------------


def torch_max_pool(problem: PoolProblem, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """torch.nn.functional on the input padded by hand with -infinity, so that every problem can be asked."""
    spatial = problem.spatial
    if problem.adaptive:
        return getattr(torch.nn.functional, f"adaptive_max_pool{spatial}d")(input, problem.kernel, return_indices=True)
    kernel, stride, padding, dilation, _ceil_mode = problem.window
    output = problem.output_shape[2:]
    grow = list(padding)
    for axis in range(spatial):
        reach = (output[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        missing = reach - problem.size[axis] - padding[2 * axis] - padding[2 * axis + 1]
        grow[2 * axis + 1] += max(missing, 0)
    backwards = [grow[2 * axis + side] for axis in reversed(range(spatial)) for side in (0, 1)]
    padded = torch.nn.functional.pad(input, backwards, value=-math.inf)
    pool = getattr(torch.nn.functional, f"max_pool{spatial}d")
    values, at = pool(padded, kernel, stride, 0, dilation, return_indices=True)
    values, at = (t[(..., *(slice(0, n) for n in output))] for t in (values, at))
    index = torch.zeros_like(at)
    for axis in range(spatial):  # back from places of the padded input to those of the input
        below = math.prod(padded.shape[3 + axis :])
        place = (at // below) % padded.shape[2 + axis] - grow[2 * axis]
        index = index * problem.size[axis] + place
    return values, index


def check_naive_maximum(problem: PoolProblem, input: torch.Tensor) -> None:
    output, places = calls.run_max_pool(problem, input, "naive")
    numerics.assert_equal(output, calls.reference_pool(problem, input), "against the definition")
    values, indices = torch_max_pool(problem, input)
    numerics.assert_equal(output, values, "against torch")
    seen = output != -math.inf
    with numerics.poisoned():
        actual = ops.max_pool_indices(places, problem.input_shape, *problem.window)
    assert actual.dtype == torch.int64
    numerics.assert_same_bits(torch.where(seen, actual, -1), torch.where(seen, indices, -1), "indices")


def check_maximum_equals_naive(problem: PoolProblem, input: torch.Tensor, algorithm: str) -> None:
    expected, expected_places = calls.run_max_pool(problem, input, "naive")
    output, places = calls.run_max_pool(problem, input, algorithm)
    numerics.assert_same_bits(output, expected, "maximum")
    numerics.assert_same_bits(places, expected_places, "places")
    if not input.is_floating_point():
        return
    grad_output = numerics.integers(input.dtype, seed=3)(*problem.output_shape)
    grad_output = grad_output.contiguous(
        memory_format=calls.memory_format(problem.spatial, ops.is_channels_last(places))
    )
    numerics.assert_equal(
        calls.run_max_pool_backward(problem, grad_output, places, algorithm),
        calls.run_max_pool_backward(problem, grad_output, places, "naive"),
        "gradient",
    )


@max_problems
@calls.over_dtypes
def test_naive_maximum_is_the_definition(problem: PoolProblem, dtype: torch.dtype) -> None:
    for channels_last in calls.layouts(problem.spatial):
        x = problem.operand(numerics.integers(dtype), channels_last)
        skip_if_refused(problem, x, "naive")
        check_naive_maximum(problem, x)


@given(cases.pool_problems(average=False), st.sampled_from(numerics.FLOATS), st.booleans())
def test_naive_maximum_is_the_definition_on_random_geometry(
    problem: PoolProblem, of: torch.dtype, channels_last: bool
) -> None:
    check_naive_maximum(problem, problem.operand(numerics.integers(of), channels_last))


@calls.problem_variants(cases.MAX_POOLS, cases.MAX_CORE, calls.OTHER_POOL_ALGORITHMS)
@calls.over_dtypes
def test_maxima_equal_naive(problem: PoolProblem, algorithm: str, isa: str, dtype: torch.dtype) -> None:
    """Integers in [-3, 3]: ties in every window."""
    for channels_last in calls.layouts(problem.spatial):
        x = problem.operand(numerics.integers(dtype), channels_last)
        skip_if_refused(problem, x, algorithm)
        check_maximum_equals_naive(problem, x, algorithm)


@other_algorithms
@isas
@given(problem=cases.pool_problems(average=False), of=st.sampled_from(numerics.FLOATS), channels_last=st.booleans())
def test_maxima_equal_naive_on_random_geometry(
    algorithm: str, isa_name: str, problem: PoolProblem, of: torch.dtype, channels_last: bool
) -> None:
    x = problem.operand(numerics.integers(of, largest=1), channels_last)
    assume(calls.refusal(calls.explain_pool(problem, x), algorithm) is None)
    with numerics.instruction_set(isa_name):
        check_maximum_equals_naive(problem, x, algorithm)


def peculiar(dtype: torch.dtype) -> numerics.Maker:
    """NaN, infinities, zeros of both signs and a few numbers, each common."""
    numbers = torch.tensor([math.nan, -math.inf, -math.inf, -math.inf, math.inf, 0.0, -0.0, 1.0, -1.0], dtype=dtype)
    indices = numerics.integers(torch.int64, largest=4)
    return lambda *shape: numbers[indices(*shape) + 4]


@max_problems
@variants
@calls.over_dtypes
def test_nan_infinity_and_ties(problem: PoolProblem, algorithm: str, isa: str, dtype: torch.dtype) -> None:
    """The last NaN wins, else the first greatest; zeros of either sign are equal."""
    for channels_last in calls.layouts(problem.spatial):
        x = problem.operand(peculiar(dtype), channels_last)
        skip_if_refused(problem, x, algorithm)
        if algorithm == "naive":
            check_naive_maximum(problem, x)
        else:
            check_maximum_equals_naive(problem, x, algorithm)


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf, 0.0])
@variants
@max_core
def test_constant_input(problem: PoolProblem, algorithm: str, value: float, isa: str) -> None:
    """All equal: the first place of each window that lies in the input wins, with NaN the last."""
    x = torch.full(problem.input_shape, value)
    skip_if_refused(problem, x, algorithm)
    output, places = calls.run_max_pool(problem, x, algorithm)
    values, indices = torch_max_pool(problem, x)
    numerics.assert_equal(output, values)
    if value != -math.inf:  # there the padding written by hand ties with the input
        numerics.assert_same_bits(ops.max_pool_indices(places, x.shape, *problem.window), indices)
    else:
        of_zeros = calls.run_max_pool(problem, torch.zeros_like(x), algorithm)[1]
        numerics.assert_same_bits(places, of_zeros)


def test_a_window_that_sees_nothing_gives_minus_infinity() -> None:
    """Dilation 4 steps over a single place between its paddings."""
    problem = PoolProblem("blind", False, 1, (1,), (2,), stride=1, padding=((2, 3),), dilation=4)
    for algorithm in calls.POOL_ALGORITHMS:
        x = torch.ones(problem.input_shape)
        if calls.refusal(calls.explain_pool(problem, x), algorithm) is not None:
            continue
        output, places = calls.run_max_pool(problem, x, algorithm)
        assert output.flatten().tolist() == [-math.inf, -math.inf]
        assert places.flatten().tolist() == [0, 0]
        gradient = calls.run_max_pool_backward(problem, torch.ones_like(output), places, algorithm)
        numerics.assert_equal(gradient, torch.zeros_like(x))


@max_problems
@algorithms
def test_integer_dtypes(problem: PoolProblem, algorithm: str) -> None:
    """Against the same numbers in float64 (extremes included), which pools with the same winners."""
    for integer in numerics.INTEGERS:
        for channels_last in calls.layouts(problem.spatial):
            x = problem.operand(numerics.integers(integer), channels_last)
            skip_if_refused(problem, x, algorithm)
            info = torch.iinfo(integer)
            x[x == 2], x[x == -2] = min(info.max, 2**53), max(info.min, -(2**53))
            output, places = calls.run_max_pool(problem, x, algorithm)
            expected, expected_places = calls.run_max_pool(problem, x.double(), "naive")
            seen = expected != -math.inf
            numerics.assert_same_bits(output[seen], expected[seen].to(integer), f"{integer}")
            assert (output[~seen] == info.min).all()
            numerics.assert_same_bits(places, expected_places, f"places, {integer}")


def test_integers_beyond_float_precision_are_told_apart() -> None:
    x = torch.tensor([[[2**62, 2**62 + 1, 2**62 - 1, -(2**63)]]])
    for algorithm in calls.POOL_ALGORITHMS:
        problem = PoolProblem("large", False, 1, (4,), (2,), stride=2)
        if calls.refusal(calls.explain_pool(problem, x), algorithm) is None:
            assert calls.run_max_pool(problem, x, algorithm)[0].tolist() == [[[2**62 + 1, 2**62 - 1]]]


@max_core
def test_places_are_bytes_where_a_window_has_at_most_256(problem: PoolProblem) -> None:
    x = problem.operand(numerics.integers())
    skip_if_refused(problem, x, "naive")
    expected = torch.uint8 if problem.taps <= 256 else torch.int32
    assert calls.run_max_pool(problem, x, "naive")[1].dtype == expected


@max_problems
@algorithms
@calls.over_dtypes
def test_gradient_of_maximum_is_what_each_place_won(problem: PoolProblem, algorithm: str, dtype: torch.dtype) -> None:
    """Against scattering grad_output to the indices."""
    x = problem.operand(numerics.integers(dtype))
    skip_if_refused(problem, x, algorithm)
    output, places = calls.run_max_pool(problem, x, "naive")
    dy = numerics.integers(dtype, seed=5)(*problem.output_shape)
    indices = ops.max_pool_indices(places, x.shape, *problem.window)
    flat = torch.zeros(x.shape, dtype=torch.float64).flatten(2)
    won = torch.where(output == -math.inf, 0, dy).double()  # a window that saw nothing has no winner
    expected = flat.scatter_add(2, indices.flatten(2), won.flatten(2)).view(x.shape).to(dtype)
    numerics.assert_equal(calls.run_max_pool_backward(problem, dy, places, algorithm), expected)


@max_core
@variants
@calls.over_dtypes
def test_gradient_of_maximum_in_floats(problem: PoolProblem, algorithm: str, isa: str, dtype: torch.dtype) -> None:
    for channels_last in calls.layouts(problem.spatial):
        x = problem.operand(numerics.normals(dtype), channels_last)
        skip_if_refused(problem, x, algorithm)
        places = calls.run_max_pool(problem, x, "naive")[1]
        dy = numerics.normals(dtype, seed=5)(*problem.output_shape)

        def exactly(grad_output: torch.Tensor, at: torch.Tensor = places) -> torch.Tensor:
            return calls.run_max_pool_backward(problem, grad_output.double(), at, "naive")

        expected = exactly(dy)
        bound = numerics.error_bound(expected, exactly(dy.abs()), exactly(torch.ones_like(dy)), dtype)
        numerics.assert_within(calls.run_max_pool_backward(problem, dy, places, algorithm), expected, bound)


# Average -------------------------------------------------------------------------------------------------------------


def check_averages(problem: PoolProblem, input: torch.Tensor, algorithm: str) -> None:
    """Forward and backward on integers against the definition: rounded once, by the division."""
    exact = calls.reference_pool(problem.with_(divisor_override=1), input.double())  # sums
    accumulate = numerics.accumulate_dtype(input.dtype)
    expected = exact.to(accumulate) / calls.divisors(problem).to(accumulate)
    seen = calls.reference_pool(problem.with_(divisor_override=1), torch.ones_like(input)) > 0
    output = calls.run_avg_pool(problem, input, algorithm)
    numerics.assert_equal(torch.where(seen, output, 0), torch.where(seen, expected.to(input.dtype), 0), "average")
    naive = calls.run_avg_pool(problem, input, "naive")
    numerics.assert_equal(output, naive, "average, also of windows that see nothing")
    grad_output = divisible(problem, numerics.integers(input.dtype, seed=3))
    if grad_output is None:
        return
    grad_output = grad_output.contiguous(
        memory_format=calls.memory_format(problem.spatial, ops.is_channels_last(input))
    )
    numerics.assert_equal(
        calls.run_avg_pool_backward(problem, grad_output, algorithm),
        reference_gradient(problem, grad_output).to(input.dtype),
        "gradient",
    )


def reference_gradient(problem: PoolProblem, grad_output: torch.Tensor) -> torch.Tensor:
    """dy / divisor spread over the windows, by autograd through the definition of a sum, in float64."""
    x = torch.zeros(problem.input_shape, dtype=torch.float64, requires_grad=True)
    sums = calls.reference_pool(problem.with_(divisor_override=1), x)
    return torch.autograd.grad(sums, x, grad_output.double() / calls.divisors(problem))[0]


@average_problems
@variants
@calls.over_dtypes
def test_averages_of_integers(problem: PoolProblem, algorithm: str, isa: str, dtype: torch.dtype) -> None:
    for channels_last in calls.layouts(problem.spatial):
        x = problem.operand(numerics.integers(dtype), channels_last)
        skip_if_refused(problem, x, algorithm)
        check_averages(problem, x, algorithm)


@algorithms
@isas
@given(problem=cases.pool_problems(average=True), of=st.sampled_from(numerics.FLOATS), channels_last=st.booleans())
def test_averages_of_integers_on_random_geometry(
    algorithm: str, isa_name: str, problem: PoolProblem, of: torch.dtype, channels_last: bool
) -> None:
    x = problem.operand(numerics.integers(of), channels_last)
    assume(calls.refusal(calls.explain_pool(problem, x), algorithm) is None)
    with numerics.instruction_set(isa_name):
        check_averages(problem, x, algorithm)


@average_core
@variants
@calls.over_dtypes
def test_averages_of_floats(problem: PoolProblem, algorithm: str, isa: str, dtype: torch.dtype) -> None:
    """Forward sums K terms and divides; backward divides each of K terms, perhaps by a rounded reciprocal."""
    for channels_last in calls.layouts(problem.spatial):
        x = problem.operand(numerics.normals(dtype), channels_last)
        skip_if_refused(problem, x, algorithm)
        counting = problem.with_(divisor_override=1)
        positive = problem.with_(divisor_override=abs(problem.divisor_override or 0) or None)
        terms = calls.reference_pool(counting, torch.ones_like(x).double())
        expected = calls.reference_pool(problem, x.double())
        bound = numerics.error_bound(expected, calls.reference_pool(positive, x.double().abs()), terms + 1, dtype)
        numerics.assert_within(calls.run_avg_pool(problem, x, algorithm), expected, bound, "average")
        dy = numerics.normals(dtype, seed=7)(*problem.output_shape)
        dy = dy.contiguous(memory_format=calls.memory_format(problem.spatial, channels_last))
        expected = reference_gradient(problem, dy)
        terms = reference_gradient(counting, torch.ones_like(dy))
        bound = numerics.error_bound(expected, reference_gradient(positive, dy.abs()), terms + 2, dtype)
        numerics.assert_within(calls.run_avg_pool_backward(problem, dy, algorithm), expected, bound, "gradient")
