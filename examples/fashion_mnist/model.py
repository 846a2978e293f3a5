"""A small residual network for 28x28 grey-scale images."""

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        """Build the block.

        Args:
            inputs: Channels of the input.
            outputs: Channels of the output.
            stride: Stride of the first convolution and of the shortcut.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Apply the block.

        Args:
            features: Input, (batch, inputs, height, width).

        Returns:
            Output, (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        inner = self.relu(self.norm1(self.conv1(features)))
        out: Tensor = self.relu(self.norm2(self.conv2(inner)) + self.shortcut(features))
        return out


class SmallResNet(nn.Module):
    """Stem, three residual stages at 28x28, 14x14 and 7x7, pooling and a linear head.

    Inputs are pixel values scaled to [0, 1] (value = pixel / 255), without mean or
    standard deviation.
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        """Build the network.

        Args:
            width: Channels of the first stage; later stages have 2x and 4x as many.
            classes: Number of logits.
        """
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = BasicBlock(width, width)
        self.stage2 = BasicBlock(width, 2 * width, stride=2)
        self.stage3 = BasicBlock(2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Classify a batch of images.

        Args:
            image: Float images in [0, 1], (batch, 1, 28, 28).

        Returns:
            Logits, (batch, classes).
        """
        features = self.stage3(self.stage2(self.stage1(self.stem(image))))
        logits: Tensor = self.head(self.pool(features).flatten(1))
        return logits


def small_resnet(width: int = 32, classes: int = 10) -> nn.Module:
    """Create a `SmallResNet` with fresh weights.

    Args:
        width: Channels of the first stage.
        classes: Number of logits.

    Returns:
        The network; maps images (batch, 1, 28, 28) to logits (batch, classes).
    """
    return SmallResNet(width, classes)
