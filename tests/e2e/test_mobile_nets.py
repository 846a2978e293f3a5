"""The .tflite files of six kinds of networks against the torch modules that they come from."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.artifacts import QuantScheme, Signature, TensorSpec
from exporter.errors import InputError, StageError
from exporter.registry import load_target
from exporter.target_api import ConvertRequest, Target, TargetOptions, VariantFile
from targets._litert import requantize
from targets._litert_jobs import VariantJob
from targets._mobile_tflite import base_of
from targets._tflite import MOVERS, operators, with_movers
from targets._tflite_kept import APART, MASKED
from targets._tflite_schemes import Left, check_left

Arrays = dict[str, NDArray[Any]]
pytestmark = pytest.mark.slow
SAMPLES = 8
CALIBRATION = 32
VOCABULARY, LENGTH = 50, 6


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.branch(x)).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU6(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(), nn.Conv2d(16, 24, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(ids))[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cells = kind(6, 24, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Masked(nn.Module):
    """Attention that leaves out what it is told to, by masks of two kinds; what its head takes is an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layer(x, src_key_padding_mask=padding)
        scores = x @ x.transpose(1, 2) + padding[:, None] * -10_000.0
        seen = (scores.softmax(-1) @ x).mean(1)
        return seen, self.head(seen)


class Pooled(nn.Module):
    """Pooling in three directions, which the converter writes as a graph inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool3d(2)
        self.head = nn.Linear(2 * 11 * 11, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.mixed(x)).flatten(1))


class Six(nn.Module):
    """All of them behind one signature: converting costs seconds, most of them for imports."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(
            {
                "cnn": Cnn(),
                "resnet": Residual(),
                "depthwise": Depthwise(),
                "transformer": Encoder(),
                "lstm": Recurrent(nn.LSTM),
                "gru": Recurrent(nn.GRU),
                "pooled": Pooled(),
            }
        )
        self.masked = Masked()

    def forward(self, image: Tensor, ids: Tensor, series: Tensor) -> dict[str, Tensor]:
        given = {"transformer": ids, "lstm": series, "gru": series}
        answers = {name: net(given.get(name, image)) for name, net in self.nets.items()}
        # At the end: what is read there and is an output as well is where the quantizer goes wrong.
        seen, answers["masked"] = self.masked(series, (ids > VOCABULARY // 2) & (ids != ids[:, :1]))
        return answers | {"seen": seen}


IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 24, 24))
IDS = TensorSpec(name="ids", dtype="int64", shape=(1, LENGTH))
SERIES = TensorSpec(name="series", dtype="float32", shape=(1, LENGTH, 6))
LEAST_DB = {
    "cnn": 35.0, "resnet": 35.0, "depthwise": 35.0, "transformer": 27.0, "lstm": 25.0, "gru": 25.0, "pooled": 30.0,
    "masked": 18.0, "seen": 18.0,
}  # fmt: skip


class Made(msgspec.Struct, frozen=True):
    """Converted files, the module, and what both answer to the same inputs."""

    target: Target
    folder: Path
    variants: tuple[VariantFile, ...]
    wanted: list[Arrays]
    answers: dict[str, list[Arrays]]

    def sqnr_db(self, variant: str, output: str) -> float:
        signal = sum(float(np.square(one[output]).sum()) for one in self.wanted)
        pairs = zip(self.answers[variant], self.wanted, strict=True)
        error = sum(float(np.square(got[output] - wanted[output]).sum()) for got, wanted in pairs)
        return math.inf if error == 0 else 10 * math.log10(signal / error)

    def variant(self, name: str) -> VariantFile:
        return next(one for one in self.variants if one.name == name)


def values(spec: TensorSpec, seed: int) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    shape = [int(size) for size in spec.shape]
    if spec.dtype == "int64":
        return random.integers(0, VOCABULARY, shape)
    return random.normal(size=shape).astype(np.float32)


def convert(target: Target, module: nn.Module, inputs: tuple[TensorSpec, ...], folder: Path, **chosen: Any) -> Made:
    """Converts a module as the pipeline does, and runs all files."""
    from exporter.onnx_export import prepare_module, save_program, torch_session
    from exporter.pipeline.forms import formed_inputs

    options: TargetOptions = msgspec.convert(chosen, target.options_type)
    form = target.requires(options).form
    prepared = prepare_module(module.eval(), inputs)
    samples = [{spec.name: values(spec, seed) for spec in inputs} for seed in range(SAMPLES + CALIBRATION)]
    shown = [formed_inputs(one, inputs, form) for one in samples]
    session = torch_session(prepared)
    wanted = [session(one) for one in samples[:SAMPLES]]
    save_program(prepared, example=samples[0], inputs=inputs, path=folder / "program.pt2")
    outputs = tuple(TensorSpec(name=name, dtype="float32", shape=array.shape) for name, array in wanted[0].items())
    request = ConvertRequest(
        float_model=folder / "not-needed.onnx",
        int8=(),
        signature=Signature(inputs=inputs, outputs=outputs),
        program=folder / "program.pt2",
        form=form,
        quantize=QuantScheme(activations="int8"),
        calibration=lambda: iter(shown[SAMPLES:]),
    )
    (folder / "out").mkdir()
    variants = target.convert(request, options, folder / "out")
    answers = {}
    for one in variants:
        run = target.open_session(folder / "out" / one.main, simulated=False)
        answers[one.name] = [run(sample) for sample in shown[:SAMPLES]]
    return Made(target, folder / "out", variants, wanted, answers)


@pytest.fixture(scope="module")
def mobile() -> Target:
    target = load_target("mobile")
    if (missing := target.missing(target.options_type())) is not None:
        pytest.skip(f"{missing[0]} ({missing[1]})")
    return target


@pytest.fixture(scope="module")
def six(mobile: Target, tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    variants = ["float16", "int8", "int16x8", "dynamic-int8"]
    return convert(mobile, Six(), (IMAGE, IDS, SERIES), tmp_path_factory.mktemp("six"), variants=variants)


@pytest.fixture(scope="module")
def camera(mobile: Target, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A CNN as a camera's frames come, with integers at its edges, and one operator left out."""
    torch.manual_seed(0)
    options = {"variants": ["int8", "int16x8"], "io": "integer", "layout": "NHWC", "exclude": ["MAX_POOL_2D"]}
    return convert(mobile, Cnn(), (IMAGE,), tmp_path_factory.mktemp("camera"), **options)


@pytest.mark.parametrize("net", LEAST_DB)
def test_float_is_the_module_within_rounding(net: str, six: Made) -> None:
    for got, wanted in zip(six.answers["fp32"], six.wanted, strict=True):
        assert float(np.abs(got[net] - wanted[net]).max()) <= 1e-5 * float(np.abs(wanted[net]).max())


@pytest.mark.parametrize("net", LEAST_DB)
def test_static_int8_keeps_the_accuracy_of_its_kind_of_network(net: str, six: Made) -> None:
    assert six.sqnr_db("int8", net) >= LEAST_DB[net]


@pytest.mark.parametrize("net", LEAST_DB)
def test_wider_types_keep_more(net: str, six: Made) -> None:
    assert six.sqnr_db("fp16", net) > 55
    assert six.sqnr_db("int16x8", net) > six.sqnr_db("int8", net) - 0.5
    assert six.sqnr_db("dynamic", net) > LEAST_DB[net]


def test_what_is_integer_is_counted_and_what_is_not_is_named(six: Made) -> None:
    assert six.variant("fp32").coverage is six.variant("fp16").coverage is None
    for name in ("int8", "int16x8", "dynamic"):
        coverage = six.variant(name).coverage
        assert coverage is not None
        assert 0 < coverage.quantized <= coverage.eligible
        assert coverage.eligible == coverage.quantized + len(coverage.skipped)
        assert coverage.quantized_ops["CONV_2D"] >= 4


def test_attention_with_masks_of_either_kind_stays_in_float(six: Made) -> None:
    for name in ("int8", "int16x8"):
        coverage = six.variant(name).coverage
        assert coverage is not None
        left = Counter((one.op, one.reason) for one in coverage.skipped if one.reason in (APART, MASKED))
        assert left["SOFTMAX", APART] == left["SOFTMAX", MASKED] == left["ADD", APART] == 1
        assert coverage.quantized_ops["SOFTMAX"] == 2, "those of the other transformer"


def test_files_of_64_bit_indices_take_32_bits(six: Made) -> None:
    from targets.runner.tflite_runtime import open_session

    session = open_session(str(six.folder / six.variants[0].main), 1)
    assert [(name, dtype) for name, dtype, _ in session.inputs()] == [
        ("image", "float32"),
        ("ids", "int32"),
        ("series", "float32"),
    ]
    assert [name for name, _, _ in session.outputs()] == list(LEAST_DB)


def test_channels_come_last_and_integers_stand_at_the_edges_where_asked(camera: Made) -> None:
    from targets.runner.tflite_runtime import open_session

    session = open_session(str(camera.folder / camera.variant("int8").main), 1)
    assert session.inputs() == [("image", "float32", [1, 24, 24, 3])]  # The runner converts; the file holds int8.
    edges = {one.name: [(edge.tensor, edge.dtype) for edge in one.edges] for one in camera.variants}
    assert edges["fp32"] == []
    assert edges["int8"] == [("image", "int8"), ("output", "int8")]
    assert edges["int16x8"] == [("image", "int16"), ("output", "int16")]
    assert camera.sqnr_db("fp32", "output") > 100
    assert camera.sqnr_db("int8", "output") > 35
    assert camera.sqnr_db("int16x8", "output") > 40


def test_an_excluded_operator_stays_in_float_and_says_so(camera: Made) -> None:
    coverage = camera.variant("int8").coverage
    assert coverage is not None
    assert {(one.op, one.reason) for one in coverage.skipped} == {("MAX_POOL_2D", "excluded by the plan")}


def test_a_tensor_whose_statistics_are_missing_is_named(camera: Made, tmp_path: Path) -> None:
    base = base_of(camera.folder)
    ranges = json.loads(base.ranges.read_text())
    lost = next(name for name in ranges if name.startswith("conv_2d_"))
    del ranges[lost]
    (tmp_path / "ranges.json").write_text(json.dumps(ranges))
    jobs = (VariantJob(precision="int8", file=str(tmp_path / "int8" / "model.tflite")),)
    with pytest.raises(StageError, match=f"calibration saw nothing of the tensor '{lost}'"):
        requantize(base._replace(ranges=tmp_path / "ranges.json"), jobs)
    assert not (tmp_path / "int8" / "model.tflite").exists()


@pytest.mark.parametrize(
    ("left", "key", "proposed"),
    [
        (Left(types=("FULY_CONNECTED",)), "[targets.mobile] exclude", "FULLY_CONNECTED"),
        (Left(ops=("CONV2D",)), "[targets.mobile.quantize] ops", "CONV_2D"),
        (Left(names=("conv_2d_99",)), "[targets.mobile.quantize] exclude", "conv_2d_"),
    ],
)
def test_an_operator_that_the_model_lacks_is_an_error(camera: Made, left: Left, key: str, proposed: str) -> None:
    with pytest.raises(InputError, match="the model has no operator ") as caught:
        check_left(camera.folder / camera.variants[0].main, left)
    assert caught.value.where == key
    assert f"did you mean '{proposed}" in caught.value.what
    assert "CONV_2D" in str(caught.value.hint) or "conv_2d_" in str(caught.value.hint)


def samples_of_six() -> list[Arrays]:
    """What the files take."""
    named = [{spec.name: values(spec, seed) for spec in (IMAGE, IDS, SERIES)} for seed in range(SAMPLES)]
    return [one | {"ids": one["ids"].astype(np.int32)} for one in named]


@pytest.mark.parametrize("variant", ["int8", "int16x8", "dynamic"])
def test_noise_is_told_of_every_operator_that_computes_in_integers(variant: str, six: Made) -> None:
    model = six.folder / six.variant(variant).main
    found = six.target.damage(six.folder, model, samples_of_six())  # type: ignore[attr-defined]
    coverage = six.variant(variant).coverage
    assert coverage is not None
    kinds = Counter(one.op for one in found)
    assert kinds == {op: count for op, count in coverage.quantized_ops.items() if op not in MOVERS}
    assert [one.score for one in found] == sorted(one.score for one in found)
    assert len({one.node for one in found}) == len(found)
    assert all(one.bits == (16 if variant == "int16x8" else 8) for one in found)
    assert np.median([one.score for one in found]) > 25


@pytest.mark.parametrize("variant", ["int8", "int16x8", "dynamic"])
def test_what_is_told_of_operators_is_what_is_in_the_file_and_ends_with_what_it_answers(
    variant: str, six: Made
) -> None:
    model, coverage = six.folder / six.variant(variant).main, six.variant(variant).coverage
    assert coverage is not None
    found = six.target.operators(six.folder / six.variants[0].main, model, samples_of_six())  # type: ignore[attr-defined]
    integer = [one for one in found if one.bits or one.weight_bits]
    assert Counter(one.op for one in integer) == coverage.quantized_ops
    assert [one.node for one in found if one not in integer] == [one.node for one in coverage.skipped]
    bits = {"int8": {8}, "int16x8": {16}, "dynamic": {None}}[variant]
    assert {one.bits for one in integer} == bits
    assert {one.weight_bits for one in integer if one.op in ("CONV_2D", "FULLY_CONNECTED")} <= {8, None}
    assert all(one.weight_bits == 8 for one in integer if one.op == "CONV_2D")
    for one in integer:
        if one.bits is not None:
            assert one.range is not None
            assert one.scale == pytest.approx((one.range[1] - one.range[0]) / (2**one.bits - 1))
            assert one.range[0] <= 0 <= one.range[1]
    damages = {one.node: one for one in six.target.damage(six.folder, model, samples_of_six())}  # type: ignore[attr-defined]
    assert {one.node: one.damage for one in found if one.damage} == damages
    told = {one.node: one.accumulated_db for one in found}
    sums = [one.node for one in coverage.skipped if one.op == "ADD" and one.reason == MASKED]
    assert bool(sums) == (variant != "dynamic")
    assert all(10 < (told[node] or 0) < 120 for node in sums), "masks are no signal"
    for net in LEAST_DB:
        assert told[net] == pytest.approx(six.sqnr_db(variant, net), abs=0.1)


def test_integers_at_the_edges_and_other_layouts_are_told_of_like_the_rest(camera: Made) -> None:
    given = [values(IMAGE, seed).transpose(0, 2, 3, 1) for seed in range(SAMPLES)]
    floats, (left,) = camera.folder / camera.variants[0].main, camera.variant("int8").coverage.skipped  # type: ignore[union-attr]
    for variant in ("int8", "int16x8"):
        found = camera.target.operators(  # type: ignore[attr-defined]
            floats, camera.folder / camera.variant(variant).main, [{"image": one} for one in given]
        )
        told = {one.node: one for one in found}
        assert told["output"].accumulated_db == pytest.approx(camera.sqnr_db(variant, "output"), abs=0.1)
        assert (told[left.node].op, told[left.node].bits, told[left.node].damage) == ("MAX_POOL_2D", None, None)


def test_an_operator_in_float_takes_those_that_only_move_its_result_with_it(six: Made, tmp_path: Path) -> None:
    scheme = six.variant("int8").scheme
    assert scheme is not None
    float_file = six.folder / six.variants[0].main
    first = next(one for one in operators(float_file) if one.kind == "CONV_2D").name
    only = msgspec.structs.replace(scheme, exclude=(first,))
    made = six.target.requantize(  # type: ignore[attr-defined]
        six.folder, six.variant("int8"), only, six.target.options_type(), tmp_path
    )
    reasons = {one.node: one.reason for one in made.coverage.skipped}
    assert reasons[first] == "left in float by name"
    followers = with_movers(float_file, [first]) - {first}
    before = {one.node for one in six.variant("int8").coverage.skipped}
    assert followers == {n for n, reason in reasons.items() if reason == "moves what is left in float"} - before
    assert made.coverage.quantized == six.variant("int8").coverage.quantized - 1 - len(followers)


def test_quantizing_again_as_before_gives_the_same_file(six: Made, tmp_path: Path) -> None:
    before = six.variant("int8")
    again = six.target.requantize(  # type: ignore[attr-defined]
        six.folder, before, before.scheme, six.target.options_type(), tmp_path
    )
    assert msgspec.structs.replace(again, offered=False) == before
    assert (tmp_path / again.main).read_bytes() == (six.folder / before.main).read_bytes()
