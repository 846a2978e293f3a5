"""Weight pruning: which weights go, in which pattern, and that nothing else changes."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from exporter.compress import WeightPruning, compressed_bytes, factorise, prune_weights, sparse_weights
from exporter.errors import ModelError


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def sparse(**how: object) -> tuple[nn.Module, tuple[str, ...]]:
    module, change, notes = prune_weights(net(), lambda: [(images(),)], WeightPruning(**how))  # type: ignore[arg-type]
    assert change.weights == sparse_weights(module, (change,))
    return module.requires_grad_(False), notes


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.named_parameters() if tensor.dim() > 1}


@settings(max_examples=15, deadline=None)
@given(
    st.floats(0.1, 0.95),
    st.sampled_from(["magnitude", "activation", "taylor"]),
    st.sampled_from(["layer", "global"]),
    st.sampled_from(["free", "blocks"]),
)
def test_the_share_asked_for_becomes_zero_and_all_else_stays(
    sparsity: float, importance: str, spread: str, pattern: str
) -> None:
    module, _ = sparse(sparsity=sparsity, importance=importance, spread=spread, pattern=pattern)
    before = net().state_dict()
    pruned = {name for name, one in weights(module).items() if not (pattern == "blocks" and name == "0.weight")}
    zeros = sum(int((weights(module)[name] == 0).sum()) for name in pruned)
    total = sum(before[name].numel() for name in pruned)
    assert zeros / total == pytest.approx(sparsity, abs=0.03)
    for name, tensor in module.state_dict().items():
        kept = tensor != 0 if name in pruned else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(tensor[kept], before[name][kept])
    if spread == "layer":
        assert all(
            (weights(module)[name] == 0).float().mean() == pytest.approx(sparsity, abs=0.07) for name in pruned
        )


@pytest.mark.parametrize("spread", ["layer", "global"])
def test_equal_scores_go_up_to_the_share_and_no_further(spread: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(8, 8))
    pruned, _, _ = prune_weights(model, lambda: [], WeightPruning(sparsity=0.25, spread=spread))  # type: ignore[arg-type]
    assert sum(int((layer.weight == 0).sum()) for layer in pruned) == 24
    # Inputs that are never there score zero, all of them: a share of them goes.
    inputs = torch.zeros(4, 8)
    pruning = WeightPruning(sparsity=0.25, importance="activation")
    pruned, _, _ = prune_weights(model, lambda: [(inputs,)], pruning)
    assert int((pruned[0].weight == 0).sum()) == 16


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x) + 100))))


def test_a_weight_that_layers_have_in_common_is_pruned_once_by_the_inputs_of_all() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 8)
    with torch.no_grad():
        tied = Tied()
        tied.one.weight.fill_(1.0)
        tied.one.bias.copy_(torch.tensor([1000.0, *[0.0] * 7]))  # What `two` reads: loud where `one` reads nothing.
    pruning = WeightPruning(sparsity=0.5, importance="activation")
    pruned, change, notes = prune_weights(tied, lambda: [(inputs,)], pruning)
    assert change.weights == ("one.weight", "head.weight")
    assert notes[0].startswith("50.0% of 96 weights in 2 layers")
    assert "two has its weight in common with one: it counts once" in notes
    assert pruned.two.weight is pruned.one.weight
    assert bool((pruned.one.weight[:, 0] != 0).all())


@pytest.mark.parametrize("ignore", ["one", "two"])
def test_a_weight_that_an_ignored_layer_has_too_stays(ignore: str) -> None:
    pruned, change, notes = prune_weights(Tied(), lambda: [], WeightPruning(sparsity=0.5, ignore=(ignore,)))
    assert change.weights == ("head.weight",)
    assert bool((pruned.one.weight != 0).all())
    assert ignore == "one" or "one left alone: its weight is two.weight too, which is ignored as asked" in notes


@pytest.mark.parametrize("norm", ["weight_norm", "parametrizations.weight_norm", "spectral_norm"])
@pytest.mark.parametrize("importance", ["magnitude", "activation", "taylor"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils:FutureWarning")
def test_a_weight_that_is_made_anew_at_every_run_is_left_alone(norm: str, importance: str) -> None:
    """Zeros put into it would be gone at the next run, and nobody told."""
    wrap = operator.attrgetter(norm)(nn.utils)
    model = nn.Sequential(wrap(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 4)).requires_grad_(False).eval()
    model(torch.randn(2, 8))  # Old norms leave their first result with a history, which cannot be copied.
    inputs = torch.randn(16, 8)
    pruning = WeightPruning(sparsity=0.5, importance=importance)
    pruned, change, notes = prune_weights(model, lambda: [(inputs,)], pruning)
    assert change.weights == ("2.weight",)
    assert notes[0].startswith("50.0% of 64 weights in 1 layers")
    assert any(note.startswith("0 left alone: its weight is made anew") for note in notes)
    pruned(inputs)
    assert torch.allclose(pruned[0].weight, model[0].weight)
    with pytest.raises(ModelError, match="no layer becomes less work") as caught:
        factorise(model, rank=1, ignore=("2",))
    assert "0 left alone: its weight is made anew" in str(caught.value)


class ByName(nn.Module):
    """Calls its layers by name, and has a table of whole numbers among its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.table = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=torch.relu(self.first(input=x)))[:, self.table]


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_layers_called_by_name_and_parameters_of_whole_numbers_are_taken(importance: str) -> None:
    pruned, change, _ = prune_weights(
        ByName(), lambda: [(torch.randn(16, 8),)], WeightPruning(sparsity=0.5, importance=importance)
    )
    assert change.weights == ("first.weight", "head.weight")
    assert int((pruned.first.weight == 0).sum()) == 64


def test_words_that_are_none_of_the_known_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no pattern '4:8'.*2:4"):
        sparse(sparsity=0.5, pattern="4:8")
    with pytest.raises(ValueError, match="no importance 'activations'; did you mean 'activation'"):
        sparse(sparsity=0.5, importance="activations")


def test_a_layer_that_lost_every_weight_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.no_grad():
        model[1].weight.mul_(1e-6)
    _, _, notes = prune_weights(model, lambda: [], WeightPruning(sparsity=0.5, spread="global"))
    assert notes[1] == "1: every weight is zero now: what it gives does not depend on the input"


def test_weights_outside_linear_layers_and_convolutions_are_named() -> None:
    model = nn.ModuleDict({
        "attention": nn.MultiheadAttention(8, 2), "lstm": nn.LSTM(8, 4), "words": nn.Embedding(5, 8),
        "last": nn.Linear(8, 4), "norm": nn.LayerNorm(8),
    })  # fmt: skip
    _, change, notes = prune_weights(model, lambda: [], WeightPruning(sparsity=0.5))
    assert change.weights == ("attention.out_proj.weight", "last.weight")
    told = "left alone: of a"
    assert f"attention.in_proj_weight {told} MultiheadAttention, which is no linear layer or convolution" in notes
    assert any(f"lstm.weight_ih_l0 and 1 more {told} LSTM" in note for note in notes)
    assert any(f"words.weight {told} Embedding" in note for note in notes)
    assert not any("norm" in note for note in notes)


def test_two_of_every_four_inputs_are_zero_and_the_larger_stay() -> None:
    module, notes = sparse(pattern="2:4")
    assert "0 left alone: its inputs do not divide into runs of 4" in notes
    linear = module[8].weight.reshape(10, 4, 4)
    assert bool(((linear == 0).sum(-1) == 2).all())
    kept = net()[8].weight.reshape(10, 4, 4).abs().sort(-1).values[..., 2:].sum()
    assert linear.abs().sum() == pytest.approx(float(kept))
    conv = module[3].weight.movedim(1, -1).reshape(-1, 4)
    assert bool(((conv == 0).sum(-1) == 2).all())


def test_blocks_are_whole() -> None:
    module, _ = sparse(sparsity=0.6, pattern="blocks")
    zero = (module[8].weight.reshape(-1, 4) == 0).sum(-1)
    assert set(zero.tolist()) == {0, 4}


def test_a_threshold_acts_on_the_importance() -> None:
    module, _ = sparse(threshold=0.05)
    for name, before in weights(net()).items():
        assert torch.equal(weights(module)[name] == 0, before.abs() < 0.05)


def test_inputs_that_are_loud_keep_their_weights() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    inputs = torch.ones(4, 8)
    inputs[:, 0] = 1000
    pruned, _, _ = prune_weights(model, lambda: [(inputs,)], WeightPruning(importance="activation", sparsity=0.875))
    assert bool((pruned[0].weight[:, 0] != 0).all())
    assert bool((pruned[0].weight[:, 1:] == 0).all())


def test_a_sparse_model_can_be_copied_and_compresses_better() -> None:
    module, notes = sparse(sparsity=0.9)
    again = copy.deepcopy(module)
    assert torch.equal(again(images()), module(images()))
    dense, small = compressed_bytes(net()), compressed_bytes(module)
    assert dense is not None
    assert small is not None
    assert small < 0.4 * dense
    assert notes[0].startswith("90.")


def test_what_would_do_nothing_or_leave_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="no weight would become zero"):
        sparse(threshold=1e-9)
    with pytest.raises(ModelError, match="every weight would become zero"):
        sparse(threshold=100.0)
    with pytest.raises(ModelError, match="no module '33'"):
        sparse(sparsity=0.5, ignore=("33",))
    module, notes = sparse(sparsity=0.5, ignore=("3",))
    assert bool((module[3].weight != 0).all())
    assert "3 left alone: ignored as asked" in notes
