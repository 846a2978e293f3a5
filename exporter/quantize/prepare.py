"""What a float graph needs before onnxruntime quantizes it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import StageError, shorten
from exporter.quantize.equalize import equalize
from exporter.quantize.gemms import simplify_gemms
from exporter.quantize.naming import free_name, read_apart, rename_clashing
from exporter.quantize.opset import raised
from exporter.quantize.sharing import separate_weights, share_weights
from exporter.quantize.widening import SINGLE_FILE_LIMIT, in_float32

if TYPE_CHECKING:
    import onnx

PREPARED = "prepared.onnx"


def prepare(model: Path, prepared: Path, *, large: bool, equalized: bool = False) -> None:
    """Folds constants and BatchNorm and infers shapes, which the quantizer relies on; `large`: keep weights outside.

    Symbolic shape inference does not know every operator; without it the quantizer still works, with fewer shapes.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    for skip_symbolic in (False, True):
        try:
            quant_pre_process(
                model, prepared, skip_symbolic_shape=skip_symbolic, auto_merge=True, save_as_external_data=large
            )
        except OSError:  # The disk, which a second try would only meet again.
            raise
        except Exception as error:
            if skip_symbolic:
                raise StageError(
                    "onnxruntime could not prepare the model for quantization",
                    where=model.name,
                    why=shorten(f"{type(error).__name__}: {error}"),
                ) from error
        else:
            break
    _tidy(prepared, large=large, equalized=equalized)


def prepare_float(model: Path, folder: Path, *, equalized: bool) -> Path:
    """Writes prepared.onnx, what a float model is quantized from, into a folder.

    Args:
        model: float ONNX file.
        folder: where to write.
        equalized: even out channels between neighbouring layers.
    """
    prepared = folder / PREPARED
    with tempfile.TemporaryDirectory(dir=folder, prefix="raised-") as place:
        source = in_float32(model, Path(place))
        large = is_large(source)
        prepare(source if large else raised(source, Path(place)), prepared, large=large, equalized=equalized)
    return prepared


def is_large(model: Path) -> bool:
    """Whether a model's weights must lie in a file beside it."""
    return model.stat().st_size + external_size(model) > SINGLE_FILE_LIMIT


def external_size(model: Path) -> int:
    """Bytes of the files beside a model that hold its weights."""
    return sum(file.stat().st_size for file in model.parent.glob(f"{model.name}.*"))


def rewrite(model: onnx.ModelProto, path: Path) -> None:
    """Writes a file anew, with weights beside it where they were there."""
    import onnx

    external = external_size(path) > 0
    for file in path.parent.glob(f"{path.name}.*"):
        file.unlink()  # onnx would write behind what is there.
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")


def _tidy(path: Path, *, large: bool, equalized: bool) -> None:
    """Names nodes without a name, so that each can be left in float, and rewrites what the quantizer gets wrong."""
    import onnx

    model = onnx.load(path)
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = free_name(f"{node.op_type}_{index}", taken)
            taken.add(node.name)
    rename_clashing(model)
    read_apart(model)
    simplify_gemms(model)
    separate_weights(model)
    if equalized:
        equalize(model)
    # Last: evening out channels changes the weights of one node alone.
    share_weights(model)
    onnx.save(model, path, save_as_external_data=large)
