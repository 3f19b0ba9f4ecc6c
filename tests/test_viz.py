"""convext.viz: each picture has what it was given in it, and is saved where it was told to."""

from __future__ import annotations

import ast
import builtins
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import convext
from convext import viz
from convext.analysis import effective_receptive_field, receptive_field

pytest.importorskip("matplotlib", reason="convext.viz needs matplotlib")

import numpy as np  # matplotlib needs it
from matplotlib import image as images
from PIL import Image


def images_in(figure: Any) -> list[np.ndarray]:
    """The data of every picture drawn, axes by axes."""
    return [np.asarray(drawn.get_array()) for axes in figure.get_axes() for drawn in axes.get_images()]


def is_picture(path: Path) -> bool:
    height, width, _ = images.imread(path).shape
    return height > 50 and width > 50


def small_model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        convext.Conv2d(3, 4, 5, stride=2, padding=2), convext.MaxPool2d(2), convext.Conv2d(4, 6, 3, padding=1)
    )


# Kernels and maps ----------------------------------------------------------------------------------------------------


def test_kernels_of_one_channel(tmp_path: Path) -> None:
    layer = convext.Conv2d(1, 6, 3)
    path = tmp_path / "new" / "kernels.png"
    figure = viz.kernels(layer, path)
    drawn = images_in(figure)[:6]
    for kernel, shown in zip(layer.weight.detach().double().numpy(), drawn, strict=True):
        np.testing.assert_array_equal(kernel[0], shown)
    assert "6 kernels 3 x 3" in figure.get_suptitle()
    assert is_picture(path)


def test_kernels_share_a_scale_about_zero() -> None:
    weight = torch.tensor([[[[-3.0, 1.0]]], [[[0.5, 2.0]]]])
    figure = viz.kernels(weight)
    limits = {drawn.get_clim() for axes in figure.get_axes() for drawn in axes.get_images()}
    assert limits == {(-3.0, 3.0)}


def test_kernels_of_three_channels_are_in_colour() -> None:
    weight = torch.randn(5, 3, 4, 4)
    drawn = images_in(viz.kernels(weight))
    assert len(drawn) == 5
    reach = weight.abs().max().item()
    expected = weight[2].permute(1, 2, 0).double().numpy() / (2 * reach) + 0.5
    np.testing.assert_allclose(drawn[2], expected, atol=1e-7)


def test_kernels_of_many_channels_are_rows_and_columns() -> None:
    weight = torch.randn(9, 12, 3, 3)
    figure = viz.kernels(weight, limit=4, channels=5)
    drawn = images_in(figure)[: 4 * 5]
    np.testing.assert_array_equal(drawn[5 + 2], weight[1, 2].double().numpy())
    assert figure.get_suptitle() == "4 of 9 kernels 3 x 3, 5 of 12 input channels"


def test_kernels_of_one_dimension() -> None:
    layer = convext.Conv1d(1, 3, 7)
    drawn = images_in(viz.kernels(layer))
    np.testing.assert_array_equal(drawn[1], layer.weight[1].detach().double().numpy())


@pytest.mark.parametrize(
    ("weight", "error", "text"),
    [
        (torch.nn.ReLU(), TypeError, "weight must be a Tensor or a layer that has one, got ReLU"),
        (convext.Conv3d(1, 2, 3), ValueError, r"got \[2, 1, 3, 3, 3\]"),
        (torch.zeros(3, 3), ValueError, r"got \[3, 3\]"),
    ],
)
def test_kernels_refuse(weight: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        viz.kernels(weight)


def test_feature_maps(tmp_path: Path) -> None:
    model, x = small_model(), torch.randn(1, 3, 20, 24)
    model.train()
    path = tmp_path / "maps.png"
    figure = viz.feature_maps(model, x, "1", path, limit=3)
    maps = model[:2](x)[0].detach().double().numpy()
    drawn = images_in(figure)
    assert drawn[0].shape == (20, 24, 3)
    for shown, expected in zip(drawn[1:4], maps, strict=False):
        np.testing.assert_array_equal(shown, expected)
    assert figure.subfigs[1].get_suptitle() == "1: 3 of 4 maps of 5 x 6"
    assert is_picture(path)
    assert model.training, "the model is left as it was"
    assert not any(module._forward_hooks for module in model.modules())


def test_feature_maps_of_the_output_and_of_a_layer_itself() -> None:
    model, x = small_model(), torch.randn(3, 20, 24)
    assert len(images_in(viz.feature_maps(model, x))) >= 1 + 6
    named, itself = (images_in(viz.feature_maps(model, x, layer)) for layer in ("0", model[0]))
    for a, b in zip(named, itself, strict=True):
        np.testing.assert_array_equal(a, b)


def test_feature_maps_refuse() -> None:
    model = torch.nn.Sequential(convext.Conv2d(1, 2, 3), torch.nn.Flatten())
    with pytest.raises(KeyError, match="no layer 'conv'"):
        viz.feature_maps(model, torch.zeros(1, 8, 8), "conv")
    with pytest.raises(ValueError, match="the output gives no maps"):
        viz.feature_maps(model, torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"image must be of size .* got \[2, 1, 8, 8\]"):
        viz.feature_maps(model, torch.zeros(2, 1, 8, 8))


# Receptive field and window ------------------------------------------------------------------------------------------


def frames_of(axes: Any) -> dict[str, tuple[float, float, float, float]]:
    return {patch.get_label(): patch.get_bbox().bounds for patch in axes.patches}


def test_receptive_field_is_where_the_analysis_says(tmp_path: Path) -> None:
    model, x = small_model(), torch.randn(3, 40, 48)
    path = tmp_path / "field.png"
    figure = viz.receptive_field(model, x, path=path)
    row = receptive_field(model, (1, 3, 40, 48)).output
    (top, bottom), (left, right) = row.window((5, 6))
    size = f"{bottom - top + 1} x {right - left + 1}"
    assert frames_of(figure.get_axes()[0]) == {
        f"{row.name} {row.op}: {size}": (left - 0.5, top - 0.5, right - left + 1, bottom - top + 1)
    }
    assert is_picture(path)


def test_receptive_field_of_layers_and_a_place_at_the_rim() -> None:
    model, x = small_model(), torch.randn(3, 40, 48)
    figure = viz.receptive_field(model, x, layers=("0", "2"), place=0)
    axes = figure.get_axes()[0]
    found = frames_of(axes)
    assert {label.split(":")[0] for label in found} == {"0 Conv2d", "2 Conv2d"}
    for left, top, width, height in found.values():
        assert axes.get_xlim()[0] <= left
        assert left + width <= axes.get_xlim()[1]
        assert axes.get_ylim()[1] <= top, "nothing is cut off"
        assert top + height <= axes.get_ylim()[0]
    assert min(bounds[0] for bounds in found.values()) < -0.5, "it reaches into the padding"


def test_effective_receptive_field_is_drawn_beside() -> None:
    model, x = small_model(), torch.randn(3, 24, 24)
    figure = viz.receptive_field(model, x, effective=True)
    expected = effective_receptive_field(model, (1, 3, 24, 24)).weight
    np.testing.assert_allclose(images_in(figure)[1], expected.numpy(), rtol=1e-6)


def test_receptive_field_refuses_an_unknown_layer() -> None:
    with pytest.raises(KeyError, match="no row named 'conv'"):
        viz.receptive_field(small_model(), torch.zeros(3, 16, 16), layers=["conv"])


GEOMETRIES: tuple[dict[str, Any], ...] = (
    {"input_size": (5, 6), "kernel_size": (3, 3)},
    {"input_size": (5, 5), "kernel_size": 3, "stride": 2, "padding": 1},
    {"input_size": 5, "kernel_size": (2, 3), "dilation": 2, "padding": ((0, 1), (2, 0)), "padding_mode": "replicate"},
    {"input_size": 7, "kernel_size": 3, "stride": 2, "padding": "same"},
)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_sliding_window_has_a_frame_per_output(geometry: dict[str, Any]) -> None:
    from convext.analysis import output_size

    animation = viz.sliding_window(**geometry)
    size = geometry["input_size"]
    spatial = len(size) if isinstance(size, tuple) else len(geometry["kernel_size"]) if size == 5 else 1
    sizes = size if isinstance(size, tuple) else (size,) * spatial
    arguments = {k: v for k, v in geometry.items() if k not in ("input_size", "padding_mode")}
    arguments["kernel_size"] = geometry["kernel_size"]
    if isinstance(arguments["kernel_size"], int) and spatial == 2:
        arguments["kernel_size"] = (arguments["kernel_size"],) * 2
    expected = output_size(sizes, **arguments)
    assert len(list(animation.new_frame_seq())) == math.prod(expected)
    title = animation._fig.axes[0].get_title()
    assert title.endswith(f": {' x '.join(map(str, expected))} outputs")


def test_sliding_window_marks_what_an_output_sees() -> None:
    from matplotlib.colors import to_hex

    from convext.viz.window import SEEN

    animation = viz.sliding_window((5, 5), (3, 3), stride=2, padding=1, dilation=2, padding_mode="circular")
    axes = animation._fig.axes[0]
    for number, (p, q) in enumerate((p, q) for p in range(2) for q in range(2)):
        animation._func(number)
        seen = {
            (patch.get_y() - 1, patch.get_x() - 1) for patch in axes.patches if to_hex(patch.get_facecolor()) == SEEN
        }
        assert seen == {(2 * p - 1 + 2 * r, 2 * q - 1 + 2 * s) for r in range(3) for s in range(3)}
    shown = {(text.get_position()[1] - 1.5, text.get_position()[0] - 1.5): text.get_text() for text in axes.texts}
    assert {"input", "output"} < set(shown.values())
    assert shown[0, 0] == "0"
    assert shown[2, 3] == "13"
    assert shown[-1, 2] == "(22)", "the ring's far end"
    assert shown[5, -1] == "(4)"


def seen_in(animation: Any, number: int) -> set[tuple[float, float]]:
    """Row and column, in the drawing, of what is marked in a frame."""
    from matplotlib.colors import to_hex

    from convext.viz.window import SEEN

    animation._func(number)
    patches = animation._fig.axes[0].patches
    return {(patch.get_y(), patch.get_x()) for patch in patches if to_hex(patch.get_facecolor()) == SEEN}


def test_sliding_window_past_the_padding() -> None:
    animation = viz.sliding_window(8, 3, stride=2, ceil_mode=True)
    assert animation._fig.axes[0].get_title().endswith(": 4 outputs")
    assert seen_in(animation, 3) == {(0, 6), (0, 7), (0, 8)}


def test_sliding_window_of_a_transposed_convolution() -> None:
    animation = viz.sliding_window((3, 3), (3, 3), stride=2, padding=1, transposed=True, output_padding=1)
    title = animation._fig.axes[0].get_title()
    assert title == "transposed, kernel 3, stride 2, padding 1: 6 x 6 outputs"
    assert len(list(animation.new_frame_seq())) == 9
    # place (1, 2) is added to rows 1 to 3, columns 3 to 5, drawn one further on: the padding is cut off
    assert seen_in(animation, 5) == {(2 + r, 4 + s) for r in range(3) for s in range(3)}


def test_sliding_window_refuses_padding_that_mirrors_too_far() -> None:
    with pytest.raises(RuntimeError, match="reflect padding of"):
        viz.sliding_window(3, 3, padding=3, padding_mode="reflect")


def test_sliding_window_is_saved_as_a_gif(tmp_path: Path) -> None:
    path = tmp_path / "new" / "window.gif"
    viz.sliding_window((4, 4), (3, 3), path=path, fps=4)
    with Image.open(path) as animation:
        assert animation.n_frames == 4
        assert animation.info["duration"] == 250
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((4, 4, 4), 3), "input_size must be 1 or 2 positive ints"),
        (((40, 40), 3), "at most 400 frames are drawn"),
        (((4, 4), 3, 1, 0, 1, "mirror"), "padding_mode must be one of"),
        (((0, 4), 3), "input_size must be 1 or 2 positive ints"),
    ],
)
def test_sliding_window_refuses(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        viz.sliding_window(*arguments)


# Costs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def summary() -> Any:
    model = torch.nn.Sequential(
        convext.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), convext.MaxPool2d(2), convext.Conv2d(8, 16, 1)
    )
    return convext.summary(model, (1, 3, 16, 16), budget=0.05)


def test_cost_bars(summary: Any, tmp_path: Path) -> None:
    path = tmp_path / "cost.png"
    figure = viz.cost_bars(summary, path=path)
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in figure.get_axes()]
    assert titles == ["parameters", "multiply-adds", "bytes moved", "milliseconds"]
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.get_axes()]
    assert widths[0] == [row.parameters for row in summary.rows]
    assert widths[1] == [row.multiply_adds for row in summary.rows]
    assert widths[2] == [row.bytes_moved for row in summary.rows]
    assert widths[3] == pytest.approx([row.milliseconds for row in summary.rows])
    labels = [label.get_text() for label in figure.get_axes()[0].get_yticklabels()]
    assert labels == ["0 Conv2d", "1 ReLU", "2 MaxPool2d", "3 Conv2d"]
    assert is_picture(path)


def test_cost_bars_of_a_model_without_measuring() -> None:
    figure = viz.cost_bars(convext.Conv2d(3, 8, 3), (1, 3, 9, 9), measure=False)
    assert len(figure.get_axes()) == 3
    with pytest.raises(TypeError, match="cost_bars: a model needs an example"):
        viz.cost_bars(convext.Conv2d(3, 8, 3))
    with pytest.raises(ValueError, match="no layer of the model costs anything"):
        viz.cost_bars(torch.nn.Sequential(torch.nn.Flatten()), (1, 3, 9, 9), measure=False)


def test_roofline(summary: Any, tmp_path: Path) -> None:
    path = tmp_path / "roofline.png"
    figure = viz.roofline(summary, path=path)
    axes = figure.get_axes()[0]
    points = sorted(tuple(point) for drawn in axes.collections for point in drawn.get_offsets())
    rows = [row for row in summary.rows if row.multiply_adds]
    expected = sorted((row.intensity, 2e-6 * row.multiply_adds / row.milliseconds) for row in rows)
    np.testing.assert_allclose(points, expected)
    peak, copies = summary.machine.gflops, summary.machine.copy_gbs
    roof = axes.lines[0].get_xydata()
    assert roof[1:, 1].tolist() == [peak, peak]
    assert roof[0, 1] / roof[0, 0] == pytest.approx(copies[max(copies)])
    assert roof[1, 0] == pytest.approx(peak / copies[max(copies)])
    assert is_picture(path)


def test_roofline_refuses_what_was_not_measured() -> None:
    unmeasured = convext.summary(convext.Conv2d(3, 8, 3), (1, 3, 9, 9), measure=False)
    with pytest.raises(ValueError, match="must have been measured"):
        viz.roofline(unmeasured)


# Without matplotlib --------------------------------------------------------------------------------------------------


def test_without_matplotlib_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install convext\[viz\]"):
        viz.kernels(torch.zeros(1, 1, 3, 3))
    with pytest.raises(ImportError, match=r"pip install convext\[viz\]"):
        viz.receptive_field(small_model(), torch.zeros(3, 16, 16))
    with pytest.raises(ImportError, match=r"pip install convext\[viz\]"):
        viz.sliding_window(5, 3)


def test_nothing_is_imported_before_something_is_drawn() -> None:
    for path in Path(viz.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            assert not any(str(name).startswith("matplotlib") for name in names), path.name
