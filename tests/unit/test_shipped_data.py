"""The data sets and weights that ship with the project are what their manifest says."""

import hashlib
import importlib.util
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "calibration_data"
FASHION_MNIST = DATA / "fashion_mnist"
EXAMPLE = ROOT / "examples" / "fashion_mnist"
SETS: list[dict[str, Any]] = tomllib.loads((DATA / "manifest.toml").read_text("utf-8"))["set"]


def load_set(name: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(DATA / name) as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> nn.Module:
    spec = importlib.util.spec_from_file_location("fashion_mnist_model", EXAMPLE / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.small_resnet()
    assert isinstance(network, nn.Module)
    return network.eval()


@pytest.mark.parametrize("entry", SETS, ids=lambda entry: entry["file"])
def test_file_matches_its_manifest_table(entry: dict[str, Any]) -> None:
    path = DATA / entry["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    found = {name: (str(array.dtype), list(array.shape)) for name, array in load_set(entry["file"]).items()}
    stated = {array["name"]: (array["dtype"], array["shape"]) for array in entry["arrays"]}
    assert found == stated
    assert {shape[0] for _, shape in found.values()} == {entry["samples"]}


@pytest.mark.parametrize("entry", SETS, ids=lambda entry: entry["file"])
def test_manifest_table_states_origin_and_licence(entry: dict[str, Any]) -> None:
    assert entry["origin"]
    assert entry["licence"]
    licence = (DATA / entry["file"]).with_name("LICENSE").read_text("utf-8")
    assert entry["copyright"] in licence


def test_manifest_lists_every_file_once() -> None:
    listed = [entry["file"] for entry in SETS]
    present = {
        path.relative_to(DATA).as_posix()
        for path in FASHION_MNIST.rglob("*")
        if path.is_file() and path != FASHION_MNIST / "LICENSE"
    }
    assert len(listed) == len(set(listed))
    assert present == {name for name in listed if name.startswith("fashion_mnist/")}


def test_images_are_distinct_within_and_across_sets() -> None:
    images = np.concatenate(
        [load_set(f"fashion_mnist/{name}.npz")["image"] for name in ("calibration", "evaluation")]
    )
    assert len({image.tobytes() for image in images}) == len(images)


def test_classes_are_balanced() -> None:
    calibration = load_set("fashion_mnist/calibration.npz")["labels"]
    evaluation = load_set("fashion_mnist/evaluation.npz")["labels"]
    assert np.bincount(calibration).tolist() == [26] * 6 + [25] * 4
    assert np.bincount(evaluation).tolist() == [200] * 10
    assert min(calibration.min(), evaluation.min()) == 0


def test_weights_carry_their_provenance() -> None:
    with safe_open(EXAMPLE / "weights.safetensors", framework="pt") as weights:
        metadata = weights.metadata()
    assert metadata.keys() == {"dataset", "epochs", "seed", "test_accuracy", "torch"}
    assert metadata["dataset"] == "Fashion-MNIST"
    assert float(metadata["test_accuracy"]) >= 0.915


@pytest.mark.usefixtures("one_thread")
def test_weights_load_strictly_and_classify_the_evaluation_set(model: nn.Module) -> None:
    model.load_state_dict(load_file(EXAMPLE / "weights.safetensors"), strict=True)
    samples = load_set("fashion_mnist/evaluation.npz")
    images = torch.from_numpy(samples["image"]).unsqueeze(1).float() * (1 / 255)
    with torch.inference_mode():
        predictions = torch.cat([model(batch).argmax(1) for batch in torch.split(images, 250)])
    assert np.mean(predictions.numpy() == samples["labels"]) >= 0.90
