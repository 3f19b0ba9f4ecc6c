"""How fields (:mod:`convext.analysis.fields`) go through the operations of a graph, one rule per operation.

A tensor of the graph has a :class:`State`: which of its dimensions runs along which axis of the input, and the field
of each axis. An operation without a rule gives :class:`Unknown` with the reason, and so does everything after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from torch import Tensor

from convext.analysis.fields import Field, Step

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

    def given(self, *more: Any) -> Call:
        """The same with more arguments, as a layer has them in its attributes."""
        return Call(
            (*self.args, *more), self.kwargs, (*self.values, *[None] * len(more)), self.keyword_values, self.result
        )

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


def several(call: Call, value: Value) -> Value:
    """The value of each result, for an operation that may have several alike."""
    return (value,) * len(call.result) if isinstance(call.result, tuple | list) else value


def plain_weight(call: Call) -> None:
    weight = call.values[1] if len(call.values) > 1 else call.keyword_values.get("weight")
    if weight is not None:
        raise Refused("its weight depends on the input")
