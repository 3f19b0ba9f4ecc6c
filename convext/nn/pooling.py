"""Pooling layers: torch.nn's, with ``algorithm=``, every form of padding, and ``dilation=`` for averages too."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from convext import functional
from convext.arguments import Ints
from convext.padding import Padding, is_per_side


class MaxPool1d(torch.nn.MaxPool1d):
    """1-D max pooling layer; :class:`torch.nn.MaxPool1d` with convext's kernels. Saves one byte per output for
    backward where the window has at most 256 places. Shapes: (n, c, w) -> (n, c, q)."""

    algorithm: str

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
        super().__init__(
            cast(Any, kernel_size),
            cast(Any, stride),
            cast(Any, padding),
            cast(Any, dilation),
            return_indices,
            ceil_mode,
        )
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Any:
        return functional.max_pool1d(
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


class MaxPool2d(torch.nn.MaxPool2d):
    """2-D max pooling layer; :class:`torch.nn.MaxPool2d` with convext's kernels. Saves one byte per output for
    backward where the window has at most 256 places. Shapes: (n, c, h, w) -> (n, c, p, q)."""

    algorithm: str

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
        super().__init__(
            cast(Any, kernel_size),
            cast(Any, stride),
            cast(Any, padding),
            cast(Any, dilation),
            return_indices,
            ceil_mode,
        )
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Any:
        return functional.max_pool2d(
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


class MaxPool3d(torch.nn.MaxPool3d):
    """3-D max pooling layer; :class:`torch.nn.MaxPool3d` with convext's kernels. Saves one byte per output for
    backward where the window has at most 256 places. Shapes: (n, c, d, h, w) -> (n, c, o, p, q)."""

    algorithm: str

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
        super().__init__(
            cast(Any, kernel_size),
            cast(Any, stride),
            cast(Any, padding),
            cast(Any, dilation),
            return_indices,
            ceil_mode,
        )
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Any:
        return functional.max_pool3d(
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


class AvgPool1d(torch.nn.AvgPool1d):
    """1-D average pooling layer; :class:`torch.nn.AvgPool1d` with convext's kernels, and ``dilation``.
    Shapes: (n, c, w) -> (n, c, q)."""

    algorithm: str
    dilation: Ints

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
        extended = isinstance(padding, str) or is_per_side(padding)
        super().__init__(
            cast(Any, kernel_size),
            cast(Any, stride),
            cast(Any, 0 if extended else padding),
            ceil_mode,
            count_include_pad,
        )
        if extended:
            self.padding = padding  # type: ignore[assignment]
        self.dilation = dilation
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            dilation=self.dilation,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.dilation not in (1, (1,) * 1):
            text += f", dilation={self.dilation}"
        return text if self.algorithm == "auto" else f"{text}, algorithm={self.algorithm!r}"


class AvgPool2d(torch.nn.AvgPool2d):
    """2-D average pooling layer; :class:`torch.nn.AvgPool2d` with convext's kernels, and ``dilation``.
    Shapes: (n, c, h, w) -> (n, c, p, q)."""

    algorithm: str
    dilation: Ints

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
        super().__init__(
            cast(Any, kernel_size),
            cast(Any, stride),
            cast(Any, padding),
            ceil_mode,
            count_include_pad,
            divisor_override,
        )
        self.dilation = dilation
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
            dilation=self.dilation,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.dilation not in (1, (1,) * 2):
            text += f", dilation={self.dilation}"
        return text if self.algorithm == "auto" else f"{text}, algorithm={self.algorithm!r}"


class AvgPool3d(torch.nn.AvgPool3d):
    """3-D average pooling layer; :class:`torch.nn.AvgPool3d` with convext's kernels, and ``dilation``.
    Shapes: (n, c, d, h, w) -> (n, c, o, p, q)."""

    algorithm: str
    dilation: Ints

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
        super().__init__(
            cast(Any, kernel_size),
            cast(Any, stride),
            cast(Any, padding),
            ceil_mode,
            count_include_pad,
            divisor_override,
        )
        self.dilation = dilation
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
            dilation=self.dilation,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.dilation not in (1, (1,) * 3):
            text += f", dilation={self.dilation}"
        return text if self.algorithm == "auto" else f"{text}, algorithm={self.algorithm!r}"
