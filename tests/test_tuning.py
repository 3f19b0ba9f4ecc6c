"""Measured tuning: what is collected, chosen, kept, and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convext
import convext.functional as C
from convext import tuning
from tests import numerics


@pytest.fixture(autouse=True)
def nothing_tuned_afterwards() -> Iterator[None]:
    yield
    convext.clear_tuning()
    convext.set_workspace_limit(None)


@pytest.fixture
def prefers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes measuring find the named algorithm the fastest, however long it takes."""

    def set_favourite(name: str) -> None:
        def seconds(run: Any, algorithm: str, repeats: int, device: str) -> float:
            run(algorithm)
            return 1.0 if algorithm == name else 2.0

        monkeypatch.setattr(tuning, "_seconds", seconds)

    return set_favourite


class Model(torch.nn.Module):
    """Layers, calls of functions, one call made twice, and calls that are not auto's to decide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = convext.Conv2d(3, 8, 3, padding=1)
        self.again = convext.Conv2d(8, 8, 3, padding=1)
        self.up = convext.ConvTranspose2d(8, 4, 2, 2)
        self.pool = convext.MaxPool2d(2)
        self.named = convext.Conv2d(4, 4, 1, algorithm="naive")
        self.theirs = torch.nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x))
        x = self.again(self.again(x))
        x = self.theirs(self.named(self.up(x)))
        return C.avg_pool2d(C.conv2d(x, torch.ones(2, 4, 1, 1)), 2)


def _image() -> Tensor:
    return torch.randn(2, 3, 12, 12)


def test_every_call_left_to_auto_is_collected() -> None:
    report = convext.tune(Model(), _image(), rounds=1)
    seen = [(type(c.call).__name__, c.call.direction, c.call.input, c.times) for c in report.choices]
    assert seen == [
        ("ConvCall", "forward", (3, 12, 12), 1),
        ("PoolCall", "forward", (8, 12, 12), 1),
        ("ConvCall", "forward", (8, 6, 6), 2),
        ("ConvCall", "backward_input", (4, 12, 12), 1),
        ("ConvCall", "forward", (4, 12, 12), 1),
        ("PoolCall", "forward", (2, 12, 12), 1),
    ]
    for choice in report.choices:
        assert choice.chosen in choice.milliseconds
        assert choice.rule in choice.milliseconds
        assert choice.gain >= 1
        assert choice.text in str(report)
    assert report.gain >= 1
    assert "6 calls" in str(report)


def test_gradients_are_tuned_on_request() -> None:
    layer, x = convext.Conv2d(3, 8, 3), _image()
    directions = [c.call.direction for c in convext.tune(layer, x, rounds=1, backward=True).choices]
    assert sorted(directions) == ["backward_input", "backward_weight", "forward"]
    pools = convext.tune(lambda x: C.max_pool2d(C.avg_pool2d(x, 2), 2), x, rounds=1, backward=True).choices
    assert [c.call.direction for c in pools].count("backward_input") == 2
    integers = convext.tune(lambda x: C.max_pool2d(x, 2), torch.ones(1, 1, 4, 4).int(), rounds=1, backward=True)
    assert [c.call.direction for c in integers.choices] == ["forward"]


@pytest.mark.parametrize("name", convext.algorithms("conv2d"))
def test_auto_runs_the_choice_for_those_shapes_alone(name: str, prefers: Any) -> None:
    prefers(name)
    x, w = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3, 3)
    before = {size: convext.explain("conv2d", torch.randn(1, 4, size, 9), w).chosen for size in (8, 9)}
    report = convext.tune(C.conv2d, x, w)
    (choice,) = report.choices
    explanation = convext.explain("conv2d", x, w)
    if explanation.verdicts[[v.name for v in explanation.verdicts].index(name)].refusal is None:
        assert choice.chosen == explanation.chosen == name
        assert choice.rule == before[9]
        assert explanation.tuned
        assert "(tuned)" in str(explanation)
    numerics.assert_same_bits(C.conv2d(x, w), C.conv2d(x, w, algorithm=choice.chosen))
    assert convext.explain("conv2d", x[:1], w).chosen == choice.chosen  # whatever the batch
    assert convext.explain("conv2d", torch.randn(1, 4, 8, 9), w).chosen == before[8]
    others: list[dict[str, Any]] = [{"stride": 2}, {"flip_kernel": True}, {"padding": 1}, {"dilation": 2}]
    for other in (*others, {"direction": "backward_input"}):
        assert not convext.explain("conv2d", x, w, **other).tuned
    assert not convext.explain("conv2d", x.double(), w.double()).tuned
    assert not convext.explain("conv2d", x.to(memory_format=torch.channels_last), w).tuned
    convext.clear_tuning()
    assert convext.explain("conv2d", x, w).chosen == before[9]


def test_pools_are_told_apart(prefers: Any) -> None:
    prefers("naive")
    x = torch.randn(1, 4, 9, 9)
    convext.tune(lambda x: C.max_pool2d(x, 2), x)
    assert convext.explain("max_pool2d", x, 2).chosen == "naive"
    assert not convext.explain("avg_pool2d", x, 2).tuned
    assert not convext.explain("max_pool2d", x, 2, direction="backward_input").tuned
    convext.tune(convext.AvgPool2d(2, count_include_pad=False), x)
    assert convext.explain(convext.AvgPool2d(2, count_include_pad=False), x).tuned
    assert not convext.explain(convext.AvgPool2d(2), x).tuned


def test_a_choice_within_the_noise_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.randn(1, 4, 9, 9), torch.randn(6, 4, 3, 3)
    rule = convext.explain("conv2d", x, w).chosen
    monkeypatch.setattr(tuning, "_seconds", lambda run, name, repeats, device: 1.0 if name == rule else 0.98)
    assert convext.tune(C.conv2d, x, w).choices[0].chosen == rule


def test_a_choice_over_the_workspace_limit_is_passed_over(prefers: Any) -> None:
    x, w = torch.randn(1, 32, 20, 20), torch.randn(32, 32, 3, 3)
    verdicts = convext.explain("conv2d", x, w).verdicts
    name, needed = max(((v.name, v.workspace_bytes) for v in verdicts), key=lambda item: item[1])
    prefers(name)
    convext.tune(C.conv2d, x, w)
    assert convext.explain("conv2d", x, w).chosen == name
    convext.set_workspace_limit(needed - 1)
    assert convext.explain("conv2d", x, w).chosen != name
    assert name not in convext.tune(C.conv2d, x, w).choices[0].milliseconds


def test_what_takes_long_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def seconds(run: Any, algorithm: str, repeats: int, device: str) -> float:
        runs.append(algorithm)
        return 5.0 if algorithm == "naive" else 1.0

    monkeypatch.setattr(tuning, "_seconds", seconds)
    convext.tune(C.conv2d, torch.randn(1, 4, 9, 9), torch.randn(6, 4, 3, 3), rounds=3)
    assert runs.count("naive") == 1
    assert runs.count("direct") == 4


def test_nothing_to_tune() -> None:
    report = convext.tune(torch.nn.ReLU(), _image())
    assert report.choices == ()
    assert report.gain == 1
    assert "no call" in str(report)
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        convext.tune(torch.nn.ReLU(), _image(), rounds=0)


# Files ---------------------------------------------------------------------------------------------------------------


def _tuned_file(path: Path, prefers: Any) -> tuple[Tensor, Tensor]:
    prefers("naive")
    x, w = torch.randn(1, 4, 9, 9), torch.randn(6, 4, 3, 3)
    convext.tune(lambda x: C.max_pool2d(C.conv2d(x, w), 2), x, backward=True)
    convext.save_tuning(path)
    return x, w


def test_saved_and_loaded(tmp_path: Path, prefers: Any) -> None:
    path = tmp_path / "tuning.json"
    x, w = _tuned_file(path, prefers)
    convext.clear_tuning()
    assert not convext.explain("conv2d", x, w).tuned
    report = convext.load_tuning(path)
    assert len(report.choices) == 5
    for direction in ("forward", "backward_input", "backward_weight"):
        explanation = convext.explain("conv2d", x, w, direction=direction)
        assert (explanation.chosen, explanation.tuned) == ("naive", True)
    second = tmp_path / "second.json"
    convext.save_tuning(second)
    assert second.read_text() == path.read_text()


@pytest.mark.parametrize("what", ["cpu", "threads", "instruction set", "convext", "gpu"])
def test_another_machine_is_refused(what: str, tmp_path: Path, prefers: Any) -> None:
    path = tmp_path / "tuning.json"
    x, w = _tuned_file(path, prefers)
    convext.clear_tuning()
    content = json.loads(path.read_text())
    content["sets"][0]["machine"][what] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has no choices for this machine(.|\n)*other"):
        convext.load_tuning(path)
    assert not convext.explain("conv2d", x, w).tuned
    convext.save_tuning(path)  # beside the other machine's
    machines = [s["machine"][what] for s in json.loads(path.read_text())["sets"]]
    assert len(machines) == 2
    assert machines[0] == "other"
    convext.load_tuning(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"convext tuning": 99, "sets": []}', '{"sets": [1]}'])
def test_another_file_is_refused_and_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is not a file of convext\.save_tuning"):
        convext.load_tuning(path)
    with pytest.raises(ValueError, match="is not a file of"):
        convext.save_tuning(path)
    assert path.read_text() == content


def test_a_damaged_file_changes_nothing(tmp_path: Path, prefers: Any) -> None:
    path = tmp_path / "tuning.json"
    x, w = _tuned_file(path, prefers)
    convext.clear_tuning()
    content = json.loads(path.read_text())
    content["sets"][0]["choices"][-1]["chosen"] = "magic"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is damaged: 'magic'"):
        convext.load_tuning(path)
    assert not convext.explain("conv2d", x, w).tuned
