"""A small bundle: one for the session, and a copy of it for each test."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from lone_bundle import FILES, RUNNER, expected_of, save_model, seal, variant

from exporter.artifacts import (
    Choice,
    DataFacts,
    Manifest,
    ModelFacts,
    RuntimeNeed,
    Signature,
    TensorSpec,
)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny bundle"
    folder.mkdir()
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    scales = {"fp32": 1.0, "int8": 1.01, "third": 0.99}
    for case, batch in enumerate([1, 1, 3]):
        x = draw.normal(size=(batch, 4)).astype(np.float32)
        token = draw.integers(0, 9, size=batch)
        arrays |= {f"{case}/inputs/x": x, f"{case}/inputs/token": token}
        for name, scale in scales.items():
            arrays |= {f"{case}/expected/{name}/{key}": y for key, y in expected_of(x, token, scale).items()}
    np.savez(folder / "samples.npz", **arrays)
    for name, scale in scales.items():
        save_model(folder / "variants" / name / "model.onnx", scale)
    for name, source in FILES.items():
        shutil.copyfile(RUNNER / source, folder / name)
    (folder / "requirements-onnxruntime.txt").write_text("onnxruntime>=1.19,<2\nnumpy>=1.21,<3\n")
    (folder / "README.md").write_text("tiny\n")
    specs = {"x": ("float32", ("batch", 4)), "token": ("int64", ("batch",))}
    results = {"y": ("float32", ("batch", 3)), "file": ("int64", ("batch",))}
    inputs, outputs = (
        tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in tensors.items())
        for tensors in (specs, results)
    )
    manifest = Manifest(
        name="tiny",
        target="cpu",
        digest="d" * 64,
        signature=Signature(inputs=inputs, outputs=outputs),
        variants=(variant("fp32"), variant("int8"), variant("third")),
        float_variant="fp32",
        runtime=RuntimeNeed(name="onnxruntime", minimum="1.19", requirements=("onnxruntime>=1.19", "numpy")),
        samples=3,
        model=ModelFacts(source="tiny", digest="0"),
        data=DataFacts(calibration=None, calibration_samples=0, evaluation=None, evaluation_samples=0),
        tools={},
        plan={},
        files=(),
        choice=Choice(variant="int8", why="it is faster here"),
    )
    seal(folder, manifest)
    return folder


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "a bundle"))
