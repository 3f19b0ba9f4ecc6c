"""Power-average, k-max and fractional pooling, max unpooling and their gradients; see :mod:`convext.autograd`.

Of the last three what won is kept as places or indices, so every derivative moves numbers: to where they came from, or
from there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from convext import ops
from convext.autograd.calling import Gradients, call, for_transforms_with, needs_grad, transforming
from convext.autograd.pooling import avg_pool, avg_pool_backward


def _gather(values: Tensor, indices: Tensor) -> Tensor:
    """values (n, c, *places) at the flat indices (n, c, ...) of each plane."""
    n, c, *places = values.shape
    flat = indices.reshape(n, c, math.prod(indices.shape[2:]))
    picked: Tensor = values.reshape(n, c, math.prod(places)).gather(2, flat)
    return picked.reshape(indices.shape)


# Power averages ------------------------------------------------------------------------------------------------------
# y = (m s)^(1 / p) with s the average of x^p and m the places of a window; dy/dx = (m / p) (m s)^(1 / p - 1) ds,
# ds = average of p x^(p - 1) dx, and zero where s is. rest: what follows the input in the average's operator.


def _root_slope(averages: Tensor, places: int, p: float) -> Tensor:
    """dy/ds; averages: s."""
    zero = averages == 0
    slope = (averages.masked_fill(zero, 1.0) * places).pow(1.0 / p - 1.0) * (places / p)
    return slope.masked_fill(zero, 0.0)


def _power_slope(input: Tensor, p: float) -> Tensor:
    """d(x^p)/dx"""
    return input * 2 if p == 2 else input.pow(p - 1) * p


def _lp_pool_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
    input, averages = ctx.saved_tensors
    if tangent is None:
        return None, None
    slope = _root_slope(averages, ctx.places, ctx.p)
    return avg_pool(tangent * _power_slope(input, ctx.p), *ctx.rest) * slope, None


@for_transforms_with(_lp_pool_jvp)
class LPPool(Function):
    """input, p, places of a window, rest -> y, s. Saves the input and s."""

    @staticmethod
    def compute(input: Tensor, p: float, places: int, *rest: Any) -> tuple[Tensor, Tensor]:
        averages = ops.avg_pool(input if p == 1 else input.pow(p), *rest)
        return (averages * places).pow(1.0 / p), averages

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        input, ctx.p, ctx.places, *ctx.rest = inputs
        ctx.mark_non_differentiable(output[1])
        return input, output[1]

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = LPPool.compute(*inputs)
        ctx.save_for_backward(*LPPool.save(ctx, inputs, output))
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor | None) -> Gradients:
        input, averages = ctx.saved_tensors
        if torch.is_grad_enabled() or transforming():
            grad = lp_pool_backward(grad_output, input, ctx.p, ctx.places, *ctx.rest)
            return grad, *[None] * (len(ctx.rest) + 2)
        slope = grad_output * _root_slope(averages, ctx.places, ctx.p)
        if torch.compiler.is_compiling():
            grad = avg_pool_backward(slope, input.shape, *ctx.rest) * _power_slope(input, ctx.p)
        else:
            grad = ops.avg_pool_backward(slope.mul_(ctx.p), input.shape, *ctx.rest)
            if ctx.p != 1:
                grad.mul_(input if ctx.p == 2 else input.pow(ctx.p - 1))
        return grad, *[None] * (len(ctx.rest) + 2)


def lp_pool_backward(grad_output: Tensor, input: Tensor, p: float, places: int, *rest: Any) -> Tensor:
    """Differentiable gradient of power-average pooling."""
    averages = avg_pool(input if p == 1 else input.pow(p), *rest)
    slope = grad_output * _root_slope(averages, places, p)
    return avg_pool_backward(slope, input.shape, *rest) * _power_slope(input, p)


def lp_pool(input: Tensor, p: float, places: int, *rest: Any) -> Tensor:
    """Differentiable power-average pooling, p finite and not zero."""
    if needs_grad(input) or torch.compiler.is_compiling() or transforming():
        output: Tensor = call(LPPool, LPPool.compute, (input,), p, places, *rest)[0]
        return output
    averages = ops.avg_pool(input if p == 1 else input.pow(p), *rest)
    return averages.mul_(places) if p == 1 else averages.mul_(places).pow_(1.0 / p)


# Max unpooling -------------------------------------------------------------------------------------------------------


def _max_unpool_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
    (indices,) = ctx.saved_tensors
    return None if tangent is None else max_unpool(tangent, indices, ctx.output_size)


@for_transforms_with(_max_unpool_jvp)
class MaxUnpool(Function):
    """input, indices, output_size -> output. The gradient is torch's: what lies at an input's index, also where of
    several inputs with that index another one won."""

    @staticmethod
    def compute(input: Tensor, indices: Tensor, output_size: Any) -> Tensor:
        return ops.max_unpool(input, indices, output_size)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        _input, indices, ctx.output_size = inputs
        return (indices,)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = ops.max_unpool(*inputs)
        ctx.save_for_backward(*MaxUnpool.save(ctx, inputs, output))
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        (indices,) = ctx.saved_tensors
        return max_unpool_backward(grad_output, indices), None, None


def max_unpool_backward(grad_output: Tensor, indices: Tensor) -> Tensor:
    """Differentiable gradient of max unpooling's input."""
    return _gather(grad_output, indices)


def max_unpool(input: Tensor, indices: Tensor, output_size: Any) -> Tensor:
    """Differentiable max unpooling. output_size: of the spatial dimensions."""
    result: Tensor = call(MaxUnpool, ops.max_unpool, (input, indices), output_size)
    return result


# The k greatest ------------------------------------------------------------------------------------------------------


def _k_max_pool_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
    (indices,) = ctx.saved_tensors
    return (None if tangent is None else _gather(tangent, indices)), None


@for_transforms_with(_k_max_pool_jvp)
class KMaxPool(Function):
    """input, k -> output, indices. Saves the indices."""

    @staticmethod
    def compute(input: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return ops.k_max_pool(input, k)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        ctx.input_size = inputs[0].shape
        ctx.mark_non_differentiable(output[1])
        return (output[1],)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = ops.k_max_pool(*inputs)
        ctx.save_for_backward(*KMaxPool.save(ctx, inputs, output))
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _grad_indices: Tensor | None) -> Gradients:
        (indices,) = ctx.saved_tensors
        return k_max_pool_backward(grad_output, indices, ctx.input_size, None), None


def k_max_pool_backward(grad_output: Tensor, indices: Tensor, input_size: list[int], dim: int | None) -> Tensor:
    """Differentiable gradient of k-max pooling along a dimension, or of planes (dim None). indices: the operator's, for
    lines as the channels of one image."""
    if dim is None:
        return max_unpool(grad_output, indices, [math.prod(input_size[2:])]).reshape(input_size)
    lines = grad_output.movedim(dim, -1)
    whole = max_unpool(lines.reshape(1, -1, lines.shape[-1]), indices, [input_size[dim]])
    return whole.reshape(*lines.shape[:-1], input_size[dim]).movedim(-1, dim)


def k_max_pool(input: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Differentiable k-max pooling of (n, c, *places) -> output and indices (n, c, k)."""
    result: tuple[Tensor, Tensor] = call(KMaxPool, ops.k_max_pool, (input,), k)
    return result


# Fractional max pooling ----------------------------------------------------------------------------------------------


def _fractional_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
    places, samples = ctx.saved_tensors
    if tangent is None:
        return None, None
    return _gather(tangent, ops.fractional_max_pool_indices(places, samples, ctx.input_size, ctx.kernel_size)), None


@for_transforms_with(_fractional_jvp)
class FractionalMaxPool(Function):
    """input, samples, kernel_size, output_size, with_places (True here) -> output, places. Saves the places, one byte
    per output where the window has at most 256, and the samples."""

    @staticmethod
    def compute(*inputs: Any) -> tuple[Tensor, Tensor]:
        return ops.fractional_max_pool(*inputs)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        input, samples, ctx.kernel_size, _output_size, _with_places = inputs
        ctx.input_size = input.shape
        ctx.mark_non_differentiable(output[1])
        return output[1], samples

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = ops.fractional_max_pool(*inputs)
        ctx.save_for_backward(*FractionalMaxPool.save(ctx, inputs, output))
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _grad_places: Tensor | None) -> Gradients:
        places, samples = ctx.saved_tensors
        grad = fractional_max_pool_backward(grad_output, places, samples, ctx.input_size, ctx.kernel_size)
        return grad, None, None, None, None


def fractional_max_pool(
    input: Tensor, samples: Tensor, kernel_size: Any, output_size: Any, with_places: bool
) -> tuple[Tensor, Tensor]:
    """Differentiable fractional max pooling -> output, places."""
    with_places = with_places or needs_grad(input) or (not torch.compiler.is_compiling() and transforming())
    rest = (kernel_size, output_size, with_places)
    result: tuple[Tensor, Tensor] = call(FractionalMaxPool, ops.fractional_max_pool, (input, samples), *rest)
    return result


def _fractional_backward_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
    places, samples = ctx.saved_tensors
    return None if tangent is None else fractional_max_pool_backward(tangent, places, samples, *ctx.rest)


@for_transforms_with(_fractional_backward_jvp)
class FractionalMaxPoolBackward(Function):
    """grad_output, places, samples, input size, kernel_size -> gradient of the input."""

    @staticmethod
    def compute(*inputs: Any) -> Tensor:
        return ops.fractional_max_pool_backward(*inputs)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        _grad_output, places, samples, *ctx.rest = inputs
        return places, samples

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = ops.fractional_max_pool_backward(*inputs)
        ctx.save_for_backward(*FractionalMaxPoolBackward.save(ctx, inputs, output))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        places, samples = ctx.saved_tensors
        return _gather(grad, ops.fractional_max_pool_indices(places, samples, *ctx.rest)), None, None, None, None


def fractional_max_pool_backward(grad_output: Tensor, places: Tensor, samples: Tensor, *rest: Any) -> Tensor:
    """Differentiable gradient of fractional max pooling. rest: input size, kernel_size."""
    operands = (grad_output, places, samples)
    result: Tensor = call(FractionalMaxPoolBackward, ops.fractional_max_pool_backward, operands, *rest)
    return result
