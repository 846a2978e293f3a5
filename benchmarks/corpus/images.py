"""Classifiers of Fashion-MNIST: the shipped one, and two designs that are hard to quantize."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from corpus import nets
from corpus.case import HERE, Case
from corpus.training import trained

ROOT = HERE.parents[1]
SHIPPED = ROOT / "calibration_data" / "fashion_mnist"
WHOLE = Path("/usr/share/datasets/fashion-mnist")
TRAINED_ON = 30_000


def training_set() -> tuple[np.ndarray, np.ndarray]:
    """The first images of the training split, (n, 1, 28, 28) in [0, 1], and their labels.

    The Debian package `dataset-fashion-mnist` brings them.
    """
    if not WHOLE.is_dir():
        raise FileNotFoundError(f"{WHOLE}: install the Debian package dataset-fashion-mnist")
    images = _bytes("train-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:TRAINED_ON]
    return images.astype(np.float32) / 255, _bytes("train-labels-idx1-ubyte.gz", 8)[:TRAINED_ON].astype(np.int64)


def _bytes(name: str, offset: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress((WHOLE / name).read_bytes()), np.uint8, offset=offset)


def shipped(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a set in `calibration_data`."""
    with np.load(SHIPPED / f"{name}.npz") as arrays:
        return arrays["image"][:, None].astype(np.float32) / 255, arrays["labels"]


def fashion_mnist(folder: Path) -> Case:
    """The small residual network of the example."""
    example = ROOT / "examples" / "fashion_mnist"
    return _case("residual CNN", f"{example / 'model.py'}:small_resnet", example / "weights.safetensors")


def mobilenet_v3(folder: Path) -> Case:
    """Hard-swish, depthwise convolutions, squeeze and excitation."""
    return _trained_case("MobileNetV3-style CNN", nets.mobilenet_v3, folder, epochs=2)


def vit(folder: Path) -> Case:
    """A vision transformer with 16 tokens."""
    return _trained_case("vision transformer", nets.Vit, folder, epochs=4)


def _trained_case(what: str, factory: Callable[[], nn.Module], folder: Path, epochs: int) -> Case:
    name = factory.__name__
    weights = trained(folder / f"{name}.safetensors", factory, *training_set(), epochs=epochs)
    return _case(what, f"{HERE / 'nets.py'}:{name}", weights)


def _case(what: str, source: str, weights: Path) -> Case:
    images, labels = shipped("evaluation")
    return Case(
        task=f"{what}, Fashion-MNIST classes, {len(images)} test images",
        source=source,
        weights=weights,
        calibration={"image": shipped("calibration")[0]},
        evaluation={"image": images, "labels": labels},
        batch=100,
    )
