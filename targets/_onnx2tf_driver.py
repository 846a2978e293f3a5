"""Runs onnx2tf's command line without a network: `python _onnx2tf_driver.py ARGUMENTS`, in onnx2tf's environment.

Where all inputs look like images, onnx2tf fetches some from the internet to follow values through the graph. Values
that are made up serve as well there: what it writes is compared with the ONNX file on real inputs afterwards.
"""

from __future__ import annotations

import importlib
from typing import Any


def made_up_images() -> Any:
    """What stands for onnx2tf's images: 20 of 128x128 in three colours, each value in [0, 1)."""
    numpy = importlib.import_module("numpy")
    return numpy.random.default_rng(0).random((20, 128, 128, 3), dtype=numpy.float32)


if __name__ == "__main__":
    onnx2tf: Any = importlib.import_module("onnx2tf.onnx2tf")
    onnx2tf.download_test_image_data = made_up_images
    onnx2tf.main()
