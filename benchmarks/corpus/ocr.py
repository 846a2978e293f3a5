"""PP-OCRv4's recognition on rendered text with noise; calibration and evaluation have different widths."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont

from corpus.case import HERE, Case
from corpus.packages import installed

HEIGHT = 48


def recognition(folder: Path) -> Case:
    """Lines of English words and a number."""
    model = installed("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_rec_infer.onnx"
    listed = next(entry.value for entry in onnx.load(model).metadata_props if entry.key == "character")
    index = {character: number for number, character in enumerate(listed.splitlines(), 1)}
    calibration, _ = lines(64, 1, 320, 0, index)
    evaluation, labels = lines(100, 3, 480, 1, index)
    return Case(
        task=f"PP-OCRv4 recognition, {len(evaluation)} rendered lines",
        source=str(model),
        calibration={"x": calibration},
        evaluation={"x": evaluation, "labels": labels},
        metric=f"{HERE / 'metrics.py'}:characters",
        shown="characters right",
        note="rendered text with noise; calibrated at width 320, evaluated at 480",
        batch=4,
    )


def lines(count: int, words: int, width: int, seed: int, index: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 48, width) in [-1, 1], and indices of their characters (n, longest), 0 where there is none."""
    chooser, rng = random.Random(seed), np.random.default_rng(seed)
    font = ImageFont.load_default(size=28)
    place = installed("timm") / "data" / "_info" / "imagenet_synset_to_definition.txt"
    known = [w for line in place.read_text().splitlines() for w in line.split("\t")[1].split() if 3 < len(w) < 9]
    known = [word for word in known if all(letter in index for letter in word)]
    images, texts = [], []
    while len(images) < count:
        text = "".join([*chooser.choices(known, k=words), str(chooser.randint(100, 99_999))])
        if font.getlength(text) + 16 > width:
            continue
        image = Image.new("RGB", (width, HEIGHT), "white")
        ImageDraw.Draw(image).text((8, 6), text, fill="black", font=font)
        noisy = np.clip(np.asarray(image) + rng.normal(0, 60, (HEIGHT, width, 3)), 0, 255)
        images.append((noisy.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1))
        texts.append([index[letter] for letter in text])
    labels = np.zeros((count, max(map(len, texts))), np.int64)
    for row, text in zip(labels, texts, strict=True):
        row[: len(text)] = text
    return np.stack(images), labels
