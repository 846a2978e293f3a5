"""Merging of state dicts: every method against numbers worked out by hand, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exporter.compress.calling import plainly
from exporter.errors import ModelError
from exporter.merge import (
    LoadedState,
    Recipe,
    State,
    TiedState,
    check_alike,
    fisher_information,
    grams,
    greedy_soup,
    merge_states,
    open_states,
    search,
    strangers,
    tied_names,
)
from exporter.pipeline.weighing import averaged_notes

NUMBERS = st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4)


def states(**models: dict[str, Tensor]) -> dict[str, State]:
    return {name: LoadedState(tensors) for name, tensors in models.items()}


def weight(*values: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(values)}


@given(NUMBERS, NUMBERS)
def test_the_average_of_models_is_between_them(left: list[float], right: list[float]) -> None:
    merged = merge_states(states(a=weight(*left), b=weight(*right)), Recipe())["w"]
    pairs = zip(merged.tolist(), left, right, strict=True)
    assert all(min(a, b) - 1e-5 <= value <= max(a, b) + 1e-5 for value, a, b in pairs)


@pytest.mark.parametrize("method", ["average", "slerp", "task-arithmetic", "ties"])
def test_merging_a_model_with_itself_gives_it_back(method: str) -> None:
    model = {"w": torch.randn(4, 5, generator=torch.Generator().manual_seed(0))}
    zero = LoadedState({"w": torch.zeros(4, 5)})
    recipe = Recipe(method=method, scale=0.5 if method == "task-arithmetic" else 1.0, density=1.0)
    merged = merge_states(states(a=model, b=model), recipe, base=zero)
    torch.testing.assert_close(merged["w"], model["w"])


def test_weights_are_shares_that_need_not_sum_to_one() -> None:
    recipe = Recipe(weights={"a": 3.0, "b": 1.0})
    assert merge_states(states(a=weight(0.0), b=weight(4.0)), recipe)["w"].tolist() == [1.0]


def test_slerp_keeps_the_length_that_an_average_loses() -> None:
    pair = states(a=weight(1.0, 0.0), b=weight(0.0, 1.0))
    assert merge_states(pair, Recipe(method="slerp"))["w"].norm().item() == pytest.approx(1.0)
    assert merge_states(pair, Recipe())["w"].norm().item() == pytest.approx(math.sqrt(0.5))


def test_slerp_of_opposite_and_of_zero_vectors_stays_finite() -> None:
    for right in (weight(-1.0, 0.0), weight(0.0, 0.0)):
        merged = merge_states(states(a=weight(1.0, 0.0), b=right), Recipe(method="slerp"))
        assert torch.isfinite(merged["w"]).all()


def test_task_arithmetic_adds_what_each_model_learned() -> None:
    base = LoadedState(weight(1.0, 1.0))
    recipe = Recipe(method="task-arithmetic", scale=1.0)
    merged = merge_states(states(a=weight(3.0, 1.0), b=weight(1.0, 0.0)), recipe, base=base)
    assert merged["w"].tolist() == [3.0, 0.0]


def test_ties_trims_small_changes_and_takes_the_side_of_the_larger_sum() -> None:
    base = LoadedState(weight(0.0, 0.0, 0.0, 0.0))
    members = states(a=weight(4.0, 0.1, 3.0, 0.0), b=weight(-1.0, 0.1, 5.0, 0.0))
    merged = merge_states(members, Recipe(method="ties", scale=1.0, density=0.5), base=base)
    # Of each vector two values stay: (4, 3) and (-1, 5). In the first place + wins, so that only 4 counts.
    assert merged["w"].tolist() == [4.0, 0.0, 4.0, 0.0]


def test_dare_keeps_the_expected_change_and_repeats_itself() -> None:
    base = LoadedState({"w": torch.zeros(20_000)})
    members = states(a={"w": torch.ones(20_000)})
    recipe = Recipe(method="dare", scale=1.0, drop=0.9, seed=3)
    merged = merge_states(members, recipe, base=base)["w"]
    assert merged.mean().item() == pytest.approx(1.0, abs=0.1)
    assert (merged == 0).float().mean().item() == pytest.approx(0.9, abs=0.02)
    assert torch.equal(merged, merge_states(members, recipe, base=base)["w"])


def test_norm_statistics_become_those_of_the_mixture_and_counters_stay_whole() -> None:
    def norm(mean: float, count: int) -> dict[str, Tensor]:
        return {
            "n.running_mean": torch.tensor([mean]),
            "n.running_var": torch.tensor([1.0]),
            "n.num_batches_tracked": torch.tensor(count),
        }

    merged = merge_states(states(a=norm(-2.0, 10), b=norm(2.0, 30)), Recipe())
    assert merged["n.running_mean"].item() == 0.0
    # Values around -2 and around 2, each of variance 1, vary by 5 around 0; the mean of the variances would be 1.
    assert merged["n.running_var"].item() == pytest.approx(5.0)
    assert merged["n.num_batches_tracked"].dtype == torch.int64
    assert merged["n.num_batches_tracked"].item() == 30


def test_tables_of_whole_numbers_must_agree() -> None:
    alike = {"index": torch.tensor([1, 2])}
    assert merge_states(states(a=alike, b=alike), Recipe())["index"].tolist() == [1, 2]
    with pytest.raises(ModelError, match="whole numbers"):
        merge_states(states(a=alike, b={"index": torch.tensor([2, 1])}), Recipe())


def test_halves_are_merged_in_float_and_stay_halves() -> None:
    merged = merge_states(
        states(a={"w": torch.tensor([60_000.0]).half()}, b={"w": torch.tensor([60_000.0]).half()}), Recipe()
    )
    assert merged["w"].dtype == torch.float16
    assert torch.isfinite(merged["w"]).all()


def test_nan_in_a_model_is_named_not_spread() -> None:
    with pytest.raises(ModelError, match="'b' holds 1 NaN") as caught:
        merge_states(states(a=weight(1.0), b=weight(math.nan)), Recipe())
    assert caught.value.where == "tensor w"


@pytest.mark.parametrize("method", ["average", "slerp", "task-arithmetic", "ties"])
def test_complex_weights_are_merged_as_pairs_of_numbers(method: str) -> None:
    """As the filters of Fourier layers are."""
    torch.manual_seed(0)
    left, right = torch.randn(4, 3, dtype=torch.cfloat), torch.randn(4, 3, dtype=torch.cfloat)
    recipe, base = Recipe(method=method), {"w": torch.zeros(4, 3, dtype=torch.cfloat)}
    found = merge_states({"a": {"w": left}, "b": {"w": right}}, recipe, base=base)["w"]
    pairs = {"a": {"w": torch.view_as_real(left)}, "b": {"w": torch.view_as_real(right)}}
    alike = merge_states(pairs, recipe, base={"w": torch.zeros(4, 3, 2)})["w"]
    assert found.dtype == torch.cfloat
    assert torch.equal(torch.view_as_real(found), alike)
    with pytest.raises(ModelError, match="1 NaN or infinite"):
        merge_states({"a": {"w": torch.tensor([complex("nan")])}, "b": {"w": torch.tensor([1j])}}, Recipe())


def test_plain_state_dicts_are_merged_as_opened_files_are() -> None:
    left, right = weight(1.0, 2.0), weight(3.0, 2.0)
    assert merge_states({"a": left, "b": right}, Recipe())["w"].tolist() == [2.0, 2.0]
    recipe = Recipe(method="task-arithmetic", scale=1.0)
    assert merge_states({"a": left, "b": right}, recipe, base=weight(0.0, 0.0))["w"].tolist() == [4.0, 4.0]
    assert greedy_soup({"a": left, "b": right}, lambda state, count: float(state["w"].sum()))[1] == ("b",)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(method="avarage"), "no method is called 'avarage'; did you mean 'average'"),
        (Recipe(method="ties"), "'ties' needs a base"),
        (Recipe(weights={"A": 2.0}), "no model 'A' to give a weight to"),
        (Recipe(weights={"a": 1.0, "b": -1.0}), "sum to nothing"),
    ],
)
def test_recipes_that_would_not_act_as_meant_are_refused(recipe: Recipe, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        merge_states({"a": weight(1.0), "b": weight(2.0)}, recipe)


def test_models_of_another_architecture_are_explained() -> None:
    own = {"conv.weight": torch.zeros(2, 3), "head.weight": torch.zeros(4)}
    other = {"conv.weight": torch.zeros(2, 5), "heads.weight": torch.zeros(4)}
    with pytest.raises(ModelError) as caught:
        check_alike(states(a=own, b=other))
    text = str(caught.value)
    assert "'b' lacks head.weight" in text
    assert "heads.weight; did you mean 'head.weight'?" in text
    assert "conv.weight [2, 5] instead of [2, 3]" in text


def test_nothing_that_was_given_changes() -> None:
    first, second, base = weight(1.0, 2.0), weight(3.0, 5.0), weight(0.5, 0.5)
    for method in ("average", "slerp", "task-arithmetic", "ties", "dare"):
        merge_states(states(a=first, b=second), Recipe(method=method), base=LoadedState(base))
    assert (first["w"].tolist(), second["w"].tolist(), base["w"].tolist()) == ([1.0, 2.0], [3.0, 5.0], [0.5, 0.5])


def test_independent_models_are_told_from_fine_tunes() -> None:
    random = torch.Generator().manual_seed(0)
    base = torch.randn(30, 30, generator=random)
    tuned = base + 0.2 * torch.randn(30, 30, generator=random)
    other = torch.randn(30, 30, generator=random)
    found = strangers(states(base={"w": base}, tuned={"w": tuned}, other={"w": other}))
    assert {frozenset(pair[:2]) for pair in found} == {frozenset({"base", "other"}), frozenset({"tuned", "other"})}


def test_a_greedy_soup_leaves_out_what_makes_it_worse() -> None:
    score = lambda state, count: -abs(float(state["w"][0]) - 1.0)  # noqa: E731
    soup, chosen = greedy_soup(states(far=weight(9.0), low=weight(0.8), high=weight(1.3)), score)
    assert chosen == ("low", "high")
    assert soup["w"].item() == pytest.approx(1.05)


def test_a_soup_of_one_model_is_that_model_and_told_as_one() -> None:
    counts: list[int] = []

    def score(state: Mapping[str, Tensor], count: int) -> float:
        counts.append(count)
        return float(state["w"][0])

    soup, chosen = greedy_soup(states(low=weight(0.1), high=weight(0.3)), score)
    assert chosen == ("high",)
    assert torch.equal(soup["w"], torch.tensor([0.3]))
    # Who scores re-estimates norms of what was merged, and of nothing else.
    assert counts == [1, 1, 2]


def test_at_most_one_tensor_of_each_model_is_read_at_a_time(tmp_path: Path, track: Callable[[], int]) -> None:
    from safetensors.torch import save_file

    tensor = torch.randn(512, 1024)
    for name in ("a", "b", "c", "d"):
        save_file({f"layer{index}": tensor.clone() for index in range(24)}, tmp_path / f"{name}.safetensors")
    model = 24 * tensor.numel() * 4
    peak = 0

    class Watched(LoadedState):
        def __init__(self, state: State) -> None:
            self.state = state

        def names(self) -> Sequence[str]:
            return self.state.names()

        def shape(self, name: str) -> tuple[int, ...]:
            return self.state.shape(name)

        def get(self, name: str) -> Tensor:
            nonlocal peak
            peak = max(peak, track())
            return self.state.get(name)

    with open_states([tmp_path / f"{name}.safetensors" for name in ("a", "b", "c", "d")]) as opened:
        before = track()
        merged = merge_states({name: Watched(state) for name, state in zip("abcd", opened, strict=True)}, Recipe())
    assert len(merged) == 24
    # Four models, of which memory holds the result and a tensor of each.
    assert peak - before < 2 * model, f"{(peak - before) / model:.1f} models in memory"


@pytest.fixture
def track() -> Callable[[], int]:
    """Anonymous memory of this process now, in bytes; pages of mapped files are no copies."""

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    return anonymous


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(ModelError, match="damaged"), open_states([path]):
        pass


def test_fisher_keeps_the_values_that_matter_to_each_model() -> None:
    members = states(a=weight(1.0, 0.0, 3.0), b=weight(0.0, 2.0, 5.0))
    knowledge = states(a=weight(4.0, 0.0, 0.0), b=weight(0.0, 4.0, 0.0))
    merged = merge_states(members, Recipe(method="fisher"), knowledge=knowledge)["w"]
    # Where nothing matters to either, the mean is taken.
    assert merged.tolist() == pytest.approx([1.0, 2.0, 4.0])


def test_fisher_information_is_large_where_the_output_depends_on_a_weight() -> None:
    layer = torch.nn.Linear(2, 3, bias=False)
    inputs = torch.tensor([[1.0, 0.0]]).repeat(64, 1)
    found = fisher_information(layer, [(inputs,)], call=plainly)["weight"]
    chances = torch.softmax(layer(inputs[:1]), -1)[0]
    # For one layer of logits the exact value is p (1 - p) x^2; answers are drawn, 64 of them.
    torch.testing.assert_close(found[:, 0], (chances * (1 - chances)).detach(), atol=0.15, rtol=0)
    assert found[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert not layer.weight.requires_grad


@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(6, 4), lambda: torch.nn.Conv2d(2, 4, 3, padding=1)])
def test_regmean_answers_more_like_each_model_on_its_own_inputs_than_the_average(
    make: Callable[[], torch.nn.Module],
) -> None:
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layers = [make(), make()]
    shape = (64, 6) if isinstance(layers[0], torch.nn.Linear) else (16, 2, 8, 8)
    # Each model sees other directions of the input.
    seen = [torch.randn(shape, generator=random) for _ in layers]
    seen[0][:, : shape[1] // 2] *= 0.1
    seen[1][:, shape[1] // 2 :] *= 0.1
    named = states(**{str(index): layer.state_dict() for index, layer in enumerate(layers)})
    known = [grams(layer, [(inputs,)], call=plainly) for layer, inputs in zip(layers, seen, strict=True)]
    knowledge = states(**{str(index): one for index, one in enumerate(known)})
    errors = {}
    for method in ("average", "regmean"):
        merged = make()
        merged.load_state_dict(
            merge_states(named, Recipe(method=method), knowledge=knowledge if method == "regmean" else None)
        )
        with torch.no_grad():
            wanted = [layer(inputs) for layer, inputs in zip(layers, seen, strict=True)]
            errors[method] = sum(
                float((merged(inputs) - answer).square().mean()) for inputs, answer in zip(seen, wanted, strict=True)
            )
    assert errors["regmean"] < 0.7 * errors["average"]


@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(1, 40))
def test_a_search_keeps_its_budget_and_never_ends_below_its_start(x: float, y: float, budget: int) -> None:
    asked: list[Mapping[str, float]] = []

    def score(values: Mapping[str, float]) -> float:
        asked.append(values)
        return -((values["x"] - x) ** 2) - (values["y"] - y) ** 2

    found = search({"x": 0.0, "y": 0.0}, {"x": (-1, 1), "y": (-1, 1)}, score, budget)
    assert len(asked) == found.evaluations <= budget
    assert found.score >= found.start
    assert found.score == max(map(score, list(asked)))
    assert all(-1 <= value <= 1 for values in asked for value in values.values())


def test_a_search_with_enough_budget_comes_close() -> None:
    found = search({"x": 0.0}, {"x": (0, 1)}, lambda values: -abs(values["x"] - 0.7), 30)
    assert found.values["x"] == pytest.approx(0.7, abs=0.03)


def test_a_mask_that_all_models_share_stays_as_it_is() -> None:
    mask = torch.tensor([[0.0, -math.inf], [0.0, torch.finfo(torch.float32).min]])
    pair = states(a={"mask": mask, "w": torch.ones(2)}, b={"mask": mask.clone(), "w": torch.zeros(2)})
    base = LoadedState({"mask": mask.clone(), "w": torch.zeros(2)})
    for method in ("average", "slerp", "task-arithmetic", "ties", "dare"):
        assert torch.equal(merge_states(pair, Recipe(method=method), base=base)["mask"], mask), method
    apart = torch.full((2,), torch.finfo(torch.float32).min)
    far = states(a={"w": apart}, b={"w": apart / 2})
    assert not merge_states(far, Recipe(method="slerp"))["w"].isnan().any()


def test_norm_statistics_go_as_far_as_slerp_goes() -> None:
    pair = states(
        a={"n.running_mean": torch.zeros(1), "n.running_var": torch.ones(1)},
        b={"n.running_mean": torch.ones(1), "n.running_var": torch.ones(1)},
    )
    merged = merge_states(pair, Recipe(method="slerp", position=0.25))
    assert merged["n.running_mean"].item() == pytest.approx(0.25)
    assert merged["n.running_var"].item() == pytest.approx(1 + 0.25 * 0.75)


def test_small_importances_count_as_large_ones_do() -> None:
    members = states(a=weight(1.0, 0.0), b=weight(0.0, 2.0))
    for size in (1.0, 1e-14):
        knowledge = states(a=weight(size, 0.0), b=weight(0.0, size))
        merged = merge_states(members, Recipe(method="fisher"), knowledge=knowledge)["w"]
        assert merged.tolist() == pytest.approx([1.0, 2.0], rel=1e-4)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mid = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
        self.mid.weight = self.inp.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mid(torch.tanh(self.inp(x)))
        return out


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_tied_weight_is_merged_alike_by_all_its_names(method: str) -> None:
    torch.manual_seed(0)
    models, known = {"a": Tied(), "b": Tied()}, {}
    for shift, (label, model) in enumerate(models.items()):
        batches = [(torch.randn(16, 3) + 3 * shift,)]
        look = fisher_information if method == "fisher" else grams
        known[label] = look(model, batches, call=plainly)
        assert set(known[label]) == {"inp.weight", "mid.weight"}
    pair = states(**{label: model.state_dict() for label, model in models.items()})
    merged = merge_states(pair, Recipe(method=method), knowledge=states(**known))
    assert torch.equal(merged["inp.weight"], merged["mid.weight"])
    plain = merge_states(pair, Recipe())
    assert not torch.allclose(merged["mid.weight"], plain["mid.weight"], atol=1e-3)
    # A file that holds the weight by one of its names is of the same architecture.
    groups = tied_names(models["a"])
    assert groups == [("inp.weight", "mid.weight")]
    short = TiedState(LoadedState({"inp.weight": models["b"].inp.weight}), groups)
    check_alike({"a": pair["a"], "b": short})
    assert torch.equal(short.get("mid.weight"), models["b"].inp.weight)


def test_importances_of_whole_numbers_are_refused() -> None:
    layer = torch.nn.Linear(2, 3)
    chosen = lambda module, batch: [module(*batch).argmax(-1)]  # noqa: E731
    with pytest.raises(ModelError, match="no output of the model has gradients"):
        fisher_information(layer, [(torch.ones(2, 2),)], call=chosen)
    with pytest.raises(ModelError, match="tells no classes apart"):
        fisher_information(torch.nn.Linear(2, 1), [(torch.ones(2, 2),)], call=plainly)


class ByName(torch.nn.Module):
    """Calls its layer by name, and has a table of whole numbers among its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
        self.table = torch.nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(input=x)[:, self.table]
        return out


def test_layers_called_by_name_and_parameters_of_whole_numbers_are_known_too() -> None:
    inputs = torch.randn(16, 3)
    assert set(fisher_information(ByName(), [(inputs,)], call=plainly)) == {"layer.weight", "layer.bias"}
    torch.testing.assert_close(grams(ByName(), [(inputs,)], call=plainly)["layer.weight"], inputs.T @ inputs / 16)


def test_weights_that_a_method_finds_out_nothing_about_are_named() -> None:
    layer = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1, groups=2), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    known = {"a": grams(layer, [(torch.randn(8, 4, 1, 1),)], call=plainly)}
    pair = states(a=layer.state_dict(), b=layer.state_dict())
    (note,) = averaged_notes("regmean", pair, states(**known), set(layer.state_dict()))
    assert note == "'regmean' finds out nothing about 1 of 2 weights, which are averaged: 0.weight"
    known["a"]["0.weight"] = known["a"]["2.weight"]
    assert averaged_notes("regmean", pair, states(**known), set(layer.state_dict())) == []
    assert averaged_notes("average", pair, {}, set(layer.state_dict())) == []


def test_importances_of_a_map_of_classes_are_those_of_its_pixels() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(1, 3, 1, bias=False)
    pixels = torch.randn(200, 1, 1, 1)
    found = fisher_information(layer, [(pixels,)], call=plainly)["weight"].flatten()
    flat = torch.nn.Linear(1, 3, bias=False)
    flat.weight.data = layer.weight.detach().reshape(3, 1)
    same = fisher_information(flat, [(pixels.reshape(200, 1),)], call=plainly)["weight"].flatten()
    torch.testing.assert_close(found, same)


def test_tables_and_masks_make_no_models_related() -> None:
    random = torch.Generator().manual_seed(0)
    table = 50 * torch.ones(30, 30)
    one, two = ({"w": torch.randn(30, 30, generator=random), "table": table, "ids": table.long()} for _ in range(2))
    pair = states(one=one, two=two)
    assert strangers(pair) == []
    assert [found[:2] for found in strangers(pair, {"w"})] == [("one", "two")]
    del one["table"], two["table"]
    assert [found[:2] for found in strangers(pair)] == [("one", "two")]
