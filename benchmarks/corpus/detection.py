"""A detector of Fashion-MNIST articles on a larger, noisy picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from corpus import nets
from corpus.case import HERE, Case
from corpus.images import shipped, training_set
from corpus.training import trained

SIZE = 64


def pictures(images: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One article a picture, scaled to 20..44 pixels: pictures (n, 1, 64, 64), and class and box (n, 5)."""
    rng = np.random.default_rng(seed)
    canvas = rng.uniform(0, 0.3, (len(images), 1, SIZE, SIZE)).astype(np.float32)
    truth = np.zeros((len(images), 5), np.float32)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        side = int(rng.integers(20, 45))
        left, top = rng.integers(0, SIZE - side, 2)
        scaled = torch.nn.functional.interpolate(torch.from_numpy(image[None]), (side, side), mode="bilinear")
        place = canvas[index, :, top : top + side, left : left + side]
        np.maximum(place, scaled[0].numpy(), out=place)
        truth[index] = label, left + side / 2, top + side / 2, side, side
    return canvas, truth


def detector(folder: Path) -> Case:
    """Boxes in pixels and scores in [0, 1] in one output."""
    images, labels = training_set()
    weights = folder / "detector.safetensors"
    if not weights.is_file():
        samples, truth = pictures(images[:12_000], labels[:12_000], 0)
        trained(weights, nets.Detector, samples, truth, epochs=6, batch=64, loss=nets.detection_loss)
    calibration, _ = pictures(*shipped("calibration"), 1)
    evaluation, truth = pictures(*shipped("evaluation"), 2)
    return Case(
        task=f"detector, Fashion-MNIST articles on 64x64, {len(evaluation)} pictures",
        source=f"{HERE / 'nets.py'}:Detector",
        weights=weights,
        calibration={"picture": calibration},
        evaluation={"picture": evaluation, "labels": truth},
        metric=f"{HERE / 'metrics.py'}:detected",
        shown="right class, IoU 0.5",
        note="pictures are composed of real articles, so boxes are exact by construction",
        batch=50,
    )
