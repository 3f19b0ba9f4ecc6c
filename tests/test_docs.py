"""The pages under docs/: their examples run, their links lead somewhere, their numbers are generated."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import pytest

from benchmarks import docs_tables, report

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def examples(page: Path) -> str:
    """The page with everything blank but its python blocks: doctest then knows the lines."""
    text = page.read_text()
    keep = [False] * (text.count("\n") + 1)
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        keep[first : first + block[1].count("\n")] = [True] * block[1].count("\n")
    return "\n".join(line if kept else "" for line, kept in zip(text.split("\n"), keep, strict=True))


@pages
def test_examples_of(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = examples(page)
    if "viz" in text:
        pytest.importorskip("matplotlib")
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pages
def test_every_python_block_is_an_example(page: Path) -> None:
    for block in BLOCK.finditer(page.read_text()):
        assert block[1].startswith(">>> "), block[1]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "csrc" / "README.md"], ids=lambda p: str(p)[-24:])
def test_links_of(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target} leads nowhere"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.name}: {target}, no such heading"


@pages
def test_tables_are_those_of_source_and_newest_result(page: Path) -> None:
    result = json.loads(report.newest(ROOT / "benchmarks" / "results").read_text())
    text = page.read_text()
    assert docs_tables.fill(text, result) == text, "run python -m benchmarks.docs_tables"


def test_every_table_has_its_place() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for what, names in (("measured", docs_tables.MEASURED), ("constants", docs_tables.CONSTANTS)):
        for name in names:
            assert text.count(f"<!-- {what}:{name} begin -->") == 1, f"{what}:{name}"


def test_filling_replaces_what_is_between_markers() -> None:
    result = json.loads(report.newest(ROOT / "benchmarks" / "results").read_text())
    text = "before\n<!-- measured:peaks begin -->\nold\n<!-- measured:peaks end -->\nafter\n"
    once = docs_tables.fill(text, result)
    assert "old" not in once
    assert once.startswith("before\n<!-- measured:peaks begin -->\n")
    assert once.endswith("<!-- measured:peaks end -->\nafter\n")
    assert docs_tables.fill(once, result) == once
    with pytest.raises(ValueError, match="measured:nothing is unknown"):
        docs_tables.fill(text.replace("peaks", "nothing"), result)
    with pytest.raises(ValueError, match="a marker without its partner"):
        docs_tables.fill(text.replace("peaks end", "peek end"), result)


def test_constants_are_read_from_source() -> None:
    source = "#if X\nconstexpr int kRows = 14;\n#else\nconstexpr int kRows = 6;  // of a tile\n#endif\n"
    assert docs_tables.constant(source, "kRows") == (["14", "6"], "of a tile")
    assert docs_tables.constant("constexpr int kA = 2, kB = f(3, 4) / 2;  // two", "kB") == (["f(3, 4) / 2"], "")
    with pytest.raises(ValueError, match="no constant kNone"):
        docs_tables.constant(source, "kNone")


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


# Page, what it says, the file that it is true of, and what stands there. Spaces and line ends count alike.
QUOTED = (
    ("direct.md", "`kRowsHigh` = 8 rows", "csrc/cpu/conv_direct_rows.inl", "kRowsHigh = 8;"),
    ("gradients.md", "one byte where the window has at most 256 places", "csrc/geometry.h", "window() <= 256"),
    ("pooling-kernels.md", "where the window has at most 256 places", "csrc/geometry.h", "window() <= 256"),
    ("pooling-kernels.md", "more than about 4000 columns", "csrc/cpu/pool_direct.cpp", "more than about 4000 columns"),
    ("winograd.md", "in float32 below 2.5e-6", "benchmarks/contenders.py", "WINOGRAD_NORM = 2.5e-6"),
    ("winograd.md", "A block makes 32 tiles of", "csrc/cuda/conv_winograd_fused.cu", "kTiles = 32;"),
    ("winograd.md", "chunk of 8 input channels", "csrc/cuda/conv_winograd_fused.cu", "kChunk = 8,"),
    ("winograd.md", "parts of at most 256 tiles", "csrc/cuda/conv_winograd.cu", "kChain = 256;"),
    ("winograd.md", "holds 64 MB at most", "csrc/cuda/conv_winograd.cu", "CONVEXT_WINOGRAD_BYTES (64 << 20)"),
    ("winograd.md", "nine sixteenths", "csrc/cuda/conv_winograd.cu", "kWeightBytes = kWorkspaceBytes / 16 * 9;"),
    ("cuda.md", "A block of 256 threads", "csrc/cuda/launch.cuh", "kThreads = 256;"),
    ("cuda.md", "stands 16 x 16", "csrc/cuda/gemm.cuh", "kSide = 16;"),
    ("cuda.md", "keeps 4 x 4 or, where", "csrc/cuda/gemm.cuh", "kSmall = 4,"),
    ("cuda.md", "8 x 8 sums a thread", "csrc/cuda/gemm.cuh", "== 4 ? 8 : 4;"),
    ("cuda.md", "four teams of threads", "csrc/cuda/conv_direct_weight.cu", "kTeams = 4,"),
    ("cuda.md", "partial sums a third of that", "csrc/cuda/conv_im2col.cu", "kPartBytes = kPanelBytes / 3;"),
    ("cuda.md", "sm_75, sm_80 and sm_90", "setup.py", '"7.5;8.0;9.0+PTX;9.0a"'),
    ("cuda.md", "An image of 2^31 elements or more", "csrc/cuda/window.cuh", "an image has 2^31 elements or more"),
)


@pytest.mark.parametrize(("page", "said", "file", "source"), QUOTED, ids=lambda text: text[:40])
def test_what_pages_say_of_the_source(page: str, said: str, file: str, source: str) -> None:
    for path, text in ((DOCS / page, said), (ROOT / file, source)):
        assert " ".join(text.split()) in " ".join(path.read_text().split()), f"{path.name} does not say {text!r}"


def test_tiles_of_the_matrix_product() -> None:
    """The table of im2col.md: rows x (vectors of so many numbers), and as many vectors of sums."""
    source = (ROOT / "csrc/cpu/gemm.inl").read_text()
    rows, _ = docs_tables.constant(source, "kTileRows")
    (vectors,), _ = docs_tables.constant(source, "kTileVectors")
    page = (DOCS / "im2col.md").read_text()
    for name, high, lanes, registers in (
        ("AVX-512", rows[0], 64 // 4, 32),
        ("AVX2", rows[1], 32 // 4, 16),
        ("baseline", rows[1], 16 // 4, 16),
    ):
        sums = int(high) * int(vectors)
        assert f"| {name} | {high} x {int(vectors) * lanes} | {sums} of {registers} registers |" in page


def test_every_picture_is_small_and_shown() -> None:
    pages = "".join(page.read_text() for page in PAGES)
    for path in (DOCS / "images").iterdir():
        if f"docs/images/{path.name}" in (ROOT / "README.md").read_text():
            continue
        assert f"](images/{path.name})" in pages, f"no page shows {path.name}"
        assert path.stat().st_size < 200_000, path.name
