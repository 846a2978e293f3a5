"""What a target says about itself, and what it makes of a model: the protocol, member by member."""

from __future__ import annotations

import ast
import hashlib
import math
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import pytest
from conformance.material import Case, write_cnn
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from exporter.artifacts import Tolerance, canonical
from exporter.errors import StageError
from exporter.plan import PER_TARGET
from exporter.registry import target_names
from exporter.target_api import Analyzable, Need, OperatorFacts, Requantizing, Target, TargetOptions, VariantFile

BUILT_IN = {"arm", "cpu", "mobile"}
KEPT_DB = 15.0
"""A variant of the small CNN that computes what it should is above this signal-to-noise ratio."""


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by relative path; folders are listed too."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def sqnr_db(got: Any, wanted: Any) -> float:
    noise = float(np.square(got - wanted).sum())
    return math.inf if noise == 0 else 10 * math.log10(float(np.square(wanted).sum()) / noise)


# What it says --------------------------------------------------------------------------------------------------


def test_the_built_in_targets_are_registered() -> None:
    assert set(target_names()) >= BUILT_IN


def test_its_name_version_and_summary_are_plain(target: Target) -> None:
    assert target.name in target_names()
    assert type(target.version) is int
    assert target.version >= 1
    assert target.summary.strip() == target.summary != ""
    assert len(target.summary.splitlines()) == 1


def test_its_options_have_defaults_and_refuse_an_unknown_key(target: Target) -> None:
    assert issubclass(target.options_type, TargetOptions)
    assert target.options_type() == msgspec.convert({}, target.options_type)
    with pytest.raises(msgspec.ValidationError, match="no_such_key"):
        msgspec.convert({"no_such_key": 1}, target.options_type)


def test_its_options_cannot_take_the_place_of_a_plan_section(target: Target) -> None:
    assert not {field.name for field in msgspec.structs.fields(target.options_type)} & set(PER_TARGET)


def test_its_defaults_are_valid_values_of_plan_sections(target: Target) -> None:
    for section, table in target.defaults.items():
        msgspec.convert(dict(table), PER_TARGET[section])


def test_its_distributions_are_names(target: Target) -> None:
    assert isinstance(target.distributions, tuple)
    assert all(isinstance(name, str) and name for name in target.distributions)


def test_what_is_missing_comes_with_what_brings_it(target: Target) -> None:
    missing = target.missing(target.options_type())
    assert missing == target.missing(target.options_type())
    if missing is not None:
        what, hint = missing
        assert what.strip()
        assert hint.strip()


def test_what_it_requires_depends_on_its_options_alone(target: Target) -> None:
    need = target.requires(target.options_type())
    assert isinstance(need, Need)
    assert need == target.requires(target.options_type())
    assert msgspec.json.decode(canonical(need), type=Need) == need
    assert need.runtime.strip()


# What it makes -------------------------------------------------------------------------------------------------


def test_the_first_variant_is_float_and_all_are_told_apart(case: Case) -> None:
    made = case.made
    assert made
    assert made[0].scheme is None
    assert made[0].precision.startswith("float")
    assert len({variant.name for variant in made}) == len(made)
    assert len({variant.main for variant in made}) == len(made)
    assert msgspec.json.decode(canonical(made), type=tuple[VariantFile, ...]) == made


def test_each_variant_names_a_file_in_a_folder_of_its_own(case: Case) -> None:
    folder, made = case.folder, case.made
    for variant in made:
        path = PurePosixPath(variant.main)
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert len(path.parts) > 1
        assert (folder / path).is_file()
    assert len({PurePosixPath(variant.main).parts[0] for variant in made}) == len(made)


def test_equal_requests_give_equal_files_in_the_folder_and_nowhere_else(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    given = case.request.float_model.parents[1]
    before = tree(given)
    assert case.convert(tmp_path / "again") == case.made
    assert tree(tmp_path / "again") == tree(case.folder)
    assert tree(given) == before
    assert tree(elsewhere) == {}
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "again"}


def test_without_an_int8_model_it_makes_float_variants_only(case: Case, tmp_path: Path) -> None:
    made = case.convert(tmp_path / "variants", int8=(), quantize=None, calibration=None)
    assert made
    assert all(variant.scheme is None and variant.precision.startswith("float") for variant in made)


def test_an_int8_variant_carries_its_scheme_and_coverage(case: Case) -> None:
    quantized = [variant for variant in case.made if variant.precision == "int8"]
    assert bool(quantized) == (bool(case.request.int8) or case.request.quantize is not None)
    for variant in quantized:
        assert variant.scheme is not None
        assert variant.coverage is not None


def test_a_target_that_quantizes_again_tells_the_noise_of_operators_and_leaves_those_named_in_float(
    case: Case, tmp_path: Path
) -> None:
    target, options = case.target, case.target.options_type()
    if not isinstance(target, Requantizing):
        pytest.skip("it takes int8 files as they are")
    before = next(variant for variant in case.made if variant.scheme is not None)
    assert before.scheme is not None
    assert before.coverage is not None
    assert set(target.products) & set(before.coverage.quantized_ops)
    batches = [{"image": image[None]} for image in case.images]
    noise = target.damage(case.folder, case.folder / before.main, batches)
    assert noise
    assert [one.score for one in noise] == sorted(one.score for one in noise)
    scheme = msgspec.structs.replace(before.scheme, exclude=(noise[0].node,))
    after = target.requantize(case.folder, before, scheme, options, tmp_path)
    assert (after.name, after.main, after.scheme) == (before.name, before.main, scheme)
    assert after.coverage is not None
    assert after.coverage.quantized < before.coverage.quantized
    assert noise[0].node in {one.node for one in after.coverage.skipped}
    again = target.damage(case.folder, tmp_path / after.main, batches)
    assert noise[0].node not in {one.node for one in again}


def test_a_target_that_tells_of_operators_tells_of_each_that_its_coverage_counts(case: Case) -> None:
    target = case.target
    if not isinstance(target, Analyzable):
        pytest.skip("its files are ONNX, or it does not tell")
    assert target.untimed.strip() == target.untimed != ""
    batches = [{"image": image[None]} for image in case.images]
    for variant in case.made:
        if variant.coverage is None:
            continue
        model = case.folder / variant.main
        found = target.operators(case.folder / case.made[0].main, model, batches)
        assert msgspec.json.decode(canonical(found), type=tuple[OperatorFacts, ...]) == found
        assert len(found) == variant.coverage.eligible
        integer = [one for one in found if one.bits is not None or one.weight_bits is not None]
        assert len(integer) == variant.coverage.quantized
        assert {one.node for one in found} - {one.node for one in integer} == {
            one.node for one in variant.coverage.skipped
        }
        noisy = [one.damage for one in integer if one.damage is not None]
        assert noisy
        assert all(one.sqnr_db is None or one.sqnr_db > 0 for one in noisy)
        with pytest.raises(StageError):
            target.operators(case.folder / case.made[0].main, model, [])


def test_weights_in_a_file_beside_the_model_travel_with_it(case: Case, tmp_path: Path) -> None:
    need = case.need
    if need.program:
        pytest.skip("it converts from torch")
    given = tmp_path / "given" / "model.onnx"
    write_cnn(given, opset=need.opset, ir_version=need.ir_version, external=True)
    assert given.with_name("model.onnx.data").is_file()
    made = case.convert(tmp_path / "variants", float_model=given, int8=())
    given.with_name("model.onnx.data").unlink()
    got = case.answers(tmp_path / "variants" / made[0].main)
    assert sqnr_db(got["scores"], case.reference()["scores"]) > KEPT_DB


# How it runs ---------------------------------------------------------------------------------------------------


def test_its_sessions_answer_as_the_float_model_does(case: Case) -> None:
    wanted = case.reference()
    types = case.need.form.types
    for variant in case.made:
        got = case.answers(case.folder / variant.main)
        assert list(got) == list(wanted), variant.name
        assert {name: (str(values.dtype), values.shape) for name, values in got.items()} == {
            name: (types.get(str(values.dtype), str(values.dtype)), values.shape) for name, values in wanted.items()
        }
        assert sqnr_db(got["scores"], wanted["scores"]) > KEPT_DB, variant.name
        np.testing.assert_array_equal(got["best"], wanted["best"])
    first = case.answers(case.folder / case.made[0].main)
    np.testing.assert_allclose(first["scores"], wanted["scores"], rtol=1e-4)


def test_its_sessions_take_any_number_of_samples_or_one_where_the_batch_is_fixed(case: Case) -> None:
    for variant in case.made:
        session = case.target.open_session(case.folder / variant.main, simulated=False)
        assert session({"image": case.images[:1]})["scores"].shape == (1, 4)
        if not case.need.program:
            assert session({"image": case.images})["scores"].shape == (len(case.images), 4)


def test_its_tolerance_covers_every_output_passes_equal_ones_and_is_no_blank_cheque(case: Case) -> None:
    for variant in case.made:
        model = case.folder / variant.main
        expected, again = case.answers(model), case.answers(model)
        tolerances = case.target.tolerance(
            variant, model, {name: each.reshape(-1) for name, each in expected.items()}
        )
        assert set(tolerances) == set(expected), variant.name
        for name, tolerance in tolerances.items():
            assert isinstance(tolerance, Tolerance)
            assert math.isfinite(tolerance.atol)
            assert math.isfinite(tolerance.rtol)
            assert min(tolerance.atol, tolerance.rtol) >= 0
            allowed = tolerance.atol + tolerance.rtol * np.abs(expected[name])
            assert (np.abs(again[name] - expected[name]) <= allowed).all(), (variant.name, name)
        spread = float(np.ptp(expected["scores"]))
        assert tolerances["scores"].atol < spread / 10, variant.name
        assert tolerances["best"].atol < 1, variant.name


# What travels --------------------------------------------------------------------------------------------------


def test_its_payload_is_whole_and_stands_alone(ready: Target) -> None:
    files = ready.payload(ready.options_type()).files
    assert {"run.py", "bench.py", "runtime.py"} <= set(files)
    own = {"exporter", "targets", type(ready).__module__.partition(".")[0]}
    for name, path in files.items():
        assert name == PurePosixPath(name).name, f"{name} is no plain file name"
        assert path.is_file(), name
        if name.endswith(".py"):
            packages, siblings = imported(path)
            assert not packages & own, name
            assert siblings <= set(files), name


def test_its_payload_is_written_for_python_3_9(ready: Target) -> None:
    for name, path in ready.payload(ready.options_type()).files.items():
        if name.endswith(".py"):
            ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_its_requirements_bring_numpy_and_the_runtime_from_its_minimum_on(ready: Target) -> None:
    runtime = ready.payload(ready.options_type()).runtime
    requirements = {canonicalize_name(one.name): one for one in map(Requirement, runtime.requirements)}
    assert "numpy" in requirements
    # The runtime's name is its distribution's: `verify --isolated --minimum` pins it.
    brings = requirements[canonicalize_name(runtime.name)]
    assert brings.specifier.contains(runtime.minimum)
    assert not brings.specifier.contains("0.0.1")


def test_every_variant_runs_on_the_runtime_of_the_bundle(case: Case) -> None:
    runtime = case.target.payload(case.target.options_type()).runtime
    assert {variant.runtime for variant in case.made} == {runtime.name}


def imported(path: Path) -> tuple[set[str], set[str]]:
    """What a module imports: top-level packages, and modules beside it as file names."""
    packages: set[str] = set()
    siblings: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            # With two dots it would leave the bundle: no file is called `.x.py`.
            siblings |= {"." * (node.level - 1) + name.partition(".")[0] + ".py" for name in names}
    return packages, siblings
