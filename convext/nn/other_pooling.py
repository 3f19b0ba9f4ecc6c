"""Power-average, k-max and fractional max pooling layers, and max unpooling: torch.nn's where it has them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from convext import functional
from convext.arguments import Ints, is_integer
from convext.padding import Padding, is_per_side


class _LPPoolLayer(torch.nn.modules.pooling._LPPoolNd):
    """What the power-average pooling layers share. Mixed in before the torch.nn namesake."""

    padding: Padding
    dilation: Ints
    extras: ClassVar[dict[str, Any]] = {"algorithm": "auto", "padding": 0, "dilation": 1}
    algorithm: str
    _function: ClassVar[Any]

    def __init__(
        self,
        norm_type: float,
        kernel_size: Ints,
        stride: Ints | None = None,
        ceil_mode: bool = False,
        *,
        padding: Padding = 0,
        dilation: Ints = 1,
        algorithm: str = "auto",
    ) -> None:
        arguments: tuple[Any, ...] = (norm_type, kernel_size, stride, ceil_mode)
        super().__init__(*arguments)
        self.padding = padding
        self.dilation = dilation
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        return type(self)._function(  # type: ignore[no-any-return]
            input,
            float(self.norm_type),
            self.kernel_size,
            self.stride,
            self.ceil_mode,
            padding=self.padding,
            dilation=self.dilation,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.padding != 0:
            text += f", padding={self.padding!r}"
        if self.dilation != 1:
            text += f", dilation={self.dilation}"
        return text if self.algorithm == "auto" else f"{text}, algorithm={self.algorithm!r}"


class LPPool1d(_LPPoolLayer, torch.nn.LPPool1d):
    """1-D power-average pooling layer; :class:`torch.nn.LPPool1d` with convext's kernels, ``padding`` and
    ``dilation``. Shapes: (n, c, w) -> (n, c, q)."""

    _function = staticmethod(functional.lp_pool1d)


class LPPool2d(_LPPoolLayer, torch.nn.LPPool2d):
    """2-D power-average pooling layer; :class:`torch.nn.LPPool2d` with convext's kernels, ``padding`` and
    ``dilation``. Shapes: (n, c, h, w) -> (n, c, p, q)."""

    _function = staticmethod(functional.lp_pool2d)


class LPPool3d(_LPPoolLayer, torch.nn.LPPool3d):
    """3-D power-average pooling layer; :class:`torch.nn.LPPool3d` with convext's kernels, ``padding`` and
    ``dilation``. Shapes: (n, c, d, h, w) -> (n, c, o, p, q)."""

    _function = staticmethod(functional.lp_pool3d)


def _check_k(layer: str, k: Any) -> None:
    if not is_integer(k):
        raise TypeError(f"{layer}: k must be an int, got k={k!r} ({type(k).__name__})")
    if k < 1:
        raise ValueError(f"{layer}: k must be at least 1, got k={k}")


class KMaxPool1d(torch.nn.Module):
    """The k greatest along a dimension, in their original order (Kalchbrenner, Grefenstette and Blunsom, 2014). Of
    equal numbers the first are taken; NaN is above all. Shapes: ``dim`` of the input shrinks to k."""

    def __init__(self, k: int, dim: int = -1, return_indices: bool = False) -> None:
        super().__init__()
        _check_k("KMaxPool1d", k)
        self.k = k
        self.dim = dim
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        return functional.k_max_pool1d(input, self.k, self.dim, self.return_indices)

    def extra_repr(self) -> str:
        return f"k={self.k}, dim={self.dim}"


class KMaxPool(torch.nn.Module):
    """The k greatest of each plane, in the order of their places. Shapes: (n, c, *places) -> (n, c, k)."""

    def __init__(self, k: int, return_indices: bool = False) -> None:
        super().__init__()
        _check_k("KMaxPool", k)
        self.k = k
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        return functional.k_max_pool(input, self.k, self.return_indices)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class _MaxUnpoolLayer(torch.nn.modules.pooling._MaxUnpoolNd):
    """What the max unpooling layers share. Mixed in before the torch.nn namesake."""

    kernel_size: Any
    stride: Any
    padding: Any
    extras: ClassVar[dict[str, Any]] = {}
    _function: ClassVar[Any]

    def __init__(self, kernel_size: Ints, stride: Ints | None = None, padding: Padding = 0) -> None:
        beyond = isinstance(padding, str) or is_per_side(padding)
        numbers: Any = 0 if beyond else padding
        super().__init__(kernel_size, stride, numbers)
        if beyond:
            self.padding = padding

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        return type(self)._function(  # type: ignore[no-any-return]
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )


class MaxUnpool1d(_MaxUnpoolLayer, torch.nn.MaxUnpool1d):
    """1-D max unpooling layer; :class:`torch.nn.MaxUnpool1d` with convext's kernel: (n, c, q) -> (n, c, w)."""

    _function = staticmethod(functional.max_unpool1d)


class MaxUnpool2d(_MaxUnpoolLayer, torch.nn.MaxUnpool2d):
    """2-D max unpooling layer; :class:`torch.nn.MaxUnpool2d` with convext's kernel: (n, c, p, q) -> (n, c, h, w)."""

    _function = staticmethod(functional.max_unpool2d)


class MaxUnpool3d(_MaxUnpoolLayer, torch.nn.MaxUnpool3d):
    """3-D max unpooling layer; :class:`torch.nn.MaxUnpool3d` with convext's kernel:
    (n, c, o, p, q) -> (n, c, d, h, w)."""

    _function = staticmethod(functional.max_unpool3d)


class _FractionalLayer(torch.nn.Module):
    """What the fractional max pooling layers share. Mixed in before the torch.nn namesake."""

    kernel_size: Any
    output_size: Any
    output_ratio: Any
    return_indices: bool
    _random_samples: Tensor | None
    extras: ClassVar[dict[str, Any]] = {}
    _function: ClassVar[Any]

    def forward(self, input: Tensor) -> Any:
        return type(self)._function(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            _random_samples=self._random_samples,
        )


class FractionalMaxPool2d(_FractionalLayer, torch.nn.FractionalMaxPool2d):
    """2-D fractional max pooling layer; :class:`torch.nn.FractionalMaxPool2d` with convext's kernel. Saves one byte
    per output for backward where the window has at most 256 places. Shapes: (n, c, h, w) -> (n, c, p, q)."""

    _function = staticmethod(functional.fractional_max_pool2d)


class FractionalMaxPool3d(_FractionalLayer, torch.nn.FractionalMaxPool3d):
    """3-D fractional max pooling layer; :class:`torch.nn.FractionalMaxPool3d` with convext's kernel. Saves one byte
    per output for backward where the window has at most 256 places. Shapes: (n, c, d, h, w) -> (n, c, o, p, q)."""

    _function = staticmethod(functional.fractional_max_pool3d)
