"""[merge] and [compress] in a whole build: what is compared, stored, judged and refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.compress import apply_structure, read_structure
from tests.support import QUICK, Workplace, refused, run_bundle

FACTORY = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
"""


def train(state: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    namespace: dict[str, object] = {}
    exec(FACTORY, namespace)
    model = namespace["make"]()  # type: ignore[operator]
    model.load_state_dict(state or model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A base and two fine-tunes of a two-class model, with data."""
    place = Workplace(tmp_path)
    place.write("model.py", FACTORY)
    x = torch.randn(600, 32, generator=torch.Generator().manual_seed(0))
    y = (x[:, :16].sum(1) > x[:, 16:].sum(1)).long()
    base = train({}, x[:200], y[:200], 15)
    save_file(base, place / "base.safetensors")
    save_file(train(base, x[:300], y[:300], 40), place / "a.safetensors")
    save_file(train(base, x[200:500], y[200:500], 40), place / "b.safetensors")
    noise = {name: torch.randn_like(tensor) for name, tensor in base.items()}
    save_file(noise, place / "noise.safetensors")
    place.npz("calib.npz", x=x[:64].numpy())
    place.npz("eval.npz", x=x[500:].numpy(), y=y[500:].numpy().astype(np.int64))
    return place


def plan(place: Workplace, extra: str, *, gate: float = 0.05) -> Path:
    return place.write(
        "plan.toml",
        f"""
schema = 1
name = "reworked"
[model]
source = "model.py:make"
weights = "base.safetensors"
[calibration]
data = "calib.npz"
[evaluation]
data = "eval.npz"
labels = "y"
[quantize]
enabled = false
[profile]
enabled = false
[gate]
max_relative_loss = {gate}
[targets.cpu]
{extra}
""",
    )


def members(*names: str) -> str:
    return "".join(f'[[merge.models]]\nweights = "{name}.safetensors"\n' for name in names)


def test_a_merge_is_compared_judged_and_kept(place: Workplace) -> None:
    file = plan(place, '[merge]\nmethod = "average"\naccept = "worse"\n' + members("a", "b"))
    document, bundle = place.built(file)
    history = {entry["name"]: entry for entry in document["history"]}
    assert list(history) == ["base", "a", "b", "merged (average)"]
    assert history["a"]["metric"] > history["base"]["metric"]
    fidelity = document["variants"][0]["fidelity"]
    assert fidelity["metric"]["reference"] == history["merged (average)"]["metric"]
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["history"] == document["history"]
    assert str(place.folder) not in json.dumps(manifest)
    again = place.build(file)
    assert again.rebuilt <= {"publish"}


def test_a_soup_that_keeps_one_model_is_that_model(place: Workplace) -> None:
    text = FACTORY.replace("nn.ReLU(), ", "nn.BatchNorm1d(32), nn.ReLU(), ")
    place.write("normed.py", text)
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    model = namespace["make"]().eval()
    # Statistics that estimating them again would change.
    model[2].running_mean.fill_(0.7)
    save_file(model.state_dict(), place / "kept.safetensors")
    wrong = {name: -value if name.startswith("4.") else value for name, value in model.state_dict().items()}
    save_file(wrong, place / "lost.safetensors")
    with np.load(place / "eval.npz") as arrays:
        x = arrays["x"]
    place.npz("own.npz", x=x, y=model(torch.from_numpy(x)).argmax(1).numpy())
    file = plan(place, '[merge]\nmethod = "greedy-soup"\n' + members("kept", "lost"))
    text = file.read_text().replace("model.py", "normed.py").replace("eval.npz", "own.npz")
    file.write_text(text.replace('weights = "base.safetensors"\n', ""))
    document, _ = place.built(file)
    merged = document["history"][-1]
    assert merged["metric"] == 1.0
    assert merged["notes"][0].startswith("kept went into the soup")
    assert not any("estimated again" in note for note in merged["notes"])


def test_a_merge_that_loses_is_refused_with_the_table(place: Workplace) -> None:
    file = plan(place, "[merge]\n" + members("a", "noise"))
    message = refused(place.run("build", file), 7, "is worse than", "merged (average)", "share no base")
    assert "accept" in message
    assert place.bundles() == []


def test_what_a_merge_lacks_is_said_before_any_work(place: Workplace) -> None:
    file = plan(place, '[merge]\nmethod = "slerp"\n' + members("a", "b", "gone"))
    refused(place.run("build", file), 3, "two are expected (got 3)", "gone.safetensors does not exist")
    file = plan(place, '[[compress.steps]]\nmethod = "lowrank"')
    refused(place.run("build", file), 3, "did you mean 'low-rank'?")
    file = plan(place, '[[compress.steps]]\nmethod = "low-rank"')
    refused(place.run("build", file), 3, "needs either `energy` or `rank`")


def test_a_compressed_model_is_judged_against_the_trained_one(place: Workplace) -> None:
    file = plan(place, '[[compress.steps]]\nmethod = "low-rank"\nrank = 8\n', gate=1.0)
    document, _ = place.built(file)
    trained, step = document["history"]
    assert (trained["role"], step["name"]) == ("trained", "1 low-rank")
    assert step["cost"]["macs"] < trained["cost"]["macs"]
    fidelity = document["variants"][0]["fidelity"]
    assert fidelity["metric"]["reference"] == trained["metric"]
    assert fidelity["metric"]["value"] == pytest.approx(step["metric"])
    assert fidelity["outputs"][0]["sqnr_db"] == pytest.approx(step["fidelity"]["outputs"][0]["sqnr_db"], abs=0.01)


def test_a_compressed_model_that_fails_the_gate_is_not_exported(place: Workplace) -> None:
    file = plan(place, '[[compress.steps]]\nmethod = "low-rank"\nrank = 1\n[targets.cpu.gate]\nmin_sqnr_db = 60')
    result = place.run("build", file)
    refused(result, 7, "nothing is exported", "1 low-rank", "SQNR", "1 low-rank: 1 to rank 1")
    assert "export to ONNX" not in result.err
    assert place.bundles() == []


def test_pruned_channels_reach_the_bundle_and_the_budget_is_kept(place: Workplace) -> None:
    step = '[[compress.steps]]\nmethod = "prune-channels"\nparameters = 0.6\nimportance = "taylor"\n'
    document, bundle = place.built(plan(place, step, gate=1.0))
    trained, pruned = document["history"]
    assert pruned["cost"]["parameters"] == (32 * 16 + 16) + (16 * 2 + 2) <= 0.6 * trained["cost"]["parameters"]
    assert "1 32 -> 16" in pruned["notes"][0]
    assert document["variants"][0]["fidelity"]["metric"]["value"] == pytest.approx(pruned["metric"])
    assert (bundle / "variants/fp32/model.onnx").stat().st_size < 0.8 * 4 * trained["cost"]["parameters"]
    assert place.build("plan.toml").rebuilt <= {"publish"}


def test_the_pruned_model_is_saved_without_a_pickle_and_made_again_by_its_factory(place: Workplace) -> None:
    step = '[[compress.steps]]\nmethod = "prune-channels"\nparameters = 0.6\n'
    _, bundle = place.built(plan(place, f'[compress]\nsave = "small"\n{step}', gate=1.0))
    namespace: dict[str, Any] = {}
    exec(FACTORY, namespace)
    model = apply_structure(namespace["make"](), read_structure((place / "small/structure.json").read_bytes()))
    model.load_state_dict(load_file(place / "small/state.safetensors"))
    assert model[1].out_features == 16
    x = np.load(place / "eval.npz")["x"][:5]
    (answers,) = run_bundle(bundle, {"x": x}, place.folder).values()
    np.testing.assert_allclose(answers, model(torch.from_numpy(x)).detach().numpy(), atol=1e-5)
    assert sorted(file.name for file in (place / "small").iterdir()) == ["state.safetensors", "structure.json"]
    shutil.rmtree(place / "small")
    assert place.run("plan", "plan.toml").code == 0
    assert not (place / "small").exists()
    plan(place, f'[compress]\nsave = "base.safetensors"\n{step}', gate=1.0)
    refused(place.run("build", "plan.toml"), 3, "the compressed model cannot be written", "compress.save")


def test_channels_are_pruned_to_a_latency_that_was_measured(place: Workplace) -> None:
    wide = FACTORY.replace("32, 32", "32, 2048").replace("nn.ReLU()", "nn.ReLU(), nn.Linear(2048, 512), nn.ReLU()")
    place.write("model.py", wide.replace("nn.Linear(32, 2)", "nn.Linear(512, 2)"))
    text = '[[compress.steps]]\nmethod = "prune-channels"\nlatency = {share}\nmultiple = 512\n'
    file = plan(place, text.format(share=0.6), gate=1.0)
    file.write_text(file.read_text().replace('weights = "base.safetensors"\n', ""))
    document, _ = place.built(file)
    trained, pruned = document["history"]
    found = re.search(
        r"latency (\S+)x of the model before on cpu \(.*, \d+ candidates measured\)", pruned["notes"][0]
    )
    assert found is not None
    assert float(found[1]) <= 0.6
    assert pruned["cost"]["macs"] < trained["cost"]["macs"]
    file.write_text(file.read_text().replace("latency = 0.6", "latency = 0.0001"))
    refused(
        place.run("build", file, *QUICK),
        3,
        "latency of 0.0001x cannot be reached by pruning channels: the best reachable is",
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("macs = 0.01", "cannot be reached by pruning channels: the best reachable is"),
        ('macs = 0.5\nignore = ["2"]\nsize = 0.5', "exactly one of `macs`, `parameters`, `size`, `latency`"),
        ('latency = 0.5\ntarget = "gpu"', "the plan does not build 'gpu'; did you mean 'cpu'?"),
        ('macs = 0.5\ntarget = "cpu"', "only `latency` is measured on a target"),
        ('macs = 0.5\nimportance = "lamp"', 'it needs `spread = "global"`'),
        ('macs = 0.5\nimportance = "bn-scale"', "nothing in it that 'bn-scale' could score"),
        ('macs = 0.5\nignore = ["9"]', "the model has no module '9'"),
        ("macs = 1.5", "compress.steps[0].macs"),
        ("macs = 0.5\nmultiple = 64", "no channels can be pruned"),
    ],
)
def test_a_pruning_that_cannot_be_done_is_refused_in_one_message(place: Workplace, values: str, said: str) -> None:
    refused(place.run("build", plan(place, f'[[compress.steps]]\nmethod = "prune-channels"\n{values}\n')), 3, said)
    assert place.bundles() == []


def test_a_model_with_masks_of_pytorchs_own_pruning_is_refused_with_what_to_call(place: Workplace) -> None:
    text = FACTORY.replace("    return nn.Sequential(", "    model = nn.Sequential(")
    text += "    nn.utils.prune.l1_unstructured(model[1], 'weight', 0.5)\n    return model\n"
    place.write("model.py", text.replace("from torch import nn", "import torch.nn.utils.prune\nfrom torch import nn"))
    file = plan(place, '[[compress.steps]]\nmethod = "prune-channels"\nmacs = 0.6\n')
    file.write_text(file.read_text().replace('weights = "base.safetensors"\n', ""))
    refused(place.run("build", file), 3, "masks of torch.nn.utils.prune", "prune.remove(layer, 'weight')")


def test_a_fresh_student_is_taught_and_made_again_from_its_arguments(place: Workplace) -> None:
    text = FACTORY.replace("make()", "make(width=32)").replace("Linear(32, 32)", "Linear(32, width)")
    place.write("model.py", text.replace("Linear(32, 2)", "Linear(width, 2)"))
    step = '[[compress.steps]]\nmethod = "distil"\nstudent = { width = 6 }\nepochs = 30\nrate = 0.02\n'
    document, bundle = place.built(plan(place, step, gate=1.0))
    trained, student = document["history"]
    assert student["cost"]["parameters"] == 32 * 6 + 6 + 12 + 2 < trained["cost"]["parameters"]
    assert document["variants"][0]["fidelity"]["metric"]["value"] == pytest.approx(student["metric"])
    assert "held-out loss" in student["notes"][0]
    assert (bundle / "manifest.json").is_file()


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_merging_by_what_members_do_with_real_inputs(place: Workplace, method: str) -> None:
    document, _ = place.built(plan(place, f'[merge]\nmethod = "{method}"\naccept = "worse"\n' + members("a", "b")))
    assert document["history"][-1]["metric"] > document["history"][0]["metric"]
    assert not list(place.cache.rglob("*.known.safetensors"))


def test_coefficients_are_searched_within_a_budget_and_never_end_worse(place: Workplace) -> None:
    fixed = '[merge]\nmethod = "task-arithmetic"\nscale = 1.4\naccept = "worse"\n'
    before, _ = place.built(plan(place, fixed + members("a", "b")))
    document, _ = place.built(plan(place, fixed + "search = 6\n" + members("a", "b")))
    assert document["history"][-1]["metric"] >= before["history"][-1]["metric"]
    note = document["history"][-1]["notes"][0]
    assert "6 evaluations on the evaluation data" in note


def test_a_search_without_labels_says_where_labels_go(place: Workplace) -> None:
    file = plan(place, '[merge]\nmethod = "ties"\nsearch = 5\n' + members("a", "b"))
    file.write_text(file.read_text().replace('labels = "y"', 'ignore = ["y"]'))
    refused(place.run("build", file), 3, "there are no labels", "[evaluation] labels")


def test_members_are_compressed_first_where_the_plan_says_so(place: Workplace) -> None:
    steps = '[[compress.steps]]\nmethod = "distil"\nepochs = 2\n'
    merge = '[merge]\norder = "compress-first"\naccept = "worse"\n' + members("a", "b")
    document, _ = place.built(plan(place, steps + merge))
    assert [entry["name"] for entry in document["history"]] == [
        "base: 1 distil", "a: 1 distil", "b: 1 distil", "base", "a", "b", "merged (average)",
    ]  # fmt: skip
    # What comes out is compared with the members as they were given.
    digests = {entry["name"]: entry["digest"] for entry in document["history"]}
    plain, _ = place.built(plan(place, '[merge]\naccept = "worse"\n' + members("a", "b")))
    assert {entry["name"]: entry["digest"] for entry in plain["history"][:3]}.items() <= digests.items()
    assert digests["a: 1 distil"] != digests["a"]
    steps = '[[compress.steps]]\nmethod = "low-rank"\nrank = 4\n'
    fuse = '[merge]\nmethod = "fuse"\norder = "compress-first"\naccept = "worse"\n' + members("a", "b")
    file = plan(place, steps + fuse, gate=1.0)
    file.write_text(file.read_text().replace('weights = "base.safetensors"\n', ""))
    document, _ = place.built(file)
    history = {entry["name"]: entry for entry in document["history"]}
    last = history["fused (mean) of compressed members"]
    assert last["role"] == "step"
    assert last["cost"]["macs"] < history["fused (mean)"]["cost"]["macs"]
    # What is exported is judged against the members as they were.
    fidelity = document["variants"][0]["fidelity"]
    assert fidelity["metric"]["reference"] == history["fused (mean)"]["metric"]
    assert fidelity["outputs"][0]["sqnr_db"] == pytest.approx(last["fidelity"]["outputs"][0]["sqnr_db"], abs=0.01)


def test_files_of_one_sample_do_not_bind_what_is_learned_which_is_learned_once_for_all_targets(
    place: Workplace,
) -> None:
    place.write("model.py", FACTORY.replace("nn.ReLU(), ", "nn.BatchNorm1d(32), nn.ReLU(), "))
    file = plan(place, '[targets.arm]\nexport = { batch = 1 }\n[[compress.steps]]\nmethod = "norms"\n', gate=1.0)
    text = file.read_text().replace('weights = "base.safetensors"\n', "")
    file.write_text(text)
    result = place.build(file)
    assert result.code == 0, result.err
    cpu, arm = result.document["targets"]
    assert cpu["history"] == arm["history"]
    assert arm["history"][1]["fidelity"]["outputs"][0]["sqnr_db"] < 60
    done = [event["step"] for event in result.events if event["type"] == "StepFinished"]
    assert done.count("compress: 1 norms") == 1
    # Where the plan fixes it for all, a variance cannot be taken.
    file.write_text(text.replace("[targets.arm]\nexport = { batch = 1 }", "[export]\nbatch = 1"))
    refused(place.run("build", file), 3, "batch norms cannot be estimated on single samples")
    file.write_text(text)
    place.write("model.py", FACTORY)
    refused(place.run("build", file), 3, "the model has no batch norms that keep statistics")


def test_compressing_first_needs_something_to_compress(place: Workplace) -> None:
    file = plan(place, '[merge]\norder = "compress-first"\n' + members("a", "b"))
    refused(place.run("build", file), 3, "merge.order", "there are none")
    steps = '[compress]\nsave = "small"\n[[compress.steps]]\nmethod = "norms"\n'
    file = plan(place, steps + '[merge]\norder = "compress-first"\n' + members("a", "b"))
    refused(place.run("build", file), 3, "compress.save", "there is one folder")


def test_a_student_learns_from_teachers_whose_classes_stand_elsewhere(place: Workplace) -> None:
    text = FACTORY.replace("make()", "make(width=32, classes=2)").replace("Linear(32, 32)", "Linear(32, width)")
    place.write("model.py", text.replace("Linear(32, 2)", "Linear(width, classes)"))
    swapped = dict(load_file(place / "b.safetensors"))
    for name in ("3.weight", "3.bias"):
        swapped[name] = swapped[name].flip(0)
    save_file(swapped, place / "swapped.safetensors")
    merge = (
        '[merge]\nmethod = "transfer"\n[merge.teaching]\nfuse = "confidence"\nrate = 0.02\nhints = { "1" = "1" }\n'
        '[[merge.models]]\nweights = "a.safetensors"\nclasses = [0, 2]\nargs = {}\n'
        '[[merge.models]]\nweights = "swapped.safetensors"\nclasses = [2, 0]\nargs = {}\nhints = { "2" = "2" }\n'
    )
    file = plan(place, merge)
    own = 'args = { width = 6, classes = 3 }\noutputs = ["scores"]'
    file.write_text(file.read_text().replace('weights = "base.safetensors"', own))
    with np.load(place / "eval.npz") as arrays:
        place.npz("eval.npz", x=arrays["x"], y=2 * arrays["y"])
    document, _ = place.built(file)
    history = {entry["name"]: entry for entry in document["history"]}
    assert list(history) == ["a", "swapped", "student"]
    assert history["student"]["cost"]["parameters"] == 32 * 6 + 6 + 18 + 3
    assert min(entry["metric"] for entry in history.values()) > 0.7
    assert "held-out loss" in history["student"]["notes"][0]
    file.write_text(file.read_text().replace('hints = { "2" = "2" }', 'hints = { "1" = "11" }'))
    refused(
        place.run("build", file), 3, "the teacher has no module '11'; did you mean '1'?", "hints", "its modules: 0"
    )


def test_hints_of_teachers_are_refused_where_they_would_not_act(place: Workplace) -> None:
    merge = '[merge]\nmethod = "transfer"\n[merge.teaching]\nhint_weight = 2.0\n' + members("a", "b")
    refused(place.run("build", plan(place, merge)), 3, "merge.teaching.hint_weight: there are no `hints`")
    merge = "[merge]\n" + members("a", "b") + 'hints = { "1" = "1" }\n'
    refused(place.run("build", plan(place, merge)), 3, "merge.models[1].hints: 'average' does not use it")


def test_a_student_whose_outputs_do_not_match_is_refused(place: Workplace) -> None:
    merge = '[merge]\nmethod = "transfer"\n[[merge.models]]\nweights = "a.safetensors"\nclasses = [0, 2]\n'
    refused(place.run("build", plan(place, merge)), 3, "do not match", "[[2]]", "[[3]]", "classes")


def test_a_sparse_model_stays_sparse_while_it_is_taught_with_labels(place: Workplace) -> None:
    x = np.load(place / "calib.npz")["x"]
    place.npz("calib.npz", x=x, y=(x[:, :16].sum(1) > x[:, 16:].sum(1)).astype(np.int64))
    steps = '[[compress.steps]]\nmethod = "prune-weights"\nsparsity = 0.75\nimportance = "activation"\n'
    steps += '[[compress.steps]]\nmethod = "distil"\nlabels = "y"\nepochs = 20\nhints = { "1" = "1" }\n'
    document, bundle = place.built(plan(place, steps, gate=1.0))
    trained, sparse, taught = document["history"]
    assert taught["cost"]["zeros"] == sparse["cost"]["zeros"] > 0.7 > trained["cost"]["zeros"]
    assert "weights after zstd" in sparse["notes"][0]
    assert taught["cost"]["compressed_bytes"] < 0.5 * trained["cost"]["compressed_bytes"]
    assert taught["metric"] >= sparse["metric"]
    # What it brings is told of each file, and is what packing does.
    packed = {one["name"]: one["packed_bytes"] for one in document["variants"]}
    assert all(packed[one["name"]] < 0.8 * one["size"] for one in document["variants"])
    assert "zstd" in place.run("show", bundle).out
    assert "edge-exporter pack" in place.run("build", "plan.toml", "--no-profile").out
    written = place.run("pack", bundle, "--json").document
    assert all(abs(one["packed_bytes"] - packed[one["name"]]) < 400 for one in written["variants"])


def test_students_learn_from_training_inputs_where_the_plan_names_some(place: Workplace) -> None:
    x = np.load(place / "calib.npz")["x"]
    more = np.concatenate([x, x + 0.1, x - 0.1])
    place.npz("train.npz", x=more, y=(more[:, :16].sum(1) > more[:, 16:].sum(1)).astype(np.int64))
    section = '[training]\ndata = "train.npz"\n'
    step = '[[compress.steps]]\nmethod = "distil"\nstudent = {}\nepochs = 8\nrate = 0.01\n'
    little, _ = place.built(plan(place, step, gate=1.0))
    much, bundle = place.built(plan(place, section + step, gate=1.0))
    assert much["history"][1]["notes"] != little["history"][1]["notes"]
    assert much["data"]["training_samples"] == len(more)
    assert json.loads((bundle / "manifest.json").read_text())["data"]["training"]
    # Labels are looked for where the student learns, and what is judged must not be learned from.
    labelled, _ = place.built(plan(place, section + step + 'labels = "y"\n', gate=1.0))
    assert labelled["history"][1]["notes"] != much["history"][1]["notes"]
    place.npz("train.npz", x=np.load(place / "eval.npz")["x"])
    seen = place.build(plan(place, section + step, gate=1.0))
    assert "100 samples are in both training and evaluation data" in seen.err
    refused(place.run("build", plan(place, section)), 3, "training: nothing learns from it")
    place.npz("train.npz", x=np.zeros((9, 31), np.float32))
    refused(place.run("build", plan(place, section + step)), 3, "train.npz")


def test_a_student_of_another_factory_is_taught(place: Workplace) -> None:
    place.write("student.py", FACTORY.replace("make()", "tiny(width)").replace("32, 32", "32, width").replace(
        "nn.Linear(32, 2)", "nn.Linear(width, 2)"))  # fmt: skip
    step = '[[compress.steps]]\nmethod = "distil"\nsource = "student.py:tiny"\nstudent = { width = 5 }\nepochs = 9\n'
    document, _ = place.built(plan(place, step, gate=1.0))
    assert document["history"][1]["cost"]["parameters"] == 32 * 5 + 5 + 10 + 2
    place.write("student.py", (place / "student.py").read_text().replace("(width, 2)", "(width, 3)"))
    refused(place.run("build", "plan.toml"), 3, "student's outputs do not match", "gives [[3]], the teachers [[2]]")


TWO = """
import torch
from torch import nn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 2)

    def forward(self, x):
        y = self.inner(torch.flatten(x, 1))
        return {"a": y, "b": -y}


def make():
    torch.manual_seed(0)
    return Two()
"""


def test_a_fresh_student_may_name_its_input_otherwise_and_give_its_outputs_in_another_order(place: Workplace) -> None:
    place.write("model.py", TWO)
    swapped = TWO.replace('{"a": y, "b": -y}', '{"b": -y, "a": y}').replace("(self, x)", "(self, data)")
    place.write("student.py", swapped.replace("flatten(x", "flatten(data").replace("seed(0)", "seed(1)"))
    step = 'method = "distil"\nsource = "student.py:make"\nloss = "mse"\nepochs = 40\nrate = 0.05\nbatch_size = 8\n'
    file = plan(place, f"[[compress.steps]]\n{step}", gate=1.0)
    file.write_text(file.read_text().replace('weights = "base.safetensors"\n', ""))
    document, _ = place.built(file)
    outputs = document["variants"][0]["fidelity"]["outputs"]
    assert {one["output"]: one["sqnr_db"] > 20 for one in outputs} == {"a": True, "b": True}


def test_outputs_of_a_teacher_are_matched_by_name(place: Workplace, tmp_path: Path) -> None:
    place.write("model.py", TWO)
    place.write("teacher.py", TWO.replace('{"a": y, "b": -y}', '{"b": -y, "a": y}').replace("seed(0)", "seed(1)"))
    namespace: dict[str, Any] = {}
    exec((place / "teacher.py").read_text(), namespace)
    teacher = namespace["make"]()
    save_file(teacher.state_dict(), place / "teacher.safetensors")
    merge = '[merge]\nmethod = "transfer"\naccept = "worse"\n'
    merge += '[merge.teaching]\nloss = "mse"\nrate = 0.05\nbatch_size = 8\n'
    merge += '[[merge.models]]\nsource = "teacher.py:make"\nweights = "teacher.safetensors"\n'
    file = plan(place, merge, gate=1.0)
    file.write_text(file.read_text().replace('weights = "base.safetensors"\n', ""))
    document, bundle = place.built(file)
    member = next(entry for entry in document["history"] if entry["role"] == "member")
    assert {one["output"]: one["sqnr_db"] > 20 for one in member["fidelity"]["outputs"]} == {"a": True, "b": True}
    x = torch.randn(5, 32)
    answers = run_bundle(bundle, {"x": x.numpy()}, tmp_path, "--variant", "fp32")
    np.testing.assert_allclose(answers["a"], teacher(x)["a"].detach().numpy(), atol=0.1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ('method = "distil"\nlabels = "y"', "no labels 'y' to learn from"),
        ('method = "distil"\nhard = 0.5', "it weighs `labels`, and none are named"),
        ('method = "distil"\nhint_weight = 2.0', "there are no `hints`"),
        ('method = "distil"\nhints = { "7" = "1" }', "the student has no module '7'"),
        ('method = "distil"\nsource = "gone.py:make"', "gone.py does not exist"),
        ('method = "distil"\nstudent = { width = 3 }', "the student cannot be made"),
        ('method = "prune-weights"', "needs either `sparsity` or `threshold`"),
        ('method = "prune-weights"\nsparsity = 0.5\npattern = "2:4"', "half zeros by itself"),
        ('method = "prune-weights"\nsparsity = 1.0', "compress.steps[0].sparsity"),
        ('method = "prune-weights"\nthreshold = 99.0', "every weight would become zero"),
        ('method = "prune-weights"\nsparsity = 0.5\nignore = ["1x"]', "the model has no module '1x'"),
    ],
)
def test_a_step_that_cannot_be_done_is_refused_in_one_message(place: Workplace, values: str, said: str) -> None:
    refused(place.run("build", plan(place, f"[[compress.steps]]\n{values}\n")), 3, said)
    assert place.bundles() == []
