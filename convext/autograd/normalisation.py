"""Batch normalisation and the activation behind it, and their gradient in torch's operations, of any order; see
:mod:`convext.autograd`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from convext import ops
from convext.autograd.calling import Gradients

_SLOPES: dict[str, Callable[[Tensor, float, float], Tensor | float]] = {
    "none": lambda _z, _a, _b: 1.0,
    "clamp": lambda z, a, b: ~((z <= a) | (z >= b)),
    "leaky_relu": lambda z, a, _b: torch.where(z > 0, 1.0, a),
    "silu": lambda z, _a, _b: z.sigmoid() * (1 + z * (1 - z.sigmoid())),
    "hardswish": lambda z, _a, _b: torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, z / 3 + 0.5)),
}
TRAINED = tuple(_SLOPES)
"""Activations whose gradient the kernels know."""


def batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    a: float,
    b: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Differentiable gradients of ``activation(batch_norm(input))`` in training: of input, weight and bias.

    With z = xhat weight + bias and g = dy activation'(z): dbias = sum g, dweight = sum g xhat, and
    dx = weight / sqrt(var + eps) (g - mean g - xhat mean(g xhat)).
    """
    dims = [0, *range(2, input.dim())]
    per_channel = (1, -1, *[1] * (input.dim() - 2))
    kind = torch.promote_types(input.dtype, torch.float32)
    x = input.to(kind)
    centred = x - x.mean(dims, keepdim=True)
    inverse = (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    z = xhat = centred * inverse
    if weight is not None:
        z = z * weight.to(kind).reshape(per_channel)
    if bias is not None:
        z = z + bias.to(kind).reshape(per_channel)
    g = grad_output.to(kind) * _SLOPES[activation](z, a, b)
    grad_bias, grad_weight = g.sum(dims), (g * xhat).sum(dims)
    count = math.prod(input.shape) // input.shape[1]
    dx = g - (grad_bias.reshape(per_channel) + xhat * grad_weight.reshape(per_channel)) / count
    dx = dx * inverse if weight is None else dx * (inverse * weight.to(kind).reshape(per_channel))
    return (
        dx.to(input.dtype),
        None if weight is None else grad_weight.to(weight.dtype),
        None if bias is None else grad_bias.to(bias.dtype),
    )


class BatchNorm(Function):
    """input, weight, bias, eps, activation, a, b -> output, what is kept. For torch.compile: an eager call has a node
    in C++, other transforms take torch's operations. Saves the input."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        output, kept = ops.batch_norm(input, weight, bias, *rest)
        ctx.save_for_backward(input, weight, bias, kept)
        ctx.rest = rest
        ctx.mark_non_differentiable(kept)
        return output, kept

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor | None) -> Gradients:
        input, weight, bias, kept = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradients: Any = batch_norm_backward(grad_output, input, weight, bias, *ctx.rest)
        else:
            gradients = ops.batch_norm_backward(grad_output, input, kept, *ctx.rest[1:])
        return (
            gradients[0],
            None if weight is None else gradients[1],
            None if bias is None else gradients[2],
            *[None] * len(ctx.rest),
        )
