"""From a trained model to a bundle: every kind of source, and what must survive the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from support import QUICK, Workplace, quadrants, run_bundle, toml_plan

from exporter.bundle import read_manifest, read_profiles

TWO_INPUTS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(11, 3)

    def forward(self, tokens, extra):
        hidden = torch.relu(self.mix(self.words(tokens)))
        pooled = hidden.mean(1)
        return {"class scores": self.head(torch.cat([pooled, extra], 1)), "hidden": hidden}


def make():
    torch.manual_seed(0)
    return Net()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.left(x), self.right(x)


def pair():
    torch.manual_seed(0)
    return Pair()


class Average(Pair):
    def forward(self, x):
        return self.left(x).mean()


def average():
    torch.manual_seed(0)
    return Average()
"""


@pytest.fixture(scope="module")
def planned(shared_place: Workplace) -> Workplace:
    """A place with plan.toml for the quadrant CNN from its factory; its store saves equal steps for all tests."""
    place = shared_place
    place.factory()
    place.quadrants()
    sections = {
        "model": {"source": "model.py:make", "outputs": ["scores"], "labels": ["nw", "ne", "sw", "se"]},
        "calibration": {"data": "calib.npz"},
        "evaluation": {"data": "eval.npz", "labels": "y"},
        "targets.cpu": {},
    }
    place.write("plan.toml", toml_plan(sections))
    return place


def test_a_plan_becomes_a_measured_bundle_that_runs_by_itself(planned):
    target, bundle = planned.built("plan.toml", "--output", "fresh")
    assert target["built"]
    assert not target["cached"]
    assert bundle.parent == planned / "fresh"
    manifest = read_manifest(bundle)
    assert bundle.name == f"quadrants-cpu-{manifest.digest[:12]}"
    assert [spec.name for spec in manifest.signature.inputs] == ["image"]
    assert [str(spec) for spec in manifest.signature.outputs] == ["scores: float32[batch, 4]"]
    assert manifest.signature.labels == ("nw", "ne", "sw", "se")
    assert [variant.name for variant in manifest.variants] == ["fp32", "int8"]
    for variant in manifest.variants:
        assert variant.fidelity.metric is not None
        assert variant.fidelity.metric.name == "accuracy"
        assert variant.fidelity.metric.reference == variant.fidelity.metric.value == 1.0
        assert variant.fidelity.samples == 24
        assert variant.fidelity.data == "evaluation"
        assert variant.fidelity.gate.passed is True
    (profile,) = read_profiles(bundle, manifest).values()
    assert {variant.variant for variant in profile.variants} == {"fp32", "int8"}
    assert profile.comparisons[0].variant == "int8"
    images, labels = quadrants(5, seed=3)
    for variant in ("fp32", "int8"):
        answers = run_bundle(bundle, {"image": images}, planned.folder, "--variant", variant)
        assert answers["scores"].argmax(-1).tolist() == labels.tolist()


def test_int8_that_is_not_faster_is_not_the_default_and_the_build_says_so(planned):
    target, bundle = planned.built("plan.toml")
    (comparison,) = target["profile"]["comparisons"]
    assert comparison["verdict"] != "faster", "a model this small cannot gain from int8"
    assert target["default"]["variant"] == "fp32"
    words = {"slower": "int8 is slower than fp32", "no difference": "int8 is not measurably faster than fp32"}
    assert words[comparison["verdict"]] in target["default"]["why"]
    assert read_manifest(bundle).choice.variant == "fp32"


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_flags_alone_build_a_factory_with_its_weights(place, suffix):
    source = place.factory()
    calib, evaluation = place.quadrants()
    generator = torch.Generator().manual_seed(5)
    state = {
        "stem.0.weight": torch.rand(8, 1, 3, 3, generator=generator),
        "stem.0.bias": torch.zeros(8),
        "head.weight": torch.eye(4).repeat(1, 8),
        "head.bias": torch.tensor([0.0, 0.0, 0.0, 0.5]),
    }
    file = place / f"w.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    target, bundle = place.built(
        source, "--weights", file.name, "--calib", calib.name, "--eval", evaluation.name, "--labels", "y",
        "--name", "mine", "--no-profile",
    )  # fmt: skip
    assert bundle.name.startswith("mine-cpu-")
    assert target["profile"]["measured"] is False
    assert "turned off" in target["profile"]["reason"]
    assert f"edge-exporter profile {bundle}" in target["profile"]["command"]
    assert target["default"]["variant"] == "fp32"
    images, _ = quadrants(2, seed=3)
    shifted = run_bundle(bundle, {"image": images}, place.folder, "--variant", "fp32")["output"]
    weight = state["stem.0.weight"]
    wanted = (
        torch.nn.functional.avg_pool2d(
            torch.relu(torch.nn.functional.conv2d(torch.tensor(images), weight, padding=1)), 4
        ).flatten(1)
        @ state["head.weight"].T
        + state["head.bias"]
    )
    np.testing.assert_allclose(shifted, wanted.numpy(), rtol=1e-4)


def test_two_inputs_a_dict_output_and_a_second_dynamic_axis_keep_their_names(place):
    place.write("net.py", TWO_INPUTS)
    random = np.random.default_rng(0)
    tokens = random.integers(0, 11, (9, 6))
    place.npz("calib.npz", tokens=tokens, extra=random.normal(size=(9, 3)).astype(np.float32))
    sections = {
        "model": {"source": "net.py:make"},
        "model.inputs.tokens": {"dtype": "int64", "shape": ["batch", "length"]},
        "model.inputs.extra": {"dtype": "float32", "shape": ["batch", 3]},
        "calibration": {"data": "calib.npz"},
        "targets.cpu": {},
    }
    place.write("plan.toml", toml_plan(sections))
    _, bundle = place.built("plan.toml", "--no-profile")
    signature = read_manifest(bundle).signature
    inputs = ["tokens: int64[batch, length]", "extra: float32[batch, 3]"]
    outputs = ["class scores: float32[batch, 3]", "hidden: float32[batch, length, 8]"]
    assert [str(spec) for spec in signature.inputs] == inputs
    assert [str(spec) for spec in signature.outputs] == outputs
    for variant in ("fp32", "int8"):
        graph = onnx.load(bundle / f"variants/{variant}/model.onnx").graph
        assert [value.name for value in graph.input] == ["tokens", "extra"]
        assert [value.name for value in graph.output] == ["class scores", "hidden"]
        dims = [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim]
        assert dims == ["batch", "length"]
    longer = {"tokens": random.integers(0, 11, (4, 9)), "extra": np.ones((4, 3), np.float32)}
    answers = run_bundle(bundle, longer, place.folder)
    assert {name: values.shape for name, values in answers.items()} == {"class scores": (4, 3), "hidden": (4, 9, 8)}


def test_an_output_without_axes_travels_and_is_tested(place):
    place.write("net.py", TWO_INPUTS)
    place.npz("calib.npz", x=np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    shown, bundle = place.built("net.py:average", "--calib", "calib.npz", "--no-profile")
    assert [str(spec) for spec in read_manifest(bundle).signature.outputs] == ["output: float32[]"]
    assert shown["variants"][0]["fidelity"]["samples"] == 6
    answer = run_bundle(bundle, {"x": np.ones((2, 4), np.float32)}, place.folder)["output"]
    assert answer.shape == ()


def test_a_model_of_halves_is_called_what_it_is(place):
    place.write("half.py", "from torch import nn\n\n\ndef make():\n    return nn.Linear(4, 3).half()\n")
    place.npz("calib.npz", input=np.random.default_rng(0).normal(size=(6, 4)).astype(np.float16))
    shown, bundle = place.built("half.py:make", "--calib", "calib.npz", "--no-profile")
    float_one = shown["variants"][0]
    assert (float_one["name"], float_one["precision"]) == ("fp16", "float16")
    assert read_manifest(bundle).float_variant == "fp16"


def test_a_tuple_of_outputs_keeps_its_order_and_takes_names_from_the_plan(place):
    place.write("net.py", TWO_INPUTS)
    place.npz("calib.npz", x=np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    shown, bundle = place.built("net.py:pair", "--calib", "calib.npz", "--no-profile")
    assert [spec.shape[-1] for spec in read_manifest(bundle).signature.outputs] == [3, 2]
    named = ("--set", 'model.outputs=["left", "right"]')
    _, bundle = place.built("net.py:pair", "--calib", "calib.npz", "--no-profile", *named)
    outputs = read_manifest(bundle).signature.outputs
    assert [(spec.name, spec.shape[-1]) for spec in outputs] == [("left", 3), ("right", 2)]
    assert len(shown["variants"][0]["fidelity"]["outputs"]) == 2


def test_a_torch_export_program_is_a_source(place):
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, features):
            return self.linear(features).relu()

    module = Net().eval()
    shapes = {"features": {0: torch.export.Dim("batch")}}
    program = torch.export.export(module, (torch.randn(2, 4),), dynamic_shapes=shapes)
    torch.export.save(program, place / "net.pt2")
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    place.npz("calib.npz", features=features)
    target, bundle = place.built("net.pt2", "--calib", "calib.npz", "--no-profile")
    assert target["variants"][0]["fidelity"]["reference"] == "torch"
    answers = run_bundle(bundle, {"features": features[:5]}, place.folder, "--variant", "fp32")
    wanted = module(torch.tensor(features[:5])).detach().numpy()
    np.testing.assert_allclose(next(iter(answers.values())), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("external", [False, True])
def test_an_onnx_file_is_a_source_with_or_without_external_data(place, external):
    model = place.onnx("model.onnx")
    place.quadrants()
    if external:
        onnx.save(onnx.load(model), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
        assert (place / "weights.bin").is_file()
    target, bundle = place.built("model.onnx", "--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y")
    assert target["variants"][0]["fidelity"]["reference"] == "onnx"
    assert target["variants"][0]["fidelity"]["outputs"][0]["sqnr_db"] is None
    images, labels = quadrants(3, seed=9)
    moved = place / "elsewhere"
    bundle.rename(moved)
    answers = run_bundle(moved, {"image": images}, place.folder)
    assert answers["scores"].argmax(-1).tolist() == labels.tolist()


def test_a_fixed_batch_is_kept_by_every_variant(planned):
    _, bundle = planned.built("plan.toml", "--no-profile", "--set", "export.batch=4")
    signature = read_manifest(bundle).signature
    assert signature.inputs[0].shape == (4, 1, 8, 8)
    assert signature.outputs[0].shape == (4, 4)
    images, labels = quadrants(4, seed=3)
    assert run_bundle(bundle, {"image": images}, planned.folder)["scores"].argmax(-1).tolist() == labels.tolist()


def test_the_bundle_needs_neither_this_checkout_nor_torch(planned, tmp_path):
    _, bundle = planned.built("plan.toml", "--no-profile")
    block = "import sys; sys.modules['torch'] = sys.modules['exporter'] = sys.modules['onnx'] = None; import runpy; "
    call = f"sys.argv = ['run.py', '--self-test']; runpy.run_path({str(bundle / 'run.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-B", "-c", block + call], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_quantization_off_builds_the_float_variant_alone(place):
    place.onnx()
    place.quadrants()
    target, _ = place.built("model.onnx", "--calib", "calib.npz", "--set", "quantize.enabled=false")
    assert [variant["name"] for variant in target["variants"]] == ["fp32"]
    assert target["default"]["variant"] == "fp32"
    assert "only variant" in target["default"]["why"]


def test_options_of_a_plan_are_what_the_bundle_records(planned):
    _, bundle = planned.built("plan.toml", "--no-profile", "--set", "quantize.observer=percentile")
    written = (bundle / "plan.toml").read_text()
    assert 'observer = "percentile"' in written
    assert str(planned.folder) not in written
    assert str(planned.folder) not in (bundle / "manifest.json").read_text()


def test_every_file_of_a_build_is_the_same_when_it_is_made_twice(planned, tmp_path):
    _, first = planned.built("plan.toml", "--no-profile")
    other = Workplace(tmp_path / "other")
    for name in ("model.py", "layers.py", "plan.toml", "calib.npz", "eval.npz"):
        (other / name).write_bytes((planned / name).read_bytes())
    _, second = other.built("plan.toml", "--no-profile")
    assert first.name == second.name

    def contents(bundle: Path) -> dict[str, bytes]:
        files = [path for path in bundle.rglob("*") if path.is_file()]
        return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in files}

    assert contents(first) == contents(second)


def test_quick_flags_reach_the_benchmark(planned):
    target, _ = planned.built("plan.toml")
    settings = target["profile"]["settings"]
    wanted = dict(flag.removeprefix("profile.").split("=") for flag in QUICK[1::2])
    assert {name: settings[name] for name in wanted} == {name: float(value) for name, value in wanted.items()}
