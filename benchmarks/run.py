"""Verifies, then times: every algorithm of convext, torch, and the other runtimes that are installed.

    python -m benchmarks.run                        every problem of shapes.py, at 1 thread and at all; about 15 minutes
    python -m benchmarks.run --quick                a few problems, under a minute
    python -m benchmarks.run --layers "3x3 64-64"   problems whose name contains the text

A row is a problem, a direction and a number of threads. Its contenders are first held to a float64 reference; a wrong
one ends its row with an error and the program with status 1. The full run writes benchmarks/results/DATE-ISA.json, of
which benchmarks.report makes the README's table and plots; other runs write outputs/benchmark.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import convext
from benchmarks.contenders import Case, Contender, Problem, contenders, directions, normal, peers, small_integers
from benchmarks.peers import Refused, Worker, installed
from benchmarks.shapes import CONVOLUTIONS, POOLS, ConvProblem
from benchmarks.timing import (
    Accuracy,
    Call,
    Mismatch,
    Peaks,
    Timing,
    check,
    check_equal,
    disturbed_share,
    geometric_mean,
    take_turns,
)
from convext import _C
from convext.choice import DIRECTIONS

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError:
    sys.exit("The benchmark shows its progress with rich, which is missing: pip install rich")

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ROW_SECONDS = 1.5
QUICK_ROW_SECONDS = 0.25
SEED = 1
WIDTH = 160
BUSY = 0.7


def verify(case: Case, contestants: Sequence[Contender]) -> tuple[dict[str, Accuracy], dict[str, Call], dict[str, str]]:
    """Accuracy and call of every contender that takes part, and why the others do not.

    Outputs and workspaces of convext are poisoned meanwhile. Raises Mismatch for the first wrong result.
    """
    floats = {layout: case.operands(normal(SEED), layout) for layout in case.layouts}
    integers = {layout: case.operands(small_integers(SEED), layout) for layout in case.layouts}
    threads = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    reference = case.reference(floats["contiguous"])
    exact = case.value(integers["contiguous"]) if any(c.exact for c in contestants) else None
    torch.set_num_threads(threads)
    accuracy, calls, refusals = {}, {}, {}
    _C.set_poison(True)
    try:
        for c in contestants:
            if c.refusal is not None:
                refusals[c.name] = c.refusal
                continue
            try:
                if c.exact and exact is not None:
                    result = c.prepare(integers[c.layout])()
                    check_equal(result.round() if c.rounded else result, exact)
                call = c.prepare(floats[c.layout])
                held_to = reference.of_tiles() if c.tiles else reference
                accuracy[c.name] = check(call(), held_to, c.error_factor, c.norm_limit)
            except Mismatch as error:
                raise Mismatch(f"{c.name}: {error}") from None
            except Refused as error:
                refusals[c.name] = str(error)
                continue
            calls[c.name] = call
    finally:
        _C.set_poison(False)
    return accuracy, calls, refusals


def ratios(contestants: Sequence[Contender], timings: dict[str, Timing]) -> dict[str, float]:
    """How many times as fast convext is: ``"auto contiguous"`` is torch's time over that of algorithm="auto", both
    contiguous; ``"best ..."`` the same for convext's fastest algorithm; ``"... any"`` compares the fastest of all
    layouts, torch's prepacked included; ``"... peers"`` is against the fastest other runtime."""

    def fastest(*libraries: str, layout: str = "", variant: str | None = None) -> float | None:
        times = [
            timings[c.name].median
            for c in contestants
            if c.name in timings
            and c.library in libraries
            and layout in ("", c.layout)
            and variant in (None, c.variant)
        ]
        return min(times, default=None)

    others = {c.library for c in contestants} - {"convext", "torch"}
    result = {}
    for label, variant in (("auto", "auto"), ("best", None)):
        for layout in ("contiguous", "channels_last"):
            ours = fastest("convext", layout=layout, variant=variant)
            theirs = fastest("torch", layout=layout, variant="")
            if ours and theirs:
                result[f"{label} {layout}"] = theirs / ours
        ours = fastest("convext", variant=variant)
        for against, theirs in (("any", fastest("torch")), ("peers", fastest(*others))):
            if ours and theirs:
                result[f"{label} {against}"] = theirs / ours
    return result


def run_row(case: Case, peaks: Peaks, budget: float, workers: Sequence[Worker]) -> dict[str, Any]:
    """One row of the result. ``error`` is None, or the first mismatch; then nothing was timed."""
    problem = case.problem
    convolution = isinstance(problem, ConvProblem)
    flops = 2 * case.operations if convolution else 0
    moved = problem.bytes_moved(case.dtype.itemsize)
    # the peak is float32's; a vector holds half as many float64
    bound, least = peaks.least_seconds(flops // 2 * (2 if case.dtype == torch.float64 else 1), moved)
    row: dict[str, Any] = {
        "problem": str(problem),
        "kind": "convolution" if convolution else "pooling",
        "direction": case.direction,
        "threads": peaks.threads,
        "flops": flops,
        "dtype": str(case.dtype).removeprefix("torch."),
        "bytes": moved,
        "bound": bound,
        "least_seconds": least,
        "error": None,
        "contenders": [],
        "ratios": {},
    }
    contestants = [*contenders(case), *peers(case, workers, peaks.threads)]
    try:
        accuracy, calls, refusals = verify(case, contestants)
    except Mismatch as error:
        row["error"] = str(error)
        return row
    timings = take_turns(calls, budget, random.Random(SEED))
    for c in contestants:
        about = {"name": c.name, "library": c.library, "variant": c.variant, "layout": c.layout}
        about |= {"algorithm": c.algorithm} if c.algorithm else {}
        if c.name not in timings:
            row["contenders"].append(about | {"refused": refusals[c.name]})
            continue
        timing, found = timings[c.name], accuracy[c.name]
        about |= {
            "seconds": timing.median,
            "quartiles": [timing.lower, timing.upper],
            "turns": timing.turns,
            "gflops": flops / timing.median / 1e9,
            "share_of_bound": least / timing.median,
            "error_of_bound": found.of_bound,
            "relative_error": found.relative,
            "integers_exact": True if c.exact else None,
        }
        row["contenders"].append(about)
    row["ratios"] = ratios(contestants, timings)
    row["disturbed"] = disturbed_share(timings)
    return row


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "architecture": platform.machine()}


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means of the ratios, per kind, direction and number of threads."""
    result = []
    groups = dict.fromkeys((row["threads"], row["kind"], row["direction"]) for row in rows)
    for threads, kind, direction in groups:
        mine = [r["ratios"] for r in rows if (r["threads"], r["kind"], r["direction"]) == (threads, kind, direction)]
        names = dict.fromkeys(name for ratio in mine for name in ratio)
        values = {name: geometric_mean([ratio[name] for ratio in mine if name in ratio]) for name in names}
        result.append({"threads": threads, "kind": kind, "direction": direction, "rows": len(mine), "ratios": values})
    return result


def milliseconds(row: dict[str, Any], name: str) -> str:
    for c in row["contenders"]:
        if c["name"] == name and "seconds" in c:
            return f"{c['seconds'] * 1e3:.3g}"
    return ""


def _ratio(values: dict[str, float], name: str) -> str:
    if name not in values:
        return ""
    colour = "green" if values[name] >= 1 else "red"
    return f"[{colour}]{values[name]:.2f}[/{colour}]"


def short(name: str) -> str:
    return name.replace("channels_last", "cl").replace(" auto", "")


def table(rows: Sequence[dict[str, Any]], mean: dict[str, Any]) -> Table:
    """One kind, direction and number of threads: milliseconds, ratios, share of the bound."""
    threads, direction = mean["threads"], mean["direction"].replace("_", " of ").replace("backward", "gradient")
    result = Table(
        title=f"{mean['kind']}, {direction}, {threads} thread{'s' if threads > 1 else ''}",
        caption='ms, medians; cl: channels_last; convext: algorithm="auto"; x: the time of torch over that of the '
        "fastest of convext, in the same layout and of all layouts, and that of the fastest peer; % of the peak of "
        "fma or copy",
    )
    result.add_column("layer")
    libraries = dict.fromkeys(
        c["name"] for row in rows for c in row["contenders"] if c["library"] != "convext" or c["variant"] == "auto"
    )
    for name in libraries:
        result.add_column("\n".join(short(name).split()), justify="right")
    for title in ("fastest\nconvext", "x", "x\ncl", "x\nall", "x\npeers", "% of\npeak"):
        result.add_column(title, justify="right")
    for row in rows:
        if row["error"]:
            result.add_row(row["problem"], "[red]WRONG[/red]")
            continue
        ours = [c for c in row["contenders"] if c["library"] == "convext" and "seconds" in c]
        best = min(ours, key=lambda c: c["seconds"], default=None)
        shown = [_ratio(row["ratios"], f"best {name}") for name in ("contiguous", "channels_last", "any", "peers")]
        share = f"{100 * best['share_of_bound']:.0f} {row['bound']}" if best else ""
        winner = f"{best['algorithm']}{' cl' if best['layout'] == 'channels_last' else ''}" if best else "none"
        result.add_row(row["problem"], *(milliseconds(row, name) for name in libraries), winner, *shown, share)
    shown = [_ratio(mean["ratios"], f"best {name}") for name in ("contiguous", "channels_last", "any", "peers")]
    result.add_section()
    result.add_row("geometric mean", *[""] * len(libraries), "", *shown, "")
    return result


def measure(
    problems: Sequence[Problem],
    wanted: Sequence[str],
    threads: Sequence[int],
    budget: float,
    workers: Sequence[Worker],
    console: Console,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All rows, and the machine's peaks per number of threads. Without a terminal for the bar, prints a line a row."""
    cases = [Case(p, d) for p in problems for d in directions(p) if d in wanted]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rows, peaks = [], []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(cases) * len(threads))
        for count in threads:
            torch.set_num_threads(count)
            progress.update(task, description=f"peaks, {count} threads")
            peak = Peaks.measure(count, budget)
            peaks.append(peak.as_json())
            for case in cases:
                progress.update(task, description=f"{case.problem}, {case.direction}, {count} threads")
                row = run_row(case, peak, budget, workers)
                rows.append(row)
                if row["error"]:
                    console.print(f"[red]WRONG[/red] {case.problem}, {case.direction}: {row['error']}")
                elif not console.is_terminal:
                    ratio = _ratio(row["ratios"], "best any") or "not timed"
                    console.print(f"{case.problem}, {case.direction}, {count} threads: {ratio}", highlight=False)
                progress.advance(task)
    return rows, peaks


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the problems tagged quick, short turns")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all cores")
    parser.add_argument("--layers", default="", metavar="TEXT", help="only problems whose name contains TEXT")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the JSON")
    parser.add_argument(
        "--peers-python",
        default=sys.executable,
        metavar="FILE",
        help="interpreter that has the other runtimes (default: this one)",
    )
    options = parser.parse_args(arguments)
    options.threads = options.threads or sorted({1, usable_cores()})
    if min(options.threads) < 1:
        parser.error(f"--threads must be positive, got {options.threads}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)  # a log has no width of its own
    problems: list[Problem] = [p for p in (*CONVOLUTIONS, *POOLS) if options.layers in p.name]
    if options.quick:
        problems = [p for p in problems if "quick" in p.tags]
    if not problems:
        console.print(f"[red]no problem's name contains {options.layers!r}[/red]")
        return 2
    full = not options.quick and not options.layers and set(options.directions) == set(DIRECTIONS)
    versions = installed(options.peers_python)
    workers = [Worker(name, options.peers_python) for name, version in versions.items() if version]
    for name, version in versions.items():
        console.print(f"{name}: {version or 'not installed'}")
    load = os.getloadavg()[0]
    if load > BUSY:
        console.print(f"[yellow]others are using this machine (load {load:.1f}): these times will mean little[/yellow]")
    today = datetime.datetime.now(datetime.timezone.utc)
    start = time.perf_counter()
    try:
        budget = QUICK_ROW_SECONDS if options.quick else ROW_SECONDS
        rows, peaks = measure(problems, options.directions, options.threads, budget, workers, console)
    finally:
        for worker in workers:
            worker.close()
    summary = means(rows)
    for mean in summary:
        key = {name: mean[name] for name in ("threads", "kind", "direction")}
        console.print(table([row for row in rows if key.items() <= row.items()], mean))
    result = {
        "mode": "full" if full else "partial",
        "date": today.isoformat(timespec="seconds"),
        "machine": machine(),
        "load_before": round(load, 2),
        "isa": _C.active_isa(),
        "isas": _C.available_isas(),
        "threads": options.threads,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "convext": convext.__version__,
            "compiler": _C.compiler(),
            **{name: version or "not installed" for name, version in versions.items()},
        },
        "method": "float32 but where a row says otherwise; verified, then timed in turns in random order; medians; "
        "caches are not flushed",
        "seconds": round(time.perf_counter() - start, 1),
        "peaks": peaks,
        "means": summary,
        "rows": rows,
    }
    path = options.output or (
        RESULTS / f"{today:%Y-%m-%d}-{_C.active_isa()}.json" if full else ROOT / "outputs" / "benchmark.json"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    wrong = sum(row["error"] is not None for row in rows)
    console.print(f"{len(rows)} rows in {result['seconds']:.0f} s, {wrong} wrong; written to {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
