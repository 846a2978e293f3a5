"""Train `small_resnet` on Fashion-MNIST and write its weights as safetensors.

    python examples/fashion_mnist/train.py

The last epoch's weights are kept; the test split is used once, after training.
"""

import argparse
import time
from pathlib import Path

import torch
from make_data import DATASET, read_split
from model import small_resnet
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).with_name("weights.safetensors")
MAX_SHIFT = 1


def load(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Load one split as tensors.

    Args:
        folder: Folder with the four idx files of Fashion-MNIST.
        split: ``train`` or ``t10k``.

    Returns:
        Images as uint8 (n, 28, 28) and labels as int64 (n,).
    """
    images, labels = read_split(folder, split)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels)


def to_input(images: Tensor) -> Tensor:
    """Scale uint8 pixels (n, 28, 28) to the model's float input (n, 1, 28, 28)."""
    return images.unsqueeze(1).float() * (1 / 255)


def augment(images: Tensor) -> Tensor:
    """Flip each image with probability 1/2 and shift it by up to `MAX_SHIFT` pixels.

    Args:
        images: Pixels as uint8, (n, 28, 28).

    Returns:
        Changed images of the same type and shape; shifted-in pixels are black.
    """
    count, height, width = images.shape
    flip = torch.rand(count) < 0.5
    images = torch.where(flip[:, None, None], images.flip(2), images)
    windows = functional.pad(images, [MAX_SHIFT] * 4).unfold(1, height, 1).unfold(2, width, 1)
    down, right = torch.randint(2 * MAX_SHIFT + 1, (2, count))
    return windows[torch.arange(count), down, right]


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images (n, 28, 28) that the model gives their label (n,)."""
    model.eval()
    correct = 0
    for batch, expected in zip(torch.split(images, 500), torch.split(labels, 500), strict=True):
        correct += int((model(to_input(batch)).argmax(1) == expected).sum())
    return correct / len(images)


def train(model: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace) -> None:
    """Train in place with SGD, Nesterov momentum and a one-cycle learning rate.

    Args:
        model: The network to train.
        images: Training images as uint8, (n, 28, 28).
        labels: Their labels as int64, (n,).
        options: ``epochs``, ``batch`` and ``rate`` from the command line.
    """
    steps = len(images) // options.batch
    optimizer = torch.optim.SGD(model.parameters(), options.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.rate, total_steps=steps * options.epochs, pct_start=0.25
    )
    for epoch in range(options.epochs):
        model.train()
        start, loss_sum, correct = time.perf_counter(), 0.0, 0
        order = torch.randperm(len(images))[: steps * options.batch]
        for chosen in torch.split(order, options.batch):
            logits = model(to_input(augment(images[chosen])))
            loss = functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            loss_sum += loss.item()
            correct += int((logits.argmax(1) == labels[chosen]).sum())
        print(
            f"epoch {epoch + 1}/{options.epochs}: loss {loss_sum / steps:.4f}, "
            f"train accuracy {correct / (steps * options.batch):.4f}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )


def main() -> None:
    """Train, test and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATASET, help="folder with the idx.gz files")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.1, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="train on the first so many images only")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)

    model = small_resnet()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = load(options.data, "train")
    train(model, images[: options.limit], labels[: options.limit], options)
    test_accuracy = accuracy(model, *load(options.data, "t10k"))
    print(f"test accuracy {test_accuracy:.4f}")

    metadata = {
        "dataset": "Fashion-MNIST",
        "epochs": str(options.epochs),
        "seed": str(options.seed),
        "test_accuracy": f"{test_accuracy:.4f}",
        "torch": torch.__version__,
    }
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, options.output, metadata)


if __name__ == "__main__":
    main()
