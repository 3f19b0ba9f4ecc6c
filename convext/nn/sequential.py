"""The Sequential that runs a layer and the activation behind it as one."""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from convext.activations import MODULES
from convext.nn.conv import Conv1d, Conv2d, Conv3d
from convext.nn.normalisation import BatchNorm1d, BatchNorm2d, BatchNorm3d

_BEHIND_CONVOLUTIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU)  # whose slope the result tells
_BEHIND_NORMS = (*_BEHIND_CONVOLUTIONS, nn.SiLU, nn.Hardswish)
_JOINED: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    **dict.fromkeys((BatchNorm1d, BatchNorm2d, BatchNorm3d), _BEHIND_NORMS),
    **dict.fromkeys((Conv1d, Conv2d, Conv3d), _BEHIND_CONVOLUTIONS),
}
_TO_JOIN = {**{layer.__bases__[-1]: behind for layer, behind in _JOINED.items()}, **_JOINED}
"""Layer, torch.nn's (before it is converted) or convext's -> activations that it runs together with."""


def _watched(module: nn.Module) -> bool:
    """Whether somebody wants to see, or may change, what goes into or comes out of a module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _all_watched() -> bool:
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def _pairs(
    modules: list[nn.Module], layers: dict[type[nn.Module], tuple[type[nn.Module], ...]]
) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """Each module, and the activation behind it where the two run as one."""
    joined = False
    for module, following in zip(modules, [*modules[1:], None], strict=True):
        if joined:
            joined = False
            continue
        joined = (
            following is not None
            and type(following) in layers.get(type(module), ())
            and not (_watched(module) or _watched(following))
        )
        yield module, following if joined else None


class FusedSequential(nn.Sequential):
    """:class:`torch.nn.Sequential` that runs each batch normalisation together with the activation behind it (ReLU,
    ReLU6, Hardtanh, LeakyReLU, SiLU, Hardswish), each convolution with one of the first four.

    One pass over memory where there were two, and of a normalisation less is kept for the gradient. Modules,
    parameters, indexing and results are Sequential's; where one of the two has a hook, and when they are exported or
    traced symbolically, they run one by one. :func:`convext.convert` turns into it a Sequential with such pairs.
    """

    def forward(self, input: Any) -> Any:
        if not isinstance(input, Tensor) or torch.compiler.is_exporting() or _all_watched():
            return super().forward(input)  # type: ignore[no-untyped-call]
        for module, activation in _pairs(list(self), _JOINED):
            if activation is None:
                input = module(input)
            else:
                behind = MODULES[type(activation)](activation)
                input = cast(Any, module).forward_activated(input, behind.name, behind.a, behind.b)
        return input

    @staticmethod
    def serves(module: nn.Module) -> bool:
        """Whether a module is a Sequential, by its forward, in which something is gained."""
        return (
            isinstance(module, nn.Sequential)
            and not isinstance(module, FusedSequential)
            and type(module).forward is nn.Sequential.forward
            and "forward" not in module.__dict__
            and any(activation is not None for _, activation in _pairs(list(module), _TO_JOIN))
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        base = torch_sequential(type(self))
        reduced = super().__reduce_ex__(protocol)
        if base is nn.Sequential:
            return reduced
        return (_rebuild, (base,), *reduced[2:])


_FUSED: dict[type[nn.Sequential], type[FusedSequential]] = {nn.Sequential: FusedSequential}


def fused_sequential(base: type[nn.Sequential]) -> type[FusedSequential]:
    """FusedSequential as a subclass of a subclass of Sequential: what it is besides, it stays."""
    if base not in _FUSED:
        body = {"__module__": __name__, "__doc__": base.__doc__}
        _FUSED[base] = type(f"Fused{base.__name__}", (FusedSequential, base), body)
    return _FUSED[base]


def torch_sequential(fused: type[FusedSequential]) -> type[nn.Sequential]:
    """What :func:`fused_sequential` was made from."""
    return cast(type[nn.Sequential], fused.__bases__[-1])


def _rebuild(base: type[nn.Sequential]) -> Any:
    return copyreg.__newobj__(fused_sequential(base))  # type: ignore[attr-defined]
