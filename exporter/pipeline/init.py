"""`init`: a commented plan for a model and its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from exporter import data as data_room
from exporter import sources
from exporter.artifacts import TensorSpec
from exporter.convert import resolve_reference
from exporter.errors import OutputError, UsageError
from exporter.plan_types import DataPlan, ModelPlan
from exporter.registry import load_target, target_names

LABELS = "labels"
"""What arrays with labels are taken to be called."""
TEMPLATE = """\
# Build with `edge-exporter build {file}`; `edge-exporter plan {file}` shows every value and where it came from.
schema = 1
name = {name}

[model]
source = {source}      # pkg.module:factory, file.py:factory, a torch.export .pt2, or an .onnx file
{weights}
# args = {{ width = 32 }}             # keyword arguments of the factory
# outputs = ["logits"]              # names of the outputs, in order
# labels = ["cat", "dog"]           # class names, in order
# licence = "Apache-2.0"            # licence of the trained model, written into the bundle
{inputs}
[calibration]                       # representative inputs: int8 ranges are measured on them
{calibration}

{evaluation}
# metric = "accuracy"               # or "file.py:function" taking (outputs by name, labels)

[gate]
max_relative_loss = 0.01            # with labels: at most 1 % of the model's metric may be lost
# min_sqnr_db = 20.0                # without labels: outputs must stay this close to the model's

[quantize]
# observer = "minmax"               # or "entropy", "percentile"
# exclude = ["node_conv2d_3"]       # nodes to leave in float

[profile]
threads = 1

{targets}
"""
EVALUATION = """\
# [evaluation]                      # held-out inputs: accuracy is measured on them
# data = "evaluation.npz"
# labels = "labels"                 # the array that holds labels; without it outputs are compared with the model's"""
DEFAULT_TARGET = "cpu"


def write_plan(
    model: str,
    calib: str | None,
    weights: Path | None,
    file: Path,
    *,
    overwrite: bool,
    evaluation: str | None = None,
    labels: str | None = None,
    targets: Sequence[str] = (),
) -> tuple[TensorSpec, ...]:
    """Writes a plan file.

    Args:
        model: source reference, relative to the working folder.
        calib: calibration data, relative to the working folder, or None.
        weights: state dict for a factory, or None.
        file: where the plan goes; paths in it are made relative to its folder.
        overwrite: replace a plan that is there.
        evaluation: held-out data, relative to the working folder, or None.
        labels: the array in them that holds labels; calibration data may have it too.
        targets: what to build for; the others stand there as comments.

    Returns:
        The inputs found in the data.

    Raises:
        OutputError: the file exists, or cannot be written.
        UsageError: labels without data that hold them.
        InputError: there is no such target.
        DataError: the data cannot be read.
        ModelError: the model or its weights do not exist, or are nothing that can be built.
    """
    if file.exists() and not overwrite:
        raise OutputError(
            "the plan file exists already", where=str(file), hint="choose another with --output, or --force"
        )
    if labels and not evaluation:
        raise UsageError("--labels names an array of the evaluation data: give --eval as well")
    for name in targets:
        load_target(name)
    here = Path.cwd()
    sources.identify(
        ModelPlan(source=resolve_reference(model, here), weights=None if weights is None else here / weights)
    )
    specs: tuple[TensorSpec, ...] = ()
    labelled = False
    if calib is not None:
        plan = DataPlan(data=resolve_reference(calib, here))
        specs = data_room.infer_inputs(plan, labels=labels or LABELS, preprocessing={})
        labelled = data_room.has_array(plan, labels or LABELS)
    named = [] if calib is None else [f"data = {_toml(_relative(calib, file.parent))}"]
    if labelled:
        named += [f"ignore = [{_toml(labels or LABELS)}]               # these are no input; [evaluation] reads them"]
    stored = _toml(_relative(str(weights), file.parent)) if weights else None
    text = TEMPLATE.format(
        file=file.name,
        name=_toml(_name(model)),
        source=_toml(_relative(model, file.parent)),
        weights=f"weights = {stored}" if stored else '# weights = "w.safetensors"',
        inputs=_inputs(specs),
        calibration="\n".join(named) or '# data = "calib.npz"',
        evaluation=_evaluation(None if evaluation is None else _relative(evaluation, file.parent), labels),
        targets="\n".join(_targets(targets or [DEFAULT_TARGET])),
    )
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError("the plan cannot be written", where=str(file), why=error.strerror) from error
    return specs


def _evaluation(data: str | None, labels: str | None) -> str:
    if data is None:
        return EVALUATION
    held, _, read = EVALUATION.splitlines()
    read = read if labels is None else f"labels = {_toml(labels)}"
    return "\n".join([held.removeprefix("# "), f"data = {_toml(data)}", read])


def _targets(wanted: Sequence[str]) -> list[str]:
    """A table for each target that is wanted, and a comment for each other one that is there."""
    lines = [f"[targets.{_key(name)}]" for name in dict.fromkeys(wanted)]
    return lines + [f"# [targets.{_key(name)}]" for name in target_names() if name not in wanted]


def _inputs(specs: tuple[TensorSpec, ...]) -> str:
    lines = []
    for spec in specs:
        lines += [f"\n[model.inputs.{_key(spec.name)}]"]
        if spec.dtype == "uint8" and len(spec.shape) in (3, 4):
            lines += _pixels(spec)
        else:
            lines += [f'dtype = "{spec.dtype}"', f"shape = {_shape(spec.shape)}   # a name is a dynamic axis"]
    return "\n".join([*lines, ""]) if lines else ""


def _pixels(spec: TensorSpec) -> list[str]:
    """An input made of raw pixels: what the model takes is float, and its size is only a guess from the data."""
    batch, height, width, *channels = spec.shape
    gray = not channels
    layout = "HW" if gray else "HWC"
    order = "GRAY" if gray else "RGB"
    shape = (batch, *(channels or [1]), height, width)
    return [
        "# the data are raw pixels: check what the model was trained with (size, scale, mean, std, channel order)",
        'dtype = "float32"',
        f"shape = {_shape(shape)}   # a name is a dynamic axis",
        f"[model.inputs.{_key(spec.name)}.preprocess]",
        f"size = [{height}, {width}]           # of the first sample; images are brought to it",
        f'data_layout = "{layout}"',
        'layout = "CHW"',
        f'channel_order = "{order}"',
        "scale = 0.00392156862745098    # 1 / 255",
        "# mean = [0.485, 0.456, 0.406]",
        "# std = [0.229, 0.224, 0.225]",
    ]


def _shape(shape: tuple[int | str, ...]) -> str:
    return json.dumps(list(shape))


def _relative(reference: str, folder: Path) -> str:
    path, colon, function = reference.rpartition(":")
    if not (colon and path.endswith(".py")):
        if colon and "/" not in reference and "\\" not in reference:
            return reference
        path, colon, function = reference, "", ""
    import os

    return Path(os.path.relpath(Path(path).absolute(), folder.absolute())).as_posix() + colon + function


def _name(model: str) -> str:
    import re

    tail = model.rpartition(":")[2] if ":" in model else Path(model).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", tail).strip("-._") or "model"


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _toml(name)
