"""What all pictures share: a figure without pyplot, its file, and how an image is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RED, BLUE, GREEN, ORANGE, GREY = "#d1495b", "#30638e", "#3f8f5f", "#e09f3e", "#9aa0a6"
COLOURS = (RED, BLUE, ORANGE, GREEN, "#7b4f9d", "#4aa3a2", "#8c5b3f", "#555b61")
DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches that belongs to nobody. Raises ImportError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("convext.viz draws with matplotlib, which is missing: pip install convext[viz]") from None
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def saved(figure: Figure, path: str | Path | None) -> Figure:
    """The figure, written to ``path`` if there is one; folders are made."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def bare(axes: Axes) -> None:
    """Without ticks."""
    axes.set_xticks([])
    axes.set_yticks([])


def one_image(op: str, image: Tensor) -> Tensor:
    """(1, c, h, w) of (h, w), (c, h, w) or (1, c, h, w). Raises ValueError for other shapes."""
    if not isinstance(image, Tensor):
        raise TypeError(f"{op}: image must be a Tensor, got {type(image).__name__}")
    shape = (1,) * (4 - image.dim()) + tuple(image.shape)
    if not 2 <= image.dim() <= 4 or shape[0] != 1:
        raise ValueError(f"{op}: image must be of size (h, w), (c, h, w) or (1, c, h, w), got {list(image.shape)}")
    return image.reshape(shape)


def show_image(axes: Axes, image: Tensor) -> None:
    """image (1, c, h, w): three channels in colour, others as their mean in grey; from the least to the greatest."""
    planes = image[0].detach().double().cpu()
    low, high = planes.min(), planes.max()
    planes = (planes - low) / (high - low if high > low else 1.0)
    if len(planes) == 3:
        axes.imshow(planes.permute(1, 2, 0).numpy())
    else:
        axes.imshow(planes.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
    bare(axes)


@contextmanager
def at_rest(model: torch.nn.Module) -> Iterator[None]:
    """In eval mode and without gradients; afterwards every module is as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
