"""Pooling to a given output size, global pooling among it; see :mod:`convext.functional`.

Along a dimension of ``n`` places and ``m`` outputs, output ``o`` sees the places from ``floor(o n / m)`` up to
``ceil((o + 1) n / m)``: windows of ``n / m`` places where that is a whole number, else windows of two sizes of which
neighbours share a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from convext import _C, autograd, ops
from convext.arguments import is_integer, overridden
from convext.functional.pooling import max_of_windows, pool_input

OutputSize: TypeAlias = int | Sequence[int | None] | None


def adaptive_window(op: str, sizes: Sequence[int], output_size: OutputSize) -> tuple[Any, ...]:
    """The operators' window arguments for an input of these spatial sizes; None stands for the input's own size.

    Raises RuntimeError for a wrong number of entries or a negative one, TypeError for another type.
    """
    spatial = len(sizes)
    entries: Sequence[Any]
    if output_size is None or is_integer(output_size):
        entries = [output_size] * spatial
    elif isinstance(output_size, Sequence) and not isinstance(output_size, str):
        entries = output_size
    else:
        raise TypeError(
            f"{op}: output_size must be an int, None or a sequence of them, got {output_size!r} "
            f"({type(output_size).__name__})"
        )
    if len(entries) != spatial:
        one = "'output_size' should contain one int" if spatial == 1 else f"output_size must be {spatial} entries"
        raise RuntimeError(f"{op}: {one}, got output_size={tuple(entries)}")
    resolved = []
    for entry, size in zip(entries, sizes, strict=True):
        if entry is not None and not is_integer(entry):
            raise TypeError(f"{op}: output_size must be made of ints and None, got output_size={output_size!r}")
        if isinstance(entry, int) and entry < 0:
            raise RuntimeError(
                f"{op}: elements of output_size must be greater than or equal to 0, got output_size={tuple(entries)} "
                "(Trying to create tensor with negative dimension)"
            )
        resolved.append(size if entry is None else entry)
    none = [ops.ADAPTIVE] if torch.compiler.is_compiling() else []
    return resolved, none, none, none, False


def _check(op: str, input: Any, spatial: int, algorithm: str) -> tuple[Tensor, bool]:
    if isinstance(input, Tensor) and input.dim() <= spatial:
        raise ValueError(f"{op}: Input dimension should be at least {spatial + 1}, got size {list(input.shape)}")
    return pool_input(op, input, spatial, algorithm)


def _adaptive_avg(
    function: Callable[..., Tensor], spatial: int, input: Tensor, output_size: OutputSize, algorithm: str
) -> Tensor:
    answer = overridden(function, (input, output_size, algorithm), "algorithm")
    if answer is not NotImplemented:
        return answer  # type: ignore[no-any-return]
    op = f"adaptive_avg_pool{spatial}d"
    x, unbatched = _check(op, input, spatial, algorithm)
    output = autograd.avg_pool(x, *adaptive_window(op, x.shape[2:], output_size), True, None, algorithm)
    return output.squeeze(0) if unbatched else output


def _adaptive_max(
    function: Callable[..., Any],
    spatial: int,
    input: Tensor,
    output_size: OutputSize,
    return_indices: bool,
    algorithm: str,
) -> Any:
    answer = overridden(function, (input, output_size, return_indices, algorithm), "algorithm")
    if answer is not NotImplemented:
        return answer
    op = f"adaptive_max_pool{spatial}d"
    x, unbatched = _check(op, input, spatial, algorithm)
    window = adaptive_window(op, x.shape[2:], output_size)
    return max_of_windows(x, unbatched, window, return_indices, algorithm)


def adaptive_avg_pool1d(input: Tensor, output_size: OutputSize, *, algorithm: str = "auto") -> Tensor:
    """1-D average pooling to ``output_size`` places: input (n, c, w) or (c, w)."""
    road: Any = _adaptive_avg if is_dynamo_compiling() else _C.adaptive_avg_pool
    return road(adaptive_avg_pool1d, 1, input, output_size, algorithm)  # type: ignore[no-any-return]


def adaptive_avg_pool2d(input: Tensor, output_size: OutputSize, *, algorithm: str = "auto") -> Tensor:
    """2-D average pooling to ``output_size`` (p, q), one int for both, None for the input's: input (n, c, h, w) or
    (c, h, w)."""
    road: Any = _adaptive_avg if is_dynamo_compiling() else _C.adaptive_avg_pool
    return road(adaptive_avg_pool2d, 2, input, output_size, algorithm)  # type: ignore[no-any-return]


def adaptive_avg_pool3d(input: Tensor, output_size: OutputSize, *, algorithm: str = "auto") -> Tensor:
    """3-D average pooling to ``output_size`` (o, p, q), as in 2-D: input (n, c, d, h, w) or (c, d, h, w)."""
    road: Any = _adaptive_avg if is_dynamo_compiling() else _C.adaptive_avg_pool
    return road(adaptive_avg_pool3d, 3, input, output_size, algorithm)  # type: ignore[no-any-return]


def adaptive_max_pool1d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False, *, algorithm: str = "auto"
) -> Any:
    """1-D max pooling to ``output_size`` places: output, or (output, int64 indices) if return_indices."""
    road: Any = _adaptive_max if is_dynamo_compiling() else _C.adaptive_max_pool
    return road(adaptive_max_pool1d, 1, input, output_size, return_indices, algorithm)


def adaptive_max_pool2d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False, *, algorithm: str = "auto"
) -> Any:
    """2-D max pooling to ``output_size`` (p, q), one int for both, None for the input's: output, or (output, int64
    indices) if return_indices."""
    road: Any = _adaptive_max if is_dynamo_compiling() else _C.adaptive_max_pool
    return road(adaptive_max_pool2d, 2, input, output_size, return_indices, algorithm)


def adaptive_max_pool3d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False, *, algorithm: str = "auto"
) -> Any:
    """3-D max pooling to ``output_size`` (o, p, q), as in 2-D: output, or (output, int64 indices)."""
    road: Any = _adaptive_max if is_dynamo_compiling() else _C.adaptive_max_pool
    return road(adaptive_max_pool3d, 3, input, output_size, return_indices, algorithm)


def _global(op: str, input: Tensor, keepdim: bool, pools: Sequence[Callable[..., Tensor]], algorithm: str) -> Tensor:
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}: input must be a Tensor, got {type(input).__name__}")
    spatial = input.dim() - 2
    if not 1 <= spatial <= 3:
        raise RuntimeError(
            f"{op}: Expected input (n, c, *places) with 1 to 3 spatial dimensions, got {list(input.shape)}"
        )
    output = pools[spatial - 1](input, 1, algorithm=algorithm)
    return output if keepdim else output.flatten(1)


def global_avg_pool(input: Tensor, keepdim: bool = True, *, algorithm: str = "auto") -> Tensor:
    """The mean of each plane (Lin, Chen and Yan, "Network in network", 2014): input (n, c, *places) of 1 to 3 spatial
    dimensions -> (n, c, 1, ...), or (n, c) without keepdim."""
    pools = (adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)
    return _global("global_avg_pool", input, keepdim, pools, algorithm)


def global_max_pool(input: Tensor, keepdim: bool = True, *, algorithm: str = "auto") -> Tensor:
    """The maximum of each plane: input (n, c, *places) of 1 to 3 spatial dimensions -> (n, c, 1, ...), or (n, c)
    without keepdim."""
    pools = (adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d)
    return _global("global_max_pool", input, keepdim, pools, algorithm)


_C.set_long_road("adaptive_avg_pool", _adaptive_avg)
_C.set_long_road("adaptive_max_pool", _adaptive_max)
