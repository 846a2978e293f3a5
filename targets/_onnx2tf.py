"""A ready ONNX file to a float .tflite, through onnx2tf (which needs TensorFlow) in an environment of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from exporter.artifacts import Signature
from exporter.errors import StageError, shorten
from exporter.target_api import EnvironmentNeed, TensorForm
from targets._onnx_edges import write_settled
from targets._tflite_names import give_names, placeholder

DRIVER = Path(__file__).with_name("_onnx2tf_driver.py")
REQUIREMENTS = Path(__file__).with_name("onnx2tf-requirements.txt")
ENVIRONMENT = EnvironmentNeed(
    name="onnx2tf",
    requirements=tuple(
        line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ),
    oldest=(3, 11),
    newest=(3, 11),
    complete=True,
)
STAYS_FLOAT = ("PADV2", "BATCH_MATMUL", "DIV")
"""What can go wrong in integers in a form in which onnx2tf writes it; a divisor, for one, may round to zero."""
WHERE = "convert to .tflite (onnx2tf)"
SECONDS = 4 * 3600
TOLERANCE = 1e-4
"""Largest difference from the ONNX file, relative to the largest value of an output: rounding stays far below."""
HINT = 'convert the torch model, or use `[targets.mobile] format = "ort"`, which takes the ONNX file as it is'


def convert(model: Path, signature: Signature, form: TensorForm, python: str, path: Path) -> None:
    """Writes the float .tflite, with the names of the ONNX file.

    Args:
        model: the ONNX file, with fixed shapes.
        signature: its inputs and outputs.
        form: how the .tflite takes and gives tensors.
        python: of the environment that holds onnx2tf.
        path: where to write.

    Raises:
        StageError: onnx2tf cannot convert the model, or its process ended otherwise.
    """
    with TemporaryDirectory(prefix="edge-exporter-onnx2tf-") as name:
        folder = Path(name)
        write_settled(model, signature, form, folder / "model.onnx")
        _run(python, folder, len(signature.inputs))
        made = folder / "out" / "model_float32.tflite"
        if not made.is_file():
            raise StageError(
                "onnx2tf ended without a file",
                where=WHERE,
                hint="its words are in the run log (`-v` shows it)",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, path)
    give_names(path, [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs])


def _run(python: str, folder: Path, inputs: int) -> None:
    kept = [placeholder("input", index) for index in range(inputs)]
    # Loops unrolled, because the quantizer does not see into them.
    # An Erf that is part of no Gelu in steps that TensorFlow Lite has; as it is it would need TensorFlow in the app.
    command = ["-i", "model.onnx", "-o", "out", "-n", "-eru", "-kat", *kept, "-rtpo", "Erf"]
    try:
        done = subprocess.run(
            [python, "-I", "-B", str(DRIVER), *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StageError(f"onnx2tf did not end within {SECONDS // 3600} hours", where=WHERE) from error
    words = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode(errors="replace"))
    sys.stdout.write(words)  # The run log, while a step runs.
    if done.returncode != 0:
        raise _meaning(done.returncode, words.splitlines())


def _meaning(code: int, words: Sequence[str]) -> StageError:
    """What onnx2tf's last words say, in the user's terms."""
    if code < 0:
        return StageError(
            f"onnx2tf's process ended with signal {-code}",
            where=WHERE,
            why="killed, perhaps for want of memory" if code == -9 else "it crashed and left no message",
            hint="the end of its output is in the run log (`-v` shows it); finished steps are kept",
        )
    for line in words:
        if found := re.search(r"(\S+) OP is not yet implemented", line) or re.match(r"Custom ops: (.+?)\s*$", line):
            return _lacking(found[1], line)
    errors = [line.partition("ERROR:")[2].strip() for line in words if "ERROR:" in line]
    last = next((line for line in reversed(words) if line.strip()), f"exit code {code}")
    return StageError(
        "the model cannot be made a .tflite file by onnx2tf",
        where=WHERE,
        why=shorten("; ".join(filter(None, errors[:3])) or last),
        hint='its words are in the run log (`-v` shows it); `[targets.mobile] format = "ort"` takes any ONNX file',
    )


def _lacking(operators: str, why: str) -> StageError:
    return StageError(
        f"the operator {operators} has no .tflite form in the converter",
        where=WHERE,
        why=shorten(why),
        hint='replace it in the model, or use `[targets.mobile] format = "ort"`, which takes any ONNX file',
    )
