"""Data of every kind, labels, metrics, gates, and what the bundle says about them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from support import Workplace, quadrants, toml_plan

from exporter.bundle import read_manifest

CALIBRATED = {"model": {"source": "model.onnx"}, "calibration": {"data": "calib.npz"}, "targets.cpu": {}}


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    """model.onnx, calib.npz and eval.npz; the store is shared, each test writes a plan of its own."""
    shared_place.onnx()
    shared_place.quadrants()
    return shared_place


def test_calibration_alone_gives_divergence_and_the_gate_acts_on_that_and_says_so(place):
    place.write("alone.toml", toml_plan(CALIBRATED))
    target, _ = place.built("alone.toml", "--no-profile")
    for variant in target["variants"]:
        fidelity = variant["fidelity"]
        assert fidelity["data"] == "calibration"
        assert fidelity["samples"] == 16
        assert fidelity["metric"] is None
        assert fidelity["gate"]["passed"] is True
        assert fidelity["gate"]["reason"] == "no labels: gated by divergence from the trained model"
    assert target["variants"][1]["fidelity"]["outputs"][0]["sqnr_db"] > 20
    table = place.run("build", "alone.toml", "--no-profile").out
    assert "gate: SQNR in dB of 'scores': at least 20 (no labels: gated by divergence" in table


def test_held_out_data_without_labels_are_what_divergence_is_measured_on(place):
    images, _ = quadrants(10, seed=4)
    place.npz("unlabelled.npz", image=images)
    target, _ = place.built("model.onnx", "--calib", "calib.npz", "--eval", "unlabelled.npz", "--no-profile")
    fidelity = target["variants"][1]["fidelity"]
    assert (fidelity["data"], fidelity["samples"], fidelity["metric"]) == ("evaluation", 10, None)
    assert fidelity["outputs"][0]["top1_agreement"] == 1.0


def test_a_metric_of_the_users_own_judges_and_names_itself(place):
    place.write(
        "score.py",
        "import numpy as np\n\n\ndef margin(outputs, labels):\n"
        "    scores = outputs['scores']\n    assert scores.shape == (24, 4) and labels.shape == (24,)\n"
        "    return float(np.mean(scores[np.arange(24), labels] > scores.mean(1)))\n",
    )
    evaluation = {"data": "eval.npz", "labels": "y", "metric": "score.py:margin", "batch_size": 7}
    place.write("own.toml", toml_plan({**CALIBRATED, "evaluation": evaluation}))
    target, bundle = place.built("own.toml", "--no-profile")
    metric = target["variants"][1]["fidelity"]["metric"]
    assert metric == {"name": "margin", "reference": 1.0, "value": 1.0, "relative_loss": 0.0}
    assert "margin: at most 1.00% relative loss" in target["variants"][1]["fidelity"]["gate"]["rules"]
    assert "margin 1.0000" in (bundle / "README.md").read_text()
    place.write("score.py", (place / "score.py").read_text() + "\n# another digest\n")
    assert {"accuracy of fp32", "accuracy of int8"} <= place.build("own.toml", "--no-profile").rebuilt


def test_labels_may_be_in_the_calibration_data_too(place):
    images, labels = quadrants(16, seed=6)
    place.npz("labelled.npz", image=images, y=labels)
    target, _ = place.built(
        "model.onnx", "--calib", "labelled.npz", "--eval", "eval.npz", "--labels", "y", "--no-profile"
    )
    assert target["variants"][0]["fidelity"]["metric"]["reference"] == 1.0


@pytest.mark.parametrize("kind", ["npy-folder", "safetensors", "callable"])
def test_data_of_other_kinds_give_the_same_int8_model_as_an_npz(place, kind):
    images, _ = quadrants(16, seed=1)
    if kind == "npy-folder":
        (place / "arrays").mkdir()
        np.save(place / "arrays" / "image.npy", images)
        data = "arrays"
    elif kind == "safetensors":
        save_file({"image": images}, place / "calib.safetensors")
        data = "calib.safetensors"
    else:
        place.write(
            "feed.py",
            "import numpy as np\n\n\ndef samples():\n    print('noise of a feed')\n"
            "    for image in np.load('calib.npz')['image']:\n        yield {'image': image[None]}\n",
        )
        data = "feed.py:samples"
    first, bundle = place.built("model.onnx", "--calib", "calib.npz", "--no-profile")
    other, second = place.built("model.onnx", "--calib", data, "--no-profile")
    assert other["data"]["calibration_samples"] == first["data"]["calibration_samples"] == 16
    for variant in ("fp32", "int8"):
        file = f"variants/{variant}/model.onnx"
        assert (bundle / file).read_bytes() == (second / file).read_bytes()


def test_a_folder_of_images_with_a_sub_folder_a_class_is_scaled_as_the_plan_says(place):
    classes = ["nw", "ne", "sw", "se"]
    for folder, seed in (("photos", 1), ("held-out", 2)):
        images, labels = quadrants(16, seed=seed)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = place / folder / classes[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray((image[0] * 255).clip(0, 255).astype(np.uint8), mode="L")
            pixels.resize((16, 16), Image.Resampling.NEAREST).save(path)
    preprocess = {"size": [8, 8], "channel_order": "GRAY", "layout": "CHW", "mean": [0.05], "std": [0.9]}
    sections = {
        "model": {"source": "model.onnx", "labels": classes},
        "calibration": {"data": "photos"},
        "evaluation": {"data": "held-out", "labels": "label"},
        "targets.cpu": {},
    }
    inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in preprocess.items())
    place.write("images.toml", toml_plan(sections) + f"\n[model.inputs.image]\npreprocess = {{ {inline} }}\n")
    target, bundle = place.built("images.toml", "--no-profile")
    assert target["variants"][0]["fidelity"]["metric"]["reference"] == 1.0
    assert target["data"]["evaluation_samples"] == 16
    signature = read_manifest(bundle).signature
    written = signature.preprocessing["image"]
    assert (written.size, written.channel_order, written.layout) == ((8, 8), "GRAY", "CHW")
    assert (written.scale, written.mean, written.std) == (1 / 255, (0.05,), (0.9,))
    assert signature.labels == ("nw", "ne", "sw", "se")
    readme = (bundle / "README.md").read_text()
    assert "resize to 8x8" in readme
    assert "Classes, in order: nw, ne, sw, se." in readme


def test_samples_in_both_sets_are_counted_and_reported(place):
    images, _ = quadrants(16, seed=1)
    fresh, labels = quadrants(20, seed=7)
    fresh[:5] = images[3:8]
    place.npz("leaky.npz", image=fresh, y=labels)
    arguments = ("model.onnx", "--calib", "calib.npz", "--eval", "leaky.npz", "--labels", "y", "--no-profile",
                 "--set", "gate.max_relative_loss=1")  # fmt: skip
    result = place.build(*arguments)
    assert result.code == 0, result.err
    assert result.document["targets"][0]["data"]["overlap"] == 5
    notes = [event["text"] for event in result.events if event["type"] == "Note"]
    assert any("5 samples are in both calibration and evaluation data" in note for note in notes)
    (bundle,) = {target["bundle"] for target in result.document["targets"]}
    assert "5 samples are in both" in " ".join(read_manifest(place.folder / bundle).notes)
    again = [event["text"] for event in place.build(*arguments).events if event["type"] == "Note"]
    assert any("5 samples are in both" in note for note in again), "a cached check must not fall silent"


def test_a_failed_gate_publishes_nothing_and_names_metric_values_and_limit(place, tmp_path):
    place.write(
        "strict.py",
        "import numpy as np\n\n\ndef exactness(outputs, labels):\n"
        "    grid = outputs['scores'] / 1e-4\n    return float(1 - np.abs(grid - np.round(grid)).mean())\n",
    )
    evaluation = {"data": "eval.npz", "labels": "y", "metric": "strict.py:exactness"}
    gate = {"max_relative_loss": 0.0, "min_sqnr_db": 90.0}
    place.write(
        "gate.toml", toml_plan({**CALIBRATED, "evaluation": evaluation, "gate": gate, "quantize": {"budget": 0}})
    )
    output = tmp_path / "out"
    result = place.run("build", "gate.toml", "--no-profile", "--output", output)
    assert result.code == 7
    assert list(output.iterdir()) == []
    assert result.out == ""
    assert "Traceback" not in result.err
    assert "the accuracy gate was not met; nothing is published" in result.err
    assert "int8: SQNR in dB of output 'scores' is " in result.err
    assert "the gate asks for 90" in result.err
    assert "hint:" in result.err
    assert place.run("build", "gate.toml", "--no-profile", "--output", output).code == 7, "a failure is not cached"


def test_a_relative_loss_above_the_limit_fails_with_both_values(place, tmp_path):
    # Every second score lies just above a step that int8 cannot tell from the one below.
    place.write(
        "steps.py",
        "import numpy as np\n\n\ndef fine(outputs, labels):\n    scores = np.sort(outputs['scores'].reshape(-1))\n"
        "    return float(len(np.unique(scores)))\n",
    )
    evaluation = {"data": "eval.npz", "labels": "y", "metric": "steps.py:fine"}
    place.write("loss.toml", toml_plan({**CALIBRATED, "evaluation": evaluation, "quantize": {"budget": 0}}))
    result = place.run("build", "loss.toml", "--no-profile", "--output", tmp_path / "out")
    assert result.code == 7, result.err
    line = next(line for line in result.err.splitlines() if "fine fell from" in line)
    assert line.startswith("  - int8: fine fell from ")
    assert "a relative loss of" in line
    assert line.endswith("the gate allows 1.00%")
    assert list((tmp_path / "out").iterdir()) == []
