"""How far a layer or model is from shift equivariance."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from convext.analysis.example import examples_of, in_eval
from convext.analysis.receptive_field import FieldRow, receptive_field
from convext.arguments import Ints, expand

_OP = "equivariance_error"
_MODES = ("circular", "zeros")


def shifted(x: Tensor, shift: Sequence[int | Fraction], mode: str) -> Tensor:
    """x (n, c, *places) with place i moved to place i + shift in every axis; what leaves comes in at the other side
    (``"circular"``) or is replaced by zeros. Half a place further on is the mean of two neighbours, and so on."""
    for axis, by in enumerate(shift):
        whole, part = divmod(Fraction(by), 1)
        moved = _moved(x, 2 + axis, whole, mode)
        x = moved if part == 0 else moved * float(1 - part) + _moved(x, 2 + axis, whole + 1, mode) * float(part)
    return x


def _moved(x: Tensor, dim: int, by: int, mode: str) -> Tensor:
    moved = x.roll(by, dim)
    if mode == "circular" or by == 0:
        return moved
    at = torch.arange(x.shape[dim], device=x.device).view(-1, *[1] * (x.dim() - dim - 1))
    return moved.masked_fill((at < by) | (at >= x.shape[dim] + by), 0.0)


def _inside(row: FieldRow, shift: Sequence[int], output_shift: Sequence[Fraction], places: Sequence[int]) -> list[Any]:
    """Per axis of the output the places that see the same things before and after the shift, and no border: those whose
    window, and that of every place they are compared with, lies in what both images show."""
    kept = []
    assert row.fields is not None
    assert row.axes is not None
    for dim, axis in enumerate(row.axes[2:]):
        if axis is None:
            kept.append(torch.arange(places[dim]))
            continue
        if axis < 0:
            raise ValueError(f"{_OP}: interior must be False for places that were flattened, got interior=True")
        size, by, moved = row.input_size[axis], shift[axis], output_shift[axis]
        first, last = max(by, 0), size - 1 + min(by, 0)

        def within(place: int, first: int, last: int, axis: int = axis) -> bool:
            seen = row.fields[axis].window(place)  # type: ignore[index]
            return seen is None or (first <= seen[0] and seen[1] <= last)

        compared = [int(moved // 1)] + ([int(moved // 1) + 1] if moved % 1 else [])
        good = [
            place
            for place in range(places[dim])
            if within(place, first, last)
            and all(0 <= place - m < places[dim] and within(place - m, first - by, last - by) for m in compared)
        ]
        if not good:
            raise ValueError(
                f"{_OP}: no output place sees the inside alone (axis {axis} has {size} places, a window "
                f"{row.size[axis]}, the shift is {by}): take a larger example, or interior=False"
            )
        kept.append(torch.tensor(good))
    return kept


def equivariance_error(
    model: torch.nn.Module,
    example: Any,
    shift: Ints = 1,
    *,
    mode: str = "circular",
    interior: bool | None = None,
    jump: Sequence[int | Fraction] | int | Fraction | None = None,
) -> float:
    """How far f(shift x) is from shift f(x): the relative norm

        || f(S x) - S' f(x) || / || S' f(x) ||

    S moves x by ``shift`` places (an int for all axes, or one per axis), S' moves the output by shift / jump places,
    with ``jump`` the input places per output place, found by :func:`convext.analysis.receptive_field` where it is not
    given. 0: equivariant. A layer of stride 2 is so for even shifts; odd ones show its aliasing: shift / jump is no
    whole number then, and S' interpolates linearly between neighbouring outputs, which for a smooth output is what a
    layer without aliasing would give (R. Zhang 2019, Making convolutional networks shift-invariant again). An axis that
    the output does not have, or along which all places see the same (after global pooling), is not moved: invariance is
    measured.

    ``mode``: ``"circular"`` moves places around, so that circular padding is exactly equivariant and what zero padding
    does at the border shows; ``"zeros"`` moves zeros in. ``interior``: compares only those output places whose windows
    touch no border, seam or padding; by default for ``"zeros"``.

    ``example``: the input (n, c, *places), a tuple of arguments of which the first is moved, or a shape, of which
    random values are made. The model runs in eval mode and without gradients.

    Raises ValueError for another mode, where no place is left to compare, and where the jump is unknown and not given;
    what receptive_field raises for a model that torch.fx cannot trace, if ``jump`` is None or ``interior``.
    """
    if mode not in _MODES:
        raise ValueError(f"{_OP}: mode must be one of {_MODES}, got mode={mode!r}")
    x, *others = examples_of(_OP, model, example)
    spatial = x.dim() - 2
    if spatial < 1:
        raise ValueError(f"{_OP}: the input must be (n, c, *places), got shape {tuple(x.shape)}")
    shifts = expand(_OP, "shift", shift, spatial)
    cropped = mode == "zeros" if interior is None else interior
    row = receptive_field(model, (x, *others)).output if jump is None or cropped else None
    if row is not None and not row.known:
        raise ValueError(f"{_OP}: jump must be given (and interior False) where it is unknown: {row.note}")
    with in_eval(model), torch.no_grad():
        moved, still = model(shifted(x, shifts, mode), *others), model(x, *others)
    if not isinstance(still, Tensor):
        raise TypeError(f"{_OP}: the model must return a tensor, got {type(still).__name__}")
    output_shift = _output_shift(row, jump, shifts, still.dim() - 2)
    expected = shifted(still, output_shift, mode)
    if cropped and row is not None:
        by_axis = [Fraction(0)] * spatial
        for dim, axis in enumerate((row.axes or ())[2:]):
            if axis is not None and axis >= 0:
                by_axis[axis] = output_shift[dim]
        for dim, places in enumerate(_inside(row, shifts, by_axis, still.shape[2:])):
            at = places.to(still.device)
            moved, expected = moved.index_select(2 + dim, at), expected.index_select(2 + dim, at)
    error, norm = (moved - expected).double().norm().item(), expected.double().norm().item()
    return error / norm if norm else (0.0 if error == 0 else float("inf"))


def _output_shift(row: FieldRow | None, jump: Any, shifts: Sequence[int], dims: int) -> list[Fraction]:
    """How far the output is moved, per axis of places that it has."""
    if jump is not None:
        jumps = list(jump) if isinstance(jump, Sequence) else [jump] * len(shifts)
        if len(jumps) != len(shifts) or any(j < 0 for j in jumps):
            raise ValueError(f"{_OP}: jump must be {len(shifts)} numbers that are not negative, got jump={jump!r}")
        return [Fraction(s) / Fraction(j) if j else Fraction(0) for s, j in zip(shifts, jumps, strict=True)][:dims]
    assert row is not None
    result = []
    for axis in (row.axes or ())[2:]:
        step = row.jump[axis] if axis is not None and axis >= 0 else Fraction(0)
        if step is None:
            raise ValueError(f"{_OP}: jump must be given where it varies: {row.note}")
        result.append(shifts[axis] / step if axis is not None and step else Fraction(0))
    return result
