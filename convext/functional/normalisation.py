"""Batch normalisation and the activation behind it, in as few passes over memory as there can be."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import functional as torch_functional

from convext import _C, autograd
from convext.arguments import overridden
from convext.autograd.normalisation import TRAINED
from convext.functional.fused import activate


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "none",
    a: float = 0.0,
    b: float = 0.0,
) -> Tensor:
    """:func:`torch.nn.functional.batch_norm` and then an activation, one of those that :func:`conv_fused` knows.

    Shapes: input (n, c, *places), everything else (c). On the CPU, for float32, bfloat16 and float16 inputs of 1 to 3
    spatial dimensions with float32 parameters, both are one kernel, in eval mode without a gradient, in training for
    the activations "none", "clamp", "leaky_relu", "silu" and "hardswish"; then neither the normalised input nor what
    the activation would keep is saved for the gradient. Any other call is torch's own operations. Statistics are summed
    in blocks about their own means and joined in float64; bits depend on nothing but the input. Errors are torch's.
    """
    road: Any = _batch_norm if is_dynamo_compiling() else _C.batch_norm
    return road(  # type: ignore[no-any-return]
        batch_norm, 1, input, running_mean, running_var, weight, bias, training, momentum, eps, activation, a, b
    )


def _batch_norm(
    function: Any,
    _: int,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    a: float,
    b: float,
) -> Tensor:
    arguments = (input, running_mean, running_var, weight, bias, training, momentum, eps, activation, a, b)
    answer = overridden(function, arguments, "activation", "a", "b")
    if answer is not NotImplemented:
        return answer  # type: ignore[no-any-return]
    fits = training and eps > 0 and activation in TRAINED
    if is_dynamo_compiling() and fits and _has_kernels(input, running_mean, running_var, weight, bias):
        return _compiled(input, running_mean, running_var, weight, bias, momentum, eps, activation, a, b)
    output = torch_functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return activate(output, activation, a, b)


def _compiled(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    *rest: Any,
) -> Tensor:
    apply: Any = autograd.BatchNorm.apply
    output, kept = apply(input, weight, bias, *rest)
    for running, now in ((running_mean, kept[0]), (running_var, kept[4])):
        if running is not None:
            running.lerp_(now, momentum)
    return output  # type: ignore[no-any-return]


def _has_kernels(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *others: Tensor | None
) -> bool:
    """What normalises() of ops_batch_norm.cpp asks, as far as a compiler may know it."""
    numbers = (running_mean, running_var, *others)
    return (
        input.device.type == "cpu"
        and input.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and 3 <= input.dim() <= 5
        and math.prod(input.shape) > input.shape[1]
        and (running_mean is None) == (running_var is None)
        and all(t is None or (t.dtype == torch.float32 and t.shape == (input.shape[1],)) for t in numbers)
    )


_C.set_long_road("batch_norm", _batch_norm)
