"""The receptive field, drawn over the input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from convext.viz.figures import COLOURS, at_rest, new_figure, one_image, saved, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convext.analysis import FieldRow


def _middle(row: FieldRow) -> tuple[int, ...]:
    """The middle place of a row's output, per axis of the input."""
    axes = row.axes or ()
    return tuple(row.output_shape[axes.index(a)] // 2 if a in axes else 0 for a in range(len(row.input_size)))


def receptive_field(
    model: torch.nn.Module,
    image: Tensor,
    layers: Sequence[str] | None = None,
    place: int | Sequence[int] | None = None,
    path: str | Path | None = None,
    *,
    effective: bool = False,
) -> Figure:
    """What an output place sees of an image (c, h, w): a frame over the picture, from
    :func:`convext.analysis.receptive_field`.

    ``layers``: the names of the layers whose places are taken, a frame each; by default the model's output. ``place``:
    the output place, by default the middle one of each layer. A frame that reaches past the image is drawn to its end.
    ``effective``: a second picture, of how much the last layer's place depends on each pixel
    (:func:`convext.analysis.effective_receptive_field`).

    Raises KeyError for an unknown layer, ValueError where the field is unknown or the place sees nothing.
    """
    from convext.analysis import effective_receptive_field
    from convext.analysis import receptive_field as analyse

    x = one_image("receptive_field", image)
    with at_rest(model):
        found = analyse(model, x)
    rows = [found.output] if layers is None else [found[name] for name in layers]
    height, width = x.shape[2:]
    side = 4.6
    figure = new_figure(side * (2 if effective else 1), (0.86 if effective else 1) * side * height / width + 0.7)
    from matplotlib.patches import Rectangle

    panels = figure.subplots(1, 2 if effective else 1, squeeze=False)[0]
    axes = panels[0]
    show_image(axes, x)
    # from large to small, so that none hides another
    windows = []
    for number, row in enumerate(rows):
        seen = row.window(_middle(row) if place is None else place)
        if any(side is None for side in seen):
            raise ValueError(f"receptive_field: the place of {row.name} sees nothing")
        (top, bottom), (left, right) = seen[0], seen[1]  # type: ignore[misc]
        windows.append(((bottom - top + 1) * (right - left + 1), number, row, (top, bottom, left, right)))
    for _, number, row, (top, bottom, left, right) in sorted(windows, key=lambda w: -w[0]):
        size = f"{bottom - top + 1} x {right - left + 1}"
        frame = Rectangle(
            (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, fill=False, linewidth=2,
            edgecolor=COLOURS[number % len(COLOURS)], label=f"{row.name} {row.op}: {size}",
        )  # fmt: skip
        axes.add_patch(frame)
    reach = [edges for *_, edges in windows]
    axes.set_xlim(min(-0.5, *(e[2] - 1.5 for e in reach)), max(width - 0.5, *(e[3] + 1.5 for e in reach)))
    axes.set_ylim(max(height - 0.5, *(e[1] + 1.5 for e in reach)), min(-0.5, *(e[0] - 1.5 for e in reach)))
    axes.set_title("the receptive field of a place", fontsize=10)
    figure.legend(loc="outside lower center", ncols=min(len(rows), 3), frameon=False, fontsize=9)
    if effective:
        row = rows[-1]
        at = _middle(row) if place is None else place
        layer = None if layers is None else layers[-1]
        weight = effective_receptive_field(model, x, layer=layer, place=at).weight
        drawn = panels[1].imshow(weight.numpy(), cmap="magma", vmin=0)
        panels[1].set_xlim(axes.get_xlim())
        panels[1].set_ylim(axes.get_ylim())
        panels[1].set_facecolor("black")
        panels[1].set_xticks([])
        panels[1].set_yticks([])
        panels[1].set_title("how much it depends on each pixel", fontsize=10)
        figure.colorbar(drawn, ax=panels[1], shrink=0.8)
    return saved(figure, path)
