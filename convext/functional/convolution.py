"""Convolution and transposed convolution as functions; see :mod:`convext.functional`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from convext import _C, autograd
from convext.arguments import Ints, batched, expand, overridden, require, require_tensor
from convext.padding import Padding, resolve


def _lower_precision(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, floating-point operands in its dtype, as torch's convolutions take them."""
    first = tensors[0]
    assert first is not None
    device = first.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    castable = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(t.to(dtype) if t is not None and t.dtype in castable else t for t in tensors)


def _check_weight(op: str, weight: Tensor, input: Tensor, spatial: int) -> None:
    if weight.dim() == spatial + 2:
        return
    if weight.dim() < 3:
        raise RuntimeError(f"{op}: weight should have at least three dimensions, got size {list(weight.shape)}")
    raise RuntimeError(
        f"{op}: Expected {weight.dim()}-dimensional input for {weight.dim()}-dimensional weight, got input of size "
        f"{list(input.shape)} and weight of size {list(weight.shape)} (expected {spatial + 2} dimensions)"
    )


def _require_options(op: str, groups: object, flip_kernel: object, algorithm: object) -> None:
    require(op, "groups", groups, (int, torch.SymInt), "an int")
    require(op, "flip_kernel", flip_kernel, bool, "a bool")
    require(op, "algorithm", algorithm, str, "a string")


def conv_options(
    op: str,
    places: Any,
    kernel: Any,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    algorithm: str,
) -> tuple[Any, ...]:
    """The options of the convolution operators, spelled out for spatial input sizes ``places``."""
    spatial = len(places)
    _require_options(op, groups, flip_kernel, algorithm)
    require(op, "padding_mode", padding_mode, str, "a string")
    strides, dilations = expand(op, "stride", stride, spatial), expand(op, "dilation", dilation, spatial)
    pads = resolve(op, padding, places, kernel, strides, dilations)
    return strides, pads, dilations, groups, padding_mode, flip_kernel, algorithm


def _conv(function: Any, spatial: int, *arguments: Any) -> Any:
    """The long road of a call: what is not plain (csrc/calls.cpp), or traced by Dynamo."""
    output = overridden(function, arguments, "padding_mode", "flip_kernel", "algorithm")
    return output if output is not NotImplemented else _conv_at_length(f"conv{spatial}d", spatial, *arguments)


def _conv_at_length(
    op: str,
    spatial: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    algorithm: str,
) -> Tensor:
    require_tensor(op, "input", input)
    require_tensor(op, "weight", weight)
    _check_weight(op, weight, input, spatial)
    x, unbatched = batched(op, input, spatial)
    cast_x, cast_w, bias = _lower_precision(x, weight, bias)
    x, weight = cast(Tensor, cast_x), cast(Tensor, cast_w)
    options = conv_options(
        op, x.shape[2:], weight.shape[2:], stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm
    )
    output = autograd.conv(x, weight, bias, *options)
    return output.squeeze(0) if unbatched else output


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    algorithm: str = "auto",
) -> Tensor:
    """1-D convolution: input (n, c, w) or (c, w), weight (k, c / groups, s) -> (n, k, q) or (k, q)."""
    road: Any = _conv if is_dynamo_compiling() else _C.conv
    return road(  # type: ignore[no-any-return]
        conv1d, 1, input, weight, bias, stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm
    )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    algorithm: str = "auto",
) -> Tensor:
    """2-D convolution: input (n, c, h, w) or (c, h, w), weight (k, c / groups, r, s) -> (n, k, p, q) or (k, p, q)."""
    road: Any = _conv if is_dynamo_compiling() else _C.conv
    return road(  # type: ignore[no-any-return]
        conv2d, 2, input, weight, bias, stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm
    )


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    algorithm: str = "auto",
) -> Tensor:
    """3-D convolution: input (n, c, d, h, w) or (c, d, h, w), weight (k, c / groups, t, r, s) -> (n, k, o, p, q)."""
    road: Any = _conv if is_dynamo_compiling() else _C.conv
    return road(  # type: ignore[no-any-return]
        conv3d, 3, input, weight, bias, stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm
    )


def transposed_output_size(
    op: str,
    places: Any,
    kernel: Any,
    stride: list[int],
    padding: Padding,
    output_padding: list[int],
    dilation: list[int],
) -> tuple[list[int], list[int]]:
    """Spatial output sizes of a transposed convolution, and its flattened padding.

    ``(n - 1) * stride - before - after + dilation * (kernel - 1) + output_padding + 1``; with "same" padding,
    ``n * stride``: the input size whose "same" convolution gives n.
    """
    if isinstance(padding, str) and padding != "valid":
        if any(output_padding):
            raise ValueError(f"{op}: output_padding must be 0 with padding={padding!r}, got {tuple(output_padding)}")
        sizes = [n * s for n, s in zip(places, stride, strict=True)]
        return sizes, resolve(op, padding, sizes, kernel, stride, dilation)
    pads = resolve(op, padding, places, kernel, stride, dilation)
    sizes = [
        (n - 1) * stride[i] - pads[2 * i] - pads[2 * i + 1] + dilation[i] * (kernel[i] - 1) + output_padding[i] + 1
        for i, n in enumerate(places)
    ]
    return sizes, pads


def _check_transposed(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], output_padding: list[int],
    dilation: list[int], groups: int,
) -> None:  # fmt: skip
    if groups <= 0:
        raise RuntimeError(f"{op}: non-positive groups is not supported, got groups={groups}")
    if any(s <= 0 for s in stride):
        raise RuntimeError(f"{op}: non-positive stride is not supported, got stride={tuple(stride)}")
    if any(d <= 0 for d in dilation):
        raise RuntimeError(f"{op}: dilation should be greater than zero, got dilation={tuple(dilation)}")
    if any(p < 0 for p in output_padding):
        raise RuntimeError(f"{op}: negative output_padding is not supported, got {tuple(output_padding)}")
    if any(p >= s and p >= d for p, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise RuntimeError(
            f"{op}: output padding must be smaller than either stride or dilation, got output_padding="
            f"{tuple(output_padding)}, stride={tuple(stride)}, dilation={tuple(dilation)}"
        )
    if x.shape[1] != weight.shape[0]:
        raise RuntimeError(
            f"{op}: Given transposed=1, weight of size {list(weight.shape)}, expected input{list(x.shape)} to have "
            f"{weight.shape[0]} channels, but got {x.shape[1]} channels instead"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[1] * groups):
        raise RuntimeError(
            f"{op}: Given transposed=1, weight of size {list(weight.shape)}, expected bias to be 1-dimensional with "
            f"{weight.shape[1] * groups} elements, but got bias of size {list(bias.shape)} instead"
        )
    if bias is not None and bias.dtype != x.dtype:
        raise RuntimeError(f"{op}: Input type ({x.dtype}) and bias type ({bias.dtype}) should be the same")


def as_transposed(algorithm: str) -> str:
    """The algorithm of an operator that is a layer's own pass, not a gradient: what it cannot do is an error."""
    return algorithm if algorithm == "auto" else algorithm + _C.TRANSPOSED


def _conv_transpose(function: Any, spatial: int, *arguments: Any) -> Any:
    output = overridden(function, arguments, "flip_kernel", "algorithm")
    if output is not NotImplemented:
        return output
    return _conv_transpose_at_length(f"conv_transpose{spatial}d", spatial, *arguments)


def _conv_transpose_at_length(
    op: str,
    spatial: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Padding,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
    flip_kernel: bool,
    algorithm: str,
) -> Tensor:
    require_tensor(op, "input", input)
    require_tensor(op, "weight", weight)
    _check_weight(op, weight, input, spatial)
    x, unbatched = batched(op, input, spatial)
    cast_x, cast_w, bias = _lower_precision(x, weight, bias)
    x, weight = cast(Tensor, cast_x), cast(Tensor, cast_w)
    strides, dilations = expand(op, "stride", stride, spatial), expand(op, "dilation", dilation, spatial)
    extra = expand(op, "output_padding", output_padding, spatial)
    _require_options(op, groups, flip_kernel, algorithm)
    _check_transposed(op, x, weight, bias, strides, extra, dilations, groups)
    sizes, pads = transposed_output_size(op, x.shape[2:], weight.shape[2:], strides, padding, extra, dilations)
    # An output_padding of a stride or more (less than the dilation) shows outputs of places past the input: zeros.
    surplus = [p // s for p, s in zip(extra, strides, strict=True)]
    if padding not in ("same", "same_lower") and any(surplus):
        x = torch.nn.functional.pad(x, [side for after in reversed(surplus) for side in (0, after)])
    shape = [x.shape[0], weight.shape[1] * groups, *sizes]
    options = (strides, pads, dilations, groups, "zeros", flip_kernel, as_transposed(algorithm))
    output = autograd.conv_backward_input(x, weight, shape, *options)
    if bias is not None:
        output = autograd.add_bias(output, bias)
    return output.squeeze(0) if unbatched else output


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    flip_kernel: bool = False,
    algorithm: str = "auto",
) -> Tensor:
    """Transposed 1-D convolution: input (n, k, q), weight (k, c / groups, s) -> (n, c, w)."""
    road: Any = _conv_transpose if is_dynamo_compiling() else _C.conv_transpose
    return road(  # type: ignore[no-any-return]
        conv_transpose1d,
        1,
        input,
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        flip_kernel,
        algorithm,
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    flip_kernel: bool = False,
    algorithm: str = "auto",
) -> Tensor:
    """Transposed 2-D convolution: input (n, k, p, q), weight (k, c / groups, r, s) -> (n, c, h, w)."""
    road: Any = _conv_transpose if is_dynamo_compiling() else _C.conv_transpose
    return road(  # type: ignore[no-any-return]
        conv_transpose2d,
        2,
        input,
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        flip_kernel,
        algorithm,
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    flip_kernel: bool = False,
    algorithm: str = "auto",
) -> Tensor:
    """Transposed 3-D convolution: input (n, k, o, p, q), weight (k, c / groups, t, r, s) -> (n, c, d, h, w)."""
    road: Any = _conv_transpose if is_dynamo_compiling() else _C.conv_transpose
    return road(  # type: ignore[no-any-return]
        conv_transpose3d,
        3,
        input,
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        flip_kernel,
        algorithm,
    )


_C.set_long_road("conv", _conv)
_C.set_long_road("conv_transpose", _conv_transpose)
