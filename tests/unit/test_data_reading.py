"""Reading arrays: files, folders, batches, and files that lie about themselves."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from exporter.artifacts import Preprocessing, TensorSpec
from exporter.data import check, infer_inputs, open_set
from exporter.errors import DataError
from exporter.plan_types import DataPlan, EvaluationPlan

X = np.arange(7 * 3, dtype=np.float32).reshape(7, 3)
Y = np.arange(7, dtype=np.int64)
X_SPEC = TensorSpec(name="x", dtype="float32", shape=("batch", 3))


def opened(data: Path, *inputs: TensorSpec, labels: str | None = None, **plan: object):
    return open_set(DataPlan(data=str(data), **plan), inputs=inputs or (X_SPEC,), preprocessing={}, labels=labels)


def joined(data_set, size: int, name: str = "x") -> np.ndarray:
    return np.concatenate([batch.inputs[name] for batch in data_set.batches(size)])


def written(kind: str, folder: Path) -> Path:
    if kind == "npz":
        path = folder / "d.npz"
        np.savez(path, x=X, y=Y)
    elif kind == "compressed npz":
        path = folder / "d.npz"
        np.savez_compressed(path, x=X, y=Y)
    elif kind == "safetensors":
        path = folder / "d.safetensors"
        save_file({"x": X, "y": Y}, path)
    else:
        path = folder / "d"
        path.mkdir()
        np.save(path / "y.npy", Y)
        if kind == "stacked npy":
            np.save(path / "x.npy", X)
        else:
            (path / "x").mkdir()
            for index, row in enumerate(X):
                np.save(path / "x" / f"{index:03}.npy", row)
    return path


KINDS = ["npz", "compressed npz", "safetensors", "stacked npy", "npy per sample"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_samples_and_labels(kind, tmp_path):
    data_set = opened(written(kind, tmp_path), labels="y")
    assert data_set.samples == 7
    for _ in range(2):  # restartable
        batches = list(data_set.batches(3))
        assert [len(batch.inputs["x"]) for batch in batches] == [3, 3, 1]
        np.testing.assert_array_equal(np.concatenate([batch.inputs["x"] for batch in batches]), X)
        np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), Y)
    assert check(data_set).samples == 7


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(size=st.integers(1, 20), samples=st.none() | st.integers(1, 12))
def test_batches_of_any_size_join_to_the_whole(kind, tmp_path_factory, size, samples):
    data_set = opened(written(kind, tmp_path_factory.mktemp("d")), ignore=("y",), samples=samples)
    np.testing.assert_array_equal(joined(data_set, size), X[:samples])
    assert all(len(batch.inputs["x"]) <= size for batch in data_set.batches(size))


@pytest.mark.parametrize("kind", KINDS)
def test_specs_are_inferred_from_headers(kind, tmp_path):
    specs = infer_inputs(DataPlan(data=str(written(kind, tmp_path))), labels="y", preprocessing={})
    assert specs == (X_SPEC,)


def test_inference_renames_ignores_and_takes_a_fixed_batch(tmp_path):
    path = written("npz", tmp_path)
    plan = DataPlan(data=str(path), rename={"x": "tokens"}, ignore=("y",))
    assert infer_inputs(plan, labels=None, preprocessing={}, batch=4) == (
        TensorSpec(name="tokens", dtype="float32", shape=(4, 3)),
    )


def test_inference_of_pixels_gives_what_preprocessing_makes(tmp_path):
    np.savez(tmp_path / "d.npz", image=np.zeros((2, 8, 9), np.uint8))
    pre = {"image": Preprocessing(data_layout="HW", channel_order="GRAY")}
    specs = infer_inputs(DataPlan(data=str(tmp_path / "d.npz")), labels=None, preprocessing=pre)
    assert specs == (TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 9)),)


def test_inference_takes_float64_for_float32_and_keeps_integers(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.zeros((2, 3)), b=np.zeros((2, 4), np.int64))
    specs = infer_inputs(DataPlan(data=str(tmp_path / "d.npz")), labels=None, preprocessing={})
    assert [(spec.name, spec.dtype) for spec in specs] == [("a", "float32"), ("b", "int64")]


def test_inference_says_when_preprocessing_names_no_input(tmp_path):
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(DataError, match="'image', which is not in the data; did you mean 'images'"):
        infer_inputs(DataPlan(data=str(tmp_path / "d.npz")), labels=None, preprocessing={"image": Preprocessing()})


def test_inference_without_any_input_is_an_error(tmp_path):
    np.savez(tmp_path / "d.npz", y=Y)
    with pytest.raises(DataError, match="no array that could be an input"):
        infer_inputs(DataPlan(data=str(tmp_path / "d.npz")), labels="y", preprocessing={})


def test_labels_of_an_evaluation_section_need_no_repeating(tmp_path):
    plan = EvaluationPlan(data=str(written("npz", tmp_path)), labels="y")
    assert infer_inputs(plan, labels=None, preprocessing={}) == (X_SPEC,)
    batch = next(open_set(plan, inputs=(X_SPEC,), preprocessing={}).batches(2))
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1]


def test_files_at_the_top_are_samples_of_a_single_input(tmp_path):
    for index, row in enumerate(X):
        np.save(tmp_path / f"s{index}.npy", row)
    np.save(tmp_path / "labels.npy", Y)
    data_set = opened(tmp_path, labels="labels")
    np.testing.assert_array_equal(joined(data_set, 4), X)
    assert any("each of 7 .npy files is one sample" in note for note in data_set.notes)
    specs = infer_inputs(DataPlan(data=str(tmp_path)), labels="labels", preprocessing={})
    assert specs == (TensorSpec(name="input", dtype="float32", shape=("batch", 3)),)


def test_two_inputs_come_from_a_file_and_a_folder(tmp_path):
    np.save(tmp_path / "a.npy", X)
    (tmp_path / "b").mkdir()
    for index in range(7):
        np.save(tmp_path / "b" / f"{index}.npy", np.int64([index]))
    spec = (
        TensorSpec(name="a", dtype="float32", shape=("n", 3)),
        TensorSpec(name="b", dtype="int64", shape=("n", 1)),
    )
    data_set = opened(tmp_path, *spec)
    assert joined(data_set, 5, "b").ravel().tolist() == list(range(7))
    np.testing.assert_array_equal(joined(data_set, 5, "a"), X)


def test_samples_of_different_shape_are_batched_by_shape(tmp_path):
    lengths = [4, 4, 2, 4]
    for index, length in enumerate(lengths):
        np.save(tmp_path / f"{index}.npy", np.ones((length,), np.float32))
    data_set = opened(tmp_path, TensorSpec(name="x", dtype="float32", shape=("batch", "time")))
    assert [batch.inputs["x"].shape for batch in data_set.batches(3)] == [(2, 4), (1, 2), (1, 4)]
    assert check(data_set).samples == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_batch_gets_exactly_that_and_the_rest_is_noted(kind, tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(3, 3))
    data_set = opened(written(kind, tmp_path), spec, ignore=("y",))
    assert [batch.inputs["x"].shape for batch in data_set.batches(32)] == [(3, 3), (3, 3)]
    assert data_set.samples == 6
    assert "1 sample does not fill the model's fixed batch of 3 and is left out" in data_set.notes
    report = check(data_set)
    assert report.samples == 6
    assert len(report.sample_digests) == 6
    assert any("fixed batch of 3" in text for text in report.notes)


def test_fewer_samples_than_a_fixed_batch_is_an_error(tmp_path):
    data_set = opened(written("npz", tmp_path), TensorSpec(name="x", dtype="float32", shape=(8, 3)), ignore=("y",))
    with pytest.raises(DataError, match="7 samples; the model's batch is fixed to 8"):
        check(data_set)


def test_fortran_ordered_and_big_endian_arrays_read_as_they_are(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(X).astype(">f4", order="F"))
    np.testing.assert_array_equal(joined(opened(tmp_path / "d.npz"), 2), X)
    batch = next(opened(tmp_path / "d.npz").batches(7)).inputs["x"]
    assert batch.dtype.isnative
    assert batch.flags.c_contiguous
    assert batch.flags.writeable


def test_reading_a_compressed_npz_takes_the_memory_of_a_batch(tmp_path):
    big = np.zeros((64, 256 * 1024), np.float32)  # 64 MiB
    np.savez_compressed(tmp_path / "d.npz", x=big)
    del big
    data_set = opened(tmp_path / "d.npz", TensorSpec(name="x", dtype="float32", shape=("n", 256 * 1024)))
    tracemalloc.start()
    count = sum(len(batch.inputs["x"]) for batch in data_set.batches(2))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 64
    assert peak < 16 << 20


def test_a_batch_size_below_one_is_the_callers_mistake(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        opened(written("npz", tmp_path), ignore=("y",)).batches(0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.npz", "do not exist"),
        ("d.txt", "cannot be read from a '.txt' file"),
        ("d.pt", "cannot be read from a '.pt' file"),
        ("d.npy", "cannot be read from a '.npy' file"),
        ("gone.py:f", "does not exist"),
    ],
)
def test_what_cannot_be_data_is_refused_by_name(name, words, tmp_path):
    if not name.startswith(("none", "gone")):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=words) as caught:
        opened(tmp_path / name)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_empty_folder_and_a_mixed_one_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \.npy files and no images"):
        opened(tmp_path)
    np.save(tmp_path / "a.npy", X)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="both"):
        opened(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    outside = tmp_path / "outside.npy"
    np.save(outside, X)
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "x.npy").symlink_to(outside)
    with pytest.raises(DataError, match="leads outside"):
        opened(folder)


def test_object_arrays_are_refused_for_needing_pickle(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([[1], [1, 2]], dtype=object))
    with pytest.raises(DataError, match="need pickling and are refused"):
        check(opened(tmp_path / "d.npz"))
    folder = tmp_path / "d"
    folder.mkdir()
    np.save(folder / "x.npy", np.array([[1], [1, 2]], dtype=object))
    with pytest.raises(DataError, match="need pickling and are refused"):
        list(opened(folder).batches(1))
    (folder / "x.npy").rename(folder / "s1.npy")
    with pytest.raises(DataError, match=r"need pickling and are refused \(file s1.npy\)"):
        check(opened(folder))


def test_ignored_object_arrays_do_no_harm(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, meta=np.array([{"a": 1}], dtype=object))
    assert check(opened(tmp_path / "d.npz", ignore=("meta",))).samples == 7


def header_claiming(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1 << 40, 3), "more than the 64 GiB"), ((1000, 3), "is cut off"), ((-1, 3), "impossible shape")],
)
def test_headers_that_claim_what_is_not_there_are_refused(shape, words, tmp_path):
    raw = header_claiming(shape) + b"\0" * 24
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", raw)
    with pytest.raises(DataError, match=words):
        opened(tmp_path / "d.npz")
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "x.npy").write_bytes(raw)
    with pytest.raises(DataError, match=words):
        opened(folder)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header_claiming((2, 3)) + b"\0" * 24)
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")
    struct.pack_into("<I", raw, entry + 24, (2 << 30) - 1)  # the uncompressed size in the directory
    path.write_bytes(raw)
    with pytest.raises(DataError, match="it is refused"):
        opened(path)


def test_a_stored_member_cannot_claim_more_than_the_file(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=X)
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")
    struct.pack_into("<I", raw, entry + 24, 1 << 29)
    path.write_bytes(raw)
    with pytest.raises(DataError, match="more than the file holds"):
        opened(path)


@pytest.mark.parametrize("copies", [1, 5000])
def test_a_flipped_byte_inside_an_npz_is_found_by_the_check(copies, tmp_path):
    path = tmp_path / "d.npz"
    values = np.tile(X, (copies, 1))
    np.savez(path, x=values)
    raw = bytearray(path.read_bytes())
    raw[raw.index(values.tobytes()) + 5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="CRC"):
        check(opened(path))


@pytest.mark.parametrize("raw", [b"", b"PK", b"not a zip at all" * 10])
def test_what_is_no_zip_is_an_error_with_the_library_s_words(raw, tmp_path):
    (tmp_path / "d.npz").write_bytes(raw)
    with pytest.raises(DataError, match="cannot be read") as caught:
        opened(tmp_path / "d.npz")
    assert caught.value.why


def test_a_member_that_is_no_array_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"readme\.txt"):
        opened(tmp_path / "d.npz")


def test_a_safetensors_header_too_long_is_refused_before_the_library_reads_it(tmp_path):
    path = tmp_path / "d.safetensors"
    path.write_bytes(struct.pack("<Q", 200_000_000) + b"{}")
    with pytest.raises(DataError, match="more than the 100 MB"):
        opened(path)
    path.write_bytes(struct.pack("<Q", 1000) + b"{}")
    with pytest.raises(DataError, match="claims 1000 bytes, the file has 10"):
        opened(path)
    path.write_bytes(b"abc")
    with pytest.raises(DataError, match="too short"):
        opened(path)
    path.write_bytes(struct.pack("<Q", 2) + b"][")
    with pytest.raises(DataError, match="cannot be read"):
        opened(path)


def test_bfloat16_is_refused_with_a_way_out(tmp_path):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    path = tmp_path / "d.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 12)
    with pytest.raises(DataError, match="bfloat16") as caught:
        check(opened(path))
    assert caught.value.hint == "save it as float32"


def test_importing_the_room_loads_no_heavy_library():
    code = (
        "import sys, exporter.data; "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'PIL', 'numpy', 'safetensors'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
