"""The pictures of the examples: scikit-learn's two photographs and its scanned digits, which come with it.

Values are whole numbers, 0 to 255 (digits: 0 to 16), kept in float64: a convolution with a kernel of whole numbers is
then exact, and an example may say "equal" and mean it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
"""Where an example that is run by itself puts its figure."""
FEW_PIXELS = 200
"""Pictures of so many pixels across show them as blocks."""


def require(*packages: str) -> None:
    """Ends the program with one sentence where a package is missing."""
    names = {"sklearn": "scikit-learn", "PIL": "Pillow"}
    missing = [names.get(package, package) for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise SystemExit(f"The examples need {' and '.join(missing)}: pip install {' '.join(missing)}")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For many calls on small pictures: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def photograph(name: str = "china") -> Tensor:
    """``"china"`` (a temple under a sky) or ``"flower"`` (a dahlia): (1, 3, 427, 640), red, green and blue."""
    require("sklearn", "PIL")
    from sklearn.datasets import load_sample_image

    return torch.tensor(load_sample_image(f"{name}.jpg"), dtype=torch.float64).permute(2, 0, 1).unsqueeze(0)


def grey(image: Tensor) -> Tensor:
    """(n, 3, h, w) -> (n, 1, h, w): how bright each pixel looks, rounded to whole numbers again."""
    share = torch.tensor([0.299, 0.587, 0.114], dtype=image.dtype).view(1, 3, 1, 1)
    return (image * share).sum(1, keepdim=True).round()


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 scanned digits (n, 1, 8, 8) and what they are (n,)."""
    require("sklearn")
    from sklearn import datasets

    found = datasets.load_digits()
    return torch.tensor(found.images, dtype=torch.float64).unsqueeze(1), torch.tensor(found.target)


def save(images: Mapping[str, Tensor], path: Path) -> None:
    """Draws images (h, w), or (3, h, w) from 0 to 255, side by side under their titles; nothing without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height, width = next(iter(images.values())).shape[-2:]
    size = (3.2 * len(images), 3.2 * height / width + 0.45)
    figure, grid = pyplot.subplots(1, len(images), figsize=size, layout="constrained", squeeze=False)
    for axes, (title, image) in zip(grid[0], images.items(), strict=True):
        drawn = (image.permute(1, 2, 0) / 255).clamp(0, 1) if image.dim() == 3 else image
        blocks = "nearest" if max(image.shape[-2:]) <= FEW_PIXELS else None
        axes.imshow(drawn.numpy(), cmap="gray", interpolation=blocks)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=66)
    pyplot.close(figure)
