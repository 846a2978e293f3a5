"""A second build makes nothing again, and a change makes again exactly what depends on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import FACTORY, LAYERS, Workplace, quadrants, toml_plan

QUANTIZE = "quantize"
JUDGE = {"accuracy of fp32", "accuracy of int8"}
BUNDLE = {"bundle and self-test", "publish"}
AFTER_QUANTIZE = {"calibrate", QUANTIZE, "convert", *JUDGE, *BUNDLE}
SECTIONS = {
    "model": {"source": "model.py:make", "weights": "w.safetensors", "outputs": ["scores"]},
    "model.inputs.image": {"dtype": "float32", "shape": ["batch", 1, 8, 8]},
    "calibration": {"data": "calib.npz"},
    "evaluation": {"data": "eval.npz", "labels": "y"},
    "targets.cpu": {},
}


@pytest.fixture(scope="module")
def built(shared_place: Workplace) -> Workplace:
    """A place where everything is in the store, with a factory, weights, and data."""
    place = shared_place
    place.factory()
    place.quadrants()
    state = {
        "stem.0.weight": torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(3)),
        "stem.0.bias": torch.zeros(8),
        "head.weight": torch.eye(4).repeat(1, 8),
        "head.bias": torch.zeros(4),
    }
    save_file(state, place / "w.safetensors")
    place.write("plan.toml", toml_plan(SECTIONS))
    place.built("plan.toml")
    place.built("plan.toml", "--no-profile")
    return place


def change_weight(place: Workplace) -> None:
    state = load_file(place / "w.safetensors")
    state["head.bias"][0] += 1e-3
    save_file(state, place / "w.safetensors")


def change_factory(place: Workplace) -> None:
    place.write("model.py", FACTORY.replace("def forward(self, image):", "def forward(self, image):\n        # same"))


def change_activation(place: Workplace) -> None:
    place.write("model.py", FACTORY.replace("torch.flatten(", "1.5 * torch.flatten("))


def change_import(place: Workplace) -> None:
    place.write("layers.py", LAYERS + "\n\nUNUSED = 1\n")


def change_calibration(place: Workplace) -> None:
    image, _ = quadrants(16, seed=1)
    image[3, 0, 2, 2] += 1.0
    place.npz("calib.npz", image=image)


def change_evaluation(place: Workplace) -> None:
    image, labels = quadrants(24, seed=2)
    image[20, 0, 2, 2] += 0.01  # Not among the samples that torch traces or that travel in the bundle.
    place.npz("eval.npz", image=image, y=labels)


def change_label(place: Workplace) -> None:
    image, labels = quadrants(24, seed=2)
    labels[20] = (labels[20] + 1) % 4
    place.npz("eval.npz", image=image, y=labels)


def change_plan(place: Workplace, section: str, **values: object) -> None:
    place.write("plan.toml", toml_plan({**SECTIONS, section: {**SECTIONS.get(section, {}), **values}}))


def change_threads(place: Workplace) -> None:
    change_plan(place, "profile", threads=2)


EVERYTHING = {"export to ONNX", "run the trained model", *AFTER_QUANTIZE}
SAME_RESULT = {"export to ONNX", "run the trained model", *BUNDLE}
CHANGES: list[tuple[str, Callable[[Workplace], None], set[str]]] = [
    ("a weight", change_weight, EVERYTHING),
    ("the factory's source, with the same result", change_factory, SAME_RESULT),
    ("a module that the factory imports, with the same result", change_import, SAME_RESULT),
    ("what the factory makes", change_activation, EVERYTHING),
    ("calibration data", change_calibration, {"check data", *AFTER_QUANTIZE} - {"accuracy of fp32"}),
    ("evaluation data", change_evaluation, {"check data", "run the trained model", *JUDGE, *BUNDLE}),
    ("a label", change_label, {"check data", "run the trained model", *JUDGE, *BUNDLE}),
    (
        "the observer",
        lambda place: change_plan(place, "quantize", observer="entropy"),
        {"calibrate", QUANTIZE, "convert", "accuracy of int8", *BUNDLE},
    ),
    (
        "to another observer of the same extremes",
        lambda place: change_plan(place, "quantize", observer="moving-average"),
        {QUANTIZE, "convert", "accuracy of int8", *BUNDLE},
    ),
    ("a gate value", lambda place: change_plan(place, "gate", max_relative_loss=0.05), BUNDLE),
    ("profile.threads", change_threads, {*BUNDLE, "measure latency"}),
    (
        "outputs' names",
        lambda place: change_plan(place, "model", outputs=["quadrant"]),
        {"export to ONNX", "run the trained model", *AFTER_QUANTIZE},
    ),
    ("the licence", lambda place: change_plan(place, "model", licence="MIT"), BUNDLE),
]


@pytest.fixture
def restored(built: Workplace) -> Iterator[Workplace]:
    """The built place; what a test changes in it is put back."""
    before = {path: path.read_bytes() for path in built.folder.iterdir() if path.is_file()}
    yield built
    for path in built.folder.iterdir():
        if path.is_file() and path not in before:
            path.unlink()
    for path, content in before.items():
        path.write_bytes(content)


def rebuilt(place: Workplace, *arguments: str) -> set[str]:
    result = place.build("plan.toml", *arguments)
    assert result.code == 0, result.err
    return result.rebuilt


def test_a_second_build_makes_nothing_again(built):
    result = built.build("plan.toml")
    assert result.code == 0
    assert result.rebuilt == set()
    assert [event for event in result.events if event["type"] == "StepFinished"]
    assert result.document["targets"][0]["cached"] is True
    assert result.document["seconds"] < 3
    assert len(built.bundles()) == 2, "one with a profile, one without"


@pytest.mark.parametrize(("change", "wanted"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_a_change_makes_again_exactly_what_depends_on_it(restored, change, wanted):
    change(restored)
    flags = () if change is change_threads else ("--no-profile",)
    assert rebuilt(restored, *flags) == wanted
    assert rebuilt(restored, *flags) == set()


def test_what_was_changed_back_is_still_there(built):
    assert rebuilt(built) == set()


def test_times_and_names_of_files_are_not_what_is_built(restored, tmp_path):
    for path in restored.folder.iterdir():
        os.utime(path, (1, 1))
    assert rebuilt(restored) == set()
    elsewhere = Workplace(tmp_path)
    for path in restored.folder.iterdir():
        if path.is_file():
            shutil.copyfile(path, elsewhere / path.name)
    elsewhere.cache = restored.cache
    assert rebuilt(elsewhere) == {"measure latency", "publish"}


def test_a_setting_that_is_at_its_default_already_changes_nothing(restored):
    change_plan(restored, "quantize", observer="minmax", per_channel=True)
    change_plan(restored, "gate", max_relative_loss=0.01)
    assert rebuilt(restored) == set()


def test_a_removed_bundle_is_published_again_from_the_store(restored, tmp_path):
    assert rebuilt(restored, "--output", str(tmp_path / "b")) == {"measure latency", "publish"}
    shutil.rmtree(tmp_path / "b")
    assert rebuilt(restored, "--output", str(tmp_path / "b"), "--no-profile") == {"publish"}


def test_a_damaged_bundle_in_the_output_is_replaced_by_a_whole_one(restored):
    path = Path(restored.build("plan.toml").document["targets"][0]["bundle"])
    (path / "run.py").write_text("raise SystemExit(0)\n")
    result = restored.build("plan.toml")
    assert result.code == 0
    assert result.rebuilt == {"measure latency", "publish"}
    assert any("is damaged and is made again" in event.get("text", "") for event in result.events)
    assert restored.run("verify", path, "--no-run").code == 0


def test_a_damaged_result_in_the_store_is_made_again_and_not_used(restored):
    models = list((restored.cache / "v1" / "export").glob("*/model.onnx"))
    assert models
    for model in models:
        model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert rebuilt(restored) == {"export to ONNX"}


@pytest.mark.parametrize("offset", [0, 2, -1])
def test_a_damaged_record_in_the_store_is_made_again(restored, offset):
    entries = list((restored.cache / "v1" / "quantize").glob("*/entry.json"))
    assert entries
    for entry in entries:
        content = bytearray(entry.read_bytes())
        content[offset] ^= 0x80
        entry.write_bytes(content)
    assert rebuilt(restored) == {"quantize"}
