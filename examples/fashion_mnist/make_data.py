"""Draw the calibration and evaluation sets shipped in ``calibration_data/fashion_mnist``.

Both sets are fixed by the seed, so running the script again writes the same bytes.
The ``[[set]]`` tables for ``calibration_data/manifest.toml`` go to standard output.

    python examples/fashion_mnist/make_data.py
"""

import argparse
import gzip
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

DATASET = Path("/usr/share/datasets/fashion-mnist")
OUTPUT = Path(__file__).resolve().parents[2] / "calibration_data" / "fashion_mnist"
CLASSES = 10
CALIBRATION_IMAGES = 256
EVALUATION_IMAGES = 2000

U8Array = npt.NDArray[np.uint8]
I64Array = npt.NDArray[np.int64]


def read_idx(path: Path) -> U8Array:
    """Read one gzip-compressed idx file of unsigned bytes.

    Args:
        path: An ``*-ubyte.gz`` file.

    Returns:
        The stored array, e.g. (60000, 28, 28) for images or (60000,) for labels.

    Raises:
        ValueError: If the file does not hold an idx array of unsigned bytes.
    """
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an idx file of unsigned bytes")
    rank = raw[3]
    header = 4 + 4 * rank
    shape = np.frombuffer(raw[4:header], dtype=">u4").astype(int)
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[U8Array, I64Array]:
    """Read the images and labels of one Fashion-MNIST split.

    Args:
        folder: Folder with the four idx files of Fashion-MNIST.
        split: ``train`` or ``t10k``.

    Returns:
        Images as uint8 (n, 28, 28) and labels as int64 (n,).
    """
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    return images, labels.astype(np.int64)


def draw_balanced(labels: I64Array, count: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Draw sample indices with class counts that differ by at most one.

    Args:
        labels: Labels to draw from, (n,).
        count: How many to draw; the first ``count % CLASSES`` classes get one more.
        rng: Source of the draw and of the order.

    Returns:
        Distinct indices in random order, (count,).
    """
    chosen = [
        rng.choice(
            np.flatnonzero(labels == label),
            size=count // CLASSES + (label < count % CLASSES),
            replace=False,
        )
        for label in range(CLASSES)
    ]
    return rng.permutation(np.concatenate(chosen))


def write_set(path: Path, image: U8Array, labels: I64Array, origin: str) -> str:
    """Write one set and describe it.

    Args:
        path: The npz file to write.
        image: Images, (n, 28, 28).
        labels: Labels, (n,).
        origin: Where the samples come from and how they were drawn.

    Returns:
        The file's ``[[set]]`` table for the manifest.
    """
    np.savez_compressed(path, image=image, labels=labels)
    arrays = "".join(
        f'    {{ name = "{name}", dtype = "{array.dtype}", shape = {list(array.shape)} }},\n'
        for name, array in (("image", image), ("labels", labels))
    )
    return (
        "[[set]]\n"
        f'file = "{path.parent.name}/{path.name}"\n'
        f'sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}"\n'
        f"samples = {len(image)}\n"
        f"arrays = [\n{arrays}]\n"
        f'origin = "{origin}"\n'
        'licence = "MIT"\n'
        'copyright = "Copyright (c) 2017 Zalando SE"\n'
    )


def main() -> None:
    """Write both sets and print their manifest tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATASET, help="folder with the idx.gz files")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the npz files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    train_images, train_labels = read_split(options.data, "train")
    test_images, test_labels = read_split(options.data, "t10k")

    rng = np.random.default_rng(options.seed)
    calibration = draw_balanced(train_labels, CALIBRATION_IMAGES, rng)
    evaluation = draw_balanced(test_labels, EVALUATION_IMAGES, rng)

    origin = (
        "Fashion-MNIST by Zalando SE, {split} split: {count} images, class-balanced{rest}, "
        f"drawn with seed {options.seed} by examples/fashion_mnist/make_data.py"
    )
    options.output.mkdir(parents=True, exist_ok=True)
    print(
        write_set(
            options.output / "calibration.npz",
            train_images[calibration],
            train_labels[calibration],
            origin.format(
                split="training",
                count=CALIBRATION_IMAGES,
                rest=" (25 or 26 a class)",
            ),
        )
    )
    print(
        write_set(
            options.output / "evaluation.npz",
            test_images[evaluation],
            test_labels[evaluation],
            origin.format(split="test", count=EVALUATION_IMAGES, rest=" (200 a class)"),
        ),
        end="",
    )


if __name__ == "__main__":
    main()
