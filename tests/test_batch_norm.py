"""Batch normalisation with the activation behind it: exact where it can be, else held to a derived bound; whatever
torch's own does besides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as torch_functional

import convext
from convext import autograd, functional, ops
from tests import numerics

TRAINED = [
    ("none", 0.0, 0.0),
    ("clamp", 0.0, math.inf),
    ("clamp", 0.0, 6.0),
    ("leaky_relu", 0.25, 0.0),
    ("silu", 0.0, 0.0),
    ("hardswish", 0.0, 0.0),
]
SHAPES = [(4, 5, 3), (2, 16, 4, 4), (8, 33, 2, 2), (2, 70, 64, 64), (1, 3, 2, 4, 4), (4, 17, 1, 4097), (2, 700, 8, 8)]
"""Channels around vectors, planes around 4096 numbers, places around blocks."""
EPS = torch.finfo(torch.float32).eps


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    if not channels_last or x.dim() == 3:
        return x
    format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=format)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def plain(x: Tensor, weight: Tensor | None, bias: Tensor | None, epilogue: Any, eps: float) -> Tensor:
    """By torch's operations."""
    y = torch_functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    return functional.activate(y, *epilogue)


def fused(x: Tensor, weight: Tensor | None, bias: Tensor | None, epilogue: Any, eps: float, **given: Any) -> Tensor:
    activation, a, b = epilogue
    running = given.pop("running", (None, None))
    return functional.batch_norm(
        x, *running, weight, bias, True, given.pop("momentum", 0.1), eps, activation=activation, a=a, b=b
    )


def is_fused(y: Tensor) -> bool:
    return y.grad_fn is not None and y.grad_fn.name() == "BatchNormBackward"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_exact(shape: tuple[int, ...], channels_last: bool, isa: str) -> None:
    """A channel goes from its mean - 1 to its mean + 1 and back, so 1 / sqrt(var + 3) is 1/2, and every number is a
    small multiple of a power of two: forward, running statistics and gradients have the bits of float64, rounded once.
    Where a channel or a block of it has an odd number, or the number is no power of two, a few roundings may differ.
    No z lies on a bend."""
    channels, count = shape[1], math.prod(shape) // shape[1]
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(count).reshape(shape[0], 1, *shape[2:])
    signs = (2 * (places % 2) - 1).float()
    mean = torch.randint(-3, 4, (channels,), generator=generator).float()
    flip = torch.randint(0, 2, (channels,), generator=generator).float() * 2 - 1
    eps = 3.0
    x = in_layout(signs * per_channel(flip, signs) + per_channel(mean, signs), channels_last)
    weight = 2.0 ** torch.randint(-1, 3, (channels,), generator=generator)
    bias = torch.randint(-3, 4, (channels,), generator=generator) + 0.125
    dy = in_layout(torch.randint(-3, 4, shape, generator=generator).float(), channels_last)
    exact = count & (count - 1) == 0 and channels < 700
    for epilogue in TRAINED[:4]:
        results = []
        for dtype in (torch.float64, torch.float32):
            operands = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
            running = (torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype))
            if dtype == torch.float64:
                torch_functional.batch_norm(operands[0].detach(), *running, None, None, True, 0.5, eps)
                y = plain(*operands, epilogue, eps)
            else:
                with numerics.poisoned():
                    y = fused(*operands, epilogue, eps, running=running, momentum=0.5)
                assert is_fused(y)
                assert y.stride() == x.stride()
            with numerics.poisoned():
                results.append([y.detach(), *running, *torch.autograd.grad(y, operands, dy.to(dtype))])
        names = ("y", "running mean", "running var", "dx", "dweight", "dbias")
        for name, actual, expected in zip(names, results[1], results[0], strict=True):
            if exact or name == "dbias":
                numerics.assert_equal(actual, expected.float(), f"{epilogue} {name}")
            else:  # N is not a power of two
                scale = expected.abs().max() + 3
                numerics.assert_within(actual, expected, (expected.abs() + scale) * 8 * EPS, f"{epilogue} {name}")


def forward_bound(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Of z, per element. A block's mean is a sum of up to 4096 numbers in 16 lanes, or of 512 in groups of 4: at most
    256 + 8 roundings; the sum of squares, from it, twice as many and those of the mean. Joining them is exact to
    float64. Then z = x scale + shift, each of whose four parts is rounded once."""
    dims = [0, *range(2, x.dim())]
    wide, count = x.double(), x.numel() // x.shape[1]
    mean, magnitude = wide.mean(dims), wide.abs().mean(dims)
    variance = (wide - per_channel(mean, wide)).square().mean(dims)
    roundings = min(count, 264) * EPS / 2
    mean_error = roundings * magnitude
    variance_error = 2 * roundings * variance + mean_error.square() + 2 * roundings * mean_error * variance.sqrt()
    inverse = (variance + eps).rsqrt()
    scale = inverse * weight.double().abs()
    size = per_channel(scale, wide) * wide.abs() + per_channel(bias.double().abs() + mean.abs() * scale, wide)
    stretch = variance_error / (2 * (variance + eps))
    xhat = (wide - per_channel(mean, wide)).abs() * per_channel(scale, wide)
    return 2 * EPS * size + per_channel(scale * mean_error, wide) + per_channel(stretch, wide) * xhat


@pytest.mark.parametrize("shape", [(4, 19, 31, 33), (3, 40, 65), (2, 24, 130, 70)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_forward_within_the_bound(shape: tuple[int, ...], channels_last: bool, offset: float, isa: str) -> None:
    torch.manual_seed(0)
    x = in_layout(torch.randn(shape) * 3 + offset, channels_last)
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    bound = forward_bound(x, weight, bias, 1e-5)
    for epilogue in TRAINED:
        actual = fused(x, weight, bias, epilogue, 1e-5)
        expected = plain(x.double(), weight.double(), bias.double(), epilogue, 1e-5)
        slope = 1.2 if epilogue[0] in ("silu", "hardswish") else 1.0  # at most 1.1 and 1.5, the latter of its own line
        slope = 1.5 if epilogue[0] == "hardswish" else slope
        numerics.assert_within(actual, expected, bound * slope + 8 * EPS * expected.abs() + 1e-7, str(epilogue))


@pytest.mark.parametrize("epilogue", TRAINED, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_gradients_are_torchs(epilogue: Any, channels_last: bool, affine: bool, isa: str) -> None:
    """No further from float64 than twice as far as torch's own float32 (or two roundings)."""
    torch.manual_seed(0)
    x = in_layout(torch.randn(3, 37, 23, 29) * 2 + 1, channels_last)
    dy = in_layout(torch.randn_like(x), channels_last)
    parameters = (torch.rand(37) + 0.5, torch.randn(37)) if affine else (None, None)

    def gradients(call: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        operands = [None if t is None else t.to(dtype).requires_grad_() for t in (x, *parameters)]
        y = call(*operands, epilogue, 1e-5)
        return list(torch.autograd.grad(y, [t for t in operands if t is not None], dy.to(dtype)))

    for exact, theirs, ours in zip(
        gradients(plain, torch.float64), gradients(plain, torch.float32), gradients(fused, torch.float32), strict=True
    ):
        scale = exact.norm()
        error, allowed = (ours - exact).norm() / scale, (theirs - exact).norm() / scale
        assert error <= 2 * allowed + EPS, f"{float(error):.2e}, torch's {float(allowed):.2e}"


@pytest.mark.parametrize("epilogue", TRAINED, ids=str)
def test_the_formula_of_the_gradient(epilogue: Any) -> None:
    """What gradients of gradients are made from, in float64 against torch's; and itself differentiated."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 2, 4).double(), torch.rand(2).double() + 0.5, torch.randn(2).double()
    dy = torch.randn_like(x)
    operands = [t.requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad(plain(*operands, epilogue, 1e-5), operands, dy, create_graph=True)
    actual = autograd.batch_norm_backward(dy, *operands, 1e-5, *epilogue)
    for a, e in zip(actual, expected, strict=True):
        assert a is not None
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    seeds = [torch.randn_like(e) for e in expected]

    def weighed(gradients: Any) -> Tensor:
        return sum((g * s).sum() for g, s in zip(gradients, seeds, strict=True))  # type: ignore[return-value]

    for a, e in zip(
        torch.autograd.grad(weighed(actual), operands, materialize_grads=True, allow_unused=True),
        torch.autograd.grad(weighed(expected), operands, materialize_grads=True, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


def test_gradients_of_gradients_in_float32() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 5, 5), torch.rand(3) + 0.5, torch.randn(3)
    dy = torch.randn_like(x)
    for epilogue in TRAINED:
        twice = []
        for call, dtype in ((plain, torch.float64), (fused, torch.float32)):
            operands = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
            first = torch.autograd.grad(call(*operands, epilogue, 1e-5), operands, dy.to(dtype), create_graph=True)
            total = sum(g.square().sum() for g in first)
            twice.append(torch.autograd.grad(total, operands, materialize_grads=True, allow_unused=True))
        for exact, actual in zip(*twice, strict=True):
            torch.testing.assert_close(actual.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bits_depend_on_nothing_else(channels_last: bool) -> None:
    """Not on threads, nor from run to run."""
    torch.manual_seed(0)
    x = in_layout(torch.randn(3, 48, 45, 47), channels_last).requires_grad_()
    weight, bias, dy = torch.rand(48).requires_grad_(), torch.randn(48).requires_grad_(), torch.randn(3, 48, 45, 47)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            y = fused(x, weight, bias, ("silu", 0.0, 0.0), 1e-5)
            found.append([y, *torch.autograd.grad(y, (x, weight, bias), in_layout(dy, channels_last))])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            numerics.assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=numerics.name_of)
@pytest.mark.parametrize("channels_last", [False, True])
def test_low_precision(dtype: torch.dtype, channels_last: bool, isa: str) -> None:
    """Stored as such, summed in float32: the output is float32's, rounded once."""
    torch.manual_seed(0)
    x = in_layout(torch.randn(2, 19, 9, 11), channels_last).to(dtype).requires_grad_()
    weight, bias = torch.rand(19).requires_grad_(), torch.randn(19).requires_grad_()
    dy = in_layout(torch.randn(2, 19, 9, 11), channels_last).to(dtype)
    for epilogue in TRAINED:
        y = fused(x, weight, bias, epilogue, 1e-5)
        assert is_fused(y)
        wide = x.detach().float().requires_grad_()
        y32 = fused(wide, weight, bias, epilogue, 1e-5)
        numerics.assert_same_bits(y.detach(), y32.detach().to(dtype), str(epilogue))
        for a, e in zip(
            torch.autograd.grad(y, (x, weight, bias), dy),
            torch.autograd.grad(y32, (wide, weight, bias), dy.float()),
            strict=True,
        ):
            numerics.assert_same_bits(a, e.to(a.dtype), str(epilogue))


@pytest.mark.parametrize("channels_last", [False, True])
def test_eval_mode(channels_last: bool, isa: str) -> None:
    torch.manual_seed(0)
    x = in_layout(torch.randn(2, 21, 9, 10), channels_last)
    layer = convext.BatchNorm2d(21).eval()
    with torch.no_grad():
        for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
            t.uniform_(0.5, 2)  # type: ignore[union-attr]
        arguments = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        for epilogue in (*TRAINED, ("gelu", 0.0, 0.0), ("sigmoid", 0.0, 0.0)):
            activation, a, b = epilogue
            actual = functional.batch_norm(x, *arguments, activation=activation, a=a, b=b)
            wide = [t.double() for t in (x, *arguments)]  # type: ignore[union-attr]
            expected = functional.activate(torch_functional.batch_norm(*wide), *epilogue)
            size = x.double().abs().amax() * 3 + 8
            numerics.assert_within(actual, expected, (expected.abs() + size) * 4 * EPS, str(epilogue))
            assert actual.stride() == x.stride()
    assert not is_fused(layer(x)), "frozen statistics with a gradient are torch's"


def test_what_is_kept() -> None:
    """Of numbers per place: the input and nothing else, also with an activation."""
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weight, bias = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        fused(x, weight, bias, ("silu", 0.0, 0.0), 1e-5)
    assert [t.data_ptr() for t in kept if t.numel() >= x.numel()] == [x.data_ptr()]
    y = fused(x, weight, bias, ("clamp", 0.0, 6.0), 1e-5)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_calls_that_are_torchs() -> None:
    """What there are no kernels for: the same results, errors and derivatives."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 3, 6), torch.rand(3), torch.randn(3)
    clamp = ("clamp", 0.0, 6.0)
    for operands in (
        (x.double(), weight.double(), bias.double()),
        (x[..., 0], weight, bias),
        (x.bfloat16(), weight.bfloat16(), bias.bfloat16()),
        (x[:0], weight, bias),
    ):
        given = [t.detach().requires_grad_() for t in operands]
        actual = fused(*given, clamp, 1e-5)
        assert not is_fused(actual)
        numerics.assert_same_bits(actual, plain(*operands, clamp, 1e-5))
        actual.sum().backward()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused(x[:1, :, :1], weight, bias, clamp, 1e-5)
    with pytest.raises(ValueError, match="eps must be positive"):
        fused(x, weight, bias, clamp, 0.0)
    with pytest.raises(RuntimeError, match=r"weight|running_mean"):
        fused(x, torch.ones(4), bias, clamp, 1e-5)
    with pytest.raises(ValueError, match="activation must be one of"):
        fused(x, weight, bias, ("swish", 0.0, 0.0), 1e-5)
    unsupported = fused(x.requires_grad_(), weight, bias, ("gelu", 0.0, 0.0), 1e-5)
    assert not is_fused(unsupported)
    numerics.assert_same_bits(unsupported, plain(x, weight, bias, ("gelu", 0.0, 0.0), 1e-5))


def test_operators_check_what_they_are_given() -> None:
    x, weight, ok = torch.randn(2, 3, 4, 4), torch.ones(3), (1e-5, "clamp", 0.0, 6.0)
    y, kept = ops.batch_norm(x, weight, None, *ok)
    for wrong in (torch.ones(4), torch.ones(3, 1), torch.ones(3).double(), torch.ones(6)[::2]):
        with pytest.raises(RuntimeError, match=r"weight and bias must be contiguous float32 of size \[3\]"):
            ops.batch_norm(x, wrong, None, *ok)
    with pytest.raises(RuntimeError, match="3 to 5 dimensions"):
        ops.batch_norm(x[0, 0], weight, None, *ok)
    with pytest.raises(NotImplementedError, match="float32, float16 and bfloat16, got Double"):
        ops.batch_norm(x.double(), weight, None, *ok)
    with pytest.raises(NotImplementedError, match="gelu has no gradient here"):
        ops.batch_norm(x, weight, None, 1e-5, "gelu", 0.0, 0.0)
    with pytest.raises(ValueError, match="eps must be positive"):
        ops.batch_norm(x, weight, None, 0.0, *ok[1:])
    for wrong in (x[:1, :, :1, :1], x[:0]):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            ops.batch_norm(wrong, weight, None, *ok)
    for wrong in (y[:1], y.double(), y[:, :2]):
        with pytest.raises(RuntimeError, match="grad_output must be Float of size"):
            ops.batch_norm_backward(wrong, x, kept, *ok[1:])
    for wrong in (kept[:4], kept[:, :2], kept.double()):
        with pytest.raises(RuntimeError, match="kept must be contiguous float32 of size"):
            ops.batch_norm_backward(y, x, wrong, *ok[1:])


def test_nan_and_infinity_are_not_hidden() -> None:
    for value in (math.nan, math.inf):
        x = torch.randn(2, 3, 4, 4)
        x[1, 1, 2, 2] = value
        for channels_last in (False, True):
            y = fused(in_layout(x, channels_last), None, None, ("clamp", 0.0, 6.0), 1e-5)
            assert y[:, 1].isnan().all()
            assert y[:, [0, 2]].isfinite().all()


def test_function_transforms() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 4, 4), torch.rand(3) + 0.5, torch.randn(3)
    tangent = torch.randn_like(x)
    for epilogue in (("clamp", 0.0, 6.0), ("silu", 0.0, 0.0)):
        call = lambda t, epilogue=epilogue: fused(t, weight, bias, epilogue, 1e-5)  # noqa: E731
        theirs = lambda t, epilogue=epilogue: plain(t, weight, bias, epilogue, 1e-5)  # noqa: E731
        for a, e in zip(torch.func.jvp(call, (x,), (tangent,)), torch.func.jvp(theirs, (x,), (tangent,)), strict=True):
            numerics.assert_same_bits(a, e)
        numerics.assert_same_bits(
            torch.func.grad(lambda t, f=call: f(t).square().sum())(x),
            torch.func.grad(lambda t, f=theirs: f(t).square().sum())(x),
        )
        given = x.clone().requires_grad_()
        y = call(given)
        assert is_fused(y)
        seeds = torch.randn(3, *x.shape)
        (batched,) = torch.autograd.grad(y, given, seeds, is_grads_batched=True, retain_graph=True)
        one_by_one = torch.stack([torch.autograd.grad(y, given, s, retain_graph=True)[0] for s in seeds])
        torch.testing.assert_close(batched, one_by_one, rtol=1e-5, atol=1e-6)


# Layers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize(
    "given",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 1e-3, "momentum": 0.3}],
    ids=str,
)
def test_layers_follow_torchs(spatial: int, given: dict[str, Any]) -> None:
    torch.manual_seed(0)
    name = f"BatchNorm{spatial}d"
    ours, theirs = getattr(convext, name)(7, **given), getattr(nn, name)(7, **given)
    assert repr(ours) == repr(theirs)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x = torch.randn(2, 7, *[5] * spatial) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    for (key, a), (_, e) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-6, msg=key)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="expected"):
        ours(torch.randn(2, 7, *[5] * (spatial + 1)))


def test_running_statistics_count_as_changed() -> None:
    layer = convext.BatchNorm2d(3)
    assert layer.running_mean is not None
    before = layer.running_mean._version
    layer(torch.randn(2, 3, 4, 4))
    assert layer.running_mean._version > before
