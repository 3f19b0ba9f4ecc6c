"""Pooling in ONNX: MaxPool, AveragePool, their global forms, TopK, ScatterElements.

Rounding up (ceil_mode) is said as padding: ONNX's runtimes do not agree on windows that hang over. Adaptive pooling
whose windows are not all alike is done axis by axis: maximum and mean of a box are those of its rows' maxima and means.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

from convext.onnx import sizes
from convext.onnx.sizes import Size, Value
from convext.ops import is_adaptive


def _after(
    places: Sequence[Size],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[Size],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[Size]:
    """The padding at the end with which rounding down gives ceil_mode's output; no window starts past the input."""
    after: list[Size] = list(padding[1::2])
    if not ceil_mode:
        return after
    for i, (n, k, s, d) in enumerate(zip(places, kernel, stride, dilation, strict=True)):
        reach, start = d * (k - 1) + 1, sizes.add(n, padding[2 * i])
        room = sizes.sub(sizes.add(start, after[i]), reach)
        out = sizes.add(sizes.floor_div(sizes.add(room, s - 1), s), 1)
        out = sizes.one_less_where((sizes.mul(sizes.sub(out, 1), s), start), out)
        after[i] = sizes.larger(sizes.sub(sizes.add(sizes.mul(sizes.sub(out, 1), s), reach), start), 0)
    return after


def _windows(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> dict[str, list[int]]:
    return {"kernel_shape": list(kernel), "strides": list(stride), "dilations": list(dilation)}


# Maximum -------------------------------------------------------------------------------------------------------------


def _in_plane(indices: Value, before: Sequence[Size], padded: Sequence[Size], places: Sequence[Size]) -> Value:
    """Flat indices into the padded tensor, as flat indices into the plane of the input."""
    op = sizes.operators()
    found, step = None, 1
    for b, p, n in reversed(list(zip(before, padded, places, strict=True))):
        place = op.Sub(op.Mod(indices, sizes.as_value(p)), sizes.as_value(b))
        indices = op.Div(indices, sizes.as_value(p))
        term = op.Mul(place, sizes.as_value(step))
        found, step = term if found is None else op.Add(found, term), sizes.mul(step, n)
    return found


def _places(indices: Value, window: int) -> Value:
    """convext's places have another meaning, which only max_pool_indices reads: it takes what is cast here."""
    return sizes.operators().Cast(indices, to=2 if window <= 256 else 6)


def _no_places(window: int) -> Value:
    ir = importlib.import_module("onnx_ir")
    dtype = ir.DataType.UINT8 if window <= 256 else ir.DataType.INT32
    return sizes.operators().Constant(value=ir.tensor([], dtype=dtype))


def max_pool(
    input: Value,
    kernel_size: Sequence[Size],
    stride: Sequence[int],
    padding: Sequence[Size],
    dilation: Sequence[int],
    ceil_mode: bool,
    with_places: bool,
    algorithm: str,
) -> Any:
    op = sizes.operators()
    if is_adaptive(stride):
        return _adaptive_max(input, kernel_size, with_places)
    places, window = sizes.places_of(input), math.prod(kernel_size)
    before, after = list(padding[::2]), _after(places, kernel_size, stride, padding, dilation, ceil_mode)
    options, pads = _windows(kernel_size, stride, dilation), [*before, *after]
    if sizes.fits_attributes(kernel_size, before, after):
        padded = places
        first = [0] * len(before)
    else:
        lowest = -math.inf if sizes.is_floating(input) else input.dtype.min
        input = sizes.pad(input, before, after, fill=sizes.scalar_like(lowest, input))
        padded = [sizes.add(n, sizes.add(b, a)) for n, b, a in zip(places, before, after, strict=True)]
        first, pads = before, [0] * len(pads)
    output, indices = op.MaxPool(input, **options, pads=pads)
    if not with_places:
        return output, _no_places(window)
    return output, _places(_in_plane(indices, first, padded, places), window)


def max_pool_indices(
    places: Value,
    input_size: Sequence[Size],
    kernel_size: Sequence[Size],
    stride: Sequence[int],
    padding: Sequence[Size],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Any:
    return sizes.operators().Identity(places.producer().inputs[0])


# Average -------------------------------------------------------------------------------------------------------------


def avg_pool(
    input: Value,
    kernel_size: Sequence[Size],
    stride: Sequence[int],
    padding: Sequence[Size],
    dilation: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    algorithm: str,
) -> Any:
    op = sizes.operators()
    if is_adaptive(stride):
        return _adaptive_avg(input, kernel_size)
    places = sizes.places_of(input)
    before, after = list(padding[::2]), list(padding[1::2])
    end = _after(places, kernel_size, stride, padding, dilation, ceil_mode)
    options = _windows(kernel_size, stride, dilation)
    if not divisor_override and sizes.fits_attributes(kernel_size, before, end):
        hangs_over = any(e > a for e, a in zip(end, after, strict=True))
        if not (hangs_over and count_include_pad):
            return op.AveragePool(input, **options, pads=[*before, *end], count_include_pad=int(count_include_pad))
    # Over the whole window first, then divided by the share of it that counts.
    means = op.AveragePool(sizes.pad(input, before, end), **options)
    if divisor_override:
        return op.Mul(means, sizes.scalar_like(math.prod(kernel_size) / divisor_override, input))
    counted = op.Expand(sizes.scalar_like(1.0, input), sizes.vector([1, 1, *places]))
    if count_include_pad:
        counted = sizes.pad(counted, before, after, fill=sizes.scalar_like(1.0, input))
        rest = [sizes.sub(e, a) for e, a in zip(end, after, strict=True)]
        counted = sizes.pad(counted, [0] * len(rest), rest)
    else:
        counted = sizes.pad(counted, before, end)
    return op.Div(means, op.AveragePool(counted, **options))


# Adaptive ------------------------------------------------------------------------------------------------------------


def _bounds(n: int, m: int) -> list[tuple[int, int]]:
    """Output o of m sees the places from floor(o n / m) up to ceil((o + 1) n / m)."""
    return [(o * n // m, -(-(o + 1) * n // m)) for o in range(m)]


def _require_known(places: Sequence[Size], output_size: Sequence[Size]) -> None:
    if not sizes.known(places, output_size):
        got = [s if isinstance(s, int) else "?" for s in output_size]
        raise sizes.NotInOnnxError(
            "export_onnx: ONNX has no operator for adaptive pooling of a size known only when the model runs (expected "
            f"fixed spatial sizes, or output size 1), got output size {got}"
        )
    if 0 in output_size:
        raise sizes.NotInOnnxError(f"export_onnx: ONNX has no pooling to nothing, got output size {list(output_size)}")


def _alike(places: Sequence[int], output_size: Sequence[int]) -> dict[str, list[int]] | None:
    """The windows of adaptive pooling as those of an ordinary one, where they are."""
    if any(n % m for n, m in zip(places, output_size, strict=True)):
        return None
    kernel = [n // m for n, m in zip(places, output_size, strict=True)]
    return {"kernel_shape": kernel, "strides": kernel}


def _adaptive_max(input: Value, output_size: Sequence[Size], with_places: bool) -> Any:
    op = sizes.operators()
    places = sizes.places_of(input)
    if not with_places and all(m == 1 for m in output_size):
        return op.GlobalMaxPool(input), _no_places(_window(places, output_size))
    _require_known(places, output_size)
    options, window = _alike(places, output_size), _window(places, output_size)
    if options is not None:
        output, indices = op.MaxPool(input, **options)
        if not with_places:
            return output, _no_places(window)
        return output, _places(_in_plane(indices, [0] * len(places), places, places), window)
    if not with_places:
        return _box_maxima(input, places, output_size), _no_places(window)
    return _maxima_and_indices(input, places, output_size, window)


def _window(places: Sequence[Size], output_size: Sequence[Size]) -> int:
    """The places of the largest window; as many as can be where that is not known."""
    if not sizes.known(places, output_size):
        return 2**31
    return math.prod(max(e - b for b, e in _bounds(n, m)) for n, m in zip(places, output_size, strict=True))


def _table(n: int, m: int) -> tuple[list[list[int]], list[int]]:
    """What each of m windows sees, the shorter ones' last place again; and their true lengths."""
    bounds = _bounds(n, m)
    longest = max(end - begin for begin, end in bounds)
    return [[min(begin + i, end - 1) for i in range(longest)] for begin, end in bounds], [e - b for b, e in bounds]


def _gathered(input: Value, axis: int, table: Sequence[Sequence[int]]) -> Value:
    """The axis as two: windows, and what each sees."""
    op = sizes.operators()
    flat = sizes.integers(*(place for row in table for place in row))
    return op.Gather(input, op.Reshape(flat, sizes.integers(len(table), -1)), axis=axis)


def _box_maxima(input: Value, places: Sequence[int], output_size: Sequence[int]) -> Value:
    for axis, (n, m) in enumerate(zip(places, output_size, strict=True), start=2):
        rows = _gathered(input, axis, _table(n, m)[0])
        input = sizes.operators().ReduceMax(rows, sizes.integers(axis + 1), keepdims=0)
    return input


def _maxima_and_indices(input: Value, places: Sequence[int], output_size: Sequence[int], window: int) -> Any:
    """All windows laid out, (n, c, windows, taps), and the first greatest of each."""
    op = sizes.operators()
    seen: list[list[int]] = [[0]]
    for n, m in zip(places, output_size, strict=True):
        rows = _table(n, m)[0]
        seen = [[i * n + place for i in before for place in row] for before in seen for row in rows]
    batch, channels = sizes.shape_of(input)[:2]
    flat = op.Reshape(input, sizes.vector([batch, channels, math.prod(places)]))
    taps = _gathered(flat, 2, seen)
    best = op.ArgMax(taps, axis=3, keepdims=1)
    shape = sizes.vector([batch, channels, *output_size])
    output = op.Reshape(op.GatherElements(taps, best, axis=3), shape)
    table = op.Reshape(sizes.integers(*(i for row in seen for i in row)), sizes.integers(1, 1, len(seen), -1))
    table = op.Expand(table, sizes.vector([batch, channels, 1, 1]))
    return output, _places(op.Reshape(op.GatherElements(table, best, axis=3), shape), window)


def _adaptive_avg(input: Value, output_size: Sequence[Size]) -> Value:
    op = sizes.operators()
    if all(m == 1 for m in output_size):
        return op.GlobalAveragePool(input)
    places = sizes.places_of(input)
    _require_known(places, output_size)
    options = _alike(places, output_size)
    if options is not None:
        return op.AveragePool(input, **options)
    for axis, (n, m) in enumerate(zip(places, output_size, strict=True), start=2):
        table, lengths = _table(n, m)
        rows, longest = _gathered(input, axis, table), len(table[0])
        after = len(places) + 1 - axis  # dimensions behind
        counts = [int(i < length) for length in lengths for i in range(longest)]
        mask = op.Cast(op.Reshape(sizes.integers(*counts), sizes.integers(m, longest, *[1] * after)), to=9)
        sums = op.ReduceSum(op.Where(mask, rows, sizes.scalar_like(0.0, input)), sizes.integers(axis + 1), keepdims=0)
        divisors = op.Reshape(sizes.integers(*lengths), sizes.integers(m, *[1] * after))
        input = op.Div(sums, op.CastLike(divisors, input))
    return input


# The k greatest, and the way back ------------------------------------------------------------------------------------


def k_max_pool(input: Value, k: Size) -> Any:
    op = sizes.operators()
    batch, channels, *_ = sizes.shape_of(input)
    flat = op.Reshape(input, sizes.vector([batch, channels, -1]))
    _, greatest = op.TopK(flat, sizes.as_value(k), axis=2)
    indices, _ = op.TopK(greatest, sizes.as_value(k), axis=2, largest=0)
    return op.GatherElements(flat, indices, axis=2), indices


def max_unpool(input: Value, indices: Value, output_size: Sequence[Size]) -> Any:
    op = sizes.operators()
    batch, channels, *_ = sizes.shape_of(input)
    plane = 1
    for size in output_size:
        plane = sizes.mul(plane, size)
    zeros = op.Expand(sizes.scalar_like(0.0, input), sizes.vector([batch, channels, plane]))
    values, at = (op.Reshape(t, sizes.vector([batch, channels, -1])) for t in (input, indices))
    filled = op.ScatterElements(zeros, at, values, axis=2)
    return op.Reshape(filled, sizes.vector([batch, channels, *output_size]))
