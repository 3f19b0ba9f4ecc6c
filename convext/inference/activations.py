"""Which of torch's activations the kernels' epilogue knows, as modules, functions and methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional


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

_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
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


def _clamp(low: Any = None, high: Any = None) -> Activation | None:
    limits = [low, high]
    if any(isinstance(v, Node | torch.Tensor) for v in limits):
        return None
    return Activation("clamp", -math.inf if low is None else float(low), math.inf if high is None else float(high))


# What the arguments behind the input are called.
_FUNCTIONS: dict[Any, tuple[tuple[str, ...], Callable[..., Activation | None]]] = {
    torch.relu: ((), lambda: RELU),
    functional.relu: (("inplace",), lambda **_: RELU),
    functional.relu6: (("inplace",), lambda **_: RELU6),
    functional.hardtanh: (
        ("min_val", "max_val", "inplace"),
        lambda min_val=-1.0, max_val=1.0, **_: Activation("clamp", float(min_val), float(max_val)),
    ),
    functional.leaky_relu: (
        ("negative_slope", "inplace"),
        lambda negative_slope=0.01, **_: Activation("leaky_relu", float(negative_slope)),
    ),
    torch.sigmoid: ((), lambda: Activation("sigmoid")),
    functional.sigmoid: ((), lambda: Activation("sigmoid")),
    functional.silu: (("inplace",), lambda **_: Activation("silu")),
    torch.tanh: ((), lambda: Activation("tanh")),
    functional.tanh: ((), lambda: Activation("tanh")),
    functional.gelu: ((), lambda approximate="none": Activation("gelu_tanh" if approximate == "tanh" else "gelu")),
    functional.hardsigmoid: (("inplace",), lambda **_: Activation("hardsigmoid")),
    functional.hardswish: (("inplace",), lambda **_: Activation("hardswish")),
    torch.clamp: (("min", "max"), lambda min=None, max=None: _clamp(min, max)),
    torch.clip: (("min", "max"), lambda min=None, max=None: _clamp(min, max)),
}
_METHODS: dict[str, Any] = {
    name: _FUNCTIONS[function]
    for name, function in (
        *((name, torch.relu) for name in ("relu", "relu_")),
        *((name, torch.sigmoid) for name in ("sigmoid", "sigmoid_")),
        *((name, torch.tanh) for name in ("tanh", "tanh_")),
        *((name, torch.clamp) for name in ("clamp", "clamp_", "clip", "clip_")),
    )
}


def activation_of(node: Node, module: nn.Module | None) -> Activation | None:
    """What a node of a graph applies to its first argument, if the epilogue knows it. ``module``: what it calls."""
    if node.op == "call_module":
        known = _MODULES.get(type(module))  # type: ignore[arg-type]
        return None if known is None or len(node.args) != 1 or node.kwargs else known(module)
    entry = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    if node.op == "call_method":
        entry = _METHODS.get(str(node.target))
    if entry is None or not node.args:
        return None
    names, make = entry
    values = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    if len(node.args) - 1 > len(names) or any(isinstance(v, Node) for v in values.values()):
        return None
    try:
        return make(**values)
    except TypeError:  # an argument that this function does not know
        return None
