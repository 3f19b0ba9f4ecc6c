"""Rules for what looks through windows: convolution, pooling, resampling, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from convext import functional
from convext.analysis import fields
from convext.analysis.fields import Step
from convext.analysis.propagation import Call, Refused, Rule, State, Value, plain_weight, several, through
from convext.arguments import expand


def convolution(call: Call, stride: Any, padding: Any, dilation: Any, kernel: Sequence[int]) -> Value:
    return window(call, kernel, stride, padding, dilation)


def window(call: Call, kernel: Any, stride: Any, padding: Any, dilation: Any, spatial: int | None = None) -> Value:
    spatial = len(kernel) if spatial is None else spatial
    places = call.input.shape[-spatial:]
    sizes, strides, pads, dilations = functional.pool_window("conv", list(places), kernel, stride, padding, dilation)
    steps = [fields.convolution(sizes[i], strides[i], pads[2 * i], dilations[i]) for i in range(spatial)]
    return through(call.state(), steps, call.shape, call.input.shape)


def transposed(call: Call, stride: Any, padding: Any, dilation: Any, kernel: Any, spatial: int) -> Value:
    kernel = expand("conv", "kernel_size", kernel, spatial)
    strides = kernel if stride is None else expand("conv", "stride", stride, spatial)
    dilations = expand("conv", "dilation", dilation, spatial)
    places = list(call.input.shape[-spatial:])
    nothing = [0] * spatial
    _sizes, pads = functional.transposed_output_size("conv", places, kernel, strides, padding, nothing, dilations)
    steps = [fields.transposed(kernel[i], strides[i], pads[2 * i], dilations[i]) for i in range(spatial)]
    return through(call.state(), steps, call.shape, call.input.shape)


def conv(call: Call) -> Value:
    weight, _bias, stride, padding, dilation = call.names(
        "weight", "bias", "stride", "padding", "dilation", stride=1, padding=0, dilation=1
    )
    plain_weight(call)
    return convolution(call, stride, padding, dilation, tuple(weight.shape[2:]))


def conv_transpose(call: Call) -> Value:
    weight, _bias, stride, padding, _extra, _groups, dilation = call.names(
        "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation", stride=1, padding=0, dilation=1
    )
    plain_weight(call)
    return transposed(call, stride, padding, dilation, tuple(weight.shape[2:]), weight.dim() - 2)


def max_pool(spatial: int) -> Rule:
    def rule(call: Call) -> Value:
        kernel, stride, padding, dilation = call.names(
            "kernel_size", "stride", "padding", "dilation", padding=0, dilation=1
        )
        return several(call, window(call, kernel, stride, padding, dilation, spatial))

    return rule


def avg_pool(spatial: int) -> Rule:
    def rule(call: Call) -> Value:
        kernel, stride, padding = call.names("kernel_size", "stride", "padding", padding=0)
        return window(call, kernel, stride, padding, call.kwargs.get("dilation", 1), spatial)

    return rule


def lp_pool(spatial: int) -> Rule:
    def rule(call: Call) -> Value:
        _norm, kernel, stride = call.names("norm_type", "kernel_size", "stride")
        padding, dilation = call.kwargs.get("padding", 0), call.kwargs.get("dilation", 1)
        return window(call, kernel, stride, padding, dilation, spatial)

    return rule


def adaptive_pool(spatial: int) -> Rule:
    def rule(call: Call) -> Value:
        sizes = zip(call.input.shape[-spatial:], call.shape[-spatial:], strict=True)
        steps = [fields.adaptive(n, out) for n, out in sizes]
        return several(call, through(call.state(), steps, call.shape, call.input.shape))

    return rule


def max_unpool(spatial: int) -> Rule:
    def rule(call: Call) -> Value:
        _indices, kernel, stride, padding = call.names("indices", "kernel_size", "stride", "padding", padding=0)
        return unpooled(call, stride, padding, kernel, spatial)

    return rule


def unpooled(call: Call, stride: Any, padding: Any, kernel: Any, spatial: int) -> Value:
    """A place of the result is written by one of the windows around it, or by none: the indices say."""
    value = transposed(call, stride, padding, 1, kernel, spatial)
    return replace(value, note="at most: the indices say where") if isinstance(value, State) else value


_SAMPLING = {"nearest": fields.nearest, "nearest-exact": fields.nearest_exact}
_BLENDING = ("linear", "bilinear", "trilinear")


def interpolate(call: Call) -> Value:
    _size, scale, mode, align, recompute, antialias = call.names(
        "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias", mode="nearest"
    )
    return resized(call, scale, mode, align, recompute, antialias)


def resized(call: Call, scale: Any, mode: str, align: Any, recompute: Any, antialias: Any = False) -> Value:
    spatial = call.input.dim() - 2
    before, after = call.input.shape[2:], call.shape[2:]
    if mode == "area":
        return adaptive_pool(spatial)(call)
    if antialias:
        raise Refused("interpolate with antialias=True")
    scales: list[Any] = list(scale) if isinstance(scale, tuple | list) else [scale] * spatial
    steps = []
    for n, out, factor in zip(before, after, scales, strict=True):
        exact = None if factor is None or recompute else Fraction(factor).limit_denominator(10**6)
        if align and mode in _BLENDING:
            ratio = Fraction(n - 1, out - 1) if out > 1 and n > 1 else Fraction(n)
            steps.append(fields.resampled(n, out, 1 / ratio, fields.aligned))
        elif mode in _SAMPLING:
            steps.append(fields.resampled(n, out, exact, _SAMPLING[mode]))
        elif mode in _BLENDING:
            steps.append(fields.resampled(n, out, exact, fields.linear))
        elif mode == "bicubic" and not align:
            steps.append(fields.resampled(n, out, exact, fields.cubic))
        else:
            raise Refused(f"interpolate with mode={mode!r}, align_corners={align}")
    return through(call.state(), steps, call.shape, call.input.shape)


def pad(call: Call) -> Value:
    (amounts,) = call.names("pad")
    return padded(call, amounts)


def padded(call: Call, amounts: Any) -> Value:
    befores = [int(before) for before in amounts[::2]][::-1]  # torch lists the last dimension first
    befores = [0] * (call.input.dim() - len(befores)) + befores
    return through(call.state(), [fields.shifted(-before) for before in befores], call.shape, call.input.shape)


def pixel_shuffle(call: Call) -> Value:
    factor = call.argument(1, "upscale_factor")
    steps = [Step(((0,) * 1,) * factor, 1)] * 2
    return through(call.state(), steps, call.shape, call.input.shape)


def pixel_unshuffle(call: Call) -> Value:
    factor = call.argument(1, "downscale_factor")
    return through(call.state(), [fields.convolution(factor, factor, 0, 1)] * 2, call.shape, call.input.shape)
