"""Power-average, k-max and fractional max pooling, and max unpooling; see :mod:`convext.functional`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from convext import _C, autograd, ops
from convext.arguments import Ints, batched, expand, is_integer, overridden, require, require_tensor
from convext.functional.pooling import max_pool1d, max_pool2d, max_pool3d, pool_input, pool_window
from convext.padding import Padding, resolve

_MAX_POOLS = (max_pool1d, max_pool2d, max_pool3d)


# Power averages ------------------------------------------------------------------------------------------------------


def _lp_pool(
    function: Callable[..., Tensor],
    spatial: int,
    input: Tensor,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None,
    ceil_mode: bool,
    padding: Padding,
    dilation: Ints,
    algorithm: str,
) -> Tensor:
    arguments = (input, norm_type, kernel_size, stride, ceil_mode, padding, dilation, algorithm)
    answer = overridden(function, arguments, "padding", "dilation", "algorithm")
    if answer is not NotImplemented:
        return answer  # type: ignore[no-any-return]
    op = f"lp_pool{spatial}d"
    require_tensor(op, "input", input)
    require(op, "norm_type", norm_type, (int, float), "a number")
    if norm_type == 0:
        raise ValueError(f"{op}: norm_type must not be 0, got norm_type={norm_type!r}")
    if math.isinf(norm_type):
        magnitudes = input.abs() if norm_type > 0 else -input.abs()
        maximum = _MAX_POOLS[spatial - 1]
        pooled: Tensor = maximum(magnitudes, kernel_size, stride, padding, dilation, ceil_mode, algorithm=algorithm)
        return pooled if norm_type > 0 else -pooled
    x, unbatched = pool_input(op, input, spatial, algorithm)
    kernel, *window = pool_window(op, x.shape[2:], kernel_size, stride, padding, dilation)
    # torch's: a window cut by ceil_mode is averaged over what is left and multiplied by the whole
    output = autograd.lp_pool(x, norm_type, math.prod(kernel), kernel, *window, ceil_mode, True, None, algorithm)
    return output.squeeze(0) if unbatched else output


def lp_pool1d(
    input: Tensor,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    algorithm: str = "auto",
) -> Tensor:
    """1-D power-average pooling, ``(sum x^p) ^ (1 / p)`` with p = norm_type: input (n, c, w) or (c, w).

    torch's, with its rules: no absolute value is taken, so an odd p keeps signs; p = inf is the largest magnitude; a
    window that ceil_mode lets hang over is scaled up as if it were whole. ONNX's LpPool of the same name takes
    absolute values and does not scale. Padding counts as zeros.
    """
    road: Any = _lp_pool if is_dynamo_compiling() else _C.lp_pool
    return road(  # type: ignore[no-any-return]
        lp_pool1d, 1, input, norm_type, kernel_size, stride, ceil_mode, padding, dilation, algorithm
    )


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    algorithm: str = "auto",
) -> Tensor:
    """2-D power-average pooling: input (n, c, h, w) or (c, h, w); see :func:`lp_pool1d`."""
    road: Any = _lp_pool if is_dynamo_compiling() else _C.lp_pool
    return road(  # type: ignore[no-any-return]
        lp_pool2d, 2, input, norm_type, kernel_size, stride, ceil_mode, padding, dilation, algorithm
    )


def lp_pool3d(
    input: Tensor,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    algorithm: str = "auto",
) -> Tensor:
    """3-D power-average pooling: input (n, c, d, h, w) or (c, d, h, w); see :func:`lp_pool1d`."""
    road: Any = _lp_pool if is_dynamo_compiling() else _C.lp_pool
    return road(  # type: ignore[no-any-return]
        lp_pool3d, 3, input, norm_type, kernel_size, stride, ceil_mode, padding, dilation, algorithm
    )


_C.set_long_road("lp_pool", _lp_pool)


# The k greatest ------------------------------------------------------------------------------------------------------


def _check_k(op: str, k: Any, places: int, of: str) -> None:
    if not is_integer(k):
        raise TypeError(f"{op}: k must be an int, got k={k!r} ({type(k).__name__})")
    if isinstance(k, int) and isinstance(places, int) and not 1 <= k <= places:
        raise ValueError(f"{op}: k must be between 1 and the {places} places of {of}, got k={k}")


def _k_max_pool1d(function: Callable[..., Any], _: int, input: Tensor, k: int, dim: int, return_indices: bool) -> Any:
    answer = overridden(function, (input, k, dim, return_indices))
    if answer is not NotImplemented:
        return answer
    op = "k_max_pool1d"
    require_tensor(op, "input", input)
    require(op, "dim", dim, int, "an int")
    if input.dim() == 0 or not -input.dim() <= dim < input.dim():
        raise IndexError(f"{op}: dim must be a dimension of an input of size {list(input.shape)}, got dim={dim}")
    _check_k(op, k, input.shape[dim], f"dimension {dim} of an input of size {list(input.shape)}")
    lines = input.movedim(dim, -1)
    output, indices = autograd.k_max_pool(lines.reshape(1, -1, lines.shape[-1]), k)
    output, indices = (t.reshape(*lines.shape[:-1], k).movedim(-1, dim) for t in (output, indices))
    return (output, indices) if return_indices else output


def k_max_pool1d(input: Tensor, k: int, dim: int = -1, return_indices: bool = False) -> Any:
    """The k greatest along a dimension, in their original order (Kalchbrenner, Grefenstette and Blunsom, "A
    convolutional neural network for modelling sentences", 2014).

    Input of any shape, ``dim`` shrinks to k. Of equal numbers the first are taken; NaN is above all. Returns the
    output, or (output, int64 indices along dim) if return_indices. Raises ValueError unless 1 <= k <= the size of dim.
    """
    road: Any = _k_max_pool1d if is_dynamo_compiling() else _C.k_max_pool1d
    return road(k_max_pool1d, 1, input, k, dim, return_indices)


def _k_max_pool(function: Callable[..., Any], _: int, input: Tensor, k: int, return_indices: bool) -> Any:
    answer = overridden(function, (input, k, return_indices))
    if answer is not NotImplemented:
        return answer
    op = "k_max_pool"
    require_tensor(op, "input", input)
    if not 3 <= input.dim() <= 5:
        raise RuntimeError(
            f"{op}: Expected input (n, c, *places) of 1 to 3 spatial dimensions, got {list(input.shape)}"
        )
    _check_k(op, k, math.prod(input.shape[2:]), f"a plane of an input of size {list(input.shape)}")
    output, indices = autograd.k_max_pool(input, k)
    return (output, indices) if return_indices else output


def k_max_pool(input: Tensor, k: int, return_indices: bool = False) -> Any:
    """The k greatest of each plane, in the order of their places (row-major): input (n, c, *places) of 1 to 3 spatial
    dimensions -> (n, c, k), or with the int64 flat indices of their places.

    Ties, NaN and errors as in :func:`k_max_pool1d`.
    """
    road: Any = _k_max_pool if is_dynamo_compiling() else _C.k_max_pool
    return road(k_max_pool, 1, input, k, return_indices)


_C.set_long_road("k_max_pool1d", _k_max_pool1d)
_C.set_long_road("k_max_pool", _k_max_pool)


# Max unpooling -------------------------------------------------------------------------------------------------------


def _unpooled_size(
    op: str, places: Sequence[int], kernel: list[int], stride: list[int], padding: Padding, output_size: Any
) -> list[int]:
    """The spatial sizes of an output: given, and then such that they pool to ``places``, or the least that do."""
    spatial = len(kernel)
    given = None
    if output_size is not None:
        given = list(output_size)[2:] if len(output_size) == spatial + 2 else list(output_size)
        if len(given) != spatial:
            raise ValueError(
                f"{op}: output_size should be a sequence containing {spatial} or {spatial + 2} elements, but it has a "
                f"length of '{len(output_size)}'"
            )
    elif isinstance(padding, str) and padding != "valid":
        raise ValueError(f"{op}: padding={padding!r} says how much once the output is known: give output_size")
    pads = resolve(op, padding, given or places, kernel, stride, [1] * spatial)
    usual = [
        (n - 1) * s + k - before - after
        for n, k, s, before, after in zip(places, kernel, stride, pads[::2], pads[1::2], strict=True)
    ]
    for i, (size, near, s) in enumerate(zip(given or usual, usual, stride, strict=True)):
        if not near - s < size < near + s:
            raise ValueError(
                f'{op}: invalid output_size "{output_size}" (dim {i} must be between {near - s} and {near + s})'
            )
    sizes = given or usual
    if any(size < 0 for size in sizes):
        raise ValueError(f"{op}: output_size must contain non-negative spatial dimensions, but got {sizes}")
    return sizes


def _max_unpool(
    function: Callable[..., Tensor],
    spatial: int,
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    output_size: Any,
) -> Tensor:
    answer = overridden(function, (input, indices, kernel_size, stride, padding, output_size))
    if answer is not NotImplemented:
        return answer  # type: ignore[no-any-return]
    op = f"max_unpool{spatial}d"
    require_tensor(op, "input", input)
    require_tensor(op, "indices", indices)
    if indices.shape != input.shape:
        raise RuntimeError(
            f"{op}: Expected shape of indices to be same as that of the input tensor ({list(input.shape)}) but got "
            f"indices tensor with shape: {list(indices.shape)}"
        )
    x, unbatched = batched(op, input, spatial)
    kernel = expand(op, "kernel_size", kernel_size, spatial)
    strides = kernel if stride is None else expand(op, "stride", stride, spatial)
    sizes = _unpooled_size(op, x.shape[2:], kernel, strides, padding, output_size)
    output = autograd.max_unpool(x, indices.unsqueeze(0) if unbatched else indices, sizes)
    return output.squeeze(0) if unbatched else output


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    output_size: Any = None,
) -> Tensor:
    """Puts each number where the maximum came from, zeros elsewhere: input and int64 indices (n, c, q) or (c, q) ->
    (n, c, w), as :func:`convext.functional.max_pool1d` with return_indices gives them.

    ``output_size`` (with or without n and c) settles which of the sizes that pool to the input's is meant. Where
    several indices are equal the last wins. An index outside of the output raises RuntimeError (on a GPU it is passed
    over, since asking would wait for the device).
    """
    road: Any = _max_unpool if is_dynamo_compiling() else _C.max_unpool
    return road(max_unpool1d, 1, input, indices, kernel_size, stride, padding, output_size)  # type: ignore[no-any-return]


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    output_size: Any = None,
) -> Tensor:
    """The partial inverse of 2-D max pooling: (n, c, p, q) or (c, p, q) -> (n, c, h, w); see :func:`max_unpool1d`."""
    road: Any = _max_unpool if is_dynamo_compiling() else _C.max_unpool
    return road(max_unpool2d, 2, input, indices, kernel_size, stride, padding, output_size)  # type: ignore[no-any-return]


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    output_size: Any = None,
) -> Tensor:
    """The partial inverse of 3-D max pooling: (n, c, o, p, q) or (c, o, p, q) -> (n, c, d, h, w); see
    :func:`max_unpool1d`."""
    road: Any = _max_unpool if is_dynamo_compiling() else _C.max_unpool
    return road(max_unpool3d, 3, input, indices, kernel_size, stride, padding, output_size)  # type: ignore[no-any-return]


_C.set_long_road("max_unpool", _max_unpool)


# Fractional max pooling ----------------------------------------------------------------------------------------------


def _fractional(
    function: Callable[..., Any],
    spatial: int,
    input: Tensor,
    kernel_size: Ints,
    output_size: Ints | None,
    output_ratio: float | Sequence[float] | None,
    return_indices: bool,
    _random_samples: Tensor | None,
) -> Any:
    arguments = (input, kernel_size, output_size, output_ratio, return_indices, _random_samples)
    answer = overridden(function, arguments)
    if answer is not NotImplemented:
        return answer
    op = f"fractional_max_pool{spatial}d"
    require_tensor(op, "input", input)
    if output_size is None and output_ratio is None:
        raise ValueError(f"{op} requires specifying either an output_size or an output_ratio")
    x, unbatched = batched(op, input, spatial)
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()  # as torch does
    kernel = expand(op, "kernel_size", kernel_size, spatial)
    if output_size is None:
        ratios = [output_ratio] * spatial if isinstance(output_ratio, int | float) else list(output_ratio or ())
        if len(ratios) != spatial:
            raise ValueError(f"{op} requires output_ratio to be a number or {spatial} of them, got {output_ratio!r}")
        sizes = [int(n * ratio) for n, ratio in zip(x.shape[2:], ratios, strict=True)]
    else:
        sizes = expand(op, "output_size", output_size, spatial)
    samples = _random_samples
    if samples is None:
        samples = torch.rand(*x.shape[:2], spatial, dtype=x.dtype, device=x.device)
    output, places = autograd.fractional_max_pool(x, samples, kernel, sizes, return_indices)
    if unbatched:
        output = output.squeeze(0)
    if not return_indices:
        return output
    indices = ops.fractional_max_pool_indices(places, samples, x.shape, kernel)
    return output, indices.squeeze(0) if unbatched else indices


def fractional_max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    output_size: Ints | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """2-D max pooling over windows whose starts are drawn at random (Graham, "Fractional max-pooling", 2014): input
    (n, c, h, w) or (c, h, w) -> output_size, or output_ratio times the input's.

    ``_random_samples`` (n, c, 2) in [0, 1) fixes the draw: torch's name and order, width first. Returns the output, or
    (output, int64 indices) if return_indices. Raises ValueError without a size or ratio, RuntimeError where output and
    window do not fit the input.
    """
    road: Any = _fractional if is_dynamo_compiling() else _C.fractional_max_pool
    return road(
        fractional_max_pool2d, 2, input, kernel_size, output_size, output_ratio, return_indices, _random_samples
    )


def fractional_max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    output_size: Ints | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """3-D fractional max pooling: (n, c, d, h, w) or (c, d, h, w); ``_random_samples`` (n, c, 3), depth first; see
    :func:`fractional_max_pool2d`."""
    road: Any = _fractional if is_dynamo_compiling() else _C.fractional_max_pool
    return road(
        fractional_max_pool3d, 3, input, kernel_size, output_size, output_ratio, return_indices, _random_samples
    )


_C.set_long_road("fractional_max_pool", _fractional)
