"""What the mobile target asks for, and in which order it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.artifacts import QuantScheme, Signature
from exporter.errors import InputError
from exporter.pipeline.converted import larger_notes
from exporter.target_api import ConvertRequest, VariantFile
from targets import _litert
from targets._litert_jobs import RUN, Failure
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


@pytest.mark.parametrize(("base", "noted"), [(70_000, True), (1_000, False)])
def test_a_quantized_file_that_is_larger_than_a_float_one_of_some_size_is_noted(
    base: int, noted: bool, tmp_path: Path
) -> None:
    sizes = {"fp32": base, "fp16": base // 2, "int8": base + 900}
    for name, size in sizes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.tflite").write_bytes(bytes(size))
    made = [VariantFile(name=name, main=f"{name}/model.tflite", runtime="r", precision=name) for name in sizes]
    assert larger_notes(tmp_path, made) == (("int8 is larger than fp32: 70.9 kB against 70.0 kB",) if noted else ())


@pytest.mark.parametrize(
    ("said", "what", "hint"),
    [
        (
            "failed to legalize operation 'tfl.conv_2d' ...: (tensor<1x3x8x8xf16>) -> tensor<1xf16>",
            "float16",
            ".float()",
        ),
        ("failed to legalize operation 'tfl.mul' ...: (tensor<f64>) -> tensor<f64>", "float64", ".float()"),
        (
            "failed to legalize operation 'tfl.mul' ...: (tensor<2xf32>) -> tensor<2xf32>",
            "operator mul",
            'format = "ort"',
        ),
        ("Unsupported ir element type: complex<f32>", "complex numbers", 'format = "ort"'),
        ("Lowering not found: cond", "operator cond", 'format = "ort"'),
    ],
)
def test_what_the_converter_lacks_is_told_in_the_users_terms(said: str, what: str, hint: str) -> None:
    told = _litert._meaning(Failure(stage="convert", kind="ValueError", message=said))
    assert what in f"{told.what} {told.why}"
    assert hint in (told.hint or "")
    assert told.where == "convert (litert-torch)"


@pytest.mark.parametrize(
    ("precision", "said", "what", "hint"),
    [
        (
            "float32",
            "Didn't find op for builtin opcode 'STABLEHLO_SORT' version '1'",
            "STABLEHLO_SORT",
            'format = "ort"',
        ),
        ("int8", "tflite/kernels/sub.cc:243 input1->type != input2->type", "cannot run the int8 file", "variants"),
    ],
)
def test_a_file_that_the_runtime_refuses_is_told_as_that(precision: str, said: str, what: str, hint: str) -> None:
    told = _litert._meaning(Failure(stage=f"{RUN} {precision}", kind="ValueError", message=said))
    assert what in told.what
    assert hint in (told.hint or "")
    assert "ai-edge-litert" in (told.where or "")
