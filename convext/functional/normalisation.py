"""Batch normalisation and the activation behind it, in as few passes over memory as there can be."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import functional as torch_functional

from convext import _C
from convext.arguments import overridden
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
    output = torch_functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return activate(output, activation, a, b)


_C.set_long_road("batch_norm", _batch_norm)
