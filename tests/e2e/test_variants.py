"""[[variants]]: alternatives of one plan in one table, those that are refused among them, and the Pareto front."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from exporter.artifacts import Alternative
from exporter.pipeline.alternatives import mark_pareto
from exporter.report.tradeoffs import Candidate, front
from exporter.tables import alternative_columns, alternative_rows
from tests.bundles import replaced
from tests.support import Workplace, refused

FACTORY = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
"""
PLAN = """
schema = 1
name = "nets"
[model]
source = "model.py:make"
weights = "base.safetensors"
[calibration]
data = "calib.npz"
[evaluation]
data = "eval.npz"
labels = "y"
[quantize]
enabled = false
[targets.cpu]
"""
AS_IS = '[[variants]]\nname = "as-is"\n'
THIN = '[[variants]]\nname = "thin"\n[[variants.compress.steps]]\nmethod = "low-rank"\nrank = 6\n'
LOST = (
    '[[variants]]\nname = "lost"\n[[variants.merge.models]]\nweights = "noise.safetensors"\n'
    '[[variants.merge.models]]\nname = "trained"\nweights = "base.safetensors"\n'
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("variants"))
    place.write("model.py", FACTORY)
    namespace: dict[str, object] = {}
    exec(FACTORY, namespace)
    model = namespace["make"]()  # type: ignore[operator]
    x = torch.randn(600, 32, generator=torch.Generator().manual_seed(0))
    y = (x[:, :16].sum(1) > x[:, 16:].sum(1)).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(x[:500]), y[:500])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    save_file(model.state_dict(), place / "base.safetensors")
    noise = {name: 3 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    save_file(noise, place / "noise.safetensors")
    place.npz("calib.npz", x=x[:64].numpy())
    place.npz("eval.npz", x=x[500:].numpy(), y=model(x[500:]).argmax(1).numpy().astype(np.int64))
    return place


def test_alternatives_are_one_table_with_the_refused_ones_in_it(place: Workplace) -> None:
    file = place.write("plan.toml", PLAN + "[gate]\nmax_relative_loss = 0.2\n" + AS_IS + THIN + LOST)
    result = place.build(file)
    assert result.code == 0, result.err
    rows = {row["name"]: row for row in result.document["variants"]}
    assert list(rows) == ["as-is", "thin", "lost"]
    assert rows["as-is"]["metric"] == 1.0
    assert rows["thin"]["size"] < rows["as-is"]["size"]
    assert rows["as-is"]["latency_ms"] > 0
    assert rows["as-is"]["pareto"]
    assert "is worse than" in rows["lost"]["failure"]
    assert not rows["lost"]["pareto"]
    names = [path.name for path in place.bundles()]
    assert any(name.startswith("nets-as-is-cpu-") for name in names)
    assert any(name.startswith("nets-thin-cpu-") for name in names)
    assert not any("lost" in name for name in names)
    assert json.loads((place / "bundles/nets-variants.json").read_text()) == result.document["variants"]
    shown = place.run("plan", file, "--json")
    assert set(shown.document["variants"]) == {"as-is", "thin", "lost"}
    terminal = place.run("build", file, "--no-profile")
    assert terminal.code == 0
    assert "lost for cpu is refused: the merged model" in terminal.out


def test_when_all_alternatives_are_refused_the_build_fails(place: Workplace) -> None:
    file = place.write("plan.toml", PLAN + LOST)
    refused(place.run("build", file), 7, "is worse than")


def test_what_is_wrong_in_an_alternative_is_said_with_its_name(place: Workplace) -> None:
    wrong = (
        AS_IS + AS_IS + '[[variants]]\nname = "x"\nquantize = {}\n[variants.merge]\nmethod = "avrage"\n'
        '[[variants.merge.models]]\nweights = "base.safetensors"\n[[variants]]\n'
    )
    message = refused(place.run("build", place.write("plan.toml", PLAN + wrong)), 3, "there are two 'as-is'")
    assert "variants[2].quantize: unknown key" in message
    assert "variant 'x': merge.method" in message
    assert "variants[3].name: is missing" in message
    file = place.write("plan.toml", PLAN + AS_IS + THIN)
    refused(place.run("analyze", file), 2, "has variants (as-is, thin)")


MEASURES = st.tuples(st.integers(0, 3), st.integers(1, 3), st.one_of(st.none(), st.integers(1, 3)))


@given(st.lists(MEASURES, min_size=1, max_size=6))
def test_the_front_holds_exactly_what_nothing_beats(measures: list[tuple[int, int, int | None]]) -> None:
    rows = [
        Alternative(name=str(index), target="cpu", variant="fp32", metric=metric, size=size, latency_ms=latency)
        for index, (metric, size, latency) in enumerate(measures)
    ]
    marked = mark_pareto(rows)
    timed = all(latency is not None for *_, latency in measures)
    costs = [(-metric, size, *((latency,) if timed else ())) for metric, size, latency in measures]
    for row, own in zip(marked, costs, strict=True):
        beaten = any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in costs)
        assert row.pareto is not beaten
    assert any(row.pareto for row in marked)


def test_sparse_files_count_as_they_are_packed() -> None:
    dense = Alternative(
        name="dense", target="cpu", variant="fp32", metric=0.9, size=100, packed_bytes=90, latency_ms=1.0
    )
    sparse = Alternative(
        name="sparse", target="cpu", variant="fp32", metric=0.8, size=100, packed_bytes=30, latency_ms=1.0
    )
    assert [row.pareto for row in mark_pareto([dense, sparse])] == [True, True]
    assert [row.pareto for row in mark_pareto([dense, replaced(sparse, packed_bytes=None)])] == [True, False]
    # Sizes of one kind are compared: a packed one is no smaller than a file that was not packed.
    bare = replaced(dense, size=20, packed_bytes=None)
    assert [row.pareto for row in mark_pareto([bare, sparse])] == [True, False]
    dense = replaced(dense, packed_bytes=None)
    assert alternative_columns([dense]) == tuple(one for one in alternative_columns([dense, sparse]) if one != "zstd")
    assert {len(row) for row in alternative_rows([dense, sparse])} == {len(alternative_columns([dense, sparse]))}


def test_a_few_bytes_put_nothing_on_the_front() -> None:
    better = Alternative(name="a", target="cpu", variant="int8", metric=0.806, size=120371, latency_ms=0.294)
    worse = Alternative(name="b", target="cpu", variant="int8", metric=0.792, size=120368, latency_ms=0.2935)
    assert [row.pareto for row in mark_pareto([better, worse])] == [True, False]
    assert [row.pareto for row in mark_pareto([better, replaced(worse, size=110000)])] == [True, True]


def test_the_front_of_a_report_goes_by_the_same_ties() -> None:
    better, worse = Candidate("a", 0.294, 120371, 0.806), Candidate("b", 0.2935, 120368, 0.792)
    assert front([better, worse]) == ["a"]
    assert front([better, worse._replace(size=110000)]) == ["a", "b"]
