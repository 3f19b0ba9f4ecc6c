"""Max and average pooling as functions; see :mod:`convext.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from convext import _C, autograd, ops
from convext.arguments import Ints, batched, expand, overridden, require, require_tensor
from convext.padding import Padding, resolve


def _full_precision_3d(input: Tensor, spatial: int) -> Tensor:
    """Under CPU autocast torch pools volumes in float32, images and lines in whatever they come in."""
    if spatial < 3 or not torch.is_autocast_enabled("cpu") or input.device.type != "cpu":
        return input
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


def pool_window(
    op: str, places: Any, kernel_size: Ints, stride: Ints | None, padding: Padding, dilation: Ints
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel size, stride, flattened padding and dilation, spelled out for spatial input sizes ``places``."""
    spatial = len(places)
    kernel = expand(op, "kernel_size", kernel_size, spatial)
    no_stride = stride is None or (isinstance(stride, Sequence) and len(stride) == 0)
    strides = kernel if no_stride else expand(op, "stride", cast(Ints, stride), spatial)
    dilations = expand(op, "dilation", dilation, spatial)
    return kernel, strides, resolve(op, padding, places, kernel, strides, dilations), dilations


def pool_input(op: str, input: Tensor, spatial: int, algorithm: str) -> tuple[Tensor, bool]:
    require_tensor(op, "input", input)
    require(op, "algorithm", algorithm, str, "a string")
    if input.dim() not in (spatial + 1, spatial + 2):
        raise RuntimeError(
            f"{op}: Expected {spatial + 1}D or {spatial + 2}D (batch mode) tensor with optional 0 dim batch size for "
            f"input, got input of size {list(input.shape)}"
        )
    return batched(op, _full_precision_3d(input, spatial), spatial)


def _max_pool(function: Any, spatial: int, *arguments: Any) -> Any:
    """The long road of a call: what is not plain (csrc/calls.cpp), or traced by Dynamo."""
    output = overridden(function, arguments, "algorithm")
    return output if output is not NotImplemented else _max_pool_at_length(f"max_pool{spatial}d", spatial, *arguments)


def _max_pool_at_length(
    op: str,
    spatial: int,
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    dilation: Ints,
    ceil_mode: bool,
    return_indices: bool,
    algorithm: str,
) -> Any:
    x, unbatched = pool_input(op, input, spatial, algorithm)
    kernel, strides, pads, dilations = pool_window(op, x.shape[2:], kernel_size, stride, padding, dilation)
    window = (kernel, strides, pads, dilations, ceil_mode)
    return max_of_windows(x, unbatched, window, return_indices, algorithm)


def max_of_windows(
    x: Tensor, unbatched: bool, window: tuple[Any, ...], return_indices: bool, algorithm: str
) -> Tensor | tuple[Tensor, Tensor]:
    """The output, or the output and the int64 indices, of the operators' ``window``; without the batch that x was
    given."""
    output, places = autograd.max_pool(x, *window, return_indices, algorithm)
    if unbatched:
        output = output.squeeze(0)
    if not return_indices:
        return output
    indices = ops.max_pool_indices(places, x.shape, *window)
    return output, indices.squeeze(0) if unbatched else indices


def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    algorithm: str = "auto",
) -> Any:
    """1-D max pooling: input (n, c, w) or (c, w) -> output, or (output, int64 indices) if return_indices."""
    road: Any = _max_pool if is_dynamo_compiling() else _C.max_pool
    return road(max_pool1d, 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, algorithm)


def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    algorithm: str = "auto",
) -> Any:
    """2-D max pooling: input (n, c, h, w) or (c, h, w) -> output, or (output, int64 indices) if return_indices."""
    road: Any = _max_pool if is_dynamo_compiling() else _C.max_pool
    return road(max_pool2d, 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, algorithm)


def max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    algorithm: str = "auto",
) -> Any:
    """3-D max pooling: input (n, c, d, h, w) or (c, d, h, w) -> output, or (output, int64 indices)."""
    road: Any = _max_pool if is_dynamo_compiling() else _C.max_pool
    return road(max_pool3d, 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, algorithm)


def _avg_pool(function: Any, spatial: int, *arguments: Any) -> Any:
    output = overridden(function, arguments, "dilation", "algorithm")
    return output if output is not NotImplemented else _avg_pool_at_length(f"avg_pool{spatial}d", spatial, *arguments)


def _avg_pool_at_length(
    op: str,
    spatial: int,
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    dilation: Ints,
    algorithm: str,
) -> Tensor:
    x, unbatched = pool_input(op, input, spatial, algorithm)
    require(op, "divisor_override", divisor_override, (int, type(None)), "an int or None")
    kernel, strides, pads, dilations = pool_window(op, x.shape[2:], kernel_size, stride, padding, dilation)
    output = autograd.avg_pool(
        x, kernel, strides, pads, dilations, ceil_mode, count_include_pad, divisor_override, algorithm
    )
    return output.squeeze(0) if unbatched else output


def avg_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    algorithm: str = "auto",
) -> Tensor:
    """1-D average pooling: input (n, c, w) or (c, w). Divides by the window's places, or by divisor_override.

    Padding counts among the places unless count_include_pad is False (ONNX's AveragePool leaves it out unless told
    otherwise); what ceil_mode adds past it never does.
    """
    road: Any = _avg_pool if is_dynamo_compiling() else _C.avg_pool
    return road(  # type: ignore[no-any-return]
        avg_pool1d,
        1,
        input,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
        dilation,
        algorithm,
    )


def avg_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    algorithm: str = "auto",
) -> Tensor:
    """2-D average pooling: input (n, c, h, w) or (c, h, w). Divides by the window's places, or by divisor_override."""
    road: Any = _avg_pool if is_dynamo_compiling() else _C.avg_pool
    return road(  # type: ignore[no-any-return]
        avg_pool2d,
        2,
        input,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
        dilation,
        algorithm,
    )


def avg_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    algorithm: str = "auto",
) -> Tensor:
    """3-D average pooling: input (n, c, d, h, w) or (c, d, h, w)."""
    road: Any = _avg_pool if is_dynamo_compiling() else _C.avg_pool
    return road(  # type: ignore[no-any-return]
        avg_pool3d,
        3,
        input,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
        dilation,
        algorithm,
    )


_C.set_long_road("max_pool", _max_pool)
_C.set_long_road("avg_pool", _avg_pool)
