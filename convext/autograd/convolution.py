"""The three convolutions and the gradient of the bias as Functions; see :mod:`convext.autograd`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from convext import ops
from convext.autograd.calling import Gradients, bilinear_jvp, call, for_transforms_with, transforming, without_keeping

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


@for_transforms_with(_conv_jvp)
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
        return without_keeping(needs_weight, ops.conv_forward, input, weight, bias, *options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        return _conv_gradients(ctx, grad_output, *ctx.saved_tensors)


def _conv_gradients(ctx: Any, grad_output: Tensor, input: Tensor, weight: Tensor) -> Gradients:
    """Of input, weight and bias, of a Function that keeps ``options``, ``input_size`` and ``weight_size``."""
    needs_input, needs_weight, needs_bias, *rest = ctx.needs_input_grad
    arguments = (grad_output, weight, ctx.input_size, *ctx.options)
    return (
        without_keeping(needs_weight, conv_backward_input, *arguments) if needs_input else None,
        conv_backward_weight(grad_output, input, ctx.weight_size, *ctx.options) if needs_weight else None,
        conv_backward_bias(grad_output) if needs_bias else None,
        *[None] * len(rest),
    )


def conv(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """Differentiable convolution; options spelled out as for the operator."""
    result: Tensor = call(Conv, ops.conv_forward, (input, weight, bias), *options)
    return result


class ConvActivated(Function):
    """input, weight, bias (or None), options, activation, a, b -> output of a convolution with a clamp or a leaky ReLU
    behind it, whose slope the output tells. For torch.compile: an eager call has a node in C++."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        *options, algorithm, activation, a, b = rest
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        output: Tensor = without_keeping(
            needs_weight, ops.conv_fused, input, weight, bias, None, *options, activation, a, b, False, algorithm
        )
        ctx.options, ctx.activation = (*options, algorithm), (activation, a, b)
        ctx.input_size, ctx.weight_size = input.shape, weight.shape
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        input, weight, output = ctx.saved_tensors
        # As an operator of ours: a mask of bytes, which inductor would make and keep of torch's, takes it longer to
        # store than a convolution.
        before: Any = ops.activation_backward if torch.compiler.is_compiling() else before_activation
        grad = before(grad_output, output.detach(), *ctx.activation)
        return _conv_gradients(ctx, grad, input, weight)


def before_activation(grad_output: Tensor, output: Tensor, activation: str, a: float, b: float) -> Tensor:
    """Differentiable dy activation'(x), told by ``output`` = activation(x)."""
    if activation == "leaky_relu":
        result: Tensor = torch.ops.aten.leaky_relu_backward(grad_output, output, a, True)
    elif (a, b) == (0.0, math.inf):
        result = torch.ops.aten.threshold_backward(grad_output, output, 0)
    else:
        result = torch.ops.aten.hardtanh_backward(grad_output, output, a, b)
    return result


def tells_slope(activation: str, a: float, b: float) -> bool:
    """Whether the slope of an activation can be told from its result."""
    return (activation == "clamp" and a < b) or (activation == "leaky_relu" and a > 0)


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


@for_transforms_with(bilinear_jvp(_input_gradient))
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
    def backward(ctx: Any, grad: Tensor) -> Gradients:
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
    result: Tensor = call(ConvBackwardInput, ops.conv_backward_input, (grad_output, weight), input_size, *options)
    return result


@for_transforms_with(bilinear_jvp(_weight_gradient))
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
    def backward(ctx: Any, grad: Tensor) -> Gradients:
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
    result: Tensor = call(ConvBackwardWeight, ops.conv_backward_weight, (grad_output, input), weight_size, *options)
    return result


def _bias_jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
    return None if tangent is None else conv_backward_bias(tangent)


@for_transforms_with(_bias_jvp)
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
    result: Tensor = call(ConvBackwardBias, ops.conv_backward_bias, (grad_output,))
    return result


def add_bias(output: Tensor, bias: Tensor) -> Tensor:
    """output (n, k, *places), fresh from a kernel, plus one value per channel; in place where that is allowed."""
    per_channel = bias.reshape(1, -1, *[1] * (output.dim() - 2))
    if torch.compiler.is_compiling() or transforming() or type(output) is not Tensor:
        return output + per_channel
    return output.add_(per_channel)
