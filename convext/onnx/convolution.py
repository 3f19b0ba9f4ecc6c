"""Convolution and transposed convolution in ONNX: Conv and ConvTranspose, with a Pad before where they have no word for
the padding, and the weight read backwards where the kernel is flipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convext.onnx import sizes
from convext.onnx.sizes import Size, Value


def _flipped(weight: Value) -> Value:
    spatial = len(weight.shape) - 2
    last, before_first, back = ([n] * spatial for n in (-1, sizes.INT64_MIN, -1))
    axes = sizes.integers(*range(2, 2 + spatial))
    return sizes.operators().Slice(
        weight, sizes.integers(*last), sizes.integers(*before_first), axes, sizes.integers(*back)
    )


def _symmetric(x: Value, before: Sequence[Size], after: Sequence[Size]) -> Value:
    """A mirror behind the last place: place i < 0 shows -1 - i, place i >= n shows 2 n - 1 - i."""
    op = sizes.operators()
    for axis, (n, b, a) in enumerate(zip(sizes.places_of(x), before, after, strict=True), start=2):
        if sizes.known((n, b, a)):
            shown = [-1 - i if i < 0 else i if i < n else 2 * n - 1 - i for i in range(-b, n + a)]
            x = op.Gather(x, sizes.integers(*shown), axis=axis)
            continue
        first, end, zero = sizes.sub(0, b), sizes.add(n, a), sizes.integers()
        i = op.Range(*(op.Reshape(sizes.as_value(v), zero) for v in (first, end, 1)))
        ahead = op.Where(op.Less(i, sizes.integers(0)), op.Sub(sizes.integers(-1), i), i)
        size = sizes.as_value(n)
        mirrored = op.Sub(op.Sub(op.Mul(size, sizes.integers(2)), sizes.integers(1)), i)
        x = op.Gather(x, op.Where(op.GreaterOrEqual(i, size), mirrored, ahead), axis=axis)
    return x


def conv_forward(
    input: Value,
    weight: Value,
    bias: Value,
    stride: Sequence[int],
    padding: Sequence[Size],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    algorithm: str,
) -> Any:
    before, after = list(padding[::2]), list(padding[1::2])
    if padding_mode == "symmetric":
        input = _symmetric(input, before, after)
    elif padding_mode in sizes.PAD_MODES:
        input = sizes.pad(input, before, after, sizes.PAD_MODES[padding_mode])
    elif not sizes.known(before, after):
        input = sizes.pad(input, before, after)
    else:
        return _conv(input, weight, bias, stride, [*before, *after], dilation, groups, flip_kernel)
    return _conv(input, weight, bias, stride, [0] * len(padding), dilation, groups, flip_kernel)


def _conv(
    x: Value,
    weight: Value,
    bias: Value,
    stride: Sequence[int],
    pads: list[int],
    dilation: Sequence[int],
    groups: int,
    flip_kernel: bool,
) -> Value:
    return sizes.operators().Conv(
        x,
        _flipped(weight) if flip_kernel else weight,
        bias,
        kernel_shape=sizes.kernel_of(weight),
        strides=list(stride),
        dilations=list(dilation),
        pads=pads,
        group=groups,
    )


def conv_transpose(
    grad_output: Value,
    weight: Value,
    input_size: Sequence[Size],
    stride: Sequence[int],
    padding: Sequence[Size],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    algorithm: str,
) -> Any:
    """Whole outputs have ``(n - 1) stride + dilation (kernel - 1) + 1`` places: cut to what is asked for, or longer by
    output_padding."""
    if padding_mode != "zeros":
        raise sizes.NotInOnnxError(f"export_onnx: ConvTranspose has no padding_mode {padding_mode!r}")
    op = sizes.operators()
    kernel, before, wanted = sizes.kernel_of(weight), list(padding[::2]), list(input_size[2:])
    options = {"kernel_shape": kernel, "strides": list(stride), "dilations": list(dilation), "group": groups}
    weight = _flipped(weight) if flip_kernel else weight
    whole = [
        sizes.add(sizes.mul(sizes.sub(n, 1), s), d * (k - 1) + 1)
        for n, s, d, k in zip(sizes.places_of(grad_output), stride, dilation, kernel, strict=True)
    ]
    surplus = [sizes.sub(f, sizes.add(b, w)) for f, b, w in zip(whole, before, wanted, strict=True)]
    if sizes.known(surplus, before):
        options["pads"] = [*before, *(max(extra, 0) for extra in surplus)]
        options["output_padding"] = [max(-extra, 0) for extra in surplus]
        return op.ConvTranspose(grad_output, weight, None, **options)
    output = op.ConvTranspose(grad_output, weight, None, **options)
    return sizes.pad(output, [sizes.sub(0, b) for b in before], [sizes.sub(0, extra) for extra in surplus])
