"""Well-known networks with random weights, for latency alone; the same weights each time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corpus.nets import Layer


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut (He et al., arXiv 1512.03385)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *_conv(inputs, width, 1), nn.ReLU(), *_conv(width, width, 3, stride), nn.ReLU(), *_conv(width, outputs, 1)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else nn.Sequential(*_conv(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 4 * width, H / stride, W / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


class Inverted(nn.Module):
    """MobileNetV2's inverted residual (Sandler et al., arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = inputs * factor
        expand = [*_conv(inputs, wide, 1), nn.ReLU6()] if factor > 1 else []
        self.body = nn.Sequential(
            *expand, *_conv(wide, wide, 3, stride, groups=wide), nn.ReLU6(), *_conv(wide, outputs, 1)
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        out: Tensor = self.body(x)
        return x + out if self.shortcut else out


def resnet50() -> nn.Module:
    """(N, 3, 224, 224) to (N, 1000)."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [*_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for index in range(count):
            layers.append(Bottleneck(before, width, 2 if stage and index == 0 else 1))
            before = 4 * width
    return nn.Sequential(*layers, *_head(before))


def mobilenet_v2() -> nn.Module:
    """(N, 3, 224, 224) to (N, 1000)."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [*_conv(3, 32, 3, 2), nn.ReLU6()]
    before = 32
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for factor, outputs, count, stride in stages:
        for index in range(count):
            layers.append(Inverted(before, outputs, stride if index == 0 else 1, factor))
            before = outputs
    return nn.Sequential(*layers, *_conv(before, 1280, 1), nn.ReLU6(), *_head(1280))


def encoder() -> nn.Module:
    """Six pre-norm transformer layers over 128 tokens: (N, 128, 384) to the same."""
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(384, 12) for _ in range(6)))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    # As published: the default initialization lets signals die away in deep networks.
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(outputs)]


def _head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)]
