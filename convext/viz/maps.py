"""Learned kernels and feature maps, as grids of small pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convext.viz.figures import at_rest, bare, new_figure, one_image, saved, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def kernels(
    weight: Tensor | torch.nn.Module, path: str | Path | None = None, *, limit: int = 64, channels: int = 8
) -> Figure:
    """The kernels of a layer, or of a weight (k, c, r, s) or (k, c, s): one axes each, red above and blue below zero.

    One input channel: a kernel a picture, in a grid. Three: likewise in colour, zero being grey. More: a row per kernel
    and a column per input channel, the first ``channels`` of them. At most ``limit`` kernels; the title says of how
    many. Raises TypeError where there is no weight, ValueError for other shapes.
    """
    given: Any = getattr(weight, "weight", None) if isinstance(weight, torch.nn.Module) else weight
    if not isinstance(given, Tensor):
        raise TypeError(f"kernels: weight must be a Tensor or a layer that has one, got {type(weight).__name__}")
    if given.dim() not in (3, 4) or given.numel() == 0:
        raise ValueError(f"kernels: weight must be of size (k, c, s) or (k, c, r, s), got {list(given.shape)}")
    planes = given.detach().double().cpu()
    planes = planes.unsqueeze(2) if planes.dim() == 3 else planes
    count, inputs, height, width = planes.shape
    planes = planes[:limit]
    reach = max(planes.abs().max().item(), 1e-300)
    by_channel = inputs not in (1, 3)
    columns = min(inputs, channels) if by_channel else math.ceil(math.sqrt(len(planes) * height / width))
    columns = max(1, min(columns, 16))
    rows = len(planes) if by_channel else math.ceil(len(planes) / columns)
    side = min(0.9, 9 / columns)
    figure = new_figure(max(side * columns + 1.2, 4), max(side * rows * height / width + 0.6, 1.6))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        bare(axes)
        axes.set_axis_off()
    shades: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    drawn = None
    for k, kernel in enumerate(planes):
        for c in range(columns if by_channel else 1):
            axes = grid[k, c] if by_channel else grid.flat[k]
            axes.set_axis_on()
            if inputs == 3:
                axes.imshow((kernel.permute(1, 2, 0) / (2 * reach) + 0.5).numpy())
            else:
                drawn = axes.imshow(kernel[c].numpy(), **shades)
    if drawn is not None:
        figure.colorbar(drawn, ax=grid, shrink=0.8, pad=0.02)
    shown = f"{len(planes)} of {count}" if count > len(planes) else f"{count}"
    of = f", {columns} of {inputs} input channels" if by_channel and columns < inputs else ""
    figure.suptitle(f"{shown} kernels {height} x {width}{of}" if height > 1 else f"{shown} kernels of {width}{of}")
    return saved(figure, path)


def _output_of(model: torch.nn.Module, image: Tensor, layer: str | torch.nn.Module | None) -> tuple[Tensor, str]:
    """What the layer gives for the image, (1, c, h, w), and its name."""
    if layer is None:
        target, name = model, "the output"
    else:
        named = dict(model.named_modules())
        name = layer if isinstance(layer, str) else next((n for n, m in named.items() if m is layer), "")
        if name not in named or name == "":
            raise KeyError(f"feature_maps: no layer {layer!r} in the model, there are {[n for n in named if n]}")
        target = named[name]
    results: list[Any] = []
    hook = target.register_forward_hook(lambda _module, _args, result: results.append(result))
    try:
        with at_rest(model):
            model(image)
    finally:
        hook.remove()
    if not results:
        raise ValueError(f"feature_maps: {name} did not run")
    found = results[0][0] if isinstance(results[0], tuple | list) else results[0]
    if not isinstance(found, Tensor) or found.dim() != 4:
        raise ValueError(f"feature_maps: {name} gives no maps (n, c, h, w)")
    return found, name


def feature_maps(
    model: torch.nn.Module,
    image: Tensor,
    layer: str | torch.nn.Module | None = None,
    path: str | Path | None = None,
    *,
    limit: int = 16,
) -> Figure:
    """An image (c, h, w), and beside it the first ``limit`` maps that a layer (its name, or itself; by default the
    whole model) makes of it: one axes each, all on one scale. The model runs in eval mode.

    Raises KeyError for a layer that is not in the model, ValueError for one that gives no maps (n, c, h, w).
    """
    x = one_image("feature_maps", image)
    found, name = _output_of(model, x, layer)
    maps = found[0].detach().double().cpu()
    shown = maps[:limit]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(3 + 1.25 * columns, max(2.6, 1.25 * rows * maps.shape[1] / maps.shape[2] + 0.7))
    parts: Any = figure.subfigures(1, 2, width_ratios=[2.4, 1.25 * columns + 0.6])
    left, right = parts
    picture = left.subplots()
    show_image(picture, x)
    picture.set_title("the image", fontsize=10)
    grid = right.subplots(rows, columns, squeeze=False)
    shades: dict[str, Any] = {"cmap": "magma", "vmin": shown.min().item(), "vmax": shown.max().item()}
    for number, axes in enumerate(grid.flat):
        bare(axes)
        if number < len(shown):
            drawn = axes.imshow(shown[number].numpy(), **shades)
        else:
            axes.set_axis_off()
    right.colorbar(drawn, ax=grid, shrink=0.8, pad=0.02)
    of = f"{len(shown)} of {len(maps)}" if len(maps) > len(shown) else f"{len(maps)}"
    right.suptitle(f"{name}: {of} maps of {maps.shape[1]} x {maps.shape[2]}", fontsize=10)
    return saved(figure, path)
