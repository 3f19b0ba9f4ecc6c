"""The operators ``torch.ops.convext.*``: shapes for torch.compile (fakes) and batching rules for torch.vmap.

The operators themselves are in csrc/ops.cpp and csrc/ops_pool.cpp. They take every argument spelled out: stride and
dilation with one entry per spatial dimension, padding with two (before, after). A fake asks the same C++ geometry code
for shapes and errors as the kernels do; only symbolic sizes, which C++ cannot hold, go through the two formulas below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from convext import _C

conv_forward: Callable[..., Tensor] = torch.ops.convext.conv_forward.default
conv_fused: Callable[..., Tensor] = torch.ops.convext.conv_fused.default
conv_backward_input: Callable[..., Tensor] = torch.ops.convext.conv_backward_input.default
conv_backward_weight: Callable[..., Tensor] = torch.ops.convext.conv_backward_weight.default
conv_backward_bias: Callable[..., Tensor] = torch.ops.convext.conv_backward_bias.default
activation_backward: Callable[..., Tensor] = torch.ops.convext.activation_backward.default
channel_scale: Callable[..., Tensor] = torch.ops.convext.channel_scale.default
batch_norm: Callable[..., tuple[Tensor, Tensor]] = torch.ops.convext.batch_norm.default
batch_norm_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.ops.convext.batch_norm_backward.default
max_pool: Callable[..., tuple[Tensor, Tensor]] = torch.ops.convext.max_pool.default
max_pool_backward: Callable[..., Tensor] = torch.ops.convext.max_pool_backward.default
max_pool_indices: Callable[..., Tensor] = torch.ops.convext.max_pool_indices.default
avg_pool: Callable[..., Tensor] = torch.ops.convext.avg_pool.default
avg_pool_backward: Callable[..., Tensor] = torch.ops.convext.avg_pool_backward.default
max_unpool: Callable[..., Tensor] = torch.ops.convext.max_unpool.default
k_max_pool: Callable[..., tuple[Tensor, Tensor]] = torch.ops.convext.k_max_pool.default
fractional_max_pool: Callable[..., tuple[Tensor, Tensor]] = torch.ops.convext.fractional_max_pool.default
fractional_max_pool_backward: Callable[..., Tensor] = torch.ops.convext.fractional_max_pool_backward.default
fractional_max_pool_indices: Callable[..., Tensor] = torch.ops.convext.fractional_max_pool_indices.default


ADAPTIVE = -(2**62)
"""Alone in stride, padding and dilation it says what empty lists say, to whom empty lists are lost (AOTInductor)."""


def is_adaptive(stride: Sequence[int]) -> bool:
    """Whether the windows of a pooling operator with this stride are adaptive."""
    return len(stride) == 0 or (len(stride) == 1 and type(stride[0]) is int and stride[0] == ADAPTIVE)


# Shapes ------------------------------------------------------------------------------------------------------------


def _concrete(*sizes: Sequence[int]) -> bool:
    return all(type(v) is int for values in sizes for v in values)


def conv_output_shape(
    input: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str = "zeros",
) -> list[int]:
    """Shape of a convolution's output: ``floor((n + before + after - dilation (k - 1) - 1) / stride) + 1`` per
    dimension. Sizes are full shapes (n, c, ...) and (k, c / groups, ...). Raises RuntimeError for what cannot be."""
    if _concrete(input, weight, stride, padding, dilation, (groups,)):
        return _C.conv_output_shape(
            list(input), list(weight), list(stride), list(padding), list(dilation), groups, padding_mode
        )
    return [input[0], weight[0]] + [
        (n + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (k - 1) - 1) // stride[i] + 1
        for i, (n, k) in enumerate(zip(input[2:], weight[2:], strict=True))
    ]


def pool_output_shape(
    op: str,
    input: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """Shape of a pooling's output. ceil_mode rounds up, but no window starts in the padding after the input. Without a
    stride the pooling is adaptive, and kernel_size its output size."""
    if _concrete(input, kernel_size, stride, padding, dilation):
        return _C.pool_output_shape(
            op, list(input), list(kernel_size), list(stride), list(padding), list(dilation), ceil_mode
        )
    shape = list(input[:2])
    if is_adaptive(stride):
        return shape + list(kernel_size)
    for i, (n, k) in enumerate(zip(input[2:], kernel_size, strict=True)):
        before, after = padding[2 * i], padding[2 * i + 1]
        room = n + before + after - dilation[i] * (k - 1) - 1
        out = (room + (stride[i] - 1 if ceil_mode else 0)) // stride[i] + 1
        if ceil_mode:
            out = torch.sym_ite((out - 1) * stride[i] >= n + before, out - 1, out)
        shape.append(out)
    return shape


# Fakes -------------------------------------------------------------------------------------------------------------


def is_channels_last(tensor: Tensor) -> bool:
    """torch's own rule (suggest_memory_format): do the strides, ambiguous sizes of 1 aside, run channels last?"""
    from torch._prims_common import suggest_memory_format

    return suggest_memory_format(tensor) in (torch.channels_last, torch.channels_last_3d)


def _check_operands(algorithm: str, **tensors: Tensor | None) -> None:
    """What the kernels check besides sizes: one dtype, one device, a known algorithm."""
    (first_name, first), *others = [(name, t) for name, t in tensors.items() if t is not None]
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            raise RuntimeError(
                f"conv: {first_name} type ({first.dtype}) and {name} type ({tensor.dtype}) should be the same"
            )
        if tensor.device != first.device:
            raise RuntimeError(
                f"conv: {first_name} and {name} should be on the same device, got {first.device} and {tensor.device}"
            )
    _check_algorithm("conv", _C.conv_algorithms, algorithm)


def _check_algorithm(op: str, table: Callable[[str], list[str]], algorithm: str) -> None:
    known = ["auto", *dict.fromkeys(table("cpu") + table("cuda"))]
    if (_C.parse_algorithm(algorithm)[0] if op == "conv" else algorithm) not in known:
        raise ValueError(f"{op}: algorithm must be one of {known}, got {algorithm!r}")


def _memory_format(spatial: int, *tensors: Tensor) -> torch.memory_format:
    if not any(is_channels_last(t) for t in tensors):
        return torch.contiguous_format
    return torch.channels_last_3d if spatial == 3 else torch.channels_last


def _empty(
    shape: Sequence[int], like: Tensor, memory_format: torch.memory_format, dtype: torch.dtype | None = None
) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


def _fake_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    algorithm: str,
) -> Tensor:
    _check_operands(algorithm, Input=input, weight=weight, bias=bias)
    shape = conv_output_shape(input.shape, weight.shape, stride, padding, dilation, groups, padding_mode)
    return _empty(shape, input, _memory_format(input.dim() - 2, input, weight))


def _fake_conv_fused(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *options: Any
) -> Tensor:
    stride, padding, dilation, groups, padding_mode, _flip, activation, _a, _b, _last, algorithm = options
    _check_operands(algorithm, Input=input, weight=weight, bias=bias, residual=residual)
    if activation not in _C.activations():
        raise ValueError(f"conv: activation must be one of {_C.activations()}, got {activation!r}")
    shape = conv_output_shape(input.shape, weight.shape, stride, padding, dilation, groups, padding_mode)
    if residual is not None and list(residual.shape) != list(shape):
        raise RuntimeError(f"conv: residual has size {list(residual.shape)} (expected {list(shape)}, the output's)")
    return _empty(shape, input, _memory_format(input.dim() - 2, input, weight))


def _fake_channel_scale(inputs: list[Tensor], scale: Tensor, shift: Tensor, *options: Any) -> Tensor:
    shape = list(inputs[0].shape)
    shape[1] = sum(x.shape[1] for x in inputs)
    return _empty(shape, inputs[0], _memory_format(inputs[0].dim() - 2, *inputs))


def _fake_activation_backward(grad_output: Tensor, output: Tensor, *options: Any) -> Tensor:
    return _empty(output.shape, output, _memory_format(output.dim() - 2, output))


BATCH_NORM_KEPT = 5
"""Numbers per channel that ``batch_norm`` keeps: mean, 1 / sqrt(var + eps), scale, shift, unbiased variance."""


def _fake_batch_norm(input: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    kept = input.new_empty([BATCH_NORM_KEPT, input.shape[1]], dtype=torch.float32)
    return _empty(input.shape, input, _memory_format(input.dim() - 2, input)), kept


def _fake_batch_norm_backward(
    grad_output: Tensor, input: Tensor, kept: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    channels = [input.shape[1]]
    return (
        _empty(input.shape, input, _memory_format(input.dim() - 2, input)),
        kept.new_empty(channels),
        kept.new_empty(channels),
    )


def _fake_conv_backward_input(grad_output: Tensor, weight: Tensor, input_size: list[int], *options: Any) -> Tensor:
    _check_operands(options[-1], grad_output=grad_output, weight=weight)
    return _empty(input_size, grad_output, _memory_format(grad_output.dim() - 2, grad_output, weight))


def _fake_conv_backward_weight(grad_output: Tensor, input: Tensor, weight_size: list[int], *options: Any) -> Tensor:
    _check_operands(options[-1], grad_output=grad_output, input=input)
    return _empty(weight_size, input, _memory_format(input.dim() - 2, input, grad_output))


def _fake_conv_backward_bias(grad_output: Tensor) -> Tensor:
    return grad_output.new_empty([grad_output.shape[1]])


def _places_dtype(sizes: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int]) -> torch.dtype:
    window = 1
    for n, k in zip(sizes, kernel_size, strict=True):
        if is_adaptive(stride) and k != 0:  # adaptive: k windows, of n / k places or up to two more
            left = n % k
            window *= n // k + (0 if left == 0 else 1 if k % left == 0 else 2)
        elif not is_adaptive(stride):
            window *= k
    return torch.uint8 if window <= 256 else torch.int32


def _fake_max_pool(
    input: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    with_places: bool,
    algorithm: str,
) -> tuple[Tensor, Tensor]:
    _check_algorithm("pool", _C.pool_algorithms, algorithm)
    shape = pool_output_shape("max_pool", input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    memory_format = _memory_format(input.dim() - 2, input)
    dtype = _places_dtype(input.shape[2:], kernel_size, stride)
    places = _empty(shape, input, memory_format, dtype) if with_places else input.new_empty([0], dtype=dtype)
    return _empty(shape, input, memory_format), places


def _fake_max_pool_backward(grad_output: Tensor, places: Tensor, input_size: list[int], *options: Any) -> Tensor:
    return _empty(input_size, grad_output, _memory_format(places.dim() - 2, places))


def _fake_max_pool_indices(places: Tensor, input_size: list[int], *options: Any) -> Tensor:
    return _empty(places.shape, places, _memory_format(places.dim() - 2, places), torch.int64)


def _fake_avg_pool(
    input: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    algorithm: str,
) -> Tensor:
    _check_algorithm("pool", _C.pool_algorithms, algorithm)
    shape = pool_output_shape("avg_pool", input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return _empty(shape, input, _memory_format(input.dim() - 2, input))


def _fake_avg_pool_backward(grad_output: Tensor, input_size: list[int], *options: Any) -> Tensor:
    return _empty(input_size, grad_output, _memory_format(grad_output.dim() - 2, grad_output))


def _fake_max_unpool(input: Tensor, indices: Tensor, output_size: list[int]) -> Tensor:
    return _empty([*input.shape[:2], *output_size], input, _memory_format(input.dim() - 2, input))


def _fake_k_max_pool(input: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = [*input.shape[:2], k]
    return input.new_empty(shape), input.new_empty(shape, dtype=torch.int64)


def _fake_fractional_max_pool(
    input: Tensor, samples: Tensor, kernel_size: list[int], output_size: list[int], with_places: bool
) -> tuple[Tensor, Tensor]:
    shape = [*input.shape[:2], *output_size]
    dtype = _places_dtype(output_size, kernel_size, kernel_size)
    return input.new_empty(shape), input.new_empty(shape if with_places else [0], dtype=dtype)


def _fake_fractional_max_pool_backward(
    grad_output: Tensor, places: Tensor, samples: Tensor, input_size: list[int], kernel_size: list[int]
) -> Tensor:
    return grad_output.new_empty(input_size)


def _fake_fractional_max_pool_indices(
    places: Tensor, samples: Tensor, input_size: list[int], kernel_size: list[int]
) -> Tensor:
    return places.new_empty(places.shape, dtype=torch.int64)


for _name, _fake in (
    ("conv_forward", _fake_conv_forward),
    ("conv_fused", _fake_conv_fused),
    ("channel_scale", _fake_channel_scale),
    ("activation_backward", _fake_activation_backward),
    ("batch_norm", _fake_batch_norm),
    ("batch_norm_backward", _fake_batch_norm_backward),
    ("conv_backward_input", _fake_conv_backward_input),
    ("conv_backward_weight", _fake_conv_backward_weight),
    ("conv_backward_bias", _fake_conv_backward_bias),
    ("max_pool", _fake_max_pool),
    ("max_pool_backward", _fake_max_pool_backward),
    ("max_pool_indices", _fake_max_pool_indices),
    ("avg_pool", _fake_avg_pool),
    ("avg_pool_backward", _fake_avg_pool_backward),
    ("max_unpool", _fake_max_unpool),
    ("k_max_pool", _fake_k_max_pool),
    ("fractional_max_pool", _fake_fractional_max_pool),
    ("fractional_max_pool_backward", _fake_fractional_max_pool_backward),
    ("fractional_max_pool_indices", _fake_fractional_max_pool_indices),
):
    torch.library.register_fake(f"convext::{_name}", _fake)


# Batching rules ----------------------------------------------------------------------------------------------------
# A batched operand is folded either into the images ("b n c -> (b n) c") or, where the weight differs from one batch
# entry to the next, into the channels and groups ("b n c -> n (b c)"): still one call of one kernel.


def _front(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    return tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _into_images(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    return _front(tensor, dim, batch).flatten(0, 1)


def _into_channels(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    return _front(tensor, dim, batch).transpose(0, 1).flatten(1, 2)


def _from_channels(tensor: Tensor, batch: int) -> Tensor:
    unfolded: Tensor = tensor.unflatten(1, (batch, tensor.shape[1] // batch))
    return unfolded.transpose(0, 1)


def _more_groups(options: Sequence[Any], batch: int) -> tuple[Any, ...]:
    stride, padding, dilation, groups, *rest = options
    return stride, padding, dilation, groups * batch, *rest


def _vmap_conv_forward(
    info: Any, in_dims: tuple[Any, ...], input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> tuple[Tensor, int]:
    batch, (at_input, at_weight, at_bias, *_rest) = info.batch_size, in_dims
    if at_weight is None and at_bias is None:
        out = conv_forward(_into_images(input, at_input, batch), weight, bias, *options)
        return out.unflatten(0, (batch, out.shape[0] // batch)), 0
    out = conv_forward(
        _into_channels(input, at_input, batch),
        _into_images(weight, at_weight, batch),
        None if bias is None else _into_images(bias, at_bias, batch),
        *_more_groups(options, batch),
    )
    return _from_channels(out, batch), 0


def _vmap_conv_backward_input(
    info: Any, in_dims: tuple[Any, ...], grad_output: Tensor, weight: Tensor, input_size: list[int], *options: Any
) -> tuple[Tensor, int]:
    batch, (at_grad, at_weight, *_rest) = info.batch_size, in_dims
    images, channels, *places = input_size
    if at_weight is None:
        size = [images * batch, channels, *places]
        out = conv_backward_input(_into_images(grad_output, at_grad, batch), weight, size, *options)
        return out.unflatten(0, (batch, images)), 0
    out = conv_backward_input(
        _into_channels(grad_output, at_grad, batch),
        _into_images(weight, at_weight, batch),
        [images, channels * batch, *places],
        *_more_groups(options, batch),
    )
    return _from_channels(out, batch), 0


def _vmap_conv_backward_weight(
    info: Any, in_dims: tuple[Any, ...], grad_output: Tensor, input: Tensor, weight_size: list[int], *options: Any
) -> tuple[Tensor, int]:
    batch, (at_grad, at_input, *_rest) = info.batch_size, in_dims
    outputs, *rest = weight_size
    out = conv_backward_weight(
        _into_channels(grad_output, at_grad, batch),
        _into_channels(input, at_input, batch),
        [outputs * batch, *rest],
        *_more_groups(options, batch),
    )
    return out.unflatten(0, (batch, outputs)), 0


def _vmap_conv_backward_bias(info: Any, in_dims: tuple[Any, ...], grad_output: Tensor) -> tuple[Tensor, int]:
    out = conv_backward_bias(_into_channels(grad_output, in_dims[0], info.batch_size))
    return out.unflatten(0, (info.batch_size, out.shape[0] // info.batch_size)), 0


for _name, _rule in (
    ("conv_forward", _vmap_conv_forward),
    ("conv_backward_input", _vmap_conv_backward_input),
    ("conv_backward_weight", _vmap_conv_backward_weight),
    ("conv_backward_bias", _vmap_conv_backward_bias),
):
    torch.library.register_vmap(f"convext::{_name}", _rule)


def _register_pool_vmap(name: str, op: Callable[..., Any], tensors: int, sized: bool) -> None:
    """Pooling looks at one image at a time: fold the batch into the images of every tensor and of input_size."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batch = info.batch_size
        folded = [_into_images(t, dim, batch) for t, dim in zip(args[:tensors], in_dims, strict=False)]
        rest = list(args[tensors:])
        if sized:
            rest[0] = [rest[0][0] * batch, *rest[0][1:]]
        result = op(*folded, *rest)
        outputs = result if isinstance(result, tuple) else (result,)
        unfolded = tuple(t if t.dim() == 1 else t.unflatten(0, (batch, t.shape[0] // batch)) for t in outputs)
        dims = tuple(None if t.dim() == 1 else 0 for t in outputs)
        return (unfolded, dims) if isinstance(result, tuple) else (unfolded[0], dims[0])

    torch.library.register_vmap(f"convext::{name}", rule)


_register_pool_vmap("max_pool", max_pool, 1, False)
_register_pool_vmap("max_pool_backward", max_pool_backward, 2, True)
_register_pool_vmap("max_pool_indices", max_pool_indices, 1, True)
_register_pool_vmap("avg_pool", avg_pool, 1, False)
_register_pool_vmap("avg_pool_backward", avg_pool_backward, 1, True)
_register_pool_vmap("max_unpool", max_unpool, 2, False)
_register_pool_vmap("k_max_pool", k_max_pool, 1, False)
_register_pool_vmap("fractional_max_pool", fractional_max_pool, 2, False)
_register_pool_vmap("fractional_max_pool_backward", fractional_max_pool_backward, 3, True)
_register_pool_vmap("fractional_max_pool_indices", fractional_max_pool_indices, 2, True)
