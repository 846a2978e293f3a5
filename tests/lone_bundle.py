"""A small bundle that is made by hand, and its runner driven through its command line, as a device sees it."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from exporter.artifacts import (
    Fidelity,
    FileEntry,
    Manifest,
    Profile,
    Tolerance,
    Variant,
    canonical,
)
from targets.runner import RUNNER_FILES

RUNNER = Path(__file__).parents[1] / "targets" / "runner"
FILES = {**{name: name for name in RUNNER_FILES}, "runtime.py": "onnxruntime_runtime.py"}
QUICK = [
    "--min-samples",
    "30",
    "--min-seconds",
    "0",
    "--max-seconds",
    "5",
    "--ci-width",
    "10",
    "--warmup-seconds",
    "0",
]
ABSENT = "made_up_feature"


def save_model(path: Path, scale: float) -> None:
    """y = scale * (x @ w) + offset, and n = number of each row's token; x has a named and a dynamic batch axis."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weights = (np.arange(12, dtype=np.float32).reshape(4, 3) - 5) * np.float32(scale)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "offset"], ["y"]),
            helper.make_node("Add", ["token", "one"], ["file"]),
        ],
        "tiny",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("file", TensorProto.INT64, ["batch"]),
        ],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array([0.5], np.float32), "offset"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    path.parent.mkdir(parents=True)
    save(model, path)


def expected_of(x: np.ndarray, token: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    weights = (np.arange(12, dtype=np.float32).reshape(4, 3) - 5) * np.float32(scale)
    return {"y": x @ weights + np.float32(0.5), "file": token + 1}


def seal(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest with the files as they lie in the folder now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    entries = tuple(
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            size=path.stat().st_size,
        )
        for path in paths
    )
    (folder / "manifest.json").write_bytes(canonical(msgspec.structs.replace(manifest, files=entries)))


def manifest_of(folder: Path) -> Manifest:
    return msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)


def reseal(folder: Path, **changes: Any) -> None:
    seal(folder, msgspec.structs.replace(manifest_of(folder), **changes))


def variant(name: str, **changes: Any) -> Variant:
    tolerances = {"y": Tolerance(atol=1e-4, quantum=0.01), "file": Tolerance(atol=0)}
    fidelity = Fidelity(reference="torch", reference_digest="0", samples=1, data="evaluation", outputs=())
    return Variant(
        name=name, main=f"variants/{name}/model.onnx", precision=name,
        fidelity=fidelity, tolerances=tolerances, **{"runtime": "onnxruntime", **changes},
    )  # fmt: skip


def run(
    bundle: Path, *arguments: str | Path, cwd: Path | None = None, flags: Sequence[str] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *flags, str(bundle / "run.py"), *map(str, arguments)],
        cwd=cwd or bundle.parent,
        env={**os.environ, "PYTHONPATH": "", "COLUMNS": "80", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def report(bundle: Path, code: int, *arguments: str) -> dict[str, Any]:
    done = run(bundle, "--self-test", "--json", *arguments)
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["passed"] is (code == 0)
    return found


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


X = np.array([[1, 2, 3, 4], [0, 0, 0, 1]], np.float32)
TOKEN = np.array([7, 8], np.int64)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_samples(bundle: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    with np.load(bundle / "samples.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    change(arrays)
    np.savez(bundle / "samples.npz", **arrays)
    reseal(bundle)


def wrong_value(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/y"][1, 2] += 0.5


def infer(bundle: Path, *arguments: str) -> tuple[str, str]:
    given = save_npz(bundle.parent / "x.npz", x=X, token=TOKEN)
    done = run(bundle, "--input", given, "--output", bundle.parent / "y.npz", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["variant"], done.stderr


def profile_of(bundle: Path, *arguments: str) -> Profile:
    done = run(bundle, "--bench", "--json", *QUICK, *arguments)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Profile, strict=True)
