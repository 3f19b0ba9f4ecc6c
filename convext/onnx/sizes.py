"""What the translations share: ONNX's operators, sizes that may be known only when the model runs, padding.

A size is an int, or a value of the graph: an int64 tensor of one element. Arithmetic on ints is done here and now.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, TypeAlias

Size: TypeAlias = Any
"""An int or a value of the graph."""
Value: TypeAlias = Any

INT64_MIN = -(2**63)
PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class NotInOnnxError(NotImplementedError):
    """The standard has no operator for it."""


def require_packages() -> None:
    """Raises ImportError, naming what is missing."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"convext.onnx needs {' and '.join(missing)}: pip install convext[onnx]")


@functools.cache
def operators() -> Any:
    """ONNX's operators as functions: within torch's exporter a call adds a node to the graph."""
    return importlib.import_module("onnxscript").opset20


def integers(*values: int) -> Value:
    """A constant int64 vector."""
    return operators().Constant(value_ints=list(values))


def scalar_like(value: float, like: Value) -> Value:
    """A constant of no dimensions and of the other's type."""
    ir = importlib.import_module("onnx_ir")
    return operators().Constant(value=ir.tensor(value, dtype=like.dtype))


def is_floating(value: Value) -> bool:
    return bool(value.dtype.is_floating_point())


def as_value(size: Size) -> Value:
    """A vector of one element."""
    return integers(size) if isinstance(size, int) else operators().Reshape(size, integers(-1))


def vector(values: Sequence[Size]) -> Value:
    """The sizes, one after the other."""
    if all(isinstance(v, int) for v in values):
        return integers(*values)
    return operators().Concat(*[as_value(v) for v in values], axis=0)


def known(*values: Sequence[Size]) -> bool:
    """Whether all sizes are numbers."""
    return all(isinstance(v, int) for several in values for v in several)


def _binary(name: str, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return {"Add": a + b, "Sub": a - b, "Mul": a * b}[name]
    return getattr(operators(), name)(as_value(a), as_value(b))


def add(a: Size, b: Size) -> Size:
    return _binary("Add", a, b)


def sub(a: Size, b: Size) -> Size:
    return _binary("Sub", a, b)


def mul(a: Size, b: Size) -> Size:
    return _binary("Mul", a, b)


def floor_div(a: Size, b: int) -> Size:
    """Of numbers that are not negative."""
    return a // b if isinstance(a, int) else operators().Div(a, integers(b))


def larger(a: Size, b: int) -> Size:
    return max(a, b) if isinstance(a, int) else operators().Max(a, integers(b))


def one_less_where(condition: tuple[Size, Size], size: Size) -> Size:
    """size - 1 where the first of the pair is at least the second, else size."""
    a, b = condition
    if known((a, b, size)):
        return size - 1 if a >= b else size
    op = operators()
    reached = op.GreaterOrEqual(as_value(a), as_value(b))
    return op.Sub(as_value(size), op.Cast(reached, to=7))


def shape_of(x: Value) -> list[Size]:
    """The sizes of a value: ints where the exporter knows them."""
    op = operators()
    found: list[Size] = []
    for axis, size in enumerate(x.shape):
        found.append(size if isinstance(size, int) else op.Shape(x, start=axis, end=axis + 1))
    return found


def places_of(x: Value) -> list[Size]:
    """The spatial ones."""
    return shape_of(x)[2:]


def kernel_of(weight: Value) -> list[int]:
    return [int(size) for size in weight.shape[2:]]


def pad(x: Value, before: Sequence[Size], after: Sequence[Size], mode: str = "constant", fill: Any = None) -> Value:
    """x with so many places more on each side of its spatial dimensions, fewer where negative."""
    if known(before, after) and not any(before) and not any(after):
        return x
    axes = integers(*range(2, 2 + len(before)))
    return operators().Pad(x, vector([*before, *after]), fill, axes, mode=mode)


def fits_attributes(kernel: Sequence[int], *sides: Sequence[Size]) -> bool:
    """Whether pooling may have this padding as its attribute: ONNX Runtime wants less than the kernel's taps."""
    return known(*sides) and all(0 <= p < k for side in sides for p, k in zip(side, kernel, strict=True))
