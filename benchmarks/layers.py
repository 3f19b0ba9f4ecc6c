"""A convolution as benchmarks.sweep draws it, and layers of networks that the benchmark does not take its own from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

MOST_PRODUCTS, MOST_PLACES = 1.5e9, 8e6
"""Layers with more multiply-adds, or larger inputs or outputs, do not fit."""

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A convolution, of the kind "transposed" a transposed one. Sizes have one entry per spatial dimension."""

    kind: str
    batch: int
    inputs: int
    outputs: int
    size: Sizes
    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int = 1
    transposed: bool = False
    network: str = ""

    @property
    def dims(self) -> int:
        return len(self.size)

    @property
    def input_shape(self) -> Sizes:
        return (self.batch, self.inputs, *self.size)

    @property
    def weight_shape(self) -> Sizes:
        ends = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs // self.groups)
        return (*ends, *self.kernel)

    @property
    def output_size(self) -> Sizes:
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        if self.transposed:
            return tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in axes)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)

    def fits(self) -> bool:
        if min(self.output_size) < 1:
            return False
        places = math.prod(self.size), math.prod(self.output_size)
        largest = self.batch * max(self.inputs * places[0], self.outputs * places[1])
        windows = places[0] if self.transposed else places[1]
        products = self.batch * self.outputs * self.inputs // self.groups * windows * math.prod(self.kernel)
        return products <= MOST_PRODUCTS and self.batch * largest <= MOST_PLACES

    def of(self, library: Any) -> Callable[..., Tensor]:
        """The function of convext.functional or torch.nn.functional, with this layer's arguments after the weight."""
        function = getattr(library, f"conv{'_transpose' if self.transposed else ''}{self.dims}d")
        steps = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return lambda x, w, **options: function(x, w, **steps, **options)

    def __str__(self) -> str:
        by = "x".join
        sizes = f"{by(map(str, self.kernel))} {self.inputs}-{self.outputs} {by(map(str, self.size))}"
        parts = [*([self.network] if self.network else []), *(["transposed"] if self.transposed else []), sizes]
        named = {"stride": (self.stride, 1), "dilation": (self.dilation, 1), "padding": (self.padding, 0)}
        parts += [
            f"{name} {value}" for name, value in {"batch": self.batch, "groups": self.groups}.items() if value > 1
        ]
        for name, (values, usual) in named.items():
            if set(values) != {usual}:
                parts.append(f"{name} {values[0] if len(set(values)) == 1 else by(map(str, values))}")
        return " ".join(parts)


def _each(value: int | Sizes, dims: int) -> Sizes:
    return (value,) * dims if isinstance(value, int) else value


def _layer(
    network: str,
    inputs: int,
    outputs: int,
    size: Sizes,
    kernel: int | Sizes,
    stride: int = 1,
    padding: int | Sizes = 0,
    dilation: int = 1,
    groups: int = 1,
    batch: int = 1,
    transposed: bool = False,
) -> Layer:
    kernels, strides, paddings, dilations = (_each(v, len(size)) for v in (kernel, stride, padding, dilation))
    return Layer(
        "networks", batch, inputs, outputs, size, kernels, strides, paddings, dilations, groups, transposed, network
    )


OTHER_NETWORKS = (
    _layer("ResNeXt-50", 128, 128, (56, 56), 3, padding=1, groups=32),
    _layer("ResNeXt-50", 256, 256, (56, 56), 3, stride=2, padding=1, groups=32),
    _layer("ResNeXt-50", 512, 512, (14, 14), 3, padding=1, groups=32),
    _layer("RegNet", 104, 104, (28, 28), 3, padding=1, groups=13),
    _layer("RegNet", 208, 208, (28, 28), 3, stride=2, padding=1, groups=13),
    _layer("Inception", 128, 128, (17, 17), (1, 7), padding=(0, 3)),
    _layer("Inception", 128, 192, (17, 17), (7, 1), padding=(3, 0)),
    _layer("Inception", 48, 64, (35, 35), 5, padding=2),
    _layer("Inception", 288, 384, (35, 35), 3, stride=2),
    _layer("GoogLeNet", 16, 32, (28, 28), 5, padding=2),
    _layer("GoogLeNet", 48, 128, (7, 7), 5, padding=2),
    _layer("AlexNet", 3, 64, (224, 224), 11, stride=4, padding=2),
    _layer("AlexNet", 64, 192, (27, 27), 5, padding=2),
    _layer("DeepLab", 256, 256, (28, 28), 3, padding=2, dilation=2),
    _layer("DeepLab", 512, 512, (28, 28), 3, padding=4, dilation=4),
    _layer("DeepLab", 512, 256, (28, 28), 3, padding=6, dilation=6),
    _layer("DeepLab", 512, 256, (28, 28), 3, padding=12, dilation=12),
    _layer("DeepLab", 512, 256, (28, 28), 3, padding=24, dilation=24),
    _layer("R(2+1)D", 64, 144, (8, 56, 56), (1, 3, 3), padding=(0, 1, 1)),
    _layer("R(2+1)D", 144, 64, (8, 56, 56), (3, 1, 1), padding=(1, 0, 0)),
    _layer("R3D", 64, 64, (8, 28, 28), 3, padding=1),
    _layer("R3D", 64, 128, (8, 28, 28), 3, stride=2, padding=1),
    _layer("R3D", 64, 128, (8, 28, 28), 1, stride=2),
    _layer("V-Net", 16, 32, (32, 32, 32), 2, stride=2),
    _layer("V-Net", 16, 16, (24, 24, 24), 5, padding=2),
    _layer("U-Net 3D", 64, 32, (16, 16, 16), 2, stride=2, transposed=True),
    _layer("U-Net", 128, 64, (56, 56), 2, stride=2, transposed=True),
    _layer("U-Net", 512, 256, (14, 14), 2, stride=2, transposed=True),
    _layer("ViT", 3, 192, (224, 224), 16, stride=16),
    _layer("ViT", 3, 768, (224, 224), 32, stride=32),
    _layer("Swin", 3, 96, (224, 224), 4, stride=4),
    _layer("PVT", 64, 64, (56, 56), 8, stride=8),
    _layer("ConvNeXt", 96, 192, (56, 56), 2, stride=2),
    _layer("ConvNeXt", 192, 384, (28, 28), 2, stride=2),
    _layer("ConvNeXt", 384, 384, (14, 14), 7, padding=3, groups=384),
    _layer("DCGAN", 512, 256, (4, 4), 4, stride=2, padding=1, transposed=True),
    _layer("DCGAN", 128, 64, (16, 16), 4, stride=2, padding=1, transposed=True),
    _layer("DCGAN", 64, 128, (64, 64), 4, stride=2, padding=1),
    _layer("DCGAN", 100, 512, (1, 1), 4, transposed=True),
    _layer("FCN", 21, 21, (28, 28), 16, stride=8, padding=4, transposed=True),
    _layer("SRCNN", 1, 64, (128, 128), 9, padding=4),
    _layer("SRCNN", 32, 1, (128, 128), 5, padding=2),
    _layer("EDSR", 64, 256, (64, 64), 3, padding=1),
    _layer("ShuffleNet", 240, 60, (28, 28), 1, groups=3),
    _layer("ShuffleNet", 58, 58, (56, 56), 3, stride=2, padding=1, groups=58),
    _layer("EfficientNet", 240, 240, (28, 28), 5, stride=2, padding=2, groups=240),
    _layer("EfficientNet", 480, 20, (1, 1), 1),
    _layer("MixNet", 120, 120, (14, 14), 9, padding=4, groups=120),
    _layer("CIFAR ResNet", 16, 16, (32, 32), 3, padding=1, batch=32),
    _layer("CIFAR ResNet", 16, 32, (32, 32), 3, stride=2, padding=1, batch=32),
    _layer("YOLO", 256, 255, (28, 28), 1),
    _layer("YOLO", 64, 128, (80, 80), 3, stride=2, padding=1),
    _layer("YOLO", 3, 32, (320, 320), 6, stride=2, padding=2),
    _layer("WaveNet", 64, 128, (4000,), 2, dilation=16),
    _layer("TCN", 64, 64, (1000,), 3, padding=4, dilation=4),
    _layer("EnCodec", 64, 128, (8000,), 8, stride=4, padding=2),
    _layer("wav2vec", 1, 512, (16000,), 10, stride=5),
    _layer("wav2vec", 512, 512, (800,), 3, stride=2),
    _layer("Whisper", 80, 384, (3000,), 3, padding=1),
    _layer("HiFi-GAN", 512, 256, (100,), 16, stride=8, padding=4, transposed=True),
    _layer("HiFi-GAN", 128, 128, (3200,), 7, padding=9, dilation=3),
    _layer("Conformer", 256, 256, (500,), 31, padding=15, groups=256),
)
