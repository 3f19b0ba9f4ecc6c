"""Convolution layers: torch.nn's, with ``algorithm=``, ``flip_kernel=``, every padding and padding_mode.

Arguments, attributes, initialisation, repr and state_dict are torch's. What torch's constructor would refuse (a
"same" padding with a stride, per-side pairs, padding_mode "symmetric") is kept in the same attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from convext import _C, functional
from convext.arguments import Ints
from convext.padding import PADDING_MODES, PADDING_STRINGS, Padding, is_per_side, needs_extension


class _ConvLayer(torch.nn.modules.conv._ConvNd):
    """What all convolution layers of convext share: constructor, repr, and how a call reaches the kernels.

    Mixed in before the torch.nn namesake, whose constructor it calls.
    """

    algorithm: str
    flip_kernel: bool
    extras: ClassVar[dict[str, Any]] = {"algorithm": "auto", "flip_kernel": False}
    _function: ClassVar[Any]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        algorithm: str = "auto",
        flip_kernel: bool = False,
    ) -> None:
        _check_padding(padding, padding_mode)
        extended = needs_extension(padding, stride)
        mode = "zeros" if padding_mode == "symmetric" else padding_mode
        sizes = (in_channels, out_channels, kernel_size, stride, 0 if extended else padding, dilation, groups)
        arguments: tuple[Any, ...] = (*sizes, bias, mode, device, dtype)
        super().__init__(*arguments)
        self._set_extras(padding, extended, padding_mode, algorithm, flip_kernel)

    def _set_extras(
        self, padding: Padding, extended: bool, padding_mode: str, algorithm: str, flip_kernel: bool
    ) -> None:
        """What torch's constructor does not know, in the attributes where torch keeps the like."""
        if is_per_side(padding):
            pairs = tuple(tuple(pair) for pair in cast(Any, padding))
            if len(pairs) != len(self.kernel_size) or any(len(pair) != 2 for pair in pairs):
                raise ValueError(f"padding must have one (before, after) pair per dimension, got {padding!r}")
            padding = pairs
        if extended:
            self.padding = cast(Any, padding)
        self.padding_mode = cast(Any, padding_mode)
        self.algorithm = algorithm
        self.flip_kernel = flip_kernel

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":  # FSDP gathers it anew, into the same memory and behind the version counter's back
            _C.forget_packed_weight(value)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        if self.flip_kernel:
            text += ", flip_kernel=True"
        return text if self.algorithm == "auto" else f"{text}, algorithm={self.algorithm!r}"

    def forward_activated(self, input: Tensor, activation: str, a: float, b: float) -> Tensor:
        """``activation(self(input))``, hooks apart; activations as for :func:`convext.functional.conv_fused`."""
        return functional.conv_fused(
            input,
            self.weight,
            self.bias,
            self.stride,
            cast(Padding, self.padding),
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            flip_kernel=self.flip_kernel,
            algorithm=self.algorithm,
            activation=activation,
            a=a,
            b=b,
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return type(self)._function(  # type: ignore[no-any-return]
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            flip_kernel=self.flip_kernel,
            algorithm=self.algorithm,
        )


def _check_padding(padding: Padding, padding_mode: str) -> None:
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {PADDING_MODES}, but got padding_mode={padding_mode!r}")
    if isinstance(padding, str) and padding not in PADDING_STRINGS:
        raise ValueError(f"Invalid padding string {padding!r}, should be one of {PADDING_STRINGS}")


class _ConvTransposeLayer(_ConvLayer):
    """What the transposed layers share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        algorithm: str = "auto",
        flip_kernel: bool = False,
    ) -> None:
        _check_padding(padding, padding_mode)
        extended = isinstance(padding, str) or is_per_side(padding)
        numbers = 0 if extended else padding
        sizes = (in_channels, out_channels, kernel_size, stride, numbers, output_padding, groups)
        arguments: tuple[Any, ...] = (*sizes, bias, dilation, padding_mode, device, dtype)
        super(_ConvLayer, self).__init__(*arguments)
        self._set_extras(padding, extended, padding_mode, algorithm, flip_kernel)

    def _extra_size(self, input: Tensor, output_size: Sequence[int] | None) -> Ints:
        """The output_padding that makes the output ``output_size`` places large."""
        if output_size is None:
            return self.output_padding
        spatial = len(self.kernel_size)
        if len(output_size) == input.dim() and input.dim() > spatial:
            output_size = output_size[-spatial:]
        if len(output_size) != spatial:
            raise ValueError(
                f"ConvTranspose{spatial}d: for {input.dim()}D input, output_size must have {spatial} or {input.dim()} "
                f"elements (got {len(output_size)})"
            )
        zeros = [0] * spatial
        least, _ = functional.transposed_output_size(
            f"conv_transpose{spatial}d",
            input.shape[-spatial:],
            self.kernel_size,
            list(self.stride),
            self.padding,
            zeros,
            list(self.dilation),
        )
        most = [size + stride - 1 for size, stride in zip(least, self.stride, strict=True)]
        if any(not low <= size <= high for size, low, high in zip(output_size, least, most, strict=True)):
            raise ValueError(
                f"requested an output size of {list(output_size)}, but valid sizes range from {least} to {most} "
                f"(for an input of {list(input.shape[-spatial:])})"
            )
        return [size - low for size, low in zip(output_size, least, strict=True)]

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return type(self)._function(  # type: ignore[no-any-return]
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self._extra_size(input, output_size),
            self.groups,
            self.dilation,
            flip_kernel=self.flip_kernel,
            algorithm=self.algorithm,
        )


class Conv1d(_ConvLayer, torch.nn.Conv1d):
    """1-D convolution layer; :class:`torch.nn.Conv1d` with convext's kernels.

    Besides torch's arguments: ``padding`` as in :mod:`convext.padding`, ``padding_mode="symmetric"``, ``algorithm``
    (see :func:`convext.algorithms`), ``flip_kernel=True`` for true convolution.
    Shapes: (n, c, w) -> (n, k, q).
    """

    _function = staticmethod(functional.conv1d)


class Conv2d(_ConvLayer, torch.nn.Conv2d):
    """2-D convolution layer; :class:`torch.nn.Conv2d` with convext's kernels.

    Besides torch's arguments: ``padding`` as in :mod:`convext.padding`, ``padding_mode="symmetric"``, ``algorithm``
    (see :func:`convext.algorithms`), ``flip_kernel=True`` for true convolution.
    Shapes: (n, c, h, w) -> (n, k, p, q).
    """

    _function = staticmethod(functional.conv2d)


class Conv3d(_ConvLayer, torch.nn.Conv3d):
    """3-D convolution layer; :class:`torch.nn.Conv3d` with convext's kernels.

    Besides torch's arguments: ``padding`` as in :mod:`convext.padding`, ``padding_mode="symmetric"``, ``algorithm``
    (see :func:`convext.algorithms`), ``flip_kernel=True`` for true convolution.
    Shapes: (n, c, d, h, w) -> (n, k, o, p, q).
    """

    _function = staticmethod(functional.conv3d)


class ConvTranspose1d(_ConvTransposeLayer, torch.nn.ConvTranspose1d):
    """Transposed 1-D convolution layer; :class:`torch.nn.ConvTranspose1d` with convext's kernels.

    The gradient of a convolution with respect to its input, used as a layer. Shapes:
    (n, k, q) -> (n, c, w) with
    ``(n - 1) * stride - before - after + dilation * (kernel - 1) + output_padding + 1`` places per dimension.
    """

    _function = staticmethod(functional.conv_transpose1d)


class ConvTranspose2d(_ConvTransposeLayer, torch.nn.ConvTranspose2d):
    """Transposed 2-D convolution layer; :class:`torch.nn.ConvTranspose2d` with convext's kernels.

    The gradient of a convolution with respect to its input, used as a layer. Shapes:
    (n, k, p, q) -> (n, c, h, w) with
    ``(n - 1) * stride - before - after + dilation * (kernel - 1) + output_padding + 1`` places per dimension.
    """

    _function = staticmethod(functional.conv_transpose2d)


class ConvTranspose3d(_ConvTransposeLayer, torch.nn.ConvTranspose3d):
    """Transposed 3-D convolution layer; :class:`torch.nn.ConvTranspose3d` with convext's kernels.

    The gradient of a convolution with respect to its input, used as a layer. Shapes:
    (n, k, o, p, q) -> (n, c, d, h, w) with
    ``(n - 1) * stride - before - after + dilation * (kernel - 1) + output_padding + 1`` places per dimension.
    """

    _function = staticmethod(functional.conv_transpose3d)


class _LazyLayer:
    """torch's lazy constructors know nothing of algorithm and flip_kernel: set aside for them, given afterwards."""

    def __init__(self, *args: Any, algorithm: str = "auto", flip_kernel: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.algorithm = algorithm
        self.flip_kernel = flip_kernel


class LazyConv1d(_LazyLayer, torch.nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    """:class:`Conv1d` whose in_channels is read off the first input."""

    cls_to_become = Conv1d


class LazyConv2d(_LazyLayer, torch.nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """:class:`Conv2d` whose in_channels is read off the first input."""

    cls_to_become = Conv2d


class LazyConv3d(_LazyLayer, torch.nn.LazyConv3d, Conv3d):  # type: ignore[misc]
    """:class:`Conv3d` whose in_channels is read off the first input."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(_LazyLayer, torch.nn.LazyConvTranspose1d, ConvTranspose1d):  # type: ignore[misc]
    """:class:`ConvTranspose1d` whose in_channels is read off the first input."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_LazyLayer, torch.nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """:class:`ConvTranspose2d` whose in_channels is read off the first input."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_LazyLayer, torch.nn.LazyConvTranspose3d, ConvTranspose3d):  # type: ignore[misc]
    """:class:`ConvTranspose3d` whose in_channels is read off the first input."""

    cls_to_become = ConvTranspose3d
