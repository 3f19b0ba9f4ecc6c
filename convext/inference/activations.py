"""Which of torch's activations the kernels' epilogue knows, as functions, methods and nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional

from convext.activations import MODULES, RELU, RELU6, Activation


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
        known = MODULES.get(type(module))  # type: ignore[arg-type]
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
