"""The definitions once more, in a few lines of torch each: slow, obvious, independent of the kernels.

A reader's summary of what the library computes, and what its tests hold the ``naive`` kernels to. Everything is
gathered by explicit index tables, so every padding, stride and dilation is the same line.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def padded_source(i: int, size: int, mode: str) -> int | None:
    """Where padded place i of a line of ``size`` places reads from; None for a zero."""
    if 0 <= i < size:
        return i
    if mode == "zeros":
        return None
    if mode == "reflect":
        return -i if i < 0 else 2 * (size - 1) - i
    if mode == "replicate":
        return 0 if i < 0 else size - 1
    if mode == "circular":
        return i % size
    if mode == "symmetric":
        return -1 - i if i < 0 else 2 * size - 1 - i
    raise ValueError(f"padding_mode must be zeros, reflect, replicate, circular or symmetric, got {mode!r}")


def pad(input: Tensor, padding: Sequence[int], mode: str = "zeros", value: float = 0.0) -> Tensor:
    """input (n, c, *places) with ``padding`` (before, after per dimension) written out."""
    out = input
    for axis in range(input.dim() - 2):
        before, after = padding[2 * axis], padding[2 * axis + 1]
        size = input.shape[2 + axis]
        sources = [padded_source(i, size, mode) for i in range(-before, size + after)]
        line = out.index_select(2 + axis, torch.tensor([0 if s is None else s for s in sources]))
        empty = torch.tensor([s is None for s in sources]).view(-1, *[1] * (input.dim() - 3 - axis))
        out = line.masked_fill(empty, value)
    return out


def windows(
    padded: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], output: Sequence[int]
) -> Tensor:
    """(n, c, *places) -> (n, c, *output, *kernel): what each window sees of an input already padded."""
    out = padded
    for axis, (k, s, d, size) in enumerate(zip(kernel, stride, dilation, output, strict=True)):
        index = torch.arange(size).view(-1, 1) * s + torch.arange(k).view(1, -1) * d
        out = out.index_select(2 + axis, index.flatten()).unflatten(2 + axis, (size, k)).movedim(3 + axis, -1)
    return out


def conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
) -> Tensor:
    """Cross-correlation (true convolution if flip_kernel): pad, look through the windows, multiply, add."""
    spatial = weight.dim() - 2
    padded = pad(input, padding, padding_mode)
    kernel = list(weight.shape[2:])
    output = [
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    if flip_kernel:
        weight = weight.flip(tuple(range(2, 2 + spatial)))
    seen = windows(padded, kernel, stride, dilation, output).flatten(2 + spatial).flatten(2, 1 + spatial)
    seen = seen.unflatten(1, (groups, -1))  # n g c places taps
    w = weight.flatten(2).unflatten(0, (groups, -1))  # g k c taps
    out: Tensor = torch.einsum("ngcpt,gkct->ngkp", seen, w).flatten(1, 2).unflatten(2, tuple(output))
    return out if bias is None else out + bias.view(1, -1, *[1] * spatial)


def pool(
    input: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output: Sequence[int],
    kind: str,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Max or average (kind ``"max"`` or ``"avg"``) over windows; ``output`` is the number of windows per dimension."""
    spatial = len(kernel)
    reach = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(output, stride, dilation, kernel, strict=True)]
    wide = list(padding)
    for axis in range(spatial):  # ceil_mode may look past the padding
        missing = reach[axis] - (input.shape[2 + axis] + padding[2 * axis] + padding[2 * axis + 1])
        wide[2 * axis + 1] += max(missing, 0)

    def look(values: Tensor, by: Sequence[int], fill: float) -> Tensor:
        return windows(pad(values, by, value=fill), kernel, stride, dilation, output).flatten(2 + spatial)

    if kind == "max":
        return look(input, wide, -math.inf).amax(-1)
    inside = torch.ones_like(input[:1, :1])
    if count_include_pad:  # the padding counts, what ceil_mode added does not
        inside = pad(inside, padding, value=1.0)
        extra = [w - p for w, p in itertools.zip_longest(wide, padding)]
        count = windows(pad(inside, extra), kernel, stride, dilation, output).flatten(2 + spatial).sum(-1)
    else:
        count = look(inside, wide, 0.0).sum(-1)
    return look(input, wide, 0.0).sum(-1) / (divisor_override or count)


def adaptive_pool(input: Tensor, output: Sequence[int], kind: str, divisor_override: int | None = None) -> Tensor:
    """Max or average over ``output`` parts per dimension: part i of m of n places is [floor(i n / m), ceil((i+1) n / m)).

    Any divisor_override takes the place of the number of places.
    """
    out = input
    counts = torch.ones((), dtype=input.dtype)
    for axis, parts in enumerate(output):
        size = input.shape[2 + axis]
        cuts = [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]
        pieces = [out.narrow(2 + axis, first, last - first) for first, last in cuts]
        reduced = [p.amax(2 + axis) if kind == "max" else p.sum(2 + axis) for p in pieces]
        out = torch.stack(reduced, 2 + axis)
        counts = counts.unsqueeze(-1) * torch.tensor([float(last - first) for first, last in cuts], dtype=input.dtype)
    return out if kind == "max" else out / (divisor_override or counts)
