"""Factories, weights and modules that cannot be built: one clear message each, and nothing left behind."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import Workplace, refused

MODELS = '''
import torch
from torch import nn


def make():
    return nn.Linear(4, 3)


def raises():
    raise RuntimeError("no such checkpoint")


def leaves():
    raise SystemExit(0)


def nothing():
    return None


def a_class():
    return nn.Linear


def needs(width, depth):
    return nn.Linear(width, depth)


class Dropping(nn.Module):
    """Stays in training mode whatever it is told."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return nn.functional.dropout(self.linear(x), 0.5, training=True)


def dropping():
    return Dropping()


class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 3), nn.Dropout(0.9)

    def forward(self, x):
        return self.dropout(self.linear(x))


def in_training_mode():
    return Trained().train()


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x - 1


def branching():
    return Branching()


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, 4) * 2


def fixed():
    return Fixed()


class Long(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("positions", torch.randn(6, 4))

    def forward(self, x):
        return x + self.positions


def long():
    return Long()


class Texts(nn.Module):
    def forward(self, x):
        return {"y": x, "note": "hello"}


def texts():
    return Texts()


class Takes(nn.Module):
    def forward(self, x, mask):
        return x * mask


def takes():
    return Takes()


class Raising(nn.Module):
    def forward(self, x):
        raise ValueError("wrong phase of the moon")


def raising():
    return Raising()


class NotANumber(nn.Module):
    def forward(self, x):
        return torch.log(x - 1e9)


def not_a_number():
    return NotANumber()
'''


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    """model.py with one factory a fault, and calibration data that fit."""
    shared_place.write("model.py", MODELS)
    shared_place.npz("calib.npz", x=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    sequence = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    shared_place.npz("sequences.npz", x=sequence)
    return shared_place


def build(place: Workplace, source: str, code: int, *mentions: str, flags: tuple[str, ...] = (), hint: bool = True):
    calib = () if "--calib" in flags else ("--calib", "calib.npz")
    result = place.run("build", source, *calib, "--no-profile", "--progress", "none", *flags)
    message = refused(result, code, *mentions, hint=hint)
    assert place.bundles() == []
    return message


# --- factories -----------------------------------------------------------------------------------------------------


def test_a_factory_that_raises_is_told_with_its_line_and_words(place):
    line = MODELS.splitlines().index('    raise RuntimeError("no such checkpoint")') + 1
    build(place, "model.py:raises", 3, "raises", "RuntimeError", "no such checkpoint", f"model.py:{line}")


def test_a_factory_that_exits_does_not_end_the_build_as_a_success(place):
    build(place, "model.py:leaves", 3, "SystemExit")


@pytest.mark.parametrize(("name", "kind"), [("nothing", "None"), ("a_class", "class Linear")])
def test_a_factory_that_returns_no_module_is_told_what_it_returned(place, name, kind):
    build(place, f"model.py:{name}", 3, "returned no torch.nn.Module", kind)


def test_a_factory_that_needs_other_arguments_is_told_with_its_signature(place):
    build(place, "model.py:needs", 3, "needs other arguments", "'width', 'depth'", "needs(width, depth)")
    flags = ("--set", "model.args={width = 4, dept = 3}")
    build(place, "model.py:needs", 3, "takes no 'dept'", "did you mean 'depth'?", flags=flags)


def test_a_factory_that_is_not_there_is_told_with_the_closest_one(place):
    build(place, "model.py:mak", 3, "has no 'mak'", "did you mean 'make'?")
    build(place, "modle.py:make", 3, "modle.py", "does not exist")
    build(place, "no_such_package.models:make", 3, "no_such_package")


def test_a_factory_with_a_syntax_error_is_told_with_its_line(place):
    place.write("typo.py", "def make():\n    return (\n")
    build(place, "typo.py:make", 3, "not valid Python", "typo.py:2", hint=False)


# --- weights -------------------------------------------------------------------------------------------------------


def test_weights_of_another_architecture_are_told_key_by_key(place):
    save_file({"weight": torch.zeros(3, 5), "biass": torch.zeros(3)}, place / "other.safetensors")
    flags = ("--weights", "other.safetensors")
    build(place, "model.py:make", 3, "weight", "[3, 5]", "[3, 4]", "bias", "biass", flags=flags, hint=False)


def test_pickled_weights_are_refused_with_the_flag_that_allows_them(place):
    torch.save(torch.nn.Linear(4, 3), place / "whole.pt")
    build(place, "model.py:make", 3, "whole.pt", "allow", flags=("--weights", "whole.pt"))
    (place / "evil.pt").write_bytes(pickle.dumps(_Touch()))
    build(place, "model.py:make", 3, "evil.pt", "allow", flags=("--weights", "evil.pt"))
    assert not (place / "touched").exists()


class _Touch:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("touched",)


def test_a_pickle_as_the_model_itself_is_refused(place):
    torch.save(torch.nn.Linear(4, 3), place / "model.pt")
    build(place, "model.pt", 3, "pickle", "weights")


@pytest.mark.parametrize("name", ["bad.safetensors", "bad.pt", "bad.pt2"])
def test_damaged_model_files_are_told(place, name):
    (place / name).write_bytes(b"\x00\x01 nothing of the kind" * 7)
    if name.endswith("pt2"):
        build(place, name, 3, name, hint=False)
    else:
        build(place, "model.py:make", 3, name, flags=("--weights", name), hint=False)


# --- modules -------------------------------------------------------------------------------------------------------


def test_dropout_that_stays_on_is_found_by_comparing_two_runs(place):
    build(place, "model.py:dropping", 3, "two runs", "dropout")


def test_a_model_left_in_training_mode_is_built_in_eval_mode(place):
    result = place.run(
        "build", "model.py:in_training_mode", "--calib", "calib.npz", "--no-profile", "--output", "fine", "--json"
    )
    assert result.code == 0, result.err
    outputs = result.document["targets"][0]["variants"][0]["fidelity"]["outputs"]
    assert outputs[0]["cosine"] > 0.9999


def test_control_flow_on_data_is_told_with_torchs_words_its_line_and_a_way_out(place):
    line = MODELS.splitlines().index("        if x.sum() > 0:") + 1
    message = build(place, "model.py:branching", 5, "control flow", "torch.where", f"model.py:{line}")
    assert len(message) < 1500


def test_a_batch_axis_that_got_specialised_is_named(place):
    build(place, "model.py:fixed", 5, "batch", "specialised to 2", "input 'x', axis 0")


def test_another_dynamic_axis_that_got_specialised_is_named(place):
    flags = ("--calib", "sequences.npz", "--set", 'model.inputs.x.shape=["batch", "length", 4]')
    flags += ("--set", 'model.inputs.x.dtype="float32"')
    build(place, "model.py:long", 5, "length", "specialised to 6", "input 'x', axis 1", flags=flags)


def test_outputs_that_are_no_tensors_are_named(place):
    build(place, "model.py:texts", 3, "note", "str", hint=False)


def test_an_argument_that_the_data_do_not_have_is_named(place):
    build(place, "model.py:takes", 3, "mask", hint=False)


def test_an_error_of_the_models_own_is_told_in_its_own_words(place):
    build(place, "model.py:raising", 5, "ValueError", "wrong phase of the moon")


def test_a_model_that_answers_nothing_but_nan_is_refused(place):
    build(place, "model.py:not_a_number", 3, "NaN", "output 'output'")


def test_names_of_outputs_must_be_as_many_as_there_are(place):
    build(place, "model.py:make", 3, "2", "1", flags=("--set", 'model.outputs=["a", "b"]'), hint=False)


# --- output --------------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_told_before_any_work(place):
    place.write("occupied", "a file where a folder should be")
    for output in ("occupied", "occupied/below", "/proc/nothing"):
        result = place.run("build", "model.py:make", "--calib", "calib.npz", "--output", output)
        message = refused(result, 3, "the output folder cannot be written", "--output")
        assert "export to ONNX" not in message


def test_a_store_that_cannot_be_written_is_told(place):
    place.onnx()
    place.write("occupied", "a file where a folder should be")
    for store in ("/dev/null/store", str(place / "occupied")):
        result = place.process("build", "model.onnx", "--calib", "calib.npz", EDGE_EXPORTER_CACHE=store)
        refused(result, 3, store, "EDGE_EXPORTER_CACHE")
