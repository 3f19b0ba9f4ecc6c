"""What layers cost: parameters, operations, bytes, and what each algorithm makes of the multiplications."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from convext import _C, choice
from convext.analysis.example import examples_of
from convext.analysis.fields import adaptive
from convext.analysis.receptive_field import aligned, by
from convext.analysis.visit import Operation, Visit, tensors_in, watch
from convext.arguments import expand
from convext.choice import CONVOLUTIONS, POOLS, Explanation

_TILE_LANES = 8
_WEIGHT_CYCLES = 0.8


# Algorithms ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlgorithmCost:
    """What one algorithm does for a convolution."""

    name: str
    refusal: str | None
    """Why it cannot do the call; None where it can."""
    multiplications: int | None
    """Of inputs (or transformed inputs) by weights; None where it cannot do the call. Winograd's transforms, which are
    sums of inputs and outputs by small constants, are not among them."""
    workspace_bytes: int
    """What the library's implementation takes besides the output, for the present number of threads."""
    column_bytes: int | None = None
    """im2col: of the whole matrix of columns, which the library unfolds by panels instead."""
    tile: str | None = None
    """winograd: F(outputs, taps), as in Lavin and Gray 2015."""


def winograd_tile(kernel: Sequence[int], output: Sequence[int], mode: str = "accurate") -> tuple[int, int] | None:
    """The tile (outputs along h, along w) that winograd takes for a kernel (r, s) or (s,) and an output of those
    places, with the depth in front in three dimensions; None for a kernel it has no tiles for.

    The rule of csrc/cpu/conv_winograd.cpp: 5x5 kernels take 2x2 outputs (4x4 in mode ``"fast"``); of 2x2 and 4x4 for
    3x3 kernels the one that takes fewer cycles, where reading a transformed weight counts as at least 0.8 cycles for
    every 16 multiply-adds, and tiles come in eights.
    """
    r, s = (1, kernel[0]) if len(kernel) == 1 else (kernel[-2], kernel[-1])
    if s not in (3, 5) or r not in (1, s):
        return None
    if r == 1:
        return (1, 2) if s == 5 else (1, 4)
    if s == 5:
        return (4, 4) if mode == "fast" else (2, 2)
    depth = output[0] if len(output) == 3 else 1

    def cycles(m: int) -> float:
        tiles = math.ceil(output[-2] / m) * math.ceil(output[-1] / m)
        rounded = math.ceil(tiles / _TILE_LANES) * _TILE_LANES * depth
        return (m + 2) ** 2 * max(rounded / 16, _WEIGHT_CYCLES)

    return (2, 2) if cycles(2) < cycles(4) else (4, 4)


@dataclass(frozen=True)
class _Conv:
    """A convolution, transposed or not."""

    batch: int
    pairs: int
    """Input channels per group times output channels."""
    kernel: tuple[int, ...]
    places: tuple[int, ...]
    """At which the kernel is laid down: the output's, or the input's of a transposed convolution."""
    output: tuple[int, ...]
    columns: int
    """Rows of im2col's matrix: channels times taps."""

    @property
    def multiply_adds(self) -> int:
        return self.batch * self.pairs * math.prod(self.kernel) * math.prod(self.places)

    def winograd(self, mode: str) -> tuple[int, str] | None:
        tile = winograd_tile(self.kernel, self.output, mode)
        if tile is None:
            return None
        taps = (1, *self.kernel)[-2:]
        places = (1, *self.output)[-2:]
        depth = math.prod((*self.kernel[:-2], *self.output[:-2]))
        tiles = math.prod(math.ceil(n / m) for n, m in zip(places, tile, strict=True))
        points = math.prod(m + r - 1 for m, r in zip(tile, taps, strict=True))
        named = [f"{m}, {r}" for m, r in zip(tile, taps, strict=True)]
        name = f"F({named[1]})" if taps[0] == 1 else f"F({tile[0]}x{tile[1]}, {taps[0]}x{taps[1]})"
        return self.batch * self.pairs * depth * tiles * points, name


def _as_conv(operation: Operation, spatial: int) -> _Conv:
    weight: Tensor = operation.argument(1, "weight")
    input: Tensor = operation.argument(0, "input")
    batch = input.shape[0] if input.dim() == spatial + 2 else 1
    kernel, places = tuple(weight.shape[2:]), tuple(operation.result.shape[-spatial:])
    summed = tuple(input.shape[-spatial:]) if "transpose" in operation.name else places
    columns = math.prod(weight.shape[1:])
    groups = operation.argument(6, "groups", 1)
    return _Conv(batch, weight.shape[0] * weight.shape[1], kernel, summed, places, columns * groups)


def _algorithms(conv: _Conv, explanation: Explanation, asked: str, itemsize: int) -> tuple[AlgorithmCost, ...]:
    _name, mode = _C.parse_algorithm(asked)
    costs = []
    for verdict in explanation.verdicts:
        cost = AlgorithmCost(verdict.name, verdict.refusal, None, verdict.workspace_bytes)
        if verdict.refusal is None:
            cost = replace(cost, multiplications=conv.multiply_adds)
            if verdict.name == "im2col":
                cost = replace(cost, column_bytes=conv.batch * conv.columns * math.prod(conv.places) * itemsize)
            found = conv.winograd(mode) if verdict.name == "winograd" else None
            if found is not None:
                cost = replace(cost, multiplications=found[0], tile=found[1])
        costs.append(cost)
    return tuple(costs)


# Operations ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What an operation computes."""

    multiply_adds: int = 0
    additions: int = 0
    comparisons: int = 0
    note: str = ""


def _window_work(comparing: bool, out: int, window: int) -> _Work:
    steps = out * (window - 1)
    return _Work(comparisons=steps) if comparing else _Work(additions=steps)


def _first(result: Any) -> Tensor:
    return tensors_in(result)[0]


def _matmul(a: Tensor, out: Tensor) -> int:
    return out.numel() * a.shape[-1]


def _attention(operation: Operation) -> _Work:
    """Scores q k^T and their sums over v."""
    q, k, v = (operation.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    batch = math.prod(q.shape[:-2])
    return _Work(batch * q.shape[-2] * k.shape[-2] * (q.shape[-1] + v.shape[-1]))


def _multi_head(operation: Operation) -> _Work:
    """Projections of query, key, value and result, and :func:`_attention`; tensors (places, batch, features)."""
    q, k, v = (operation.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    width, batch = q.shape[-1], q.shape[1] if q.dim() == 3 else 1
    projected = (q.numel() + k.numel() + v.numel()) * width + q.numel() * width
    return _Work(projected + 2 * batch * q.shape[0] * k.shape[0] * width)


_UNCOUNTED = ("bilinear", "cdist", "einsum", "gru", "lstm", "rnn_relu", "rnn_tanh", "tensordot", "unfold", "fold")
_MATRIX = ("matmul", "mm", "bmm", "mv", "dot", "linear", "rmatmul")


def _work_of(operation: Operation) -> _Work:
    name = operation.name
    dims = int(name[-2]) if name[-1:] == "d" and name[-2:-1] in ("1", "2", "3") else 0
    out = _first(operation.result)
    input = operation.argument(0, "input")
    if name in CONVOLUTIONS:
        return _Work(_as_conv(operation, dims).multiply_adds)
    if name in _MATRIX:
        return _Work(_matmul(input, out) if name != "rmatmul" else _matmul(operation.args[1], out))
    if name in ("addmm", "baddbmm", "addmv", "addbmm"):
        return _Work(_matmul(operation.args[1], out))
    if name == "scaled_dot_product_attention":
        return _attention(operation)
    if name == "multi_head_attention_forward":
        return _multi_head(operation)
    if name in _UNCOUNTED:
        return _Work(note=f"the multiply-adds of {name} are not counted")
    if not isinstance(input, Tensor):
        return _Work()
    stem = name[:-2] if dims else name
    if stem in ("max_pool", "avg_pool", "fractional_max_pool"):
        window = math.prod(expand(name, "kernel_size", operation.argument(1, "kernel_size"), dims))
        return _window_work("max" in stem, out.numel(), window)
    if stem == "lp_pool":
        window = math.prod(expand(name, "kernel_size", operation.argument(2, "kernel_size"), dims))
        return _window_work(False, out.numel(), window)
    if stem in ("adaptive_avg_pool", "adaptive_max_pool", "global_avg_pool", "global_max_pool"):
        seen = [_adaptive_total(n, o) for n, o in zip(input.shape[-dims:], out.shape[-dims:], strict=True)]
        total = math.prod(seen) * math.prod(out.shape[:-dims]) - out.numel()
        return _Work(comparisons=total) if "max" in stem else _Work(additions=total)
    if name in ("mean", "sum"):
        return _Work(additions=input.numel() - out.numel())
    if name in ("amax", "amin"):
        return _Work(comparisons=input.numel() - out.numel())
    return _Work()


def _adaptive_total(size: int, out: int) -> int:
    """Places of all adaptive windows of one axis together."""
    step = adaptive(size, out)
    return sum(len(step.places(i)) for i in range(out))


# Rows ----------------------------------------------------------------------------------------------------------------


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
    work = [_work_of(operation) for operation in visit.operations]
    layer = visit.layer
    if layer is not None:
        own: list[Tensor] = [*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())]
        count = sum(p.numel() for p in layer.parameters())
        inputs = visit.inputs
    else:
        own = []
        used = {id(t): t for t in visit.inputs}
        count = sum(parameters.get(at, 0) for at in used)
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
        parameters=count,
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
    conv = _as_conv(operation, int(operation.name[-2]))
    itemsize = cast(Tensor, operation.argument(0, "input")).element_size()
    return explanation, _algorithms(conv, explanation, cast(str, asked), itemsize)


# Stacks --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StackComparison:
    """Several small kernels against one large: see :func:`stack_vs_single`."""

    kernel_size: int
    small: int
    layers: int
    """How many small ones."""
    single: Count
    stacked: Count
    single_field: tuple[int, ...]
    """Its receptive field, input places per axis."""
    stacked_field: tuple[int, ...]

    @property
    def same_field(self) -> bool:
        return self.single_field == self.stacked_field

    @property
    def parameter_ratio(self) -> float:
        """How many times as many parameters the single one has."""
        return self.single.parameters / self.stacked.parameters

    @property
    def multiply_add_ratio(self) -> float:
        return self.single.multiply_adds / self.stacked.multiply_adds

    def __str__(self) -> str:
        k, s = ("x".join([str(n)] * len(self.single_field)) for n in (self.kernel_size, self.small))
        cells = [("", "parameters", "multiply-adds", "field")]
        for name, total, seen in (
            (f"one {k}", self.single, self.single_field),
            (f"{self.layers} of {s}", self.stacked, self.stacked_field),
        ):
            cells.append((name, f"{total.parameters:,}", f"{total.multiply_adds:,}", by(seen)))
        cells.append(("ratio", f"{self.parameter_ratio:.2f}", f"{self.multiply_add_ratio:.2f}", ""))
        return aligned(cells, left=(0,))


def stack_vs_single(
    kernel_size: int = 7,
    small: int = 3,
    *,
    channels: int = 64,
    input_size: int | Sequence[int] = 32,
    spatial: int = 2,
    bias: bool = False,
    groups: int = 1,
) -> StackComparison:
    """Parameters and operations of stacked small kernels against one large with the same receptive field.

    n layers of ``small`` see 1 + n (small - 1) places, so n = (kernel_size - 1) / (small - 1) replace one kernel: with
    C channels throughout 27 C^2 parameters (3 of 3x3) for 49 C^2 (Simonyan and Zisserman 2014). All layers have
    ``channels`` inputs and outputs, "same" padding and an input of ``input_size`` places in ``spatial`` dimensions,
    batch 1. Both are built and counted by :func:`count`, their fields are found by
    :func:`convext.analysis.receptive_field`; ``same_field`` says whether they are equal.

    Raises ValueError where n is not a whole number, or for sizes below 1.
    """
    from convext.analysis.receptive_field import receptive_field
    from convext.nn import Conv1d, Conv2d, Conv3d

    if small < 2 or kernel_size < small:
        raise ValueError(
            f"stack_vs_single: small must be at least 2 and at most kernel_size, got small={small}, "
            f"kernel_size={kernel_size}"
        )
    layers, left = divmod(kernel_size - 1, small - 1)
    if left:
        raise ValueError(
            f"stack_vs_single: kernel_size - 1 must be a multiple of small - 1, got kernel_size={kernel_size}, "
            f"small={small}"
        )
    if spatial not in (1, 2, 3):
        raise ValueError(f"stack_vs_single: spatial must be 1, 2 or 3, got spatial={spatial}")
    kind: Any = (Conv1d, Conv2d, Conv3d)[spatial - 1]
    shape = (1, channels, *expand("stack_vs_single", "input_size", input_size, spatial))
    options: dict[str, Any] = {"padding": "same", "bias": bias, "groups": groups}
    single = torch.nn.Sequential(kind(channels, channels, kernel_size, **options))
    stacked = torch.nn.Sequential(*[kind(channels, channels, small, **options) for _ in range(layers)])
    fields = [receptive_field(model, shape).output.size for model in (single, stacked)]
    return StackComparison(
        kernel_size, small, layers, count(single, shape), count(stacked, shape), fields[0], fields[1]
    )
