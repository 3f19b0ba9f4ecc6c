"""The GPU's benchmark, with the CPU as its device: it verifies before it times, and its report says what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, report
from benchmarks.gpu import Row
from benchmarks.shapes import ConvProblem, PoolProblem

CPU = torch.device("cpu")
PEAKS = gpu.Peaks(100.0, {"float32": 1.0, "float16": 2.0, "bfloat16": 2.0})
CONV = ConvProblem("conv", (6, 5), (9, 7), (3, 3), stride=2, padding=1, batch=2)
DEPTHWISE = ConvProblem("depthwise", (4, 4), (6, 6), (3, 3), padding=1, groups=4)
CAUSAL = ConvProblem("causal", (6, 6), (19,), (4,), padding=((3, 0),), groups=6)
PADDED = ConvProblem("padded", (4, 6), (8, 7), (3, 3), padding=1, padding_mode="reflect")
MAX = PoolProblem("max", False, 3, (9, 8), (3, 3), stride=2, padding=1)
AVERAGE = MAX.with_(name="average", average=True)
SMALL = (
    Row("dense", CONV, torch.float16, "forward", True),
    Row("dense float32", CONV, torch.float32, "backward_input"),
    Row("depthwise", DEPTHWISE, torch.float32, "backward_weight"),
    Row("causal", CAUSAL, torch.bfloat16, "forward"),
    Row("padding", PADDED, torch.float32, gpu.TRAINING, True),
    Row("pooling", MAX, torch.float32, gpu.TRAINING),
    Row("pooling", MAX, torch.float16, "forward"),
    Row("pooling", AVERAGE, torch.float32, gpu.TRAINING, True),
)


def test_rows_cover_what_must_be_reached() -> None:
    every = list(gpu.rows())
    assert {row.key for row in every} == set(gpu.TARGETS)
    assert {row.group for row in every if row.quick} == {row.group for row in every}
    assert len({(row.group, row.name, row.dtype, row.what) for row in every}) == len(every)
    assert set(gpu.SHARES) <= set(gpu.TARGETS)
    for row in every:
        assert row.bytes > 0
        assert (row.operations > 0) == isinstance(row.problem, ConvProblem)


def test_bytes_are_counted_by_hand() -> None:
    assert Row("pooling", MAX, torch.float16, "forward").bytes == 2 * 3 * (9 * 8 + 5 * 4)
    # x, y, dy, dx; a byte per output, written and read
    assert Row("pooling", MAX, torch.float16, gpu.TRAINING).bytes == 4 * 3 * (9 * 8 + 5 * 4) + 2 * 3 * 5 * 4
    assert Row("pooling", AVERAGE, torch.float32, gpu.TRAINING).bytes == 8 * 3 * (9 * 8 + 5 * 4)
    row = Row("dense", CONV, torch.float16, "forward")
    assert row.bytes == 2 * (2 * 6 * 9 * 7 + 5 * 6 * 9 + 2 * 5 * 5 * 4)
    assert row.operations == 2 * (2 * 5 * 5 * 4) * 6 * 9
    assert (
        PEAKS.least_seconds(row) == ("copy", row.bytes / 100e9) if row.bytes / 100e9 > row.operations / 2e12 else True
    )


@pytest.mark.parametrize("row", SMALL, ids=lambda row: f"{row.problem}-{row.what}-{gpu._name(row.dtype)}")
def test_a_row_is_verified_and_timed(row: Row) -> None:
    told = gpu.measure(row, PEAKS, CPU, 0.01)
    assert told["error"] is None
    clocked = [c for c in told["contenders"] if "seconds" in c]
    assert {"torch", "convext"} <= {c["library"] for c in clocked}
    for c in clocked:
        assert c["seconds"] > 0
        assert 0 <= c["error_of_bound"] <= 1
        assert c["share_of_bound"] == pytest.approx(told["least_seconds"] / c["seconds"])
    theirs, ours = (gpu.fastest(told["contenders"], *who) for who in (("torch",), ("convext", "auto")))
    assert theirs is not None
    assert ours is not None
    assert told["ratio"] == pytest.approx(theirs["seconds"] / ours["seconds"])
    assert told["memory_ratio"] > 0
    assert all(c["refused"] for c in told["contenders"] if "seconds" not in c)


@pytest.mark.parametrize("row", SMALL, ids=lambda row: f"{row.problem}-{row.what}-{gpu._name(row.dtype)}")
@pytest.mark.parametrize("place", [0, -1])
def test_a_wrong_result_is_not_timed(row: Row, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several results each is looked at; the peer's too."""
    right = gpu.call_of

    def wrong(row: Row, entry: gpu.Entry, o: Any) -> Any:
        call = right(row, entry, o)
        if entry.library == "torch":
            return call

        def harmed() -> tuple[torch.Tensor, ...]:
            results = [t.clone() for t in call()]
            results[place].view(-1)[-1] += 1e3
            return tuple(results)

        return harmed

    monkeypatch.setattr(gpu, "call_of", wrong)
    told = gpu.measure(row, PEAKS, CPU, 0.01)
    assert told["error"].startswith("convext auto")
    assert told["contenders"] == []
    assert gpu.means([told]) == []


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A real run on the CPU."""
    path = tmp_path_factory.mktemp("gpu") / "result.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "rows", lambda: iter(SMALL))
        patch.setattr(gpu, "QUICK_ROW_SECONDS", 0.01)
        assert gpu.main(["--device", "cpu", "--quick", "--output", str(path)]) == 0
        assert gpu.main(["--device", "cpu", "--only", "no such row", "--output", str(path)]) == 2
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_the_result_says_what_was_measured(result: dict[str, Any]) -> None:
    assert result["mode"] == "gpu partial"
    assert [row["problem"].split(",")[0] for row in result["rows"]] == ["conv", "padded", "average"]
    assert {"torch", "cuda", "cudnn", "convext"} <= result["versions"].keys()
    assert result["gpu"]["driver"]
    assert result["peaks"]["copy_gbs"] > 0
    assert set(result["peaks"]["matmul_tflops"]) == {"float16", "bfloat16", "float32"}
    for mean in result["means"]:
        assert mean["target"] == gpu.TARGETS[mean["group"], mean["pass"]]
        assert 0 <= mean["reached"] <= mean["rows"]


def test_the_report_has_its_tables_or_says_that_nothing_was_run(result: dict[str, Any], tmp_path: Path) -> None:
    readme = f"before\n{report.GPU_BEGIN}\nold\n{report.GPU_END}\nafter\n"
    assert report.fill_gpu("no markers", tmp_path) == "no markers"
    empty = report.fill_gpu(readme, tmp_path)
    assert empty == f"before\n{report.GPU_BEGIN}\n{report.NOT_RUN}\n{report.GPU_END}\nafter\n"
    assert "\n" not in report.NOT_RUN
    for name, mode in (("partial", "gpu partial"), ("full", "gpu")):
        (tmp_path / f"{name}.json").write_text(json.dumps(result | {"mode": mode}))
    page = tmp_path / "README.md"
    page.write_text(readme)
    arguments = ["--gpu", str(tmp_path / "full.json"), "--readme", str(page)]
    assert report.main(arguments) == 0
    filled = page.read_text()
    assert report.main(arguments) == 0
    assert page.read_text() == filled
    for row in result["rows"]:
        assert f"| {row['problem']} | {row['dtype']} |" in filled
    for mean in result["means"]:
        assert f"**{mean['group'].capitalize()}**" in filled
    assert report.newest_of("gpu", tmp_path) is not None


def test_the_readme_is_up_to_date() -> None:
    text = (report.ROOT / "README.md").read_text()
    assert report.fill_gpu(text, report.ROOT / "benchmarks" / "results") == text
    assert report.GPU_BEGIN in text
