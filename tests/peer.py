"""torch as the peer: the same call through both libraries, and how far each may be from the true value.

The true value is torch's own function in float64. Every result that is linear in each operand gets its bound from
:mod:`tests.numerics`: the magnitude is the same function of the absolute values, the number of terms the same function
of ones, gradients included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import convext
from tests import numerics

Function = Callable[..., Tensor]

CONVOLUTIONS = tuple(f"Conv{d}d" for d in (1, 2, 3))
TRANSPOSED = tuple(f"ConvTranspose{d}d" for d in (1, 2, 3))
MAX_POOLS = tuple(f"MaxPool{d}d" for d in (1, 2, 3))
AVERAGE_POOLS = tuple(f"AvgPool{d}d" for d in (1, 2, 3))


def spatial_of(name: str) -> int:
    """The number of spatial dimensions in a name such as Conv2d or max_pool2d."""
    return int(name[-2])


def small_size(spatial: int) -> tuple[int, ...]:
    """A spatial size that is small, odd and even, and differs in every dimension."""
    return ((13,), (9, 8), (6, 7, 5))[spatial - 1]


def results(function: Function, operands: Sequence[Tensor], grad_output: Tensor) -> list[Tensor]:
    """[output, gradient of each operand], operands keeping their strides."""
    leaves = [t.detach().requires_grad_() for t in operands]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def expected_and_bounds(
    function: Function, operands: Sequence[Tensor], grad_output: Tensor, terms: int | None = None, stored: int = 1
) -> tuple[list[Tensor], list[Tensor]]:
    """The true results of torch's ``function`` and the bound of each element, for operands' dtype.

    terms: the number of roundings in one element, where ones do not count them (averages). stored: how often the output
    is rounded to a 16-bit dtype on its way.
    """
    double = [t.double() for t in operands]
    expected = results(function, double, grad_output.double())
    magnitude = results(function, [t.abs() for t in double], grad_output.double().abs())
    counted = results(function, [torch.ones_like(t) for t in double], torch.ones_like(grad_output).double())
    if terms is not None:
        counted = [torch.full_like(t, terms) for t in counted]
    dtype = operands[0].dtype
    bounds = [numerics.error_bound(e, m.abs(), n, dtype) for e, m, n in zip(expected, magnitude, counted, strict=True)]
    if stored > 1 and dtype != numerics.accumulate_dtype(dtype):
        info = torch.finfo(dtype)
        sums = 1 + numerics.gamma(counted[0], numerics.accumulate_dtype(dtype))
        relative = sums * (1 + info.eps / 2) ** stored - 1
        bounds[0] = magnitude[0] * relative + stored * info.smallest_normal * info.eps / 2
    return expected, bounds


def assert_agree(
    ours: Function,
    theirs: Function,
    operands: Sequence[Tensor],
    make: numerics.Maker,
    terms: int | None = None,
    stored: int = 1,
) -> None:
    """Values, gradients, shapes and dtypes of ``ours`` under the bound; torch's too where it sums in the same dtype."""
    dtype = operands[0].dtype
    grad_output = make(*theirs(*[t.double() for t in operands]).shape)
    expected, bounds = expected_and_bounds(theirs, operands, grad_output, terms, stored)
    actual = results(ours, operands, grad_output)
    for i, (a, e, bound) in enumerate(zip(actual, expected, bounds, strict=True)):
        what = "output" if i == 0 else f"gradient of operand {i - 1}"
        assert a.dtype == dtype, f"{what}: {a.dtype}"
        numerics.assert_within(a, e, bound, what)
    if dtype == numerics.accumulate_dtype(dtype):
        for a, e, bound in zip(results(theirs, operands, grad_output), expected, bounds, strict=True):
            numerics.assert_within(a, e, bound, "torch")


def assert_near(
    ours: Function,
    theirs: Function,
    operands: Sequence[Tensor],
    make: numerics.Maker,
    limit: float,
    cancels: bool = False,
) -> None:
    """Values and gradients of ``ours`` lie norm-wise within ``limit`` unit roundoffs of what they are summed in, and
    one of what they are stored in. cancels: sums may be of a few terms that cancel; then of the same sums of absolute
    values."""
    dtype = operands[0].dtype
    double = [t.double() for t in operands]
    grad_output = make(*theirs(*double).shape)
    allowed = limit * torch.finfo(numerics.accumulate_dtype(dtype)).eps / 2
    if dtype != numerics.accumulate_dtype(dtype):
        allowed += torch.finfo(dtype).eps
    expected = results(theirs, double, grad_output.double())
    whole = results(theirs, [t.abs() for t in double], grad_output.double().abs()) if cancels else expected
    for i, (a, e, w) in enumerate(zip(results(ours, operands, grad_output), expected, whole, strict=True)):
        assert a.dtype == dtype
        error = float((a.double() - e).norm() / w.norm()) if w.any() else float(a.norm())
        assert error <= allowed, f"result {i}: norm-wise error {error:.3g}, allowed {allowed:.3g}"


def assert_equal_on_integers(
    ours: Function,
    theirs: Function,
    operands: Sequence[Tensor],
    same: Callable[[Tensor, Tensor, str], None] = numerics.assert_equal,
) -> None:
    """Output and gradients are the exact ones, rounded once. operands hold small integers."""
    dtype = operands[0].dtype
    double = [t.double() for t in operands]
    grad_output = numerics.integers(dtype, largest=1)(*theirs(*double).shape)
    for a, e in zip(results(ours, operands, grad_output), results(theirs, double, grad_output.double()), strict=True):
        same(a, e.to(dtype), "result")


def pair(
    name: str, *args: object, algorithm: str = "auto", **kwargs: object
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """convext's layer and torch's of that name, with the same parameters."""
    ours = getattr(convext, name)(*args, algorithm=algorithm, **kwargs)
    theirs = getattr(torch.nn, name)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def as_function(layer: torch.nn.Module) -> Function:
    """layer(input) as a function of (input, *parameters)."""
    names = [name for name, _ in layer.named_parameters()]
    return lambda x, *parameters: functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))


def layer_operands(layer: torch.nn.Module, input: Tensor, make: numerics.Maker) -> list[Tensor]:
    """The input, and new numbers for every parameter."""
    return [input, *(make(*p.shape) for p in layer.parameters())]


def skip_if_refused(layer: torch.nn.Module, input: Tensor) -> None:
    """Skips the test, in the algorithm's own words, where the layer's algorithm cannot do the call."""
    asked = layer.algorithm
    layer.algorithm = "auto"
    try:
        verdicts = convext.explain(layer, input).verdicts
    finally:
        layer.algorithm = asked
    refusals = {v.name: v.refusal for v in verdicts}
    if refusals.get(asked) is not None:
        pytest.skip(f"{asked}: {refusals[asked]}")
