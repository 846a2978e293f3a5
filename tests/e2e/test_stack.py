"""[merge] with `stack` and `fuse` in a whole build: outputs, sharing, chains, gates, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import Workplace, quadrant_onnx, quadrants, refused, run_bundle

FLOAT = "[quantize]\nenabled = false\n[profile]\nenabled = false"

FACTORY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        # The second kernel has more values than the passes that share weights look at by default.
        self.trunk = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 16, 3, padding=1)
        )
        self.head = nn.Linear(4 * 16, classes)

    def forward(self, image):
        return self.head(torch.flatten(nn.functional.avg_pool2d(self.trunk(image), 4), 1))


def make(width=8, classes=4):
    torch.manual_seed(0)
    return Net(width, classes)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = Net(8, 4).trunk

    def forward(self, image):
        return {"features": torch.flatten(nn.functional.avg_pool2d(self.trunk(image), 4), 1)}


def encoder():
    torch.manual_seed(0)
    return Encoder()


def head(classes=4):
    torch.manual_seed(1)
    return nn.Linear(64, classes)
"""


def make(**arguments: int) -> torch.nn.Module:
    namespace: dict[str, object] = {}
    exec(FACTORY, namespace)
    return namespace["make"](**arguments)  # type: ignore[operator, no-any-return]


def trained(seed: int, steps: int, classes: tuple[int, ...] = (0, 1, 2, 3)) -> dict[str, torch.Tensor]:
    """A head trained on quadrants; the trunk stays as the factory makes it."""
    model = make(classes=len(classes)).eval()
    images, labels = quadrants(64, seed=seed)
    known = np.isin(labels, classes)
    x = torch.from_numpy(images[known])
    y = torch.tensor([classes.index(label) for label in labels[known]])
    optimizer = torch.optim.Adam(model.head.parameters(), 0.05)  # type: ignore[union-attr]
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Heads of one trunk, and one that knows two classes only; a store that all tests fill."""
    place = Workplace(tmp_path_factory.mktemp("stack"))
    place.write("model.py", FACTORY)
    for name, state in {
        "a": trained(1, 40), "b": trained(2, 40), "c": trained(3, 12), "top": trained(1, 40, (0, 1)),
        "low": trained(2, 40, (3, 2)),
    }.items():  # fmt: skip
        save_file(state, place / f"{name}.safetensors")
    image, labels = quadrants(48, seed=8)
    place.npz("calib.npz", image=image, y=labels)
    held_out, answers = quadrants(60, seed=9)
    place.npz("eval.npz", image=held_out, y=answers)
    return place


def plan(place: Workplace, merge: str, *, source: str = 'source = "model.py:make"', extra: str = "") -> Path:
    evaluation = '[evaluation]\ndata = "eval.npz"\nlabels = "y"\n'
    return place.write(
        "plan.toml",
        f'schema = 1\nname = "several"\n[model]\n{source}\n[calibration]\ndata = "calib.npz"\n{evaluation}{extra}\n'
        f"[targets.cpu]\n[merge]\n{merge}",
    )


def members(*names: str, more: str = "") -> str:
    return "".join(f'[[merge.models]]\nweights = "{name}.safetensors"\n{more}' for name in names)


def test_heads_on_one_trunk_are_one_small_file_that_gives_what_each_head_gives(
    shared: Workplace, tmp_path: Path
) -> None:
    document, bundle = shared.built(plan(shared, 'method = "stack"\n' + members("a", "b", "c")))
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [output["name"] for output in manifest["signature"]["outputs"]] == ["a.output", "b.output", "c.output"]
    float_variant, int8 = document["variants"]
    graph = onnx.load(bundle / float_variant["name"].join(("variants/", "/model.onnx"))).graph
    assert [node.op_type for node in graph.node].count("Conv") == 2
    assert [node.op_type for node in graph.node].count("Gemm") == 3
    images, _ = quadrants(5, seed=11)
    answers = run_bundle(bundle, {"image": images}, tmp_path, "--variant", "fp32")
    for name in ("a", "b", "c"):
        model = make()
        model.load_state_dict(load_file(shared / f"{name}.safetensors"))
        expected = model.eval()(torch.from_numpy(images)).detach().numpy()
        np.testing.assert_allclose(answers[f"{name}.output"], expected, atol=1e-4)
    # The metric reads the first output; the heads beside it are held by their divergence.
    rules = int8["fidelity"]["gate"]["rules"]
    assert any("'b.output'" in rule for rule in rules)
    assert any("'c.output'" in rule for rule in rules)
    assert not any("'a.output'" in rule for rule in rules)
    assert [entry["role"] for entry in document["history"]] == ["member", "member", "member", "merged"]


def test_a_trunk_is_taught_once_for_all_heads_and_refused_where_each_would_be_taught_apart(shared: Workplace) -> None:
    step = '[[compress.steps]]\nmethod = "distil"\nlabels = "y"\nepochs = 30\nhard = 1.0\nbatch_size = 8\n'
    gate = "[gate]\nmax_relative_loss = 1.0\nmin_sqnr_db = -100\n"
    merge, extra = 'method = "stack"\n{}' + members("a", "b"), f"{FLOAT}\n{gate}{step}"
    document, bundle = shared.built(plan(shared, merge.format(""), extra=extra))
    notes = document["history"][-1]["notes"]
    assert any("that members have alike were changed as one" in note for note in notes)
    assert not any("no epoch made it better" in note for note in notes)
    nodes = [node.op_type for node in onnx.load(bundle / "variants" / "fp32" / "model.onnx").graph.node]
    assert (nodes.count("Conv"), nodes.count("Gemm")) == (2, 2)
    file = plan(shared, merge.format('order = "compress-first"\n'), extra=extra)
    refused(shared.run("build", file), 3, "changed in each of them apart", "values before")


def test_a_chain_feeds_one_members_output_to_another(shared: Workplace) -> None:
    chain = (
        'method = "stack"\nexpose = ["encoder.features"]\n'
        '[[merge.models]]\nname = "four"\nsource = "model.py:head"\ninputs = { input = "encoder.features" }\n'
        '[[merge.models]]\nname = "encoder"\nsource = "model.py:encoder"\n'
        '[[merge.models]]\nname = "two"\nsource = "model.py:head"\nargs = { classes = 2 }\noutputs = ["side"]\n'
        'inputs = { input = "encoder.features" }\n'
    )
    file = plan(shared, chain, source="", extra=FLOAT)
    _, bundle = shared.built(file)
    manifest = json.loads((bundle / "manifest.json").read_text())
    outputs = {output["name"]: output["shape"][-1] for output in manifest["signature"]["outputs"]}
    assert outputs == {"four.output": 4, "encoder.features": 64, "two.side": 2}


def test_what_a_chain_takes_must_be_there(shared: Workplace) -> None:
    chain = (
        'method = "stack"\n[[merge.models]]\nname = "four"\nsource = "model.py:head"\n'
        'inputs = { input = "encoder.feature" }\n'
        '[[merge.models]]\nname = "encoder"\nsource = "model.py:encoder"\n'
    )
    refused(shared.run("build", plan(shared, chain, source="")), 3, "did you mean 'encoder.features'?")
    # It is there, and has another shape.
    wide = (
        chain.replace('model.py:head"\n', 'model.py:make"\n')
        .replace("input = ", "image = ")
        .replace('feature"', 'features"')
    )
    said = "'four' cannot be run on what it is fed with", "encoder.features [", "[[merge.models]] four, inputs"
    refused(shared.run("build", plan(shared, wide, source="")), 3, *said)
    circle = (
        'method = "stack"\n[[merge.models]]\nname = "x"\nsource = "model.py:head"\ninputs = { input = "y.o" }\n'
        '[[merge.models]]\nname = "y"\nsource = "model.py:head"\ninputs = { input = "x.o" }\n'
    )
    refused(shared.run("build", plan(shared, circle, source="")), 3, "in a circle", "x", "y")


def test_models_that_know_different_classes_are_fused_into_all_classes(shared: Workplace) -> None:
    merge = (
        'method = "fuse"\nby = "max"\n'
        '[[merge.models]]\nweights = "top.safetensors"\nclasses = [0, 1]\nargs = { classes = 2 }\n'
        '[[merge.models]]\nweights = "low.safetensors"\nclasses = [3, 2]\nargs = { classes = 2 }\n'
    )
    document, bundle = shared.built(plan(shared, merge, extra="[profile]\nenabled = false"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["signature"]["outputs"][0]["shape"] == ["batch", 4]
    metrics = {entry["name"]: entry["metric"] for entry in document["history"]}
    assert metrics["fused (max)"] > max(metrics["top"], metrics["low"])


def test_weights_of_outputs_are_learned_from_labelled_calibration_data(shared: Workplace) -> None:
    merge = 'method = "fuse"\nby = "learned"\nlabels = "y"\naccept = "worse"\n' + members("a", "c")
    document, _ = shared.built(plan(shared, merge, extra=FLOAT))
    history = {entry["name"]: entry for entry in document["history"]}
    assert list(history) == ["a", "c", "fused (learned)"]
    assert document["variants"][0]["fidelity"]["metric"]["reference"] == history["fused (learned)"]["metric"]
    (note,) = document["history"][-1]["notes"]
    weights = [float(word.strip(",")) for word in note.split() if word.strip(",").replace(".", "").isdigit()]
    assert sum(weights) == pytest.approx(1, abs=0.002)
    assert weights[0] > weights[1]


def test_labels_that_are_needed_and_absent_are_named(shared: Workplace) -> None:
    merge = 'method = "fuse"\nby = "learned"\n' + members("a", "b")
    refused(shared.run("build", plan(shared, merge)), 3, "merge.labels is missing")
    merge = 'method = "fuse"\nby = "learned"\nlabels = "classes"\n' + members("a", "b")
    refused(shared.run("build", plan(shared, merge)), 3, "classes", "calib.npz")


def test_outputs_that_do_not_match_cannot_be_fused(shared: Workplace) -> None:
    merge = 'method = "fuse"\n' + members("a") + members("top", more="args = { classes = 2 }\n")
    refused(shared.run("build", plan(shared, merge)), 3, "different shapes", "[4]", "[2]", "classes")


def test_keys_that_would_not_act_are_refused(shared: Workplace) -> None:
    merge = 'method = "stack"\nscale = 0.3\n' + members("a") + members("b", more="weight = 2.0\n")
    refused(shared.run("build", plan(shared, merge)), 3, "merge.scale: 'stack'", "merge.models[1].weight: 'stack'")
    merge = 'by = "vote"\n' + members("a") + members("b", more='source = "model.py:head"\n')
    refused(shared.run("build", plan(shared, merge)), 3, "merge.by: 'average'", "models[1].source: 'average'")


def test_files_of_different_opsets_become_one_and_share_what_is_equal(place: Workplace, tmp_path: Path) -> None:
    for name, opset, scale in (("old", 11, 1.0), ("new", 18, 1.0), ("other", 17, 0.5)):
        onnx.save(quadrant_onnx(opset=opset, scale=scale), place / f"{name}.onnx")
    merge = 'method = "stack"\n' + "".join(
        f'[[merge.models]]\nsource = "{name}.onnx"\n' for name in ("old", "new", "other")
    )
    result = place.build(plan(place, merge, source="", extra=FLOAT))
    assert result.code == 0, result.err
    (document,) = result.document["targets"]
    assert any("15 nodes became 11" in event.get("text", "") for event in result.events)
    bundle = Path(document["bundle"])
    model = onnx.load(bundle / "variants/fp32/model.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    images, _ = quadrants(4, seed=3)
    answers = run_bundle(bundle, {"image": images}, tmp_path, "--variant", "fp32")
    np.testing.assert_allclose(answers["old.scores"], answers["new.scores"], rtol=1e-5)
    assert not np.allclose(answers["old.scores"], answers["other.scores"])


def test_files_that_are_fused_are_held_against_each_alone(place: Workplace) -> None:
    for name, scale in (("right", 1.0), ("wrong", -3.0)):
        onnx.save(quadrant_onnx(opset=17, scale=scale), place / f"{name}.onnx")
    merge = 'method = "fuse"\nby = "vote"\n' + "".join(
        f'[[merge.models]]\nsource = "{name}.onnx"\nweight = {weight}\n'
        for name, weight in (("right", 1), ("wrong", 2))
    )
    extra = FLOAT + "\n[gate]\nmax_relative_loss = 1.0"
    message = refused(
        place.run("build", plan(place, merge, source="", extra=extra)), 7, "is worse than 'right' alone"
    )
    assert "fused (vote)  0.2500" in message
    merge = merge.replace('"vote"\n', '"vote"\naccept = "worse"\n')
    result = place.build(plan(place, merge, source="", extra=extra))
    assert result.code == 0, result.err
    said = [event.get("text", "") for event in result.events]
    assert any(text.startswith("right  1.0000; wrong  0.2500") for text in said)
    assert any("is worse than 'right' alone (1.0000)" in text for text in said)


def test_members_of_both_kinds_are_refused(place: Workplace) -> None:
    place.onnx("one.onnx")
    merge = (
        'method = "stack"\n[[merge.models]]\nsource = "one.onnx"\n[[merge.models]]\nsource = "model.py:make"\n'
        'name = "two"\n'
    )
    place.write("model.py", FACTORY)
    refused(place.run("build", plan(place, merge, source="")), 3, "one is a ready .onnx file")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    place = Workplace(tmp_path)
    place.quadrants()
    return place
