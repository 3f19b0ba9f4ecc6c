"""What the README's tables are made of, and those of benchmarks.models, .pools, .inference, .compiled and .sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.timing import geometric_mean

RATIOS = {
    "contiguous": "x torch",
    "channels_last": "x torch channels_last",
    "any": "x fastest torch",
    "peers": "x best peer",
}
"""How the tables call the ratios "auto ..." of benchmarks.run."""


def milliseconds(value: float | None) -> str:
    """Three digits of a number of seconds; nothing of None."""
    return "" if value is None else f"{value * 1e3:.3g}" if value < 0.0995 else f"{value * 1e3:.0f}"


def times(value: float | None) -> str:
    """Three digits of how many times; nothing of None."""
    return "" if value is None else f"{value:.2f}" if value < 9.95 else f"{value:.0f}"


def table_lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def networks_table(result: dict[str, Any], what: str) -> list[str]:
    """Markdown lines of one pass: a network and number of threads each, milliseconds and ratios, and for training how
    much more memory torch takes."""
    rows = [row for row in result["rows"] if row.get("pass", "forward") == what]
    if not rows:
        return []
    who = list(rows[0]["seconds"])
    layouts = ("contiguous", "channels_last", "any")
    titles = ["network", "threads", *who, *(RATIOS[name] for name in layouts)]
    if what == "training":
        titles += ["torch's peak / convext's, contiguous", "channels_last"]
    lines = []
    for row in rows:
        spent = [milliseconds(row["seconds"][name]) for name in who]
        lines.append([row["network"], str(row["threads"]), *spent, *(times(row["ratios"][name]) for name in layouts)])
        if what == "training":
            peak = row["peak_bytes"]
            lines[-1] += [times(peak[f"torch {layout}"] / peak[f"convext {layout}"]) for layout in layouts[:2]]
    return table_lines(titles, lines)


def inference_table(result: dict[str, Any]) -> list[str]:
    """Markdown lines of benchmarks.inference: a network, batch and number of threads each."""
    who = list(dict.fromkeys(name for row in result["rows"] for name in row["seconds"]))
    titles = ["network", "batch", "threads", *who, "x best engine", "x torch"]
    lines = []
    for row in result["rows"]:
        spent = [milliseconds(row["seconds"].get(name)) for name in who]
        ratios = [times(row["ratio"]), times(row["ratio_torch"])]
        lines.append([row["network"], str(row["batch"]), str(row["threads"]), *spent, *ratios])
    for batch, threads in dict.fromkeys((row["batch"], row["threads"]) for row in result["rows"]):
        some = [row for row in result["rows"] if (row["batch"], row["threads"]) == (batch, threads)]
        means = [geometric_mean([row[what] for row in some]) for what in ("ratio", "ratio_torch")]
        numbers = [f"**{times(value)}**" for value in means]
        lines.append(["**geometric mean**", str(batch), str(threads), *[""] * len(who), *numbers])
    return table_lines(titles, lines)


def pools_table(result: dict[str, Any], threads: int) -> list[str]:
    """Markdown lines: a pool each, milliseconds and ratios of both passes in both layouts, then geometric means."""
    passes, layouts = ("forward", "forward and gradient"), ("contiguous", "channels_last")
    by = {(r["pool"], r["pass"], r["layout"]): r for r in result["rows"] if r["threads"] == threads}
    columns = [(what, layout) for what in passes for layout in layouts]
    titles = ["pool: torch / convext, ms"]
    for what, layout in columns:
        titles += [f"{what}, {layout}", "x"]
    lines = []
    for pool in dict.fromkeys(r["pool"] for r in result["rows"]):
        line = [pool]
        for column in columns:
            row = by.get((pool, *column))
            spent = [milliseconds(row["seconds"][who]) for who in ("torch", "convext")] if row else []
            line += [" / ".join(spent), times(row["ratio"] if row else None)]
        lines.append(line)
    mean = ["**geometric mean**"]
    for column in columns:
        mean += ["", f"**{times(geometric_mean([r['ratio'] for key, r in by.items() if key[1:] == column]))}**"]
    return table_lines(titles, [*lines, mean])


def compiled_table(result: dict[str, Any]) -> list[str]:
    """Markdown lines of benchmarks.compiled: a layer or network, pass and number of threads each."""
    who = list(result["rows"][0]["seconds"])
    titles = ["case", "pass", "threads", *who, "x eager convext", "x compiled torch"]
    lines = []
    for row in result["rows"]:
        cells = [milliseconds(row["seconds"][name]) for name in who]
        lines.append(
            [row["case"], row["pass"], str(row["threads"]), *cells, times(row["ratio"]), times(row["ratio_torch"])]
        )
    means = [geometric_mean([row[what] for row in result["rows"]]) for what in ("ratio", "ratio_torch")]
    lines.append(["**geometric mean**", "", "", *[""] * len(who), *(f"**{times(mean)}**" for mean in means)])
    return table_lines(titles, lines)


def sweep_ratio(row: dict[str, Any]) -> float:
    """How many times as fast as torch algorithm="auto" is in a row of benchmarks.sweep."""
    return float(row["seconds"]["torch"] / row["seconds"]["auto"])


def sweep_regret(row: dict[str, Any]) -> float:
    """What "auto" takes there, in times of the fastest algorithm."""
    return float(row["seconds"]["auto"] / min(t for name, t in row["seconds"].items() if name != "torch"))


def sweep_table(result: dict[str, Any]) -> list[str]:
    """Markdown lines of benchmarks.sweep: a kind of layer and number of threads each, and all together."""
    titles = ["layers", "threads", "rows", "x torch, forward", "input", "weight", "below 0.9", "auto 10% off the best"]
    lines = []
    for threads in sorted({row["threads"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["threads"] == threads]
        for kind in (*dict.fromkeys(row["kind"] for row in sorted(rows, key=lambda row: str(row["kind"]))), "all"):
            some = [row for row in rows if kind in (row["kind"], "all")]
            means = [
                geometric_mean([sweep_ratio(row) for row in some if row["direction"] == direction])
                for direction in ("forward", "input", "weight")
            ]
            slower = f"{sum(sweep_ratio(row) < 0.9 for row in some) / len(some):.0%}"
            regretted = f"{sum(sweep_regret(row) > 1.1 for row in some) / len(some):.0%}"
            cells = [
                str(threads),
                str(len(some)),
                *(times(mean) for mean in means),
                slower,
                regretted,
            ]
            lines.append([kind, *cells])
    return table_lines(titles, lines)


def sections(
    networks: dict[str, Any] | None,
    inference: dict[str, Any] | None,
    compiled: dict[str, Any] | None,
    sweep: dict[str, Any] | None = None,
) -> list[str]:
    """The tables of whole networks and of random layers, each with what leads to it, of the results that there are."""
    lines: list[str] = []
    if networks is not None:
        for what, title in (("forward", "batch 1, forward"), ("training", "batch 4, a training step")):
            if table := networks_table(networks, what):
                lines += [
                    f"**Whole networks**, {title}, 224x224, after convext.convert alone, {networks['isa']} kernels, "
                    f"{networks['date'][:10]}; ms:",
                    "",
                    *table,
                    "",
                ]
    if inference is not None:
        lines += [
            f"**Whole networks after convext.optimize**, 224x224, {inference['isa']} kernels, {inference['date'][:10]} "
            f"(python -m benchmarks.inference); ms, and how many times as fast as the fastest of the others and as "
            f"torch in its faster layout:",
            "",
            *inference_table(inference),
            "",
        ]
    if compiled is not None:
        lines += [
            f"**Under torch.compile**, {compiled['isa']} kernels, {compiled['date'][:10]} (python -m "
            f"benchmarks.compiled); ms, and how many times as fast convext's layers compiled are as convext's as they "
            f"stand and as torch's compiled:",
            "",
            *compiled_table(compiled),
            "",
        ]
    if sweep is not None:
        lines += [
            f"**Layers of other networks, and random ones**, {sweep['isa']} kernels, {sweep['date'][:10]} (python -m "
            f"benchmarks.sweep): ResNeXt to Whisper (`benchmarks/layers.py`), and sizes that no kernel was written "
            f"for, 1 to 3 dimensions, both layouts, strides, dilation, groups. How many times as fast as torch "
            f"(geometric means), in how many rows less than 0.9 times, and in how many another algorithm would have "
            f"been 10% faster than what auto chose:",
            "",
            *sweep_table(sweep),
            "",
        ]
    return lines
