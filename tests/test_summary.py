"""convext.summary, the yardsticks it uses, and ``python -m convext summary``."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convext
from convext import machine
from convext.__main__ import load_model, main
from convext.machine import Peaks

PEAKS = Peaks(1, gflops=100.0, how="", gemm_gflops=90.0, copy_gbs={2**20: 40.0, 2**28: 10.0})


@pytest.fixture(autouse=True)
def peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Yardsticks that need no measuring."""
    monkeypatch.setattr("convext.analysis.summarise.peaks_here", lambda threads: PEAKS)


class Block(nn.Module):
    """A residual block with functions between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.norm(self.first(x)))) + x


def network() -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(2), Block(), *head)


IMAGE = (1, 3, 32, 32)


def test_rows_of_a_model_of_torch_and_after_conversion() -> None:
    model = network()
    before = convext.summary(model, IMAGE, measure=False)
    names = [*("0", "1", "2.first", "2.norm", "2.second", "2.relu", "2.add"), *("3", "4", "5")]
    assert [row.name for row in before] == names
    assert [row.field[0] for row in before if row.field] == [3, 5, 13, 13, 13, 13, 13, 41, 41, 41]
    assert before["0"].jump == ("2", "2")
    assert before["0"].output_shape == (1, 8, 16, 16)
    assert before["0"].multiply_adds == 256 * 8 * 27
    assert {row.library for row in before} == {"torch"}
    assert before["2.first"].algorithm is not None
    assert "torch (" in str(before)
    convext.convert(model)
    after = convext.summary(model, IMAGE, measure=False)
    for one, other in zip(before, after, strict=True):
        assert (one.name, one.multiply_adds, one.bytes_moved, one.field) == (
            *(other.name, other.multiply_adds, other.bytes_moved, other.field),
        )
        assert one.algorithm == other.algorithm
    assert after["0"].library == "convext"
    assert "torch (" not in "\n".join(line for line in str(after).splitlines() if "Conv2d" in line)


def test_it_says_what_explain_says_and_why() -> None:
    named = convext.Conv2d(3, 8, 3, algorithm="direct")
    row = convext.summary(named, IMAGE, measure=False).rows[0]
    assert (row.algorithm, row.why.split("; ")[0]) == ("direct", "named")
    layer = convext.Conv2d(3, 8, 3, stride=2)
    row = convext.summary(layer, IMAGE, measure=False).rows[0]
    explanation = convext.explain(layer, torch.rand(IMAGE))
    assert row.algorithm == explanation.chosen
    assert row.why.startswith("rule; ")
    for verdict in explanation.verdicts:
        if verdict.refusal is not None:
            assert f"{verdict.name} cannot: {verdict.refusal}" in row.why
        elif verdict.name != explanation.chosen:
            assert f"{verdict.name} could" in row.why
    try:
        convext.tune(layer, torch.rand(IMAGE), rounds=1)
        assert convext.summary(layer, IMAGE, measure=False).rows[0].why.startswith("tuned")
    finally:
        convext.clear_tuning()


def test_times_and_shares() -> None:
    model = network().train()
    found = convext.summary(model, IMAGE, budget=0.0)
    assert model.training
    assert found.machine is PEAKS
    assert all(row.milliseconds is not None and row.milliseconds > 0 for row in found)
    assert found.milliseconds is not None
    for row in found:
        if row.bytes_moved == 0:
            assert row.share is None
            continue
        bound, least = PEAKS.least_seconds(row.multiply_adds, row.bytes_moved)
        assert row.bound == bound
        assert row.milliseconds is not None
        assert row.share == pytest.approx(1e3 * least / row.milliseconds)
    assert found.share == pytest.approx(
        sum(1e3 * PEAKS.least_seconds(r.multiply_adds, r.bytes_moved)[1] for r in found) / found.milliseconds
    )
    assert "% of bound" in str(found)
    assert "100 GFLOP/s" in str(found)


def test_float64_takes_two_turns_of_the_peak() -> None:
    layer = nn.Conv2d(64, 64, 3, dtype=torch.float64)
    row = convext.summary(layer, (1, 64, 20, 20), budget=0.0).rows[0]
    assert row.bound == "fma"
    assert row.share == pytest.approx(2 * 2 * row.multiply_adds / 100e9 / (1e-3 * (row.milliseconds or math.nan)))


def test_totals_json_and_text() -> None:
    found = convext.summary(network(), IMAGE, measure=False)
    data = json.loads(found.to_json())
    assert data == json.loads(found.to_json(indent=2))
    assert data["parameters"] == found.parameters == sum(row.parameters for row in found)
    assert data["multiply_adds"] == found.multiply_adds
    assert data["inputs"] == [list(IMAGE)]
    assert data["milliseconds"] is None
    assert len(data["rows"]) == len(found.rows)
    assert data["rows"][0]["intensity"] == pytest.approx(found.rows[0].intensity)
    lines = str(found).splitlines()
    assert lines[0].startswith("Sequential, input 1x3x32x32 float32 on cpu")
    assert lines[-1].startswith("total")
    assert "ms" not in lines[1].split()
    assert len(lines) == len(found.rows) + 3
    with pytest.raises(KeyError, match="no row named"):
        found["9"]


def test_a_model_that_cannot_be_traced_has_no_fields() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv1d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > -1e9 else x

    row = convext.summary(Branching(), (1, 1, 8), budget=0.0).rows[0]
    assert row.field is None
    assert "torch.fx cannot trace" in row.field_note
    assert row.milliseconds is not None


def test_what_is_not_counted_is_said() -> None:
    found = convext.summary(nn.GRU(3, 3), torch.rand(4, 2, 3), measure=False)
    assert found.rows[0].note == "the multiply-adds of gru are not counted"
    assert found.rows[0].note in str(found)


def test_no_layer_keeps_a_hook() -> None:
    model = network()
    convext.summary(model, IMAGE, budget=0.0)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError):
        convext.summary(model, (1, 2, 8, 8))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_errors() -> None:
    with pytest.raises(TypeError, match="model must be"):
        convext.summary(F.relu, IMAGE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="budget"):
        convext.summary(nn.ReLU(), IMAGE, budget=-1)
    with pytest.raises(AttributeError, match="no attribute 'summaries'"):
        _ = convext.summaries  # type: ignore[attr-defined]


# The machine ---------------------------------------------------------------------------------------------------------


def test_yardsticks_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "GEMM_SIZES", (64,))
    found = Peaks.measure(1, 0.02, (2**12, 2**14))
    assert found.gflops > 0.1
    assert set(found.copy_gbs) == {2**13, 2**15}
    assert all(rate > 0 for rate in found.copy_gbs.values())
    for compiler in (None, "/bin/false"):
        machine.compiled.cache_clear()
        monkeypatch.setattr("shutil.which", lambda name, found=compiler: found)
        assert "no working C compiler" in Peaks.measure(1, 0.01, (2**12,)).how
    machine.compiled.cache_clear()


# The command line ----------------------------------------------------------------------------------------------------


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["summary", "tests.test_summary:tiny", "--input", "2x8x8", "--batch", "3", "--budget", "0"])
    text = capsys.readouterr().out
    assert "input 3x2x8x8 float32" in text
    assert "ReLU" in text


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--input", "2,8,8", "--dtype", "float64", "--channels-last", "--convert", "--json", "--no-measure"]
    main(["summary", "tests.test_summary:tiny", *options])
    data = json.loads(capsys.readouterr().out)
    assert data["dtype"] == "float64"
    assert data["rows"][0]["library"] == "convext"
    assert data["rows"][0]["output_shape"] == [1, 4, 6, 6]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tests.test_summary", "package.module:callable"),
        ("tests.nowhere:tiny", "cannot be found"),
        ("tests.test_summary:nothing", "cannot be found"),
        ("tests.test_summary:IMAGE", "got tuple"),
    ],
)
def test_the_command_says_what_is_wrong(model: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["summary", model])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_sizes_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    for sizes in ("3xax3", "0x3", ""):
        with pytest.raises(SystemExit):
            main(["summary", "tests.test_summary:tiny", "--input", sizes])
        assert "expected sizes above 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["summary", "tests.test_summary:tiny", "--input", "2x8", "--channels-last"])
    assert "--channels-last needs" in capsys.readouterr().err


def test_a_model_can_be_named_itself() -> None:
    assert isinstance(load_model("torch.nn:ReLU"), nn.ReLU)
