"""The part of a mobile bundle's README that shows how an app loads the file."""

from __future__ import annotations

import msgspec

from exporter.artifacts import (
    Choice,
    DataFacts,
    EdgeType,
    Fidelity,
    Manifest,
    ModelFacts,
    RuntimeNeed,
    Signature,
    TensorSpec,
    Variant,
)
from targets import _handover_ort
from targets._handover import app_guide


def variant(name: str, *edges: EdgeType) -> Variant:
    fidelity = Fidelity(reference="torch", reference_digest="", samples=1, data="evaluation", outputs=())
    return Variant(
        name=name,
        runtime="ai-edge-litert",
        main=f"variants/{name}/model.tflite",
        precision=name,
        fidelity=fidelity,
        tolerances={},
        edges=edges,
    )


def manifest(*variants: Variant) -> Manifest:
    return Manifest(
        name="m",
        target="mobile",
        signature=Signature(
            inputs=(TensorSpec(name="input.1", dtype="float32", shape=(1, 3, 8, 8)),),
            outputs=(TensorSpec(name="best", dtype="int32", shape=(1,)),),
        ),
        variants=variants,
        float_variant="fp32",
        runtime=RuntimeNeed(name="ai-edge-litert", minimum="2.3", requirements=()),
        samples=1,
        model=ModelFacts(source="x", digest="0"),
        data=DataFacts(calibration=None, calibration_samples=0, evaluation=None, evaluation_samples=0),
        tools={},
        plan={},
        files=(),
        choice=Choice(variant="fp32", why=""),
    )


def test_shapes_types_and_names_are_those_of_the_bundle() -> None:
    text = app_guide(manifest(variant("fp32"), variant("int8")))
    assert "variants/int8/model.tflite" in text
    assert "val input_1 = Array(1) { Array(3) { Array(8) { FloatArray(8) } } }" in text
    assert "val best = IntArray(1)" in text
    assert '"input.1" to input_1' in text
    assert "zero point" not in text


def test_integer_edges_have_their_scale_and_their_own_element_type() -> None:
    edge = EdgeType(tensor="input.1", dtype="int8", scale=0.0039, zero_point=-128)
    text = app_guide(manifest(variant("fp32"), variant("int8", edge)))
    assert "| int8 | `input.1` | int8 | 0.0039 | -128 |" in text
    assert "Array(8) { ByteArray(8) }" in text


def test_in_ort_format_every_element_type_has_its_buffer_and_what_swift_lacks_is_said() -> None:
    made = manifest(variant("fp32"), variant("int8"))
    wide = msgspec.structs.replace(
        made,
        signature=Signature(
            inputs=(
                TensorSpec(name="ids", dtype="int64", shape=("batch", 16)),
                TensorSpec(name="mask", dtype="bool", shape=(1, 16)),
            ),
            outputs=(TensorSpec(name="best", dtype="float16", shape=()),),
        ),
    )
    text = _handover_ort.app_guide(wide)
    assert "OnnxTensor.createTensor(environment, LongBuffer.allocate(1 * 16), longArrayOf(1, 16))" in text
    assert "ByteBuffer.allocateDirect(1 * 16), longArrayOf(1, 16), OnnxJavaType.BOOL)" in text
    assert '(results["best"].get() as OnnxTensor).byteBuffer' in text
    assert "no tensors of bool, float16" in text
    assert "ORTSession" not in text


def test_bytes_are_bytes_and_said_to_be_unsigned() -> None:
    made = manifest(variant("fp32"), variant("int8"))
    pixels = Signature(
        inputs=(TensorSpec(name="frame", dtype="uint8", shape=(1, 8, 8, 3)),), outputs=made.signature.outputs
    )
    text = app_guide(msgspec.structs.replace(made, signature=pixels))
    assert "val frame = Array(1) { Array(8) { Array(8) { ByteArray(3) } } }  // frame: uint8[1, 8, 8, 3]" in text
    assert "`frame`: unsigned bytes, 0 to 255" in text
    assert "unsigned bytes" not in app_guide(made)
