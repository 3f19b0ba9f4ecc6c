"""What a model costs, layer by layer, and how near its layers come to the machine's roofs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from convext.viz.figures import BLUE, COLOURS, GREEN, ORANGE, RED, new_figure, saved

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convext.analysis import Summary, SummaryRow

Bars = tuple[str, str, Callable[[Any], float]]
COUNTS: tuple[Bars, ...] = (
    ("parameters", BLUE, lambda row: row.parameters),
    ("multiply-adds", RED, lambda row: row.multiply_adds),
    ("bytes moved", GREEN, lambda row: row.bytes_moved),
)
PLACES = ((7, 0, "left"), (-7, 0, "right"), (0, 10, "center"), (0, -10, "center"), (7, 9, "left"), (7, -9, "left"))
"""Where the name of a point may stand: points to the right and up of it, and how it is aligned."""
TIME: Bars = ("milliseconds", ORANGE, lambda row: row.milliseconds or 0.0)


def _summary(op: str, model: torch.nn.Module | Summary, example: Any, measure: bool) -> Summary:
    from convext.analysis import Summary, summary

    if isinstance(model, Summary):
        return model
    if example is None:
        raise TypeError(f"{op}: a model needs an example, its input or the shape of it")
    return summary(model, example, measure=measure)


def _label(row: SummaryRow) -> str:
    return f"{row.name} {row.op}" if row.name and row.name != row.op else row.op


def _short(value: float, _position: int = 0) -> str:
    for unit, of in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{of}"
    return f"{value:.3g}"


def cost_bars(
    model: torch.nn.Module | Summary,
    example: Any = None,
    path: str | Path | None = None,
    *,
    measure: bool = True,
) -> Figure:
    """Bars per layer: parameters, multiply-adds, bytes moved and, where measured, milliseconds; one axes each.

    ``model`` and ``example`` as for :func:`convext.summary`, or a summary. Rows that cost nothing are left out. Raises
    TypeError for a model without an example, ValueError where no row costs anything.
    """
    found = _summary("cost_bars", model, example, measure)
    panels = [*COUNTS, TIME] if found.milliseconds is not None else list(COUNTS)
    rows = [row for row in found.rows if row.parameters or row.multiply_adds or row.bytes_moved]
    if not rows:
        raise ValueError("cost_bars: no layer of the model costs anything")
    figure = new_figure(2.6 * len(panels) + 1.6, 0.24 * len(rows) + 1.4)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    places = range(len(rows))
    for axes, (title, colour, value) in zip(grid, panels, strict=True):
        values = [value(row) for row in rows]
        axes.barh(places, values, color=colour, height=0.72)
        axes.set_title(f"{title}\n{_short(sum(values))} in all", fontsize=10, loc="left")
        axes.xaxis.set_major_formatter(_short)
        axes.xaxis.get_major_locator().set_params(nbins=4)
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    grid[0].set_yticks(places, [_label(row) for row in rows])
    grid[0].set_ylim(len(rows) - 0.4, -0.6)
    return saved(figure, path)


def roofline(
    model: torch.nn.Module | Summary, example: Any = None, path: str | Path | None = None, *, labels: int = 12
) -> Figure:
    """The layers of a model under this machine's roofs: operations per byte against GFLOP/s reached (S. Williams, A.
    Waterman and D. Patterson 2009, Roofline).

    The flat roof is the peak of multiply-adds, the slopes are copying in cache and from memory. Layers without
    multiply-adds have no point. The ``labels`` that take longest bear their names. A layer above the flat roof does
    with fewer multiplications than are counted (winograd). ``model`` and ``example`` as for :func:`convext.summary`,
    which measures; or a summary that was measured on the CPU.

    Raises TypeError for a model without an example, ValueError for a summary without measurements.
    """
    found = _summary("roofline", model, example, True)
    rows = [row for row in found.rows if row.multiply_adds and row.milliseconds]
    if found.machine is None or not rows:
        raise ValueError("roofline: the summary must have been measured on the CPU, and have layers that multiply")
    peak, copies = found.machine.gflops, found.machine.copy_gbs
    slopes = (("from memory", copies[max(copies)], "-"), ("in cache", max(copies.values()), "--"))
    xs = [row.intensity for row in rows]
    ys = [2e-6 * row.multiply_adds / (row.milliseconds or 1.0) for row in rows]
    left, right = min(*xs, 1.0) / 1.6, max(*xs, peak / slopes[0][1]) * 2.5
    figure = new_figure(7.2, 5.0)
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    for name, rate, style in slopes:
        knee = peak / rate
        line = [left, knee, right]
        axes.plot(
            line, [rate * left, peak, peak], style, color="black", linewidth=1.2, label=f"copy {name}: {rate:.0f} GB/s"
        )
    roof = axes.annotate(
        f"multiply-adds: {peak:.0f} GFLOP/s",
        (peak / slopes[0][1], peak),
        (0, 4),
        textcoords="offset points",
        fontsize=8,
    )
    kinds = list(dict.fromkeys(row.algorithm or "other" for row in rows))
    for kind, colour in zip(kinds, COLOURS, strict=False):
        mine = [(x, y) for row, x, y in zip(rows, xs, ys, strict=True) if (row.algorithm or "other") == kind]
        axes.scatter([x for x, _ in mine], [y for _, y in mine], s=34, color=colour, label=kind, zorder=3)
    axes.set_xlim(left, right)
    axes.set_ylim(min(ys) / 2, max(peak, *ys) * 2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("operations per byte moved")
    axes.set_ylabel("GFLOP/s")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(len(kinds) + 2, 5), frameon=False, fontsize=8)
    threads = f"{found.threads} thread{'s' if found.threads != 1 else ''}"
    axes.set_title(f"{found.model} under this machine's roofs, {threads}", fontsize=10)
    longest = sorted(range(len(rows)), key=lambda i: -(rows[i].milliseconds or 0.0))[:labels]
    _name_points(figure, axes, [(xs[i], ys[i], _label(rows[i])) for i in longest], list(zip(xs, ys, strict=True)), roof)
    return saved(figure, path)


def _name_points(
    figure: Figure,
    axes: Any,
    named: Sequence[tuple[float, float, str]],
    points: Sequence[tuple[float, float]],
    roof: Any,
) -> None:
    """Names beside points, where they touch neither one another nor a point nor the flat roof and its name; those that
    would are left out."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    marks = axes.transData.transform(points)
    level = axes.transData.transform(roof.xy)[1]
    taken: list[Any] = [roof.get_window_extent(renderer)]
    for x, y, name in named:
        for dx, dy, side in PLACES:
            text = axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", ha=side, va="center", fontsize=7)
            box = text.get_window_extent(renderer)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            clear = not any(box.x0 - 4 < mx < box.x1 + 4 and box.y0 - 4 < my < box.y1 + 4 for mx, my in marks)
            clear = clear and not box.y0 - 1 < level < box.y1 + 1
            if inside and clear and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
