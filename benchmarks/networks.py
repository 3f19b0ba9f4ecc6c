"""Standard networks in torch.nn's layers, with random weights: what whole-model timings run on.

Layer by layer those of the papers (VGG: Simonyan and Zisserman 2014; ResNet: He et al. 2015, stride in the 3x3 of a
bottleneck; MobileNetV2: Sandler et al. 2018; EfficientNet-B0: Tan and Le 2019, without its stochastic depth), at
224 x 224 and 1000 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG-16": vgg16,
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "MobileNetV2": mobilenet_v2,
    "EfficientNet-B0": efficientnet_b0,
}
