"""How to run a mobile bundle's file in an app, as text with this bundle's own names, shapes and types filled in."""

from __future__ import annotations

from exporter.artifacts import EdgeType, Manifest, TensorSpec, Variant

KOTLIN = {
    "float32": "Float", "int32": "Int", "int8": "Byte", "uint8": "Byte", "int16": "Short", "bool": "Boolean"
}  # fmt: skip


def app_guide(manifest: Manifest) -> str:
    """Android, iOS and adb, for the first variant that is not float32 where there is one."""
    variant = next((one for one in manifest.variants if one.name != manifest.float_variant), manifest.variants[0])
    inputs, outputs = manifest.signature.inputs, manifest.signature.outputs
    lines = [
        "## In an app",
        "",
        f"The lines below open `{variant.main}`, copied into the app's assets; the other variants are opened in the "
        "same way.",
        "",
        *_edges(manifest.variants),
        *_bytes(inputs),
        'Android (Kotlin, `implementation("com.google.ai.edge.litert:litert:1.+")`):',
        "",
        "```kotlin",
        'val interpreter = Interpreter(FileUtil.loadMappedFile(context, "model.tflite"))',
        *(f"val {identifier(spec)} = {_kotlin(spec, variant)}  // {spec}" for spec in (*inputs, *outputs)),
        "val inputs = mapOf(" + ", ".join(f'"{spec.name}" to {identifier(spec)}' for spec in inputs) + ")",
        "val outputs = mapOf(" + ", ".join(f'"{spec.name}" to {identifier(spec)}' for spec in outputs) + ")",
        "interpreter.runSignature(inputs, outputs)",
        "```",
        "",
        "iOS (Swift, the pod `TensorFlowLiteSwift`); inputs are numbered in the file's order:",
        "",
        "```swift",
        'let interpreter = try Interpreter(modelPath: Bundle.main.path(forResource: "model", ofType: "tflite")!)',
        "try interpreter.allocateTensors()",
        *(
            f"try interpreter.copy({identifier(spec)}, toInputAt: {index})  // Data with {spec}, in row-major order"
            for index, spec in enumerate(inputs)
        ),
        "try interpreter.invoke()",
        *(
            f"let {identifier(spec)} = try interpreter.output(at: {index}).data  // {spec}"
            for index, spec in enumerate(outputs)
        ),
        "```",
        "",
        "Latency on a phone, with LiteRT's `benchmark_model` for Android:",
        "",
        "```",
        "adb push benchmark_model /data/local/tmp/ && adb shell chmod +x /data/local/tmp/benchmark_model",
        f"adb push {variant.main} /data/local/tmp/model.tflite",
        "adb shell /data/local/tmp/benchmark_model --graph=/data/local/tmp/model.tflite --num_threads=1 "
        "--use_xnnpack=true",
        "```",
        "",
    ]
    return "\n".join(lines)


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


def _edge(spec: TensorSpec, variant: Variant) -> EdgeType | None:
    return next((edge for edge in variant.edges if edge.tensor == spec.name), None)


def _kotlin(spec: TensorSpec, variant: Variant) -> str:
    """Nested arrays of the tensor's shape, which is fixed; the innermost one is of a primitive type."""
    edge = _edge(spec, variant)
    element = KOTLIN.get(edge.dtype if edge else spec.dtype, "Float")
    if not spec.shape:
        return f"{element}Array(1)"
    text = f"{element}Array({spec.shape[-1]})"
    for size in reversed(spec.shape[:-1]):
        text = f"Array({size}) {{ {text} }}"
    return text


def identifier(spec: TensorSpec) -> str:
    """The tensor's name as an identifier of Kotlin and Swift."""
    word = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in spec.name)
    return word if word[:1].isalpha() else f"t_{word}"
