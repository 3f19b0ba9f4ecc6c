"""Two networks learn handwritten digits side by side, one of torch.nn's layers and one of convext's: ``make demo``.

A small LeNet is built twice from one seed and trained twice on the same batches of scanned 8x8 digits, which come with
scikit-learn. The two must agree "within the numerics", and that is checked. Both compute the same sums, but in another
order, and so round differently; training amplifies the difference, by flipping a ReLU or a maximum here and there. In
float32 this leaves a digit or two of the final loss in common, in float64 ten and more: so they train in float64.

How far rounding can lead is measured: a third network, torch.nn again, has every parameter moved at random to a
neighbouring number, or left, after every step. What this does to its losses and test outputs is the yardstick. A sum of
K products carries K roundings, which add up like sqrt(K) of them (Higham and Mary, A New Approach to Probabilistic
Rounding Error Analysis, 2019); the longest sum here is the first layer's gradient, over all places of all images of a
batch. So convext's losses and outputs may differ from torch's by sqrt(K) times the yardstick, and no more.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import convext

PACKAGES = {"numpy": "numpy", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}
FIGURE = Path(__file__).resolve().parent.parent / "outputs" / "digits.png"

SEED = 0
EPOCHS = 24
FLOAT32_EPOCHS = 3
"""Trained once more in float32, for the time alone."""
BATCH = 32
LEARNING_RATE, MOMENTUM = 0.05, 0.9
TEST_SHARE = 0.25
LEAST_ACCURACY = 0.97
THREADS = 1
"""The layers are too small for more."""
ROUNDING = torch.finfo(torch.float64).eps / 2


# Data and networks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) with values from 0 to 1 and labels (n,), for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """The 1797 digits scanned for UCI's repository that scikit-learn bundles, split always the same way; float64."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float64).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    parts = train_test_split(images, labels, test_size=TEST_SHARE, random_state=SEED, stratify=digits.target)
    train_images, test_images, train_labels, test_labels = parts
    return Digits(train_images, train_labels, test_images, test_labels)


def lenet(layers: ModuleType, dtype: torch.dtype = torch.float64) -> torch.nn.Sequential:
    """(n, 1, 8, 8) -> (n, 10), with the convolution and pooling layers of ``layers``: torch.nn or convext."""
    torch.manual_seed(SEED)
    return torch.nn.Sequential(
        layers.Conv2d(1, 12, 5, padding=2),
        torch.nn.ReLU(),
        layers.MaxPool2d(2),
        layers.Conv2d(12, 32, 3, padding=1),
        torch.nn.ReLU(),
        layers.AvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 2 * 2, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    ).to(dtype)


def longest_sum(network: torch.nn.Sequential, image: Tensor) -> int:
    """The number of products in the longest sum of a training step: inputs of an output, or places of a weight."""
    longest, x = 0, image[:1]
    for layer in network:
        x = layer(x)
        if isinstance(layer, torch.nn.Conv2d):
            longest = max(longest, layer.weight[0].numel(), layer.weight[:, 0].numel(), BATCH * x[0, 0].numel())
        elif isinstance(layer, torch.nn.Linear):
            longest = max(longest, *layer.weight.shape, BATCH)
    return longest


# Training ----------------------------------------------------------------------------------------------------------


@dataclass
class Learner:
    """A network in training: its mean loss, test accuracy and seconds of every epoch."""

    name: str
    network: torch.nn.Sequential
    nudged: bool = False
    """Move every parameter to a neighbouring number, or not, at random, after every step."""
    epochs: int = EPOCHS
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._optimizer = torch.optim.SGD(self.network.parameters(), LEARNING_RATE, MOMENTUM)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, self.epochs)
        self._noise = torch.Generator().manual_seed(SEED)

    def epoch(self, digits: Digits, order: Tensor) -> None:
        """One pass over the training images in the given order, then the test."""
        start, total = time.perf_counter(), 0.0
        for batch in order.split(BATCH):
            self._optimizer.zero_grad()
            outputs = self.network(digits.train_images[batch])
            loss = torch.nn.functional.cross_entropy(outputs, digits.train_labels[batch])
            loss.backward()
            self._optimizer.step()
            total += loss.item() * len(batch)
            if self.nudged:
                self._nudge()
        self._schedule.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(total / len(order))
        right = self.outputs(digits.test_images).argmax(1) == digits.test_labels
        self.accuracies.append(right.float().mean().item())

    @torch.no_grad()
    def outputs(self, images: Tensor) -> Tensor:
        """(n, 1, 8, 8) -> (n, 10), without gradients."""
        return self.network(images)

    @torch.no_grad()
    def _nudge(self) -> None:
        for parameter in self.network.parameters():
            up_or_down = torch.randint(-1, 2, parameter.shape, generator=self._noise).to(parameter.dtype)
            parameter.copy_(torch.nextafter(parameter, parameter + up_or_down))


def learners(epochs: int = EPOCHS) -> list[Learner]:
    """torch.nn, convext, and torch.nn nudged: three networks with the same parameters."""
    result = [
        Learner("torch.nn", lenet(torch.nn), epochs=epochs),
        Learner("convext", lenet(convext), epochs=epochs),
        Learner("torch, nudged", lenet(torch.nn), nudged=True, epochs=epochs),
    ]
    for other in result[1:]:
        for a, b in zip(result[0].network.parameters(), other.network.parameters(), strict=True):
            assert torch.equal(a, b), "one seed must give the same parameters"
    return result


def train(everyone: list[Learner], digits: Digits, progress: Any = None) -> None:
    """Trains all on the same batches, taking turns epoch by epoch; ``progress`` is a rich.progress.Progress."""
    shuffle = torch.Generator().manual_seed(SEED)
    tasks = [progress.add_task(one.name, total=one.epochs, loss=math.nan) for one in everyone] if progress else []
    for _ in range(everyone[0].epochs):
        order = torch.randperm(len(digits.train_images), generator=shuffle)
        for number, learner in enumerate(everyone):
            learner.epoch(digits, order)
            if progress:
                progress.update(tasks[number], advance=1, loss=learner.losses[-1])


def float32_seconds(digits: Digits) -> list[float]:
    """Seconds per epoch in float32, torch.nn's and convext's: the fastest of a few, in turns."""
    small = Digits(digits.train_images.float(), digits.train_labels, digits.test_images.float(), digits.test_labels)
    pair = [Learner("", lenet(layers, torch.float32), epochs=FLOAT32_EPOCHS) for layers in (torch.nn, convext)]
    train(pair, small)
    return [min(learner.seconds) for learner in pair]


# Agreement ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How far convext's training went from torch.nn's, and how far it may have."""

    factor: float
    """sqrt of the longest sum."""
    loss_differences: list[float]
    """Per epoch, relative to torch.nn's loss."""
    loss_bounds: list[float]
    """Per epoch: factor times the nudged network's largest relative difference so far, and no less than a rounding."""
    output_difference: float
    """The largest, over all test images and classes."""
    output_bound: float
    same_predictions: int
    undecided: int
    """Test images whose two best classes are closer for torch.nn than twice the output bound: either may win."""
    images: int

    def check(self) -> None:
        """Raises AssertionError where the two do not agree within the numerics."""
        pairs = zip(self.loss_differences, self.loss_bounds, strict=True)
        for epoch, (difference, bound) in enumerate(pairs, start=1):
            assert difference <= bound, (
                f"epoch {epoch}: losses differ by {difference:.1e}, at most {bound:.1e} is rounding"
            )
        assert self.output_difference <= self.output_bound, (
            f"test outputs differ by {self.output_difference:.1e}, rounding explains {self.output_bound:.1e}"
        )
        assert self.same_predictions >= self.images - self.undecided, (
            f"{self.images - self.same_predictions} predictions differ, only {self.undecided} are undecided"
        )


def agreement(torchs: Learner, convexts: Learner, nudged: Learner, digits: Digits) -> Agreement:
    """Measures it, after training."""

    def differences(other: Learner) -> list[float]:
        return [abs(a - b) / a for a, b in zip(torchs.losses, other.losses, strict=True)]

    factor = math.sqrt(longest_sum(torchs.network, digits.train_images))
    yardstick = differences(nudged)
    bounds = [factor * max(ROUNDING, *yardstick[: epoch + 1]) for epoch in range(len(yardstick))]
    expected, got, moved = (learner.outputs(digits.test_images) for learner in (torchs, convexts, nudged))
    output_bound = factor * (moved - expected).abs().max().item()
    best, second = expected.topk(2, dim=1).values.unbind(1)
    return Agreement(
        factor=factor,
        loss_differences=differences(convexts),
        loss_bounds=bounds,
        output_difference=(got - expected).abs().max().item(),
        output_bound=output_bound,
        same_predictions=int((got.argmax(1) == expected.argmax(1)).sum()),
        undecided=int((best - second <= 2 * output_bound).sum()),
        images=len(expected),
    )


# What is shown -----------------------------------------------------------------------------------------------------


def explanations(network: torch.nn.Sequential, image: Tensor) -> list[str]:
    """convext.explain for every layer of convext's, at the batch size of training."""
    x, texts = image[:1].expand(BATCH, -1, -1, -1), []
    for number, layer in enumerate(network):
        if isinstance(layer, torch.nn.Conv2d | torch.nn.MaxPool2d | torch.nn.AvgPool2d):
            texts.append(f"({number}) {layer}\n{convext.explain(layer, x)}")
        x = layer(x)
    return texts


def draw(torchs: Learner, convexts: Learner, found: Agreement, digits: Digits, path: Path) -> None:
    """One figure: a digit, the learned kernels, the digit's feature maps, losses and what they differ by."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    image = digits.test_images[:1]
    first, second = convexts.network[0], convexts.network[3]
    with torch.no_grad():
        after_first = convexts.network[:2](image)[0]
        after_second = convexts.network[:5](image)[0]
    kernels = first.weight.detach()[:, 0]
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "figure.dpi": 130})
    figure = plt.figure(figsize=(12.5, 7.8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    picture, kernel_part, first_part, second_part = top.subfigures(1, 4, width_ratios=[0.8, 1.15, 1.15, 2.6])

    guess = convexts.outputs(image).argmax(1).item()
    picture.suptitle(f"A test digit: {digits.test_labels[0]}\nread as {guess}", fontweight="bold")
    axes = picture.subplots(1, 1)
    axes.imshow(image[0, 0].numpy(), cmap="gray_r")
    axes.set_xticks([])
    axes.set_yticks([])

    def tiles(part: Any, title: str, values: Tensor, columns: int, cmap: str, **limits: float) -> None:
        part.suptitle(title, fontweight="bold")
        grid = part.subplots(-(-len(values) // columns), columns, squeeze=False)
        for axes, value in zip(grid.flat, values, strict=False):
            axes.imshow(value.numpy(), cmap=cmap, **limits)
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])

    reach = kernels.abs().max().item()
    size = "x".join(map(str, first.kernel_size))
    tiles(
        kernel_part, f"{len(kernels)} learned {size}\nkernels, layer 1", kernels, 3, "RdBu_r", vmin=-reach, vmax=reach
    )
    tiles(first_part, "Its feature maps\nafter layer 1", after_first, 3, "magma", vmin=0)
    tiles(second_part, f"and after layer 2\n({second.out_channels} maps of 4x4)", after_second, 8, "magma", vmin=0)

    left, right = bottom.subplots(1, 2)
    epochs = range(1, len(torchs.losses) + 1)
    left.semilogy(epochs, torchs.losses, color="#9aa0a6", linewidth=5, label="torch.nn")
    left.semilogy(epochs, convexts.losses, color="#d1495b", linewidth=1.8, label="convext")
    left.set(title="Training loss: one curve over the other", xlabel="epoch", ylabel="cross entropy")
    right.semilogy(epochs, found.loss_bounds, color="#30638e", linestyle="--", label="what rounding may explain")
    right.semilogy(
        epochs, [max(d, ROUNDING) for d in found.loss_differences], color="#d1495b", marker="o", markersize=4,
        label="convext against torch.nn",
    )  # fmt: skip
    right.set(title="How far apart the losses are", xlabel="epoch", ylabel="relative difference, at least a rounding")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="center right")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def missing_packages() -> str | None:
    """One sentence about the optional packages that are not installed, or None."""
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return f"The demo needs {' and '.join(missing)}: pip install {' '.join(missing)}"


def main() -> int:
    problem = missing_packages()
    if problem:
        print(problem, file=sys.stderr)
        return 1
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    console = Console()
    torch.set_num_threads(THREADS)
    digits = load_digits()
    torchs, convexts, nudged = everyone = learners()
    console.print(
        f"{len(digits.train_images)} scanned digits to learn from, {len(digits.test_images)} to be tested on; "
        f"{convext._C.active_isa()} kernels, {THREADS} thread\n"
    )
    for text in explanations(convexts.network, digits.train_images):
        console.print(escape(text), highlight=False)
    console.print()
    loss = TextColumn("loss {task.fields[loss]:.4f}")
    columns = (TextColumn("{task.description:<13}"), BarColumn(), MofNCompleteColumn(), loss, TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        train(everyone, digits, progress)
    float32 = [*float32_seconds(digits), None]

    table = Table(title=f"after {EPOCHS} epochs")
    for title in ("", "final loss", "test accuracy", "ms per epoch", "in float32"):
        table.add_column(title, justify="right" if title else "left")
    for learner, seconds in zip(everyone, float32, strict=True):
        row = (f"{learner.losses[-1]:.12f}", f"{learner.accuracies[-1]:.2%}", f"{1e3 * min(learner.seconds):.0f}")
        last = "" if seconds is None else f"{1e3 * seconds:.0f}"
        table.add_row(learner.name, *row, last, style="dim" if learner.nudged else "")
    console.print(table)

    found = agreement(torchs, convexts, nudged, digits)
    worst = max(range(EPOCHS), key=lambda epoch: found.loss_differences[epoch])
    console.print(
        f"Losses differ by at most {found.loss_differences[worst]:.1e} of their value (epoch {worst + 1}; rounding "
        f"explains up to {found.loss_bounds[worst]:.1e}), test outputs by {found.output_difference:.1e} (up to "
        f"{found.output_bound:.1e}); {found.same_predictions} of {found.images} predictions are the same "
        f"({found.undecided} too close to call).",
        highlight=False,
    )
    draw(torchs, convexts, found, digits, FIGURE)
    console.print(f"kernels, feature maps and losses: {FIGURE}", soft_wrap=True)
    try:
        found.check()
        assert convexts.accuracies[-1] >= LEAST_ACCURACY, (
            f"convext's test accuracy is {convexts.accuracies[-1]:.2%}, expected {LEAST_ACCURACY:.0%}"
        )
    except AssertionError as error:
        console.print(f"[red]Not equal within the numerics: {error}[/red]")
        return 1
    console.print("[green]Equal within the numerics.[/green]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
