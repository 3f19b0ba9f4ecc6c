"""How strongly places of the input are seen: by gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convext.analysis.example import examples_of, in_eval


@dataclass(frozen=True)
class EffectiveField:
    """How much an output place depends on each input place: see :func:`effective_receptive_field`."""

    weight: Tensor
    """(*places), float64, on the CPU: the mean of |d output / d input|, scaled to sum 1."""
    place: tuple[int, ...]
    """The output place."""

    def _grid(self) -> list[Tensor]:
        axes = [torch.arange(n, dtype=torch.float64) for n in self.weight.shape]
        return list(torch.meshgrid(*axes, indexing="ij"))

    @property
    def centre(self) -> tuple[float, ...]:
        """The centre of the mass, in input places."""
        return tuple((self.weight * at).sum().item() for at in self._grid())

    @property
    def deviation(self) -> tuple[float, ...]:
        """The standard deviation of the mass about its centre per axis, in input places."""
        squares = [(self.weight * (at - c) ** 2).sum().item() for at, c in zip(self._grid(), self.centre, strict=True)]
        return tuple(map(math.sqrt, squares))

    def radius(self, share: float = 0.95) -> float:
        """The smallest Euclidean distance from the centre within which that share of the mass lies."""
        if not 0 < share <= 1:
            raise ValueError(f"radius: share must be above 0 and at most 1, got share={share}")
        squared = torch.zeros_like(self.weight)
        for at, c in zip(self._grid(), self.centre, strict=True):
            squared += (at - c) ** 2
        order = squared.flatten().argsort()
        mass = self.weight.flatten()[order].cumsum(0)
        within = min(int((mass < share * (1 - 1e-12)).sum()), len(order) - 1)
        return math.sqrt(squared.flatten()[order[within]].item())

    @property
    def area(self) -> int:
        """Luo et al.'s size: the number of places with more than 4.55 % of the largest weight (two standard
        deviations of a Gaussian)."""
        return int((self.weight > (1 - 0.9545) * self.weight.max()).sum())

    def __str__(self) -> str:
        deviation = " x ".join(f"{d:.2f}" for d in self.deviation)
        return (
            f"effective field of place {self.place}: standard deviation {deviation}, half of it within "
            f"{self.radius(0.5):.2f}, 95 % within {self.radius():.2f}, {self.area} places above 4.55 % of the peak"
        )


def effective_receptive_field(
    model: Callable[..., Any],
    example: Any,
    *,
    layer: str | None = None,
    place: int | Sequence[int] | None = None,
    samples: int = 8,
    seed: int = 0,
) -> EffectiveField:
    """How strongly an output place depends on each input place, by gradients over random inputs.

    W. Luo, Y. Li, R. Urtasun and R. Zemel, Understanding the effective receptive field in deep convolutional neural
    networks (2016): a gradient of 1 in every channel at one output place and 0 elsewhere is sent back to the input; its
    absolute values, summed over the input's channels, are averaged over ``samples`` inputs drawn from a normal
    distribution with ``seed``. The model runs in eval mode, with the parameters it has; its parameters get no
    gradients.

    ``example``: the input (n, c, *places), of which only the shape, dtype and device are used, or a shape.
    ``layer``: the qualified name of the module whose output is taken; by default the model's own. ``place``: the output
    place, one int per axis; by default the middle one. An output without places (n, classes) is taken whole.

    Raises KeyError for an unknown layer, ValueError for a place outside the output, RuntimeError where the output does
    not depend on the input.
    """
    op = "effective_receptive_field"
    if samples < 1:
        raise ValueError(f"{op}: samples must be at least 1, got samples={samples}")
    (like, *others) = examples_of(op, model, example)
    generator = torch.Generator().manual_seed(seed)
    caught: list[Any] = []
    handle = None
    if layer is not None:
        modules = dict(model.named_modules()) if isinstance(model, torch.nn.Module) else {}
        if layer not in modules:
            raise KeyError(f"{op}: layer must be the name of a module, got {layer!r}, there are {list(modules)}")
        handle = modules[layer].register_forward_hook(lambda _module, _args, result: caught.append(result))
    total = torch.zeros(like.shape[2:], dtype=torch.float64)
    try:
        with in_eval(model), torch.enable_grad():
            for _ in range(samples):
                caught.clear()
                x = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like).requires_grad_()
                output = model(x, *others)
                output = caught[-1] if layer is not None else output
                output = output[0] if isinstance(output, tuple | list) else output
                at = _middle(op, output, place)
                if not output.requires_grad:
                    raise RuntimeError(f"{op}: the output does not depend on the input")
                whole = slice(None)
                index = (whole, whole, *at)
                picked = output[index]
                (gradient,) = torch.autograd.grad(picked.sum(), x, allow_unused=True)
                if gradient is None:
                    raise RuntimeError(f"{op}: the output does not depend on the input")
                total += gradient.double().abs().sum((0, 1)).cpu()
    finally:
        if handle is not None:
            handle.remove()
    mass = total.sum()
    if not mass > 0:
        raise RuntimeError(f"{op}: all gradients are zero: output place {at} does not depend on the input")
    return EffectiveField(total / mass, at)


def _middle(op: str, output: Tensor, place: int | Sequence[int] | None) -> tuple[int, ...]:
    sizes = tuple(output.shape[2:])
    if place is None:
        return tuple(n // 2 for n in sizes)
    at = (place,) * len(sizes) if isinstance(place, int) else tuple(place)
    if len(at) != len(sizes) or not all(0 <= i < n for i, n in zip(at, sizes, strict=True)):
        raise ValueError(f"{op}: place must lie in an output of {sizes} places, got place={at}")
    return at
