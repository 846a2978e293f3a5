"""The opset that int8 with one scale a channel needs, for ready models that are older."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

PER_CHANNEL_OPSET = 13
"""The first opset whose QuantizeLinear has an axis."""


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set; that of models which import none is new enough."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), PER_CHANNEL_OPSET)


def raised(model: Path, folder: Path) -> Path:
    """A copy of a model in `PER_CHANNEL_OPSET` where it is older; the model itself where it is not, or cannot be.

    Its answers are no other: what int8 makes of it is judged against the file as it was given.

    Args:
        model: ONNX file that fits into memory as one message.
        folder: where the copy is written.
    """
    import onnx
    from onnx import version_converter

    if opset_of(onnx.load(model, load_external_data=False)) >= PER_CHANNEL_OPSET:
        return model
    try:
        newer = version_converter.convert_version(onnx.load(model), PER_CHANNEL_OPSET)
    except Exception:  # The converter raises RuntimeError and more for operators that it does not know.
        return model
    copy = folder / model.name
    onnx.save(newer, copy)
    return copy
