"""Whether three teachers make a better student than the best one of them, on Fashion-MNIST.

    apt-get install dataset-fashion-mnist
    python benchmarks/teaching.py

Three networks, each trained on 3,000 images of its own, teach a network of a quarter of their parameters on 500
further images without labels: each alone, and all together. Accuracy is of 10,000 test images; every student is made
with three seeds. Writes benchmarks/results/teaching.md, in some minutes on one core.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter.compress import Teaching, distil

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "teaching.md"
sys.path.insert(0, str(ROOT / "examples" / "fashion_mnist"))

from make_data import DATASET  # noqa: E402
from model import small_resnet  # noqa: E402
from train import load, to_input, train  # noqa: E402

TEACHERS, WIDTH, NARROW = 3, 16, 8
OWN, SHARED, EPOCHS = 3000, 500, 40
SEEDS = (0, 1, 2)
HINTS = {"stage2": "stage2", "stage3": "stage3"}


def answers(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of all images."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(to_input(batch)) for batch in images.split(500)])


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Accuracy in percent."""
    return 100 * float((logits.argmax(1) == labels).float().mean())


def teacher(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """A network trained on its own images."""
    torch.manual_seed(seed)
    model = small_resnet(width=WIDTH)
    model.to(memory_format=torch.channels_last)
    train(model, images, labels, argparse.Namespace(epochs=5, batch=64, rate=0.1))
    return model.eval()


def student(seed: int) -> nn.Module:
    """A fresh network."""
    torch.manual_seed(seed)
    model = small_resnet(width=NARROW)
    model.to(memory_format=torch.channels_last)
    return model


def main() -> None:
    """Train the teachers, teach the students, and write the table."""
    torch.set_num_threads(1)
    images, labels = load(DATASET, "train")
    tests, wanted = load(DATASET, "t10k")
    teachers = [
        teacher(images[start : start + OWN], labels[start : start + OWN], index)
        for index, start in enumerate(range(0, TEACHERS * OWN, OWN))
    ]
    shared = slice(TEACHERS * OWN, TEACHERS * OWN + SHARED)
    inputs, known = (to_input(images[shared]),), labels[shared]
    logits = [answers(one, tests) for one in teachers]
    together = torch.stack([functional.softmax(one, 1) for one in logits]).mean(0)
    fixed: list[tuple[str, float]] = [
        *((f"teacher {index + 1}", share_right(one, wanted)) for index, one in enumerate(logits)),
        ("the three teachers, mean of probabilities", share_right(together, wanted)),
    ]
    lessons = {
        "labels, no teacher": (teachers[:1], Teaching(epochs=EPOCHS, patience=EPOCHS, hard=1.0), known),
        **{
            f"teacher {index + 1}": ([one], Teaching(epochs=EPOCHS, patience=EPOCHS), None)
            for index, one in enumerate(teachers)
        },
        "three teachers": (teachers, Teaching(epochs=EPOCHS, patience=EPOCHS), None),
        "three teachers, with hints": (teachers, Teaching(epochs=EPOCHS, patience=EPOCHS, hints=HINTS), None),
    }
    reached: dict[str, list[float]] = {name: [] for name in lessons}
    for seed in SEEDS:
        for name, (tutors, teaching, hard) in lessons.items():
            seeded = Teaching(**{**vars(teaching), "seed": seed})
            taught = distil(student(seed), tutors, inputs, seeded, labels=hard)
            reached[name].append(share_right(answers(taught.student, tests), wanted))
            print(f"seed {seed}: student of {name}: {reached[name][-1]:.2f}", flush=True)
    RESULT.write_text("\n".join(table(fixed, reached)) + "\n")
    print(RESULT.read_text())


def table(fixed: list[tuple[str, float]], reached: dict[str, list[float]]) -> list[str]:
    """The page's lines."""
    means = {name: statistics.mean(values) for name, values in reached.items()}
    best = max((name for name in means if name.startswith("teacher ")), key=lambda name: means[name])
    pairs = [a - b for a, b in zip(reached["three teachers"], reached[best], strict=True)]
    gain = means["three teachers"] - means[best]
    better = "better" if gain > 0 else "not better"
    lines = [
        "# Several teachers",
        "",
        f"`python benchmarks/teaching.py`, {os.cpu_count()} cores, one thread, torch {torch.__version__}.",
        "",
        f"Teachers: `small_resnet` of width {WIDTH}, each trained on {OWN:,} images of its own. Students: width "
        f"{NARROW}, taught on {SHARED:,} others for {EPOCHS} epochs. Accuracy in percent, of 10,000 test images.",
        "",
        "| model | accuracy |",
        "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in fixed),
        "",
        f"| student of | {' | '.join(f'seed {seed}' for seed in SEEDS)} | mean |",
        f"|---|{'---|' * len(SEEDS)}---|",
        *(
            f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} | {means[name]:.2f} |"
            for name, values in reached.items()
        ),
        "",
        f"By the mean of {len(SEEDS)} seeds the student of three teachers is {better} than that of the best single "
        f"one ({best}): {gain:+.2f} points; {', '.join(f'{one:+.2f}' for one in pairs)} by seed.",
    ]
    return lines


if __name__ == "__main__":
    main()
