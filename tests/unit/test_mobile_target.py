"""What the mobile target asks for, and in which order it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.artifacts import QuantScheme, Signature
from exporter.errors import InputError
from exporter.target_api import ConvertRequest
from targets import _litert
from targets.mobile import TARGET, MobileOptions

FLOAT = Path(__file__).parents[1] / "e2e" / "quadrants_by_onnx2tf.tflite"


@pytest.mark.parametrize(
    ("variants", "ranges"),
    [(("int8",), True), (("dynamic-int8", "int16x8"), True), (("dynamic-int8", "float16"), False), ((), False)],
)
def test_calibration_data_are_needed_where_a_variant_has_ranges(variants: Any, ranges: bool) -> None:
    assert TARGET.requires(MobileOptions(variants=variants)).ranges is ranges


def test_an_operator_that_is_not_there_is_told_before_anything_is_quantized(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def convert(_request: Any, base: _litert.Base, variants: Any, _last: Any) -> None:
        asked.append(variants)
        base.float_file.parent.mkdir()
        base.float_file.write_bytes(FLOAT.read_bytes())

    monkeypatch.setattr(_litert, "convert", convert)
    monkeypatch.setattr(_litert, "quantize", lambda *given: asked.append(given))
    request = ConvertRequest(
        float_model=tmp_path,
        int8=(),
        signature=Signature(inputs=(), outputs=()),
        quantize=QuantScheme(activations="int8"),
    )
    with pytest.raises(InputError, match="the model has no operator CONV2D"):
        TARGET.convert(request, MobileOptions(exclude=("CONV2D",)), tmp_path)
    assert asked == [()]
