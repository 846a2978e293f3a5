"""Every registered target, and a small CNN in float and int8 made as the target wants it.

A package that brings a target of its own runs the same tests: install it, then `pytest tests/conformance -k NAME`.
"""

from __future__ import annotations

import msgspec
import pytest
from conformance.material import IMAGE, OUTPUTS, Case, fixed_batch, write_cnn, write_program
from support import quadrants

from exporter.artifacts import QuantScheme, Signature
from exporter.quantize import quantize_static
from exporter.registry import load_target, target_names
from exporter.target_api import ConvertRequest, Int8File, Target


@pytest.fixture(scope="module", params=target_names())
def target(request: pytest.FixtureRequest) -> Target:
    """A registered target."""
    return load_target(request.param)


@pytest.fixture(scope="module")
def ready(target: Target) -> Target:
    """A target that has all it needs here."""
    missing = target.missing(target.options_type())
    if missing is not None:
        pytest.skip(f"{target.name} cannot be built here: {missing[0]} ({missing[1]})")
    return target


@pytest.fixture(scope="module")
def case(ready: Target, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The CNN, made as this target wants it."""
    need = ready.requires(ready.options_type())
    folder = tmp_path_factory.mktemp("made")
    float_model = folder / "float" / "model.onnx"
    write_cnn(float_model, opset=need.opset, ir_version=need.ir_version)
    images, _ = quadrants(16, seed=1)
    preferred = {key: value for key, value in ready.defaults.get("quantize", {}).items() if key != "enabled"}
    int8 = []
    for wanted in need.int8:
        scheme = msgspec.convert(preferred | wanted.changes, QuantScheme)
        path = folder / wanted.name / "model.onnx"
        path.parent.mkdir()
        coverage = quantize_static(
            float_model, path, scheme=scheme, batches=lambda: [{"image": images}], progress=lambda done: None
        )
        int8.append(
            Int8File(
                name=wanted.name,
                path=path,
                scheme=scheme,
                coverage=coverage,
                requires=wanted.requires,
                specialises=wanted.specialises,
            )
        )
    inputs, outputs, asked = (IMAGE,), OUTPUTS, {}
    if need.program:
        inputs, outputs = fixed_batch(inputs), fixed_batch(outputs)
        (folder / "program").mkdir()
        asked["program"] = write_program(folder / "program", inputs)
    if need.calibration:
        asked["quantize"] = msgspec.convert(preferred, QuantScheme)
        asked["calibration"] = lambda: ({"image": image[None]} for image in images)
    request = ConvertRequest(
        float_model=float_model,
        int8=tuple(int8),
        signature=Signature(inputs=inputs, outputs=outputs),
        **asked,
    )
    case = Case(target=ready, request=request, images=quadrants(6, seed=3)[0])
    # Most tests look at one conversion, which takes a target many seconds.
    made = case.convert(folder.parent / f"{folder.name}-converted")
    return msgspec.structs.replace(case, made=made, folder=folder.parent / f"{folder.name}-converted")
