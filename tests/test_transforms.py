"""torch.func over every operation: grad, vjp, jvp, jacobians, hessian, vmap and their compositions; forward mode.

A vmapped call equals the loop over its calls; a derivative equals torch's own of torch's function, in float64 and under
the bound of tests/numerics.py where rounding may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import convext.functional as C
from tests import numerics

# name: function, shapes of the operands, keywords that torch knows too.
CASES: dict[str, tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "conv1d": ("conv1d", ((2, 4, 6), (6, 2, 3), (6,)), {"padding": 1, "groups": 2}),
    "conv2d": ("conv2d", ((2, 2, 4, 5), (3, 2, 3, 2), (3,)), {"stride": 2, "padding": 1}),
    "conv3d": ("conv3d", ((1, 2, 3, 3, 4), (2, 2, 2, 2, 2), (2,)), {"dilation": 2, "padding": 1}),
    "conv2d_unbatched": ("conv2d", ((2, 4, 5), (3, 2, 3, 2), (3,)), {}),
    "conv_transpose1d": ("conv_transpose1d", ((2, 2, 4), (2, 3, 3), (3,)), {"stride": 2, "output_padding": 1}),
    "conv_transpose2d": ("conv_transpose2d", ((1, 4, 3, 4), (4, 2, 3, 2), (4,)), {"stride": 2, "groups": 2}),
    "conv_transpose3d": ("conv_transpose3d", ((1, 2, 2, 3, 2), (2, 1, 2, 2, 2), (1,)), {"padding": 1}),
    "max_pool1d": ("max_pool1d", ((2, 2, 9),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "max_pool2d": ("max_pool2d", ((2, 2, 5, 6),), {"kernel_size": 2, "stride": 1, "dilation": 2}),
    "max_pool3d": ("max_pool3d", ((1, 2, 3, 4, 4),), {"kernel_size": 2, "ceil_mode": True}),
    "avg_pool1d": ("avg_pool1d", ((2, 2, 8),), {"kernel_size": 2, "stride": 1, "padding": 1}),
    "avg_pool2d": ("avg_pool2d", ((2, 2, 6, 8),), {"kernel_size": 4, "stride": 2}),
    "avg_pool3d": ("avg_pool3d", ((1, 2, 4, 4, 2),), {"kernel_size": 2, "divisor_override": 2}),
}

each_case = pytest.mark.parametrize("case", CASES)


def both(case: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]:
    """convext's function, torch's, and operands holding small integers: all that follows is then exact in float64.

    (The averages' windows have a power of two of places, so dividing is exact as well.)
    """
    name, shapes, kwargs = CASES[case]
    if case == "avg_pool1d":
        kwargs = {**kwargs, "count_include_pad": True}
    make = numerics.integers(torch.float64)
    ours, theirs = ((lambda *t, of=of: getattr(of, name)(*t, **kwargs)) for of in (C, F))
    return ours, theirs, [make(*shape) for shape in shapes]


def like(tensors: list[Tensor], seed: int) -> tuple[Tensor, ...]:
    make = numerics.integers(torch.float64, seed=seed)
    return tuple(make(*t.shape) for t in tensors)


def scalar(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A cubic function of the output: no derivative up to the third is constant."""

    def total(*tensors: Tensor) -> Tensor:
        y = function(*tensors)
        return (y * y * y / 2 + y * y).sum()

    return total


def assert_all_equal(actual: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        numerics.assert_equal(actual, expected)
        return
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert_all_equal(a, e)


@each_case
def test_grad(case: str) -> None:
    ours, theirs, operands = both(case)
    numbers = tuple(range(len(operands)))
    assert_all_equal(grad(scalar(ours), numbers)(*operands), grad(scalar(theirs), numbers)(*operands))


@each_case
def test_vjp_and_jvp(case: str) -> None:
    ours, theirs, operands = both(case)
    (output, pull), (expected, torch_pull) = vjp(ours, *operands), vjp(theirs, *operands)
    numerics.assert_equal(output, expected)
    (cotangent,) = like([output], 7)
    assert_all_equal(pull(cotangent), torch_pull(cotangent))
    tangents = like(operands, 8)
    assert_all_equal(jvp(ours, tuple(operands), tangents), jvp(theirs, tuple(operands), tangents))


@each_case
def test_jvp_of_one_operand(case: str) -> None:
    ours, theirs, operands = both(case)
    for i, tangent in enumerate(like(operands, 9)):
        left, right = operands[:i], operands[i + 1 :]
        ours_of, theirs_of = ((lambda t, of=of, left=left, right=right: of(*left, t, *right)) for of in (ours, theirs))
        assert_all_equal(jvp(ours_of, (operands[i],), (tangent,)), jvp(theirs_of, (operands[i],), (tangent,)))


@each_case
def test_jacobians(case: str) -> None:
    ours, theirs, operands = both(case)
    for i in range(len(operands)):
        expected = jacrev(theirs, i)(*operands)
        assert_all_equal(jacrev(ours, i)(*operands), expected)
        assert_all_equal(jacfwd(ours, i)(*operands), expected)


@pytest.mark.parametrize("case", ["conv1d", "conv2d_unbatched", "conv_transpose2d", "max_pool1d", "avg_pool2d"])
def test_hessian(case: str) -> None:
    """Forward over reverse; and reverse over reverse, reverse over forward, forward over forward."""
    ours, theirs, operands = both(case)
    for i in range(len(operands)):
        expected = hessian(scalar(theirs), i)(*operands)
        assert_all_equal(hessian(scalar(ours), i)(*operands), expected)
        assert_all_equal(jacrev(jacrev(scalar(ours), i), i)(*operands), expected)
        assert_all_equal(jacrev(jacfwd(scalar(ours), i), i)(*operands), expected)
        assert_all_equal(jacfwd(jacfwd(scalar(ours), i), i)(*operands), expected)


# vmap ----------------------------------------------------------------------------------------------------------------


def batched(
    operands: list[Tensor], which: tuple[bool, ...], at: int, size: int = 3
) -> tuple[list[Tensor], tuple[Any, ...]]:
    """New operands with a batch dimension at ``at`` (from the end if negative) where ``which`` says, and in_dims."""
    make = numerics.integers(torch.float64, seed=11)
    out, dims = [], []
    for tensor, wanted in zip(operands, which, strict=True):
        if not wanted:
            out.append(tensor)
            dims.append(None)
            continue
        place = min(at, tensor.dim()) if at >= 0 else at
        out.append(make(size, *tensor.shape).movedim(0, place))
        dims.append(place)
    return out, tuple(dims)


def looped(function: Callable[..., Any], operands: list[Tensor], in_dims: tuple[Any, ...]) -> Any:
    """What vmap should give: call by call, stacked."""
    size = next(t.shape[d] for t, d in zip(operands, in_dims, strict=True) if d is not None)
    calls = [
        function(*(t if d is None else t.select(d, i) for t, d in zip(operands, in_dims, strict=True)))
        for i in range(size)
    ]
    if isinstance(calls[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*calls, strict=True))
    return torch.stack(calls)


def _choices(count: int) -> list[tuple[bool, ...]]:
    return [tuple(bool(bits >> i & 1) for i in range(count)) for bits in range(1, 2**count)]


@each_case
@pytest.mark.parametrize("at", [0, 1, -1])
def test_vmap_over_any_operands(case: str, at: int) -> None:
    ours, _, operands = both(case)
    for which in _choices(len(operands)):
        tensors, in_dims = batched(operands, which, at)
        numerics.assert_equal(vmap(ours, in_dims)(*tensors), looped(ours, tensors, in_dims))


@each_case
def test_vmap_puts_its_dimension_where_asked(case: str) -> None:
    ours, _, operands = both(case)
    tensors, in_dims = batched(operands, (True,) * len(operands), 0)
    numerics.assert_equal(vmap(ours, in_dims, out_dims=1)(*tensors), looped(ours, tensors, in_dims).movedim(0, 1))


@each_case
def test_vmap_in_vmap(case: str) -> None:
    ours, _, operands = both(case)
    make = numerics.integers(torch.float64, seed=12)
    tensors = [make(2, 3, *t.shape) for t in operands]
    expected = torch.stack([looped(ours, [t[i] for t in tensors], (0,) * len(tensors)) for i in range(2)])
    numerics.assert_equal(vmap(vmap(ours))(*tensors), expected)


@pytest.mark.parametrize("case", ["max_pool1d", "max_pool2d", "max_pool3d"])
def test_vmap_of_max_pooling_with_indices(case: str) -> None:
    name, shapes, kwargs = CASES[case]
    x = numerics.integers(torch.float64)(3, *shapes[0])

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return getattr(C, name)(x, **kwargs, return_indices=True)

    assert_all_equal(vmap(function)(x), looped(function, [x], (0,)))


@each_case
def test_gradients_per_sample(case: str) -> None:
    """vmap(grad): the gradient of every operand for every entry of the batch."""
    ours, _, operands = both(case)
    numbers = tuple(range(len(operands)))
    for which in _choices(len(operands)):
        tensors, in_dims = batched(operands, which, 0)
        function = grad(scalar(ours), numbers)
        assert_all_equal(vmap(function, in_dims)(*tensors), looped(function, tensors, in_dims))


@each_case
def test_grad_of_vmap(case: str) -> None:
    ours, theirs, operands = both(case)
    tensors, in_dims = batched(operands, (True,) * len(operands), 0)
    numbers = tuple(range(len(operands)))
    assert_all_equal(
        grad(scalar(vmap(ours, in_dims)), numbers)(*tensors),
        grad(scalar(lambda *t: looped(theirs, list(t), in_dims)), numbers)(*tensors),
    )


@each_case
def test_jvp_in_vmap(case: str) -> None:
    ours, _, operands = both(case)
    tensors, in_dims = batched(operands, (True,) * len(operands), 0)
    tangents = like(tensors, 13)

    def tangent(*both: Tensor) -> Tensor:
        half = len(both) // 2
        return jvp(ours, both[:half], both[half:])[1]

    together = [*tensors, *tangents]
    numerics.assert_equal(vmap(tangent, in_dims * 2)(*together), looped(tangent, together, in_dims * 2))


@each_case
def test_vmap_in_jvp(case: str) -> None:
    ours, _, operands = both(case)
    tensors, in_dims = batched(operands, (True,) * len(operands), 0)
    tangents = like(tensors, 14)
    expected = torch.stack(
        [jvp(ours, tuple(t[i] for t in tensors), tuple(t[i] for t in tangents))[1] for i in range(3)]
    )
    numerics.assert_equal(jvp(vmap(ours, in_dims), tuple(tensors), tangents)[1], expected)


# Forward mode --------------------------------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad], ids=["grad", "no_grad"])
def test_dual_numbers(case: str, mode: Any) -> None:
    """A tangent goes through, with reverse mode switched on or off."""
    ours, theirs, operands = both(case)
    tangents = like(operands, 15)
    with mode(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(operands, tangents, strict=True)]
        actual, expected = (forward_ad.unpack_dual(f(*duals)) for f in (ours, theirs))
        numerics.assert_equal(actual.primal, expected.primal)
        assert actual.tangent is not None
        numerics.assert_equal(actual.tangent, expected.tangent)


@each_case
def test_a_call_without_tangents_in_a_dual_level_is_an_ordinary_one(case: str) -> None:
    ours, _, operands = both(case)
    expected = ours(*operands)
    with forward_ad.dual_level():
        actual = forward_ad.unpack_dual(ours(*operands))
    assert actual.tangent is None
    numerics.assert_equal(actual.primal, expected)


def test_symmetric_padding_and_flipped_kernels_transform_too() -> None:
    """What torch cannot do: held to the loop."""
    make = numerics.integers(torch.float64)
    x, w = make(3, 1, 2, 4, 4), make(3, 2, 2, 3, 3)

    def function(x: Tensor, w: Tensor) -> Tensor:
        return C.conv2d(x, w, padding=((1, 2), (0, 1)), padding_mode="symmetric", flip_kernel=True)

    per_sample = grad(scalar(function), (0, 1))
    assert_all_equal(vmap(per_sample)(x, w), looped(per_sample, [x, w], (0, 0)))


def test_a_maximum_over_nothing_has_no_derivative() -> None:
    """Dilation and padding can make a window miss the input: zero in forward mode as in reverse, and in both orders."""
    x = torch.full((1, 1, 1, 1), 7.0, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        return C.max_pool2d(x, (1, 2), 1, (0, 1), (1, 2))

    assert function(x).item() == -float("inf")
    zero = torch.zeros_like(x)
    numerics.assert_equal(vjp(function, x)[1](torch.ones_like(x))[0], zero)
    numerics.assert_equal(jvp(function, (x,), (torch.ones_like(x),))[1], zero)
    reverse = vjp(function, x)[1]
    numerics.assert_equal(vjp(reverse, torch.ones_like(x))[1]((torch.ones_like(x),))[0], zero)
