"""How to run a mobile bundle's ORT-format file in an app, and how to build a small onnxruntime for it, as text."""

from __future__ import annotations

from exporter.artifacts import Manifest, TensorSpec
from exporter.target_api import SHARED
from targets._handover import identifier

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
SWIFT = {"float32": "float", "int64": "int64", "int32": "int32", "int8": "int8", "uint8": "uInt8"}


def app_guide(manifest: Manifest) -> str:
    """Android, iOS and a reduced build, for the first variant that is not float where there is one."""
    variant = next((one for one in manifest.variants if one.name != manifest.float_variant), manifest.variants[0])
    special = [one.name for one in manifest.variants if one.specialises == variant.name]
    lines = [
        "## In an app",
        "",
        f"The lines below open `{variant.main}`, copied into the app; the other variants are opened in the same way.",
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
    return [
        'Android (Kotlin, `implementation("com.microsoft.onnxruntime:onnxruntime-android:latest.release")`):',
        "",
        "```kotlin",
        "val environment = OrtEnvironment.getEnvironment()",
        'val session = environment.createSession(context.assets.open("model.ort").readBytes())',
        *(f"val {identifier(spec)} = {_kotlin_tensor(spec)}  // {spec}" for spec in inputs),
        "val inputs = mapOf(" + ", ".join(f'"{spec.name}" to {identifier(spec)}' for spec in inputs) + ")",
        "session.run(inputs).use { results ->",
        *(f"    val {identifier(spec)} = {_kotlin_result(spec)}  // {spec}" for spec in outputs),
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
    return f"OnnxTensor.createTensor(environment, ByteBuffer.allocateDirect({size}), {shape}, OnnxJavaType.{kind})"


def _kotlin_result(spec: TensorSpec) -> str:
    held = KOTLIN[spec.dtype][1] if spec.dtype in KOTLIN else "byteBuffer"
    return f'(results["{spec.name}"].get() as OnnxTensor).{held}'


def _swift(manifest: Manifest) -> list[str]:
    inputs, outputs = manifest.signature.inputs, manifest.signature.outputs
    wanted = ", ".join(f'"{spec.name}"' for spec in outputs)
    lacking = sorted({spec.dtype for spec in (*inputs, *outputs)} - set(SWIFT))
    if lacking:
        return [
            f"iOS: onnxruntime's API for Swift has no tensors of {', '.join(lacking)}; its C API opens the file, "
            "in the pod `onnxruntime-c`.",
            "",
        ]
    return [
        "iOS (Swift, the pod `onnxruntime-objc`):",
        "",
        "```swift",
        "let environment = try ORTEnv(loggingLevel: .warning)",
        'let path = Bundle.main.path(forResource: "model", ofType: "ort")!',
        "let session = try ORTSession(env: environment, modelPath: path, sessionOptions: nil)",
        *(line for spec in inputs for line in _swift_tensor(spec)),
        "let results = try session.run(withInputs: ["
        + ", ".join(f'"{spec.name}": {identifier(spec)}' for spec in inputs)
        + f"], outputNames: [{wanted}], runOptions: nil)",
        *(
            f'let {identifier(spec)} = try results["{spec.name}"]!.tensorData() as Data  // {spec}, row-major'
            for spec in outputs
        ),
        "```",
        "",
    ]


def _swift_tensor(spec: TensorSpec) -> list[str]:
    import numpy as np

    sizes = _sizes(spec)
    length = " * ".join(map(str, [*sizes, np.dtype(spec.dtype).itemsize]))
    return [
        f"let {identifier(spec)} = try ORTValue(tensorData: NSMutableData(length: {length})!, "
        f"elementType: .{SWIFT[spec.dtype]}, shape: [{', '.join(map(str, sizes))}])  // {spec}",
    ]


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
