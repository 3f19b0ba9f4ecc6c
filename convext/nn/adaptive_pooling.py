"""Pooling layers with a given output size: torch.nn's, with ``algorithm=``, and global pooling of any dimension."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from convext import functional
from convext.functional.adaptive_pooling import OutputSize


class _AdaptiveAvgLayer(torch.nn.modules.pooling._AdaptiveAvgPoolNd):
    """What the adaptive average pooling layers share. Mixed in before the torch.nn namesake."""

    extras: ClassVar[dict[str, Any]] = {"algorithm": "auto"}
    algorithm: str
    _function: ClassVar[Any]

    def __init__(self, output_size: OutputSize, *, algorithm: str = "auto") -> None:
        sizes: Any = output_size
        super().__init__(sizes)
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        return type(self)._function(input, self.output_size, algorithm=self.algorithm)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.algorithm == "auto" else f"{text}, algorithm={self.algorithm!r}"


class _AdaptiveMaxLayer(torch.nn.modules.pooling._AdaptiveMaxPoolNd):
    """What the adaptive max pooling layers share. Mixed in before the torch.nn namesake."""

    extras: ClassVar[dict[str, Any]] = {"algorithm": "auto"}
    algorithm: str
    _function: ClassVar[Any]

    def __init__(self, output_size: OutputSize, return_indices: bool = False, *, algorithm: str = "auto") -> None:
        sizes: Any = output_size
        super().__init__(sizes, return_indices)
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Any:
        return type(self)._function(input, self.output_size, self.return_indices, algorithm=self.algorithm)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.algorithm == "auto" else f"{text}, algorithm={self.algorithm!r}"


class AdaptiveAvgPool1d(_AdaptiveAvgLayer, torch.nn.AdaptiveAvgPool1d):
    """1-D average pooling to a given output size; :class:`torch.nn.AdaptiveAvgPool1d` with convext's kernels.
    Shapes: (n, c, w) -> (n, c, output_size)."""

    _function = staticmethod(functional.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgLayer, torch.nn.AdaptiveAvgPool2d):
    """2-D average pooling to a given output size; :class:`torch.nn.AdaptiveAvgPool2d` with convext's kernels.
    Shapes: (n, c, h, w) -> (n, c, *output_size)."""

    _function = staticmethod(functional.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgLayer, torch.nn.AdaptiveAvgPool3d):
    """3-D average pooling to a given output size; :class:`torch.nn.AdaptiveAvgPool3d` with convext's kernels.
    Shapes: (n, c, d, h, w) -> (n, c, *output_size)."""

    _function = staticmethod(functional.adaptive_avg_pool3d)


class AdaptiveMaxPool1d(_AdaptiveMaxLayer, torch.nn.AdaptiveMaxPool1d):
    """1-D max pooling to a given output size; :class:`torch.nn.AdaptiveMaxPool1d` with convext's kernels.
    Shapes: (n, c, w) -> (n, c, output_size)."""

    _function = staticmethod(functional.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxLayer, torch.nn.AdaptiveMaxPool2d):
    """2-D max pooling to a given output size; :class:`torch.nn.AdaptiveMaxPool2d` with convext's kernels.
    Shapes: (n, c, h, w) -> (n, c, *output_size)."""

    _function = staticmethod(functional.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxLayer, torch.nn.AdaptiveMaxPool3d):
    """3-D max pooling to a given output size; :class:`torch.nn.AdaptiveMaxPool3d` with convext's kernels.
    Shapes: (n, c, d, h, w) -> (n, c, *output_size)."""

    _function = staticmethod(functional.adaptive_max_pool3d)


class _GlobalPool(torch.nn.Module):
    """What the global pools share."""

    _function: ClassVar[Any]

    def __init__(self, keepdim: bool = True, *, algorithm: str = "auto") -> None:
        super().__init__()
        self.keepdim = keepdim
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        return type(self)._function(input, self.keepdim, algorithm=self.algorithm)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        text = f"keepdim={self.keepdim}"
        return text if self.algorithm == "auto" else f"{text}, algorithm={self.algorithm!r}"


class GlobalAvgPool(_GlobalPool):
    """The mean of each plane, whatever its dimensions (Lin, Chen and Yan, "Network in network", 2014).
    Shapes: (n, c, *places) -> (n, c, 1, ...), or (n, c) with ``keepdim=False``."""

    _function = staticmethod(functional.global_avg_pool)


class GlobalMaxPool(_GlobalPool):
    """The maximum of each plane, whatever its dimensions.
    Shapes: (n, c, *places) -> (n, c, 1, ...), or (n, c) with ``keepdim=False``."""

    _function = staticmethod(functional.global_max_pool)
