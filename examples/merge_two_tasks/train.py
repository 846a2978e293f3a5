"""Train a base model and two fine-tunes of it that each know half of the classes.

    python examples/merge_two_tasks/train.py

The base sees few images of all classes; `tops` is fine-tuned on classes 0 to 4, `rest` on classes 5 to 9.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "fashion_mnist"))

from make_data import DATASET  # noqa: E402
from model import small_resnet  # noqa: E402
from train import accuracy, load, train  # noqa: E402

WIDTH = 8


def save(model: nn.Module, name: str, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Write a model's weights as safetensors, with its accuracy on all classes of the test split."""
    reached = f"{accuracy(model, images, labels):.4f}"
    print(f"{name}: test accuracy {reached}")
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, HERE / f"{name}.safetensors", {"dataset": "Fashion-MNIST", "test_accuracy": reached})


def main() -> None:
    """Train, test and save all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATASET, help="folder with the idx.gz files")
    parser.add_argument("--base-images", type=int, default=6000)
    parser.add_argument("--images", type=int, default=12000, help="images that each fine-tune sees")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    images, labels = load(options.data, "train")
    test = load(options.data, "t10k")
    base = small_resnet(width=WIDTH)
    first = slice(0, options.base_images)
    train(base, images[first], labels[first], argparse.Namespace(epochs=2, batch=64, rate=0.1))
    save(base, "base", *test)
    for name, chosen in (("tops", labels < 5), ("rest", labels >= 5)):
        tuned = copy.deepcopy(base)
        own = slice(0, options.images)
        train(tuned, images[chosen][own], labels[chosen][own], argparse.Namespace(epochs=2, batch=64, rate=0.02))
        save(tuned, name, *test)


if __name__ == "__main__":
    main()
