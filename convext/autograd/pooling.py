"""Pooling and its gradients as Functions; see :mod:`convext.autograd`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from convext import ops
from convext.autograd.calling import Gradients, call, for_transforms_with, needs_grad, transforming

# Max pooling -------------------------------------------------------------------------------------------------------
# window, here and below: kernel_size, stride, padding, dilation, ceil_mode; of adaptive pooling the output size and
# nothing else.


def _windows_that_see(values: Tensor, places: Tensor, window: tuple[Any, ...]) -> Tensor | None:
    """Per output place, whether its window covers any of the input; None where all do: a gap between taps must be
    wider than the input for a window to miss it."""
    kernel, stride, padding, dilation, _ceil_mode = window
    if ops.is_adaptive(stride) or all(size >= gap for size, gap in zip(values.shape[2:], dilation, strict=True)):
        return None
    seen = torch.ones((), dtype=torch.bool, device=values.device)
    for axis, size in enumerate(values.shape[2:]):
        starts = torch.arange(places.shape[2 + axis], device=values.device) * stride[axis] - padding[2 * axis]
        taps = starts.unsqueeze(1) + torch.arange(kernel[axis], device=values.device) * dilation[axis]
        seen = seen.unsqueeze(-1) & ((taps >= 0) & (taps < size)).any(1)
    return seen


def gather_places(values: Tensor, places: Tensor, *window: Any) -> Tensor:
    """values (shaped as the input) at the places that won; zero where a window saw none of the input."""
    indices = ops.max_pool_indices(places, values.shape, *window)
    images, channels, *sizes = values.shape
    planes = values.reshape(images, channels, math.prod(sizes))
    gathered = planes.gather(2, indices.reshape(images, channels, math.prod(places.shape[2:]))).reshape(places.shape)
    seen = _windows_that_see(values, places, window)
    return gathered if seen is None else gathered * seen


def _max_pool_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
    (places,) = ctx.saved_tensors
    return (None if tangent is None else gather_places(tangent, places, *ctx.window)), None


@for_transforms_with(_max_pool_jvp)
class MaxPool(Function):
    """input, window, with_places (True here), algorithm -> output, places.

    Saves the places: one byte per output where the window has at most 256."""

    @staticmethod
    def compute(input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return ops.max_pool(input, *rest)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        input, *ctx.window, _with_places, ctx.algorithm = inputs
        ctx.input_size = input.shape
        ctx.mark_non_differentiable(output[1])
        return (output[1],)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = ops.max_pool(*inputs)
        ctx.save_for_backward(*MaxPool.save(ctx, inputs, output))
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _grad_places: Tensor | None) -> Gradients:
        (places,) = ctx.saved_tensors
        grad = max_pool_backward(grad_output, places, ctx.input_size, *ctx.window, ctx.algorithm)
        return grad, *[None] * (len(ctx.window) + 2)


def max_pool(input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Differentiable max pooling -> output, places. rest: window, with_places, algorithm."""
    *window, with_places, algorithm = rest
    with_places = with_places or needs_grad(input) or (not torch.compiler.is_compiling() and transforming())
    result: tuple[Tensor, Tensor] = call(MaxPool, ops.max_pool, (input,), *window, with_places, algorithm)
    return result


def _max_pool_backward_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
    (places,) = ctx.saved_tensors
    return None if tangent is None else max_pool_backward(tangent, places, *ctx.rest)


@for_transforms_with(_max_pool_backward_jvp)
class MaxPoolBackward(Function):
    """grad_output, places, input size, window, algorithm -> gradient of the input."""

    @staticmethod
    def compute(grad_output: Tensor, places: Tensor, *rest: Any) -> Tensor:
        return ops.max_pool_backward(grad_output, places, *rest)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        _grad_output, places, *ctx.rest = inputs
        return (places,)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = ops.max_pool_backward(*inputs)
        ctx.save_for_backward(*MaxPoolBackward.save(ctx, inputs, output))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        (places,) = ctx.saved_tensors
        _input_size, *window, _algorithm = ctx.rest
        return gather_places(grad, places, *window), None, *[None] * len(ctx.rest)


def max_pool_backward(grad_output: Tensor, places: Tensor, *rest: Any) -> Tensor:
    """Differentiable gradient of max pooling. rest: input size, window, algorithm."""
    result: Tensor = call(MaxPoolBackward, ops.max_pool_backward, (grad_output, places), *rest)
    return result


# Average pooling ---------------------------------------------------------------------------------------------------
# rest: kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override, algorithm.


def _avg_pool_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
    return None if tangent is None else avg_pool(tangent, *ctx.rest)


@for_transforms_with(_avg_pool_jvp)
class AvgPool(Function):
    """input, rest -> output. Saves nothing but shapes."""

    @staticmethod
    def compute(input: Tensor, *rest: Any) -> Tensor:
        return ops.avg_pool(input, *rest)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        input, *ctx.rest = inputs
        ctx.input_size = input.shape
        return ()

    @staticmethod
    def forward(ctx: Any, input: Tensor, *rest: Any) -> Tensor:
        ctx.rest, ctx.input_size = rest, input.shape
        return ops.avg_pool(input, *rest)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        return avg_pool_backward(grad_output, ctx.input_size, *ctx.rest), *[None] * len(ctx.rest)


def avg_pool(input: Tensor, *rest: Any) -> Tensor:
    """Differentiable average pooling."""
    result: Tensor = call(AvgPool, ops.avg_pool, (input,), *rest)
    return result


def _avg_pool_backward_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
    return None if tangent is None else avg_pool_backward(tangent, ctx.input_size, *ctx.rest)


@for_transforms_with(_avg_pool_backward_jvp)
class AvgPoolBackward(Function):
    """grad_output, input size, rest -> gradient of the input."""

    @staticmethod
    def compute(grad_output: Tensor, *rest: Any) -> Tensor:
        return ops.avg_pool_backward(grad_output, *rest)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        _grad_output, ctx.input_size, *ctx.rest = inputs
        return ()

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, input_size: Any, *rest: Any) -> Tensor:
        ctx.rest, ctx.input_size = rest, input_size
        return ops.avg_pool_backward(grad_output, input_size, *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        return avg_pool(grad, *ctx.rest), *[None] * (len(ctx.rest) + 1)


def avg_pool_backward(grad_output: Tensor, input_size: Any, *rest: Any) -> Tensor:
    """Differentiable gradient of average pooling."""
    result: Tensor = call(AvgPoolBackward, ops.avg_pool_backward, (grad_output,), input_size, *rest)
    return result
