"""Bad plans and data: each gets one clear message and the right exit code, and leaves nothing behind."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import onnx
import pytest
from support import Workplace, quadrant_onnx, quadrants, refused, toml_plan

GOOD = {
    "model": {"source": "model.onnx"},
    "calibration": {"data": "calib.npz"},
    "evaluation": {"data": "eval.npz", "labels": "y"},
    "targets.cpu": {},
}
CHEAP = ("--no-profile", "--progress", "none")


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    """model.onnx with good data, for plans with one fault each."""
    shared_place.onnx()
    shared_place.quadrants()
    return shared_place


def build(place: Workplace, sections: dict, code: int, *mentions: str, hint: bool = True) -> str:
    place.write("plan.toml", toml_plan(sections))
    message = refused(place.run("build", "plan.toml", *CHEAP), code, *mentions, hint=hint)
    assert place.bundles() == []
    return message


def changed(section: str, **values: object) -> dict:
    return {**GOOD, section: {**GOOD.get(section, {}), **values}}


# --- plans ---------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_answered_with_the_closest_one(place):
    sections = changed("quantize", observr="minmax")
    build(place, sections, 3, "quantize.observr", "did you mean 'observer'?", "plan.toml")


def test_an_unknown_section_is_answered_with_the_closest_one(place):
    build(place, {**GOOD, "calibratoin": {"data": "calib.npz"}}, 3, "calibratoin", "did you mean 'calibration'?")


def test_all_problems_of_a_plan_are_told_at_once(place):
    sections = {**changed("quantize", observer="mean", per_chanel=True), "gate": {"max_relative_loss": 2}}
    message = build(place, sections, 3, "the plan has 3 problems", "per_chanel", "observer", "max_relative_loss")
    assert message.count("\n  - ") == 3


def test_dynamic_int8_is_refused_where_no_kernel_here_can_judge_it(place):
    sections = {**changed("quantize", dynamic=True), "targets.arm": {}}
    del sections["targets.cpu"]
    message = build(place, sections, 3, "target 'arm' makes no dynamic int8", "quantize.dynamic")
    assert "[targets.arm.quantize] dynamic = false" in message


def test_an_unknown_target_is_answered_with_the_known_ones(place):
    build(place, {**GOOD, "targets.cpuu": {}}, 3, "there is no target 'cpuu'", "did you mean 'cpu'?")
    refused(place.run("build", "model.onnx", "--calib", "calib.npz", "--target", "tpu"), 3, "'tpu'", "cpu")


def test_a_value_of_another_type_is_named_with_its_key(place):
    build(place, changed("profile", threads="two"), 3, "profile.threads")


def test_text_that_is_no_toml_is_told_with_its_line(place):
    place.write("broken.toml", "schema = 1\n[model\n")
    refused(place.run("build", "broken.toml"), 3, "not valid TOML", "line 2", hint=False)


def test_a_plan_of_another_schema_is_refused(place):
    place.write("old.toml", toml_plan(GOOD).replace("schema = 1", "schema = 9"))
    refused(place.run("build", "old.toml"), 3, "schema is 9", "schema = 1")


@pytest.mark.parametrize("value", ["quantize", "quantize.observer", "=minmax", "quantize.nothing=1"])
def test_a_wrong_set_is_told_as_such(place, value):
    place.write("plan.toml", toml_plan(GOOD))
    refused(place.run("build", "plan.toml", "--set", value), 3, value.partition("=")[0] or "--set =minmax")


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "file"),
    [
        ("model", "source", "modle.onnx"),
        ("calibration", "data", "cal.npz"),
        ("evaluation", "data", "nowhere/eval.npz"),
        ("evaluation", "metric", "score.py:mine"),
    ],
)
def test_a_missing_file_is_named_with_the_key_that_asks_for_it(place, section, key, file):
    build(place, changed(section, **{key: file}), 3, f"{section}.{key}", file.partition(":")[0], "does not exist")


def test_a_missing_plan_tells_how_to_write_one(place):
    refused(place.run("build", "nothing.toml"), 3, "the plan file does not exist", "edge-exporter init")


def test_a_plan_without_data_is_refused_because_inputs_are_never_made_up(place):
    sections = {key: value for key, value in GOOD.items() if key in ("model", "targets.cpu")}
    build(place, sections, 3, "no data", "--calib")


def test_int8_without_calibration_data_is_refused(place):
    sections = {key: value for key, value in GOOD.items() if key != "calibration"}
    build(place, sections, 3, "int8 needs calibration data", "quantize.enabled=false")


# --- data ----------------------------------------------------------------------------------------------------------


def bad_data() -> dict[str, tuple[dict, tuple[str, ...]]]:
    images, labels = quadrants(8, seed=1)
    with_nan = images.copy()
    with_nan[3, 0, 1, 2] = np.nan
    with_inf = images.copy()
    with_inf[5] = np.inf
    return {
        "a wrong name": ({"imgae": images}, ("'image' is missing", "did you mean 'imgae'?", "rename")),
        "an array too many": ({"image": images, "mask": labels}, ("array 'mask' is no input", "ignore")),
        "a wrong dtype": ({"image": images.astype(np.complex64)}, ("'image'", "complex64")),
        "whole numbers for floats": ({"image": (images * 255).astype(np.int64)}, ("'image'", "int64", "float32")),
        "a wrong rank": ({"image": images[:, 0]}, ("'image'", "[batch, 1, 8, 8]")),
        "a wrong size": ({"image": images[..., :7]}, ("'image'", "7", "8")),
        "NaN": ({"image": with_nan}, ("'image'", "NaN", "3")),
        "infinity": ({"image": with_inf}, ("'image'", "inf", "5")),
        "no samples": ({"image": images[:0]}, ("0 samples",)),
        "no arrays": ({}, ("no arrays",)),
        "objects": ({"image": np.array([{"a": 1}, None], dtype=object)}, ("'image'", "object")),
        "text": ({"image": np.array(["a", "b"])}, ("'image'",)),
    }


@pytest.mark.parametrize("fault", list(bad_data()))
@pytest.mark.parametrize("section", ["calibration", "evaluation"])
def test_data_that_do_not_fit_are_told_before_work_starts(place, section, fault):
    arrays, mentions = bad_data()[fault]
    if section == "evaluation":
        arrays = {**arrays, "y": np.zeros(max(1, len(next(iter(arrays.values()), []))), np.int64)}
        mentions = tuple("'y'" if mention == "no arrays" else mention for mention in mentions)
        mentions = () if fault in ("no samples",) else mentions
    place.npz("bad.npz", **arrays)
    build(place, changed(section, data="bad.npz"), 3, "bad.npz", *mentions, hint=False)


def test_labels_of_another_length_are_told_with_both_lengths(place):
    images, labels = quadrants(8, seed=1)
    place.npz("short.npz", image=images, y=labels[:5])
    build(place, changed("evaluation", data="short.npz"), 3, "short.npz", "5", "8", hint=False)


def test_labels_that_are_not_there_are_told_with_what_is(place):
    build(place, changed("evaluation", labels="yy"), 3, "labels 'yy' are missing", "did you mean 'y'?", hint=False)


def test_labels_that_are_no_classes_are_refused_for_accuracy(place):
    images, _ = quadrants(8, seed=1)
    place.npz("odd.npz", image=images, y=np.linspace(0, 1, 8))
    build(place, changed("evaluation", data="odd.npz"), 3, "y", hint=False)


@pytest.mark.parametrize("name", ["broken.npz", "broken.safetensors"])
def test_a_data_file_that_is_none_is_refused(place, name):
    (place / name).write_bytes(b"PK\x03\x04 not really" * 9)
    build(place, changed("calibration", data=name), 3, name, hint=False)


def test_a_pickle_as_data_is_refused(place):
    (place / "calib.pkl").write_bytes(pickle.dumps({"image": 1}))
    build(place, changed("calibration", data="calib.pkl"), 3, "calib.pkl")


@pytest.mark.parametrize(
    ("body", "mentions"),
    [
        ("raise KeyError('row 7')", ("KeyError", "row 7", "feed.py")),
        ("return 3", ("feed.py",)),
        ("yield 3", ("feed.py",)),
        ("yield from ()", ("feed.py",)),
    ],
)
def test_a_callable_that_does_not_give_samples_is_told(place, body, mentions):
    place.write("feed.py", f"def samples():\n    {body}\n")
    build(place, changed("calibration", data="feed.py:samples"), 3, *mentions, hint=False)


def test_images_without_pillow_name_the_extra_that_brings_it(place, monkeypatch):
    (place / "photos").mkdir()
    (place / "photos" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "PIL", None)
    for name in [name for name in sys.modules if name.startswith("PIL.")]:
        monkeypatch.setitem(sys.modules, name, None)
    sections = {**changed("calibration", data="photos"), "model.inputs.image": {"preprocess": {"size": [8, 8]}}}
    place.write("plan.toml", toml_plan(sections).replace('{"size": [8, 8]}', "{ size = [8, 8] }"))
    refused(place.run("build", "plan.toml", *CHEAP), 4, "edge-exporter[images]")


# --- metrics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "mentions"),
    [
        ("raise ZeroDivisionError('no positives')", ("raised", "ZeroDivisionError: no positives")),
        ("return float('nan')", ("returned nan",)),
        ("return float('inf')", ("returned inf",)),
        ("return 'good'", ("good",)),
        ("return None", ("NoneType",)),
        ("raise SystemExit(0)", ("SystemExit",)),
    ],
)
def test_a_metric_that_fails_is_told_with_its_name(place, body, mentions):
    place.write("score.py", f"def mine(outputs, labels):\n    {body}\n")
    sections = changed("evaluation", metric="score.py:mine")
    build(place, sections, 3, "evaluation metric", "score.py:mine", *mentions, hint=False)


def test_a_metric_that_does_not_exist_is_told(place):
    place.write("score.py", "def mine(outputs, labels):\n    return 1.0\n")
    build(place, changed("evaluation", metric="score.py:mime"), 3, "no function 'mime'", "'mine'", hint=False)
    build(place, changed("evaluation", metric="acuracy"), 3, "acuracy")


def test_an_output_that_does_not_exist_is_told_with_those_that_do(place):
    build(place, changed("evaluation", output="score"), 3, "no output 'score'", "did you mean 'scores'?")


# --- onnx files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["text", "cut", "empty", "flipped"])
def test_a_corrupt_onnx_file_is_told(place, damage):
    content = (place / "model.onnx").read_bytes()
    flipped = bytearray(content)
    flipped[0] ^= 0xFF
    made = {"text": b"not a model", "cut": content[: len(content) // 2], "empty": b"", "flipped": bytes(flipped)}
    (place / "bad.onnx").write_bytes(made[damage])
    build(place, changed("model", source="bad.onnx"), 3, "bad.onnx", hint=False)


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "weights/../../outside.bin"])
def test_external_data_outside_of_the_models_folder_are_refused(place, location):
    folder = place / "external"
    folder.mkdir(exist_ok=True)
    (place / "outside.bin").write_bytes(bytes(4096))
    model = quadrant_onnx()
    onnx.external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, folder / "model.onnx")
    stored = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in stored.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "model.onnx").write_bytes(stored.SerializeToString())
    build(place, changed("model", source="external/model.onnx"), 3, location, hint=False)


def test_missing_external_data_are_named(place):
    folder = place / "without"
    folder.mkdir()
    onnx.save(quadrant_onnx(), folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "w.bin").unlink()
    build(place, changed("model", source="without/model.onnx"), 3, "w.bin", hint=False)


@pytest.mark.parametrize("versions", [{"opset": 24}, {"ir_version": 12}])
def test_an_opset_or_ir_newer_than_the_runtime_is_told_with_both(place, versions):
    place.onnx("new.onnx", **versions)
    number = str(next(iter(versions.values())))
    build(place, changed("model", source="new.onnx"), 3, number, "onnxruntime 1.19")


@pytest.mark.parametrize("versions", [{"opset": 999}, {"ir_version": 999}])
def test_an_opset_or_ir_that_nothing_here_knows_is_told(place, versions):
    place.onnx("future.onnx", **versions)
    build(place, changed("model", source="future.onnx"), 3, "999", hint=True)


def test_weights_and_arguments_belong_to_factories(place):
    (place / "w.safetensors").write_bytes(b"")
    build(place, changed("model", weights="w.safetensors"), 3, "weights", "belongs to a factory")


def test_inputs_that_a_model_file_does_not_have_are_told(place):
    build(place, {**GOOD, "model.inputs.imag": {"dtype": "float32"}}, 3, "imag", "did you mean 'image'?")
    build(place, {**GOOD, "model.inputs.image": {"shape": ["batch", 3, 8, 8]}}, 3, "[batch, 3, 8, 8]")
