"""What the result of a pooling must not depend on: threads, the batch, strides, earlier calls. And empty inputs."""

from __future__ import annotations

import pytest
import torch

import convext
from benchmarks.shapes import PoolProblem
from convext import ops
from tests import calls, cases, numerics

CORE = cases.MAX_CORE + cases.AVERAGE_CORE


def name_of(problem: PoolProblem) -> str:
    return f"{'avg' if problem.average else 'max'}-{problem}"


core = pytest.mark.parametrize("problem", CORE, ids=name_of)
algorithms = pytest.mark.parametrize("algorithm", calls.POOL_ALGORITHMS)


def run_both(
    problem: PoolProblem, x: torch.Tensor, grad_output: torch.Tensor, algorithm: str
) -> dict[str, torch.Tensor]:
    """Every result of the problem by name."""
    if problem.average:
        return {
            "average": calls.run_avg_pool(problem, x, algorithm),
            "gradient": calls.run_avg_pool_backward(problem, grad_output, algorithm),
        }
    output, places = calls.run_max_pool(problem, x, algorithm)
    gradient = calls.run_max_pool_backward(problem, grad_output, places, algorithm)
    indices = ops.max_pool_indices(places, problem.input_shape, *problem.window)
    return {"maximum": output, "places": places, "gradient": gradient, "indices": indices}


def operands(
    problem: PoolProblem, make: numerics.Maker, channels_last: bool, algorithm: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and grad_output; skips where the algorithm refuses the problem."""
    x = problem.operand(make, channels_last)
    if algorithm != "auto":
        calls.skip_if_refused(calls.explain_pool(problem, x), algorithm)
    dy = make(*problem.output_shape)
    return x, dy.contiguous(memory_format=calls.memory_format(problem.spatial, channels_last))


@core
@calls.variants(calls.POOL_ALGORITHMS)
def test_bits_do_not_depend_on_threads_or_earlier_calls(problem: PoolProblem, algorithm: str, isa: str) -> None:
    for channels_last in calls.layouts(problem.spatial):
        x, dy = operands(problem, numerics.normals(), channels_last, algorithm)
        with numerics.threads(1):
            once = run_both(problem, x, dy, algorithm)
        for count in (1, 2, 3):
            with numerics.threads(count):
                again = run_both(problem, x, dy, algorithm)
            for what, expected in once.items():
                numerics.assert_same_bits(again[what], expected, f"{what}, {count} threads")


@core
@pytest.mark.parametrize("algorithm", ["auto", *calls.POOL_ALGORITHMS])
def test_bits_do_not_depend_on_the_batch(problem: PoolProblem, algorithm: str) -> None:
    several, single = problem.with_(batch=3), problem.with_(batch=1)
    for channels_last in calls.layouts(problem.spatial):
        x, dy = operands(several, numerics.normals(), channels_last, algorithm)
        together = run_both(several, x, dy, algorithm)
        for n in range(3):
            for what, alone in run_both(single, x[n : n + 1], dy[n : n + 1], algorithm).items():
                numerics.assert_same_bits(alone[0], together[what][n], f"{what}, image {n}")


@core
@algorithms
def test_strided_views_equal_their_contiguous_copies(problem: PoolProblem, algorithm: str) -> None:
    x, dy = operands(problem, numerics.normals(), False, algorithm)
    for (name, vx), vdy in zip(calls.views(x).items(), calls.views(dy).values(), strict=True):
        expected = run_both(problem, vx.contiguous(), vdy.contiguous(), algorithm)
        if problem.average:
            rest = (*problem.window, *calls.average_arguments(problem), algorithm)
            actual = {
                "average": ops.avg_pool(vx, *rest),
                "gradient": ops.avg_pool_backward(vdy, problem.input_shape, *rest),
            }
        else:
            rest = (problem.input_shape, *problem.window)
            output, places = ops.max_pool(vx, *problem.window, True, algorithm)
            strided = places.repeat_interleave(2, -1)[..., ::2]
            actual = {
                "maximum": output,
                "places": places,
                "gradient": ops.max_pool_backward(vdy, strided, *rest, algorithm),
                "indices": ops.max_pool_indices(strided, *rest),
            }
        for what, result in actual.items():
            numerics.assert_equal(result, expected[what], f"{what}, {name}")


@core
@algorithms
def test_results_keep_the_memory_format(problem: PoolProblem, algorithm: str) -> None:
    """Outputs that of the input; gradients that of places or grad_output (contiguous where those have one place)."""
    for channels_last in calls.layouts(problem.spatial):
        x, dy = operands(problem, numerics.integers(), channels_last, algorithm)
        expected = calls.memory_format(problem.spatial, channels_last)
        backward = calls.memory_format(problem.spatial, ops.is_channels_last(dy))
        for what, result in run_both(problem, x, dy, algorithm).items():
            wanted = expected if what in ("average", "maximum", "places") else backward
            assert result.is_contiguous(memory_format=wanted), f"{what}: strides {result.stride()}"


@pytest.mark.parametrize("problem", [p for p in CORE if p.spatial > 1], ids=name_of)
@algorithms
def test_channels_last_equals_contiguous(problem: PoolProblem, algorithm: str) -> None:
    x, dy = operands(problem, numerics.integers(), False, algorithm)
    last = {"memory_format": calls.memory_format(problem.spatial, True)}
    if problem.average:
        problem = problem.with_(divisor_override=4)  # exact, whatever the order of the sum
    expected = run_both(problem, x, dy, algorithm)
    actual = run_both(problem, x.contiguous(**last), dy.contiguous(**last), algorithm)
    for what, result in actual.items():
        numerics.assert_equal(result, expected[what], what)


@core
@algorithms
def test_an_empty_batch_gives_empty_results(problem: PoolProblem, algorithm: str) -> None:
    problem = problem.with_(batch=0)
    for channels_last in calls.layouts(problem.spatial):
        x, dy = operands(problem, numerics.integers(), channels_last, algorithm)
        for what, result in run_both(problem, x, dy, algorithm).items():
            expected = problem.input_shape if what == "gradient" else problem.output_shape
            assert result.shape == expected, what


@pytest.mark.parametrize("op", ["max", "avg"])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_no_channels_is_refused(op: str, spatial: int) -> None:
    """As torch does: only the batch of a pooling's input may be empty."""
    ours, theirs = (getattr(m, f"{op}_pool{spatial}d") for m in (convext.functional, torch.nn.functional))
    for pool in (ours, theirs):
        with pytest.raises(RuntimeError):
            pool(torch.zeros(2, 0, *[9] * spatial), 3)
