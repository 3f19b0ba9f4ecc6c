"""Pooling layers: torch.nn's, with ``algorithm=``, every form of padding, and ``dilation=`` for averages too."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from convext import functional
from convext.arguments import Ints
from convext.padding import Padding, is_per_side


class _MaxPoolLayer(torch.nn.modules.pooling._MaxPoolNd):
    """What the max pooling layers share. Mixed in before the torch.nn namesake."""

    extras: ClassVar[dict[str, Any]] = {"algorithm": "auto"}
    algorithm: str
    _function: ClassVar[Any]

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Padding = 0,
        dilation: Ints = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        algorithm: str = "auto",
    ) -> None:
        arguments: tuple[Any, ...] = (kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        super().__init__(*arguments)
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Any:
        return type(self)._function(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.algorithm == "auto" else f"{text}, algorithm={self.algorithm!r}"


class _AvgPoolLayer(torch.nn.modules.pooling._AvgPoolNd):
    """What the average pooling layers share. Mixed in before the torch.nn namesake, whose constructor it calls."""

    extras: ClassVar[dict[str, Any]] = {"algorithm": "auto", "dilation": 1}
    algorithm: str
    dilation: Ints
    padding: Any
    kernel_size: Any
    stride: Any
    ceil_mode: bool
    count_include_pad: bool
    _function: ClassVar[Any]

    def _set_extras(self, padding: Padding, dilation: Ints, algorithm: str) -> None:
        if isinstance(padding, str) or is_per_side(padding):
            self.padding = padding
        self.dilation = dilation
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        return type(self)._function(  # type: ignore[no-any-return]
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            getattr(self, "divisor_override", None),
            dilation=self.dilation,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if any(d != 1 for d in ((self.dilation,) if isinstance(self.dilation, int) else self.dilation)):
            text += f", dilation={self.dilation}"
        return text if self.algorithm == "auto" else f"{text}, algorithm={self.algorithm!r}"


class MaxPool1d(_MaxPoolLayer, torch.nn.MaxPool1d):
    """1-D max pooling layer; :class:`torch.nn.MaxPool1d` with convext's kernels. Saves one byte per output for
    backward where the window has at most 256 places. Shapes: (n, c, w) -> (n, c, q)."""

    _function = staticmethod(functional.max_pool1d)


class MaxPool2d(_MaxPoolLayer, torch.nn.MaxPool2d):
    """2-D max pooling layer; :class:`torch.nn.MaxPool2d` with convext's kernels. Saves one byte per output for
    backward where the window has at most 256 places. Shapes: (n, c, h, w) -> (n, c, p, q)."""

    _function = staticmethod(functional.max_pool2d)


class MaxPool3d(_MaxPoolLayer, torch.nn.MaxPool3d):
    """3-D max pooling layer; :class:`torch.nn.MaxPool3d` with convext's kernels. Saves one byte per output for
    backward where the window has at most 256 places. Shapes: (n, c, d, h, w) -> (n, c, o, p, q)."""

    _function = staticmethod(functional.max_pool3d)


class AvgPool1d(_AvgPoolLayer, torch.nn.AvgPool1d):
    """1-D average pooling layer; :class:`torch.nn.AvgPool1d` with convext's kernels, and ``dilation``.
    Shapes: (n, c, w) -> (n, c, q)."""

    _function = staticmethod(functional.avg_pool1d)

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        dilation: Ints = 1,
        algorithm: str = "auto",
    ) -> None:
        # torch spells the padding out here, which only ints survive
        numbers: Any = 0 if isinstance(padding, str) or is_per_side(padding) else padding
        super().__init__(cast(Any, kernel_size), cast(Any, stride), numbers, ceil_mode, count_include_pad)
        self._set_extras(padding, dilation, algorithm)


class _AvgPoolWithDivisor(_AvgPoolLayer):
    """Of two and three dimensions: torch's constructor there has a divisor_override."""

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        dilation: Ints = 1,
        algorithm: str = "auto",
    ) -> None:
        arguments: tuple[Any, ...] = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        super().__init__(*arguments)
        self._set_extras(padding, dilation, algorithm)


class AvgPool2d(_AvgPoolWithDivisor, torch.nn.AvgPool2d):
    """2-D average pooling layer; :class:`torch.nn.AvgPool2d` with convext's kernels, and ``dilation``.
    Shapes: (n, c, h, w) -> (n, c, p, q)."""

    _function = staticmethod(functional.avg_pool2d)


class AvgPool3d(_AvgPoolWithDivisor, torch.nn.AvgPool3d):
    """3-D average pooling layer; :class:`torch.nn.AvgPool3d` with convext's kernels, and ``dilation``.
    Shapes: (n, c, d, h, w) -> (n, c, o, p, q)."""

    _function = staticmethod(functional.avg_pool3d)
