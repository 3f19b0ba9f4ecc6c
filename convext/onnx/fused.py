"""A convolution's epilogue and the scale per channel in ONNX, as the operators that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from convext.onnx import convolution, sizes
from convext.onnx.sizes import Value


def _clamp(op: Any, x: Value, a: float, b: float) -> Value:
    low = None if a == -math.inf else sizes.scalar_like(a, x)
    return op.Clip(x, low, None if b == math.inf else sizes.scalar_like(b, x))


_ACTIVATIONS: dict[str, Callable[[Any, Value, float, float], Value]] = {
    "none": lambda _op, x, _a, _b: x,
    "clamp": _clamp,
    "leaky_relu": lambda op, x, a, _b: op.LeakyRelu(x, alpha=a),
    "sigmoid": lambda op, x, _a, _b: op.Sigmoid(x),
    "silu": lambda op, x, _a, _b: op.Mul(x, op.Sigmoid(x)),
    "tanh": lambda op, x, _a, _b: op.Tanh(x),
    "gelu": lambda op, x, _a, _b: op.Gelu(x),
    "gelu_tanh": lambda op, x, _a, _b: op.Gelu(x, approximate="tanh"),
    "hardsigmoid": lambda op, x, _a, _b: op.HardSigmoid(x, alpha=1 / 6, beta=0.5),
    "hardswish": lambda op, x, _a, _b: op.HardSwish(x),
}


def conv_fused(
    input: Value,
    weight: Value,
    bias: Value,
    residual: Value,
    stride: Sequence[int],
    padding: Sequence[Any],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    activation: str,
    a: float,
    b: float,
    residual_last: bool,
    algorithm: str,
) -> Any:
    op = sizes.operators()
    x = convolution.conv_forward(
        input, weight, bias, stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm
    )
    if residual is not None and not residual_last:
        x = op.Add(x, residual)
    x = _ACTIVATIONS[activation](op, x, a, b)
    return op.Add(x, residual) if residual is not None and residual_last else x


def channel_scale(inputs: Sequence[Value], scale: Value, shift: Value, activation: str, a: float, b: float) -> Any:
    op = sizes.operators()
    x = inputs[0] if len(inputs) == 1 else op.Concat(*inputs, axis=1)
    per_channel = sizes.integers(-1, *[1] * (len(inputs[0].shape) - 2))
    line = op.Add(op.Mul(x, op.Reshape(scale, per_channel)), op.Reshape(shift, per_channel))
    return _ACTIVATIONS[activation](op, line, a, b)
