"""The sliding window of any geometry, as an animation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convext.arguments import Ints, expand, is_integer
from convext.padding import PADDING_MODES, Padding
from convext.viz.figures import BLUE, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.patches import Rectangle

INSIDE, OUTSIDE, SEEN, UNSEEN, DONE = "#dfe7ef", "#ffffff", "#f2a3ad", "#ffffff", "#c9d8e6"
MOST_FRAMES = 400
GIF_DPI = 80


def _sizes(input_size: Ints, kernel_size: Ints) -> list[int]:
    """The input's places, one or two numbers; an int stands for as many as the kernel has."""
    if is_integer(input_size):
        spatial = 1 if is_integer(kernel_size) else len(kernel_size)  # type: ignore[arg-type]
        sizes = [int(input_size)] * spatial  # type: ignore[arg-type]
    else:
        sizes = list(input_size)  # type: ignore[arg-type]
    if not 1 <= len(sizes) <= 2 or any(n < 1 for n in sizes):
        raise ValueError(f"sliding_window: input_size must be 1 or 2 positive ints, got input_size={input_size!r}")
    return sizes


class _Line:
    """One axis: its padded places, and those that each output sees."""

    def __init__(
        self, size: int, kernel: int, stride: int, pads: Sequence[int], dilation: int, outputs: int, mode: str
    ) -> None:
        from convext.reference import padded_source

        before, after = pads
        padded = range(-before, size + after)
        self.size, self.before, self.outputs = size, before, outputs
        self.windows = [[o * stride - before + t * dilation for t in range(kernel)] for o in range(outputs)]
        # ceil_mode may look past the padding
        self.places = range(-before, max(size + after, *(window[-1] + 1 for window in self.windows)))
        self.sources = {i: padded_source(i, size, mode) if i in padded else None for i in self.places}
        if any(source is not None and not 0 <= source < size for source in self.sources.values()):
            raise RuntimeError(f"sliding_window: {mode} padding of {(before, after)} is too much for {size} places")


def sliding_window(
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    path: str | Path | None = None,
    *,
    ceil_mode: bool = False,
    transposed: bool = False,
    output_padding: Ints = 0,
    fps: int = 3,
) -> FuncAnimation:
    """A kernel on its way over its input, a frame per output, and the outputs that it has filled.

    The geometry is that of a convolution or pooling (``ceil_mode``) of one or two dimensions: ``input_size`` is an int
    (for as many dimensions as ``kernel_size`` has) or one or two; ``padding`` has every form of :mod:`convext.padding`.
    Each place bears its number; a place of padding that of the place it shows, in brackets, or nothing for a zero.
    ``transposed``: a frame per input place, and the window of outputs that it is added to; what lies outside of the
    output is cut off. Returns the animation; saves it as a GIF where a ``path`` is given.

    Raises ValueError for more than two dimensions, an unknown padding_mode, one with ``transposed``, or more than 400
    frames, RuntimeError where the window does not fit.
    """
    from convext.analysis import output_size
    from convext.functional import pool_window, transposed_output_size

    sizes = _sizes(input_size, kernel_size)
    if padding_mode not in PADDING_MODES or (transposed and padding_mode != "zeros"):
        expected = "zeros, for a transposed convolution" if transposed else f"one of {PADDING_MODES}"
        raise ValueError(f"sliding_window: padding_mode must be {expected}, got {padding_mode!r}")
    if transposed:
        spatial = len(sizes)
        kernel, strides, dilations, extra = (
            expand("sliding_window", name, value, spatial)
            for name, value in (
                ("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation),
                ("output_padding", output_padding),
            )
        )  # fmt: skip
        outputs = tuple(sizes)
        sizes, pads = transposed_output_size("sliding_window", outputs, kernel, strides, padding, extra, dilations)
    else:
        kernel, strides, pads, dilations = pool_window("sliding_window", sizes, kernel_size, stride, padding, dilation)
        outputs = output_size(sizes, kernel, strides, padding, dilations, ceil_mode=ceil_mode)
    if math.prod(outputs) > MOST_FRAMES:
        raise ValueError(f"sliding_window: at most {MOST_FRAMES} frames are drawn, got {outputs}")
    lines = [
        _Line(sizes[i], kernel[i], strides[i], pads[2 * i : 2 * i + 2], dilations[i], outputs[i], padding_mode)
        for i in range(len(sizes))
    ]
    if len(lines) == 1:
        lines.insert(0, _Line(1, 1, 1, (0, 0), 1, 1, "zeros"))
    title = _title(kernel, strides, pads, dilations, padding_mode)
    made = " x ".join(map(str, sizes if transposed else outputs))
    title = f"transposed, {title}: {made} outputs" if transposed else f"{title}: {made} outputs"
    return _animate(lines[0], lines[1], title, ("output", "input") if transposed else ("input", "output"), path, fps)


def _title(
    kernel: Sequence[int], stride: Sequence[int], pads: Sequence[int], dilation: Sequence[int], mode: str
) -> str:
    def by(values: Sequence[Any]) -> str:
        return str(values[0]) if len(set(values)) == 1 else " x ".join(map(str, values))

    parts = [f"kernel {by(kernel)}", f"stride {by(stride)}"]
    if any(pads):
        pairs = [f"({b}, {a})" if b != a else str(b) for b, a in zip(pads[::2], pads[1::2], strict=True)]
        parts.append(f"padding {by(pairs)}" + ("" if mode == "zeros" else f" {mode}"))
    if any(d != 1 for d in dilation):
        parts.append(f"dilation {by(dilation)}")
    return ", ".join(parts)


def _animate(
    rows: _Line, columns: _Line, title: str, names: tuple[str, str], path: str | Path | None, fps: int
) -> FuncAnimation:
    """``names``: of the grid that the window moves over, and of the one with a place per frame."""
    cell = min(0.42, 5.5 / (len(columns.places) + columns.outputs), 4.2 / len(rows.places))
    gap = 1.6
    width, height = len(columns.places) + gap + columns.outputs, max(len(rows.places), rows.outputs)
    figure = new_figure(max(cell * width + 0.4, 4.6), cell * (height + 0.6) + 0.85)
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.patches import Rectangle

    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-0.1, width + 0.1)
    axes.set_ylim(height + 0.1, -0.7)
    axes.set_title(title, fontsize=9)

    widest = len(f"({rows.size * columns.size - 1})")
    font = min(9.0, 72 * cell / (0.62 * widest))
    inputs: dict[tuple[int, int], Rectangle] = {}
    for i, j in itertools.product(rows.places, columns.places):
        source = (rows.sources[i], columns.sources[j])
        inside = 0 <= i < rows.size and 0 <= j < columns.size
        at = (j + columns.before, i + rows.before)
        patch = Rectangle(at, 1, 1, facecolor=INSIDE if inside else OUTSIDE, edgecolor="#8a95a1", linewidth=0.7)
        patch.set_linestyle("-" if inside else ":")
        axes.add_patch(patch)
        inputs[i, j] = patch
        if None not in source:
            number = source[0] * columns.size + source[1]  # type: ignore[operator]
            text = f"{number}" if inside else f"({number})"
            colour = "black" if inside else "#7a838c"
            axes.text(at[0] + 0.5, at[1] + 0.5, text, ha="center", va="center", fontsize=font, color=colour)
    left, top = len(columns.places) + gap, (height - rows.outputs) / 2
    results: dict[tuple[int, int], Rectangle] = {}
    for p, q in itertools.product(range(rows.outputs), range(columns.outputs)):
        patch = Rectangle((left + q, top + p), 1, 1, facecolor=UNSEEN, edgecolor="#8a95a1", linewidth=0.7)
        axes.add_patch(patch)
        results[p, q] = patch
    for name, x, y in ((names[0], len(columns.places) / 2, 0.0), (names[1], left + columns.outputs / 2, top)):
        axes.text(x, y - 0.12, name, ha="center", va="bottom", fontsize=8, color="#555b61")
    order = list(itertools.product(range(rows.outputs), range(columns.outputs)))
    coloured: list[Any] = []
    usual = {at: patch.get_facecolor() for at, patch in inputs.items()}
    frame = Rectangle((0, 0), 1, 1, fill=False, edgecolor=RED, linewidth=2)
    axes.add_patch(frame)

    def draw(number: int) -> list[Any]:
        p, q = order[number]
        for at in coloured:
            inputs[at].set_facecolor(usual[at])
        coloured[:] = itertools.product(rows.windows[p], columns.windows[q])
        for at in coloured:
            inputs[at].set_facecolor(SEEN)
        for before, at in enumerate(order):
            results[at].set_facecolor(RED if before == number else DONE if before < number else UNSEEN)
            results[at].set_edgecolor(BLUE if before <= number else "#8a95a1")
        (i, j), (k, m) = coloured[0], coloured[-1]
        frame.set_bounds(j + columns.before, i + rows.before, m - j + 1, k - i + 1)
        return [*inputs.values(), *results.values(), frame]

    draw(0)
    animation = FuncAnimation(figure, draw, frames=len(order), interval=1000 / fps, blit=False)
    animation._draw_was_started = True  # type: ignore[attr-defined]  # an animation that nobody plays is no mistake
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        animation.save(path, writer=PillowWriter(fps=fps), dpi=GIF_DPI)
    return animation
