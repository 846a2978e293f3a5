"""Faces told from other things: MTCNN's networks on the LFW subset in scikit-image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from corpus.case import HERE, Case
from corpus.packages import installed


def r_net(folder: Path) -> Case:
    """Inputs of 24x24."""
    return _case("r_net", 24)


def o_net(folder: Path) -> Case:
    """Inputs of 48x48."""
    return _case("o_net", 48)


def _case(name: str, side: int) -> Case:
    grey = np.load(installed("skimage") / "data" / "lfw_subset.npy").astype(np.float32)
    pixels = torch.from_numpy(grey / grey.max() * 255)[:, None].expand(-1, 3, -1, -1)
    scaled = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    images = ((scaled - 127.5) / 128).numpy()
    labels = (np.arange(len(images)) < 100).astype(np.int64)  # the file holds 100 faces, then 100 others
    even = np.arange(len(images)) % 2 == 0
    return Case(
        task=f"MTCNN {name.replace('_', '-')}, face or not, {int((~even).sum())} LFW crops",
        source=f"{HERE / 'packaged.py'}:{name}",
        weights=installed("facenet_pytorch") / "data" / f"{name.replace('_', '')}.pt",
        calibration={"crop": images[even]},
        evaluation={"crop": images[~even], "labels": labels[~even]},
        metric=f"{HERE / 'metrics.py'}:face_auc",
        shown="AUC",
        note="AUC of the float model is at its limit here: a weak probe",
    )
