"""Output sizes without tensors: of a window's arguments, or of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, overload

import torch
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
    _MaxUnpoolNd,
)

from convext import functional, ops
from convext.arguments import Ints, expand, is_integer
from convext.padding import Padding

_OP = "output_size"


def places_of(input_size: Ints, spatial: int | None = None) -> list[int]:
    """Spatial sizes as a list: of an int (``spatial`` times, else once) or of 1 to 3 ints. TypeError, ValueError."""
    if is_integer(input_size):
        sizes = [cast(int, input_size)] * (spatial or 1)
    elif isinstance(input_size, Sequence) and not isinstance(input_size, str) and all(map(is_integer, input_size)):
        sizes = list(input_size)
    else:
        raise TypeError(f"{_OP}: input_size must be an int or 1 to 3 ints, got input_size={input_size!r}")
    if not 1 <= len(sizes) <= 3 or (spatial is not None and len(sizes) != spatial):
        expected = "1 to 3" if spatial is None else str(spatial)
        raise ValueError(f"{_OP}: input_size must have {expected} spatial sizes, got input_size={tuple(sizes)}")
    if any(n < 0 for n in sizes):
        raise ValueError(f"{_OP}: input_size must not be negative, got input_size={tuple(sizes)}")
    return sizes


def _windows(
    sizes: list[int], kernel_size: Ints, stride: Ints | None, padding: Padding, dilation: Ints, ceil_mode: bool
) -> list[int]:
    kernel, strides, pads, dilations = functional.pool_window(_OP, sizes, kernel_size, stride, padding, dilation)
    if ceil_mode:
        return ops.pool_output_shape(_OP, [1, 1, *sizes], kernel, strides, pads, dilations, True)[2:]
    return ops.conv_output_shape([1, 1, *sizes], [1, 1, *kernel], strides, pads, dilations, 1)[2:]


def _transposed(
    sizes: list[int], kernel_size: Ints, stride: Ints, padding: Padding, dilation: Ints, output_padding: Ints
) -> list[int]:
    spatial = len(sizes)
    kernel = expand(_OP, "kernel_size", kernel_size, spatial)
    strides, dilations = expand(_OP, "stride", stride, spatial), expand(_OP, "dilation", dilation, spatial)
    extra = expand(_OP, "output_padding", output_padding, spatial)
    out, _pads = functional.transposed_output_size(_OP, sizes, kernel, strides, padding, extra, dilations)
    if any(n <= 0 for n in out):
        raise RuntimeError(f"{_OP}: the output would be empty, {tuple(out)}, for input_size={tuple(sizes)}")
    return out


def _layer(layer: torch.nn.Module, input_size: Ints) -> list[int]:
    settings: Any = layer
    spatial = spatial_of(layer)
    sizes = places_of(input_size, spatial)
    if isinstance(layer, _ConvTransposeNd):
        window = (settings.kernel_size, settings.stride, settings.padding, settings.dilation)
        return _transposed(sizes, *window, settings.output_padding)
    if isinstance(layer, _ConvNd):
        return _windows(sizes, settings.kernel_size, settings.stride, settings.padding, settings.dilation, False)
    if isinstance(layer, _MaxPoolNd | _AvgPoolNd):
        dilation = getattr(layer, "dilation", 1)
        return _windows(sizes, settings.kernel_size, settings.stride, settings.padding, dilation, settings.ceil_mode)
    if isinstance(layer, _LPPoolNd):
        padding, dilation = getattr(layer, "padding", 0), getattr(layer, "dilation", 1)
        return _windows(sizes, settings.kernel_size, settings.stride, padding, dilation, settings.ceil_mode)
    if isinstance(layer, _MaxUnpoolNd):
        return _transposed(sizes, settings.kernel_size, settings.stride, settings.padding, 1, 0)
    if isinstance(layer, torch.nn.Upsample):
        return _upsampled(layer, sizes)
    given = settings.output_size
    wanted = [given] * len(sizes) if given is None or is_integer(given) else list(given)
    return [n if out is None else out for n, out in zip(sizes, wanted, strict=True)]


def _upsampled(layer: torch.nn.Upsample, sizes: list[int]) -> list[int]:
    if layer.size is not None:
        return list(expand(_OP, "size", cast(Any, layer.size), len(sizes)))
    factors = layer.scale_factor if isinstance(layer.scale_factor, tuple) else (layer.scale_factor,) * len(sizes)
    return [int(n * cast(float, factor)) for n, factor in zip(sizes, factors, strict=True)]


def spatial_of(layer: torch.nn.Module) -> int | None:
    """How many spatial dimensions a layer works on; None for nn.Upsample, which takes any. TypeError for others."""
    if isinstance(layer, _ConvNd):
        return layer.weight.dim() - 2
    if isinstance(layer, torch.nn.Upsample):
        return None
    known = (_MaxPoolNd, _AvgPoolNd, _LPPoolNd, _MaxUnpoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
    if isinstance(layer, known):
        for kind in type(layer).__mro__:
            if kind.__name__[-2:] in ("1d", "2d", "3d"):
                return int(kind.__name__[-2])
    raise TypeError(
        f"{_OP}: the layer must be a convolution, pooling, unpooling or upsampling layer, got {type(layer).__name__}"
    )


@overload
def output_size(what: torch.nn.Module, input_size: Ints) -> tuple[int, ...]: ...
@overload
def output_size(
    what: Ints,
    kernel_size: Ints,
    stride: Ints | None = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    *,
    ceil_mode: bool = False,
    transposed: bool = False,
    output_padding: Ints = 0,
) -> tuple[int, ...]: ...
def output_size(what: Any, *args: Any, **kwargs: Any) -> tuple[int, ...]:
    """Spatial output sizes of a convolution or pooling.

    ``output_size(input_size, kernel_size, stride=1, padding=0, dilation=1, *, ceil_mode=False, transposed=False,
    output_padding=0)`` for a window's arguments: ``input_size`` is an int or 1 to 3 ints, places without batch and
    channels; an int stands for as many dimensions as ``kernel_size`` has. ``stride=None`` is the kernel size (pooling).
    ``padding`` has every form of :mod:`convext.padding`.

    ``output_size(layer, input_size)`` for a layer: convolution, transposed convolution, max, average, LP and adaptive
    pooling, max unpooling, upsampling, of torch.nn or convext.

    The sizes, one per dimension, are those that the operators themselves compute (csrc/geometry.h; Dumoulin and Visin
    2016, A guide to convolution arithmetic for deep learning):

        floor((n + before + after - dilation (kernel - 1) - 1) / stride) + 1         (ceil_mode: rounded up, but no
                                                                                      window starts past the input)
        (n - 1) stride - before - after + dilation (kernel - 1) + output_padding + 1     transposed

    Raises TypeError for an argument of a wrong type, ValueError for a wrong number of sizes, RuntimeError for a window
    that cannot be.
    """
    if isinstance(what, torch.nn.Module):
        given = [*args, *kwargs.values()]
        if len(given) != 1 or (kwargs and "input_size" not in kwargs):
            raise TypeError(f"{_OP}: a layer takes input_size and nothing else, got {args} {kwargs}")
        return tuple(_layer(what, given[0]))
    return _of_arguments(what, *args, **kwargs)


def _of_arguments(
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints | None = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    *,
    ceil_mode: bool = False,
    transposed: bool = False,
    output_padding: Ints = 0,
) -> tuple[int, ...]:
    if kernel_size is None:
        raise TypeError(f"{_OP}: kernel_size must be an int or a sequence of ints, got kernel_size=None")
    lengths = [len(v) for v in (kernel_size, stride, dilation) if isinstance(v, Sequence)]
    sizes = places_of(input_size, max(lengths, default=1) if is_integer(input_size) else None)
    if transposed:
        if ceil_mode:
            raise ValueError(f"{_OP}: ceil_mode must be False for a transposed convolution, got ceil_mode={ceil_mode}")
        strides = kernel_size if stride is None else stride
        return tuple(_transposed(sizes, kernel_size, strides, padding, dilation, output_padding))
    if output_padding != 0:
        raise ValueError(f"{_OP}: output_padding must be 0 unless transposed=True, got {output_padding!r}")
    return tuple(_windows(sizes, kernel_size, stride, padding, dilation, ceil_mode))
