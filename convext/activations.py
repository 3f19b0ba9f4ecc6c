"""Which of torch's activation modules the kernels' epilogue knows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Activation:
    """An activation by the name that :func:`convext.functional.conv_fused` gives it, and its parameters."""

    name: str = "none"
    a: float = 0.0
    b: float = 0.0

    def __str__(self) -> str:
        if self.name == "clamp":
            return "relu" if (self.a, self.b) == (0, math.inf) else f"clamp({self.a:g}, {self.b:g})"
        return f"leaky_relu({self.a:g})" if self.name == "leaky_relu" else self.name


RELU = Activation("clamp", 0.0, math.inf)
RELU6 = Activation("clamp", 0.0, 6.0)

MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda _: RELU,
    nn.ReLU6: lambda _: RELU6,
    nn.Hardtanh: lambda m: Activation("clamp", float(m.min_val), float(m.max_val)),
    nn.LeakyReLU: lambda m: Activation("leaky_relu", float(m.negative_slope)),
    nn.Sigmoid: lambda _: Activation("sigmoid"),
    nn.SiLU: lambda _: Activation("silu"),
    nn.Tanh: lambda _: Activation("tanh"),
    nn.GELU: lambda m: Activation("gelu_tanh" if m.approximate == "tanh" else "gelu"),
    nn.Hardsigmoid: lambda _: Activation("hardsigmoid"),
    nn.Hardswish: lambda _: Activation("hardswish"),
}
