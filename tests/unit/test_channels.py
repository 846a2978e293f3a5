"""Channel pruning: what is kept, what is refused, and what survives without a pickle."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from exporter.artifacts import canonical
from exporter.compress import (
    ChannelPruning,
    PrunedChannels,
    WeightPruning,
    apply_structure,
    count_macs,
    measure_cost,
    prune_channels,
    prune_weights,
    read_structure,
)
from exporter.errors import ModelError

functional = nn.functional


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), Block(32, 32), Block(32, 64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


class Attention(nn.Module):
    """Self-attention in the forms that models are written in."""

    def __init__(self, form: str, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.form, self.num_heads, self.size = form, heads, width // heads
        if form == "separate":
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, _ = x.shape
        if self.form == "separate":
            parts = [layer(x).view(samples, tokens, self.num_heads, -1) for layer in (self.q, self.k, self.v)]
        elif self.form == "unbind":
            shape = samples, tokens, 3, self.num_heads, self.size
            parts = [part.transpose(1, 2) for part in self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)]
        elif self.form == "index":
            shape = samples, tokens, 3, self.num_heads, self.size
            stacked = self.qkv(x).reshape(shape).permute(2, 0, 1, 3, 4)
            parts = [stacked[0], stacked[1], stacked[2]]
        else:
            parts = [part.view(samples, tokens, self.num_heads, -1) for part in self.qkv(x).chunk(3, -1)]
        q, k, v = (part.transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(samples, tokens, -1))


class Encoder(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.embed, self.norm, self.attention = nn.Linear(8, 32), nn.LayerNorm(32), Attention(form)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)
        self.position = nn.Parameter(torch.randn(1, 5, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        x = x + self.attention(self.norm(x))
        return self.head((x + self.down(torch.relu(self.up(x)))).mean(1))


class Mixed(nn.Module):
    """Parts that torch-pruning gets wrong or does not see."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.middle = nn.Conv2d(16 if kind == "chunk" else 32, 16 if kind == "chunk" else 32, 1)
        self.kernel = nn.Parameter(torch.randn(32, 32, 3, 3)) if kind == "bare" else None
        self.shuffled = nn.Conv2d(8, 32, 1) if kind == "shuffle" else None
        self.recurrent = nn.LSTM(32, 32, batch_first=True) if kind == "lstm" else None
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "chunk":
            left, right = x.chunk(2, 1)
            x = torch.cat([right, self.middle(left)], 1)
        elif self.kernel is not None:
            x = functional.conv2d(x, self.kernel, padding=1)
        elif self.shuffled is not None:
            x = self.shuffled(functional.pixel_shuffle(x, 2))
        elif self.recurrent is not None:
            return self.head(self.recurrent(x.flatten(2).transpose(1, 2))[0][:, -1])
        return self.head(self.last(x).mean((2, 3)))


def images(count: int = 4, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def tokens(count: int = 4) -> Tensor:
    return torch.randn(count, 5, 8, generator=torch.Generator().manual_seed(0))


def pruned(model: nn.Module, inputs: Tensor, target: float, **how: object) -> PrunedChannels:
    dense = count_macs(model, (inputs,))
    return prune_channels(
        model,
        lambda: [(inputs,)],
        ChannelPruning(**how),  # type: ignore[arg-type]
        target=target,
        cost=lambda one: count_macs(one, (inputs,)) / dense,
        what="macs",
    )


@settings(max_examples=6, deadline=None)
@given(st.floats(0.08, 0.95), st.sampled_from([4, 8, 16]), st.sampled_from(["layer", "global"]))
def test_the_widest_model_within_the_target_has_multiples_everywhere_and_its_outputs(
    target: float, multiple: int, spread: str
) -> None:
    model = resnet()
    if multiple == 16 and target < 0.3:
        target = 0.3
    result = pruned(model, images(), target, multiple=multiple, spread=spread)
    assert count_macs(result.module, (images(),)) <= target * count_macs(model, (images(),))
    assert all(after % multiple == 0 and after < before for before, after in result.widths.values())
    assert result.module(images()).shape == (4, 10)


@settings(max_examples=6, deadline=None)
@given(st.floats(0.15, 0.95), st.sampled_from([8, 16]))
def test_every_width_is_the_nearest_multiple_of_one_common_share(target: float, multiple: int) -> None:
    model = resnet()
    result = pruned(model, images(), max(target, 0.3 if multiple == 16 else 0.0), multiple=multiple)
    wide = {"0": 32, "3.shortcut": 32, "3.conv1": 32, "4.shortcut": 64, "4.conv1": 64}
    assert set(result.widths) <= set(wide)
    kept = {name: result.widths.get(name, (width, width))[1] for name, width in wide.items()}
    # Nearest: the share of a layer lies within half a multiple of what it kept, for all layers at once.
    lowest = max((kept[name] - multiple / 2) / width for name, width in wide.items())
    highest = min(1.0 if kept[name] == width else (kept[name] + multiple / 2) / width for name, width in wide.items())
    assert lowest <= highest


def test_the_next_wider_model_is_told_so_that_the_distance_from_the_target_is_understood() -> None:
    result = pruned(resnet(), images(), 0.5)
    assert result.wider is not None
    assert result.cost <= 0.5 < result.wider
    assert pruned(resnet(), images(), result.wider).cost == result.wider


def test_a_head_keeps_its_classes_although_nobody_named_it() -> None:
    result = pruned(resnet(), images(), 0.3)
    assert result.module[-1].out_features == 10
    assert "7 left alone: its channels are an output of the model" in result.left


def test_the_dense_model_is_not_touched_and_the_pruned_one_survives_as_json() -> None:
    model = resnet()
    before = copy.deepcopy(model.state_dict())
    result = pruned(model, images(), 0.4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = apply_structure(resnet(), read_structure(canonical((result.change,))))
    again.load_state_dict(result.module.state_dict())
    assert torch.equal(again.eval()(images()), result.module(images()))
    with pytest.raises(ModelError, match="factory does not make"):
        apply_structure(nn.Sequential(nn.Conv2d(3, 8, 3)), (result.change,))


@pytest.mark.parametrize("importance", ["l2", "fpgm", "bn-scale", "taylor", "random"])
def test_the_least_important_channels_go(importance: str) -> None:
    model = resnet()
    weak = [1, 4, 7, 9, 12, 20, 25, 31]
    for layer in (model[3].conv1, model[3].norm1):
        with torch.no_grad():
            layer.weight[weak] *= 0.01
    others = ("0", "3.shortcut", "4", "7")
    result = pruned(model, images(), 0.97, importance=importance, ignore=others)
    assert result.widths == {"3.conv1": (32, 24)}
    kept = result.module[3].conv1.weight
    lost = [i for i in range(32) if not any(torch.equal(model[3].conv1.weight[i], one) for one in kept)]
    assert (lost == weak) == (importance != "random")


def test_lamp_and_a_global_spread_take_more_of_some_layers_than_of_others() -> None:
    model = resnet()
    with torch.no_grad():
        model[4].conv1.weight[8:] *= 0.01
        model[4].norm1.weight[8:] *= 0.01
    result = pruned(model, images(), 0.75, importance="lamp", spread="global")
    evenly = pruned(model, images(), 0.75)
    assert set(result.widths) == {"4.conv1"}
    assert len(evenly.widths) > 1
    assert result.widths["4.conv1"][1] < evenly.widths["4.conv1"][1]


@pytest.mark.parametrize("form", ["separate", "unbind"])
def test_attention_loses_whole_heads_and_their_number_is_written_back(form: str) -> None:
    torch.manual_seed(0)
    result = pruned(Encoder(form).eval(), tokens(), 0.5)
    attention = result.module.attention
    assert attention.num_heads < 4
    assert attention.out.in_features == 8 * attention.num_heads
    assert result.change.attributes["attention"]["num_heads"] == attention.num_heads
    assert result.module(tokens()).shape == (4, 10)


class Named(nn.Module):
    """Attention whose heads are counted by attributes of any name, one with a width that follows from them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind != "size":
            self.parallel = 4
        if kind == "derived":
            self.flat = 32
        self.per_head, self.depth = 8, 2
        self.q, self.k, self.v = (nn.Linear(16, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, _ = x.shape
        shape = (samples, tokens, -1 if self.kind == "size" else self.parallel, self.per_head)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return mixed.reshape(samples, tokens, self.flat if self.kind == "derived" else -1)


class Beside(nn.Module):
    """The output projection stands beside the attention, as in BERT."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.mixer, self.out = nn.Linear(8, 16), Named(kind), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.out(self.mixer(x))).mean(1))


@pytest.mark.parametrize("kind", ["count", "derived", "size"])
def test_heads_are_found_whatever_counts_them(kind: str) -> None:
    torch.manual_seed(0)
    model = Beside(kind).eval()
    result = pruned(model, tokens(), 0.6, ignore=("embed",))
    mixer = result.module.mixer
    left = mixer.q.out_features // 8
    assert left < 4
    assert mixer.q.out_features == mixer.v.out_features == result.module.out.in_features == 8 * left
    assert result.change.attributes.get("mixer", {}) == {
        "count": {"parallel": left}, "derived": {"parallel": left, "flat": 8 * left}, "size": {},
    }[kind]  # fmt: skip
    # Whole heads went: each that is left is one of the model's.
    rows = model.mixer.v.weight.view(4, 8, 16)
    for head in mixer.v.weight.view(left, 8, 16):
        assert any(torch.equal(head, row) for row in rows)


def test_pytorchs_own_encoder_is_narrowed_with_its_heads_in_step() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(8, 32), nn.TransformerEncoder(layer, 2), nn.Linear(32, 3)).eval()
    total = sum(tensor.numel() for tensor in model.parameters())
    result = prune_channels(
        model,
        lambda: [(tokens(),)],
        ChannelPruning(),
        target=0.5,
        cost=lambda one: sum(tensor.numel() for tensor in one.parameters()) / total,
        what="parameters",
    )
    assert result.cost <= 0.5
    assert result.module(tokens()).shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("bare", "kernel left alone: a bare parameter of a functional conv2d"),
        ("chunk", "middle, first left alone: "),
        ("shuffle", "first left alone: "),
    ],
)
def test_what_cannot_be_followed_is_left_alone_and_named(kind: str, said: str) -> None:
    torch.manual_seed(0)
    model = Mixed(kind).eval()
    result = pruned(model, images(), 0.99, multiple=4)
    assert any(said in line for line in result.left)
    assert result.module.first.out_channels == 32
    assert result.module(images()).shape == (4, 10)


class Decides(nn.Module):
    """Gives yes or no and class numbers, with the logits that they are made from or without."""

    def __init__(self, logits: bool) -> None:
        super().__init__()
        self.first, self.head, self.logits = nn.Conv2d(3, 32, 3), nn.Linear(32, 10), logits

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        logits = self.head(torch.relu(self.first(x)).mean((2, 3)))
        return (logits > 0, logits.argmax(1), *([logits] if self.logits else []))


def test_outputs_that_are_no_floats_are_compared_too_and_have_no_gradients() -> None:
    torch.manual_seed(0)
    assert pruned(Decides(True).eval(), images(), 0.6).widths == {"first": (32, 16)}
    assert pruned(Decides(True).eval(), images(), 0.6, importance="taylor").widths == {"first": (32, 16)}
    with pytest.raises(ModelError, match="no channels can be pruned") as caught:
        pruned(Decides(False).eval(), images(), 0.6)
    assert "outputs are whole numbers" in str(caught.value.why)
    with pytest.raises(ModelError, match="no output of the model has a gradient"):
        prune_weights(Decides(False).eval(), lambda: [(images(),)], WeightPruning(importance="taylor", sparsity=0.5))


def test_what_an_lstm_reads_is_left_alone_because_torch_pruning_would_corrupt_it() -> None:
    with pytest.raises(ModelError, match="channels of LSTM cannot be pruned") as caught:
        pruned(Mixed("lstm").eval(), images(), 0.99)
    assert "first left alone: the model mixes its channels" in str(caught.value)


@pytest.mark.parametrize("form", ["chunk", "index"])
def test_attention_that_is_taken_apart_otherwise_is_left_alone(form: str) -> None:
    torch.manual_seed(0)
    result = pruned(Encoder(form).eval(), tokens(), 0.9)
    assert result.module.attention.num_heads == 4
    assert any(line.startswith("attention.qkv left alone") for line in result.left)


def test_modules_are_ignored_by_name_with_all_that_is_in_them() -> None:
    result = pruned(resnet(), images(), 0.8, ignore=("3",))
    assert (result.module[3].conv1.out_channels, result.module[3].shortcut.out_channels) == (32, 32)
    assert result.module[0].out_channels < 32
    assert "3.conv1, 3.norm1 left alone: ignored as asked" in result.left
    with pytest.raises(ModelError, match=r"no module '3.conv9'; did you mean '3.conv2'\?"):
        pruned(resnet(), images(), 0.8, ignore=("3.conv9",))


def test_a_target_out_of_reach_is_refused_with_the_best_reachable() -> None:
    with pytest.raises(ModelError, match=r"macs of 0.01x cannot be reached .* best reachable is 0\.\d+x"):
        pruned(resnet(), images(), 0.01, multiple=16)
    with pytest.raises(ModelError, match="no channels can be pruned"):
        pruned(resnet(), images(), 0.5, multiple=64)


class Language(nn.Module):
    """Words in and out by one table."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.out = nn.Linear(32, 50, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.out(x + self.down(torch.relu(self.up(self.norm(x)))))


def test_weights_in_common_stay_in_common() -> None:
    torch.manual_seed(0)
    model, ids = Language().eval(), torch.randint(0, 50, (4, 6))
    result = pruned(model, ids, 0.55)
    assert result.module.out.weight is result.module.words.weight
    assert result.module.out.weight.shape == (50, result.widths["down"][1]) < (50, 32)
    again = apply_structure(copy.deepcopy(model), (result.change,))
    assert again.out.weight is again.words.weight
    assert measure_cost(again, (ids,)).bytes == 4 * sum(one.numel() for one in again.parameters())
    assert not any(line.startswith("words") for line in result.left)


class Turned(nn.Module):
    """Channels that a norm mixes, read in another order than they are made in, where asked."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.first, self.norm, self.middle, self.head = (
            nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 4)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.head(torch.relu(self.middle(x.flip(-1) if self.turned else x)))


def test_channels_that_a_norm_mixes_are_followed_rightly_or_left_alone() -> None:
    torch.manual_seed(0)
    assert "first" in pruned(Turned(turned=False).eval(), tokens(), 0.5).widths
    result = pruned(Turned(turned=True).eval(), tokens(), 0.9)
    assert list(result.widths) == ["middle"]
    assert any(line.startswith("first, norm left alone: the model mixes its channels") for line in result.left)


class Bilinear(nn.Module):
    """Two branches multiplied and flattened: torch-pruning goes round in circles."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 32, 3), nn.Conv2d(3, 32, 3)
        self.head, self.last = nn.Linear(1024, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.einsum("bcn,bdn->bcd", self.one(x).flatten(2), self.other(x).flatten(2))
        return self.last(torch.relu(self.head(pairs.flatten(1))))


def test_branches_that_are_multiplied_are_left_alone_instead_of_followed_for_ever() -> None:
    torch.manual_seed(0)
    result = pruned(Bilinear().eval(), images(), 0.9)
    assert list(result.widths) == ["head"]
    assert any("one left alone: its channels cannot be followed: they multiply" in line for line in result.left)


def test_layers_whose_weights_are_made_anew_are_left_alone() -> None:
    wrapped = nn.utils.parametrizations.weight_norm(nn.Linear(8, 32))
    result = pruned(nn.Sequential(wrapped, nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), tokens(), 0.9)
    assert list(result.widths) == ["2"]
    assert any(line.startswith("0 left alone: its weight is made anew") for line in result.left)


def test_the_same_seed_takes_the_same_random_channels() -> None:
    first, second = (pruned(resnet(), images(), 0.5, importance="random", seed=3).module for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_grouped_depthwise_and_transposed_layers_stay_in_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, groups=4, padding=1), nn.Conv2d(64, 64, 3, groups=64),
        nn.ConvTranspose2d(64, 32, 2, 2), nn.GroupNorm(4, 32), nn.Flatten(),
        nn.Linear(32 * 144, 24), nn.Linear(24, 3),
    ).eval()  # fmt: skip
    result = pruned(model, images(), 0.4)
    assert result.module(images()).shape == (4, 3)
    assert result.module[2].groups == result.module[2].out_channels < 64
