"""How to run a mobile bundle's ORT-format file in an app, and how to build a small onnxruntime for it, as text."""

from __future__ import annotations

from exporter.artifacts import Manifest, TensorSpec
from exporter.target_api import SHARED
from targets._handover import shown_variant, which
from targets._handover_words import comment, identifiers, kotlin_text, swift_text

OPERATORS = "required_operators_and_types.config"
KOTLIN = {
    "float32": ("FloatBuffer", "floatBuffer"),
    "float64": ("DoubleBuffer", "doubleBuffer"),
    "int64": ("LongBuffer", "longBuffer"),
    "int32": ("IntBuffer", "intBuffer"),
}
"""Element type -> the buffer that a tensor is made of, and the property of a result that holds one."""
KOTLIN_BYTES = {
    "float16": "FLOAT16", "int16": "INT16", "int8": "INT8", "uint8": "UINT8", "bool": "BOOL"
}  # fmt: skip
"""Element type -> the type that tells what a buffer of bytes holds."""
SAME_BITS = {"uint16": "int16", "uint32": "int32", "uint64": "int64"}
"""Element types that the API for Kotlin and Java gives as others of their size, and takes not at all."""
SWIFT = {
    "float32": "float", "int64": "int64", "int32": "int32", "int8": "int8", "uint8": "uInt8", "uint32": "uInt32",
    "uint64": "uInt64",
}  # fmt: skip


def app_guide(manifest: Manifest) -> str:
    """Android, iOS and a reduced build, for the first variant that is not float where there is one."""
    variant = shown_variant(manifest)
    special = [one.name for one in manifest.variants if one.specialises == variant.name]
    lines = [
        "## In an app",
        "",
        *which(manifest, variant, "model.ort"),
    ]
    if special:
        lines += [
            f"Cores with dot products (Cortex-A55 and A76 or newer, Apple A13 or newer) execute less with "
            f"`{special[0]}`: an app for many phones ships both, and opens that one where `/proc/cpuinfo` shows "
            "`asimddp` (on iOS `sysctl hw.optional.arm.FEAT_DotProd`).",
        ]
    lines += [
        "A dynamic axis is written as 1.",
        "",
        *_kotlin(manifest),
        *_swift(manifest),
        *_reduced(manifest),
    ]
    return "\n".join(lines)


def _kotlin(manifest: Manifest) -> list[str]:
    inputs, outputs = manifest.signature.inputs, manifest.signature.outputs
    names = identifiers((*inputs, *outputs))
    taken = {spec.dtype for spec in inputs} - set(KOTLIN) - set(KOTLIN_BYTES)
    given = {spec.dtype for spec in outputs} - set(KOTLIN) - set(KOTLIN_BYTES) - set(SAME_BITS)
    if taken or given:
        return [
            f"Android: onnxruntime's API for Kotlin and Java makes no tensors of {', '.join(sorted(taken | given))}; "
            "its C API opens the file.",
            "",
        ]
    pairs = [f"{kotlin_text(spec.name)} to {name}" for spec, name in zip(inputs, names, strict=False)]
    unsigned = sorted({spec.dtype for spec in outputs} & set(SAME_BITS))
    return [
        'Android (Kotlin, `implementation("com.microsoft.onnxruntime:onnxruntime-android:latest.release")`):',
        "",
        *([f"{', '.join(unsigned)} come as signed integers with the same bits.", ""] if unsigned else []),
        "```kotlin",
        "import ai.onnxruntime.*",
        "import java.nio.*",
        "",
        "val environment = OrtEnvironment.getEnvironment()",
        'val session = environment.createSession(context.assets.open("model.ort").readBytes())',
        *(
            f"val {name} = {_kotlin_tensor(spec)}  // {comment(spec)}"
            for spec, name in zip(inputs, names, strict=False)
        ),
        f"val inputs = mapOf({', '.join(pairs)})",
        "session.run(inputs).use { results ->",
        *(
            f"    val {name} = {_kotlin_result(spec)}  // {comment(spec)}"
            for spec, name in zip(outputs, names[len(inputs) :], strict=True)
        ),
        "}",
        "```",
        "",
    ]


def _kotlin_tensor(spec: TensorSpec) -> str:
    shape = f"longArrayOf({', '.join(map(str, _sizes(spec)))})"
    count = " * ".join(map(str, _sizes(spec))) or "1"
    if spec.dtype in KOTLIN:
        return f"OnnxTensor.createTensor(environment, {KOTLIN[spec.dtype][0]}.allocate({count}), {shape})"
    kind = KOTLIN_BYTES[spec.dtype]
    size = f"{count} * 2" if kind.endswith("16") else count
    buffer = f"ByteBuffer.allocateDirect({size}).order(ByteOrder.nativeOrder())"
    return f"OnnxTensor.createTensor(environment, {buffer}, {shape}, OnnxJavaType.{kind})"


def _kotlin_result(spec: TensorSpec) -> str:
    dtype = SAME_BITS.get(spec.dtype, spec.dtype)
    held = KOTLIN[dtype][1] if dtype in KOTLIN else "byteBuffer"
    return f"(results[{kotlin_text(spec.name)}].get() as OnnxTensor).{held}"


def _swift(manifest: Manifest) -> list[str]:
    inputs, outputs = manifest.signature.inputs, manifest.signature.outputs
    names = identifiers((*inputs, *outputs))
    lacking = sorted({spec.dtype for spec in (*inputs, *outputs)} - set(SWIFT))
    if lacking:
        return [
            f"iOS: onnxruntime's API for Swift has no tensors of {', '.join(lacking)}; its C API opens the file, "
            "in the pod `onnxruntime-c`.",
            "",
        ]
    given = [f"{swift_text(spec.name)}: {name}" for spec, name in zip(inputs, names, strict=False)]
    wanted = [swift_text(spec.name) for spec in outputs]
    return [
        "iOS (Swift, the pod `onnxruntime-objc`):",
        "",
        "```swift",
        "import onnxruntime_objc",
        "",
        "let environment = try ORTEnv(loggingLevel: .warning)",
        'let path = Bundle.main.path(forResource: "model", ofType: "ort")!',
        "let session = try ORTSession(env: environment, modelPath: path, sessionOptions: nil)",
        *(_swift_tensor(spec, name) for spec, name in zip(inputs, names, strict=False)),
        f"let results = try session.run(withInputs: [{', '.join(given)}], outputNames: [{', '.join(wanted)}], "
        "runOptions: nil)",
        *(
            f"let {name} = try results[{text}]!.tensorData() as Data  // {comment(spec)}, row-major"
            for spec, text, name in zip(outputs, wanted, names[len(inputs) :], strict=True)
        ),
        "```",
        "",
    ]


def _swift_tensor(spec: TensorSpec, name: str) -> str:
    import numpy as np

    sizes = _sizes(spec)
    length = " * ".join(map(str, [*sizes, np.dtype(spec.dtype).itemsize]))
    return (
        f"let {name} = try ORTValue(tensorData: NSMutableData(length: {length})!, "
        f"elementType: .{SWIFT[spec.dtype]}, shape: [{', '.join(map(str, sizes))}])  // {comment(spec)}"
    )


def _reduced(manifest: Manifest) -> list[str]:
    """How a library is built that holds the kernels of these files alone."""
    version = manifest.tools.get("onnxruntime", "")
    return [
        "### A small onnxruntime",
        "",
        "The packages above hold every operator. A build of your own that reads ORT format only, with the kernels "
        f"and types that `variants/{SHARED}/{OPERATORS}` lists, is smaller and runs all variants of this bundle. In "
        f"a checkout of onnxruntime{f', at the tag v{version}' if version else ''}:",
        "",
        "```",
        "./build.sh --android --android_abi arm64-v8a --android_api 24 --android_sdk_path SDK --android_ndk_path NDK "
        "--build_java --config MinSizeRel --parallel --minimal_build --disable_ml_ops --skip_tests "
        f"--include_ops_by_config BUNDLE/variants/{SHARED}/{OPERATORS} --enable_reduced_operator_type_support",
        "```",
        "",
        "For iOS `tools/ci_build/github/apple/build_apple_framework.py` takes the same `--include_ops_by_config`, "
        "and the other flags from its settings file. An app with several models lists the operators of all "
        "of them in one file, as `tools/python/create_reduced_build_config.py --format ORT --enable_type_reduction "
        "FOLDER FILE` writes it.",
        "",
    ]


def _sizes(spec: TensorSpec) -> list[int]:
    return [size if isinstance(size, int) else 1 for size in spec.shape]
