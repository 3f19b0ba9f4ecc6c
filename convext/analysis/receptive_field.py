"""What places of the input a layer's places see, exactly, from the graph."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, fx

from convext.analysis.example import examples_of, in_eval
from convext.analysis.fields import IDENTITY, Field, Window
from convext.analysis.propagation import (
    Call,
    Refused,
    State,
    Unknown,
    Value,
)
from convext.analysis.rules import RULES, of_module

_OP = "receptive_field"
_MODULES_OF_TORCH = ("torch", "_operator", "operator", "math", "convext", "builtins")


# Results -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldRow:
    """What one operation's places see. Tuples have one entry per axis of the input (d, h, w)."""

    name: str
    """Of the layer in the model, or of the operation in the graph."""
    op: str
    """The layer's class or the function."""
    output_shape: tuple[int, ...]
    fields: tuple[Field, ...] | None
    """Per axis; None where it is unknown what is seen."""
    axes: tuple[int | None, ...] | None
    """Per dimension of the output: the axis that it runs along, None for none (batch), -1 for places flattened."""
    note: str
    """Why it is unknown, or what to know about it; often empty."""
    input_size: tuple[int, ...]
    """Places of the input."""

    @property
    def known(self) -> bool:
        return self.fields is not None

    def _fields(self) -> tuple[Field, ...]:
        if self.fields is None:
            raise ValueError(f"{_OP}: the field of {self.name} is unknown: {self.note}")
        return self.fields

    @property
    def size(self) -> tuple[int, ...]:
        """Input places per axis that one place sees, with what lies between them; the largest where places differ.
        Not cut off at the border. This and the following raise ValueError where the field is unknown."""
        return tuple(field.size for field in self._fields())

    @property
    def jump(self) -> tuple[Fraction | None, ...]:
        """Input places from one place's window to the next one's: a fraction after upsampling, 0 where all places see
        the same, None where it varies."""
        return tuple(field.jump for field in self._fields())

    @property
    def start(self) -> tuple[int, ...]:
        """The first input place that place 0 sees; negative in the padding. 0 where place 0 sees nothing."""
        return tuple(seen[0] if seen is not None else 0 for seen in self._first())

    @property
    def centre(self) -> tuple[Fraction, ...]:
        """The middle of place 0's window; place i's is i jumps further on (after upsampling: on the average)."""
        return tuple(Fraction(sum(seen), 2) if seen is not None else Fraction(0) for seen in self._first())

    def _first(self) -> tuple[Window | None, ...]:
        return tuple(field.window(0) for field in self._fields())

    def window(self, place: int | Sequence[int], clip: bool = False) -> tuple[Window | None, ...]:
        """(first, last) input place per axis that the output place sees; None for nothing. ``clip``: only what lies in
        the input. ``place``: one int per axis, or one for all."""
        fields = self._fields()
        places = [place] * len(fields) if isinstance(place, int) else list(place)
        if len(places) != len(fields):
            raise ValueError(f"window: place must have {len(fields)} entries, got place={tuple(places)}")
        seen = [field.window(at) for field, at in zip(fields, places, strict=True)]
        return tuple(map(_clipped, seen, self.input_size)) if clip else tuple(seen)

    @property
    def sees_everything(self) -> bool:
        """Whether every place sees the whole input."""
        axes = zip(self._fields(), self.input_size, self._counts(), strict=True)
        return all(_clipped(field.window(i), n) == (0, n - 1) for field, n, count in axes for i in range(count))

    def _counts(self) -> list[int]:
        axes = self.axes or ()
        return [self.output_shape[axes.index(a)] if a in axes else 1 for a in range(len(self.input_size))]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON; fractions as text."""
        row: dict[str, Any] = {"name": self.name, "op": self.op, "output_shape": list(self.output_shape)}
        if self.known:
            row |= {
                "size": list(self.size),
                "jump": [None if j is None else str(j) for j in self.jump],
                "start": list(self.start),
                "centre": [str(c) for c in self.centre],
            }
        return row | {"note": self.note}


def _clipped(seen: Window | None, size: int) -> Window | None:
    if seen is None:
        return None
    first, last = max(seen[0], 0), min(seen[1], size - 1)
    return (first, last) if first <= last else None


@dataclass(frozen=True)
class ReceptiveField:
    """What :func:`receptive_field` found: ``rows`` in the order of the graph; ``str()`` is a table."""

    rows: tuple[FieldRow, ...]
    input_size: tuple[int, ...]
    """Places of the input."""
    output: FieldRow
    """What the model returns (the first tensor of it that depends on the input)."""

    def __getitem__(self, name: str) -> FieldRow:
        """The last row of that name. KeyError where there is none."""
        for row in reversed(self.rows):
            if row.name == name:
                return row
        raise KeyError(f"no row named {name!r}, there are {[row.name for row in self.rows]}")

    def __iter__(self) -> Iterator[FieldRow]:
        return iter(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {"input_size": list(self.input_size), "rows": [row.as_dict() for row in self.rows]}

    def __str__(self) -> str:
        cells = [("layer", "op", "output", "size", "jump", "start", "centre", "")]
        for row in self.rows:
            named = (row.name, row.op, by(row.output_shape))
            if row.known:
                numbers = (by(row.size), by(row.jump), by(row.start), by(row.centre))
            else:
                numbers = ("unknown", "", "", "")
            cells.append((*named, *numbers, row.note))
        return aligned(cells, left=(0, 1, 7))


def by(values: Sequence[Any]) -> str:
    """Text: "3" for (3, 3), "3x5" for (3, 5)."""
    texts = [_short(v) for v in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def _short(value: Any) -> str:
    return "?" if value is None else f"{float(value):g}" if isinstance(value, Fraction) else str(value)


def aligned(cells: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Rows of cells as text in columns, those in ``left`` to the left."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


# The graph -----------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Layers of torch.nn and convext are leaves."""

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("convext.") and not isinstance(m, torch.nn.Sequential)
        return ours or super().is_leaf_module(m, module_qualified_name)


class _OneLayer(torch.nn.Module):
    """A model that is one layer."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)


class _OneLayerOfTwo(torch.nn.Module):
    """The same of two arguments (unpooling)."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any, y: Any) -> Any:
        return self.layer(x, y)


def _trace(model: torch.nn.Module, arguments: int) -> fx.GraphModule:
    tracer = _Tracer()
    if tracer.is_leaf_module(model, ""):
        model = (_OneLayer if arguments == 1 else _OneLayerOfTwo)(model)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise RuntimeError(
            f"{_OP}: torch.fx cannot trace {type(model).__name__}: {error} (its forward must not branch on numbers in "
            "tensors; wrap what does in a layer of torch.nn)"
        ) from error
    return fx.GraphModule(model, graph)


def _rule_name(target: Any) -> str | None:
    """The name under which a function's rule is kept; None for functions that are not torch's or convext's."""
    module = getattr(target, "__module__", None) or "builtins"
    if module.split(".")[0] not in _MODULES_OF_TORCH:
        return None
    return cast(str, getattr(target, "__name__", str(target)))


class _Propagator(fx.Interpreter):
    """Runs the graph on the example, and beside every node's result keeps the Value of its places."""

    def __init__(self, graph: fx.GraphModule, of: int, input_size: tuple[int, ...], single: bool) -> None:
        super().__init__(graph)
        self.single = single
        self.of, self.input_size, self.placeholders = of, input_size, 0
        self.values_of: dict[fx.Node, Value] = {}
        self.rows: list[FieldRow] = []
        self.returned: Value = None
        self.returned_shape: tuple[int, ...] = ()

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            return self._finish(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = super().run_node(n)
        if n.op == "placeholder":
            value = self._placeholder(result)
        elif n.op == "get_attr":
            value = None
        else:
            looked_up = fx.node.map_aggregate(cast(Any, (n.args, n.kwargs)), self._value_of)
            values, keyword_values = cast(Any, looked_up)
            value = self._value(n, Call(tuple(args), dict(kwargs), tuple(values), dict(keyword_values), result))
            self._note(n, value, result)
            self._written(n, args, kwargs, value)
        self.values_of[n] = value
        return result

    def _value_of(self, argument: Any) -> Any:
        return self.values_of.get(argument) if isinstance(argument, fx.Node) else None

    def _placeholder(self, result: Any) -> Value:
        mine = self.placeholders == self.of
        self.placeholders += 1
        if not mine:
            return None
        spatial = len(self.input_size)
        axes = (None,) * (result.dim() - spatial) + tuple(range(spatial))
        return State(axes, (IDENTITY,) * spatial)

    def _value(self, n: fx.Node, call: Call) -> Value:
        if not _holds_tensors(call.result):
            return None
        try:
            if not _depends((call.values, call.keyword_values)):
                return None
            if n.op == "call_module":
                return _checked(of_module(self.fetch_attr(cast(str, n.target)), call), call.result)
            name = cast(str, n.target) if n.op == "call_method" else _rule_name(n.target)
            rule = None if name is None else RULES.get(name) or RULES.get(name.strip("_")) or RULES.get(f"{name}_")
            if rule is None:
                raise Refused(f"no rule for {name or n.target}")
            return _checked(rule(call), call.result)
        except Refused as refusal:
            reason = str(refusal)
        except Exception as error:  # a call that its rule did not foresee
            reason = f"its arguments are not understood ({type(error).__name__}: {error})"
        return Unknown(reason if reason.startswith("after ") else f"after {self._name(n)}: {reason}")

    def _written(self, n: fx.Node, args: Any, kwargs: Any, value: Value) -> None:
        """Follows an operation in place: other names of what it wrote have the new value, or one that is unknown."""
        target = kwargs.get("out")
        if n.target in _WRITING or (n.op == "call_method" and str(n.target).endswith("_")):
            target = args[0]
        if not isinstance(target, Tensor):
            return
        for node, other in self.env.items():
            if not isinstance(other, Tensor) or not _share(target, other):
                continue
            if other.shape == target.shape:
                self.values_of[node] = value
            elif value != self.values_of[node]:
                self.values_of[node] = Unknown(f"after {n.name}: it is written to in parts")

    def _name(self, n: fx.Node) -> str:
        if n.op != "call_module":
            return n.name
        return type(self.fetch_attr("layer")).__name__ if self.single else str(n.target)

    def _row(self, name: str, op: str, value: Value, shape: tuple[int, ...]) -> FieldRow:
        if isinstance(value, tuple):
            value = next((v for v in value if v is not None), None)
        if isinstance(value, State):
            return FieldRow(name, op, shape, value.fields, value.axes, value.note, self.input_size)
        reason = value.reason if isinstance(value, Unknown) else "it does not depend on the input"
        return FieldRow(name, op, shape, None, None, reason, self.input_size)

    def _note(self, n: fx.Node, value: Value, result: Any) -> None:
        if value is None or (n.target is operator.getitem and not isinstance(value, State)):
            return
        if n.op == "call_module":
            op = type(self.fetch_attr(cast(str, n.target))).__name__
        else:
            op = str(getattr(n.target, "__name__", n.target))
        self.rows.append(self._row(self._name(n), op, value, _shape_of(result)))

    def _finish(self, n: fx.Node) -> Any:
        found: list[tuple[Value, tuple[int, ...]]] = []

        def look(node: fx.Node) -> fx.Node:
            result, value = self.env[node], self.values_of[node]
            if value is not None:
                found.append((value, _shape_of(result)))
            return node

        fx.node.map_arg(n.args, look)
        self.returned, self.returned_shape = found[0] if found else (None, ())
        return None


_WRITING = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share memory."""
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _checked(value: Value, result: Any) -> Value:
    """Refuses a value that does not have the result's dimensions."""
    if isinstance(value, State) and isinstance(result, Tensor) and len(value.axes) != result.dim():
        raise Refused("its result has other dimensions than expected")
    return value


def _shape_of(result: Any) -> tuple[int, ...]:
    first = result[0] if isinstance(result, tuple | list) and result else result
    return tuple(first.shape) if isinstance(first, Tensor) else ()


def _holds_tensors(result: Any) -> bool:
    if isinstance(result, tuple | list):
        return any(map(_holds_tensors, result))
    return isinstance(result, Tensor)


def _depends(values: Any) -> bool:
    if isinstance(values, dict):
        return any(map(_depends, values.values()))
    if isinstance(values, tuple | list):
        return any(map(_depends, values))
    return values is not None


def receptive_field(model: torch.nn.Module, example: Any, *, of: int = 0, spatial: int | None = None) -> ReceptiveField:
    """Which input places every layer's places see: size, jump, start and centre, exactly, from the graph.

    ``model`` is any module that torch.fx can trace, branches and residuals included; it runs once, in eval mode and
    without gradients. ``example`` is its input (n, c, *places), a tuple of its arguments, or a shape. With several
    tensor arguments, ``of`` says with respect to which. ``spatial``: how many trailing dimensions are places; by
    default all but two.

    Sizes follow r_l = 1 + sum over l of (k_l - 1) d_l (product of the strides before), see
    :mod:`convext.analysis.fields`, which goes on where that formula ends: transposed convolutions, upsampling and
    adaptive pooling (whose windows differ from place to place: ``size`` is the largest, ``row.window(place)`` that of
    a place). Where branches meet, a place sees all that it sees through either. All windows are intervals: a dilated
    convolution skips places inside its own. They are not cut off at the border, as if the input went on
    (``row.window(place, clip=True)`` cuts).

    Convolutions, transposed convolutions, every pooling but fractional max pooling, of torch.nn, convext (subclasses as
    what they derive from) and as functions; padding layers, interpolation, elementwise operations, normalisation (batch
    normalisation as in eval mode; group and layer normalisation see all places that their statistics are of),
    reductions, cat, views, Linear. A gate that looks at all places (squeeze and excitation) makes all after it see
    everything. What has no rule makes its row unknown, with the reason in ``note``, and all that
    comes after.

    Raises TypeError for another example, RuntimeError where torch.fx cannot trace the model, and whatever it raises.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{_OP}: model must be a torch.nn.Module, got {type(model).__name__}")
    arguments = examples_of(_OP, model, example)
    tensors = [at for at, one in enumerate(arguments) if isinstance(one, Tensor)]
    if not 0 <= of < len(tensors):
        raise ValueError(f"{_OP}: of must be the number of one of {len(tensors)} tensor arguments, got of={of}")
    input = arguments[tensors[of]]
    count = input.dim() - 2 if spatial is None else spatial
    if not 1 <= count <= input.dim():
        raise ValueError(f"{_OP}: the input must have at least one axis of places, got shape {tuple(input.shape)}")
    with in_eval(model), torch.no_grad():
        graph = _trace(model, len(arguments))
        single = _Tracer().is_leaf_module(model, "")
        propagator = _Propagator(graph, tensors[of], tuple(input.shape[-count:]), single)
        propagator.run(*arguments)
    output = propagator._row("output", type(model).__name__, propagator.returned, propagator.returned_shape)
    return ReceptiveField(tuple(propagator.rows), propagator.input_size, output)
