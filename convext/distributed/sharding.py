"""How DTensor may shard the operators: each line of a rule is a way in which local calls alone give the whole.

    y = F(x, w)      batch:            y by n   from x by n
                     output channels:  y by k   from w by k, bias by k
                     input channels:   y a sum  from x by c, w by c
    dx = I(dy, w)    by n; by c from w by c; a sum from dy by k, w by k
    dw = W(dy, x)    a sum from dy by n, x by n; by k from dy by k; by c from x by c

Pooling looks at one plane at a time: by n, or by c. Places are :mod:`convext.distributed.spatial`'s. With groups a
convolution is sharded by n alone: a part of the channels is a convolution of other groups.

A bias in a sum over input channels is divided among the ranks: exact for a power of two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding

from convext import ops

Rule: TypeAlias = tuple[list[Any], list[Any]]
"""Placements of the outputs, of the arguments (None for what is no tensor)."""

R, SUM = Replicate(), Partial()
BY_FIRST, BY_SECOND = Shard(0), Shard(1)


def _rules(arguments: Sequence[Any], *rows: tuple[Any, ...]) -> list[Rule]:
    """rows: the placement of the output, then of each tensor; all that follows is no tensor."""
    return [([out], [*tensors, *[None] * (len(arguments) - len(tensors))]) for out, *tensors in rows]


def _conv_forward(*arguments: Any) -> list[Rule]:
    bias, groups = arguments[2], arguments[6]

    def row(out: Any, x: Any, w: Any, b: Any) -> tuple[Any, ...]:
        return out, x, w, None if bias is None else b

    rows = [row(R, R, R, R), row(BY_FIRST, BY_FIRST, R, R)]
    if groups == 1:
        rows += [row(BY_SECOND, R, BY_FIRST, BY_FIRST), row(SUM, BY_SECOND, BY_SECOND, SUM)]
    return _rules(arguments, *rows)


def _conv_backward_input(*arguments: Any) -> list[Rule]:
    rows: list[tuple[Any, ...]] = [(R, R, R), (BY_FIRST, BY_FIRST, R)]
    if arguments[6] == 1:
        rows += [(BY_SECOND, R, BY_SECOND), (SUM, BY_SECOND, BY_FIRST)]
    return _rules(arguments, *rows)


def _conv_backward_weight(*arguments: Any) -> list[Rule]:
    rows: list[tuple[Any, ...]] = [(R, R, R), (SUM, BY_FIRST, BY_FIRST)]
    if arguments[6] == 1:
        rows += [(BY_FIRST, BY_SECOND, R), (BY_SECOND, R, BY_SECOND)]
    return _rules(arguments, *rows)


def _conv_backward_bias(*arguments: Any) -> list[Rule]:
    return _rules(arguments, (R, R), (SUM, BY_FIRST), (BY_FIRST, BY_SECOND))


def _by_plane(tensors: int, outputs: int, with_places: int | None = None) -> Callable[..., list[Rule]]:
    """Of an operator with so many tensors first and so many outputs, the last of which is empty unless the argument
    with_places says otherwise."""

    def rule(*arguments: Any) -> list[Rule]:
        found = []
        for placement in (R, BY_FIRST, BY_SECOND):
            out: list[Any] = [placement] * outputs
            if with_places is not None and not arguments[with_places]:
                out[-1] = R
            found.append((out, [placement] * tensors + [None] * (len(arguments) - tensors)))
        return found

    return rule


# Operator, how many tensors come first, the argument that is the size of the output (None: there is none), its rule.
_OPERATORS: tuple[tuple[Any, int, int | None, Callable[..., list[Rule]]], ...] = (
    (ops.conv_forward, 3, None, _conv_forward),
    (ops.conv_backward_input, 2, 2, _conv_backward_input),
    (ops.conv_backward_weight, 2, 2, _conv_backward_weight),
    (ops.conv_backward_bias, 1, None, _conv_backward_bias),
    (ops.max_pool, 1, None, _by_plane(1, 2, with_places=6)),
    (ops.max_pool_backward, 2, 2, _by_plane(2, 1)),
    (ops.avg_pool, 1, None, _by_plane(1, 1)),
    (ops.avg_pool_backward, 1, 1, _by_plane(1, 1)),
    (ops.max_unpool, 2, None, _by_plane(2, 1)),
    (ops.k_max_pool, 1, None, _by_plane(1, 2)),
    (ops.fractional_max_pool, 2, None, _by_plane(2, 2, with_places=4)),
    (ops.fractional_max_pool_backward, 3, 3, _by_plane(3, 1)),
)


def _local_planes(op: Any, tensors: int) -> Callable[..., Any]:
    """For operators whose size argument is not their output's: the local call, with the local n and c put into it."""

    def handler(op_call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first: DTensor = args[0]
        placements = [p if p in (BY_FIRST, BY_SECOND) else R for p in first.placements]
        sharded = [t.redistribute(placements=placements) for t in args[:tensors]]
        local = [t.to_local() for t in sharded]
        size = [*local[0].shape[:2], *args[tensors][2:]]
        output = op(*local, size, *args[tensors + 1 :])
        return DTensor.from_local(output, first.device_mesh, placements, shape=first.shape, stride=first.stride())

    return handler


def register() -> None:
    """Teaches DTensor every operator of convext; once is enough."""
    dispatcher = DTensor._op_dispatcher
    propagator = dispatcher.sharding_propagator
    for op, tensors, size, rule in _OPERATORS:
        register_sharding(op)(rule)
        # All that is no tensor decides the result too; register_sharding remembers calls without their lists.
        propagator.op_to_schema_info[op] = RuntimeSchemaInfo(tensors)
        if size is not None:
            propagator.op_to_shape_and_stride_idx[op] = size
    by_hand: tuple[tuple[Any, int], ...] = ((ops.max_pool_indices, 1), (ops.fractional_max_pool_indices, 2))
    for op, tensors in by_hand:
        dispatcher._custom_op_handlers[op] = _local_planes(op, tensors)
