"""Plans: layers and origins, and every fault named at once."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import tomli_w
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exporter.artifacts import canonical
from exporter.errors import InputError, PlanError
from exporter.plan import Plan, read_plan, resolve
from exporter.registry import load_target
from exporter.target_api import TargetOptions


class ToyOptions(TargetOptions, frozen=True, kw_only=True):
    speed: int = 3
    mode: Literal["slow", "fast"] = "slow"


class Toy:
    """As much of a target as a plan asks for; its defaults differ from the built-in ones."""

    options_type = ToyOptions
    defaults: Mapping[str, Mapping[str, Any]] = {
        "quantize": {"observer": "entropy", "per_channel": False, "reduce_range": True},
        "profile": {"threads": 2},
    }


def load(name: str) -> Any:
    return Toy() if name == "toy" else load_target(name)


MINIMAL = """
schema = 1
[model]
source = "model.onnx"
[calibration]
data = "calib.npz"
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with the files that plans here name."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("model.onnx", "calib.npz", "eval.npz", "w.safetensors", "net.py", "extra.yaml", "metric.py"):
        (folder / name).write_bytes(b"")
    return folder


def read(base: Path, text: str, *, sets: Sequence[str] = (), only: Sequence[str] = ()) -> Plan:
    file = base / "plan.toml"
    file.write_text(text, encoding="utf-8")
    return read_plan(file, load_target=load, sets=sets, only=only)


def problems(base: Path, text: str, **options: Any) -> list[str]:
    with pytest.raises(PlanError) as caught:
        read(base, text, **options)
    assert caught.value.exit_code == 3
    assert caught.value.where == str(base / "plan.toml")
    assert caught.value.hint
    for problem in caught.value.problems:
        assert problem in caught.value.what
    return list(caught.value.problems)


def problem(base: Path, text: str, **options: Any) -> str:
    (only,) = problems(base, text, **options)
    return only


# Layers


def test_each_layer_wins_over_those_before_it_and_is_named_as_the_origin(base: Path) -> None:
    text = (
        MINIMAL
        + """
[quantize]
reduce_range = false
activations = "int8"
symmetric_activations = true
exclude = ["a"]
[targets.toy]
speed = 5
[targets.toy.quantize]
activations = "uint8"
symmetric_activations = false
exclude = ["b"]
"""
    )
    sets = ["quantize.symmetric_activations=true", "quantize.exclude=['c']", "targets.toy.quantize.exclude=['d']"]
    plan = read(base, text, sets=sets)
    (target,) = plan.targets
    seen = {
        field: (getattr(target.quantize, field), plan.origins[f"targets.toy.quantize.{field}"])
        for field in target.quantize.__struct_fields__
    }
    own = "plan.toml [targets.toy.quantize]"
    said = {
        "enabled": (True, "built-in default"),
        "weights": ("int8", "built-in default"),
        "observer": ("entropy", "default of target toy"),
        "per_channel": (False, "default of target toy"),
        "reduce_range": (False, "plan.toml"),
        "activations": ("uint8", own),
        "symmetric_activations": (True, "--set"),
        "exclude": (("d",), "--set targets.toy.quantize"),
    }
    assert said.items() <= seen.items()
    assert {origin for key, (_, origin) in seen.items() if key not in said} <= {"built-in default"}
    assert (target.options.speed, plan.origins["targets.toy.speed"]) == (5, "plan.toml")
    assert plan.origins["targets.toy.mode"] == "built-in default"
    assert (target.profile.threads, plan.origins["targets.toy.profile.threads"]) == (2, "default of target toy")


def test_targets_are_resolved_apart_from_each_other(base: Path) -> None:
    text = MINIMAL + "[profile]\nseed = 7\n[targets.toy]\n[targets.cpu]\n[targets.cpu.profile]\nthreads = 4\n"
    plan = read(base, text)
    assert {target.name: (target.profile.threads, target.profile.seed) for target in plan.targets} == {
        "toy": (2, 7),
        "cpu": (4, 7),
    }


def test_shared_sections_take_values_from_the_plan_and_from_set(base: Path) -> None:
    plan = read(
        base, MINIMAL + "samples = 9\n[targets.cpu]\n", sets=["calibration.batch_size=4", "model.licence=MIT"]
    )
    assert plan.calibration is not None
    assert (plan.calibration.samples, plan.calibration.batch_size, plan.model.licence) == (9, 4, "MIT")
    assert plan.origins["calibration.samples"] == "plan.toml"
    assert plan.origins["calibration.batch_size"] == plan.origins["model.licence"] == "--set"
    assert plan.origins["calibration.ignore"] == "built-in default"


def test_set_reaches_into_nested_tables_and_keeps_their_other_keys(base: Path) -> None:
    text = MINIMAL.replace("[calibration]", "args = {width = 1, depth = 2}\n[calibration]") + "[targets.cpu]\n"
    plan = read(base, text, sets=["model.args.width=8"])
    assert plan.model.args == {"width": 8, "depth": 2}
    assert plan.origins["model.args"] == "plan.toml, --set"


def test_set_can_bring_a_section_and_a_name_with_dots(base: Path) -> None:
    sets = ["evaluation.data=eval.npz", 'model.inputs."input.1".shape=["batch", 3]', "model.inputs.x.dtype=float32"]
    plan = read(base, MINIMAL + "[targets.cpu]\n", sets=sets)
    assert plan.evaluation is not None
    assert plan.evaluation.data == str(base / "eval.npz")
    assert plan.model.inputs["input.1"].shape == ("batch", 3)
    assert plan.model.inputs["x"].dtype == "float32"


def test_the_last_set_wins(base: Path) -> None:
    plan = read(base, MINIMAL + "[targets.cpu]\n", sets=["profile.threads=2", "profile.threads=3"])
    assert plan.targets[0].profile.threads == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("entropy", "entropy"),
        ('"entropy"', "entropy"),
        (" 'a b' ", "a b"),
        ("a b", "a b"),
        ("[", "["),
    ],
)
def test_a_set_value_is_toml_or_a_bare_word(base: Path, text: str, value: object) -> None:
    plan = read(base, MINIMAL + "[targets.cpu]\n", sets=[f"model.args.x={text}"])
    assert plan.model.args == {"x": value}


def test_only_chosen_targets_are_built_also_one_that_the_plan_does_not_name(base: Path) -> None:
    text = MINIMAL + "[targets.cpu.profile]\nthreads = 4\n[targets.unknown]\n"
    plan = read(base, text, only=["cpu", "toy"])
    assert [(target.name, target.profile.threads) for target in plan.targets] == [("cpu", 4), ("toy", 2)]


# Paths


def test_paths_are_relative_to_the_plan_file_not_to_where_the_command_runs(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (base / "plan.toml").write_text(
        'schema = 1\n[model]\nsource = "net.py:make"\nweights = "w.safetensors"\ndepends = ["extra.yaml"]\n'
        '[calibration]\ndata = "calib.npz"\n[evaluation]\ndata = "eval.npz"\nmetric = "metric.py:score"\n'
        "[targets.cpu]\n"
    )
    plan = read_plan(Path("base/plan.toml"), load_target=load)
    assert plan.calibration is not None
    assert plan.evaluation is not None
    assert plan.model.source == f"{base / 'net.py'}:make"
    assert plan.model.weights == base / "w.safetensors"
    assert plan.model.depends == (base / "extra.yaml",)
    assert plan.calibration.data == str(base / "calib.npz")
    assert (plan.evaluation.data, plan.evaluation.metric) == (str(base / "eval.npz"), f"{base / 'metric.py'}:score")


def test_an_importable_reference_and_accuracy_are_no_paths(base: Path) -> None:
    text = MINIMAL.replace("model.onnx", "pkg.mod:make").replace("calib.npz", "pkg.data:samples")
    plan = read(base, text + '[evaluation]\ndata = "eval.npz"\nmetric = "pkg.mod:score"\n[targets.cpu]\n')
    assert plan.calibration is not None
    assert plan.evaluation is not None
    assert (plan.model.source, plan.calibration.data) == ("pkg.mod:make", "pkg.data:samples")
    assert plan.evaluation.metric == "pkg.mod:score"
    again = read(base, MINIMAL + '[evaluation]\ndata = "eval.npz"\n[targets.cpu]\n')
    assert again.evaluation is not None
    assert again.evaluation.metric == "accuracy"


def test_absolute_paths_never_reach_the_resolved_plan(base: Path) -> None:
    text = f"""
schema = 1
[model]
source = "{base}/net.py:make"
weights = "{base}/w.safetensors"
depends = ["{base}/extra.yaml", "metric.py"]
[calibration]
data = "{base}/calib.npz"
[evaluation]
data = "{base}/eval.npz"
metric = "{base}/metric.py:score"
[targets.cpu]
"""
    plan = read(base, text, sets=[f"model.weights={base}/w.safetensors"])
    resolved = plan.resolved(plan.targets[0])
    assert str(base) not in tomli_w.dumps(resolved)
    assert str(base.parent) not in tomli_w.dumps(resolved)
    assert resolved["model"]["source"] == "net.py:make"
    assert resolved["model"]["weights"] == "w.safetensors"
    assert resolved["model"]["depends"] == ["extra.yaml", "metric.py"]
    assert resolved["evaluation"] | {"metric": "metric.py:score", "data": "eval.npz"} == resolved["evaluation"]


def test_every_missing_file_is_named_with_its_key(base: Path) -> None:
    text = """
schema = 1
[model]
source = "no_net.py:make"
weights = "no.safetensors"
depends = ["extra.yaml", "no.yaml"]
[calibration]
data = "no.npz"
[evaluation]
data = "no_folder/"
metric = "no_metric.py:score"
[targets.cpu]
"""
    assert problems(base, text) == [
        f"model.source: {base / 'no_net.py'} does not exist",
        f"model.weights: {base / 'no.safetensors'} does not exist",
        f"model.depends: {base / 'no.yaml'} does not exist",
        f"calibration.data: {base / 'no.npz'} does not exist",
        f"evaluation.data: {base / 'no_folder'} does not exist",
        f"evaluation.metric: {base / 'no_metric.py'} does not exist",
    ]


@pytest.mark.parametrize("name", ["x" * 5000, "a\\u0000b", "calib.npz/inside"])
def test_a_path_that_cannot_be_is_a_missing_file(base: Path, name: str) -> None:
    text = MINIMAL.replace("calib.npz", name) + "[targets.cpu]\n"
    assert problem(base, text).startswith("calibration.data: ")


# Faults


UNKNOWN = {
    "top level": ("[quantise]\n", "quantise: unknown section or key; did you mean 'quantize'?"),
    "section": ("[quantize]\nperchannel = true\n", "quantize.perchannel: unknown key; did you mean 'per_channel'?"),
    "model": ('[model]\nsource = "model.onnx"\nweight = "w"\n', "model.weight: unknown key; did you mean 'weights'?"),
    "input": (
        "[model.inputs.x]\nshpe = [1]\n",
        "model.inputs.x.shpe: unknown key; did you mean 'shape'?",
    ),
    "preprocess": (
        "[model.inputs.x.preprocess]\nmeen = [0.5]\n",
        "model.inputs.x.preprocess.meen: unknown key; did you mean 'mean'?",
    ),
    "evaluation": (
        '[evaluation]\ndata = "eval.npz"\nlabel = "y"\n',
        "evaluation.label: unknown key; did you mean 'labels'?",
    ),
    "target": ("[targets.toy]\nspead = 1\n", "targets.toy.spead: unknown key; did you mean 'speed'?"),
    "target section": ("[targets.cpu.quantise]\n", "targets.cpu.quantise: unknown key; did you mean 'quantize'?"),
    "target sub-key": (
        "[targets.cpu.quantize]\nobsever = 'minmax'\n",
        "targets.cpu.quantize.obsever: unknown key; did you mean 'observer'?",
    ),
    "target name": ("[targets.cpuu]\n", "[targets.cpuu] there is no target 'cpuu'; did you mean 'cpu'?"),
}


@pytest.mark.parametrize("level", UNKNOWN)
def test_an_unknown_key_is_answered_with_the_closest_one(base: Path, level: str) -> None:
    text, wanted = UNKNOWN[level]
    minimal = MINIMAL.replace('[model]\nsource = "model.onnx"\n', "") if "[model]" in text else MINIMAL
    target = "" if "targets" in text else "[targets.cpu]\n"
    assert problem(base, minimal + text + target).startswith(wanted)


def test_a_key_like_no_other_gets_no_proposal(base: Path) -> None:
    assert problem(base, MINIMAL + "[zzz]\n[targets.cpu]\n") == "zzz: unknown section or key"


def test_an_unknown_target_lists_those_that_there_are(base: Path) -> None:
    assert "known targets: " in problem(base, MINIMAL + "[targets.phone]\n")


@pytest.mark.parametrize("level", ["quantize.perchannel", "targets.cpu.quantize.perchannel"])
def test_an_unknown_key_of_set_says_that_it_is_from_set(base: Path, level: str) -> None:
    found = problem(base, MINIMAL + "[targets.cpu]\n", sets=[f"{level}=true"])
    assert found == f"--set {level}: unknown key; did you mean 'per_channel'?"


WRONG = {
    "profile.threads = 'two'": "profile.threads: a whole number is expected (got 'two')",
    "profile.threads = 0": "profile.threads: Expected 'int' >= 1 (got 0)",
    "profile.seed = -1": "profile.seed: Expected 'int' >= 0 (got -1)",
    "profile.ci_width = 0.0": "profile.ci_width: Expected 'float' >= 1e-09 (got 0.0)",
    "profile.max_seconds = 0": "profile.max_seconds: Expected 'float' >= 1e-09 (got 0)",
    "quantize.enabled = 1": "quantize.enabled: true or false is expected (got 1)",
    "quantize.observer = 'max'": "quantize.observer: one of 'minmax', 'moving-average', 'percentile', ",
    "quantize.exclude = 'node'": "quantize.exclude: a list is expected (got 'node')",
    "quantize.exclude = ['a', 1]": "quantize.exclude: Expected 'str', got 'int' - at '$[1]' (got ['a', 1])",
    "quantize = 5": "quantize: a table is expected, not a whole number",
    "gate.max_relative_loss = 2": "gate.max_relative_loss: Expected 'float' <= 1.0 (got 2)",
    "gate.max_relative_loss = nan": "gate.max_relative_loss: a finite number is expected (got nan)",
    "gate.min_cosine = inf": "gate.min_cosine: a finite number is expected (got inf)",
    "export.batch = 'dynamc'": (
        "export.batch: one of 'dynamic', or a whole number, is expected (got 'dynamc'); did you mean 'dynamic'?"
    ),
    "export.opset = 17.0": "export.opset: Expected 'int | null', got 'float' (got 17.0)",
    "model.weights = 5": "model.weights: Expected 'path', got a whole number (got 5)",
    "model.depends = ['net.py', 2024-01-02]": "model.depends: Expected 'path', got date",
    "model.args = {a = [{b = inf}]}": "model.args: a finite number is expected (got inf)",
    "model.args = {a = 9223372036854775808}": "model.args: a whole number of at most 64 bits is expected",
    "profile.min_samples = 99999999999999999999": "profile.min_samples: a whole number of at most 64 bits",
    "model.source = 5": "model.source: text is expected (got 5)",
    "model.source = ' '": "model.source: a file or `file.py:function` is expected, not an empty text",
    "model.inputs = 5": "model.inputs: a table is expected, not a whole number",
    "model.inputs.x = 'float32'": "model.inputs.x: a table is expected, not text",
    "model.inputs.x.dtype = 'float'": "model.inputs.x.dtype: one of 'float16', ",
    "model.inputs.x.shape = [-1, 3]": "model.inputs.x.shape: Expected 'int' >= 1 - at '$[0]' (got [-1, 3])",
    "model.inputs.x.shape = ['']": "model.inputs.x.shape: Expected 'str' of length >= 1 - at '$[0]' (got [''])",
    "model.inputs.x.preprocess = 5": "model.inputs.x.preprocess: a table is expected, not a whole number",
    "model.inputs.x.preprocess.size = [8]": "model.inputs.x.preprocess.size: Expected 'array' of length 2, got 1",
    "model.inputs.x.preprocess.size = [8, 0]": "model.inputs.x.preprocess.size: height and width of at least 1",
    "model.inputs.x.preprocess.crop_fraction = 0": "model.inputs.x.preprocess.crop_fraction: a share above 0",
    "model.inputs.x.preprocess.std = [0.5, 0.0]": "model.inputs.x.preprocess.std: values are divided by it",
    "model.inputs.x.preprocess.mean = [nan]": "model.inputs.x.preprocess.mean: a finite number is expected",
    "calibration.samples = 0": "calibration.samples: Expected 'int' >= 1 (got 0)",
    "calibration = []": "calibration: a table is expected, not [] (plan.toml)",
    "evaluation.data = ''": "evaluation.data: a file or `file.py:function` is expected, not an empty text",
    "evaluation = {data = 'eval.npz', metric = 'acuracy'}": (
        "evaluation.metric: neither `accuracy` nor `file.py:function`: 'acuracy'; did you mean 'accuracy'?"
    ),
    "evaluation = {labels = 'y'}": "evaluation.data is missing",
    "targets = 5": "targets: a table is expected, not 5",
    "targets.cpu = 5": "targets.cpu: a table is expected, not 5",
    "targets.cpu.quantize = 5": "targets.cpu.quantize: a table is expected, not a whole number",
    "targets.cpu.min_runtime = 1.19": "targets.cpu.min_runtime: text is expected (got 1.19)",
    "targets.toy.mode = 'fst'": "targets.toy.mode: one of 'slow', 'fast' is expected (got 'fst')",
    "name = ''": "name: '' cannot start a folder's name",
    "name = '../up'": "name: '../up' cannot start a folder's name",
    "name = 5": "name: 5 cannot start a folder's name",
    "schema = 2": "schema is 2: this version reads `schema = 1`",
    "schema = true": "schema is True: this version reads `schema = 1`",
    "schema = '1'": "schema is '1': this version reads `schema = 1`",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_is_one_problem_that_names_key_and_value(base: Path, line: str) -> None:
    tables = {"schema": 1, "model": {"source": "model.onnx"}, "calibration": {"data": "calib.npz"}}
    wrong = tomllib.loads(line)
    for key, value in wrong.items():
        under = tables.get(key)
        tables[key] = under | value if isinstance(under, dict) and isinstance(value, dict) else value
    tables = tables if "targets" in tables else tables | {"targets": {"cpu": {}}}
    found = problems(base, tomli_w.dumps(tables))
    assert [one for one in found if not one.startswith("no target: ")] == [found[0]]
    assert found[0].startswith(WRONG[line])


def test_keys_of_static_int8_are_refused_beside_dynamic_and_not_ignored(base: Path) -> None:
    text = MINIMAL + "[quantize]\ndynamic = true\nequalize = true\nobserver = 'mse'\n[targets.cpu]\n"
    assert problems(base, text) == [
        f"targets.cpu.quantize.{key}: `dynamic = true` makes no static int8, which is what this key is for"
        for key in ("observer", "equalize")
    ]
    # What a target sets by itself, keys that act, and what is meant for another target are no fault.
    read(base, MINIMAL + "[quantize]\ndynamic = true\nops = ['MatMul']\n[targets.toy]\n[targets.cpu]\n")
    shared = "[quantize]\nequalize = true\n[targets.cpu]\n[targets.toy.quantize]\ndynamic = true\n"
    read(base, MINIMAL + shared)
    (own,) = problems(base, MINIMAL + shared + "activations = 'int8'\n")
    assert own.startswith("targets.toy.quantize.activations: ")


def test_a_missing_schema_and_a_missing_model_are_named(base: Path) -> None:
    assert problems(base, "[targets.cpu]\n") == [
        "schema is missing: this version reads `schema = 1`",
        "[model] is missing: it names the trained model (`source = ...`)",
    ]


def test_no_target_is_a_problem(base: Path) -> None:
    assert problem(base, MINIMAL).startswith("no target: ")


def test_all_problems_of_all_sections_are_shown_at_once_and_each_once(base: Path) -> None:
    text = """
schema = 3
name = "a/b"
nme = 1
[model]
source = "none.onnx"
wieghts = 1
[calibration]
samples = "all"
[quantize]
observr = "minmax"
[gate]
max_relative_loss = -1
[targets.cpu]
min_runtim = "1"
[targets.toy.profile]
threads = 0
[targets.none]
"""
    found = problems(base, text, sets=["nonsense", "profile.thread=1"])
    keys = [re.split(r"[:\]]? ", one)[0 if not one.startswith("--set") else 1] for one in found]
    assert sorted(keys) == sorted([
        "schema", "name", "nme", "model.wieghts", "calibration.samples", "calibration.data", "quantize.observr",
        "gate.max_relative_loss", "targets.cpu.min_runtim", "targets.toy.profile.threads", "[targets.none",
        "nonsense", "profile.thread",
    ])  # fmt: skip


def test_a_fault_of_a_shared_section_is_not_repeated_for_each_target(base: Path) -> None:
    text = MINIMAL + "[quantize]\nweights = 8\n[targets.cpu]\n[targets.toy]\n"
    assert problem(base, text).startswith("quantize.weights: ")


@pytest.mark.parametrize(
    "text", ["threads=2", "profile.threads", "=2", "profile.=2", ".threads=2", "", "profile..threads=2", "a b.c=1"]
)
def test_a_malformed_set_is_answered_with_the_form(base: Path, text: str) -> None:
    found = problem(base, MINIMAL + "[targets.cpu]\n", sets=[text])
    assert found.startswith(f"--set {text}: section.key=value is expected")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("name.x=1", "--set name: no section"),
        ("schema.x=1", "--set schema: no section"),
        ("targets.cpux.min_runtime=1", "--set targets.cpux: this target is not built; did you mean 'cpu'?"),
        ("targets.cpu=5", "--set targets.cpu: a table is expected, not 5"),
        ("targets.cpu.quantize=5", "--set targets.cpu.quantize: a table is expected, not a whole number"),
        ("profil.threads=1", "profil: unknown section or key; did you mean 'profile'?"),
        ("profile.threads=many", "--set profile.threads: a whole number is expected (got 'many')"),
        ("calibration.data=none.npz", "calibration.data: "),
    ],
)
def test_a_set_that_does_not_fit_is_named(base: Path, text: str, wanted: str) -> None:
    assert problem(base, MINIMAL + "[targets.cpu]\n", sets=[text]).startswith(wanted)


@pytest.mark.parametrize(
    "content",
    [
        b"schema = ",
        b"\xff\xfe",
        b"a = " + b"[" * 5000,
        b"a = " + b"9" * 5000,
        b"schema = 1\n[x]\n[x]\n",
        b"d = 2024-13-01",
    ],
    ids=["cut off", "no utf-8", "deep", "long number", "twice", "no date"],
)
def test_a_file_that_is_no_toml_is_an_input_error(base: Path, content: bytes) -> None:
    (base / "plan.toml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_plan(base / "plan.toml", load_target=load)
    assert (caught.value.exit_code, caught.value.where) == (3, str(base / "plan.toml"))
    assert caught.value.why
    assert len(caught.value.why) < 400


def test_a_plan_that_is_not_there_says_how_to_write_one(base: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        read_plan(base / "none.toml", load_target=load)
    assert "edge-exporter init" in (caught.value.hint or "")
    with pytest.raises(InputError, match="cannot be read"):
        read_plan(base, load_target=load)


def test_keys_nested_without_end_are_a_problem_of_the_plan(base: Path) -> None:
    deep = ".".join(["a"] * 3000)
    with pytest.raises(InputError):
        read(base, MINIMAL + f"[model.args]\n{deep} = 1\n[targets.cpu]\n", sets=[f"model.args.{deep}=2"])


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("nets", "nets"),
        ("my nets (2)", "my-nets-2"),
        ("_private", "private"),
        ("模型", "model"),
        ("x" * 90, "x" * 64),
    ],
)
def test_a_plan_without_a_name_gets_one_from_its_folder(tmp_path: Path, folder: str, name: str) -> None:
    base = tmp_path / folder
    base.mkdir()
    for file in ("model.onnx", "calib.npz"):
        (base / file).write_bytes(b"")
    assert read(base, MINIMAL + "[targets.cpu]\n").name == name


# Invariants


TEXTS = st.text(max_size=8) | st.sampled_from(
    ["model.onnx", "calib.npz", "dynamic", "int8", "net.py:make", "accuracy"]
)
KEYS = st.text(max_size=6) | st.sampled_from([
    "schema", "name", "model", "source", "weights", "args", "inputs", "x", "dtype", "shape", "preprocess",
    "size", "std", "calibration", "evaluation", "data", "samples", "rename", "ignore", "metric", "export", "opset",
    "batch", "quantize", "exclude", "gate", "max_relative_loss", "profile", "threads", "seed", "targets", "cpu",
    "toy", "min_runtime", "depends",
])  # fmt: skip
LEAVES = (
    st.booleans() | st.integers() | st.floats() | TEXTS | st.dates() | st.times() | st.datetimes() | st.just(1)
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=25,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=6)
PLANS = st.fixed_dictionaries(
    {"schema": st.just(1), "model": st.fixed_dictionaries({"source": st.just("model.onnx")}) | TABLES},
    optional={
        "calibration": TABLES, "evaluation": TABLES, "export": TABLES, "quantize": TABLES, "gate": TABLES,
        "profile": TABLES, "targets": TABLES | st.dictionaries(st.sampled_from(["cpu", "toy"]), TABLES | VALUES),
    },
)  # fmt: skip
SETS = st.lists(
    TEXTS
    | st.builds("{}.{}={}".format, KEYS, KEYS, TEXTS)
    | st.builds("{}.{}.{}={}".format, KEYS, KEYS, KEYS, TEXTS),
    max_size=3,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables=PLANS | TABLES, sets=SETS, only=st.lists(st.sampled_from(["cpu", "toy", "x"]), max_size=2))
@example(tables={"targets": 5}, sets=["targets.cpu=1"], only=["cpu"])
@example(tables={"targets": {"cpu": 5}}, sets=["targets.cpu.quantize=1"], only=[])
@example(tables={"model": {"inputs": {"x": {"preprocess": {"std": [0]}}}, "source": "x" * 5000}}, sets=[], only=[])
def test_no_tables_raise_anything_but_a_plans_problems(
    base: Path, tables: dict[str, Any], sets: list[str], only: list[str]
) -> None:
    try:
        plan = resolve(
            tables,
            base=base,
            where="plan",
            origin="plan",
            default_name="n",
            load_target=load,
            sets=sets,
            only=only,
        )
    except PlanError:
        return
    for target in plan.targets:
        resolved = plan.resolved(target)
        assert tomllib.loads(tomli_w.dumps(resolved)), "what was accepted can be written"
        canonical(resolved)


FULL = """
schema = 1
name = "full"
[model]
source = "net.py:make"
weights = "w.safetensors"
args = {width = 8, ratios = [0.5, 1.0], nested = {on = true}, since = 2024-02-03}
outputs = ["scores"]
labels = ["cat", "dog"]
depends = ["extra.yaml"]
licence = "MIT"
[model.inputs.x]
dtype = "float32"
shape = ["batch", 3, 8, 8]
[model.inputs.x.preprocess]
size = [8, 8]
mean = [0.5, 0.25, 0.125]
std = [1, 2, 3]
[model.inputs."input.1"]
[calibration]
data = "calib.npz"
samples = 12
rename = {image = "x"}
ignore = ["id"]
[evaluation]
data = "eval.npz"
labels = "y"
metric = "metric.py:score"
[export]
opset = 17
batch = 4
[quantize]
exclude = ["/head/.*"]
[gate]
min_sqnr_db = 20
[profile]
threads = 2
[targets.toy]
speed = 9
[targets.toy.quantize]
observer = "percentile"
[targets.cpu]
min_runtime = "1.20"
"""


def same(left: Plan, right: Plan, name: str) -> None:
    for field in ("name", "model", "calibration", "evaluation"):
        assert getattr(left, field) == getattr(right, field)
    (one,) = (target for target in left.targets if target.name == name)
    assert (one,) == right.targets


@pytest.mark.parametrize("name", ["toy", "cpu"])
def test_a_resolved_plan_written_as_toml_resolves_to_the_same_values(base: Path, name: str) -> None:
    plan = read(base, FULL, sets=["profile.seed=3", f"targets.{name}.gate.min_cosine=0.5"])
    (target,) = (target for target in plan.targets if target.name == name)
    text = tomli_w.dumps(plan.resolved(target))
    again = read(base, text)
    same(plan, again, name)
    assert plan.model.args["since"] == datetime.date(2024, 2, 3)
    assert tomli_w.dumps(again.resolved(again.targets[0])) == text, "resolving twice changes nothing"


def test_a_resolved_plan_holds_every_value_in_force(base: Path) -> None:
    plan = read(base, MINIMAL + "[targets.toy]\n")
    resolved = plan.resolved(plan.targets[0])
    assert resolved["quantize"] == {**msgspec.to_builtins(plan.targets[0].quantize), "exclude": ()} | {
        "observer": "entropy", "per_channel": False, "reduce_range": True,
    }  # fmt: skip
    assert resolved["targets"] == {"toy": {"speed": 3, "mode": "slow"}}
    assert resolved["calibration"]["batch_size"] == 32


EXAMPLES = sorted(Path(__file__).parents[2].glob("examples/*/plan.toml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.parent.name)
def test_the_examples_are_plans_whose_files_are_there(file: Path) -> None:
    plan = read_plan(file, load_target=load_target)
    assert plan.targets


MERGE = """
schema = 1
[model]
source = "net.py:make"
[calibration]
data = "calib.npz"
[targets.toy]
[[merge.models]]
name = "a"
weights = "w.safetensors"
[[merge.models]]
name = "b"
weights = "w.safetensors"
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[merge]\nmethod = 'avrage'", "(got 'avrage'); did you mean 'average'?"),
        (
            "[merge]\norder = 'compress-first'\n[[compress.steps]]\nmethod = 'low-rank'\nenergy = 0.9",
            "merge.order: 'compress-first' with 'low-rank' leaves each model other channels or factors",
        ),
        (
            "[merge]\norder = 'compress-first'\n[[compress.steps]]\nmethod = 'prune-channels'\nmacs = 0.5",
            "merge.order: 'compress-first' with 'prune-channels' leaves each model other channels or factors",
        ),
        (
            "[merge]\nmethod = 'fuse'\nby = 'vote'\n[[compress.steps]]\nmethod = 'distil'",
            "compress.steps[0].loss: 'kl' takes a softmax, and `by = \"vote\"` has taken one already",
        ),
        (
            "[merge]\n[compress]\nsave = 'small'\n[[compress.steps]]\nmethod = 'norms'\n"
            "[[variants]]\nname = 'one'\n[[variants]]\nname = 'two'\ncompress.save = './small/'",
            "compress.save: alternatives 'one' and 'two' would both leave their model in './small/'",
        ),
    ],
)
def test_merges_whose_result_would_be_wrong_are_refused(base: Path, text: str, said: str) -> None:
    assert said in problem(base, MERGE + text)


def test_what_is_like_a_refused_merge_and_right_is_taken(base: Path) -> None:
    first = "[merge]\norder = 'compress-first'\n[[compress.steps]]\nmethod = "
    read(base, MERGE + first + "'prune-weights'\nsparsity = 0.5")
    read(base, MERGE + first.replace("[merge]", "[merge]\nmethod = 'stack'") + "'low-rank'\nenergy = 0.9")
    distil = "[merge]\nmethod = 'fuse'\nby = 'vote'\n[[compress.steps]]\nmethod = 'distil'\nloss = 'mse'"
    read(base, MERGE + distil)
    variants = "[[variants]]\nname = 'one'\n[[variants]]\nname = 'two'\ncompress.save = 'other'"
    read(base, MERGE + "[merge]\n[compress]\nsave = 'small'\n[[compress.steps]]\nmethod = 'norms'\n" + variants)


def test_outputs_of_a_member_have_names_of_their_own(base: Path) -> None:
    text = MERGE.replace('name = "b"', 'name = "b"\noutputs = ["x", "x"]') + "[merge]\nmethod = 'stack'"
    assert problem(base, text) == "merge.models[1].outputs: two outputs are called 'x'"
