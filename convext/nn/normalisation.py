"""Batch normalisation layers, and the Sequential that runs one together with the activation behind it."""

from __future__ import annotations

import copyreg
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from convext import functional

_Activation = tuple[str, float, float]
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], _Activation]] = {
    nn.ReLU: lambda _: ("clamp", 0.0, math.inf),
    nn.ReLU6: lambda _: ("clamp", 0.0, 6.0),
    nn.Hardtanh: lambda m: ("clamp", float(m.min_val), float(m.max_val)),
    nn.LeakyReLU: lambda m: ("leaky_relu", float(m.negative_slope), 0.0),
    nn.SiLU: lambda _: ("silu", 0.0, 0.0),
    nn.Hardswish: lambda _: ("hardswish", 0.0, 0.0),
}


class _BatchNormLayer(nn.modules.batchnorm._BatchNorm):
    """What the batch normalisation layers share. Mixed in before the torch.nn namesake."""

    extras: ClassVar[dict[str, Any]] = {}

    def forward(self, input: Tensor) -> Tensor:
        return self.forward_activated(input, "none", 0.0, 0.0)

    def forward_activated(self, input: Tensor, activation: str, a: float, b: float) -> Tensor:
        """``activation(self(input))``, hooks apart; activations as for :func:`convext.functional.batch_norm`."""
        traced = not isinstance(input, Tensor)  # symbolically: neither checked nor counted
        if not traced:
            self._check_input_dim(input)  # type: ignore[no-untyped-call]
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None and not traced:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average of all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        follows = not self.training or self.track_running_stats
        running_mean, running_var = (self.running_mean, self.running_var) if follows else (None, None)
        training = self.training or (self.running_mean is None and self.running_var is None)
        return functional.batch_norm(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
            activation=activation,
            a=a,
            b=b,
        )


class BatchNorm1d(_BatchNormLayer, nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` with convext's kernels. Shapes: (n, c, w) or (n, c), the same out."""


class BatchNorm2d(_BatchNormLayer, nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` with convext's kernels. Shapes: (n, c, h, w), the same out."""


class BatchNorm3d(_BatchNormLayer, nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` with convext's kernels. Shapes: (n, c, d, h, w), the same out."""


# A batch normalisation and its activation together -------------------------------------------------------------------


def _hooked(module: nn.Module) -> bool:
    """Whether somebody wants to see, or may change, what goes into or comes out of a module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _all_hooked() -> bool:
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def _pairs(modules: list[nn.Module]) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """Each module, and the activation behind it where the two can run as one."""
    skip = False
    for module, following in zip(modules, [*modules[1:], None], strict=True):
        if skip:
            skip = False
            continue
        skip = (
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            and type(following) in _ACTIVATIONS
            and not (_hooked(module) or _hooked(cast(nn.Module, following)))
        )
        yield module, following if skip else None


class FusedSequential(nn.Sequential):
    """:class:`torch.nn.Sequential` that runs each of its batch normalisations together with the activation behind it.

    One pass over memory where there were two, forward as well as backward, and less is kept for the gradient. Modules,
    parameters, indexing and results are Sequential's; where one of the two has a hook, and when they are traced
    symbolically, they run one by one. :func:`convext.convert` turns into it what is a Sequential with such pairs.
    """

    def forward(self, input: Any) -> Any:
        if not isinstance(input, Tensor) or _all_hooked():
            return super().forward(input)  # type: ignore[no-untyped-call]
        for module, activation in _pairs(list(self)):
            if activation is not None and isinstance(module, _BatchNormLayer):
                input = module.forward_activated(input, *_ACTIVATIONS[type(activation)](activation))
            else:
                input = module(input)
                if activation is not None:
                    input = activation(input)
        return input

    @staticmethod
    def serves(module: nn.Module) -> bool:
        """Whether a module is a Sequential, by its forward, in which something is gained."""
        return (
            isinstance(module, nn.Sequential)
            and not isinstance(module, FusedSequential)
            and type(module).forward is nn.Sequential.forward
            and "forward" not in module.__dict__
            and any(activation is not None for _, activation in _pairs(list(module)))
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
