"""Fills the README's table and draws its two plots from a result of benchmarks.run. Running it twice changes nothing.

    python -m benchmarks.report          from the newest full result under benchmarks/results/
    python -m benchmarks.report FILE     from this one
    python -m benchmarks.report --gpu    only the GPU's tables, from the newest result of benchmarks.gpu

The tables of the pages under docs/ are made anew as well (benchmarks/docs_tables.py).

The tables go between the markers ``<!-- benchmark:begin -->`` and ``<!-- benchmark:end -->``: forward, gradients,
geometric means, and, where the folder has full results of several instruction sets, a line for each. The GPU's go
between ``<!-- gpu:begin -->`` and ``<!-- gpu:end -->``, where the page has those. The plots are
docs/images/benchmark.png (how many times as fast as torch, layer by layer) and docs/images/roofline.png.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.tables import RATIOS, milliseconds, pools_table, table_lines, times

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
GPU_BEGIN, GPU_END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
DIRECTIONS = {
    "forward": "forward",
    "backward_input": "gradient of the input",
    "backward_weight": "gradient of the weight",
}

KINDS = ("convolution", "pooling")
PEERS = ("onnxruntime", "openvino", "ncnn", "mnn")
OURS_AND_TORCHS = (("torch", ""), ("convext", "auto"))

RED, BLUE, GREY = "#d1495b", "#30638e", "#9aa0a6"

Row = dict[str, Any]


# Results -----------------------------------------------------------------------------------------------------------


def _full(folder: Path) -> list[tuple[dict[str, Any], Path]]:
    """The full results, from the oldest to the latest."""
    every = [(json.loads(path.read_text()), path) for path in folder.glob("*.json")]
    return sorted((r for r in every if r[0].get("mode") == "full"), key=lambda r: str(r[0]["date"]))


def newest(folder: Path) -> Path:
    """The latest full result with the best instruction set of its machine. Raises FileNotFoundError where there is
    none."""
    full = [path for content, path in _full(folder) if content.get("isa") == content.get("isas", [None])[-1]]
    full = full or [path for content, path in _full(folder) if "isas" not in content]
    if not full:
        raise FileNotFoundError(f"no full result in {folder}: run python -m benchmarks.run first")
    return full[-1]


def newest_by_isa(folder: Path) -> dict[str, dict[str, Any]]:
    """Instruction set -> its latest full result."""
    return {content["isa"]: content for content, _ in _full(folder) if "isa" in content}


def newest_of(mode: str, folder: Path) -> dict[str, Any] | None:
    """The latest result of benchmarks.models, .pools, .inference, .compiled or .sweep; None where there is none."""
    every = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return max((r for r in every if r.get("mode") == mode), key=lambda r: str(r["date"]), default=None)


def seconds(row: Row, library: str, variant: str, layout: str | None = None) -> float | None:
    """The shortest time among the contenders so named, in any layout unless one is given; None where none was timed."""
    times = [
        c["seconds"]
        for c in row["contenders"]
        if "seconds" in c and c["library"] == library and c["variant"] == variant and layout in (None, c["layout"])
    ]
    return min(times, default=None)


def select(result: dict[str, Any], kind: str, direction: str, threads: int) -> dict[str, Row]:
    """Problem -> row, without rows that failed."""
    return {
        row["problem"]: row
        for row in result["rows"]
        if (row["kind"], row["direction"], row["threads"], row["error"]) == (kind, direction, threads, None)
    }


# The README's table ------------------------------------------------------------------------------------------------


def _fastest(row: Row) -> tuple[str, float] | None:
    """Layout and share of the bound of algorithm="auto" where it is fastest."""
    autos = [c for c in row["contenders"] if "seconds" in c and c["variant"] == "auto"]
    best = min(autos, key=lambda c: c["seconds"], default=None)
    return None if best is None else (best["algorithm"], best["share_of_bound"])


def best_peer(row: Row) -> tuple[str, float] | None:
    """Name and seconds of the fastest other runtime."""
    times = [(c["seconds"], c["library"]) for c in row["contenders"] if "seconds" in c and c["library"] in PEERS]
    return (min(times)[1], min(times)[0]) if times else None


def _ratios(row: Row | None, names: Sequence[str]) -> list[str]:
    return [times(row["ratios"].get(f"auto {name}") if row else None) for name in names]


def _mean_cells(result: dict[str, Any], kind: str, direction: str, threads: int, names: Sequence[str]) -> list[str]:
    means = [times(_mean(result, kind, direction, threads, f"auto {name}")) for name in names]
    return [f"**{mean}**" if mean else "" for mean in means]


def forward_table(result: dict[str, Any], kind: str, threads: int) -> list[str]:
    """Markdown lines: milliseconds, and how many times as fast as torch and the best peer."""
    prepacked = ["torch prepacked"] if kind == "convolution" else []
    titles = ["layer", "torch", "torch channels_last", *prepacked, "best peer", "convext", "convext channels_last"]
    titles += ["algorithm", "% of bound", *(RATIOS[name] for name in RATIOS)]
    rows = []
    for problem, row in select(result, kind, "forward", threads).items():
        cells = [
            problem,
            milliseconds(seconds(row, "torch", "", "contiguous")),
            milliseconds(seconds(row, "torch", "", "channels_last")),
        ]
        cells += [milliseconds(seconds(row, "torch", variant.removeprefix("torch "))) for variant in prepacked]
        peer, fastest = best_peer(row), _fastest(row)
        cells.append(f"{peer[0]} {milliseconds(peer[1])}" if peer else "")
        cells += [milliseconds(seconds(row, "convext", "auto", layout)) for layout in ("contiguous", "channels_last")]
        cells += ["", ""] if fastest is None else [fastest[0], f"{100 * fastest[1]:.0f}"]
        rows.append([*cells, *_ratios(row, list(RATIOS))])
    means = _mean_cells(result, kind, "forward", threads, list(RATIOS))
    return table_lines(titles, [*rows, ["**geometric mean**", *[""] * (len(titles) - 1 - len(means)), *means]])


def gradient_table(result: dict[str, Any], kind: str, threads: int) -> list[str]:
    """Markdown lines: per gradient, the fastest milliseconds of torch and convext, and the ratios."""
    by_direction = {d: select(result, kind, d, threads) for d in DIRECTIONS if d != "forward"}
    by_direction = {d: rows for d, rows in by_direction.items() if rows}
    names = [name for name in RATIOS if name != "peers"]
    titles, means = ["layer"], ["**geometric mean**"]
    for d in by_direction:
        of = DIRECTIONS[d].removeprefix("gradient of the ")
        titles += [f"{of}: torch", "convext", *(RATIOS[name] for name in names)]
        means += ["", "", *_mean_cells(result, kind, d, threads, names)]
    lines = []
    for problem in dict.fromkeys(problem for rows in by_direction.values() for problem in rows):
        cells = [problem]
        for rows in by_direction.values():
            row = rows.get(problem)
            measured = [seconds(row, library, variant) if row else None for library, variant in OURS_AND_TORCHS]
            cells += [*map(milliseconds, measured), *_ratios(row, names)]
        lines.append(cells)
    return table_lines(titles, [*lines, means])


def means_table(result: dict[str, Any]) -> list[str]:
    """Markdown lines: the geometric mean of every ratio, per kind, direction and number of threads."""
    titles = ["geometric mean"]
    for count in result["threads"]:
        of = f"{count} thread{'s' if count > 1 else ''}: "
        titles += [of + title if place == 0 else title for place, title in enumerate(RATIOS.values())]
    rows = []
    for kind, direction in dict.fromkeys((mean["kind"], mean["direction"]) for mean in result["means"]):
        cells = [f"{kind}, {DIRECTIONS[direction]}"]
        for count in result["threads"]:
            cells += [times(_mean(result, kind, direction, count, f"auto {name}")) for name in RATIOS]
        rows.append(cells)
    return table_lines(titles, rows)


def isa_table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown lines: one per instruction set, the geometric means of convolution and pooling on one thread."""
    titles = ["instruction set", "machine", "date"]
    columns = [("convolution", "forward", name) for name in RATIOS]
    columns += [("convolution", d, "any") for d in DIRECTIONS if d != "forward"]
    columns += [("pooling", "forward", name) for name in RATIOS] + [("pooling", "backward_input", "any")]
    for place, (kind, direction, name) in enumerate(columns):
        new = place == 0 or columns[place - 1][:2] != (kind, direction)
        titles.append(f"{kind}, {DIRECTIONS[direction]}: {RATIOS[name]}" if new else RATIOS[name])
    rows = []
    for isa, result in results.items():
        threads = min(result["threads"])
        values = [_mean(result, kind, direction, threads, f"auto {name}") for kind, direction, name in columns]
        rows.append([isa, result["machine"]["cpu"], result["date"][:10], *map(times, values)])
    return table_lines(titles, rows)


def standing(result: dict[str, Any], kind: str, threads: int) -> str:
    """In how many forward rows convext is at least as fast as everyone."""
    rows = list(select(result, kind, "forward", threads).values())
    parts = []
    for name, whom in (("any", "torch in any layout"), ("peers", "the best peer")):
        known = [row["ratios"][f"auto {name}"] for row in rows if f"auto {name}" in row["ratios"]]
        if known:
            parts.append(f"than {whom} in {sum(ratio >= 1 for ratio in known)} of {len(known)}")
    return f"{kind.capitalize()}, forward: faster " + " and ".join(parts) + "." if parts else ""


def _mean(result: dict[str, Any], kind: str, direction: str, threads: int, ratio: str = "auto any") -> float | None:
    for mean in result["means"]:
        if (mean["kind"], mean["direction"], mean["threads"]) == (kind, direction, threads):
            value = mean["ratios"].get(ratio)
            return None if value is None or math.isnan(value) else float(value)
    return None


def markdown(
    result: dict[str, Any],
    by_isa: dict[str, dict[str, Any]] | None = None,
    networks: dict[str, Any] | None = None,
    pools: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
    compiled: dict[str, Any] | None = None,
    sweep: dict[str, Any] | None = None,
) -> str:
    """Everything between the markers."""
    threads = min(result["threads"])
    peak = next(p for p in result["peaks"] if p["threads"] == threads)
    copies = sorted(peak["copy_gbs"].items(), key=lambda item: int(item[0]))
    machine, versions = result["machine"], result["versions"]
    others = [f"{name} {versions[name]}" for name in PEERS if name in versions]
    lines = [
        f"{machine['cpu']}, {threads} thread{'s' if threads > 1 else ''}, {result['isa']} kernels, float32, torch "
        f"{versions['torch']}, {result['date'][:10]}. Peers: {', '.join(others)}; contiguous only. Times in ms, "
        f"medians; % of bound is the share of the peak of multiply-adds ({peak['fma_gflops']:.0f} GFLOP/s) or copy "
        f"({copies[-1][1]:.0f} GB/s from memory, up to {max(rate for _, rate in copies):.0f} in cache), whichever "
        f"bounds the layer.",
        "",
        'The columns x ... say how many times as fast algorithm="auto" is: as torch, in the same layout on both sides; '
        "as the fastest of torch, prepacking included, each in its fastest layout; as the best peer, likewise.",
        "",
    ]
    for kind in KINDS:
        if select(result, kind, "forward", threads):
            lines += [f"**{kind.capitalize()}, forward**", "", *forward_table(result, kind, threads), ""]
            lines += [standing(result, kind, threads), ""]
    for kind in KINDS:
        if select(result, kind, "backward_input", threads):
            lines += [f"**{kind.capitalize()}, gradients**", "", *gradient_table(result, kind, threads), ""]
    if pools is not None:
        lines += [
            f"**Pools beyond max and average**, {threads} thread{'s' if threads > 1 else ''}, {pools['isa']} kernels, "
            f"{pools['date'][:10]} (python -m benchmarks.pools); torch has no k-max, its topk in order stands for it:",
            "",
            *pools_table(pools, threads),
            "",
        ]
    lines += ["**Means**", "", *means_table(result), ""]
    if by_isa is not None and len(by_isa) > 1:
        lines += [
            "**By instruction set**, 1 thread, geometric means; torch and the peers use what the machine has:",
            "",
            *isa_table(by_isa),
            "",
        ]
    lines += tables.sections(networks, inference, compiled, sweep)
    lines += [
        "![How many times as fast as torch, layer by layer](docs/images/benchmark.png)",
        "",
        "![Forward convolutions under the roofs of the machine](docs/images/roofline.png)",
    ]
    return "\n".join(lines)


def fill(text: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with everything between the markers replaced. Raises ValueError unless each marker is there once."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected {begin} and then {end}, each once")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


# The GPU -----------------------------------------------------------------------------------------------------------

NOT_RUN = (
    "Not run on hardware yet: no CUDA kernel here has been timed, or checked by compute-sanitizer, on a GPU; all are "
    "compiled for the generations they serve and, but for what only Hopper has, executed on the CPU, exact against "
    "naive. `make test-gpu` and `make bench-gpu` fill this in."
)


def _gpu_rows(result: dict[str, Any], group: str) -> list[list[str]]:
    lines = []
    for row in result["rows"]:
        if row["group"] != group or row["error"] or "ratio" not in row:
            continue
        mine = [c for c in row["contenders"] if "seconds" in c and (c["library"], c["variant"]) in OURS_AND_TORCHS]
        theirs, ours = (
            min((c for c in mine if c["library"] == library), key=lambda c: c["seconds"])
            for library, _ in OURS_AND_TORCHS
        )
        cells = [row["problem"], row["dtype"], DIRECTIONS.get(row["pass"], row["pass"])]
        cells += [milliseconds(theirs["seconds"]), milliseconds(ours["seconds"]), ours["algorithm"]]
        cells += [times(row["ratio"]), times(row["target"]), f"{100 * row['share_of_bound']:.0f} {row['bound']}"]
        lines.append([*cells, times(row["memory_ratio"])])
    return lines


def gpu_markdown(result: dict[str, Any] | None) -> str:
    """Everything between the GPU's markers: a line that says so where nothing was run."""
    if result is None:
        return NOT_RUN
    card, versions, peaks = result["gpu"], result["versions"], result["peaks"]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in peaks["matmul_tflops"].items())
    lines = [
        f"{card['name']}, driver {card['driver']}, CUDA {versions['cuda']}, cuDNN {versions['cudnn']}, torch "
        f"{versions['torch']}, {result['date'][:10]}. Times in ms, medians; x: the time of torch (cudnn.benchmark on, "
        f'TF32 off) over that of algorithm="auto", each in its better layout, and what it must reach on an H200; % of '
        f"bound: of the copy bandwidth ({peaks['copy_gbs']:.0f} GB/s) or the matrix rate (TFLOP/s: {rates}); memory: "
        "torch's peak over convext's.",
        "",
    ]
    titles = ["group", "pass", "rows", "x", "must be", "reached in", "% of bound"]
    summary = []
    for mean in result["means"]:
        cells = [mean["group"], DIRECTIONS.get(mean["pass"], mean["pass"]), str(mean["rows"]), times(mean["ratio"])]
        cells += [times(mean["target"]), str(mean["reached"]), f"{100 * mean['share_of_bound']:.0f}"]
        summary.append(cells)
    lines += table_lines(titles, summary)
    titles = ["row", "dtype", "pass", "torch", "convext", "algorithm", "x", "must be", "% of bound", "memory"]
    for group in dict.fromkeys(row["group"] for row in result["rows"]):
        lines += ["", f"**{group.capitalize()}**", "", *table_lines(titles, _gpu_rows(result, group))]
    wrong = [row for row in result["rows"] if row["error"]]
    if wrong:
        lines += ["", f"{len(wrong)} rows were wrong and not timed."]
    return "\n".join(lines)


def fill_gpu(text: str, folder: Path) -> str:
    """``text`` with the GPU's tables from the newest result in the folder, where it has their markers."""
    if GPU_BEGIN not in text:
        return text
    return fill(text, gpu_markdown(newest_of("gpu", folder)), GPU_BEGIN, GPU_END)


# Plots -------------------------------------------------------------------------------------------------------------


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        sys.exit("The plots need matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 10, "axes.titlesize": 12, "axes.titleweight": "bold", "savefig.dpi": 140})
    return pyplot


def _caption(result: dict[str, Any], threads: int) -> str:
    return (
        f"{result['machine']['cpu']}, {threads} thread{'s' if threads > 1 else ''}, {result['isa']}, float32, "
        f"torch {result['versions']['torch']}, {result['date'][:10]}"
    )


def draw_bars(result: dict[str, Any], path: Path) -> None:
    """A bar per layer and direction: torch's time over convext's, both in their fastest layout; a diamond where the
    best peer's time over convext's lies."""
    pyplot = _pyplot()
    threads = min(result["threads"])
    layers = {kind: list(select(result, kind, "forward", threads)) for kind in KINDS}
    heights = [max(1, len(layers[kind])) for kind in KINDS]
    figure, grid = pyplot.subplots(
        2, 3, figsize=(13, 2.2 + 0.26 * sum(heights)), height_ratios=heights, sharex=True, layout="constrained"
    )
    names = ("auto any", "auto peers")
    values = [r["ratios"].get(name) for r in result["rows"] if r["threads"] == threads for name in names]
    known = [v for v in values if v]
    low, high = min([0.5, *known]) / 3, max([2.0, *known]) * 3  # room for the numbers
    for line, kind in zip(grid, KINDS, strict=True):
        for axes, direction in zip(line, DIRECTIONS, strict=True):
            rows = select(result, kind, direction, threads)
            if not rows:
                axes.set_visible(False)
                continue
            for place, layer in enumerate(layers[kind]):
                ratio = rows[layer]["ratios"].get("auto any") if layer in rows else None
                if ratio is None:
                    axes.text(1, place, " not timed", va="center", color=GREY, fontsize=8)
                    continue
                axes.barh(place, ratio - 1, left=1, height=0.74, color=BLUE if ratio >= 1 else RED)
                side = {"ha": "left"} if ratio >= 1 else {"ha": "right"}
                end = ratio
                if "auto peers" in rows[layer]["ratios"]:
                    against = rows[layer]["ratios"]["auto peers"]
                    axes.plot(against, place, "D", markersize=4, color="white", markeredgecolor="black", zorder=3)
                    if ratio >= 1 and 0.9 * ratio < against < 2.2 * ratio:  # else the number would lie over it
                        end = 1.12 * max(ratio, against)
                label = f" {times(ratio)} "
                axes.text(end, place, label, va="center", fontsize=8.5, **side)
            axes.axvline(1, color="black", linewidth=1)
            axes.set_xscale("log")
            axes.set_xlim(low, high)
            axes.set_ylim(len(layers[kind]) - 0.4, -0.6)
            first = direction == "forward"
            axes.set_yticks(range(len(layers[kind])), layers[kind] if first else [""] * len(layers[kind]))
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_formatter(pyplot.FuncFormatter(lambda value, _: f"{value:g}"))
            axes.grid(axis="x", alpha=0.3)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
            mean = _mean(result, kind, direction, threads)
            title = f"{kind}, {DIRECTIONS[direction]}" + (f"\ngeometric mean {times(mean)}" if mean else "")
            axes.set_title(title, loc="left", fontsize=10.5)
    last = [line[1] if line[2].get_visible() is False else line[2] for line in grid][-1]
    last.set_xlabel("torch's time / convext's time")
    grid[1][0].set_xlabel("torch's time / convext's time")
    for axes in grid[0]:
        axes.tick_params(labelbottom=True)
    figure.suptitle(
        "How many times as fast as torch (right of the line: faster), each in its fastest layout; "
        "diamonds: as the best peer\n"
        f"{_caption(result, threads)}",
        fontsize=12,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def draw_roofline(result: dict[str, Any], path: Path) -> None:
    """Forward convolutions: arithmetic intensity against GFLOP/s under the measured peaks, torch's point beside."""
    pyplot = _pyplot()
    threads = min(result["threads"])
    rows = select(result, "convolution", "forward", threads)
    peak = next(p for p in result["peaks"] if p["threads"] == threads)
    copies = {int(size): rate for size, rate in peak["copy_gbs"].items()}
    memory, cache = copies[max(copies)], max(copies.values())
    figure, axes = pyplot.subplots(figsize=(11, 7), layout="constrained")
    points = []
    for row in rows.values():
        ours, theirs = seconds(row, "convext", "auto"), min(
            filter(None, (seconds(row, "torch", ""), seconds(row, "torch", "prepacked"))), default=None
        )  # fmt: skip
        if ours is not None and theirs is not None:
            flops = row["flops"] / 1e9
            points.append((row["flops"] / row["bytes"], flops / ours, flops / theirs, row["problem"]))
    xs = [p[0] for p in points] or [1.0]
    left, right = min(xs) / 2, max(xs) * 2.2
    grid = [left * (right / left) ** (i / 200) for i in range(201)]
    roofs = []
    for rate, name, style in ((memory, "memory", "-"), (cache, "cache", "--")):
        axes.plot(grid, [min(peak["fma_gflops"], rate * x) for x in grid], style, color="black", linewidth=1.3)
        roofs.append((f"copy, {name}: {rate:.0f} GB/s", grid[4], rate * grid[4]))
    axes.annotate(
        f"multiply-adds: {peak['fma_gflops']:.0f} GFLOP/s", (right, peak["fma_gflops"]), xytext=(-4, 6),
        textcoords="offset points", ha="right",
    )  # fmt: skip
    for x, ours, theirs, _ in points:
        axes.plot([x, x], [theirs, ours], color=BLUE if ours >= theirs else RED, alpha=0.5, linewidth=1.6, zorder=2)
    axes.scatter(
        xs[: len(points)], [p[2] for p in points], s=34, color="white", edgecolor=GREY, linewidth=1.6, zorder=3
    )
    axes.scatter(xs[: len(points)], [p[1] for p in points], s=42, color=BLUE, zorder=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    ys = [value for p in points for value in p[1:3]] or [1.0]
    axes.set_ylim(min(ys) / 1.6, max(peak["fma_gflops"], *ys) * 1.6)
    figure.draw_without_rendering()
    written = []
    for text, x, y in roofs:
        (x0, y0), (x1, y1) = axes.transData.transform([(x, y), (2 * x, 2 * y)])
        slope = math.degrees(math.atan2(y1 - y0, x1 - x0))
        place = {"xytext": (0, 5), "textcoords": "offset points", "rotation": slope, "rotation_mode": "anchor"}
        written.append(axes.annotate(text, (x, y), **place))
    _label(figure, axes, points, written)
    axes.scatter([], [], s=42, color=BLUE, label='convext, algorithm="auto"')
    axes.scatter([], [], s=34, color="white", edgecolor=GREY, linewidth=1.6, label="torch, its fastest way")
    axes.legend(loc="lower right", frameon=False)
    axes.set_xlabel("arithmetic intensity, FLOP per byte (input, weight and output once each)")
    axes.set_ylabel("GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(pyplot.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Forward convolutions under the machine's roofs\n{_caption(result, threads)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def _label(figure: Any, axes: Any, points: Sequence[tuple[float, float, float, str]], written: Sequence[Any]) -> None:
    """Names beside convext's points, where they fit without touching one another or the marks."""
    renderer = figure.canvas.get_renderer()
    marks = []
    for x, ours, theirs, _ in points:
        (at, low), (_, high) = axes.transData.transform([(x, min(ours, theirs)), (x, max(ours, theirs))])
        marks.append((at, low, high))
    taken = [text.get_window_extent(renderer) for text in written]
    sides = ((8, "left"), (-8, "right"))
    spots = [(dx, dy, side) for dy in (0, 9, -9, 16, -16) for dx, side in sides] + [
        (0, 13, "center"),
        (0, -13, "center"),
    ]
    for x, ours, _, name in sorted(points):
        for dx, dy, side in spots:
            place = {"xytext": (dx, dy), "textcoords": "offset points", "ha": side, "va": "center"}
            text = axes.annotate(name, (x, ours), fontsize=7.5, **place)
            box = text.get_window_extent(renderer)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            free = not any(box.overlaps(other) for other in taken)
            clear = not any(
                box.x0 - 6 < at < box.x1 + 6 and low - 6 < box.y1 and box.y0 < high + 6 for at, low, high in marks
            )
            if inside and free and clear:
                taken.append(box)
                break
            text.remove()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    from benchmarks import docs_tables  # which is made of this module

    parser.add_argument("result", type=Path, nargs="?", help="a JSON of benchmarks.run (default: the newest full one)")
    parser.add_argument("--gpu", action="store_true", help="only the GPU's tables")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args(arguments)
    if options.gpu:
        folder = options.result.parent if options.result else ROOT / "benchmarks" / "results"
        options.readme.write_text(fill_gpu(options.readme.read_text(), folder))
        print(f"{folder} -> {options.readme}")
        return 0
    try:
        source = options.result or newest(ROOT / "benchmarks" / "results")
        result = json.loads(source.read_text())
        filled = fill(
            options.readme.read_text(),
            markdown(
                result,
                newest_by_isa(source.parent),
                newest_of("models", source.parent),
                newest_of("pools", source.parent),
                newest_of("inference", source.parent),
                newest_of("compiled", source.parent),
                newest_of("sweep", source.parent),
            ),
        )
    except (FileNotFoundError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    options.readme.write_text(fill_gpu(filled, source.parent))
    if options.result is None:
        docs_tables.fill_pages(result)
    draw_bars(result, options.images / "benchmark.png")
    draw_roofline(result, options.images / "roofline.png")
    print(f"{source} -> {options.readme}, {options.images / 'benchmark.png'}, {options.images / 'roofline.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
