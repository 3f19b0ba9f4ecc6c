"""The graph of an optimised model as a program that C++ runs (csrc/program.cpp): the same calls in the same order,
without Python between layers of the types in ``_ROADS``."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from convext import _C, nn
from convext.inference.modules import Chain, ChannelScale, FusedConv

Source = tuple[Any, ...]


def _attributes(*names: str) -> list[Source]:
    return [("attribute", *name.split(".")) for name in names]


_INPUT, _ALGORITHM = ("input", 0), ("attribute", "algorithm")
_CONV = [
    *(("parameter", "weight"), ("parameter", "bias")),
    *_attributes("stride", "padding", "dilation", "groups", "padding_mode", "flip_kernel", "algorithm"),
]
_ACTIVATION = _attributes("activation.name", "activation.a", "activation.b")
_LAST = ("attribute", "residual_last")
_MAX = _attributes("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVG = _attributes("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")

# By type: the short road, the number of spatial dimensions, what the road takes, and what a chain takes.
_ROADS: dict[type[torch.nn.Module], tuple[str, Source, list[Source], list[Source]]] = {
    FusedConv: (
        "conv_fused",
        ("attribute", "spatial"),
        [_INPUT, *_CONV, ("input", 1), *_ACTIVATION, _LAST],
        [*_CONV, *_ACTIVATION, _LAST],
    ),
    Chain: ("chain", ("constant", 2), [_INPUT, ("layers",), ("input", 1)], []),
    ChannelScale: (
        "channel_scale",
        ("constant", 2),
        [("inputs",), ("parameter", "scale"), ("parameter", "shift"), *_ACTIVATION],
        [],
    ),
}
for _spatial in (1, 2, 3):
    _divisor = ("constant", None) if _spatial == 1 else ("attribute", "divisor_override")
    _ROADS[getattr(nn, f"MaxPool{_spatial}d")] = (
        "max_pool",
        ("constant", _spatial),
        [_INPUT, *_MAX, ("attribute", "return_indices"), _ALGORITHM],
        [*_MAX, _ALGORITHM] if _spatial == 2 else [],
    )
    _ROADS[getattr(nn, f"AvgPool{_spatial}d")] = (
        "avg_pool",
        ("constant", _spatial),
        [_INPUT, *_AVG, _divisor, ("attribute", "dilation"), _ALGORITHM],
        [],
    )
    _ROADS[getattr(nn, f"AdaptiveAvgPool{_spatial}d")] = (
        "adaptive_avg_pool",
        ("constant", _spatial),
        [_INPUT, ("attribute", "output_size"), _ALGORITHM],
        [],
    )
    _ROADS[getattr(nn, f"AdaptiveMaxPool{_spatial}d")] = (
        "adaptive_max_pool",
        ("constant", _spatial),
        [_INPUT, ("attribute", "output_size"), ("attribute", "return_indices"), _ALGORITHM],
        [],
    )
for _type, _road in _ROADS.items():
    _C.set_layer_road(_type, *_road)


class _NoProgram(Exception):
    """Something in a graph that programs have no words for."""


def program_of(graph_module: GraphModule) -> Any:
    """The module's graph as a program; None where it needs Python: inputs with defaults, dictionaries, slices."""
    steps: list[tuple[str, Any, list[Any], dict[str, Any], list[int]]] = []
    nodes = list(graph_module.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    values = {node: i for i, node in enumerate(inputs)}
    last_use: dict[Node, Node] = {}
    for node in nodes:
        for used in node.all_input_nodes:
            last_use[used] = node
    try:
        if any(node.args or str(node.target).startswith("*") for node in inputs):
            return None
        if type(graph_module.graph._codegen) is not torch.fx.graph.CodeGen:  # arguments that it takes apart
            return None
        for node in nodes:
            if node.op == "placeholder":
                continue
            args = [_spelled(arg, values) for arg in node.args]
            if node.op == "output":
                return _C.Program(len(inputs), steps, args[0])
            kwargs = {name: _spelled(arg, values) for name, arg in node.kwargs.items()}
            path = node.op in ("call_module", "get_attr")
            kind = {"call_module": "module", "call_function": "function", "call_method": "method"}.get(node.op, "get")
            done = [values[used] for used in node.all_input_nodes if last_use[used] is node]
            steps.append((kind, str(node.target).split(".") if path else node.target, args, kwargs, done))
            values[node] = len(inputs) + len(steps) - 1
    except _NoProgram:
        pass
    return None


def _spelled(value: Any, values: dict[Node, int]) -> tuple[str, Any]:
    """An argument as csrc/program.cpp reads it."""
    if isinstance(value, Node):
        return "value", values[value]
    if not _holds_nodes(value):
        return "constant", value
    if type(value) not in (tuple, list) and not isinstance(value, torch.fx.immutable_collections.immutable_list):
        raise _NoProgram
    return ("tuple" if isinstance(value, tuple) else "list"), [_spelled(part, values) for part in value]


def _holds_nodes(value: Any) -> bool:
    found = False

    def note(node: Node) -> Node:
        nonlocal found
        found = True
        return node

    torch.fx.node.map_arg(value, note)
    return found


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = [getattr(torch.nn.modules.module, f"_global{name}") for name in _HOOKS]


class ProgramOf:
    """The program of a module's graph, written when it is first asked for and again when the graph was recompiled."""

    def __init__(self) -> None:
        self._code: Any = None
        self._program: Any = None

    def __reduce__(self) -> tuple[type[ProgramOf], tuple[()]]:
        return ProgramOf, ()  # copies write their own

    def get(self, module: torch.nn.Module) -> Any:
        """None where the module is to be called as Python calls it: no graph, hooks, no words for what it does."""
        own = module.__dict__
        code = own.get("_code")
        if code is None or any(own[name] for name in _HOOKS) or any(_GLOBAL_HOOKS):
            return None
        if "forward" in own or own.get("_compiled_call_impl") is not None:
            return None
        if code is not self._code:
            self._program = program_of(module) if isinstance(module, GraphModule) else None
            self._code = code
        return self._program
