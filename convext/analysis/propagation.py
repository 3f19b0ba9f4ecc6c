"""How fields (:mod:`convext.analysis.fields`) go through the operations of a graph, one rule per operation.

A tensor of the graph has a :class:`State`: which of its dimensions runs along which axis of the input, and the field
of each axis. An operation without a rule gives :class:`Unknown` with the reason, and so does everything after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.modules import batchnorm, conv, instancenorm, pooling

from convext import functional
from convext.analysis import fields
from convext.analysis.fields import Field, Step
from convext.arguments import expand

FLATTENED = -1
"""In State.axes: a dimension into which places of several axes were flattened."""


@dataclass(frozen=True)
class State:
    """Where the places of a tensor see. A dimension that runs along no axis has None (batch, channels)."""

    axes: tuple[int | None, ...]
    fields: tuple[Field, ...]
    note: str = ""


@dataclass(frozen=True)
class Unknown:
    """It cannot be said what a tensor's places see, because of ``reason``."""

    reason: str


Value: TypeAlias = State | Unknown | tuple[Any, ...] | None
"""None: does not depend on the input. A tuple for an operation with several results."""


class Refused(Exception):
    """Raised by a rule that does not cover a call, with the reason."""


@dataclass
class Call:
    """One operation: its arguments as they were when it ran, the values of those that are nodes, its result."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: tuple[Any, ...]
    """Parallel to args, nested alike: the Value of each."""
    keyword_values: dict[str, Any]
    result: Any

    def argument(self, at: int, name: str, default: Any = None) -> Any:
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    def names(self, *names: str, **defaults: Any) -> list[Any]:
        """The arguments after the input, by name or place."""
        return [self.argument(i, name, defaults.get(name)) for i, name in enumerate(names, start=1)]

    @property
    def input(self) -> Tensor:
        return cast(Tensor, self.argument(0, "input"))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result, or of the first where there are several."""
        result = self.result[0] if isinstance(self.result, tuple | list) else self.result
        return tuple(result.shape)

    def state(self) -> State | None:
        value = self.values[0] if self.values else self.keyword_values.get("input")
        if isinstance(value, Unknown):
            raise Refused(value.reason)
        if isinstance(value, tuple):
            raise Refused("an argument with several tensors")
        return cast("State | None", value)

    def operands(self) -> list[tuple[State, Tensor]]:
        """Every tensor among the arguments that depends on the input."""
        found: list[tuple[State, Tensor]] = []
        _pair(self.values, self.args, found)
        _pair(list(self.keyword_values.values()), list(self.kwargs.values()), found)
        return found


def _pair(values: Any, actual: Any, found: list[tuple[State, Tensor]]) -> None:
    if isinstance(values, Unknown):
        raise Refused(values.reason)
    if isinstance(values, State):
        found.append((values, actual))
    elif isinstance(values, tuple | list) and isinstance(actual, tuple | list):
        for value, one in zip(values, actual, strict=False):
            _pair(value, one, found)


Rule = Callable[[Call], Value]


# Windows -------------------------------------------------------------------------------------------------------------


def through(
    state: State | None, steps: Sequence[Step], shape: Sequence[int], input_shape: Sequence[int]
) -> State | None:
    """The state after an operation with one step per trailing dimension, that mixes all channels."""
    if state is None:
        return None
    spatial = len(steps)
    axes, after = list(state.axes), list(state.fields)
    if len(axes) != len(shape):
        raise Refused("it changes the number of dimensions")
    for dim, axis in enumerate(axes):
        if axis is None:
            continue
        if axis == FLATTENED:
            raise Refused("it looks through windows at places that were flattened")
        step = dim - (len(axes) - spatial)
        if step >= 0:
            after[axis] = steps[step].after(after[axis], shape[dim])
        elif step == -1:  # the axis lies where the channels are, all of which are seen
            after[axis] = after[axis].whole(input_shape[dim])
            axes[dim] = None
    return State(tuple(axes), tuple(after), state.note)


def _convolution(call: Call, stride: Any, padding: Any, dilation: Any, kernel: Sequence[int]) -> Value:
    return _window(call, kernel, stride, padding, dilation)


def _window(call: Call, kernel: Any, stride: Any, padding: Any, dilation: Any, spatial: int | None = None) -> Value:
    spatial = len(kernel) if spatial is None else spatial
    places = call.input.shape[-spatial:]
    sizes, strides, pads, dilations = functional.pool_window("conv", list(places), kernel, stride, padding, dilation)
    steps = [fields.convolution(sizes[i], strides[i], pads[2 * i], dilations[i]) for i in range(spatial)]
    return through(call.state(), steps, call.shape, call.input.shape)


def _transposed(call: Call, stride: Any, padding: Any, dilation: Any, kernel: Any, spatial: int) -> Value:
    kernel = expand("conv", "kernel_size", kernel, spatial)
    strides = kernel if stride is None else expand("conv", "stride", stride, spatial)
    dilations = expand("conv", "dilation", dilation, spatial)
    places = list(call.input.shape[-spatial:])
    nothing = [0] * spatial
    _sizes, pads = functional.transposed_output_size("conv", places, kernel, strides, padding, nothing, dilations)
    steps = [fields.transposed(kernel[i], strides[i], pads[2 * i], dilations[i]) for i in range(spatial)]
    return through(call.state(), steps, call.shape, call.input.shape)


def _conv(call: Call) -> Value:
    weight, _bias, stride, padding, dilation = call.names(
        "weight", "bias", "stride", "padding", "dilation", stride=1, padding=0, dilation=1
    )
    _plain_weight(call)
    return _convolution(call, stride, padding, dilation, tuple(weight.shape[2:]))


def _plain_weight(call: Call) -> None:
    weight = call.values[1] if len(call.values) > 1 else call.keyword_values.get("weight")
    if weight is not None:
        raise Refused("its weight depends on the input")


def _conv_transpose(call: Call) -> Value:
    weight, _bias, stride, padding, _extra, _groups, dilation = call.names(
        "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation", stride=1, padding=0, dilation=1
    )
    _plain_weight(call)
    return _transposed(call, stride, padding, dilation, tuple(weight.shape[2:]), weight.dim() - 2)


def _max_pool(spatial: int) -> Rule:
    def rule(call: Call) -> Value:
        kernel, stride, padding, dilation = call.names(
            "kernel_size", "stride", "padding", "dilation", padding=0, dilation=1
        )
        return _several(call, _window(call, kernel, stride, padding, dilation, spatial))

    return rule


def _several(call: Call, value: Value) -> Value:
    """The value of each result, for an operation that may have several alike."""
    return (value,) * len(call.result) if isinstance(call.result, tuple | list) else value


def _avg_pool(spatial: int) -> Rule:
    def rule(call: Call) -> Value:
        kernel, stride, padding = call.names("kernel_size", "stride", "padding", padding=0)
        return _window(call, kernel, stride, padding, call.kwargs.get("dilation", 1), spatial)

    return rule


def _lp_pool(spatial: int) -> Rule:
    def rule(call: Call) -> Value:
        _norm, kernel, stride = call.names("norm_type", "kernel_size", "stride")
        padding, dilation = call.kwargs.get("padding", 0), call.kwargs.get("dilation", 1)
        return _window(call, kernel, stride, padding, dilation, spatial)

    return rule


def _adaptive_pool(spatial: int) -> Rule:
    def rule(call: Call) -> Value:
        sizes = zip(call.input.shape[-spatial:], call.shape[-spatial:], strict=True)
        steps = [fields.adaptive(n, out) for n, out in sizes]
        return _several(call, through(call.state(), steps, call.shape, call.input.shape))

    return rule


def _max_unpool(spatial: int) -> Rule:
    def rule(call: Call) -> Value:
        _indices, kernel, stride, padding = call.names("indices", "kernel_size", "stride", "padding", padding=0)
        value = _transposed(call, stride, padding, 1, kernel, spatial)
        return replace(value, note="at most: the indices say where") if isinstance(value, State) else value

    return rule


_SAMPLING = {"nearest": fields.nearest, "nearest-exact": fields.nearest_exact}
_BLENDING = ("linear", "bilinear", "trilinear")


def _interpolate(call: Call) -> Value:
    _size, scale, mode, align, recompute, antialias = call.names(
        "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias", mode="nearest"
    )
    return _resized(call, scale, mode, align, recompute, antialias)


def _resized(call: Call, scale: Any, mode: str, align: Any, recompute: Any, antialias: Any = False) -> Value:
    spatial = call.input.dim() - 2
    before, after = call.input.shape[2:], call.shape[2:]
    if mode == "area":
        return _adaptive_pool(spatial)(call)
    if antialias:
        raise Refused("interpolate with antialias=True")
    scales: list[Any] = list(scale) if isinstance(scale, tuple | list) else [scale] * spatial
    steps = []
    for n, out, factor in zip(before, after, scales, strict=True):
        exact = None if factor is None or recompute else Fraction(factor).limit_denominator(10**6)
        if align and mode in _BLENDING:
            ratio = Fraction(n - 1, out - 1) if out > 1 and n > 1 else Fraction(n)
            steps.append(fields.resampled(n, out, 1 / ratio, fields.aligned))
        elif mode in _SAMPLING:
            steps.append(fields.resampled(n, out, exact, _SAMPLING[mode]))
        elif mode in _BLENDING:
            steps.append(fields.resampled(n, out, exact, fields.linear))
        elif mode == "bicubic" and not align:
            steps.append(fields.resampled(n, out, exact, fields.cubic))
        else:
            raise Refused(f"interpolate with mode={mode!r}, align_corners={align}")
    return through(call.state(), steps, call.shape, call.input.shape)


def _pad(call: Call) -> Value:
    (amounts,) = call.names("pad")
    return _padded(call, amounts)


def _padded(call: Call, amounts: Any) -> Value:
    befores = [int(before) for before in amounts[::2]][::-1]  # torch lists the last dimension first
    befores = [0] * (call.input.dim() - len(befores)) + befores
    return through(call.state(), [fields.shifted(-before) for before in befores], call.shape, call.input.shape)


def _pixel_shuffle(call: Call) -> Value:
    factor = call.argument(1, "upscale_factor")
    steps = [Step(((0,) * 1,) * factor, 1)] * 2
    return through(call.state(), steps, call.shape, call.input.shape)


def _pixel_unshuffle(call: Call) -> Value:
    factor = call.argument(1, "downscale_factor")
    return through(call.state(), [fields.convolution(factor, factor, 0, 1)] * 2, call.shape, call.input.shape)


# Place by place ------------------------------------------------------------------------------------------------------


def elementwise(call: Call) -> Value:
    """Every place of the result sees what the operands' places there see; broadcasting as in torch."""
    operands = call.operands()
    if not operands:
        return None
    shape = call.shape
    axes: list[int | None] = [None] * len(shape)
    seen: list[list[Field]] = [[] for _ in operands[0][0].fields]
    notes = [state.note for state, _tensor in operands if state.note]
    for state, tensor in operands:
        after = list(state.fields)
        for dim, axis in enumerate(state.axes):
            if axis is None:
                continue
            out = dim + len(shape) - tensor.dim()
            if tensor.shape[dim] == 1 and shape[out] != 1:
                if axis != FLATTENED:
                    after[axis] = after[axis].whole(1)
                continue
            if axes[out] not in (None, axis):
                raise Refused("places of different axes meet")
            axes[out] = axis
        for axis, field in enumerate(after):
            seen[axis].append(field)
    if len({axis for axis in axes if axis is not None and axis != FLATTENED}) < sum(
        axis is not None and axis != FLATTENED for axis in axes
    ):
        raise Refused("one axis runs along two dimensions")
    met = []
    for axis, several in enumerate(seen):
        places = shape[axes.index(axis)] if axis in axes else 1
        met.append(fields.union(several, places))
    for several, field in zip(seen, met, strict=True):
        jumps = list(dict.fromkeys(f.jump for f in several))
        if field.jump is None and None not in jumps:
            notes.append(f"branches with jumps {' and '.join(map(str, jumps))} meet")
    return State(tuple(axes), tuple(met), "; ".join(dict.fromkeys(notes)))


def _cat(call: Call) -> Value:
    tensors, dim = call.argument(0, "tensors"), call.argument(1, "dim", call.kwargs.get("axis", 0))
    dim = dim % tensors[0].dim()
    if any(state.axes[dim] is not None for state, _tensor in call.operands()):
        raise Refused("it joins tensors along an axis of places")
    return elementwise(call)


def _stack(call: Call) -> Value:
    operands, shape = call.operands(), call.shape
    dim = call.argument(1, "dim", 0) % len(shape)
    opened = tuple((replace(s, axes=(*s.axes[:dim], None, *s.axes[dim:])), t.unsqueeze(dim)) for s, t in operands)
    return elementwise(
        Call(tuple(t for _s, t in opened), {}, tuple(s for s, _t in opened), {}, torch.empty(shape, device="meta"))
    )


# Dimensions ----------------------------------------------------------------------------------------------------------


def gather(state: State, dims: Sequence[int], shape: Sequence[int], keep: bool, note: str = "") -> State:
    """Every place sees what all places along ``dims`` see; without ``keep`` the dimensions are gone."""
    after = list(state.fields)
    dims = [dim % len(shape) for dim in dims]
    for dim in dims:
        axis = state.axes[dim]
        if axis is not None and axis != FLATTENED:
            after[axis] = after[axis].whole(shape[dim])
    axes = [None if axis == FLATTENED and dim in dims else axis for dim, axis in enumerate(state.axes)]
    if not keep:
        axes = [axis for dim, axis in enumerate(axes) if dim not in dims]
    moved = any(state.axes[dim] is not None for dim in dims)
    return State(tuple(axes), tuple(after), note if moved and note else state.note)


def _dims(given: Any, dimensions: int) -> list[int]:
    if given is None or (isinstance(given, tuple | list) and not given):
        return list(range(dimensions))
    return [given] if isinstance(given, int) else list(given)


def _reduction(call: Call) -> Value:
    state = call.state()
    dims, keep = call.argument(1, "dim", call.kwargs.get("axis")), call.argument(2, "keepdim", False)
    if isinstance(dims, Tensor):  # torch.max(a, b)
        return elementwise(call)
    if state is None:
        return None
    return _several(call, gather(state, _dims(dims, call.input.dim()), call.input.shape, bool(keep)))


def _along_dim(call: Call) -> Value:
    """softmax and its like: all places along one dimension are seen."""
    state, dim = call.state(), call.argument(1, "dim")
    if state is None:
        return None
    return gather(state, [-1 if dim is None else dim], call.input.shape, True)


def _linear(call: Call) -> Value:
    state = call.state()
    _plain_weight(call)
    return None if state is None else mixed_last(state, call.input.shape)


def mixed_last(state: State, shape: Sequence[int]) -> State:
    """After a matrix over the last dimension: all places along it are seen, if there were any."""
    gathered = gather(state, [-1], shape, True)
    note = "" if state.axes[-1] == FLATTENED else gathered.note
    return replace(gathered, axes=(*gathered.axes[:-1], None), note=note)


def _layer_norm(call: Call) -> Value:
    (normalized,) = call.names("normalized_shape")
    return _normalized(call, len(normalized))


def _normalized(call: Call, last: int) -> Value:
    state = call.state()
    note = "its statistics are of all places"
    return None if state is None else gather(state, range(-last, 0), call.input.shape, True, note)


def _all_places(call: Call) -> Value:
    """Normalisation over places (group_norm, instance_norm)."""
    return _normalized(call, call.input.dim() - 2)


def _instance_norm(call: Call) -> Value:
    if call.argument(5, "use_input_stats", True):
        return _all_places(call)
    return elementwise(call)


def _permuted(call: Call, order: Sequence[int]) -> Value:
    state = call.state()
    return None if state is None else replace(state, axes=tuple(state.axes[dim] for dim in order))


def _permute(call: Call) -> Value:
    dims = call.args[1:] if len(call.args) > 2 else call.argument(1, "dims")
    dims = [dims] if isinstance(dims, int) else list(dims)
    return _permuted(call, [dim % call.input.dim() for dim in dims])


def _transpose(call: Call) -> Value:
    first, second = call.argument(1, "dim0"), call.argument(2, "dim1")
    order = list(range(call.input.dim()))
    order[first], order[second] = order[second], order[first]
    return _permuted(call, order)


def _movedim(call: Call) -> Value:
    source, destination = call.argument(1, "source"), call.argument(2, "destination")
    markers = torch.empty(tuple(range(1, call.input.dim() + 1)), device="meta")
    return _permuted(call, [size - 1 for size in markers.movedim(source, destination).shape])


def _reshape(call: Call) -> Value:
    state = call.state()
    return None if state is None else reshaped(state, tuple(call.input.shape), call.shape)


def reshaped(state: State, before: tuple[int, ...], after: tuple[int, ...]) -> State:
    """A view of the same elements in row-major order. Dimensions that stay keep their axes; axes flattened together
    see all that they see together, and may not be taken apart again."""
    axes: list[int | None] = [None] * len(after)
    changed = list(state.fields)
    for dim, axis in enumerate(state.axes):  # a lone place has its window, wherever its dimension goes
        if axis is not None and axis != FLATTENED and before[dim] == 1:
            changed[axis] = changed[axis].whole(1)
    if 0 in before:
        raise Refused("an empty tensor is reshaped")
    i = j = 0
    while i < len(before) or j < len(after):
        start_in, start_out = i, j
        count_in = count_out = 1
        while True:
            if count_in <= count_out and i < len(before) and (i == start_in or count_in < count_out):
                count_in *= before[i]
                i += 1
            elif j < len(after) and (j == start_out or count_out < count_in):
                count_out *= after[j]
                j += 1
            elif count_in == count_out:
                break
            else:
                raise Refused("the sizes of a reshape do not match")
        sources = [d for d in range(start_in, i) if before[d] != 1]
        targets = [d for d in range(start_out, j) if after[d] != 1]
        spatial = [d for d in sources if state.axes[d] is not None]
        if not spatial:
            continue
        if len(targets) > 1:
            raise Refused("it takes an axis of places apart")
        (target,) = targets
        if len(sources) == 1:
            axes[target] = state.axes[sources[0]]
            continue
        axes[target] = FLATTENED
        for d in spatial:
            axis = state.axes[d]
            if axis is not None and axis != FLATTENED:
                changed[axis] = changed[axis].whole(before[d])
    note = "flattened: each is given the window of all" if FLATTENED in axes else state.note
    return State(tuple(axes), tuple(changed), note)


def _getitem(call: Call) -> Value:
    index = call.args[1]
    held = call.values[0]
    if isinstance(held, tuple):
        return cast(Value, held[index]) if isinstance(index, int) else Unknown("a part of several tensors")
    state = call.state()
    if state is None:
        return None
    indices = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [i for i in indices if not isinstance(i, Tensor)]:
        at = next(n for n, i in enumerate(indices) if i is Ellipsis)
        consumed = sum(i is not None for i in indices) - 1
        indices[at : at + 1] = [slice(None)] * (call.input.dim() - consumed)
    axes: list[int | None] = []
    after, dim = list(state.fields), 0
    remaining = [slice(None)] * (call.input.dim() - sum(i is not None for i in indices))
    for one in [*indices, *remaining]:
        if one is None:
            axes.append(None)
            continue
        axis, size = state.axes[dim], call.input.shape[dim]
        dim += 1
        if isinstance(one, slice):
            first, last, stride = one.indices(size)
            if axis == FLATTENED and (first, last, stride) != (0, size, 1):
                raise Refused("it cuts places that were flattened")
            if axis is not None and axis != FLATTENED:
                after[axis] = fields.strided(first, stride).after(after[axis], len(range(first, last, stride)))
            axes.append(axis)
        elif isinstance(one, int):
            if axis == FLATTENED:
                raise Refused("it takes one of the places that were flattened")
            if axis is not None:
                after[axis] = Field((after[axis].window(one % size),), 0)
        else:
            raise Refused("it is indexed by a tensor")
    return State(tuple(axes), tuple(after), state.note)


def _parts(call: Call) -> Value:
    """chunk, split: parts along a dimension without places."""
    state, dim = call.state(), call.argument(2, "dim", 0)
    if state is None:
        return None
    if state.axes[dim % len(state.axes)] is not None:
        raise Refused("it splits an axis of places")
    return _several(call, state)


def _unbind(call: Call) -> Value:
    state, dim = call.state(), call.argument(1, "dim", 0)
    if state is None:
        return None
    dim = dim % len(state.axes)
    if state.axes[dim] is not None:
        raise Refused("it splits an axis of places")
    return _several(call, replace(state, axes=(*state.axes[:dim], *state.axes[dim + 1 :])))


def _repeat(call: Call) -> Value:
    state, shape = call.state(), call.shape
    if state is None:
        return None
    added = len(shape) - call.input.dim()
    for dim, axis in enumerate(state.axes):
        if axis is not None and shape[dim + added] != call.input.shape[dim]:
            raise Refused("it repeats places")
    return replace(state, axes=(None,) * added + state.axes)


def _whole_last(call: Call) -> Value:
    """Every result along the last dimension may come from any place of it."""
    state = call.state()
    if state is None:
        return None
    return _several(call, gather(state, [-1], call.input.shape, True))


# Tables --------------------------------------------------------------------------------------------------------------

_ELEMENTWISE = """
    abs acos add addcdiv addcmul alpha_dropout and_ asin atan atan2 bernoulli bfloat16 bitwise_and bitwise_not
    bitwise_or ceil celu clamp clamp_max clamp_min clip clone contiguous copysign cos cosh cpu cuda detach div
    divide double dropout dropout1d dropout2d dropout3d elu eq erf exp expand expand_as expm1 feature_alpha_dropout
    feature_dropout float float_power floor floordiv fmod ge gelu gt half hardshrink hardsigmoid hardswish hardtanh
    iadd imul isfinite isnan isub itruediv le leaky_relu lerp log log10 log1p log2 logical_and logical_not
    logical_or logit logsigmoid lt masked_fill maximum minimum mish mod mul multiply nan_to_num ne neg negative or_
    pos pow prelu reciprocal relu relu6 remainder requires_grad round rrelu rsqrt rsub selu sigmoid sign silu sin
    sinh softplus softshrink softsign sqrt square sub subtract tan tanh tanhshrink threshold to true_divide truediv
    trunc type type_as where xor zeros_like ones_like batch_norm identity
"""
_REDUCTIONS = """
    all amax amin any argmax argmin logsumexp max mean median min norm prod std std_mean sum var var_mean
"""

RULES: dict[str, Rule] = dict.fromkeys(_ELEMENTWISE.split(), elementwise)
RULES |= dict.fromkeys(_REDUCTIONS.split(), _reduction)
RULES |= dict.fromkeys(("flatten", "ravel", "reshape", "squeeze", "unflatten", "unsqueeze", "view"), _reshape)
RULES |= dict.fromkeys(("log_softmax", "normalize", "softmax", "softmin"), _along_dim)
RULES |= dict.fromkeys(("chunk", "split", "tensor_split"), _parts)
RULES |= dict.fromkeys(("interpolate", "upsample"), _interpolate)
RULES |= dict.fromkeys(("cat", "concat", "concatenate"), _cat)
for _n in (1, 2, 3):
    RULES |= {
        f"conv{_n}d": _conv,
        f"conv_transpose{_n}d": _conv_transpose,
        f"max_pool{_n}d": _max_pool(_n),
        f"max_pool{_n}d_with_indices": _max_pool(_n),
        f"avg_pool{_n}d": _avg_pool(_n),
        f"lp_pool{_n}d": _lp_pool(_n),
        f"max_unpool{_n}d": _max_unpool(_n),
        f"adaptive_avg_pool{_n}d": _adaptive_pool(_n),
        f"adaptive_max_pool{_n}d": _adaptive_pool(_n),
        f"adaptive_max_pool{_n}d_with_indices": _adaptive_pool(_n),
        f"global_avg_pool{_n}d": _adaptive_pool(_n),
        f"global_max_pool{_n}d": _adaptive_pool(_n),
    }
RULES |= {
    "getitem": _getitem,
    "group_norm": _all_places,
    "instance_norm": _instance_norm,
    "k_max_pool1d": _whole_last,
    "kmax_pool1d": _whole_last,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "movedim": _movedim,
    "pad": _pad,
    "permute": _permute,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "repeat": _repeat,
    "rms_norm": _layer_norm,
    "stack": _stack,
    "swapaxes": _transpose,
    "transpose": _transpose,
    "unbind": _unbind,
}

_PLACE_BY_PLACE = (
    batchnorm._BatchNorm,
    torch.nn.Identity,
    torch.nn.modules.dropout._DropoutNd,
)


def _activation(module: torch.nn.Module) -> bool:
    nn = torch.nn
    mixing = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention, nn.GLU)
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(module, mixing)


def of_module(module: torch.nn.Module, call: Call) -> Value:
    """What a layer makes of the call's first argument. Subclasses count as what they derive from."""
    layer: Any = module
    spatial = _spatial(module)
    if isinstance(module, conv._ConvTransposeNd):
        return _transposed(call, layer.stride, layer.padding, layer.dilation, layer.kernel_size, len(layer.kernel_size))
    if isinstance(module, conv._ConvNd):
        return _convolution(call, layer.stride, layer.padding, layer.dilation, layer.kernel_size)
    if isinstance(module, pooling._MaxPoolNd | pooling._AvgPoolNd | pooling._LPPoolNd):
        padding, dilation = getattr(layer, "padding", 0), getattr(layer, "dilation", 1)
        return _several(call, _window(call, layer.kernel_size, layer.stride, padding, dilation, spatial))
    if isinstance(module, pooling._AdaptiveAvgPoolNd | pooling._AdaptiveMaxPoolNd):
        return _adaptive_pool(spatial)(call)
    if isinstance(module, pooling._MaxUnpoolNd):
        value = _transposed(call, layer.stride, layer.padding, 1, layer.kernel_size, spatial)
        return replace(value, note="at most: the indices say where") if isinstance(value, State) else value
    if isinstance(module, torch.nn.Upsample):
        return _resized(call, layer.scale_factor, layer.mode, layer.align_corners, layer.recompute_scale_factor)
    if isinstance(module, instancenorm._InstanceNorm):
        return elementwise(call) if layer.track_running_stats else _all_places(call)
    if isinstance(module, _PLACE_BY_PLACE) or _activation(module):
        return elementwise(call)
    if isinstance(module, torch.nn.GroupNorm):
        return _all_places(call)
    if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
        return _normalized(call, len(layer.normalized_shape))
    if isinstance(module, torch.nn.Flatten | torch.nn.Unflatten):
        return _reshape(call)
    if isinstance(module, torch.nn.Linear):
        state = call.state()
        return None if state is None else mixed_last(state, call.input.shape)
    if isinstance(module, torch.nn.Softmax | torch.nn.LogSoftmax | torch.nn.Softmin):
        state = call.state()
        if state is None or layer.dim is None:
            raise Refused("softmax without dim")
        return gather(state, [layer.dim], call.input.shape, True)
    if isinstance(module, torch.nn.Softmax2d | torch.nn.ChannelShuffle | torch.nn.LocalResponseNorm):
        return elementwise(call)
    if isinstance(module, torch.nn.PixelShuffle):
        return _pixel_shuffle(Call((*call.args, layer.upscale_factor), {}, (*call.values, None), {}, call.result))
    if isinstance(module, torch.nn.PixelUnshuffle):
        return _pixel_unshuffle(Call((*call.args, layer.downscale_factor), {}, (*call.values, None), {}, call.result))
    if type(module).__module__ == "torch.nn.modules.padding":
        return _padded(call, layer.padding)
    by_name = _BY_NAME.get(type(module).__name__)
    if by_name is not None:
        return by_name(call)
    if isinstance(module, torch.nn.FractionalMaxPool2d | torch.nn.FractionalMaxPool3d):
        raise Refused("its windows are drawn at random")
    raise Refused(f"no rule for {type(module).__name__}")


_BY_NAME: dict[str, Rule] = {f"Global{kind}Pool{n}d": _adaptive_pool(n) for kind in ("Avg", "Max") for n in (1, 2, 3)}
_BY_NAME["KMaxPool1d"] = _whole_last
"""Layers of convext that have no namesake in torch.nn."""


def _spatial(module: torch.nn.Module) -> int:
    for kind in type(module).__mro__:
        if kind.__name__[-2:] in ("1d", "2d", "3d"):
            return int(kind.__name__[-2])
    return 0
