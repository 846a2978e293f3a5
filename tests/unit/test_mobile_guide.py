"""The part of a mobile bundle's README that shows how an app loads the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

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
    buffer = "ByteBuffer.allocateDirect(1 * 16).order(ByteOrder.nativeOrder())"
    assert f"{buffer}, longArrayOf(1, 16), OnnxJavaType.BOOL)" in text
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


def with_tensors(made: Manifest, inputs: dict[str, Any], outputs: dict[str, Any]) -> Manifest:
    sides = [
        tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in side.items())
        for side in (inputs, outputs)
    ]
    return msgspec.structs.replace(made, signature=Signature(inputs=sides[0], outputs=sides[1]))


ONE = ("float32", (1,))


@pytest.mark.parametrize("guide", [app_guide, _handover_ort.app_guide])
def test_every_tensor_has_an_identifier_of_its_own_that_both_languages_take(guide: Any) -> None:
    names = {"a.b": ONE, "a_b": ONE, "in": ONE, "inputs": ONE, "1st": ONE, "_": ONE}
    made = with_tensors(manifest(variant("fp32"), variant("int8")), names, {"a b": ONE, "func": ONE, "model": ONE})
    found = re.findall(r"^ *val (\w+) = .*// ", guide(made), re.MULTILINE)
    assert found == ["a_b", "a_b_", "in_", "inputs_", "t_1st", "t__", "a_b__", "func_", "model_"]


def test_names_are_written_as_each_language_writes_texts() -> None:
    made = with_tensors(manifest(variant("fp32"), variant("int8")), {'$a"\\': ONE}, {"line\nbreak": ONE})
    assert 'mapOf("\\$a\\"\\\\" to t__a__)' in app_guide(made)
    text = _handover_ort.app_guide(made)
    assert 'mapOf("\\$a\\"\\\\" to t__a__)' in text
    assert 'withInputs: ["$a\\"\\\\": t__a__], outputNames: ["line\\nbreak"]' in text
    assert "// line break: float32[1]" in text


def test_files_that_take_other_types_are_shown_with_theirs() -> None:
    edge = EdgeType(tensor="input.1", dtype="int8", scale=0.0039, zero_point=-128)
    text = app_guide(manifest(variant("fp32"), variant("fp16"), variant("int8", edge)))
    lines = [line for line in text.splitlines() if line.startswith("val input_1") or line.startswith("With ")]
    inner = "Array(1) {{ Array(3) {{ Array(8) {{ {}Array(8) }} }} }}"
    assert lines == [
        f"val input_1 = {inner.format('Byte')}  // input.1: int8[1, 3, 8, 8]",
        "With `fp32`, `fp16` the tensors are these:",
        f"val input_1 = {inner.format('Float')}  // input.1: float32[1, 3, 8, 8]",
    ]
    assert "the API for Swift has no tensors of int8, as `int8` has" in text
    assert "`TensorFlowLiteSwift`) with `fp32`, `fp16`; inputs are numbered" in text


def test_which_file_is_the_default_is_read_where_measuring_writes_it() -> None:
    for guide in (app_guide, _handover_ort.app_guide):
        text = guide(manifest(variant("fp32"), variant("fp16"), variant("int8")))
        assert "open `variants/int8/model.tflite`" in text
        assert "says `choice` in `manifest.json`" in text
        assert "any other variant" not in guide(manifest(variant("fp32"))).lower()


def test_scalars_and_types_without_an_array_are_no_arrays() -> None:
    made = manifest(variant("fp32"), variant("int8"))
    scalars = {"x": ("float32", ()), "n": ("int64", ()), "yes": ("bool", ())}
    text = app_guide(with_tensors(made, scalars, {"y": ONE}))
    for words in ("val x = FloatBuffer.allocate(1)", "val n = LongBuffer.allocate(1)", "val yes = ByteBuffer."):
        assert words in text
    assert "no tensors of float64; its C API" in app_guide(with_tensors(made, {"x": ("float64", (1,))}, {"y": ONE}))


def test_unsigned_integers_in_ort_format_are_said_to_be_none_of_kotlins() -> None:
    made = manifest(variant("fp32"), variant("int8"))
    text = _handover_ort.app_guide(with_tensors(made, {"x": ("uint32", (1,))}, {"y": ONE}))
    assert "API for Kotlin and Java makes no tensors of uint32; its C API" in text
    assert "elementType: .uInt32" in text
    text = _handover_ort.app_guide(with_tensors(made, {"x": ONE}, {"y": ("uint64", (1,))}))
    assert "uint64 come as signed integers with the same bits" in text
    assert ".longBuffer  // y: uint64[1]" in text


WORDS = (
    "a.b", "a_b", "in", "inputs", "1st", "_", "", "\u03c0", "a b", 'q"uote', "do$lar", "back\\slash", "new\nline",
    "tab\t", "*/", "`tick`", "${x}", "bell\x07", "\b\f", "\U0001f600", "fun", "func", "await", "Any", "Self", "try",
)  # fmt: skip
"""Names of tensors that neither language takes as they are."""


def kinds() -> Iterator[Manifest]:
    """Models of different kinds: every element type and rank, integer edges, a single variant, odd names."""
    made = manifest(variant("fp32"), variant("int8"))
    yield made
    yield manifest(variant("fp32"))
    edges = [EdgeType(tensor="input.1", dtype=dtype, scale=0.1, zero_point=0) for dtype in ("int8", "int16")]
    yield manifest(variant("fp32"), variant("int8", edges[0]), variant("int16x8", edges[1]))
    for dtype in ("bool", *(f"{kind}{size}" for kind in ("int", "uint", "float") for size in (8, 16, 32, 64))):
        for shape in ((), (1,), (1, 2, 3, 4, 5, 6)):
            yield with_tensors(made, {"x": (dtype, shape)}, {"y": (dtype, shape)})
    yield with_tensors(made, dict.fromkeys(WORDS, ONE), {f"out {word}": ONE for word in WORDS})


def snippets(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def faults(language: str, code: str) -> list[str]:
    """What a parser of the language does not understand, or misses."""
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = tree_sitter.Language(pytest.importorskip(f"tree_sitter_{language}").language())
    waiting, found = [tree_sitter.Parser(grammar).parse(code.encode()).root_node], []
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            found.append(f"line {node.start_point[0] + 1}: {node.type} {node.text.decode()[:60]!r}")
        waiting += node.children
    return found


@pytest.mark.parametrize("guide", [app_guide, _handover_ort.app_guide])
@pytest.mark.parametrize("language", ["kotlin", "swift"])
def test_the_lines_for_an_app_are_free_of_errors_of_syntax_whatever_the_model(language: str, guide: Any) -> None:
    texts = [code for made in kinds() for code in snippets(guide(made), language)]
    assert len(texts) > 10
    assert {code: found for code in texts if (found := faults(language, code))} == {}


@pytest.mark.parametrize(
    ("language", "intact", "broken"),
    [
        ("kotlin", "val input_1 =", "val input.1 ="),
        ("kotlin", 'mapOf("input.1" to', 'mapOf("input.1 to'),
        ("kotlin", "Array(1) { Array(3)", "Array(1) { Array 3)"),
        ("swift", "let best = try", "let 1st = try"),
        ("swift", "toInputAt: 0)", "toInputAt: 0"),
        ("swift", "copy(input_1,", "copy(await,"),
    ],
)
def test_a_line_that_is_broken_is_found(language: str, intact: str, broken: str) -> None:
    (code,) = snippets(app_guide(manifest(variant("fp32"), variant("int8"))), language)
    assert intact in code
    assert faults(language, code) == []
    assert faults(language, code.replace(intact, broken))
