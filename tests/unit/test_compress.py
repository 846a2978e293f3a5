"""Compression of torch modules: what a step must keep, and what it must refuse."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter.artifacts import TensorSpec, canonical
from exporter.compress import (
    ChannelPruning,
    Ordered,
    Taught,
    Teaching,
    apply_structure,
    check_sharing,
    count_macs,
    distil,
    factorise,
    measure_cost,
    order_by_name,
    prune_channels,
    read_structure,
    reestimate_norms,
    share_of_macs,
    tie_members,
)
from exporter.compress.lessons import checked_labels, goals_of, hard_loss, soft_loss
from exporter.errors import DataError, ModelError
from exporter.pipeline.models import at_once


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 1, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    ).eval()  # fmt: skip


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def test_norms_get_the_statistics_of_the_inputs_and_the_original_keeps_its_own() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    repaired = reestimate_norms(model, [(images(32, seed),) for seed in range(4)])
    seen = model[0](torch.cat([images(32, seed) for seed in range(4)]))
    torch.testing.assert_close(repaired[1].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(repaired[1].running_var, seen.var((0, 2, 3)), rtol=1e-2, atol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in repaired.modules())
    assert repaired[1].momentum == model[1].momentum


class ByName(nn.Module):
    """Calls its layers by name, and has a table of whole numbers among its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)
        self.table = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.norm(input=x).mean((2, 3)))[:, self.table]


def test_layers_called_by_name_and_parameters_of_whole_numbers_are_taken() -> None:
    model = ByName().eval()
    repaired = reestimate_norms(model, [(images(32),)])
    torch.testing.assert_close(repaired.norm.running_mean, images(32).mean((0, 2, 3)))
    taught = distil(repaired, [model], (images(32),), Teaching(epochs=2))
    assert taught.student.table.dtype == torch.int64


def test_single_samples_are_refused_because_they_have_no_variance() -> None:
    model = net()
    with pytest.raises(DataError, match="cannot be estimated on single samples"):
        reestimate_norms(model, [(images(1),), (images(1),)])
    # A last batch of one is left out, and a model without norms needs none.
    assert not torch.equal(reestimate_norms(model, [(images(4),), (images(1),)])[1].running_var, model[1].running_var)
    reestimate_norms(nn.Flatten(), [(images(1),)])


def test_norms_of_data_sorted_by_class_have_the_statistics_of_mixed_data() -> None:
    """Classes apart by more than they are wide: nearly all variance is between batches."""
    given = torch.cat([images(32, seed) + 20 * seed for seed in range(4)])
    model = net()
    reestimated = reestimate_norms(model, [(part,) for part in given.split(32)])
    features = model[0](given).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(reestimated[1].running_mean, features.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reestimated[1].running_var, features.var(1), rtol=1e-4, atol=1e-4)
    # A second norm is fed with what the first gives, normalised by batches: they are mixed.
    deep = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    deep = reestimate_norms(deep, [(part,) for part in given.split(32)])
    truly = torch.relu(deep[0](given)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(deep[2].running_var, truly.var(1), rtol=0.02, atol=0.02)
    # Batches of different shapes cannot be mixed, and a norm that never runs keeps what it has.
    aside = Aside()
    aside.idle.running_mean.fill_(7)
    aside = reestimate_norms(aside, [(images(4),), (images(4)[..., :5],)])
    assert float(aside.idle.running_mean[0]) == 7
    assert float(aside.norm.running_mean[0]) not in (0, 7)


class Aside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.idle = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def test_pairs_of_nearly_full_energy_compute_the_same() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    with torch.no_grad():
        wide[0].weight.copy_(torch.randn(64, 4) @ torch.randn(4, 64))
    pairs, change, left = factorise(wide, energy=0.999999)
    assert change.ranks == {"0": 4}
    assert any("2 left alone: rank" in line for line in left)
    inputs = torch.randn(5, 64)
    torch.testing.assert_close(pairs(inputs), wide(inputs), rtol=1e-3, atol=1e-3)
    assert measure_cost(pairs, (inputs,)).macs == 64 * 4 * 2 + 64 * 8


def test_a_convolution_of_one_by_one_keeps_its_stride_and_bias() -> None:
    model = net()
    pairs, change, left = factorise(model, rank=2, ignore=["6"])
    assert change.ranks == {"3": 2}
    assert "0 left alone: a 3x3 convolution" in left
    assert "6 left alone: ignored as asked" in left
    assert pairs(images(2)).shape == model(images(2)).shape
    assert torch.equal(pairs[3][1].bias, model[3].bias)


def test_a_step_that_would_change_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="no layer becomes less work"):
        factorise(nn.Sequential(nn.Linear(4, 4)), rank=4)


def test_a_name_that_is_no_module_is_an_error_with_the_closest() -> None:
    with pytest.raises(ModelError, match=r"no module 'heat'; did you mean 'head'\?"):
        factorise(nn.ModuleDict({"head": nn.Linear(9, 9)}), rank=1, ignore=["heat"])


class Reads(nn.Module):
    """Calls one of its layers and reads the weight of another; a third has its weight in common."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.tied, self.words = (
            nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 64, bias=False), nn.Embedding(64, 32)
        )  # fmt: skip
        self.tied.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(functional.linear(self.called(x), self.read.weight))


def test_layers_that_are_read_instead_of_called_are_left_alone_with_the_reason() -> None:
    torch.manual_seed(0)
    model, inputs = Reads(), (torch.randn(3, 32),)
    pairs, change, left = factorise(model, rank=4, batch=inputs)
    assert change.ranks == {"called": 4}
    assert pairs(*inputs).shape == (3, 64)
    assert any("read left alone: the model does not run with a pair" in line and "'weight'" in line for line in left)
    assert "tied left alone: its weight is that of words.weight too" in left
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoder(layer, 1)).eval()
    pairs, change, left = factorise(encoder, rank=4, batch=(torch.randn(2, 5, 32),))
    assert change.ranks == {"0": 4}
    assert pairs(torch.randn(2, 5, 32)).shape == (2, 5, 32)
    assert any("1.layers.0.linear1 left alone: the model does not run" in line for line in left)


def test_an_architecture_survives_as_json() -> None:
    model = net()
    pairs, change, _ = factorise(model, rank=2)
    again = apply_structure(net(), read_structure(canonical((change,))))
    again.load_state_dict(pairs.state_dict())
    assert torch.equal(again(images(3)), pairs(images(3)))
    with pytest.raises(ModelError, match="factory does not make"):
        apply_structure(nn.Sequential(nn.ReLU()), (change,))


def test_costs_are_those_of_the_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(4 * 64, 10, bias=False))
    with torch.no_grad():
        model[2].weight[:, :128] = 0
    cost = measure_cost(model, (images(5),))
    assert cost.macs == 64 * 4 * 3 * 9 + 4 * 64 * 10
    assert cost.parameters == 4 * 27 + 2560
    assert cost.bytes == 4 * cost.parameters
    assert cost.zeros == pytest.approx(1280 / cost.parameters)
    assert cost.compressed_bytes is not None
    assert cost.compressed_bytes < 0.7 * cost.bytes


class Attends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (4, 8)).transpose(1, 2)
        return functional.scaled_dot_product_attention(heads, heads, heads)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Vectors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.weight @ one[0] for one in x])


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(32, 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x)


PRODUCTS, PROJECTIONS = 2 * 10 * 10 * 32, 4 * 10 * 32 * 32


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        (Attends(), PRODUCTS),
        (Multihead(), PRODUCTS + PROJECTIONS),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2),
            2 * (PRODUCTS + PROJECTIONS + 2 * 10 * 32 * 64),
        ),
        (Recurrent(), 10 * 4 * 16 * (32 + 16)),
        (Vectors(), 8 * 32),
        (Pairs(), 10 * 4 * 32 * 32),
    ],
)
def test_what_torch_computes_in_one_piece_is_counted_by_its_products(model: nn.Module, macs: int) -> None:
    tokens = torch.randn(3, 10, 32)
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    assert count_macs(model.eval(), (tokens,)) == macs
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch._C._get_mkldnn_enabled() == onednn


def test_a_share_of_nothing_counted_is_refused() -> None:
    with pytest.raises(ModelError, match="no multiply-accumulate can be counted"):
        share_of_macs(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval(), (images(2),))


def member(seed: int, trunk: int) -> nn.Module:
    torch.manual_seed(trunk)
    body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
    torch.manual_seed(seed)
    layers = {"body": body, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "norm": nn.LayerNorm(16)}
    return nn.Sequential(OrderedDict(layers | {"head": nn.Linear(16, 4)}))


class Stack(nn.Module):
    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(one(x) for one in self.members)


def test_what_members_have_alike_is_pruned_and_taught_as_one() -> None:
    whole = Stack(member(1, 0), member(2, 0), member(3, 9)).eval()
    expected = [one.clone() for one in whole(images(8))]
    # The body and the norm beside it of the first two; the third has an untrained norm, but nothing else, in common.
    tied = copy.deepcopy(whole)
    assert tie_members(tied.members) == 2
    assert tied.members[1].body is tied.members[0].body
    assert tied.members[2].norm is not tied.members[0].norm
    assert all(torch.equal(one, other) for one, other in zip(tied(images(8)), expected, strict=True))
    narrow = prune_channels(
        tied,
        lambda: [(images(8),)],
        ChannelPruning(),
        target=0.6,
        cost=share_of_macs(tied, (images(8),)),
        what="macs",
    )
    student = distil(narrow.module, [whole], (images(40),), Teaching(epochs=2)).student
    # The members are made apart again, and are alike as before.
    again = apply_structure(copy.deepcopy(whole), (narrow.change,))
    again.load_state_dict(student.state_dict())
    assert again.members[0].body is not again.members[1].body
    assert again.members[0].body[0].out_channels == again.members[1].body[0].out_channels < 16
    assert torch.equal(again.members[0].body[3].weight, again.members[1].body[3].weight)
    assert not torch.equal(again.members[0].body[3].weight, narrow.module.members[0].body[3].weight)
    assert all(torch.equal(one, other) for one, other in zip(again(images(8)), student(images(8)), strict=True))


def test_members_that_would_lose_what_they_share_are_refused_and_those_that_lose_little_are_told() -> None:
    trunk = nn.Linear(32, 32)
    stack = nn.ModuleList(nn.Sequential(copy.deepcopy(trunk), nn.Linear(32, 2)) for _ in range(3))
    alike, _, _ = factorise(stack, rank=4, ignore=["0.1", "1.1", "2.1"])
    assert check_sharing(stack, alike, "here") == ()
    apart = copy.deepcopy(stack)
    for index, member in enumerate(apart):
        torch.nn.init.normal_(member[0].weight, generator=torch.Generator().manual_seed(index))
    with pytest.raises(ModelError, match="changed in each of them apart"):
        check_sharing(stack, apart, "here")
    assert check_sharing(apart, copy.deepcopy(stack), "here") == ()
    narrow = nn.ModuleList(nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 2)) for _ in range(3))
    (line,) = check_sharing(stack, narrow, "here")
    assert "of 3,366 values a file kept 1,254, of 846 it keeps 846 now" in line


def classifier(seed: int, width: int = 24, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes)).eval()


def samples(count: int = 160) -> tuple[Tensor, ...]:
    return (torch.randn(count, 8, generator=torch.Generator().manual_seed(5)),)


def test_a_student_learns_its_teachers_answers_without_labels_and_neither_is_changed() -> None:
    teacher, student = classifier(0), classifier(1)
    before = [copy.deepcopy(model.state_dict()) for model in (teacher, student)]
    inputs = samples()
    taught = distil(student, [teacher], inputs, Teaching(epochs=30, patience=30, rate=1e-2))
    assert taught.best < taught.before / 3
    fresh = torch.randn(200, 8, generator=torch.Generator().manual_seed(6))
    agreement = (taught.student(fresh).argmax(1) == teacher(fresh).argmax(1)).float().mean()
    assert agreement > (student(fresh).argmax(1) == teacher(fresh).argmax(1)).float().mean() + 0.2
    assert not taught.student.training
    for model, state in zip((teacher, student), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_same_seed_teaches_the_same_student() -> None:
    results = [distil(classifier(1), [classifier(0)], samples(), Teaching(epochs=3)) for _ in range(2)]
    states = [result.student.state_dict() for result in results]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_teaching_stops_when_nothing_gets_better() -> None:
    teacher = classifier(0)
    taught = distil(teacher, [teacher], samples(), Teaching(epochs=50, patience=2, rate=1e-6, loss="mse"))
    assert taught.stopped == "no better for 2 epochs"
    assert (taught.epoch, taught.best) == (0, 0.0)


def test_the_student_that_is_kept_is_told_by_its_epoch() -> None:
    taught = Taught(student=nn.ReLU(), before=8.5, best=0.25, epoch=53, stopped="all epochs done")
    assert taught.told(60) == "held-out loss 8.5 -> 0.25, best after epoch 53 of 60; all epochs done"
    taught = Taught(student=nn.ReLU(), before=0.5, best=0.5, epoch=0, stopped="no better for 10 epochs")
    assert taught.told(60) == "held-out loss 0.5 -> 0.5, no epoch made it better; no better for 10 epochs"


def test_classes_of_maps_are_compared_along_their_own_axis() -> None:
    torch.manual_seed(3)
    maps = torch.randn(4, 3, 5, 6)
    (goal,) = goals_of([[maps]], "kl", 2.0, "mean")
    assert torch.allclose(goal.sum(1), torch.ones(4, 5, 6))
    (surest,) = goals_of([[maps], [torch.zeros_like(maps)]], "kl", 2.0, "confidence")
    assert torch.allclose(surest, goal, atol=1e-6)
    shifted = maps + torch.randn(4, 1, 5, 6)  # The same for all classes: as likely as before.
    assert float(soft_loss([shifted], [goal], "kl", 2.0)) == pytest.approx(0, abs=1e-5)
    classes = maps.argmax(1)
    assert float(hard_loss(100 * maps, checked_labels(classes, goal, "kl"), "kl")) < 0.1
    with pytest.raises(DataError, match="do not fit"):
        checked_labels(classes[:, 0], goal, "kl")


class Gives(nn.Module):
    """Answers of some kind, made from those of a classifier."""

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self.inner, self.kinds = classifier(0), kinds

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        logits = self.inner(x)
        made = {
            "value": logits[:, :1], "flat": logits[:, 0], "classes": logits, "ids": logits.argmax(1),
            "yes": logits > 0,
        }  # fmt: skip
        return tuple(made[kind] for kind in self.kinds)


def test_what_a_loss_cannot_teach_is_refused_and_whole_numbers_beside_logits_are_left_out() -> None:
    for kind in ("value", "flat"):
        with pytest.raises(ModelError, match="output 2 of 2 has no classes"):
            distil(Gives("classes", kind), [Gives("classes", kind)], samples(), Teaching(epochs=1))
        distil(Gives(kind), [Gives(kind)], samples(), Teaching(epochs=1, loss="mse"))
    for loss in ("kl", "mse"):
        with pytest.raises(ModelError, match="whole numbers, which cannot be taught"):
            distil(Gives("ids", "yes"), [Gives("ids", "yes")], samples(), Teaching(epochs=1, loss=loss))
    student = Gives("ids", "classes")
    student.inner = classifier(1)
    taught = distil(student, [Gives("ids", "classes")], samples(), Teaching(epochs=10, rate=1e-2))
    assert taught.best < taught.before


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int16, torch.bool])
def test_labels_of_every_whole_type_are_taken(dtype: torch.dtype) -> None:
    given = torch.tensor([0, 1, 1, 0]).to(dtype)
    assert checked_labels(given, torch.randn(4, 3), "kl").tolist() == [0, 1, 1, 0]


def test_outputs_are_matched_by_name_where_both_have_the_same() -> None:
    order = order_by_name(["b", "c", "a"], ["a", "b", "c"])
    given = (torch.tensor(1), torch.tensor(2), torch.tensor(0))
    assert [int(one) for one in Ordered(Pass(), order)(*given)] == [0, 1, 2]
    assert order_by_name(["a", "b"], ["a", "b"]) == ()
    assert order_by_name(["b", "x"], ["a", "b"]) == ()


class Pass(nn.Module):
    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return given


class Breaks(nn.Module):
    """Gives NaN from its third training step on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier(1)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        answers: Tensor = self.inner(x)
        return answers * float("nan") if self.training and self.steps > 6 else answers


def test_a_loss_that_becomes_nan_stops_and_keeps_the_best_student() -> None:
    taught = distil(Breaks(), [classifier(0)], samples(), Teaching(epochs=9, rate=1e-2))
    assert "became nan in epoch 2" in taught.stopped
    assert all(torch.isfinite(tensor).all() for tensor in taught.student.state_dict().values())
    assert taught.best <= taught.before


def test_a_student_with_other_outputs_is_refused_with_both_shapes() -> None:
    with pytest.raises(ModelError, match="do not match") as caught:
        distil(classifier(1, classes=4), [classifier(0)], samples(), Teaching())
    assert caught.value.why == "for one sample the student gives [[4]], the teachers [[3]]"
    with pytest.raises(ModelError, match="teachers' outputs differ"):
        distil(classifier(1), [classifier(0), classifier(0, classes=4)], samples(), Teaching())


def test_a_teacher_that_answers_nan_is_refused_by_its_number() -> None:
    broken = classifier(2)
    with torch.no_grad():
        broken[-1].bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="teacher 2 of 2 answers NaN or infinity"):
        distil(classifier(1), [classifier(0), broken], samples(), Teaching())
    with pytest.raises(ModelError, match="the student's loss is not finite before"):
        distil(broken, [classifier(0)], samples(), Teaching())


def test_the_surest_teacher_counts_for_each_sample() -> None:
    class Knows(nn.Module):
        def __init__(self, side: int) -> None:
            super().__init__()
            self.side = side

        def forward(self, x: Tensor) -> Tensor:
            own = (x[:, 0] > 0) == bool(self.side)
            return torch.where(own[:, None], 9.0 * nn.functional.one_hot(torch.tensor(self.side), 2), 0.1)

    inputs = samples(400)
    teaching = Teaching(epochs=40, patience=40, rate=1e-2, fuse="confidence", temperature=1.0)
    taught = distil(classifier(1, classes=2), [Knows(0), Knows(1)], inputs, teaching)
    assert (taught.student(inputs[0]).argmax(1) == (inputs[0][:, 0] > 0)).float().mean() > 0.95


def labels() -> Tensor:
    return classifier(7)(samples()[0]).argmax(1)


def test_labels_are_learned_beside_the_teacher() -> None:
    teaching = Teaching(epochs=40, patience=40, rate=1e-2, hard=1.0)
    taught = distil(classifier(1), [classifier(0)], samples(), teaching, labels=labels())
    agreement = (taught.student(samples()[0]).argmax(1) == labels()).float().mean()
    assert agreement > 0.9 > (classifier(0)(samples()[0]).argmax(1) == labels()).float().mean()


@pytest.mark.parametrize(
    ("given", "loss"), [(torch.full((160,), 3), "kl"), (torch.zeros(160), "kl"), (torch.zeros(160, 2), "mse")]
)
def test_labels_that_fit_no_output_are_refused(given: Tensor, loss: str) -> None:
    teaching = Teaching(loss=loss)
    with pytest.raises(DataError, match="labels do not fit the student's first output"):
        distil(classifier(1), [classifier(0)], samples(), teaching, labels=given)


def test_values_are_learned_with_mse() -> None:
    teaching = Teaching(loss="mse", hard=1.0, epochs=60, patience=60, rate=1e-2)
    values = classifier(7)(samples()[0]).detach()
    taught = distil(classifier(1), [classifier(0)], samples(), teaching, labels=values)
    assert taught.best < taught.before / 3


def test_hints_bring_features_together_although_widths_differ() -> None:
    teaching = Teaching(epochs=25, patience=25, rate=1e-2, hints={"2": "2"}, hint_weight=100.0)
    plain = distil(classifier(1, width=12), [classifier(0)], samples(), Teaching(epochs=25, patience=25, rate=1e-2))
    hinted = distil(classifier(1, width=12), [classifier(0)], samples(), teaching)

    def explained(student: nn.Module) -> float:
        """Share of the teacher's features that a linear map of the student's gives."""
        own, goal = student[:3](samples()[0]).detach(), classifier(0)[:3](samples()[0]).detach()
        mapped = own @ torch.linalg.lstsq(own, goal).solution
        return 1 - float((mapped - goal).square().mean() / goal.square().mean())

    assert explained(hinted.student) > explained(plain.student) + 0.02
    assert hinted.best < hinted.before


def test_teachers_may_have_hints_of_their_own_layers() -> None:
    inside = nn.Sequential(nn.Identity(), classifier(0, width=16))

    def taught(*hints: dict[str, str]) -> Taught:
        teaching = Teaching(epochs=15, rate=1e-2, hints=hints)
        return distil(classifier(1), [classifier(0), inside, classifier(2)], samples(), teaching)

    several, one = taught({"2": "2"}, {"0": "1.0"}, {}), taught({"2": "2"}, {}, {})
    assert several.epoch > 0
    assert not torch.equal(several.student[0].weight, one.student[0].weight)
    # The modules that name the layers may lie within those that are run.
    within = distil(
        nn.Sequential(nn.Identity(), classifier(1)), [nn.Sequential(nn.Identity(), classifier(0))], samples(),
        Teaching(epochs=3, hints={"2": "2"}), within=lambda module: module[1],
    )  # fmt: skip
    plain = distil(classifier(1), [classifier(0)], samples(), Teaching(epochs=3, hints={"2": "2"}))
    assert within.best == pytest.approx(plain.best)


def test_hints_that_join_nothing_are_refused() -> None:
    with pytest.raises(ModelError, match="the student has no module '9'"):
        distil(classifier(1), [classifier(0)], samples(), Teaching(hints={"9": "2"}))
    with pytest.raises(ModelError, match="the teacher has no module '9'"):
        distil(classifier(1), [classifier(0)], samples(), Teaching(hints={"2": "9"}))
    flat = nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Linear(4, 4), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(ModelError, match="joins layers of different shapes"):
        distil(flat, [classifier(0)], samples(), Teaching(hints={"1": "0"}))


def test_zeros_that_are_meant_stay_zero() -> None:
    student = classifier(1)
    with torch.no_grad():
        student[0].weight[:, ::2] = 0
    taught = distil(student, [classifier(0)], samples(), Teaching(epochs=5, rate=1e-2), zeros=["0.weight"])
    assert bool((taught.student[0].weight[:, ::2] == 0).all())
    assert bool((taught.student[0].weight[:, 1::2] != 0).all())
    freely = distil(student, [classifier(0)], samples(), Teaching(epochs=5, rate=1e-2))
    assert bool((freely.student[0].weight[:, ::2] != 0).any())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_halves_learn_and_stay_halves(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(kind)
    student = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(kind)
    inputs = torch.randn(200, 8).to(kind)
    taught = distil(student, [teacher], (inputs,), Teaching(epochs=8, rate=1e-2))
    assert taught.stopped == "all epochs done"
    assert taught.best < 0.5 * taught.before
    assert {one.dtype for one in taught.student.parameters()} == {kind}


def test_teaching_that_was_killed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.compress.teaching.KEEP_SECONDS", 0.0)
    teaching = Teaching(epochs=12, rate=1e-2, hints={"2": "2"})
    whole = distil(classifier(1), [classifier(0)], samples(), teaching)
    state, seen = tmp_path / "state", []

    def killed(epoch: int) -> None:
        if epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(classifier(1), [classifier(0)], samples(), teaching, progress=killed, unfinished=state)
    assert state.is_file()
    again = distil(classifier(1), [classifier(0)], samples(), teaching, progress=seen.append, unfinished=state)
    assert (again.resumed, seen[0]) == (4, 5)
    assert again.best == whole.best
    assert all(
        torch.equal(one, other)
        for one, other in zip(again.student.state_dict().values(), whole.student.state_dict().values(), strict=True)
    )
    assert not state.exists()
    state.write_bytes(b"damaged")
    assert distil(classifier(1), [classifier(0)], samples(), teaching, unfinished=state).resumed == 0


def test_what_is_taught_has_one_shape() -> None:
    inputs = (TensorSpec(name="sound", dtype="float32", shape=("batch", 4, "time")),)
    even = [(torch.randn(3, 4, 20),), (torch.randn(2, 4, 20),)]
    assert at_once(even, inputs, "calibration")[0].shape == (5, 4, 20)
    with pytest.raises(DataError, match="'sound' have 2 shapes") as caught:
        at_once([*even, (torch.randn(3, 4, 16),)], inputs, "training")
    assert caught.value.where == "[training]"
    assert "[4, 16], [4, 20]" in str(caught.value.why)


def test_a_bare_tensor_is_no_batch() -> None:
    images = torch.randn(8, 3, 8, 8)
    for wrong in (
        lambda: reestimate_norms(net(), [images]),
        lambda: measure_cost(net(), images),
        lambda: distil(net(), [net()], images, Teaching()),
        lambda: prune_channels(
            net(),
            lambda: iter([images]),
            ChannelPruning(),
            target=0.5,
            cost=lambda module: 1.0,
            what="size",
        ),
    ):
        with pytest.raises(TypeError, match="a batch is a tuple of tensors"):
            wrong()
