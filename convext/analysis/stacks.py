"""Small kernels in a stack against a single large one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from convext.analysis.cost import Count, count
from convext.analysis.receptive_field import aligned, by, receptive_field
from convext.arguments import expand
from convext.nn import Conv1d, Conv2d, Conv3d


@dataclass(frozen=True)
class StackComparison:
    """Several small kernels against one large: see :func:`stack_vs_single`."""

    kernel_size: int
    small: int
    layers: int
    """How many small ones."""
    single: Count
    stacked: Count
    single_field: tuple[int, ...]
    """Its receptive field, input places per axis."""
    stacked_field: tuple[int, ...]

    @property
    def same_field(self) -> bool:
        return self.single_field == self.stacked_field

    @property
    def parameter_ratio(self) -> float:
        """How many times as many parameters the single one has."""
        return self.single.parameters / self.stacked.parameters

    @property
    def multiply_add_ratio(self) -> float:
        return self.single.multiply_adds / self.stacked.multiply_adds

    def __str__(self) -> str:
        k, s = ("x".join([str(n)] * len(self.single_field)) for n in (self.kernel_size, self.small))
        cells = [("", "parameters", "multiply-adds", "field")]
        for name, total, seen in (
            (f"one {k}", self.single, self.single_field),
            (f"{self.layers} of {s}", self.stacked, self.stacked_field),
        ):
            cells.append((name, f"{total.parameters:,}", f"{total.multiply_adds:,}", by(seen)))
        cells.append(("ratio", f"{self.parameter_ratio:.2f}", f"{self.multiply_add_ratio:.2f}", ""))
        return aligned(cells, left=(0,))


def stack_vs_single(
    kernel_size: int = 7,
    small: int = 3,
    *,
    channels: int = 64,
    input_size: int | Sequence[int] = 32,
    spatial: int = 2,
    bias: bool = False,
    groups: int = 1,
) -> StackComparison:
    """Parameters and operations of stacked small kernels against one large with the same receptive field.

    n layers of ``small`` see 1 + n (small - 1) places, so n = (kernel_size - 1) / (small - 1) replace one kernel: with
    C channels throughout 27 C^2 parameters (3 of 3x3) for 49 C^2 (Simonyan and Zisserman 2014). All layers have
    ``channels`` inputs and outputs, "same" padding and an input of ``input_size`` places in ``spatial`` dimensions,
    batch 1. Both are built and counted by :func:`count`, their fields are found by
    :func:`convext.analysis.receptive_field`; ``same_field`` says whether they are equal.

    Raises ValueError where n is not a whole number, or for sizes below 1.
    """
    if small < 2 or kernel_size < small:
        raise ValueError(
            f"stack_vs_single: small must be at least 2 and at most kernel_size, got small={small}, "
            f"kernel_size={kernel_size}"
        )
    layers, left = divmod(kernel_size - 1, small - 1)
    if left:
        raise ValueError(
            f"stack_vs_single: kernel_size - 1 must be a multiple of small - 1, got kernel_size={kernel_size}, "
            f"small={small}"
        )
    if spatial not in (1, 2, 3):
        raise ValueError(f"stack_vs_single: spatial must be 1, 2 or 3, got spatial={spatial}")
    kind: Any = (Conv1d, Conv2d, Conv3d)[spatial - 1]
    shape = (1, channels, *expand("stack_vs_single", "input_size", input_size, spatial))
    options: dict[str, Any] = {"padding": "same", "bias": bias, "groups": groups}
    single = torch.nn.Sequential(kind(channels, channels, kernel_size, **options))
    stacked = torch.nn.Sequential(*[kind(channels, channels, small, **options) for _ in range(layers)])
    fields = [receptive_field(model, shape).output.size for model in (single, stacked)]
    return StackComparison(
        kernel_size, small, layers, count(single, shape), count(stacked, shape), fields[0], fields[1]
    )
