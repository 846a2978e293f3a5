"""From raw pixels to what a model takes, as `Preprocessing` says: geometry, channels, values, layout."""

from __future__ import annotations

import importlib
import warnings
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifacts import Preprocessing
from exporter.data.values import Problem
from exporter.errors import MissingError, shorten

if TYPE_CHECKING:
    from PIL.Image import Image

    from exporter.data.values import Array

_SAMPLE_AXES = {"HW": 2, "HWC": 3, "CHW": 3}
_DEEP_MODES = ("I", "F")


def pillow() -> Any:
    """The module PIL.Image.

    Raises:
        MissingError: Pillow is not installed.
    """
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MissingError(
            "Pillow is needed to read and to resize images",
            why=shorten(error),
            hint="pip install 'edge-exporter[images]'",
        ) from error


def load_image(path: Path, preprocessing: Preprocessing | None) -> Array:
    """One image file as one sample.

    The pixels are taken as they are stored: no rotation from EXIF, no alpha, the first frame only.

    Args:
        path: the image.
        preprocessing: what to do with it; without, the result is uint8 (H, W, C) with 1 or 3 channels.

    Returns:
        float32 in the model's layout, or uint8 (H, W, C).

    Raises:
        Problem: truncated, corrupt, too large, or of more than 8 bits per channel.
        MissingError: Pillow is not installed.
    """
    module = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", module.DecompressionBombWarning)
            with module.open(path) as opened:
                if opened.mode.startswith(_DEEP_MODES):
                    raise Problem(f"cannot be read from {path.name}: mode {opened.mode} is deeper than 8 bits")
                gray = opened.mode in ("1", "L") if preprocessing is None else _is_gray(preprocessing)
                image = opened.convert("L" if gray else "RGB")
    except (Problem, MissingError):
        raise
    except (module.DecompressionBombError, module.DecompressionBombWarning) as error:
        raise Problem(f"is refused in {path.name}: {shorten(error)}") from error
    except Exception as error:  # decoders of corrupt files raise whatever they stumble over
        raise Problem(f"cannot be read from {path.name}: {shorten(error)}") from error
    if preprocessing is None:
        return _pixels(image)
    if preprocessing.size is not None:
        image = resize(image, preprocessing)
    sample: Array = _finish(_order(_pixels(image)[None], preprocessing), preprocessing)[0]
    return sample


def apply_to_arrays(values: Array, preprocessing: Preprocessing) -> Array:
    """Raw stacked arrays as model-ready float32.

    Args:
        values: uint8 or uint16, (N, *data_layout).
        preprocessing: what to do with them.

    Returns:
        float32 (N, *layout).

    Raises:
        Problem: another rank or number of channels, or a size that only uint8 can be brought to.
        MissingError: a resize without Pillow.
    """
    rank = _SAMPLE_AXES[preprocessing.data_layout]
    if values.ndim != rank + 1:
        layout = preprocessing.data_layout
        raise Problem(
            f"has samples of rank {values.ndim - 1}, data_layout {layout} says {rank}",
            "set data_layout to the axes of one raw sample: HW, HWC or CHW",
        )
    match preprocessing.data_layout:
        case "HW":
            pixels = values[..., None]
        case "CHW":
            pixels = values.transpose(0, 2, 3, 1)
        case _:
            pixels = values
    if pixels.shape[-1] not in (1, 3):
        raise Problem(
            f"has {pixels.shape[-1]} channels with data_layout {preprocessing.data_layout}, 1 or 3 are read",
            "set data_layout, or give model-ready float32 arrays",
        )
    if preprocessing.size is not None and pixels.shape[1:3] != preprocessing.size:
        pixels = _resize_arrays(pixels, preprocessing)
    return _finish(_order(pixels, preprocessing), preprocessing)


def resize(image: Image, preprocessing: Preprocessing) -> Image:
    """Brings an image to `size`; with crop `center` by scaling the shorter side and cutting the centre out."""
    if preprocessing.size is None:
        return image
    module = pillow()
    method = getattr(module.Resampling, preprocessing.interpolation.upper())
    height, width = preprocessing.size
    if preprocessing.crop == "none":
        return image if image.size == (width, height) else image.resize((width, height), method)
    # An epsilon keeps 224 / 0.875 at 256 whatever the rounding of the division.
    cover_height = floor(height / preprocessing.crop_fraction + 1e-9)
    cover_width = floor(width / preprocessing.crop_fraction + 1e-9)
    factor = max(cover_height / image.height, cover_width / image.width)
    scaled_height = max(cover_height, floor(image.height * factor + 1e-9))
    scaled_width = max(cover_width, floor(image.width * factor + 1e-9))
    if image.size != (scaled_width, scaled_height):
        image = image.resize((scaled_width, scaled_height), method)
    top, left = round((scaled_height - height) / 2), round((scaled_width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _is_gray(preprocessing: Preprocessing) -> bool:
    return preprocessing.channel_order == "GRAY"


def _pixels(image: Image) -> Array:
    values: Array = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


def _resize_arrays(pixels: Array, preprocessing: Preprocessing) -> Array:
    if pixels.dtype != np.uint8:
        raise Problem(
            f"has samples of {pixels.shape[1]}x{pixels.shape[2]} pixels in {pixels.dtype}, "
            f"only uint8 is brought to size {list(preprocessing.size or ())}"
        )
    module = pillow()
    images = (module.fromarray(sample[..., 0] if sample.shape[-1] == 1 else sample) for sample in pixels)
    resized = [_pixels(resize(image, preprocessing)) for image in images]
    height, width = preprocessing.size or (0, 0)
    return np.stack(resized) if resized else np.empty((0, height, width, pixels.shape[-1]), np.uint8)


def _order(pixels: Array, preprocessing: Preprocessing) -> Array:
    """Channels of (N, H, W, 1 or 3), in the order RGB, as the model takes them."""
    if _is_gray(preprocessing):
        return pixels if pixels.shape[-1] == 1 else _luma(pixels)
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    return pixels[..., ::-1] if preprocessing.channel_order == "BGR" else pixels


def _luma(pixels: Array) -> Array:
    """ITU-R 601-2 in Pillow's fixed point, so that arrays and image files give the same gray."""
    weighted = pixels.astype(np.uint64) @ np.array([19595, 38470, 7471], np.uint64)
    return ((weighted + 0x8000) >> np.uint64(16)).astype(pixels.dtype)[..., None]


def _finish(pixels: Array, preprocessing: Preprocessing) -> Array:
    """(N, H, W, C) as float32 in the model's layout: `(pixels * scale - mean) / std`."""
    channels = pixels.shape[-1]
    values = pixels.astype(np.float32)
    values *= np.float32(preprocessing.scale)
    if preprocessing.mean:
        values -= _per_channel("mean", preprocessing.mean, channels)
    if preprocessing.std:
        std = _per_channel("std", preprocessing.std, channels)
        if not std.all():
            raise Problem("is divided by a `std` of zero")
        values /= std
    if preprocessing.layout == "HWC":
        return values
    if preprocessing.layout == "CHW":
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    if channels != 1:
        raise Problem("has 3 channels, layout HW takes one", 'set channel_order = "GRAY", or another layout')
    return values[..., 0]


def _per_channel(key: str, values: tuple[float, ...], channels: int) -> Array:
    if len(values) not in (1, channels):
        raise Problem(f"has {channels} channels, `{key}` has {len(values)} values")
    return np.array(values, np.float32)
