"""The passes of :func:`convext.optimize`: each rewrites the traced graph of a model in eval mode, computes the same (to
rounding), and returns how often it changed something.

    remove_idle            dropout, identity
    take_convolutions      torch.nn's and convext's convolutions and pools become FusedConv and convext's pools
    take_linears           torch.nn.Linear of rows becomes FusedLinear
    (those of convext.inference.fold, which change weights, come here)
    fuse_epilogues         residual and activation into the convolution before them
    split_concatenations   a pointwise convolution of concatenated maps, max poolings in between too, becomes one of
                           each map, added up as residuals: nothing is copied
    work_in_place          activations and scalings whose input nobody else sees
    chain_layers           convolutions and max poolings, one after the other, whose maps are large
"""

from __future__ import annotations

import copy
import operator
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from convext import functional as convext_functional
from convext.activations import Activation
from convext.convert import convert
from convext.inference.activations import activation_of
from convext.inference.graph import (
    add_layer,
    addends,
    bypass,
    call_instead,
    concatenated,
    is_plain,
    layer_nodes,
    module_of,
    only_user,
    replace,
    shape_of,
)
from convext.inference.modules import Chain, ChannelScale, FusedConv, FusedLinear
from convext.nn import MaxPool2d

_DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)


def remove_idle(graph_module: GraphModule) -> int:
    removed = 0
    for node in list(graph_module.graph.nodes):
        module = module_of(graph_module, node)
        idle = isinstance(module, torch.nn.Identity | _DropoutNd | torch.nn.AlphaDropout) or (
            node.op == "call_function" and node.target in _DROPOUTS and node.kwargs.get("training") is False
        )
        if idle and isinstance(node.args[0], Node):
            bypass(node, node.args[0])
            removed += 1
    return removed


def take_convolutions(graph_module: GraphModule) -> int:
    """Convolutions become FusedConv, pools and transposed convolutions convext's layers."""
    taken = 0
    for node, module in layer_nodes(graph_module):
        if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd) or not is_plain(module):
            continue
        if len(node.args) != 1 or node.kwargs or isinstance(module, torch.nn.modules.lazy.LazyModuleMixin):
            continue
        shape = shape_of(node.args[0])
        if shape is None or len(shape) != module.weight.dim():  # a call without a batch stays as it is
            continue
        fused = FusedConv(
            module.weight,
            module.bias,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            padding_mode=module.padding_mode,
            flip_kernel=getattr(module, "flip_kernel", False),
            algorithm=getattr(module, "algorithm", "auto"),
        )
        call_instead(graph_module, node, fused)
        taken += 1
    for node in list(graph_module.graph.nodes):
        call = _from_function(graph_module, node)
        if call is not None:
            call_instead(graph_module, node, call, (node.args[0] if node.args else node.kwargs["input"],))
            taken += 1
    for _node, module in layer_nodes(graph_module):
        if is_plain(module):
            taken += len(convert(module).swapped)
    return taken


def take_linears(graph_module: GraphModule) -> int:
    """In 32 and 64 bits: those below torch multiplies by other means."""
    taken = 0
    for node, module in layer_nodes(graph_module):
        if type(module) is not torch.nn.Linear or not is_plain(module) or len(node.args) != 1 or node.kwargs:
            continue
        if module.weight.dtype not in _WIDE or len(shape_of(node.args[0]) or []) != 2:
            continue
        call_instead(graph_module, node, FusedLinear(module.weight, module.bias))
        taken += 1
    return taken


_CONV_FUNCTIONS = (
    *(functional.conv1d, functional.conv2d, functional.conv3d),
    *(convext_functional.conv1d, convext_functional.conv2d, convext_functional.conv3d),
)
_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _from_function(graph_module: GraphModule, node: Node) -> FusedConv | None:
    """A call of a convolution's function whose weight and bias are the model's own."""
    if node.op != "call_function" or node.target not in _CONV_FUNCTIONS:
        return None
    values: dict[str, Any] = dict(zip(_CONV_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
    tensors = []
    for name in ("weight", "bias"):
        value = values.pop(name, None)
        if value is not None:
            if not isinstance(value, Node) or value.op != "get_attr":
                return None
            value = _attribute(graph_module, str(value.target))
        tensors.append(value)
    x, (weight, bias) = values.pop("input", None), tensors
    shape = shape_of(x)
    if (
        weight is None
        or shape is None
        or len(shape) != weight.dim()
        or any(isinstance(v, Node) for v in values.values())
    ):
        return None
    spatial = weight.dim() - 2

    def each(name: str, default: int) -> tuple[int, ...]:
        value: Any = values.get(name, default)
        return (value,) * spatial if isinstance(value, int) else tuple(value)

    padding: Any = values.get("padding", 0)
    return FusedConv(
        weight,
        bias,
        stride=each("stride", 1),
        padding=padding if isinstance(padding, str) else each("padding", 0),
        dilation=each("dilation", 1),
        groups=values.get("groups", 1),
        padding_mode=values.get("padding_mode", "zeros"),
        flip_kernel=values.get("flip_kernel", False),
        algorithm=values.get("algorithm", "auto"),
    )


def _attribute(graph_module: GraphModule, name: str) -> Any:
    parent, _, last = name.rpartition(".")
    return getattr(graph_module.get_submodule(parent), last)


def fuse_epilogues(graph_module: GraphModule) -> int:
    """conv, then addition, then activation; or conv, activation, addition. The call moves to the last of them, where
    the residual is there."""
    fused = 0
    for node, conv in layer_nodes(graph_module):
        if not isinstance(conv, FusedConv):
            continue
        passed, residual = [node], None
        while (user := only_user(passed[-1])) is not None and not _changed_before(graph_module, node, passed, user):
            activation = activation_of(user, module_of(graph_module, user))
            pair = addends(user)
            if activation is not None and conv.activation.name == "none" and not conv.residual_last:
                conv.activation = activation
            elif pair is not None and residual is None and _later(graph_module, user, passed[-1]):
                residual = pair[1] if pair[0] is passed[-1] else pair[0]
                conv.residual_last = conv.activation.name != "none"
            else:
                break
            passed.append(user)
        end = passed.pop()
        if end is node:
            continue
        with graph_module.graph.inserting_before(end):
            args = node.args if residual is None else (*node.args, residual)
            call = graph_module.graph.call_module(str(node.target), args)
        origin = node.meta.get("origin", node.name)
        replace(end, call)
        call.meta["origin"] = origin
        for done in reversed(passed):
            graph_module.graph.erase_node(done)
        fused += 1
    return fused


def split_concatenations(graph_module: GraphModule) -> int:
    """Where the convolution has so few outputs that their sums, written and read again, are less than the copy."""
    split = 0
    for node, conv in layer_nodes(graph_module):
        if not isinstance(conv, FusedConv) or len(node.args) != 1 or not isinstance(node.args[0], Node):
            continue
        pools, source = [], node.args[0]
        while isinstance(module_of(graph_module, source), MaxPool2d) and only_user(source) is not None:
            pools.append(source)
            source = cast(Node, source.args[0])
        parts = concatenated(source)
        outputs, inputs, *kernel = conv.weight.shape
        plain = kernel == [1, 1] and conv.groups == 1 and conv.pads_nothing() and conv.weight.dtype in _WIDE
        pools_plain = all(not p.kwargs and not cast(Any, module_of(graph_module, p)).return_indices for p in pools)
        if parts is None or only_user(source) is None or not plain or not pools_plain or 4 * outputs > inputs:
            continue
        channels = [cast(list[int], shape_of(part))[1] for part in parts]
        result: Node | None = None
        for i, (part, weight) in enumerate(zip(parts, conv.weight.split(channels, 1), strict=True)):
            value = part
            for pool in reversed(pools):
                value = _call_before(graph_module, node, pool, str(pool.target), (value,), channels[i])
            own = copy.copy(conv)
            own._parameters = dict(conv._parameters)
            own.take(weight.clone(), conv.bias if i == 0 else None)
            own.activation = conv.activation if i + 1 == len(parts) else Activation()
            name = add_layer(graph_module, str(node.target), own)
            args = (value,) if result is None else (value, result)
            result = _call_before(graph_module, node, node, name, args, outputs)
        bypass(node, cast(Node, result))
        for done in (*pools, source):
            graph_module.graph.erase_node(done)
        split += 1
    return split


_WIDE = (torch.float32, torch.float64)
"""Sums of other types are not stored before they are whole."""


def _call_before(
    graph_module: GraphModule, where: Node, like: Node, name: str, args: tuple[Node, ...], channels: int
) -> Node:
    """A call of a layer whose value has the shape of ``like``'s, but so many channels."""
    with graph_module.graph.inserting_before(where):
        call = graph_module.graph.call_module(name, args)
    batch, _, *places = like.meta["example"].shape
    call.meta = dict(like.meta)
    call.meta["example"] = like.meta["example"].new_empty(batch, channels, *places)
    return call


_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def _in_place(graph_module: GraphModule, node: Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        named = str(getattr(node.target, "__name__", "")).endswith("_")
        return named or node.target in _IN_PLACE or node.kwargs.get("inplace") is True or "out" in node.kwargs
    return bool(getattr(module_of(graph_module, node), "inplace", False))


def _changed_before(graph_module: GraphModule, node: Node, passed: list[Node], end: Node) -> bool:
    """Whether something between a convolution and ``end``, where it would be called instead, writes to what it may
    read: an operation in place that is not one of those that it takes up."""
    between = node.next
    while between is not end:
        if between not in passed and _in_place(graph_module, between):
            return True
        between = between.next
    return False


def _later(graph_module: GraphModule, addition: Node, end: Node) -> bool:
    """Of two convolutions that meet in an addition, the later one takes it."""
    pair = addends(addition)
    assert pair is not None
    other = pair[1] if pair[0] is end else pair[0]
    if not isinstance(module_of(graph_module, other), FusedConv) or only_user(other) is not addition:
        return True
    order = {n: i for i, n in enumerate(graph_module.graph.nodes)}
    return order[end] > order[other]


def work_in_place(graph_module: GraphModule) -> int:
    """x * s and activations, where x is a fresh result of a convolution that nobody sees afterwards."""
    changed = 0
    order = {n: i for i, n in enumerate(graph_module.graph.nodes)}
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function" or node.target not in (operator.mul, torch.mul) or len(node.args) != 2:
            continue
        for x, other in (node.args, node.args[::-1]):
            if not isinstance(x, Node) or not isinstance(other, Node) or shape_of(x) != shape_of(node):
                continue
            fresh = isinstance(module_of(graph_module, x), FusedConv | ChannelScale)
            others = [user for user in x.users if user is not node]
            if not fresh or any(order[u] > order[node] or not _reads_only(graph_module, u) for u in others):
                continue
            if shape_of(other) is None or x.meta["example"].dtype != node.meta["example"].dtype:
                continue
            with graph_module.graph.inserting_before(node):
                call = graph_module.graph.call_method("mul_", (x, other))
            replace(node, call)
            changed += 1
            break
    return changed


def _reads_only(graph_module: GraphModule, node: Node) -> bool:
    """A node whose result shares no memory with its input."""
    module = module_of(graph_module, node)
    pooling = module is not None and "Pool" in type(module).__name__
    return pooling or isinstance(module, FusedConv | ChannelScale) or node.target in ("mean", torch.mean)


_LARGE_MAP = 64 * 1024
"""Bytes of one image's map from which on csrc/cpu/layer_chain.cpp may run the layers before and behind it together."""


def chain_layers(graph_module: GraphModule) -> int:
    """Layers, each the only one to see the map before it, become a Chain where such a map is large."""
    chained = 0
    seen: set[Node] = set()
    for node, _ in layer_nodes(graph_module):
        if node in seen or not _links(graph_module, node):
            continue
        run = [node]
        while (user := only_user(run[-1])) is not None and _links(graph_module, user) and user.args[0] is run[-1]:
            again = run[-1] in user.args[1:]  # as its residual
            if again or len(run[-1].args) > 1 or _changed_before(graph_module, run[0], run, user):
                break
            run.append(user)
        while len(run) > 1 and _map_bytes(run[-2]) <= _LARGE_MAP:
            run.pop()
        seen.update(run)
        if len(run) == 1:
            continue
        last = run[-1]
        layers = [cast(torch.nn.Module, module_of(graph_module, n)) for n in run]
        call = call_instead(graph_module, last, Chain(layers), (run[0].args[0], *last.args[1:]))
        call.meta["origin"] = f"{run[0].meta['origin']}_chain"
        for done in reversed(run[:-1]):
            graph_module.graph.erase_node(done)
        chained += 1
    return chained


def _links(graph_module: GraphModule, node: Node) -> bool:
    """Whether a chain may have the node's layer in it."""
    module = module_of(graph_module, node)
    if node.kwargs or len(shape_of(node) or []) != 4:
        return False
    return isinstance(module, FusedConv) or (isinstance(module, MaxPool2d) and not module.return_indices)


def _map_bytes(node: Node) -> int:
    """Of one image's value."""
    value = node.meta["example"]
    return int(value.numel() // max(value.shape[0], 1) * value.element_size())
