"""Image folders, and pixels as `Preprocessing` says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exporter.artifacts import Preprocessing, TensorSpec
from exporter.data import check, infer_inputs, open_set
from exporter.errors import DataError, MissingError
from exporter.plan_types import DataPlan, EvaluationPlan

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8, 3), np.uint8)


def spec(*shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name="image", dtype=dtype, shape=("batch", *shape))


def save(path: Path, pixels: np.ndarray = RGB) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def one(folder: Path, pre: Preprocessing, *shape: int) -> np.ndarray:
    data_set = open_set(DataPlan(data=str(folder)), inputs=(spec(*shape),), preprocessing={"image": pre})
    return next(data_set.batches(1)).inputs["image"][0]


def from_array(folder: Path, values: np.ndarray, pre: Preprocessing, *shape: int) -> np.ndarray:
    np.savez(folder / "d.npz", image=values)
    plan = DataPlan(data=str(folder / "d.npz"))
    data_set = open_set(plan, inputs=(spec(*shape),), preprocessing={"image": pre})
    return next(data_set.batches(8)).inputs["image"]


def test_values_are_scaled_then_shifted_then_divided(tmp_path):
    save(tmp_path / "a.png")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    got = one(tmp_path, Preprocessing(mean=mean, std=std), 3, 6, 8)
    want = (RGB.astype(np.float64) / 255 - mean) / std
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("order", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize("data_layout", ["HWC", "CHW"])
def test_arrays_and_image_files_give_the_same_values(order, data_layout, tmp_path):
    pre = Preprocessing(channel_order=order, data_layout=data_layout, scale=1.0)
    channels = 1 if order == "GRAY" else 3
    save(tmp_path / "f" / "a.png")
    values = RGB[None] if data_layout == "HWC" else RGB.transpose(2, 0, 1)[None]
    expected = np.array(Image.fromarray(RGB).convert("L"))[..., None] if order == "GRAY" else RGB
    expected = expected[..., ::-1] if order == "BGR" else expected
    got = from_array(tmp_path, values, pre, channels, 6, 8)[0]
    np.testing.assert_array_equal(got, expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(one(tmp_path / "f", pre, channels, 6, 8), got)


@pytest.mark.parametrize(
    ("layout", "order", "shape"),
    [
        ("CHW", "GRAY", (1, 6, 8)),
        ("HWC", "GRAY", (6, 8, 1)),
        ("HW", "GRAY", (6, 8)),
        ("HWC", "RGB", (6, 8, 3)),
        ("CHW", "RGB", (3, 6, 8)),
    ],
)
def test_gray_arrays_take_the_layout_of_the_model(layout, order, shape, tmp_path):
    pre = Preprocessing(data_layout="HW", layout=layout, channel_order=order, scale=1.0)
    got = from_array(tmp_path, RGB[None, ..., 0], pre, *shape)
    assert got.shape == (1, *shape)
    plane = got[0].reshape(6, 8) if order == "GRAY" else (got[0][0] if layout == "CHW" else got[0][..., 0])
    np.testing.assert_array_equal(plane, RGB[..., 0])


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_stretching_is_what_pillow_does_for_files_and_arrays(interpolation, tmp_path):
    save(tmp_path / "f" / "a.png")
    pre = Preprocessing(size=(5, 4), interpolation=interpolation, scale=1.0)
    method = getattr(Image.Resampling, interpolation.upper())
    want = np.asarray(Image.fromarray(RGB).resize((4, 5), method)).transpose(2, 0, 1)
    np.testing.assert_array_equal(one(tmp_path / "f", pre, 3, 5, 4), want)
    np.testing.assert_array_equal(from_array(tmp_path, RGB[None], pre, 3, 5, 4)[0], want)


def test_a_centre_crop_scales_the_shorter_side_and_cuts_the_middle(tmp_path):
    pixels = RNG.integers(0, 256, (300, 400, 3), np.uint8)
    save(tmp_path / "a.png", pixels)
    pre = Preprocessing(size=(224, 224), crop="center", crop_fraction=0.875, scale=1.0)
    scaled = Image.fromarray(pixels).resize((341, 256), Image.Resampling.BILINEAR)
    left, top = round((341 - 224) / 2), round((256 - 224) / 2)
    want = np.asarray(scaled.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)
    np.testing.assert_array_equal(one(tmp_path, pre, 3, 224, 224), want)


@pytest.mark.parametrize("source", [(7, 50), (50, 7), (31, 33), (9, 9)])
@pytest.mark.parametrize("fraction", [1.0, 0.95, 0.875, 0.5])
def test_a_centre_crop_has_the_size_asked_whatever_the_image(source, fraction, tmp_path):
    save(tmp_path / "a.png", RNG.integers(0, 256, (*source, 3), np.uint8))
    pre = Preprocessing(size=(8, 12), crop="center", crop_fraction=fraction)
    assert one(tmp_path, pre, 3, 8, 12).shape == (3, 8, 12)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".webp", ".PNG"])
def test_every_image_suffix_is_read(suffix, tmp_path):
    save(tmp_path / f"a{suffix}")
    assert one(tmp_path, Preprocessing(), 3, 6, 8).shape == (3, 6, 8)


def test_palette_and_transparent_images_become_rgb(tmp_path):
    Image.fromarray(RGB).convert("P").save(tmp_path / "a.png")
    Image.fromarray(RGB).convert("RGBA").save(tmp_path / "b.png")
    inputs, pre = (spec(3, 6, 8),), {"image": Preprocessing(scale=1.0)}
    data_set = open_set(DataPlan(data=str(tmp_path)), inputs=inputs, preprocessing=pre)
    batch = next(data_set.batches(2)).inputs["image"]
    np.testing.assert_array_equal(batch[1], RGB.transpose(2, 0, 1))


def test_images_without_a_size_come_in_batches_of_equal_shape(tmp_path):
    for index, width in enumerate([8, 8, 5]):
        save(tmp_path / f"{index}.png", RGB[:, :width])
    data_set = open_set(
        DataPlan(data=str(tmp_path)), inputs=(spec(3, "h", "w"),), preprocessing={"image": Preprocessing()}
    )
    assert [batch.inputs["image"].shape for batch in data_set.batches(4)] == [(2, 3, 6, 8), (1, 3, 6, 5)]


def test_pixels_go_to_a_uint8_input_as_they_are(tmp_path):
    save(tmp_path / "a.png")
    data_set = open_set(DataPlan(data=str(tmp_path)), inputs=(spec(6, 8, 3, dtype="uint8"),), preprocessing={})
    np.testing.assert_array_equal(next(data_set.batches(1)).inputs["image"][0], RGB)


def test_inference_reads_the_first_image(tmp_path):
    save(tmp_path / "a.png")
    plan = DataPlan(data=str(tmp_path))
    pre = {"pixels": Preprocessing(size=(5, 7), channel_order="GRAY")}
    assert infer_inputs(plan, labels=None, preprocessing=pre) == (
        TensorSpec(name="pixels", dtype="float32", shape=("batch", 1, 5, 7)),
    )
    assert infer_inputs(plan, labels=None, preprocessing={})[0] == TensorSpec(
        name="input", dtype="uint8", shape=("batch", 6, 8, 3)
    )


def classes(folder: Path, *names: str) -> EvaluationPlan:
    for name in names:
        save(folder / name / "a.png")
    return EvaluationPlan(data=str(folder), labels="folder")


def labels(plan: EvaluationPlan, class_names: tuple[str, ...] = ()) -> tuple[list[int], tuple[str, ...]]:
    data_set = open_set(
        plan, inputs=(spec(3, 6, 8),), preprocessing={"image": Preprocessing()}, class_names=class_names
    )
    report = check(data_set)
    return [int(label) for batch in data_set.batches(2) for label in batch.labels], report.notes


def test_labels_are_the_places_of_folders_in_the_class_names(tmp_path):
    assert labels(classes(tmp_path, "cat", "dog"), ("dog", "bird", "cat"))[0] == [2, 0]


def test_without_class_names_folders_count_in_sorted_order_and_this_is_noted(tmp_path):
    found, notes = labels(classes(tmp_path, "dog", "ant"))
    assert found == [0, 1]
    assert any("0 ant, 1 dog" in note for note in notes)


def test_a_folder_of_no_class_is_an_error_with_the_closest_match(tmp_path):
    with pytest.raises(DataError, match="'dogs'; did you mean 'dog'"):
        labels(classes(tmp_path, "cat", "dogs"), ("cat", "dog"))


def test_an_image_outside_of_class_folders_is_an_error_with_labels(tmp_path):
    plan = classes(tmp_path, "cat")
    save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"1 images are in no class folder, the first is loose\.png"):
        labels(plan)


def test_truncated_and_corrupt_images_are_all_named(tmp_path):
    save(tmp_path / "a.png", RNG.integers(0, 256, (64, 64, 3), np.uint8))
    raw = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "c.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError) as caught:
        check(
            open_set(
                DataPlan(data=str(tmp_path)), inputs=(spec(3, 64, 64),), preprocessing={"image": Preprocessing()}
            )
        )
    assert "b.png" in str(caught.value)
    assert "c.jpg" in str(caught.value)
    assert "a.png" not in str(caught.value)


def test_a_decompression_bomb_stays_an_error(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # 48 pixels: Pillow itself would only warn
    with pytest.raises(DataError, match=r"is refused in a\.png"):
        one(tmp_path, Preprocessing(), 3, 6, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"is refused in a\.png"):
        one(tmp_path, Preprocessing(), 3, 6, 8)


def test_deep_images_are_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="deeper than 8 bits"):
        one(tmp_path, Preprocessing(channel_order="GRAY"), 1, 4, 4)


def test_without_pillow_the_error_names_the_extra(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingError) as caught:
        one(tmp_path, Preprocessing(), 3, 6, 8)
    assert caught.value.hint == "pip install 'edge-exporter[images]'"
    assert caught.value.exit_code == 4
    assert from_array(tmp_path, RGB[None], Preprocessing(), 3, 6, 8).shape == (1, 3, 6, 8)


@pytest.mark.parametrize(
    ("values", "pre", "words"),
    [
        (np.zeros((2, 6, 8), np.uint8), Preprocessing(), "samples of rank 2, data_layout HWC says 3"),
        (np.zeros((2, 6, 8, 4), np.uint8), Preprocessing(), "has 4 channels"),
        (np.zeros((2, 9, 9, 3), np.uint16), Preprocessing(size=(6, 8)), "only uint8 is brought to size"),
        (np.zeros((2, 6, 8, 3), np.uint8), Preprocessing(mean=(0.1, 0.2)), "`mean` has 2 values"),
        (np.zeros((2, 6, 8, 3), np.uint8), Preprocessing(std=(0.0,)), "`std` of zero"),
        (np.zeros((2, 6, 8, 3), np.uint8), Preprocessing(layout="HW"), "layout HW takes one"),
        (np.zeros((2, 6, 8, 3), np.float32), Preprocessing(), "preprocessing applies to uint8 only"),
        (np.zeros((2, 6, 8, 3), np.int64), Preprocessing(), "is int64, the model takes float32"),
    ],
)
def test_arrays_that_preprocessing_cannot_take_are_refused(values, pre, words, tmp_path):
    with pytest.raises(DataError) as caught:
        from_array(tmp_path, values, pre, 3, 6, 8)
    assert words in str(caught.value)


def test_preprocessing_for_an_integer_model_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", image=RGB[None])
    plan = DataPlan(data=str(tmp_path / "d.npz"))
    pre = {"image": Preprocessing(layout="HWC")}
    with pytest.raises(DataError, match="preprocessing gives float32"):
        check(open_set(plan, inputs=(spec(6, 8, 3, dtype="uint8"),), preprocessing=pre))


def test_other_files_and_hidden_ones_are_left_out_and_counted(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / ".cache" / "b.png")
    (tmp_path / "README.txt").write_text("hello")
    data_set = open_set(
        DataPlan(data=str(tmp_path)), inputs=(spec(3, 6, 8),), preprocessing={"image": Preprocessing()}
    )
    assert data_set.samples == 1
    assert "1 files that are not images were left out" in data_set.notes
