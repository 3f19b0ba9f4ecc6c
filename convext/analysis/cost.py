"""What layers cost: parameters, operations, bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from convext import choice
from convext.analysis.algorithm_cost import AlgorithmCost, algorithm_costs, conv_sizes
from convext.analysis.example import examples_of
from convext.analysis.receptive_field import aligned, by
from convext.analysis.visit import Operation, Visit, watch
from convext.analysis.work import work_of
from convext.choice import CONVOLUTIONS, POOLS, Explanation


@dataclass(frozen=True)
class CountRow:
    """One call of a layer, or an operation between layers."""

    name: str
    op: str
    """The layer's class or the function."""
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: str
    parameters: int
    """Numbers trained in it; a layer called twice has them in both rows, the total once."""
    multiply_adds: int
    """Of convolutions and matrix products. Products with padding count."""
    additions: int
    """Of average pooling and means."""
    comparisons: int
    """Of max pooling."""
    bytes_moved: int
    """Inputs and parameters read once and outputs written once: the least traffic with memory."""
    algorithms: tuple[AlgorithmCost, ...] = ()
    """Of a convolution: what each makes of it, in the order of :func:`convext.algorithms`."""
    explanation: Explanation | None = None
    """Of a convolution or pooling: what convext runs for it, or would after :func:`convext.convert`."""
    ours: bool = False
    """Whether it is a layer or function of convext."""
    note: str = ""

    @property
    def operations(self) -> int:
        """Additions, comparisons, and two for each multiply-add."""
        return 2 * self.multiply_adds + self.additions + self.comparisons

    @property
    def intensity(self) -> float:
        """Operations per byte moved; 0 where nothing is moved."""
        return self.operations / self.bytes_moved if self.bytes_moved else 0.0

    @property
    def algorithm(self) -> str | None:
        """What "auto" (or the name that was given) runs; None where there is nothing to choose."""
        return self.explanation.chosen if self.explanation else None

    @property
    def winograd_saving(self) -> float | None:
        """How many times fewer multiplications winograd takes; None where it cannot do the layer."""
        for cost in self.algorithms:
            if cost.name == "winograd" and cost.multiplications:
                return self.multiply_adds / cost.multiplications
        return None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        names = ("name", "op", "dtype", "parameters", "multiply_adds", "additions", "comparisons", "bytes_moved")
        row: dict[str, Any] = {name: getattr(self, name) for name in names}
        row |= {"input_shape": list(self.input_shape), "output_shape": list(self.output_shape)}
        row |= {"intensity": self.intensity, "algorithm": self.algorithm, "note": self.note}
        return row | {"algorithms": [vars(cost) for cost in self.algorithms]}


@dataclass(frozen=True)
class Count:
    """What :func:`count` found; ``str()`` is a table with totals."""

    rows: tuple[CountRow, ...]
    parameters: int
    """Of the whole model, each once."""

    def __iter__(self) -> Iterator[CountRow]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> CountRow:
        """The first row of that name. KeyError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row named {name!r}, there are {[row.name for row in self.rows]}")

    def _sum(self, of: Callable[[CountRow], int]) -> int:
        return sum(of(row) for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        return self._sum(lambda row: row.multiply_adds)

    @property
    def additions(self) -> int:
        return self._sum(lambda row: row.additions)

    @property
    def comparisons(self) -> int:
        return self._sum(lambda row: row.comparisons)

    @property
    def bytes_moved(self) -> int:
        """Of all rows: as if nothing stayed in a cache from layer to layer."""
        return self._sum(lambda row: row.bytes_moved)

    @property
    def intensity(self) -> float:
        """Operations per byte moved."""
        moved = self.bytes_moved
        return self._sum(lambda row: row.operations) / moved if moved else 0.0

    @property
    def multiplications(self) -> int:
        """Where every convolution that winograd can do is done by it."""
        total = 0
        for row in self.rows:
            saved = [c.multiplications for c in row.algorithms if c.name == "winograd" and c.multiplications]
            total += min([row.multiply_adds, *saved])
        return total

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        names = ("parameters", "multiply_adds", "additions", "comparisons", "bytes_moved", "intensity")
        return {name: getattr(self, name) for name in names} | {"rows": [row.as_dict() for row in self.rows]}

    def __str__(self) -> str:
        head = ("layer", "op", "output", "parameters", "multiply-adds", "additions", "comparisons", "bytes", "ops/byte")
        cells: list[Sequence[str]] = [(*head, "winograd")]
        for row in self.rows:
            numbers = (row.parameters, row.multiply_adds, row.additions, row.comparisons, row.bytes_moved)
            saving = "" if row.winograd_saving is None else f"{row.winograd_saving:.2f} times fewer"
            last = (f"{row.intensity:.1f}", saving or row.note)
            cells.append((row.name, row.op, by(row.output_shape), *(f"{n:,}" if n else "" for n in numbers), *last))
        totals = (self.parameters, self.multiply_adds, self.additions, self.comparisons, self.bytes_moved)
        fewer = self.multiply_adds / self.multiplications if self.multiplications else 1.0
        saving = f"{fewer:.2f} times fewer" if fewer > 1 else ""
        cells.append(("total", "", "", *(f"{n:,}" for n in totals), f"{self.intensity:.1f}", saving))
        return aligned(cells, left=(0, 1, 9))


def count(model: torch.nn.Module, example: Any) -> Count:
    """Parameters, multiply-adds, bytes moved and arithmetic intensity of every layer, and what each algorithm makes of
    the multiplications.

    ``model``: a layer or a whole model, of torch.nn or convext. It runs once, in eval mode and without gradients, on
    ``example``: the input, a tuple of arguments, or a shape (n, c, ...). A row is one call of a layer, or an operation
    between layers that computes (an addition, a function of torch.nn.functional or convext.functional); views have
    none. Everything is for the example's whole batch.

    Counted: multiply-adds of convolutions (output places x output channels x input channels per group x taps, products
    with padding included; transposed: input places), of Linear, matrix products and attention; additions of average
    pooling and means, comparisons of max pooling; not the arithmetic of activations, normalisation and biases. Bytes
    are the least possible: inputs, parameters and buffers read once, outputs written once. Per algorithm of a
    convolution: multiplications (naive, direct and im2col: the multiply-adds; winograd: points x tiles x channels, of
    the tile the library takes), workspace, and the bytes of im2col's columns if they were all written.

    Raises TypeError for another example, and whatever the model raises.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"count: model must be a torch.nn.Module, got {type(model).__name__}")
    visits = watch(model, examples_of("count", model, example))
    parameters = {id(p): p.numel() for p in model.parameters()}
    return Count(tuple(row_of(visit, parameters) for visit in visits), sum(parameters.values()))


def row_of(visit: Visit, parameters: dict[int, int]) -> CountRow:
    """The costs of one visit. ``parameters``: the numbers in each parameter of the model, by id."""
    work = [work_of(operation) for operation in visit.operations]
    layer = visit.layer
    if layer is not None:
        own: list[Tensor] = [*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())]
        numbers = sum(p.numel() for p in layer.parameters())
        inputs = visit.inputs
    else:
        own = []
        used = {id(t): t for t in visit.inputs}
        numbers = sum(parameters.get(at, 0) for at in used)
        inputs = list(used.values())
    moved = sum(t.numel() * t.element_size() for t in (*inputs, *own, *visit.outputs)) if visit.operations else 0
    explained = [found for operation in visit.operations if (found := _explained(visit, operation)) is not None]
    explanation, algorithms = explained[0] if explained else (None, ())
    out = visit.outputs[0] if visit.outputs else None
    return CountRow(
        name=visit.name,
        op=type(layer).__name__ if layer is not None else visit.operations[0].name,
        input_shape=tuple(visit.inputs[0].shape) if visit.inputs else (),
        output_shape=() if out is None else tuple(out.shape),
        dtype="" if out is None else str(out.dtype).removeprefix("torch."),
        parameters=numbers,
        multiply_adds=sum(w.multiply_adds for w in work),
        additions=sum(w.additions for w in work),
        comparisons=sum(w.comparisons for w in work),
        bytes_moved=moved,
        algorithms=algorithms,
        explanation=explanation,
        ours=any(operation.ours for operation in visit.operations),
        note="; ".join(dict.fromkeys(w.note for w in work if w.note)),
    )


def _explained(visit: Visit, operation: Operation) -> tuple[Explanation, tuple[AlgorithmCost, ...]] | None:
    """What convext says of an operation, where it is one that it has."""
    if operation.name not in CONVOLUTIONS + POOLS:
        return None
    layer = visit.layer
    try:
        if isinstance(layer, torch.nn.modules.conv._ConvNd):  # torch pads by itself for other modes than zeros
            explanation = choice.explain(layer, visit.inputs[0])
            asked = getattr(layer, "algorithm", "auto")
        else:
            explanation = choice.explain(operation.name, *operation.args, **operation.kwargs)
            asked = operation.kwargs.get("algorithm", "auto")
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return None
    if operation.name in POOLS:
        return explanation, ()
    conv = conv_sizes(operation, int(operation.name[-2]))
    itemsize = cast(Tensor, operation.argument(0, "input")).element_size()
    return explanation, algorithm_costs(conv, explanation, cast(str, asked), itemsize)
