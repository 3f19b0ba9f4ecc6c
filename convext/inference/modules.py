"""The layers of an optimised model: a convolution and what follows it, a normalisation as a line per channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from convext import _C, functional
from convext.activations import Activation
from convext.padding import Padding


class FusedConv(torch.nn.Module):
    """``activation(conv(x) + residual)``: see :func:`convext.functional.conv_fused`.

    ``weight`` and ``bias`` are parameters that ask for no gradient, so the packed form of the weight is kept between
    calls. Called with the input, and the residual if there is one.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: tuple[int, ...],
        padding: Padding,
        dilation: tuple[int, ...],
        groups: int,
        padding_mode: str,
        flip_kernel: bool = False,
        algorithm: str = "auto",
        activation: Activation | None = None,
        residual_last: bool = False,
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
        own_bias = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", own_bias)
        self.spatial = weight.dim() - 2
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.padding_mode, self.flip_kernel = groups, padding_mode, flip_kernel
        self.algorithm = algorithm
        self.activation = activation or Activation()
        self.residual_last = residual_last

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        # functional.conv_fused, less two calls and three look-ups: a network has a hundred of these
        road: Any = functional.fused.conv_fused_at_length if is_dynamo_compiling() else _C.conv_fused
        parameters, activation = self._parameters, self.activation
        return road(  # type: ignore[no-any-return]
            functional.conv_fused,
            self.spatial,
            input,
            parameters["weight"],
            parameters["bias"],
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
            self.flip_kernel,
            self.algorithm,
            residual,
            activation.name,
            activation.a,
            activation.b,
            self.residual_last,
        )

    def in_chain(self) -> tuple[Any, ...]:
        """What ``_C.layers`` asks of a convolution."""
        parameters, activation = self._parameters, self.activation
        return (
            parameters["weight"],
            parameters["bias"],
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
            self.flip_kernel,
            self.algorithm,
            activation.name,
            activation.a,
            activation.b,
            self.residual_last,
        )

    def pads_nothing(self) -> bool:
        own = self.padding
        return own in (0, "valid") or (isinstance(own, tuple) and all(p in (0, (0, 0)) for p in own))

    def take(self, weight: Tensor, bias: Tensor | None) -> None:
        """Other parameters, in the type of those before."""
        dtype = self.weight.dtype
        self.weight = torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach().to(dtype), requires_grad=False)

    def extra_repr(self) -> str:
        outputs, inputs, *kernel = self.weight.shape
        text = f"{inputs * self.groups}, {outputs}, kernel_size={tuple(kernel)}, stride={self.stride}"
        if self.padding not in (0, "valid"):
            text += f", padding={self.padding}"
        if any(d != 1 for d in self.dilation):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        if self.activation.name != "none":
            text += f", activation={self.activation}"
        return text + (", residual_last=True" if self.residual_last else "")


class FusedLinear(FusedConv):
    """``activation(x @ weight.T + bias + residual)`` for x (n, inputs): a convolution of maps of one place, ``weight``
    being (outputs, inputs, 1). What it reads of memory is the weight, packed once."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        pointwise: Any = {"stride": (1,), "padding": (0,), "dilation": (1,), "groups": 1, "padding_mode": "zeros"}
        super().__init__(weight.detach().unsqueeze(-1), bias, **pointwise)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        shape = input.shape[:-1]
        rows = input.reshape(-1, input.shape[-1], 1)
        added = None if residual is None else residual.reshape(-1, residual.shape[-1], 1)
        return super().forward(rows, added).reshape(*shape, self.weight.shape[0])

    def extra_repr(self) -> str:
        outputs, inputs, _ = self.weight.shape
        text = f"{inputs}, {outputs}"
        if self.activation.name != "none":
            text += f", activation={self.activation}"
        return text + (", residual_last=True" if self.residual_last else "")


class Chain(torch.nn.Module):
    """Layers one after the other, FusedConv and MaxPool2d, in one call.

    Where what they hand on is larger than second-level cache, and channels_last, they run by bands of rows
    (csrc/cpu/layer_chain.h), to the same bits. Called with the input, and the last layer's residual if there is one.
    """

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        layers: Any = tuple(self.layers)
        if not is_dynamo_compiling():
            output = _C.layers(input, tuple(_in_chain(layer) for layer in layers), residual)
            if output is not None:
                return output
        *others, last = layers
        for layer in others:
            input = layer(input)
        return last(input) if residual is None else last(input, residual)  # type: ignore[no-any-return]


def _in_chain(layer: Any) -> tuple[Any, ...]:
    """What ``_C.layers`` asks of a layer."""
    if isinstance(layer, FusedConv):
        return layer.in_chain()
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode, layer.algorithm


class ChannelScale(torch.nn.Module):
    """``activation(x * scale + shift)`` with one scale and shift per channel: what batch normalisation is in eval mode
    where no convolution is there to take it up. Several inputs are joined along the channels first."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, activation: Activation | None = None) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(scale.detach(), requires_grad=False)
        self.shift = torch.nn.Parameter(shift.detach(), requires_grad=False)
        self.activation = activation or Activation()

    def forward(self, *inputs: Tensor) -> Tensor:
        return functional.channel_scale(
            inputs, self.scale, self.shift, self.activation.name, self.activation.a, self.activation.b
        )

    def extra_repr(self) -> str:
        return f"{len(self.scale)}" + ("" if self.activation.name == "none" else f", activation={self.activation}")


def channel_lines(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch normalisation in eval mode, in double precision: y = x scale + shift."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift
