"""Float ONNX to int8: static QDQ quantization with calibration data, and what it covered."""

from exporter.quantize.static import quantize_static
from exporter.quantize.tolerance import int8_tolerance

__all__ = ["int8_tolerance", "quantize_static"]
