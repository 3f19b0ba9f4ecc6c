"""Questions about a traced graph, and small changes to it, that the passes share (``fold`` and ``fuse``)."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node, Tracer


class LayerTracer(Tracer):
    """Traces a model down to the layers of torch.nn and convext."""

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith(("convext.nn", "convext.inference"))
        return (ours and not isinstance(m, torch.nn.Sequential)) or super().is_leaf_module(m, module_qualified_name)


def trace(model: torch.nn.Module) -> GraphModule:
    """The model's graph. Raises whatever torch.fx raises for what cannot be traced."""
    if LayerTracer().is_leaf_module(model, ""):
        model = torch.nn.Sequential(model)
    graph = LayerTracer().trace(model)
    return GraphModule(model, graph, type(model).__name__)


def module_of(graph_module: GraphModule, node: Any) -> torch.nn.Module | None:
    """The layer that a node calls."""
    if not isinstance(node, Node) or node.op != "call_module":
        return None
    return graph_module.get_submodule(str(node.target))


def shape_of(node: Any) -> list[int] | None:
    """The shape of a node's value in the example's run."""
    value = node.meta.get("example") if isinstance(node, Node) else None
    return list(value.shape) if isinstance(value, Tensor) else None


def only_user(node: Node) -> Node | None:
    """The node's user, if there is just one, which uses it once."""
    users = list(node.users)
    if len(users) != 1 or users[0].all_input_nodes.count(node) != 1 or users[0].op == "output":
        return None
    return users[0]


_ADDITIONS = (operator.add, operator.iadd, torch.add)


def addends(node: Node) -> tuple[Node, Node] | None:
    """The two tensors of the example's one shape and dtype that a node adds, if that is what it does."""
    function = node.op == "call_function" and node.target in _ADDITIONS
    method = node.op == "call_method" and node.target in ("add", "add_")
    if not (function or method) or len(node.args) != 2 or node.kwargs:
        return None
    a, b = node.args
    if not isinstance(a, Node) or not isinstance(b, Node) or a is b:
        return None
    x, y = (n.meta.get("example") for n in (a, b))
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.shape != y.shape or x.dtype != y.dtype:
        return None
    return a, b


def add_layer(graph_module: GraphModule, near: str, layer: torch.nn.Module) -> str:
    """Gives the module a new layer, beside or in place of the one called ``near``; returns its name."""
    parent, _, last = near.rpartition(".")
    name, count = near, 0
    while True:
        taken = hasattr(graph_module.get_submodule(parent), last) if name == near else _has(graph_module, name)
        if not taken:
            break
        count += 1
        name = f"{near}_{count}"
    graph_module.add_submodule(name, layer)
    return name


def _has(graph_module: GraphModule, name: str) -> bool:
    parent, _, last = name.rpartition(".")
    return hasattr(graph_module.get_submodule(parent), last)


def bypass(node: Node, other: Node) -> None:
    """What used ``node`` uses ``other``."""
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def replace(node: Node, other: Node) -> None:
    """``other`` takes the place of ``node``, its meaning too."""
    other.meta = dict(node.meta)
    bypass(node, other)


def record_examples(graph_module: GraphModule, arguments: tuple[Any, ...]) -> None:
    """Runs the graph once and notes in every node what its value looks like, without the values."""

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            n.meta["example"] = result.detach().to("meta") if isinstance(result, Tensor) else None
            n.meta["origin"] = n.target if n.op == "call_module" else n.name
            return result

    with torch.no_grad():
        Recorder(graph_module).run(*arguments)


def layer_nodes(graph_module: GraphModule) -> Iterator[tuple[Node, torch.nn.Module]]:
    """The nodes that call a layer, in order, as they were when asked."""
    for node in list(graph_module.graph.nodes):
        module = module_of(graph_module, node)
        if module is not None:
            yield node, module


def flatten(graph_module: GraphModule) -> None:
    """Every layer that is called becomes a child of the module itself (two look-ups less at every call), under the name
    of what it stands for; the rest goes."""
    called = list(layer_nodes(graph_module))
    kept = {str(n.target).partition(".")[0] for n in graph_module.graph.nodes if n.op == "get_attr"}
    for name in [name for name, _ in graph_module.named_children() if name not in kept]:
        delattr(graph_module, name)
    names: dict[int, str] = {}
    for node, module in called:
        if id(module) not in names:
            name = str(node.meta.get("origin", node.target)).replace(".", "_")
            names[id(module)] = add_layer(graph_module, name if name.isidentifier() else f"_{name}", module)
        node.target = names[id(module)]
    graph_module.delete_all_unused_submodules()


def call_instead(graph_module: GraphModule, node: Node, layer: torch.nn.Module, args: Any = None) -> Node:
    """The layer is called where ``node`` was."""
    name = add_layer(graph_module, str(node.target) if node.op == "call_module" else node.name, layer)
    with graph_module.graph.inserting_before(node):
        call = graph_module.graph.call_module(name, node.args if args is None else args)
    replace(node, call)
    return call


def concatenated(node: Node) -> list[Node] | None:
    """The tensors that a node joins along the channels, without repeats of meaning beyond that."""
    if node.op != "call_function" or node.target not in (torch.cat, torch.concat) or not node.args:
        return None
    values = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    tensors = values["tensors"]
    if values.get("dim", 0) != 1 or not isinstance(tensors, list | tuple):
        return None
    return list(tensors) if all(isinstance(t, Node) and shape_of(t) for t in tensors) else None


def is_plain(module: torch.nn.Module) -> bool:
    """One of torch.nn's or convext's own layers, with no hook and nothing computed from its parameters."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    own = type(module).__module__.startswith(("torch.nn.modules", "convext.nn"))
    return own and not hooks and not torch.nn.utils.parametrize.is_parametrized(module)
