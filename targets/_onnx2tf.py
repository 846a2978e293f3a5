"""A ready ONNX file to a float .tflite, through onnx2tf (which needs TensorFlow) in an environment of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from exporter.artifacts import Signature
from exporter.errors import StageError, shorten
from exporter.masks import masked_alike
from exporter.target_api import EnvironmentNeed, TensorForm
from targets._onnx_edges import write_settled
from targets._tflite_names import give_names, placeholder

if TYPE_CHECKING:
    from exporter.target_api import Arrays, Session

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


def check(reference: Session, converted: Session, examples: Iterable[tuple[Arrays, Arrays]]) -> float:
    """Compares the float .tflite with the ONNX file that it was made from.

    Args:
        reference: the ONNX file.
        converted: the .tflite.
        examples: real inputs, each as the ONNX file takes it and as the .tflite does.

    Returns:
        The largest difference relative to the largest value of an output.

    Raises:
        StageError: shapes or values differ.
    """
    import numpy as np

    worst = 0.0
    for given, formed in examples:
        expected, found = reference(given), converted(formed)
        for name, values in expected.items():
            if found[name].shape != values.shape:
                raise _differs(name, f"its shape is {list(found[name].shape)}, in ONNX {list(values.shape)}")
            finite = np.isfinite(values.astype(np.float64))
            exact, got = values[finite].astype(np.float64), found[name][finite].astype(np.float64)
            if not np.isfinite(got).all():
                raise _differs(name, "it holds NaN or infinity where the ONNX file gives numbers")
            alike = masked_alike(exact, got)
            if not alike.all():  # A finite mask (-1e9) must not be the scale of what it leaves.
                exact, got = exact[~alike], got[~alike]
            largest = max(float(np.abs(exact).max(initial=0.0)), 1e-12)
            error = float(np.abs(got - exact).max(initial=0.0)) / largest
            if error > TOLERANCE:
                raise _differs(name, f"by {error:.3g} of its largest value, more than {TOLERANCE:g}")
            worst = max(worst, error)
    return worst


def _differs(name: str, why: str) -> StageError:
    return StageError(
        "the converted file computes something else than the ONNX file",
        where=f"output '{name}', after {WHERE}",
        why=why,
        hint='convert the torch model, or use `[targets.mobile] format = "ort"`, which takes the ONNX file as it is',
    )


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
