"""A convolution with what follows it: residual and activation, applied before the output is stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import functional as torch_functional

from convext import _C, autograd, ops
from convext.arguments import Ints, batched, require, require_tensor
from convext.autograd.calling import needs_grad, transforming
from convext.functional.convolution import _check_weight, _lower_precision, conv_options
from convext.padding import Padding


def _clamp(x: Tensor, a: float, b: float) -> Tensor:
    """As ReLU and its like, which have no gradient on a bend; clamp has one."""
    if (a, b) == (0.0, math.inf):
        return x.relu()
    return torch_functional.hardtanh(x, a, b) if a < b else x.clamp(a, b)


_FUNCTIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "none": lambda x, _a, _b: x,
    "clamp": _clamp,
    "leaky_relu": lambda x, a, _b: torch_functional.leaky_relu(x, a),
    "sigmoid": lambda x, _a, _b: x.sigmoid(),
    "silu": lambda x, _a, _b: torch_functional.silu(x),
    "tanh": lambda x, _a, _b: x.tanh(),
    "gelu": lambda x, _a, _b: torch_functional.gelu(x),
    "gelu_tanh": lambda x, _a, _b: torch_functional.gelu(x, approximate="tanh"),
    "hardsigmoid": lambda x, _a, _b: torch_functional.hardsigmoid(x),
    "hardswish": lambda x, _a, _b: torch_functional.hardswish(x),
}


def _apart(*tensors: Tensor | None) -> bool:
    """Whether somebody wants a derivative: then the operations run one by one, each with its own."""
    return needs_grad(*tensors) or (not torch.compiler.is_compiling() and transforming())


def activate(x: Tensor, activation: str, a: float = 0.0, b: float = 0.0) -> Tensor:
    """The activations that :func:`conv_fused` knows, by torch's functions."""
    if activation not in _FUNCTIONS:
        raise ValueError(f"conv: activation must be one of {list(_FUNCTIONS)}, got {activation!r}")
    return _FUNCTIONS[activation](x, a, b)


def conv_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    algorithm: str = "auto",
    residual: Tensor | None = None,
    activation: str = "none",
    a: float = 0.0,
    b: float = 0.0,
    residual_last: bool = False,
) -> Tensor:
    """``activation(conv(input) + residual)``, or with ``residual_last`` ``activation(conv(input)) + residual``.

    A convolution of 1 to 3 spatial dimensions (as :func:`conv1d` to :func:`conv3d`, the weight's dimensions say which)
    whose kernel adds the residual, of the output's shape, and applies the activation before it stores. ``activation``:
    "none", "clamp" (``min(max(x, a), b)``: ReLU is ``a=0, b=inf``), "leaky_relu" (slope ``a``), "sigmoid", "silu",
    "tanh", "gelu", "gelu_tanh", "hardsigmoid", "hardswish". Where a gradient is asked for it is the convolution and
    torch's operations one after the other, with all their gradients, but for a clamp or a leaky ReLU without a
    residual, whose slope the output tells. Errors: as conv2d's, and ValueError for an unknown activation, RuntimeError
    for a residual of another size.
    """
    road: Any = conv_fused_at_length if is_dynamo_compiling() else _C.conv_fused
    return road(  # type: ignore[no-any-return]
        conv_fused,
        weight.dim() - 2,
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        flip_kernel,
        algorithm,
        residual,
        activation,
        a,
        b,
        residual_last,
    )


def channel_scale(
    inputs: Sequence[Tensor], scale: Tensor, shift: Tensor, activation: str = "none", a: float = 0.0, b: float = 0.0
) -> Tensor:
    """``activation(cat(inputs, 1) * scale + shift)``: inputs (n, c_i, *places), scale and shift (sum of c_i).

    Batch normalisation in eval mode with the concatenation before it and the activation behind it, in one pass over
    memory. Activations as for :func:`conv_fused`. Raises RuntimeError for sizes that do not fit together.
    """
    if not _apart(*inputs, scale, shift):
        return ops.channel_scale(list(inputs), scale, shift, activation, float(a), float(b))
    joined = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), 1)
    per_channel = (-1, *[1] * (joined.dim() - 2))
    return activate(joined * scale.reshape(per_channel) + shift.reshape(per_channel), activation, a, b)


def conv_fused_at_length(
    _function: Any,
    spatial: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    algorithm: str,
    residual: Tensor | None,
    activation: str,
    a: float,
    b: float,
    residual_last: bool,
) -> Tensor:
    op = f"conv{spatial}d"
    require_tensor(op, "input", input)
    require_tensor(op, "weight", weight)
    require(op, "activation", activation, str, "a string")
    require(op, "residual_last", residual_last, bool, "a bool")
    _check_weight(op, weight, input, spatial)
    x, unbatched = batched(op, input, spatial)
    if residual is not None and unbatched:
        residual = residual.unsqueeze(0)
    cast_x, cast_w, bias, residual = _lower_precision(x, weight, bias, residual)
    x, weight = cast(Tensor, cast_x), cast(Tensor, cast_w)
    options = conv_options(
        op, x.shape[2:], weight.shape[2:], stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm
    )
    if (
        is_dynamo_compiling()
        and residual is None
        and needs_grad(x, weight, bias)
        and autograd.tells_slope(activation, a, b)
    ):
        apply: Any = autograd.ConvActivated.apply
        output = apply(x, weight, bias, *options, activation, float(a), float(b))
    elif _apart(x, weight, bias, residual):
        output = autograd.conv(x, weight, bias, *options)
        if residual is not None and list(residual.shape) != list(output.shape):
            raise RuntimeError(
                f"{op}: residual has size {list(residual.shape)} (expected {list(output.shape)}, the output's)"
            )
        if residual is not None and not residual_last:
            output = output + residual
        output = activate(output, activation, a, b)
        if residual is not None and residual_last:
            output = output + residual
    else:
        *sizes, name = options
        output = ops.conv_fused(x, weight, bias, residual, *sizes, activation, float(a), float(b), residual_last, name)
    return cast(Tensor, output.squeeze(0) if unbatched else output)


_C.set_long_road("conv_fused", conv_fused_at_length)
