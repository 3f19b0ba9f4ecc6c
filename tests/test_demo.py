"""The demo, shortened: both networks learn, agree, and a wrong layer would be noticed."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import convext
from examples import digits as demo

for package in ("sklearn", "matplotlib"):
    pytest.importorskip(package, reason=f"the demo needs {package}")

EPOCHS = 5


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(demo.THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> demo.Digits:
    return demo.load_digits()


@pytest.fixture(scope="module")
def trained(data: demo.Digits) -> list[demo.Learner]:
    everyone = demo.learners(EPOCHS)
    demo.train(everyone, data)
    return everyone


def test_digits_are_the_real_ones(data: demo.Digits) -> None:
    assert len(data.train_images) + len(data.test_images) == 1797
    assert data.train_images.shape[1:] == (1, 8, 8)
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1
    assert sorted(data.test_labels.unique().tolist()) == list(range(10))


def test_the_networks_differ_in_their_layers_only() -> None:
    ours, theirs = demo.lenet(convext), demo.lenet(torch.nn)
    assert [type(layer).__module__.split(".")[0] for layer in ours].count("convext") == 4
    assert not any(type(layer).__module__.startswith("convext") for layer in theirs)
    ours.load_state_dict(theirs.state_dict())
    assert str(ours) == str(theirs)


def test_longest_sum() -> None:
    image = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    assert demo.longest_sum(demo.lenet(torch.nn), image) == demo.BATCH * 8 * 8


def test_they_learn_and_agree(trained: list[demo.Learner], data: demo.Digits) -> None:
    torchs, convexts, _nudged = trained
    assert convexts.losses[-1] < 0.5 * convexts.losses[0]
    found = demo.agreement(*trained, data)
    found.check()
    assert found.same_predictions >= found.images - found.undecided
    assert convexts.accuracies[-1] == pytest.approx(torchs.accuracies[-1], abs=found.undecided / found.images)


def test_nudging_moves_by_one_unit_in_the_last_place() -> None:
    learner = demo.Learner("", demo.lenet(torch.nn), nudged=True)
    before = [p.detach().clone() for p in learner.network.parameters()]
    learner._nudge()
    moved = 0
    for old, new in zip(before, learner.network.parameters(), strict=True):
        up, down = torch.nextafter(old, old + 1), torch.nextafter(old, old - 1)
        assert ((new == old) | (new == up) | (new == down)).all()
        moved += int((new != old).sum())
    assert moved > 0


class SlightlyWrong(convext.Conv2d):
    """Forgets one product of each sum over the kernel, if it is a small one."""

    def forward(self, input: Tensor) -> Tensor:
        mask = torch.ones_like(self.weight)
        mask.view(-1)[self.weight.detach().abs().argmin()] = 0
        return convext.functional.conv2d(input, self.weight * mask, self.bias, self.stride, self.padding)


def test_a_wrong_layer_is_noticed(trained: list[demo.Learner], data: demo.Digits) -> None:
    layers = types.SimpleNamespace(Conv2d=SlightlyWrong, MaxPool2d=convext.MaxPool2d, AvgPool2d=convext.AvgPool2d)
    wrong = demo.Learner("wrong", demo.lenet(layers), epochs=EPOCHS)  # type: ignore[arg-type]
    demo.train([wrong], data)
    torchs, _, nudged = trained
    with pytest.raises(AssertionError, match="losses differ"):
        demo.agreement(torchs, wrong, nudged, data).check()


def test_explanations_name_an_algorithm_per_layer(data: demo.Digits) -> None:
    texts = demo.explanations(demo.lenet(convext), data.test_images)
    assert len(texts) == 4
    for text, op in zip(texts, ("conv2d", "max_pool2d", "conv2d", "avg_pool2d"), strict=True):
        assert any(f"forward: {name}" in text for name in convext.algorithms(op))


def test_figure(trained: list[demo.Learner], data: demo.Digits, tmp_path: Path) -> None:
    torchs, convexts, nudged = trained
    path = tmp_path / "new" / "digits.png"
    demo.draw(torchs, convexts, demo.agreement(torchs, convexts, nudged, data), data, path)
    from matplotlib import image

    height, width, _ = image.imread(path).shape
    assert width > height > 500


def test_a_missing_package_gives_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.missing_packages() is None or "pip install" in demo.missing_packages()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("sklearn", "rich") else find(name))
    assert demo.main() == 1
    assert capsys.readouterr().err == "The demo needs scikit-learn and rich: pip install scikit-learn rich\n"
