"""Running a problem: its operands, the operators on them, and what :mod:`convext.reference` says comes out.

Operators are called directly (``torch.ops.convext.*``), with the algorithm named: what is under test is a kernel.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import convext
from benchmarks.shapes import ConvProblem, PoolProblem
from convext import _C, ops, reference
from convext.choice import DIRECTIONS, Explanation
from tests import numerics, winograd

CONV_ALGORITHMS = convext.algorithms("conv2d")
POOL_ALGORITHMS = convext.algorithms("max_pool2d")
OTHER_CONV_ALGORITHMS = [name for name in CONV_ALGORITHMS if name != "naive"]
OTHER_POOL_ALGORITHMS = [name for name in POOL_ALGORITHMS if name != "naive"]


def isas_of(algorithm: str) -> list[str]:
    """The instruction sets in which the algorithm has kernels of its own."""
    if algorithm == "naive":
        return numerics.ISAS[-1:]
    pairs = algorithm in ("auto", "im2col") and numerics.PAIRING in _C.available_isas()
    return [*numerics.ISAS, numerics.PAIRING] if pairs else numerics.ISAS


def variants(algorithms: list[str]) -> pytest.MarkDecorator:
    """A test's ``algorithm`` and fixture ``isa``: every pair, naive (plain loops, compiled once) with one only."""
    pairs = [(name, isa) for name in algorithms for isa in isas_of(name)]
    return pytest.mark.parametrize(("algorithm", "isa"), pairs, indirect=["isa"])


def problem_variants(problems: Sequence[Any], core: Sequence[Any], algorithms: list[str]) -> pytest.MarkDecorator:
    """A test's ``problem``, ``algorithm`` and fixture ``isa``: as ``variants`` for every problem. The baseline set,
    whose source is that of the others with narrower vectors, takes the core ones where the machine has a better set."""
    found = [
        pytest.param(problem, name, isa, id=f"{problem}-{name}-{isa}")
        for problem in problems
        for name in algorithms
        for isa in isas_of(name)
        if isa != "baseline" or len(numerics.ISAS) == 1 or problem in core
    ]
    return pytest.mark.parametrize(("problem", "algorithm", "isa"), found, indirect=["isa"])


def over_dtypes(test: Callable[..., None]) -> Callable[..., None]:
    """The test for every floating dtype in turn, as one: tests by the ten thousand cost more than what they run. It is
    skipped where every dtype is."""
    signature = inspect.signature(test)

    @functools.wraps(test)
    def in_turn(*args: Any, **kwargs: Any) -> None:
        def skipped(of: torch.dtype) -> pytest.skip.Exception | None:
            try:
                test(*args, **kwargs, dtype=of)
            except pytest.skip.Exception as skip:
                return skip
            except AssertionError as error:
                raise AssertionError(f"{numerics.name_of(of)}: {error}") from error
            return None

        skips = [skipped(of) for of in numerics.FLOATS]
        if all(skips):
            raise skips[0]  # type: ignore[misc]

    kept = [p for p in signature.parameters.values() if p.name != "dtype"]
    in_turn.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return in_turn


def layouts(spatial: int) -> tuple[bool, ...]:
    """channels_last or not; torch has no such format in one dimension."""
    return (False,) if spatial == 1 else (False, True)


def memory_format(spatial: int, channels_last: bool) -> torch.memory_format:
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last_3d if spatial == 3 else torch.channels_last


def views(t: Tensor) -> dict[str, Tensor]:
    """Tensors of the values of t (or of parts of it, repeated) whose strides are those of a view."""
    wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 3), float("nan"))
    wide[..., 3::2] = t
    tall = t.new_full((t.shape[0], t.shape[1] + 2, *t.shape[2:]), float("nan"))
    tall[:, 1:-1] = t
    return {
        "transposed": t.transpose(-1, 0).contiguous().transpose(-1, 0),
        "every second place": wide[..., 3::2],
        "channels of a larger tensor": tall[:, 1:-1],
        "expanded image": t[:1].expand_as(t),
        "expanded channel": t[:, :1].expand_as(t),
        "expanded number": t.flatten()[0].expand_as(t),
    }


# Convolution ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvOperands:
    """What the three directions of one problem read."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_output: Tensor

    def map(self, function: numerics.Maker) -> ConvOperands:
        bias = None if self.bias is None else function(self.bias)
        return ConvOperands(function(self.input), function(self.weight), bias, function(self.grad_output))


def conv_operands(problem: ConvProblem, make: numerics.Maker, channels_last: bool = False) -> ConvOperands:
    """Operands of new numbers; input and grad_output in the layout."""
    x, w, bias = problem.operands(make, channels_last)
    dy = make(*problem.output_shape).contiguous(memory_format=memory_format(problem.spatial, channels_last))
    return ConvOperands(x, w, bias, dy)


def run_conv(problem: ConvProblem, direction: str, operands: ConvOperands, algorithm: str) -> Tensor:
    """One direction through the named algorithm, inputs surrounded by sentinels, output and workspace poisoned."""
    x, w, bias, dy = operands.input, operands.weight, operands.bias, operands.grad_output
    options = (*problem.options, algorithm)
    with numerics.poisoned():
        if direction == "forward":
            with numerics.guarded(x, w, bias) as (x, w, bias):
                return ops.conv_forward(x, w, bias, *options)
        if direction == "backward_input":
            with numerics.guarded(dy, w) as (dy, w):
                return ops.conv_backward_input(dy, w, problem.input_shape, *options)
        with numerics.guarded(dy, x) as (dy, x):
            return ops.conv_backward_weight(dy, x, problem.weight_shape, *options)


def reference_conv(problem: ConvProblem, operands: ConvOperands) -> dict[str, Tensor]:
    """All directions by the independent definition, in float64; the gradients by autograd through it."""
    double = operands.map(lambda t: t.double())
    x, w = double.input.requires_grad_(), double.weight.requires_grad_()
    output = reference.conv(x, w, double.bias, *problem.options)
    dx, dw = torch.autograd.grad(output, (x, w), double.grad_output)
    return dict(zip(DIRECTIONS, (output.detach(), dx, dw), strict=True))


def conv_bounds(
    problem: ConvProblem,
    operands: ConvOperands,
    expected: dict[str, Tensor],
    dtype: torch.dtype,
    algorithm: str = "im2col",
) -> dict[str, Tensor]:
    """The error bound of every element of every direction: see :mod:`tests.numerics` and :mod:`tests.winograd`."""
    if algorithm == "winograd":
        return {d: winograd.error_bound(problem, operands, d, expected[d], dtype) for d in DIRECTIONS}
    magnitude = reference_conv(problem, operands.map(torch.abs))
    terms = reference_conv(problem, operands.map(torch.ones_like))
    return {d: numerics.error_bound(expected[d], magnitude[d], terms[d], dtype) for d in DIRECTIONS}


def explain_conv(problem: ConvProblem, operands: ConvOperands, direction: str = "forward") -> Explanation:
    p = problem
    keywords = {"padding_mode": p.padding_mode, "flip_kernel": p.flip_kernel, "direction": direction}
    rest = (p.stride, p.padding, p.dilation, p.groups)
    return convext.explain(f"conv{p.spatial}d", operands.input, operands.weight, None, *rest, **keywords)


def refusal(explanation: Explanation, algorithm: str) -> str | None:
    """Why the algorithm cannot do the call, in its own words; None where it can."""
    return {v.name: v.refusal for v in explanation.verdicts}[algorithm]


def directions(problem: ConvProblem, operands: ConvOperands, algorithm: str) -> list[str]:
    """The directions that the algorithm does itself; skips the test where there are none."""
    if algorithm == "auto":
        return list(DIRECTIONS)
    reasons = {d: refusal(explain_conv(problem, operands, d), algorithm) for d in DIRECTIONS}
    if all(reasons.values()):
        pytest.skip(f"{algorithm}: {reasons['forward']}")
    return [d for d in DIRECTIONS if reasons[d] is None]


def skip_if_refused(explanation: Explanation, algorithm: str) -> None:
    reason = refusal(explanation, algorithm)
    if reason is not None:
        pytest.skip(f"{algorithm}: {reason}")


# Pooling -------------------------------------------------------------------------------------------------------------


def average_arguments(problem: PoolProblem) -> tuple[object, ...]:
    """What stands between the window and the algorithm's name in the average's operators."""
    return problem.count_include_pad, problem.divisor_override


def explain_pool(problem: PoolProblem, input: Tensor) -> Explanation:
    p = problem
    op = f"{'avg' if p.average else 'max'}_pool{p.spatial}d"
    if p.adaptive:
        return convext.explain(f"adaptive_{op}", input, p.kernel)
    return convext.explain(op, input, p.kernel, p.stride, p.padding, dilation=p.dilation, ceil_mode=p.ceil_mode)


def run_max_pool(problem: PoolProblem, input: Tensor, algorithm: str) -> tuple[Tensor, Tensor]:
    """Output and places."""
    with numerics.poisoned(), numerics.guarded(input) as (x,):
        output, places = ops.max_pool(x, *problem.window, True, algorithm)
        alone, none = ops.max_pool(x, *problem.window, False, algorithm)
    numerics.assert_same_bits(alone, output, "output without places")
    assert none.numel() == 0
    return output, places


def run_max_pool_backward(problem: PoolProblem, grad_output: Tensor, places: Tensor, algorithm: str) -> Tensor:
    with numerics.poisoned(), numerics.guarded(grad_output, places) as (dy, at):
        return ops.max_pool_backward(dy, at, problem.input_shape, *problem.window, algorithm)


def run_avg_pool(problem: PoolProblem, input: Tensor, algorithm: str) -> Tensor:
    with numerics.poisoned(), numerics.guarded(input) as (x,):
        return ops.avg_pool(x, *problem.window, *average_arguments(problem), algorithm)


def run_avg_pool_backward(problem: PoolProblem, grad_output: Tensor, algorithm: str) -> Tensor:
    with numerics.poisoned(), numerics.guarded(grad_output) as (dy,):
        rest = (problem.input_shape, *problem.window, *average_arguments(problem), algorithm)
        return ops.avg_pool_backward(dy, *rest)


def reference_pool(problem: PoolProblem, input: Tensor) -> Tensor:
    """The definition, in the input's dtype."""
    kind = "avg" if problem.average else "max"
    if problem.adaptive:
        return reference.adaptive_pool(input, problem.kernel, kind, problem.divisor_override)
    kernel, stride, padding, dilation, _ceil_mode = problem.window
    output = problem.output_shape[2:]
    rest = (problem.count_include_pad, problem.divisor_override)
    return reference.pool(input, kernel, stride, padding, dilation, output, kind, *rest)


@functools.cache
def divisors(problem: PoolProblem) -> Tensor:
    """What an average divides by, per output place (n and c of size 1), float64; 1 where a window sees nothing."""
    if problem.divisor_override is not None:
        return torch.full((1, 1, *problem.output_shape[2:]), float(problem.divisor_override), dtype=torch.float64)
    seen = problem.with_(batch=1, channels=1)
    ones = torch.ones(seen.input_shape, dtype=torch.float64)
    covered = reference_pool(seen.with_(divisor_override=1), ones)
    mean = reference_pool(seen, ones)
    return torch.where(covered > 0, (covered / mean).round(), torch.ones(()).double())
