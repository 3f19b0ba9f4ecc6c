"""Gradients: each operator as a ``torch.autograd.Function``, of any order, forward and reverse, under vmap too.

A convolution ``y = F(x, w)`` is linear in each operand, and so are its two gradients ``dx = I(dy, w)`` and
``dw = W(dy, x)``. The derivative of each of the three is written with the other two:

    F(x, w):   dx = I(dy, w)    dw = W(dy, x)
    I(dy, w):  ddy = F(g, w)    dw = W(dy, g)      where g is the gradient arriving at dx
    W(dy, x):  ddy = F(x, g)    dx = I(dy, g)      where g is the gradient arriving at dw

so three kernels give every order. Average pooling and its gradient are each other's derivatives; max pooling's gradient
moves values to the places that won, its derivative gathers them back.

Every operation exists twice. The plain Function serves eager mode and torch.compile: its ``forward`` takes ``ctx``,
which costs a third of the other form. The one derived from it, made by ``_for_transforms``, serves torch.func and
forward mode: it has ``setup_context``, ``jvp`` and a batching rule, which Dynamo would refuse. Where no gradient is
asked for, the operator is called directly. What a Function saves is what its own backward reads, nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from convext import ops

_Gradients: TypeAlias = tuple[Any, ...]


def _transforming() -> bool:
    """Inside torch.func.* or a forward_ad.dual_level()?"""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _call(plain: type[Function], op: Callable[..., Any], tensors: tuple[Tensor | None, ...], *rest: Any) -> Any:
    """The operator on ``(*tensors, *rest)`` by the cheapest way that keeps every derivative."""
    if not torch.compiler.is_compiling() and _transforming():
        return plain.for_transforms.apply(*tensors, _Rest(rest))  # type: ignore[attr-defined]
    if _needs_grad(*tensors):
        return plain.apply(*tensors, *rest)
    return op(*tensors, *rest)


class _Rest:
    """The arguments of a Function that are no tensors, as one: torch.func gives every entry of a list a tangent."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values


def _for_transforms(jvp: Callable[..., Any]) -> Callable[[type[Function]], type[Function]]:
    """Adds to a plain Function the derived one, ``for_transforms``, with setup_context, jvp and a vmap rule.

    It is applied to the tensors and one ``_Rest``.
    """

    def decorate(plain: type[Any]) -> type[Function]:
        def forward(*args: Any) -> Any:
            *tensors, rest = args
            return plain.compute(*tensors, *rest.values)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            *tensors, rest = inputs
            saved = plain.save(ctx, (*tensors, *rest.values), output)
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)

        def backward(ctx: Any, *grad_outputs: Any) -> _Gradients:
            gradients = plain.backward(ctx, *grad_outputs)
            tensors = len(ctx.needs_input_grad) - 1
            return (*(gradients if isinstance(gradients, tuple) else (gradients,))[:tensors], None)

        body = {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
            "jvp": staticmethod(jvp),
            "generate_vmap_rule": True,
            "__doc__": f"{plain.__name__} for function transforms.",
        }
        plain.for_transforms = type(f"{plain.__name__}ForTransforms", (plain,), body)
        return plain

    return decorate


def _bilinear_jvp(function: Callable[..., Any]) -> Callable[..., Any]:
    """The tangent of f(a, b): f(da, b) + f(a, db)."""

    def jvp(ctx: Any, a_tangent: Tensor | None, b_tangent: Tensor | None, *_: Any) -> Tensor | None:
        a, b = ctx.saved_tensors
        terms = []
        if a_tangent is not None:
            terms.append(function(a_tangent, b, *ctx.rest))
        if b_tangent is not None:
            terms.append(function(a, b_tangent, *ctx.rest))
        return sum(terms[1:], terms[0]) if terms else None

    return jvp


# Convolution -------------------------------------------------------------------------------------------------------
# options, here and below: stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm.


def _conv_jvp(
    ctx: Any, x_tangent: Tensor | None, w_tangent: Tensor | None, bias_tangent: Tensor | None, *_: Any
) -> Tensor | None:
    x, w = ctx.saved_tensors
    out: Tensor | None = None
    if x_tangent is not None:
        out = conv(x_tangent, w, bias_tangent, *ctx.options)
    if w_tangent is not None:
        second = conv(x, w_tangent, bias_tangent if x_tangent is None else None, *ctx.options)
        out = second if out is None else out + second
    if out is None and bias_tangent is not None:
        out = bias_tangent.reshape(-1, *[1] * len(ctx.options[0])).expand(ctx.output_shape)
    return out


@_for_transforms(_conv_jvp)
class Conv(Function):
    """F: input, weight, bias (or None), options -> output."""

    @staticmethod
    def compute(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        return ops.conv_forward(input, weight, bias, *options)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        input, weight, _bias, *ctx.options = inputs
        ctx.input_size, ctx.weight_size, ctx.output_shape = input.shape, weight.shape, output.shape
        return (input, weight)

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        ctx.options, ctx.input_size, ctx.weight_size = options, input.shape, weight.shape
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        return ops.conv_forward(input, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> _Gradients:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, *rest = ctx.needs_input_grad
        return (
            conv_backward_input(grad_output, weight, ctx.input_size, *ctx.options) if needs_input else None,
            conv_backward_weight(grad_output, input, ctx.weight_size, *ctx.options) if needs_weight else None,
            conv_backward_bias(grad_output) if needs_bias else None,
            *[None] * len(rest),
        )


def conv(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """Differentiable convolution; options spelled out as for the operator."""
    result: Tensor = _call(Conv, ops.conv_forward, (input, weight, bias), *options)
    return result


class _ConvGradient(Function):
    """What I and W share: two tensors, a size, options."""

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        a, b, *ctx.rest = inputs
        ctx.sizes = a.shape, b.shape
        return (a, b)


def _input_gradient(*args: Any) -> Tensor:
    return conv_backward_input(*args)


def _weight_gradient(*args: Any) -> Tensor:
    return conv_backward_weight(*args)


@_for_transforms(_bilinear_jvp(_input_gradient))
class ConvBackwardInput(_ConvGradient):
    """I: grad_output, weight, input size, options -> gradient of the input."""

    @staticmethod
    def compute(grad_output: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        return ops.conv_backward_input(grad_output, weight, *rest)

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        ctx.rest, ctx.sizes = rest, (grad_output.shape, weight.shape)
        needs_grad, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(grad_output if needs_weight else None, weight if needs_grad else None)
        return ops.conv_backward_input(grad_output, weight, *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        grad_output, weight = ctx.saved_tensors
        _input_size, *options = ctx.rest
        needs_grad, needs_weight, *rest = ctx.needs_input_grad
        return (
            conv(grad, weight, None, *options) if needs_grad else None,
            conv_backward_weight(grad_output, grad, ctx.sizes[1], *options) if needs_weight else None,
            *[None] * len(rest),
        )


def conv_backward_input(grad_output: Tensor, weight: Tensor, input_size: Any, *options: Any) -> Tensor:
    """Differentiable gradient of a convolution's input; used forward it is the transposed convolution."""
    result: Tensor = _call(ConvBackwardInput, ops.conv_backward_input, (grad_output, weight), input_size, *options)
    return result


@_for_transforms(_bilinear_jvp(_weight_gradient))
class ConvBackwardWeight(_ConvGradient):
    """W: grad_output, input, weight size, options -> gradient of the weight."""

    @staticmethod
    def compute(grad_output: Tensor, input: Tensor, *rest: Any) -> Tensor:
        return ops.conv_backward_weight(grad_output, input, *rest)

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, input: Tensor, *rest: Any) -> Tensor:
        ctx.rest, ctx.sizes = rest, (grad_output.shape, input.shape)
        needs_grad, needs_input, *_ = ctx.needs_input_grad
        ctx.save_for_backward(grad_output if needs_input else None, input if needs_grad else None)
        return ops.conv_backward_weight(grad_output, input, *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        grad_output, input = ctx.saved_tensors
        _weight_size, *options = ctx.rest
        needs_grad, needs_input, *rest = ctx.needs_input_grad
        return (
            conv(input, grad, None, *options) if needs_grad else None,
            conv_backward_input(grad_output, grad, ctx.sizes[1], *options) if needs_input else None,
            *[None] * len(rest),
        )


def conv_backward_weight(grad_output: Tensor, input: Tensor, weight_size: Any, *options: Any) -> Tensor:
    """Differentiable gradient of a convolution's weight."""
    result: Tensor = _call(ConvBackwardWeight, ops.conv_backward_weight, (grad_output, input), weight_size, *options)
    return result


def _bias_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
    return None if tangent is None else conv_backward_bias(tangent)


@_for_transforms(_bias_jvp)
class ConvBackwardBias(Function):
    """grad_output -> gradient of the bias: the sum over images and places."""

    @staticmethod
    def compute(grad_output: Tensor) -> Tensor:
        return ops.conv_backward_bias(grad_output)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        ctx.shape = inputs[0].shape
        return ()

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor) -> Tensor:
        ctx.shape = grad_output.shape
        return ops.conv_backward_bias(grad_output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.reshape(1, -1, *[1] * (len(ctx.shape) - 2)).expand(ctx.shape)


def conv_backward_bias(grad_output: Tensor) -> Tensor:
    """Differentiable gradient of a convolution's bias."""
    result: Tensor = _call(ConvBackwardBias, ops.conv_backward_bias, (grad_output,))
    return result


def add_bias(output: Tensor, bias: Tensor) -> Tensor:
    """output (n, k, *places), fresh from a kernel, plus one value per channel; in place where that is allowed."""
    per_channel = bias.reshape(1, -1, *[1] * (output.dim() - 2))
    if torch.compiler.is_compiling() or _transforming():
        return output + per_channel
    return output.add_(per_channel)


# Max pooling -------------------------------------------------------------------------------------------------------
# window, here and below: kernel_size, stride, padding, dilation, ceil_mode.


def _windows_that_see(values: Tensor, places: Tensor, window: tuple[Any, ...]) -> Tensor | None:
    """Per output place, whether its window covers any of the input; None where all do: a gap between taps must be
    wider than the input for a window to miss it."""
    kernel, stride, padding, dilation, _ceil_mode = window
    if all(size >= gap for size, gap in zip(values.shape[2:], dilation, strict=True)):
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


@_for_transforms(_max_pool_jvp)
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
    def backward(ctx: Any, grad_output: Tensor, _grad_places: Tensor | None) -> _Gradients:
        (places,) = ctx.saved_tensors
        grad = max_pool_backward(grad_output, places, ctx.input_size, *ctx.window, ctx.algorithm)
        return grad, *[None] * (len(ctx.window) + 2)


def max_pool(input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Differentiable max pooling -> output, places. rest: window, with_places, algorithm."""
    *window, with_places, algorithm = rest
    with_places = with_places or _needs_grad(input) or (not torch.compiler.is_compiling() and _transforming())
    result: tuple[Tensor, Tensor] = _call(MaxPool, ops.max_pool, (input,), *window, with_places, algorithm)
    return result


def _max_pool_backward_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
    (places,) = ctx.saved_tensors
    return None if tangent is None else max_pool_backward(tangent, places, *ctx.rest)


@_for_transforms(_max_pool_backward_jvp)
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
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        (places,) = ctx.saved_tensors
        _input_size, *window, _algorithm = ctx.rest
        return gather_places(grad, places, *window), None, *[None] * len(ctx.rest)


def max_pool_backward(grad_output: Tensor, places: Tensor, *rest: Any) -> Tensor:
    """Differentiable gradient of max pooling. rest: input size, window, algorithm."""
    result: Tensor = _call(MaxPoolBackward, ops.max_pool_backward, (grad_output, places), *rest)
    return result


# Average pooling ---------------------------------------------------------------------------------------------------
# rest: kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override, algorithm.


def _avg_pool_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
    return None if tangent is None else avg_pool(tangent, *ctx.rest)


@_for_transforms(_avg_pool_jvp)
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
    def backward(ctx: Any, grad_output: Tensor) -> _Gradients:
        return avg_pool_backward(grad_output, ctx.input_size, *ctx.rest), *[None] * len(ctx.rest)


def avg_pool(input: Tensor, *rest: Any) -> Tensor:
    """Differentiable average pooling."""
    result: Tensor = _call(AvgPool, ops.avg_pool, (input,), *rest)
    return result


def _avg_pool_backward_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
    return None if tangent is None else avg_pool_backward(tangent, ctx.input_size, *ctx.rest)


@_for_transforms(_avg_pool_backward_jvp)
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
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        return avg_pool(grad, *ctx.rest), *[None] * (len(ctx.rest) + 1)


def avg_pool_backward(grad_output: Tensor, input_size: Any, *rest: Any) -> Tensor:
    """Differentiable gradient of average pooling."""
    result: Tensor = _call(AvgPoolBackward, ops.avg_pool_backward, (grad_output,), input_size, *rest)
    return result
