"""Standard networks in torch.nn's layers, with random weights: what whole-model timings run on.

Layer by layer those of the papers (VGG: Simonyan and Zisserman 2014; ResNet: He et al. 2015, stride in the 3x3 of a
bottleneck; SqueezeNet 1.1: Iandola et al. 2016; DenseNet: Huang et al. 2016; MobileNetV2: Sandler et al. 2018;
EfficientNet-B0: Tan and Le 2019, without its stochastic depth), at 224 x 224 and 1000 classes; a U-Net (Ronneberger et
al. 2015, with padding and batch normalisation, half as wide) and a detector in the style of YOLOv5's small model,
backbone, feature pyramid and heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class _Excite(nn.Module):
    """x * sigmoid(expand(silu(squeeze(mean of x))))"""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.mean, self.silu = nn.AdaptiveAvgPool2d(1), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.expand(self.silu(self.squeeze(self.mean(x)))).sigmoid()
        return result


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: nn.Module | None = None
) -> nn.Sequential:
    """Convolution with half padding, batch normalisation, activation."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation] if activation else []))


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 3
    for outputs in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if outputs == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        inputs = outputs
    head = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


class _Residual(nn.Module):
    """act(body(x) + shortcut(x))"""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return result


def _resnet(depths: tuple[int, ...], bottleneck: bool) -> nn.Module:
    expansion = 4 if bottleneck else 1
    layers: list[nn.Module] = [_conv(3, 64, 7, 2, activation=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            if bottleneck:
                body = nn.Sequential(
                    _conv(inputs, width, 1, activation=nn.ReLU()),
                    _conv(width, width, 3, stride, activation=nn.ReLU()),
                    _conv(width, width * expansion, 1),
                )
            else:
                body = nn.Sequential(_conv(inputs, width, 3, stride, activation=nn.ReLU()), _conv(width, width, 3))
            same = stride == 1 and inputs == width * expansion
            shortcut = nn.Identity() if same else _conv(inputs, width * expansion, 1, stride)
            layers.append(_Residual(body, shortcut, nn.ReLU()))
            inputs = width * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def resnet18() -> nn.Module:
    return _resnet((2, 2, 2, 2), bottleneck=False)


def resnet50() -> nn.Module:
    return _resnet((3, 4, 6, 3), bottleneck=True)


def _inverted_residuals(
    stages: Sequence[tuple[int, int, int, int, int]], activation: Callable[[], nn.Module], excite: bool
) -> nn.Module:
    """A stage is (expansion, outputs, depth, first stride, kernel)."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, activation=activation())]
    inputs = 32
    for expand, outputs, depth, first_stride, kernel in stages:
        for block in range(depth):
            stride, hidden = first_stride if block == 0 else 1, inputs * expand
            body = nn.Sequential(
                *([_conv(inputs, hidden, 1, activation=activation())] if expand > 1 else []),
                _conv(hidden, hidden, kernel, stride, groups=hidden, activation=activation()),
                *([_Excite(hidden, inputs // 4)] if excite else []),
                _conv(hidden, outputs, 1),
            )
            same = stride == 1 and inputs == outputs
            layers.append(_Residual(body, nn.Identity(), nn.Identity()) if same else body)
            inputs = outputs
    layers.append(_conv(inputs, 1280, 1, activation=activation()))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def mobilenet_v2() -> nn.Module:
    stages = (
        *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)),
        *((6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
    )
    return _inverted_residuals(stages, nn.ReLU6, excite=False)


def efficientnet_b0() -> nn.Module:
    stages = (
        *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
        *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
    )
    return _inverted_residuals(stages, nn.SiLU, excite=True)


class _Dense(nn.Module):
    """A layer of a dense block: what it was given, and its 32 new channels."""

    def __init__(self, inputs: int, growth: int = 32) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4 * growth, 1, bias=False))
        self.grow = nn.Sequential(
            nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        )

    def forward(self, parts: list[Tensor]) -> Tensor:
        result: Tensor = self.grow(self.squeeze(torch.cat(parts, 1)))
        return result


class _DenseBlock(nn.Module):
    def __init__(self, depth: int, inputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Dense(inputs + 32 * i) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.layers:
            parts.append(layer(parts))
        return torch.cat(parts, 1)


def densenet121() -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 64, 7, 2, activation=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for depth in (6, 12, 24, 16):
        if inputs != 64:
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, inputs // 2, 1, bias=False)]
            layers += [nn.AvgPool2d(2)]
            inputs //= 2
        layers.append(_DenseBlock(depth, inputs))
        inputs += 32 * depth
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)]
    return nn.Sequential(*layers)


class _Fire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(inputs, squeezed, 1), nn.ReLU())
        self.small = nn.Sequential(nn.Conv2d(squeezed, expanded, 1), nn.ReLU())
        self.large = nn.Sequential(nn.Conv2d(squeezed, expanded, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.small(x), self.large(x)], 1)


def squeezenet() -> nn.Module:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), _Fire(64, 16, 64), _Fire(128, 16, 64), pool()),
        *(_Fire(128, 32, 128), _Fire(256, 32, 128), pool(), _Fire(256, 48, 192), _Fire(384, 48, 192)),
        *(_Fire(384, 64, 256), _Fire(512, 64, 256), nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


class _UNet(nn.Module):
    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256, 512), classes: int = 2) -> None:
        super().__init__()

        def twice(inputs: int, outputs: int) -> nn.Module:
            first, second = (_conv(c, outputs, 3, activation=nn.ReLU()) for c in (inputs, outputs))
            return nn.Sequential(first, second)

        self.down = nn.ModuleList(twice(a, b) for a, b in pairwise((3, *widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(twice(2 * a, a) for a in widths[:-1])
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else self.pool(x))
            passed.append(x)
        for i in reversed(range(len(self.up))):
            x = self.merge[i](torch.cat([passed[i], self.up[i](x)], 1))
        result: Tensor = self.head(x)
        return result


def unet() -> nn.Module:
    return _UNet()


def _silu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return _conv(inputs, outputs, kernel, stride, activation=nn.SiLU())


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(_silu(channels, channels, 1), _silu(channels, channels, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x) if self.shortcut else self.body(x)
        return result


class _CrossStage(nn.Module):
    """Half of the channels through bottlenecks, half past them."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.through = nn.Sequential(_silu(inputs, half, 1), *(_Bottleneck(half, shortcut) for _ in range(depth)))
        self.past, self.join = _silu(inputs, half, 1), _silu(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.join(torch.cat([self.through(x), self.past(x)], 1))
        return result


class _PoolingPyramid(nn.Module):
    """x, and three 5x5 maxima of it, each of the one before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = _silu(channels, channels // 2, 1), _silu(2 * channels, channels, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        one = self.pool(x)
        two = self.pool(one)
        result: Tensor = self.leave(torch.cat([x, one, two, self.pool(two)], 1))
        return result


class _Detector(nn.Module):
    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.eighth = nn.Sequential(
            *(
                nn.Conv2d(3, 32, 6, 2, 2, bias=False),
                nn.BatchNorm2d(32),
                nn.SiLU(),
                _silu(32, 64, 3, 2),
                _CrossStage(64, 64, 1),
            ),
            *(_silu(64, 128, 3, 2), _CrossStage(128, 128, 2)),
        )
        self.sixteenth = nn.Sequential(_silu(128, 256, 3, 2), _CrossStage(256, 256, 3))
        self.deepest = nn.Sequential(_silu(256, 512, 3, 2), _CrossStage(512, 512, 1), _PoolingPyramid(512))
        self.narrow = nn.ModuleList((_silu(512, 256, 1), _silu(256, 128, 1)))
        self.up = nn.Upsample(scale_factor=2)
        self.merge = nn.ModuleList(
            (
                *(_CrossStage(512, 256, 1, False), _CrossStage(256, 128, 1, False)),
                *(_CrossStage(256, 256, 1, False), _CrossStage(512, 512, 1, False)),
            )
        )
        self.down = nn.ModuleList((_silu(128, 128, 3, 2), _silu(256, 256, 3, 2)))
        self.heads = nn.ModuleList(nn.Conv2d(c, 3 * (classes + 5), 1) for c in (128, 256, 512))

    def forward(self, x: Tensor) -> list[Tensor]:
        eighth = self.eighth(x)
        sixteenth = self.sixteenth(eighth)
        a = self.narrow[0](self.deepest(sixteenth))
        b = self.narrow[1](self.merge[0](torch.cat([self.up(a), sixteenth], 1)))
        small = self.merge[1](torch.cat([self.up(b), eighth], 1))
        medium = self.merge[2](torch.cat([self.down[0](small), b], 1))
        large = self.merge[3](torch.cat([self.down[1](medium), a], 1))
        return [head(y) for head, y in zip(self.heads, (small, medium, large), strict=True)]


def detector() -> nn.Module:
    return _Detector()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG-16": vgg16,
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "MobileNetV2": mobilenet_v2,
    "EfficientNet-B0": efficientnet_b0,
    "DenseNet-121": densenet121,
    "SqueezeNet 1.1": squeezenet,
    "U-Net": unet,
    "YOLO style": detector,
}
CLASSIFIERS = [name for name in NETWORKS if name not in ("U-Net", "YOLO style")]
"""Those whose output is one number per class."""
