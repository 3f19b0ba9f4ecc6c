"""Every form of padding, turned into one: (before, after) places per spatial dimension, flattened.

Accepted wherever convext takes ``padding``:

* an int, or one int per dimension: that many places on both sides (torch's form);
* ``"valid"``: none;
* ``"same"``: output size ``ceil(input / stride)``, an odd place goes to the end;
* ``"same_lower"``: the same, an odd place goes to the start;
* one ``(before, after)`` pair per dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch

from convext.arguments import Ints, expand, is_integer

Padding: TypeAlias = int | str | Sequence[int] | Sequence[Sequence[int]]

PADDING_STRINGS = ("valid", "same", "same_lower")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")


def is_per_side(padding: object) -> bool:
    """Whether padding is given as (before, after) pairs."""
    return (
        isinstance(padding, Sequence)
        and not isinstance(padding, str)
        and len(padding) > 0
        and isinstance(padding[0], Sequence)
    )


def needs_extension(padding: object, stride: Ints) -> bool:
    """Whether torch.nn would refuse this padding."""
    strided = any(s != 1 for s in stride) if isinstance(stride, Sequence) else stride != 1
    return is_per_side(padding) or padding == "same_lower" or (padding == "same" and strided)


def same_padding(size: int, kernel: int, stride: int, dilation: int, lower: bool) -> tuple[int, int]:
    """The (before, after) padding that makes the output ``ceil(size / stride)`` places long."""
    out = (size + stride - 1) // stride
    missing = (out - 1) * stride + dilation * (kernel - 1) + 1 - size
    total = max(missing, 0) if type(missing) is int else torch.sym_max(missing, 0)  # the latter makes no guard
    half = total // 2
    return (total - half, half) if lower else (half, total - half)


def resolve(
    op: str,
    padding: Padding,
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Flattened (before, after) padding per dimension for an input of the given spatial sizes.

    Raises RuntimeError for an unknown string or a wrong number of entries, TypeError for another type.
    """
    spatial = len(sizes)
    if isinstance(padding, int | torch.SymInt) and not isinstance(padding, bool):
        return [padding] * (2 * spatial)
    if isinstance(padding, str):
        if padding == "valid":
            return [0] * (2 * spatial)
        if padding not in PADDING_STRINGS:
            raise RuntimeError(f"{op}: Invalid padding string: {padding!r} (expected one of {PADDING_STRINGS})")
        if any(s <= 0 for s in stride):
            raise RuntimeError(f"{op}: non-positive stride is not supported, got stride={tuple(stride)}")
        flat: list[int] = []
        for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
            flat.extend(same_padding(size, k, s, d, padding == "same_lower"))
        return flat
    if is_per_side(padding):
        pairs = [tuple(pair) if isinstance(pair, Sequence) else (pair,) for pair in cast(Sequence[Any], padding)]
        if len(pairs) != spatial or any(len(pair) != 2 for pair in pairs):
            raise RuntimeError(f"{op}: padding must have one (before, after) pair per dimension, got {padding!r}")
        if not all(is_integer(side) for pair in pairs for side in pair):
            raise TypeError(f"{op}: padding must be made of ints, got padding={padding!r}")
        return [side for pair in pairs for side in pair]
    flat = []
    for p in expand(op, "padding", padding, spatial):  # type: ignore[arg-type]
        flat.extend((p, p))
    return flat
