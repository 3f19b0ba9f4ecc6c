"""Which rule is whose: tables of functions and methods by name, and layers by what they derive from."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules import batchnorm, conv, instancenorm, pooling

from convext import nn as layers
from convext.analysis import place_rules as places
from convext.analysis import window_rules as windows
from convext.analysis.propagation import Call, Refused, Rule, Value, several

_ELEMENTWISE = """
    abs acos add addcdiv addcmul alpha_dropout and_ asin atan atan2 bernoulli bfloat16 bitwise_and bitwise_not
    bitwise_or ceil celu clamp clamp_max clamp_min clip clone contiguous copysign cos cosh cpu cuda detach div
    divide double dropout dropout1d dropout2d dropout3d elu eq erf exp expand expand_as expm1 feature_alpha_dropout
    feature_dropout float float_power floor floordiv fmod ge gelu gt half hardshrink hardsigmoid hardswish hardtanh
    iadd imul isfinite isnan isub itruediv le leaky_relu lerp log log10 log1p log2 logical_and logical_not
    logical_or logit logsigmoid lt masked_fill maximum minimum mish mod mul multiply nan_to_num ne neg negative or_
    pos pow prelu reciprocal relu relu6 remainder requires_grad round rrelu rsqrt rsub selu sigmoid sign silu sin
    sinh softplus softshrink softsign sqrt square sub subtract tan tanh tanhshrink threshold to true_divide truediv
    trunc type type_as where xor zeros_like ones_like batch_norm identity
"""
_REDUCTIONS = """
    all amax amin any argmax argmin logsumexp max mean median min prod std std_mean sum var var_mean
"""

RULES: dict[str, Rule] = dict.fromkeys(_ELEMENTWISE.split(), places.elementwise)
RULES |= dict.fromkeys(_REDUCTIONS.split(), places.reduction)
RULES |= dict.fromkeys(("flatten", "ravel", "reshape", "squeeze", "unflatten", "unsqueeze", "view"), places.reshape)
RULES |= dict.fromkeys(("log_softmax", "softmax", "softmin"), places.along_dim)
RULES |= dict.fromkeys(("chunk", "split", "tensor_split"), places.parts)
RULES |= dict.fromkeys(("interpolate", "upsample"), windows.interpolate)
RULES |= dict.fromkeys(("cat", "concat", "concatenate"), places.cat)
for _n in (1, 2, 3):
    RULES |= {
        f"conv{_n}d": windows.conv,
        f"conv_transpose{_n}d": windows.conv_transpose,
        f"max_pool{_n}d": windows.max_pool(_n),
        f"max_pool{_n}d_with_indices": windows.max_pool(_n),
        f"avg_pool{_n}d": windows.avg_pool(_n),
        f"lp_pool{_n}d": windows.lp_pool(_n),
        f"max_unpool{_n}d": windows.max_unpool(_n),
        f"adaptive_avg_pool{_n}d": windows.adaptive_pool(_n),
        f"adaptive_max_pool{_n}d": windows.adaptive_pool(_n),
        f"adaptive_max_pool{_n}d_with_indices": windows.adaptive_pool(_n),
    }
RULES |= {
    "getitem": places.getitem,
    "global_avg_pool": places.global_pool,
    "global_max_pool": places.global_pool,
    "group_norm": places.all_places,
    "instance_norm": places.instance_norm,
    "k_max_pool": places.k_max,
    "k_max_pool1d": places.k_max_along,
    "layer_norm": places.layer_norm,
    "linear": places.linear,
    "movedim": places.movedim,
    "normalize": places.normalize,
    "pad": windows.pad,
    "permute": places.permute,
    "pixel_shuffle": windows.pixel_shuffle,
    "pixel_unshuffle": windows.pixel_unshuffle,
    "repeat": places.repeat,
    "rms_norm": places.layer_norm,
    "stack": places.stack,
    "swapaxes": places.transpose,
    "transpose": places.transpose,
    "unbind": places.unbind,
}

_PLACE_BY_PLACE = (
    batchnorm._BatchNorm,
    torch.nn.Identity,
    torch.nn.modules.dropout._DropoutNd,
)


def _activation(module: torch.nn.Module) -> bool:
    nn = torch.nn
    mixing = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention, nn.GLU)
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(module, mixing)


def of_module(module: torch.nn.Module, call: Call) -> Value:
    """What a layer makes of the call's first argument. Subclasses count as what they derive from."""
    layer: Any = module
    spatial = _spatial(module)
    if isinstance(module, conv._ConvTransposeNd):
        return windows.transposed(
            call, layer.stride, layer.padding, layer.dilation, layer.kernel_size, len(layer.kernel_size)
        )
    if isinstance(module, conv._ConvNd):
        return windows.convolution(call, layer.stride, layer.padding, layer.dilation, layer.kernel_size)
    if isinstance(module, pooling._MaxPoolNd | pooling._AvgPoolNd | pooling._LPPoolNd):
        padding, dilation = getattr(layer, "padding", 0), getattr(layer, "dilation", 1)
        return several(call, windows.window(call, layer.kernel_size, layer.stride, padding, dilation, spatial))
    if isinstance(module, pooling._AdaptiveAvgPoolNd | pooling._AdaptiveMaxPoolNd):
        return windows.adaptive_pool(spatial)(call)
    if isinstance(module, pooling._MaxUnpoolNd):
        return windows.unpooled(call, layer.stride, layer.padding, layer.kernel_size, spatial)
    if isinstance(module, torch.nn.Upsample):
        return windows.resized(call, layer.scale_factor, layer.mode, layer.align_corners, layer.recompute_scale_factor)
    if isinstance(module, instancenorm._InstanceNorm):
        return places.elementwise(call) if layer.track_running_stats else places.all_places(call)
    if isinstance(module, _PLACE_BY_PLACE) or _activation(module):
        return places.elementwise(call)
    if isinstance(module, torch.nn.GroupNorm):
        return places.all_places(call)
    if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
        return places.normalized(call, len(layer.normalized_shape))
    if isinstance(module, torch.nn.Flatten | torch.nn.Unflatten):
        return places.reshape(call)
    if isinstance(module, torch.nn.Linear):
        state = call.state()
        return None if state is None else places.mixed_last(state, call.input.shape)
    if isinstance(module, torch.nn.Softmax | torch.nn.LogSoftmax | torch.nn.Softmin):
        state = call.state()
        if state is None or layer.dim is None:
            raise Refused("softmax without dim")
        return places.gather(state, [layer.dim], call.input.shape, True)
    if isinstance(module, torch.nn.Softmax2d | torch.nn.ChannelShuffle | torch.nn.LocalResponseNorm):
        return places.elementwise(call)
    if isinstance(module, torch.nn.PixelShuffle):
        return windows.pixel_shuffle(
            Call((*call.args, layer.upscale_factor), {}, (*call.values, None), {}, call.result)
        )
    if isinstance(module, torch.nn.PixelUnshuffle):
        return windows.pixel_unshuffle(
            Call((*call.args, layer.downscale_factor), {}, (*call.values, None), {}, call.result)
        )
    if type(module).__module__ == "torch.nn.modules.padding":
        return windows.padded(call, layer.padding)
    if isinstance(module, layers.GlobalAvgPool | layers.GlobalMaxPool):
        return places.global_pool(call)
    if isinstance(module, layers.KMaxPool):
        return places.k_max(call)
    if isinstance(module, layers.KMaxPool1d):
        return places.k_max_along(call, module.dim)
    if isinstance(module, torch.nn.FractionalMaxPool2d | torch.nn.FractionalMaxPool3d):
        raise Refused("its windows are drawn at random")
    raise Refused(f"no rule for {type(module).__name__}")


def _spatial(module: torch.nn.Module) -> int:
    for kind in type(module).__mro__:
        if kind.__name__[-2:] in ("1d", "2d", "3d"):
            return int(kind.__name__[-2])
    return 0
