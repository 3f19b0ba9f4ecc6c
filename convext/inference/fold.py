"""Passes of :func:`convext.optimize` in which a convolution takes up the padding before it or the normalisation by it.
As those of :mod:`convext.inference.fuse`, each returns how often it changed something.

    merge_padding    a padding layer or F.pad before a convolution without padding of its own
    fold_norms       batch normalisation after a convolution: w' = w s, b' = b s + shift; before one that pads nothing:
                     w' = w s, b' = b + sum over c, taps of w shift
    scale_channels   what is left becomes ChannelScale, which takes up a concatenation before it
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.modules.padding import _CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd

from convext.inference.activations import activation_of
from convext.inference.graph import (
    bypass,
    call_instead,
    concatenated,
    is_plain,
    layer_nodes,
    module_of,
    only_user,
    shape_of,
)
from convext.inference.modules import ChannelScale, FusedConv, FusedLinear, channel_lines


def _sides(flat: Any) -> list[tuple[int, int]]:
    """(before, after) per dimension, the first spatial one first, of torch's padding, which has the last first."""
    pairs = [(int(flat[i]), int(flat[i + 1])) for i in range(0, len(flat), 2)]
    return pairs[::-1]


def _padding_of(node: Any, module: torch.nn.Module | None) -> tuple[list[tuple[int, int]], str] | None:
    """The sides and mode of a node that pads."""
    modes: list[tuple[Any, str]] = [
        (_ReflectionPadNd, "reflect"),
        (_ReplicationPadNd, "replicate"),
        (_CircularPadNd, "circular"),
    ]
    if isinstance(module, _ConstantPadNd):
        return (_sides(module.padding), "zeros") if module.value == 0 else None
    for kind, mode in modes:
        if isinstance(module, kind):
            return _sides(module.padding), mode
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    if node.target is not functional.pad and node.target is not torch._C._nn.pad:
        return None
    names = ("pad", "mode", "value")
    values: dict[str, Any] = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    mode = str(values.get("mode", "constant"))
    flat = values["pad"]
    if any(isinstance(v, Node) for v in flat) or (mode == "constant" and values.get("value") not in (None, 0, 0.0)):
        return None
    return _sides(flat), "zeros" if mode == "constant" else mode


def merge_padding(graph_module: GraphModule) -> int:
    merged = 0
    for node, conv in layer_nodes(graph_module):
        before = node.args[0] if node.args else None
        if not isinstance(conv, FusedConv) or isinstance(conv, FusedLinear) or not isinstance(before, Node):
            continue
        found = _padding_of(before, module_of(graph_module, before))
        spatial = conv.weight.dim() - 2
        if found is None or only_user(before) is not node or not isinstance(before.args[0], Node):
            continue
        sides, mode = found
        own = conv.padding
        if len(sides) != spatial or any(side < 0 for pair in sides for side in pair):
            continue
        if own in ("valid", 0) or own == (0,) * spatial:
            inside = [(0, 0)] * spatial
        elif mode == "zeros" == conv.padding_mode and isinstance(own, tuple) and all(isinstance(p, int) for p in own):
            inside = [(p, p) for p in own]
        else:
            continue
        conv.padding = tuple((a + c, b + d) for (a, b), (c, d) in zip(sides, inside, strict=True))
        conv.padding_mode = mode
        node.replace_input_with(before, before.args[0])
        graph_module.graph.erase_node(before)
        merged += 1
    return merged


def _scale_outputs(conv: FusedConv, scale: Tensor, shift: Tensor) -> None:
    weight = conv.weight.double()
    weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    bias = shift if conv.bias is None else conv.bias.double() * scale + shift
    conv.take(weight, bias)


def _scale_inputs(conv: FusedConv, scale: Tensor, shift: Tensor) -> None:
    weight = conv.weight.double()
    outputs, inputs, *kernel = weight.shape
    grouped = weight.reshape(conv.groups, outputs // conv.groups, inputs, -1)
    bias = (grouped * shift.reshape(conv.groups, 1, inputs, 1)).sum(dim=(2, 3)).flatten()
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    weight = (grouped * scale.reshape(conv.groups, 1, inputs, 1)).reshape(outputs, inputs, *kernel)
    conv.take(weight, bias)


def _scaled_transposed(conv: _ConvTransposeNd, scale: Tensor, shift: Tensor) -> _ConvTransposeNd:
    conv = copy.deepcopy(conv)
    inputs, outputs, *kernel = conv.weight.shape
    weight = conv.weight.detach().double().reshape(conv.groups, inputs // conv.groups, outputs, *kernel)
    weight = weight * scale.reshape(conv.groups, 1, outputs, *[1] * len(kernel))
    bias = shift if conv.bias is None else conv.bias.detach().double() * scale + shift
    dtype = conv.weight.dtype
    conv.weight = torch.nn.Parameter(weight.reshape(conv.weight.shape).to(dtype), requires_grad=False)
    conv.bias = torch.nn.Parameter(bias.to(dtype), requires_grad=False)
    return conv


def _folds(module: torch.nn.Module | None) -> bool:
    return (
        isinstance(module, _BatchNorm)
        and is_plain(module)
        and not module.training
        and module.running_mean is not None
        and module.running_var is not None
    )


def fold_norms(graph_module: GraphModule) -> int:
    folded = 0
    for node, norm in layer_nodes(graph_module):
        source = node.args[0] if node.args else None
        if not _folds(norm) or not isinstance(source, Node):
            continue
        scale, shift = channel_lines(norm)
        before = module_of(graph_module, source)
        after_node = only_user(node)
        after = module_of(graph_module, after_node)
        if isinstance(before, FusedConv) and only_user(source) is node:
            _scale_outputs(before, scale, shift)
        elif isinstance(before, _ConvTransposeNd) and is_plain(before) and only_user(source) is node:
            source = call_instead(graph_module, source, _scaled_transposed(before, scale, shift))
        elif isinstance(after, FusedConv) and after.pads_nothing():
            _scale_inputs(after, scale, shift)
        else:
            continue
        bypass(node, source)
        folded += 1
    return folded


def scale_channels(graph_module: GraphModule) -> int:
    """Batch normalisations that are left, with a concatenation before and an activation behind them."""
    made = 0
    for node, norm in layer_nodes(graph_module):
        source = node.args[0] if node.args else None
        if not _folds(norm) or not isinstance(source, Node) or len(shape_of(source) or []) < 3:
            continue
        scale, shift = channel_lines(norm)
        dtype = cast(Tensor, norm.running_mean).dtype
        layer = ChannelScale(scale.to(dtype), shift.to(dtype))
        end, user = node, only_user(node)
        activation = None if user is None else activation_of(user, module_of(graph_module, user))
        if user is not None and activation is not None:
            layer.activation, end = activation, user
        parts = concatenated(source)
        args = tuple(parts) if parts is not None and only_user(source) is node else (source,)
        call = call_instead(graph_module, node, layer, args)
        if end is not node:
            bypass(end, call)
        if len(args) > 1:
            graph_module.graph.erase_node(source)
        made += 1
    return made
