"""Fills what is generated in the pages under docs/: measured times, and constants read from the source.

    python -m benchmarks.docs_tables          from the newest full result under benchmarks/results/

benchmarks.report does the same after the README. Running it twice changes nothing; tests/test_docs.py holds the pages
to it. Between ``<!-- measured:NAME begin -->`` and ``<!-- measured:NAME end -->`` goes the table of MEASURED[NAME],
between ``<!-- constants:NAME begin -->`` and its end that of CONSTANTS[NAME].
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.tables import milliseconds, table_lines

ROOT = report.ROOT
DOCS = ROOT / "docs"
MARKED = re.compile(r"<!-- (measured|constants):(\S+) begin -->\n(.*?)<!-- \1:\2 end -->", re.DOTALL)
COUNTED = re.compile(r"<!-- (?:measured|constants):\S+ (?:begin|end) -->")

Result = dict[str, Any]

CONSTANTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "gemm": {"csrc/cpu/gemm.inl": ("kTileRows", "kGatheredRows", "kTileVectors", "kNearBytes", "kFarBytes")},
    "im2col": {
        "csrc/cpu/blocking.h": ("kReduction", "kTasksPerThread"),
        "csrc/cpu/conv_im2col_plan.h": ("kPixelVectors", "kPixelTiles", "kGathered", "kOutputs"),
        "csrc/cpu/unfold.h": ("kMaxRun",),
    },
    "direct": {
        "csrc/cpu/conv_direct_slide_tile.inl": ("kOuts", "kSumVectors"),
        "csrc/cpu/conv_direct_tile.inl": ("kTileSize", "kSumsSize", "kWeightsSize", "kMaxTaps"),
        "csrc/cpu/conv_direct_slide.inl": ("kMaxChannels", "kMaxRows"),
        "csrc/cpu/conv_direct_rows.inl": ("kRowsHigh", "kRowsVectors", "kMaxRowColumns"),
        "csrc/cpu/conv_direct_planes.inl": ("kPlaneOuts", "kPlaneSums"),
    },
    "winograd": {
        "csrc/algorithms.h": ("kWinogradPays",),
        "csrc/cpu/conv_winograd_plan.h": ("kCacheBytes", "kMaxBlock", "kTransformCost", "kWeightCycles", "kShortSum"),
        "csrc/cpu/conv_winograd_gain.cpp": ("kStridedWeight",),
        "csrc/cpu/conv_winograd_weight_plan.h": (
            "kMostBytes",
            "kNearBytes",
            "kChunkBytes",
            "kSumBytes",
            "kChain",
            "kAdds",
            "kShortSum",
        ),
        "csrc/cuda/conv_winograd.cu": ("kColumnStep", "kShortestPart", "kChain", "kFusedCost", "kSumTiles"),
        "csrc/cuda/conv_winograd_fused.cu": ("kChunk", "kTiles", "kRoundChannels"),
    },
    "pooling": {
        "csrc/cpu/pool_direct.h": (
            "kPoolRow",
            "kPoolColumns",
            "kPoolTaps",
            "kPoolPart",
            "kPoolJoined",
            "kPoolPlanes",
            "kPoolScatter",
        )
    },
    "cuda": {
        "csrc/cuda/launch.cuh": ("kThreads",),
        "csrc/cuda/gemm.cuh": ("kSide", "kSlice", "kSmall", "kLarge"),
        "csrc/cuda/conv_im2col.cu": ("kColumnStep", "kShortestPart"),
        "csrc/cuda/conv_direct.cu": ("kChunk", "kLaneChannels"),
        "csrc/cuda/conv_direct_weight.cu": ("kTile", "kStage", "kTeams", "kMicro", "kLaneTaps"),
        "csrc/cuda/conv_direct_few.cu": ("kColumns", "kTileColumns", "kMostRows", "kChunk"),
        "csrc/cuda/conv_direct_few_weight.cu": ("kTaps", "kSegment", "kTileWidth", "kTilePlaces"),
        "csrc/cuda/conv_direct_depthwise.cu": ("kRows", "kColumns", "kTileSide"),
        "csrc/cuda/conv_direct_depthwise_last.cu": ("kStrip", "kTallest"),
        "csrc/cuda/conv_direct_depthwise_weight.cu": ("kSegment", "kLineSegment", "kLongLine"),
        "csrc/cuda/conv_direct_depthwise_last_weight.cu": ("kPiece", "kFewTaps", "kManyTaps"),
        "csrc/cuda/pool_direct.cu": ("kTileWidth", "kLastHeight", "kLastChannels", "kBand"),
    },
    "implicit_gemm": {
        "csrc/cuda/tile_product.cuh": ("kSmallTile", "kLargeTile", "kSliceBytes", "kStages", "kStoredRows"),
        "csrc/cuda/implicit_gemm_plan.cuh": ("kMostSegments", "kMostPhases"),
        "csrc/cuda/conv_implicit_gemm_weight.cu": ("kPartBytes",),
    },
}
"""Name -> source -> its constants."""


# Constants ---------------------------------------------------------------------------------------------------------


def constant(source: str, name: str) -> tuple[list[str], str]:
    """The values that ``name`` is given in a C++ source, one per instruction set where they differ, and the comment
    beside it, if it is alone on its line. Raises ValueError where there is none."""
    values, comment = [], ""
    for line in source.splitlines():
        code, _, remark = line.partition("//")
        value = re.search(rf"\bconstexpr\b.*\b{name} = ((?:[^,;()]|\([^()]*(?:\([^()]*\))?[^()]*\))+)[,;]", code)
        if value:
            values.append(value[1])
            if not comment and code.count(" = ") == 1:
                comment = remark.strip()
    if not values:
        raise ValueError(f"no constant {name}")
    return list(dict.fromkeys(values)), comment


def constants_table(name: str) -> list[str]:
    """Markdown lines: constant, value, what the source says about it, where."""
    lines = ["| constant | value | | in |", "| --- | --- | --- | --- |"]
    for file, names in CONSTANTS[name].items():
        source = (ROOT / file).read_text()
        for each in names:
            values, comment = constant(source, each)
            value = ", ".join(f"`{v}`" for v in values)
            comment = comment.replace("|", "\\|")
            lines.append(f"| `{each}` | {value} | {comment} | [{Path(file).name}](../{file}) |")
    return lines


# Measured ----------------------------------------------------------------------------------------------------------


def _caption(result: Result) -> str:
    threads = min(result["threads"])
    return (
        f"{result['machine']['cpu']}, {threads} thread{'s' if threads > 1 else ''}, {result['isa']} kernels, torch "
        f"{result['versions']['torch']}, {result['date'][:10]}."
    )


LEGEND = (
    "Milliseconds, medians, each in its faster layout; % of the peak of multiply-adds or copy, whichever bounds the "
    "layer, a multiply-add of the definition counted as one; norm-wise relative error."
)


def _timed(row: report.Row, variant: str) -> dict[str, Any] | None:
    """convext's fastest contender of that variant."""
    timed = [c for c in row["contenders"] if c["library"] == "convext" and c["variant"] == variant and "seconds" in c]
    return min(timed, key=lambda c: c["seconds"], default=None)


def _torchs(row: report.Row) -> float | None:
    times = [report.seconds(row, "torch", variant) for variant in ("", "prepacked")]
    return min((time for time in times if time is not None), default=None)


def algorithm_table(result: Result, kind: str, name: str, others: Sequence[str], always: bool = False) -> list[str]:
    """Markdown lines: the layers that "auto" leaves to ``name`` (``always``: all that it was timed on), forward."""
    titles = ["layer", name, *others, "torch", "% of bound", "error"]
    lines = []
    for problem, row in report.select(result, kind, "forward", min(result["threads"])).items():
        ours, auto = _timed(row, name), _timed(row, "auto")
        if ours is None or auto is None or not (always or auto["algorithm"] == name):
            continue
        rivals = [_timed(row, other) for other in others]
        cells = [milliseconds(rival["seconds"] if rival else None) for rival in (ours, *rivals)]
        share = 100 * ours["share_of_bound"]
        lines.append([problem, *cells, milliseconds(_torchs(row)), f"{share:.{0 if share >= 1 else 1}f}"])
        lines[-1].append(f"{ours['relative_error']:.1e}" if ours["relative_error"] else "0")
    return [*table_lines(titles, lines), "", LEGEND]


def peaks_table(result: Result) -> list[str]:
    """Markdown lines: what the machine can do, per number of threads."""
    titles = [
        "threads",
        "multiply-adds, GFLOP/s",
        "matrix product by torch, GFLOP/s",
        "copy in cache, GB/s",
        "from memory",
    ]
    lines = []
    for peak in result["peaks"]:
        copies = {int(size): rate for size, rate in peak["copy_gbs"].items()}
        rates = (peak["fma_gflops"], peak["gemm_gflops"], max(copies.values()), copies[max(copies)])
        lines.append([str(peak["threads"]), *(f"{rate:.0f}" for rate in rates)])
    return table_lines(titles, lines)


MEASURED: Mapping[str, Callable[[Result], list[str]]] = {
    "naive": lambda result: algorithm_table(result, "convolution", "naive", ("auto",), always=True),
    "im2col": lambda result: algorithm_table(result, "convolution", "im2col", ("direct", "winograd")),
    "direct": lambda result: algorithm_table(result, "convolution", "direct", ("im2col", "naive")),
    "winograd": lambda result: algorithm_table(result, "convolution", "winograd", ("im2col", "direct")),
    "pooling": lambda result: algorithm_table(result, "pooling", "direct", ("naive",)),
    "peaks": peaks_table,
}
"""Name -> what makes its table."""


# Pages -------------------------------------------------------------------------------------------------------------


def fill(text: str, result: Result) -> str:
    """``text`` with everything between markers made anew. Raises ValueError for an unknown name or a marker alone."""

    def made(block: re.Match[str]) -> str:
        what, name = block[1], block[2]
        known: Mapping[str, Any] = MEASURED if what == "measured" else CONSTANTS
        if name not in known:
            raise ValueError(f"{what}:{name} is unknown, expected one of {', '.join(known)}")
        lines = ["", *MEASURED[name](result), "", _caption(result), ""] if what == "measured" else []
        lines = lines or ["", *constants_table(name), ""]
        return "\n".join([f"<!-- {what}:{name} begin -->", *lines, f"<!-- {what}:{name} end -->"])

    if 2 * len(MARKED.findall(text)) != len(COUNTED.findall(text)):
        raise ValueError("a marker without its partner")
    return MARKED.sub(made, text)


def fill_pages(result: Result, folder: Path = DOCS) -> list[Path]:
    """Writes the pages whose contents change, and returns them. Raises ValueError, naming the page."""
    changed = []
    for page in sorted(folder.glob("*.md")):
        text = page.read_text()
        try:
            filled = fill(text, result)
        except ValueError as error:
            raise ValueError(f"{page.name}: {error}") from None
        if filled != text:
            page.write_text(filled)
            changed.append(page)
    return changed


def main() -> int:
    try:
        source = report.newest(ROOT / "benchmarks" / "results")
        changed = fill_pages(json.loads(source.read_text()))
    except (FileNotFoundError, ValueError) as error:
        print(f"docs_tables: {error}", file=sys.stderr)
        return 1
    print(f"{source} -> {', '.join(page.name for page in changed) or 'nothing changed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
