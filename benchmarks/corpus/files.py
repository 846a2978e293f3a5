"""magika: which kind of file some bytes are, on the files of this machine, named by their extension."""

from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path

import numpy as np

from corpus.case import Case
from corpus.packages import installed

KINDS = {
    ".py": "python", ".so": "elf", ".png": "png", ".json": "json", ".c": "c", ".html": "html", ".md": "markdown",
    ".gz": "gzip", ".css": "css", ".sh": "shell", ".pyc": "pythonbytecode", ".svg": "svg", ".xml": "xml",
    ".csv": "csv", ".rst": "rst",
}  # fmt: skip
SIDE, PADDING, BLOCK = 1024, 256, 4096
EACH = 40


def magika(folder: Path) -> Case:
    """Up to 40 files a kind are evaluated, up to 10 others calibrate."""
    place = installed("magika") / "models" / "standard_v3_3"
    names = json.loads((place / "config.min.json").read_text())["target_labels_space"]
    calibration, evaluation, labels = [], [], []
    for extension, paths in sorted(_found().items()):
        chosen = random.Random(0).sample(sorted(paths), min(len(paths), EACH + 10))
        fifth = len(chosen) // 5
        calibration += [features(path) for path in chosen[:fifth]]
        evaluation += [features(path) for path in chosen[fifth:]]
        labels += [names.index(KINDS[extension])] * (len(chosen) - fifth)
    return Case(
        task=f"magika, kind of {len(labels)} files",
        source=str(place / "model.onnx"),
        calibration={"bytes": np.stack(calibration)},
        evaluation={"bytes": np.stack(evaluation), "labels": np.array(labels)},
        note="files of the machine that ran it, extension taken as truth",
    )


def _found() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {extension: [] for extension in KINDS}
    for root in (Path(sysconfig.get_paths()["stdlib"]), Path("/usr/share"), installed("sklearn"), installed("numpy")):
        for path in root.rglob("*"):
            if path.suffix in found and path.is_file() and not path.is_symlink() and path.stat().st_size > 256:
                found[path.suffix].append(path)
    return found


def features(path: Path) -> np.ndarray:
    """The first and the last 1024 bytes without white space at the ends, as numbers (2048,)."""
    content = path.read_bytes()
    first, last = list(content[:BLOCK].lstrip()[:SIDE]), list(content[-BLOCK:].rstrip()[-SIDE:])
    return np.array(first + [PADDING] * (SIDE - len(first)) + [PADDING] * (SIDE - len(last)) + last, np.int32)
