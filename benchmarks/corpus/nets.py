"""Networks that the corpus trains itself: small forms of published designs."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """MobileNetV3's inverted residual with squeeze and excitation (Howard et al., arXiv 1905.02244)."""

    def __init__(self, inputs: int, wide: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depth = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.Hardswish()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wide, wide // 4, 1), nn.ReLU(),
            nn.Conv2d(wide // 4, wide, 1), nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        inner = self.depth(self.expand(x))
        out: Tensor = self.project(inner * self.squeeze(inner))
        return x + out if self.shortcut else out


def mobilenet_v3() -> nn.Module:
    """(N, 1, 28, 28) to (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
        Residual(16, 64, 24, 2), Residual(24, 72, 24, 1), Residual(24, 96, 40, 2), Residual(40, 120, 40, 1),
        nn.Conv2d(40, 160, 1, bias=False), nn.BatchNorm2d(160), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 128), nn.Hardswish(), nn.Linear(128, 10),
    )  # fmt: skip


class Layer(nn.Module):
    """A pre-norm transformer layer, attention written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, width) to the same."""
        tokens, width = x.shape[1:]
        parts = self.qkv(self.norm1(x)).reshape(-1, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(-1, tokens, width))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """A small vision transformer (Dosovitskiy et al., arXiv 2010.11929), mean of tokens instead of a class token."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, 7)
        self.place = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) to (N, 10)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        out: Tensor = self.head(self.norm(self.layers(tokens)).mean(1))
        return out


class Detector(nn.Module):
    """One-stage, without anchors: boxes in pixels and scores in [0, 1] meet in one Concat, as in YOLO's heads."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]
        layers += [nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.boxes, self.scores = nn.Conv2d(64, 4, 1), nn.Conv2d(64, 11, 1)
        grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="xy")).reshape(1, 2, 64)
        self.register_buffer("grid", grid)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 64, 64) to (N, 64, 15)."""
        features = self.body(x)
        raw = torch.sigmoid(self.boxes(features)).flatten(2)
        centre = (raw[:, :2] * 2 - 0.5 + self.grid) * 8
        out = torch.cat([centre, raw[:, 2:] * 64, torch.sigmoid(self.scores(features)).flatten(2)], dim=1)
        return out.transpose(1, 2)


class BiLstm(nn.Module):
    """One bidirectional LSTM and a linear layer over its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 48, batch_first=True, bidirectional=True)
        self.head = nn.Linear(96, 9)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 12, time) to (N, 9)."""
        out: Tensor = self.head(self.lstm(x.transpose(1, 2))[0].mean(1))
        return out


def fcn() -> nn.Module:
    """A fully convolutional network for series (Wang et al., arXiv 1611.06455): (N, 12, time) to (N, 9)."""
    layers: list[nn.Module] = []
    for before, after, kernel in ((12, 64, 7), (64, 128, 5), (128, 64, 3)):
        layers += [nn.Conv1d(before, after, kernel, padding=kernel // 2), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 9))


def detection_loss(found: Tensor, truth: Tensor) -> Tensor:
    """Scores of all cells, and box and class of the cell that holds the centre; truth (N, 5): class and box."""
    cell = (truth[:, 2] // 8).long() * 8 + (truth[:, 1] // 8).long()
    wanted = torch.zeros(found.shape[:2]).scatter_(1, cell[:, None], 1.0)
    mine = found[torch.arange(len(found)), cell]
    classes = functional.one_hot(truth[:, 0].long(), 10).float()
    return (
        10 * functional.binary_cross_entropy(found[:, :, 4], wanted)
        + functional.binary_cross_entropy(mine[:, 5:], classes) * 4
        + (mine[:, :4] - truth[:, 1:]).abs().mean() / 4
    )
