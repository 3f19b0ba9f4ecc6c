"""Rules for what works place by place, and for what moves, joins and gathers dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from convext.analysis import fields
from convext.analysis.fields import Field
from convext.analysis.propagation import FLATTENED, Call, Refused, State, Unknown, Value, plain_weight, several

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
    for axis, branches in enumerate(seen):
        places = shape[axes.index(axis)] if axis in axes else 1
        met.append(fields.union(branches, places))
    for branches, field in zip(seen, met, strict=True):
        jumps = list(dict.fromkeys(f.jump for f in branches))
        if field.jump is None and None not in jumps:
            notes.append(f"branches with jumps {' and '.join(map(str, jumps))} meet")
    return State(tuple(axes), tuple(met), "; ".join(dict.fromkeys(notes)))


def cat(call: Call) -> Value:
    tensors, dim = call.argument(0, "tensors"), call.argument(1, "dim", call.kwargs.get("axis", 0))
    dim = dim % tensors[0].dim()
    if any(state.axes[dim] is not None for state, _tensor in call.operands()):
        raise Refused("it joins tensors along an axis of places")
    return elementwise(call)


def stack(call: Call) -> Value:
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


def reduction(call: Call) -> Value:
    dims = call.argument(1, "dim", call.kwargs.get("axis"))
    keep = len(call.shape) == call.input.dim()
    if isinstance(dims, Tensor) or "other" in call.kwargs or (dims is None and keep and call.shape):  # max(a, b)
        return elementwise(call)
    state = call.state()
    if state is None:
        return None
    return several(call, gather(state, _dims(dims, call.input.dim()), call.input.shape, keep))


def along_dim(call: Call) -> Value:
    """softmax and its like: all places along one dimension are seen."""
    state, dim = call.state(), call.argument(1, "dim")
    if state is None:
        return None
    return gather(state, [-1 if dim is None else dim], call.input.shape, True)


def normalize(call: Call) -> Value:
    """Divided by the norm along one dimension."""
    state = call.state()
    if state is None:
        return None
    return gather(state, _dims(call.argument(2, "dim", 1), call.input.dim()), call.input.shape, True)


def linear(call: Call) -> Value:
    state = call.state()
    plain_weight(call)
    return None if state is None else mixed_last(state, call.input.shape)


def mixed_last(state: State, shape: Sequence[int]) -> State:
    """After a matrix over the last dimension: all places along it are seen, if there were any."""
    gathered = gather(state, [-1], shape, True)
    note = "" if state.axes[-1] == FLATTENED else gathered.note
    return replace(gathered, axes=(*gathered.axes[:-1], None), note=note)


def layer_norm(call: Call) -> Value:
    (shape,) = call.names("normalized_shape")
    return normalized(call, len(shape))


def normalized(call: Call, last: int) -> Value:
    state = call.state()
    note = "its statistics are of all places"
    return None if state is None else gather(state, range(-last, 0), call.input.shape, True, note)


def all_places(call: Call) -> Value:
    """Normalisation over places (group_norm, instance_norm)."""
    return normalized(call, call.input.dim() - 2)


def instance_norm(call: Call) -> Value:
    if call.argument(5, "use_input_stats", True):
        return all_places(call)
    return elementwise(call)


def _permuted(call: Call, order: Sequence[int]) -> Value:
    state = call.state()
    return None if state is None else replace(state, axes=tuple(state.axes[dim] for dim in order))


def permute(call: Call) -> Value:
    dims = call.args[1:] if len(call.args) > 2 else call.argument(1, "dims")
    dims = [dims] if isinstance(dims, int) else list(dims)
    return _permuted(call, [dim % call.input.dim() for dim in dims])


def transpose(call: Call) -> Value:
    first, second = call.argument(1, "dim0"), call.argument(2, "dim1")
    order = list(range(call.input.dim()))
    order[first], order[second] = order[second], order[first]
    return _permuted(call, order)


def movedim(call: Call) -> Value:
    source, destination = call.argument(1, "source"), call.argument(2, "destination")
    markers = torch.empty(tuple(range(1, call.input.dim() + 1)), device="meta")
    return _permuted(call, [size - 1 for size in markers.movedim(source, destination).shape])


def reshape(call: Call) -> Value:
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


def getitem(call: Call) -> Value:
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


def parts(call: Call) -> Value:
    """chunk, split: parts along a dimension without places."""
    state, dim = call.state(), call.argument(2, "dim", 0)
    if state is None:
        return None
    if state.axes[dim % len(state.axes)] is not None:
        raise Refused("it splits an axis of places")
    return several(call, state)


def unbind(call: Call) -> Value:
    state, dim = call.state(), call.argument(1, "dim", 0)
    if state is None:
        return None
    dim = dim % len(state.axes)
    if state.axes[dim] is not None:
        raise Refused("it splits an axis of places")
    return several(call, replace(state, axes=(*state.axes[:dim], *state.axes[dim + 1 :])))


def repeat(call: Call) -> Value:
    state, shape = call.state(), call.shape
    if state is None:
        return None
    added = len(shape) - call.input.dim()
    for dim, axis in enumerate(state.axes):
        if axis is not None and shape[dim + added] != call.input.shape[dim]:
            raise Refused("it repeats places")
    return replace(state, axes=(None,) * added + state.axes)


def global_pool(call: Call) -> Value:
    """One result for all places of a plane."""
    state = call.state()
    if state is None:
        return None
    keep = len(call.shape) == call.input.dim()
    return several(call, gather(state, range(2, call.input.dim()), call.input.shape, keep))


def k_max(call: Call) -> Value:
    """Each of the k greatest of a plane may come from any place of it."""
    state = call.state()
    if state is None:
        return None
    gathered = gather(state, range(2, call.input.dim()), call.input.shape, False)
    return several(call, State((*gathered.axes, None), gathered.fields, gathered.note))


def k_max_along(call: Call, dim: int | None = None) -> Value:
    """Each of the k greatest along a dimension, the call's unless it is given, may come from any place of it."""
    state = call.state()
    if state is None:
        return None
    along = call.argument(2, "dim", -1) if dim is None else dim
    return several(call, gather(state, [along], call.input.shape, True))
