"""One table of a model: what every layer is, costs, sees, runs, takes, and how near that is to the machine's best."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from convext.analysis.cost import CountRow, row_of
from convext.analysis.example import examples_of, in_eval
from convext.analysis.receptive_field import FieldRow, aligned, by, receptive_field
from convext.analysis.visit import Visit, layer_hooks, watch
from convext.choice import Explanation
from convext.machine import Peaks, peaks_here

_WARM = 2
_MIN_ROUNDS, _MAX_ROUNDS = 3, 50


@dataclass(frozen=True)
class SummaryRow:
    """One call of a layer, or an operation between layers."""

    name: str
    op: str
    """The layer's class or the function."""
    output_shape: tuple[int, ...]
    dtype: str
    parameters: int
    multiply_adds: int
    additions: int
    comparisons: int
    bytes_moved: int
    """Inputs and parameters read once and outputs written once."""
    field: tuple[int, ...] | None
    """Input places per axis that an output place sees; None where that is unknown."""
    jump: tuple[str | None, ...] | None
    """Input places from one output place's window to the next one's, exact ("2", "1/2")."""
    field_note: str
    library: str
    """``"convext"`` or ``"torch"``: whose code runs."""
    algorithm: str | None
    """Of a convolution or pooling: what convext runs, or would run after :func:`convext.convert`."""
    why: str
    """What decided for the algorithm, and what each other one says."""
    winograd_saving: float | None
    """How many times fewer multiplications winograd takes."""
    milliseconds: float | None
    """The median; None where nothing was measured."""
    bound: str | None
    """``"fma"`` or ``"copy"``: which of the machine's peaks bounds it."""
    share: float | None
    """How much of that peak it reaches; above 1 where winograd saves multiplications or data stay in cache."""
    note: str
    """What was not counted; mostly empty."""

    @property
    def intensity(self) -> float:
        """Operations per byte moved."""
        done = 2 * self.multiply_adds + self.additions + self.comparisons
        return done / self.bytes_moved if self.bytes_moved else 0.0


@dataclass(frozen=True)
class Summary:
    """What :func:`summary` found; ``str()`` is a table, :meth:`to_json` JSON, ``rows`` data."""

    model: str
    rows: tuple[SummaryRow, ...]
    inputs: tuple[tuple[int, ...], ...]
    """Shapes of the tensor arguments."""
    dtype: str
    device: str
    threads: int
    parameters: int
    """Of the whole model, each once."""
    milliseconds: float | None
    """Of the whole model's forward pass: the median, layers and all between them."""
    machine: Peaks | None
    """The peaks that shares refer to."""

    def __iter__(self) -> Iterator[SummaryRow]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> SummaryRow:
        """The first row of that name. KeyError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row named {name!r}, there are {[row.name for row in self.rows]}")

    @property
    def multiply_adds(self) -> int:
        return sum(row.multiply_adds for row in self.rows)

    @property
    def bytes_moved(self) -> int:
        return sum(row.bytes_moved for row in self.rows)

    @property
    def share(self) -> float | None:
        """The seconds that all rows take at their bounds, as a share of the whole model's; None if not measured."""
        if self.machine is None or not self.milliseconds:
            return None
        least = sum(_least(self.machine, row)[1] for row in self.rows)
        return 1e3 * least / self.milliseconds

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        names = ("model", "dtype", "device", "threads", "parameters", "multiply_adds", "bytes_moved", "milliseconds")
        result = {name: getattr(self, name) for name in names} | {"share": self.share}
        result["inputs"] = [list(shape) for shape in self.inputs]
        result["machine"] = None if self.machine is None else self.machine.as_json()
        result["rows"] = [
            {f.name: getattr(row, f.name) for f in fields(row)} | {"intensity": row.intensity} for row in self.rows
        ]
        return result

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=indent)

    def __str__(self) -> str:
        timed = self.milliseconds is not None
        head = ["layer", "op", "output", "parameters", "multiply-adds", "bytes", "field", "algorithm"]
        cells = [[*head, "ms", "% of bound", "why"] if timed else [*head, "why"]]
        for row in self.rows:
            start = [row.name, row.op, by_x(row.output_shape), *map(_amount, (row.parameters, row.multiply_adds))]
            start += [_amount(row.bytes_moved), _field(row), _runs(row)]
            times = _times(row.milliseconds, row.share) if timed else ()
            cells.append([*start, *times, _short(row.why) or row.note])
        total = ["total", "", "", *map(_amount, (self.parameters, self.multiply_adds, self.bytes_moved)), "", ""]
        cells.append([*total, *_times(self.milliseconds, self.share), ""] if timed else [*total, ""])
        shapes = ", ".join(by_x(shape) for shape in self.inputs)
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        lines = [f"{self.model}, input {shapes} {self.dtype} on {self.device}, {threads}"]
        if self.machine is not None:
            copies = self.machine.copy_gbs.values()
            lines[0] += f"; bounds: {self.machine.gflops:.0f} GFLOP/s, copy {min(copies):.0f} to {max(copies):.0f} GB/s"
        return "\n".join([*lines, aligned(cells, left=(0, 1, 7, len(cells[0]) - 1))])


def by_x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _amount(number: int) -> str:
    """Three digits and k, M, G, T; nothing for 0."""
    if number == 0:
        return ""
    value, unit = float(number), ""
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= 1000
    return f"{number}" if unit == "" else f"{value:.3g}{unit}"


def _field(row: SummaryRow) -> str:
    return "?" if row.field is None else by(row.field)


def _runs(row: SummaryRow) -> str:
    if row.algorithm is None:
        return ""
    return row.algorithm if row.library == "convext" else f"torch ({row.algorithm})"


def _times(milliseconds: float | None, share: float | None) -> tuple[str, str]:
    return (
        "" if milliseconds is None else f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}",
        "" if share is None else f"{100 * share:.0f}",
    )


def why(explanation: Explanation | None) -> str:
    """What decided: a name that was given, a measurement (convext.tune) or the rule; then what the others say."""
    if explanation is None:
        return ""
    decided = "named" if not explanation.asked.startswith("auto") else "tuned" if explanation.tuned else "rule"
    said = [
        f"{verdict.name} could" if verdict.refusal is None else f"{verdict.name} cannot: {verdict.refusal}"
        for verdict in explanation.verdicts
        if verdict.name != explanation.chosen
    ]
    return "; ".join([decided, *said])


def _short(reasons: str) -> str:
    """Without those that could: what fits into a table."""
    return "; ".join(part for part in reasons.split("; ") if not part.endswith(" could"))


# Measuring -----------------------------------------------------------------------------------------------------------


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _layer_times(model: torch.nn.Module, arguments: tuple[Any, ...], device: torch.device) -> list[float]:
    """Seconds of every outermost layer call, in order."""
    times: list[float] = []
    started: list[float] = []

    def before(_name: str, _layer: torch.nn.Module, _args: Any) -> None:
        _settle(device)
        started.append(time.perf_counter())

    def after(_name: str, _layer: torch.nn.Module, _args: Any, _result: Any) -> None:
        _settle(device)
        seconds = time.perf_counter() - started.pop()
        if not started:
            times.append(seconds)

    with layer_hooks(model, before, after):
        model(*arguments)
    return times


def _whole(model: Callable[..., Any], arguments: tuple[Any, ...], device: torch.device) -> float:
    start = time.perf_counter()
    model(*arguments)
    _settle(device)
    return time.perf_counter() - start


def _measure(
    model: torch.nn.Module, arguments: tuple[Any, ...], visits: list[Visit], device: torch.device, budget: float
) -> tuple[float, list[float | None]]:
    """Median seconds of the whole, and of every visit (None where runs differ)."""
    wholes: list[float] = []
    layers: list[list[float]] = []
    between: list[list[float]] = []
    with in_eval(model), torch.no_grad():
        for _ in range(_WARM):  # packs weights, touches memory
            model(*arguments)
        stop = time.perf_counter() + budget
        while len(wholes) < _MIN_ROUNDS or (time.perf_counter() < stop and len(wholes) < _MAX_ROUNDS):
            wholes.append(_whole(model, arguments, device))
            layers.append(_layer_times(model, arguments, device))
            again = watch(model, arguments)
            between.append([v.operations[0].seconds for v in again if v.layer is None])
    of_layers = _medians(layers, sum(visit.layer is not None for visit in visits))
    of_between = _medians(between, sum(visit.layer is None for visit in visits))
    per_visit = [next(of_layers if visit.layer is not None else of_between) for visit in visits]
    return statistics.median(wholes), per_visit


def _medians(runs: list[list[float]], calls: int) -> Iterator[float | None]:
    """Call by call, if every run made so many."""
    if any(len(run) != calls for run in runs):
        return iter([None] * calls)
    return (statistics.median(times) for times in zip(*runs, strict=True))


def _least(machine: Peaks, row: SummaryRow | CountRow) -> tuple[str, float]:
    """Which peak bounds a row, and its seconds there: float64 multiply-adds take two turns of float32's."""
    turns = 2 if row.dtype == "float64" else 1
    return machine.least_seconds(turns * row.multiply_adds, row.bytes_moved)


# The summary ---------------------------------------------------------------------------------------------------------


def _fields_of(rows: list[FieldRow], visits: list[Visit]) -> list[FieldRow | None]:
    """The field of each visit: both lists are in the order in which things ran."""
    found: list[FieldRow | None] = []
    at = 0
    for visit in visits:
        name = visit.name if visit.layer is not None else visit.operations[0].name
        match = None
        for i in range(at, len(rows)):
            row = rows[i]
            if (row.name if visit.layer is not None else row.op.strip("_")) == name:
                match, at = row, i + 1
                break
        found.append(match)
    return found


def summary(model: torch.nn.Module, example: Any, *, measure: bool = True, budget: float = 2.0) -> Summary:
    """A table of a model, layer by layer: output shape, parameters, multiply-adds, bytes, receptive field, the
    algorithm that "auto" chooses and why, milliseconds, and the share of the machine's bound.

        print(convext.summary(model, image))
        convext.summary(model, (1, 3, 224, 224), measure=False).to_json()

    ``model``: of torch.nn's layers or convext's, or both; for torch.nn's the table says ``torch (name)``, the algorithm
    that convext would run after :func:`convext.convert`. ``example``: the input, a tuple of arguments, or a shape
    (n, c, ...). The model runs in eval mode and without gradients. Rows and counts are those of
    :func:`convext.analysis.count`, fields those of :func:`convext.analysis.receptive_field` (where torch.fx cannot
    trace the model they are unknown, and ``field_note`` says so).

    ``measure``: after two runs to warm up, the model is run for about ``budget`` seconds, three times at least; each
    layer's time is the median over the runs, the total's that of runs in which nothing is watched. On the CPU the share
    of the bound is the time that the layer would take at the peak of multiply-adds or of copying, whichever is longer,
    over the time it took (:mod:`convext.machine`; the peaks are measured once, within a second). With winograd, which
    multiplies less, it may exceed 100 %. A layer of a few microseconds is timed with the hooks' own time. Nothing is
    measured on the meta device.

    Raises TypeError for another model or example, ValueError for a negative budget, and whatever the model raises.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"summary: model must be a torch.nn.Module, got {type(model).__name__}")
    if budget < 0:
        raise ValueError(f"summary: budget must be a number of seconds, got budget={budget}")
    arguments = examples_of("summary", model, example)
    tensors = [one for one in arguments if isinstance(one, Tensor)]
    device = tensors[0].device
    visits = watch(model, arguments)
    parameters = {id(p): p.numel() for p in model.parameters()}
    counted = [row_of(visit, parameters) for visit in visits]
    seen, untraced = _seen(model, arguments, visits)
    rows = [_row(one, field, untraced) for one, field in zip(counted, seen, strict=True)]
    whole, machine = None, None
    if measure and device.type != "meta":
        machine = peaks_here(torch.get_num_threads()) if device.type == "cpu" else None
        whole, times = _measure(model, arguments, visits, device, budget)
        rows = [_timed(row, seconds, machine) for row, seconds in zip(rows, times, strict=True)]
    return Summary(
        model=type(model).__name__,
        rows=tuple(rows),
        inputs=tuple(tuple(t.shape) for t in tensors),
        dtype=str(tensors[0].dtype).removeprefix("torch."),
        device=str(device),
        threads=torch.get_num_threads(),
        parameters=sum(parameters.values()),
        milliseconds=None if whole is None else 1e3 * whole,
        machine=machine,
    )


def _seen(model: torch.nn.Module, arguments: tuple[Any, ...], visits: list[Visit]) -> tuple[list[FieldRow | None], str]:
    """The fields of the visits, and why there are none."""
    try:
        return _fields_of(list(receptive_field(model, arguments).rows), visits), ""
    except (RuntimeError, ValueError) as error:
        return [None] * len(visits), str(error)


def _row(one: CountRow, field: FieldRow | None, untraced: str) -> SummaryRow:
    known = field is not None and field.known
    note = field.note if field is not None else untraced or "not found in the graph that torch.fx traces"
    return SummaryRow(
        name=one.name,
        op=one.op,
        output_shape=one.output_shape,
        dtype=one.dtype,
        parameters=one.parameters,
        multiply_adds=one.multiply_adds,
        additions=one.additions,
        comparisons=one.comparisons,
        bytes_moved=one.bytes_moved,
        field=field.size if field is not None and known else None,
        jump=tuple(None if j is None else str(j) for j in field.jump) if field is not None and known else None,
        field_note=note,
        library="convext" if one.ours else "torch",
        algorithm=one.algorithm,
        why=why(one.explanation),
        winograd_saving=one.winograd_saving,
        milliseconds=None,
        bound=None,
        share=None,
        note=one.note,
    )


def _timed(row: SummaryRow, seconds: float | None, machine: Peaks | None) -> SummaryRow:
    if seconds is None:
        return row
    row = replace(row, milliseconds=1e3 * seconds)
    if machine is None or row.bytes_moved == 0 or seconds <= 0:
        return row
    bound, least = _least(machine, row)
    return replace(row, bound=bound, share=least / seconds)
