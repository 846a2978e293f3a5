"""How to run a mobile bundle's file in an app, as text with this bundle's own names, shapes and types filled in."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from exporter.artifacts import Manifest, TensorSpec, Variant
from targets._handover_words import comment, identifiers, kotlin_text

KOTLIN = {
    "float32": "Float", "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Byte", "uint8": "Byte",
    "bool": "Boolean",
}  # fmt: skip
"""Element type -> the primitive of Kotlin that LiteRT's API takes and gives for it."""
SWIFT = ("float32", "float64", "float16", "int64", "int32", "int16", "uint8", "bool")
"""Element types of tensors in the Swift API, which has no int8."""


def app_guide(manifest: Manifest) -> str:
    """Android, iOS and adb, for int8 where there is such a variant."""
    shown = shown_variant(manifest)
    kinds = _kinds(manifest)
    first = next(names for names in kinds if shown.name in names)
    lines = [
        "## In an app",
        "",
        *which(manifest, shown, "model.tflite"),
        "",
        *_edges(manifest.variants),
        *_bytes(manifest.signature.inputs),
        *_kotlin(manifest, kinds, first),
        *_swift(manifest, kinds, first),
        "Latency on a phone, with LiteRT's `benchmark_model` for Android:",
        "",
        "```",
        "adb push benchmark_model /data/local/tmp/ && adb shell chmod +x /data/local/tmp/benchmark_model",
        f"adb push {shown.main} /data/local/tmp/model.tflite",
        "adb shell /data/local/tmp/benchmark_model --graph=/data/local/tmp/model.tflite --num_threads=1 "
        "--use_xnnpack=true",
        "```",
        "",
    ]
    return "\n".join(lines)


def shown_variant(manifest: Manifest) -> Variant:
    """The variant that the lines open: int8, else any that is not float, else the float one."""
    others = [one for one in manifest.variants if one.name != manifest.float_variant]
    return next((one for one in others if one.name == "int8"), [*others, manifest.variants[0]][0])


def which(manifest: Manifest, shown: Variant, file: str) -> list[str]:
    """Which file the lines open, and where to read which one is the default: measuring may change that."""
    text = f"The lines below open `{shown.main}`, copied into the app as `{file}`."
    if manifest.variants[1:]:
        text += (
            " Any other variant's file can take its place; which one is this bundle's default says `choice` in "
            "`manifest.json`, and so does `python run.py`."
        )
    return [text]


Kinds = dict[tuple[str, ...], tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]
"""Names of variants -> the inputs and outputs that all of them have."""


def _kinds(manifest: Manifest) -> Kinds:
    """Variants by the types that their files take and give."""
    found: dict[tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]], list[str]] = {}
    for variant in manifest.variants:
        types = {edge.tensor: edge.dtype for edge in variant.edges}
        inputs, outputs = (
            tuple(msgspec.structs.replace(spec, dtype=types.get(spec.name, spec.dtype)) for spec in side)
            for side in (manifest.signature.inputs, manifest.signature.outputs)
        )
        found.setdefault((inputs, outputs), []).append(variant.name)
    return {tuple(names): sides for sides, names in found.items()}


def _kotlin(manifest: Manifest, kinds: Kinds, first: tuple[str, ...]) -> list[str]:
    inputs, outputs = kinds[first]
    names = identifiers((*inputs, *outputs))
    if lacking := _lacking((*inputs, *outputs), KOTLIN):
        return [
            f"Android: LiteRT's API for Kotlin and Java has no tensors of {lacking}; its C API opens the file.",
            "",
        ]
    pairs = [f"{kotlin_text(spec.name)} to {name}" for spec, name in zip((*inputs, *outputs), names, strict=True)]
    lines = [
        'Android (Kotlin, `implementation("com.google.ai.edge.litert:litert:1.+")`):',
        "",
        "```kotlin",
        "import java.io.FileInputStream",
        "import java.nio.*",
        "import java.nio.channels.FileChannel",
        "import org.tensorflow.lite.Interpreter",
        "",
        'val model = context.assets.openFd("model.tflite").use {',
        "    FileInputStream(it.fileDescriptor).channel",
        "        .map(FileChannel.MapMode.READ_ONLY, it.startOffset, it.length)",
        "}",
        "val interpreter = Interpreter(model)",
        *_declared((*inputs, *outputs), names),
        f"val inputs = mapOf({', '.join(pairs[: len(inputs)])})",
        f"val outputs = mapOf({', '.join(pairs[len(inputs) :])})",
        "interpreter.runSignature(inputs, outputs)",
        "```",
        "",
    ]
    for others, (taken, given) in kinds.items():
        if others == first:
            continue
        lines += [
            f"With {_listed(others)} the tensors are these:",
            "",
            "```kotlin",
            *_declared((*taken, *given), names),
            "```",
            "",
        ]
    return lines


def _swift(manifest: Manifest, kinds: Kinds, first: tuple[str, ...]) -> list[str]:
    able = {names: sides for names, sides in kinds.items() if not _lacking((*sides[0], *sides[1]), SWIFT)}
    unable = [name for names in kinds if names not in able for name in names]
    lines = []
    if unable:
        inputs, outputs = next(sides for names, sides in kinds.items() if names not in able)
        lines = [
            f"iOS: the API for Swift has no tensors of {_lacking((*inputs, *outputs), SWIFT)}, as {_listed(unable)} "
            "has; LiteRT's C API (the pod `TensorFlowLiteC`) opens such a file.",
            "",
        ]
    if not able:
        return lines
    names = first if first in able else next(iter(able))
    inputs, outputs = able[names]
    words = identifiers((*inputs, *outputs))
    which = f" with {_listed(names)}" if kinds.keys() != {names} else ""
    return [
        *lines,
        f"iOS (Swift, the pod `TensorFlowLiteSwift`){which}; inputs are numbered in the file's order:",
        "",
        "```swift",
        "import TensorFlowLite",
        "",
        'let interpreter = try Interpreter(modelPath: Bundle.main.path(forResource: "model", ofType: "tflite")!)',
        "try interpreter.allocateTensors()",
        *(
            f"try interpreter.copy({word}, toInputAt: {index})  // Data with {comment(spec)}, in row-major order"
            for index, (spec, word) in enumerate(zip(inputs, words, strict=False))
        ),
        "try interpreter.invoke()",
        *(
            f"let {word} = try interpreter.output(at: {index}).data  // {comment(spec)}"
            for index, (spec, word) in enumerate(zip(outputs, words[len(inputs) :], strict=True))
        ),
        "```",
        "",
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _lacking(specs: Sequence[TensorSpec], known: Sequence[str] | dict[str, str]) -> str:
    return ", ".join(sorted({spec.dtype for spec in specs} - set(known)))


def _edges(variants: tuple[Variant, ...]) -> list[str]:
    found = [(variant.name, edge) for variant in variants for edge in variant.edges]
    if not found:
        return []
    rows = [
        f"| {name} | `{edge.tensor}` | {edge.dtype} | {edge.scale:.9g} | {edge.zero_point} |" for name, edge in found
    ]
    return [
        "These files take and give integers: `real = (integer - zero point) * scale`. `run.py` converts; an app does "
        "it itself, or feeds integers.",
        "",
        "| variant | tensor | type | scale | zero point |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _bytes(inputs: tuple[TensorSpec, ...]) -> list[str]:
    """How an app fills inputs of unsigned bytes."""
    names = [f"`{spec.name}`" for spec in inputs if spec.dtype == "uint8"]
    if not names:
        return []
    return [
        f"{', '.join(names)}: unsigned bytes, 0 to 255, in the order of the shape. A Byte of Kotlin is signed, and "
        "holds the same bits: `value.toByte()`. Swift's `Data` holds them as they are.",
        "",
    ]


def _declared(specs: Sequence[TensorSpec], names: Sequence[str]) -> list[str]:
    return [
        f"val {name} = {_kotlin_tensor(spec)}  // {comment(spec)}" for spec, name in zip(specs, names, strict=True)
    ]


def _kotlin_tensor(spec: TensorSpec) -> str:
    """Nested arrays of the tensor's shape, which is fixed; the innermost one is of a primitive type."""
    element = KOTLIN[spec.dtype]
    if not spec.shape:
        # An array has an axis, which a tensor without axes has not; a buffer has neither.
        return "ByteBuffer.allocateDirect(1)" if element in ("Byte", "Boolean") else f"{element}Buffer.allocate(1)"
    text = f"{element}Array({spec.shape[-1]})"
    for size in reversed(spec.shape[:-1]):
        text = f"Array({size}) {{ {text} }}"
    return text
