"""Small models, data and plans, and a place to run command lines in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.store import LAYOUT

Arrays = Mapping[str, NDArray[Any]]

COMMAND = (sys.executable, "-c", "from exporter.cli import main; main()")
"""The command line as a process, whether or not its script is on PATH."""

QUICK = (
    "--set", "profile.min_seconds=0.02", "--set", "profile.min_samples=20",
    "--set", "profile.max_seconds=0.5", "--set", "profile.warmup_seconds=0.01",
)  # fmt: skip
"""Flags that make measuring short; numbers are then worth nothing."""

FACTORY = '''\
"""A small CNN whose answer is the brightest quadrant of an 8x8 image."""

import torch
from torch import nn

from layers import stem


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = stem(width)
        self.head = nn.Linear(4 * width, 4)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(4).repeat(1, width))
            self.head.bias.zero_()

    def forward(self, image):
        return self.head(torch.flatten(nn.functional.avg_pool2d(self.stem(image), 4), 1))


def make(width=8):
    torch.manual_seed(0)
    return Net(width)
'''
LAYERS = '''\
"""What the factory imports."""

import torch
from torch import nn


def stem(width):
    convolution = nn.Conv2d(1, width, 3, padding=1)
    with torch.no_grad():
        convolution.weight.abs_()
    return nn.Sequential(convolution, nn.ReLU())
'''


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command line ended with."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as one JSON document."""
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Progress events of `--progress json`; the error message is no event."""
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]

    @property
    def rebuilt(self) -> set[str]:
        """Steps that finished and were not cached, without the target's name and details in brackets."""
        done = [event for event in self.events if event["type"] == "StepFinished" and not event["cached"]]
        return {event["step"].removeprefix("cpu: ").partition(" (")[0] for event in done}


def heard_meanwhile(
    folder: Path, run: Callable[[str, Callable[[str], None]], int]
) -> tuple[int, list[tuple[str, bool]]]:
    """Runs a job that tells of two stages and, between them, waits until the first was heard.

    Args:
        folder: that the job runs in.
        run: takes its code, and what gets each stage; gives its exit code.

    Returns:
        The exit code, and of each stage whether the job was done with the first one.
    """
    heard: list[tuple[str, bool]] = []

    def tell(stage: str) -> None:
        heard.append((stage, (folder / "done").exists()))
        (folder / "heard").touch()

    code = """os.write(telling, b"convert\\n")
while not os.path.exists("heard"): time.sleep(0.01)
open("done", "w").close()
os.write(telling, b"quantize\\n")"""
    return run(code, tell), heard


def put_adb_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-in for adb on PATH, with one phone connected; its files and a note of calls lie in `folder`."""
    stand_in = Path(__file__).with_name("adb_stand_in.py")
    command = folder / "bin" / "adb"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.setenv("ADB_DEVICES", "R58M=device")
    monkeypatch.setenv("ADB_ROOT", str(folder))
    monkeypatch.setenv("ADB_LOG", str(folder / "calls"))


def refused(result: Result, code: int, *mentions: str, hint: bool = True) -> str:
    """Asserts one clear message for the user: exit code, no traceback, no bug report, and what it names."""
    assert result.code == code, f"exit code {result.code}\n{result.err}"
    assert "Traceback" not in result.err
    assert "bug in edge-exporter" not in result.err
    assert result.out == ""
    message = result.err[result.err.index("error: ") :]
    for mention in mentions:
        assert mention in message, f"{mention!r} is not in\n{message}"
    if hint:
        assert "\n  hint:" in message, message
    return message


class Workplace:
    """A working folder, with a store beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.cache = folder / "store"
        self.folder.mkdir(parents=True)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def run(self, *arguments: str | Path) -> Result:
        """Runs a command line in this process, with its own file descriptors 1 and 2."""
        from exporter.cli import run

        with _captured() as streams, _environment(EDGE_EXPORTER_CACHE=str(self.cache)):
            before = Path.cwd()
            os.chdir(self.folder)
            try:
                code = run([str(argument) for argument in arguments])
            finally:
                os.chdir(before)
        return Result(code=code, out=streams[0](), err=streams[1]())

    def build(self, *arguments: str | Path) -> Result:
        """`build --json --progress json` with short measurements."""
        return self.run("build", *arguments, "--json", "--progress", "json", *QUICK)

    def built(self, *arguments: str | Path) -> tuple[dict[str, Any], Path]:
        """A build that succeeds: the only target's document, and the bundle's folder."""
        result = self.build(*arguments)
        assert result.code == 0, result.err
        (target,) = result.document["targets"]
        return target, Path(target["bundle"])

    def process(self, *arguments: str | Path, **environment: str) -> Result:
        """Runs a command line in a process of its own."""
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(code=done.returncode, out=done.stdout, err=done.stderr)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of processes that run here."""
        return {**os.environ, "EDGE_EXPORTER_CACHE": str(self.cache), **more}

    def lend(self, kept: Path) -> None:
        """Puts an entry of another store into this one."""
        link = self.cache / LAYOUT / kept.parent.name / kept.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(kept)

    def write(self, name: str, text: str) -> Path:
        """Writes a text file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def factory(self, extra: str = "") -> str:
        """Writes model.py and layers.py; gives the reference to the factory."""
        self.write("layers.py", LAYERS)
        self.write("model.py", FACTORY + extra)
        return "model.py:make"

    def npz(self, name: str, **arrays: NDArray[Any]) -> Path:
        """Writes an .npz file."""
        path = self.folder / name
        np.savez(path, **arrays)
        return path

    def quadrants(self) -> tuple[Path, Path]:
        """Writes calib.npz (16 samples of `image`) and eval.npz (24 samples with labels `y`)."""
        image, _ = quadrants(16, seed=1)
        held_out, labels = quadrants(24, seed=2)
        return self.npz("calib.npz", image=image), self.npz("eval.npz", image=held_out, y=labels)

    def onnx(self, name: str = "model.onnx", **options: Any) -> Path:
        """Writes the quadrant CNN as ONNX."""
        import onnx

        path = self.folder / name
        onnx.save(quadrant_onnx(**options), path)
        return path

    def bundles(self) -> list[Path]:
        """Everything in the output folder, hidden things too."""
        folder = self.folder / "bundles"
        return sorted(folder.iterdir()) if folder.is_dir() else []


def quadrants(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images float32 [count, 1, 8, 8] with one bright quadrant each, and which one."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    images = random.uniform(0, 0.3, (count, 1, 8, 8))
    for image, label in zip(images, labels, strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[0, row : row + 4, column : column + 4] += 0.7
    return images.astype(np.float32), labels


def quadrant_onnx(*, width: int = 8, opset: int = 17, ir_version: int = 8, scale: float = 1.0) -> Any:
    """The CNN as an onnx.ModelProto: image float32 [batch, 1, 8, 8] -> scores float32 [batch, 4]."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    kernel = np.abs(random.normal(size=(width, 1, 3, 3))).astype(np.float32) * scale
    head = np.tile(np.eye(4, dtype=np.float32), (1, width)).T.copy()
    weights = {"kernel": kernel, "bias": np.zeros(width, np.float32), "head": head}
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("AveragePool", ["r"], ["p"], name="pool", kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "head"], ["scores"], name="matmul"),
    ]
    graph = helper.make_graph(
        nodes,
        "quadrants",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def run_bundle(bundle: Path, arrays: Arrays, folder: Path, *flags: str) -> dict[str, NDArray[Any]]:
    """What the bundle's own runner answers, in a process of its own."""
    np.savez(folder / "x.npz", **arrays)
    command = [sys.executable, "-B", bundle / "run.py", "--input", folder / "x.npz", "--output", folder / "y.npz"]
    subprocess.run([*command, *flags], check=True, capture_output=True)
    with np.load(folder / "y.npz") as answers:
        return dict(answers)


def toml_plan(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """A plan's text from tables of plain values; JSON's scalars and lists are TOML as well."""
    lines: Sequence[str] = ["schema = 1", 'name = "quadrants"']
    for section, values in sections.items():
        lines = [*lines, f"\n[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _captured() -> Iterator[list[Any]]:
    """Both descriptors into files, and Python's streams onto the descriptors, as in a process of its own."""
    texts: list[str] = ["", ""]
    readers = [lambda: texts[0], lambda: texts[1]]
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
        saved = [os.dup(1), os.dup(2)]
        for descriptor, file in zip((1, 2), files, strict=True):
            os.dup2(file.fileno(), descriptor)
        sys.stdout = stack.enter_context(open(1, "w", encoding="utf-8", closefd=False))
        sys.stderr = stack.enter_context(open(2, "w", encoding="utf-8", closefd=False))
        try:
            yield readers
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = before
            for index, file in enumerate(files):
                os.dup2(saved[index], index + 1)
                os.close(saved[index])
                file.seek(0)
                texts[index] = file.read().decode(errors="replace")
