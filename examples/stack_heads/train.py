"""Train four heads on one frozen trunk: the base of examples/merge_two_tasks.

    python examples/stack_heads/train.py

Each head is saved with the trunk, as models that were fine-tuned apart would be.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "fashion_mnist"), str(HERE)]

from make_data import DATASET  # noqa: E402
from metric import QUESTIONS  # noqa: E402
from model import SmallResNet  # noqa: E402
from train import load, to_input  # noqa: E402

WIDTH = 8


@torch.no_grad()
def features(trunk: SmallResNet, images: torch.Tensor) -> torch.Tensor:
    """What the heads see of images (n, 28, 28): float (n, 4 * WIDTH)."""
    parts = []
    for batch in torch.split(images, 250):
        seen = trunk.stage3(trunk.stage2(trunk.stage1(trunk.stem(to_input(batch)))))
        parts.append(trunk.pool(seen).flatten(1))
    return torch.cat(parts)


def main() -> None:
    """Train, test and save all heads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATASET, help="folder with the idx.gz files")
    parser.add_argument("--images", type=int, default=20000)
    options = parser.parse_args()

    torch.set_num_threads(1)
    state = load_file(HERE.parent / "merge_two_tasks" / "base.safetensors")
    trunk = SmallResNet(WIDTH).eval()
    trunk.load_state_dict(state)
    images, labels = load(options.data, "train")
    seen, labels = features(trunk, images[: options.images]), labels[: options.images]
    test_images, test_labels = load(options.data, "t10k")
    test = features(trunk, test_images)
    for name, answers in QUESTIONS.items():
        torch.manual_seed(0)
        wanted = torch.tensor(answers)
        head = nn.Linear(4 * WIDTH, max(answers) + 1)
        optimizer = torch.optim.Adam(head.parameters(), 0.01)
        for _ in range(10):
            for chosen in torch.split(torch.randperm(len(seen)), 100):
                loss = nn.functional.cross_entropy(head(seen[chosen]), wanted[labels[chosen]])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
        reached = float((head(test).argmax(1) == wanted[test_labels]).float().mean())
        print(f"{name}: test accuracy {reached:.4f}")
        own = state | {"head.weight": head.weight.detach(), "head.bias": head.bias.detach()}
        save_file(own, HERE / f"{name}.safetensors", {"dataset": "Fashion-MNIST", "test_accuracy": f"{reached:.4f}"})


if __name__ == "__main__":
    main()
