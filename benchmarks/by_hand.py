"""The library calls that `edge-exporter build` makes, written by hand: the baseline of overhead.py.

Usage: by_hand.py DATA.npz FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from resnet18 import resnet18

BATCH = 32


def main(data: Path, folder: Path) -> None:
    """Exports, checks at two batch sizes, quantizes, runs both files over the data and over nine cases."""
    images = np.load(data)["x"]
    model = resnet18().eval()
    float_path, prepared, int8_path = (str(folder / f"{name}.onnx") for name in ("float", "prepared", "int8"))

    def torch_run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(batch)).numpy()

    for _ in range(2):
        torch_run(images[:2])
    program = torch.onnx.export(
        model,
        (torch.from_numpy(images[:2]),),
        dynamo=True,
        input_names=["x"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=20,
        verbose=False,
    )
    program.save(float_path)
    session = open_session(float_path)
    for count in (2, 3):
        np.abs(session.run(None, {"x": images[:count]})[0] - torch_run(images[:count])).max()
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    reference = [torch_run(batch) for batch in batches]
    quant_pre_process(float_path, prepared, auto_merge=True)
    quantization.quantize_static(
        prepared,
        int8_path,
        Reader(batches),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    for path in (float_path, int8_path):
        session = open_session(path)
        for batch, wanted in zip(batches, reference, strict=True):
            np.square(session.run(None, {"x": batch})[0] - wanted).sum()
        session = open_session(path)
        for case in [*(images[index : index + 1] for index in range(8)), images[:3]]:
            session.run(None, {"x": case})


def open_session(path: str) -> onnxruntime.InferenceSession:
    """One thread, as the exporter opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Reader(quantization.CalibrationDataReader):
    """Hands batches to onnxruntime's calibrator."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self.left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None at the end."""
        batch = next(self.left, None)
        return None if batch is None else {"x": batch}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
