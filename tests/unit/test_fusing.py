"""Fusing outputs: numbers worked out by hand, the same in torch and in ONNX, and learned weights."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.artifacts import TensorSpec
from exporter.errors import ModelError
from exporter.merge import Composite, Fusion, OnnxPart, Part, Teacher, fuse, learn_weights, stack_onnx
from exporter.merge.fusing import By
from exporter.onnx_export import onnx_session, prepare_module, share_onnx
from exporter.pipeline.composing import several_notes
from tests.support import quadrant_onnx, quadrants

LOGITS = torch.tensor([[[2.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.5]]])


def fused(by: By, *weights: float) -> list[float]:
    return fuse(list(LOGITS), Fusion(by=by, weights=weights or (1.0, 1.0, 1.0)))[0].tolist()


def test_outputs_are_fused_as_their_names_say() -> None:
    assert fused("mean") == pytest.approx([2 / 3, 2 / 3, 1 / 6])
    assert fused("mean", 2.0, 1.0, 1.0) == pytest.approx([1.0, 0.5, 0.125])
    assert fused("vote") == pytest.approx([1 / 3, 2 / 3, 0])
    assert fused("vote", 3.0, 1.0, 1.0) == pytest.approx([3 / 5, 2 / 5, 0])
    chances = torch.softmax(LOGITS[:, 0], -1)
    assert fused("probabilities") == pytest.approx(chances.mean(0).tolist())
    assert fused("max") == pytest.approx(chances.amax(0).tolist())


@given(st.permutations(range(5)), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_members_that_know_different_classes_fill_their_own_places(order: list[int], split: int) -> None:
    random = torch.Generator().manual_seed(split)
    classes = (tuple(order[:split]), tuple(order[split:]))
    outputs = [torch.randn(3, len(own), generator=random) for own in classes]
    result = fuse(outputs, Fusion(by="max", weights=(1.0, 1.0), classes=classes, total=5))
    for own, output in zip(classes, outputs, strict=True):
        torch.testing.assert_close(result[:, list(own)], torch.softmax(output, -1))


def test_a_member_with_another_number_of_classes_than_named_is_refused() -> None:
    with pytest.raises(ModelError, match="3 outputs was given 2 classes"):
        fuse([LOGITS[0]], Fusion(by="max", weights=(1.0,), classes=((0, 1),), total=2))


def test_learned_weights_prefer_the_model_that_knows_and_never_fall_below_equal_ones() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (200,), generator=random)
    right = torch.full((200, 3), 0.1)
    right[torch.arange(200), labels] = 0.8
    blind = torch.full((200, 3), 1 / 3)
    weights = learn_weights([blind, right], labels)
    assert sum(weights) == pytest.approx(1)
    assert weights[1] > 0.99


@pytest.mark.parametrize(
    ("by", "parted"),
    [
        *((by, False) for by in ("mean", "probabilities", "max", "vote")),
        *((by, True) for by in ("probabilities", "max", "vote")),
    ],
)
def test_onnx_files_are_fused_as_torch_fuses(tmp_path: Path, by: By, parted: bool) -> None:
    parts = []
    for name, opset, scale in (("one", 11, 1.0), ("two", 17, -0.5)):
        onnx.save(quadrant_onnx(opset=opset, scale=scale), tmp_path / f"{name}.onnx")
        parts.append(OnnxPart(label=name, path=tmp_path / f"{name}.onnx", takes={}))
    fusion = Fusion(by=by, weights=(1.0, 2.0))
    if parted:
        fusion = Fusion(by=by, weights=(1.0, 2.0), classes=((0, 1, 2, 3), (6, 4, 3, 5)), total=7)
    stack_onnx(parts, tmp_path / "fused.onnx", fusion=fusion)
    share_onnx(tmp_path / "fused.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "fused.onnx"), full_check=True)
    images, _ = quadrants(6, seed=0)
    alone = [torch.from_numpy(onnx_session(part.path)({"image": images})["scores"]) for part in parts]
    got = onnx_session(tmp_path / "fused.onnx")({"image": images})["scores"]
    np.testing.assert_allclose(got, fuse(alone, fusion).numpy(), atol=1e-6)


def test_inputs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    onnx.save(quadrant_onnx(), tmp_path / "one.onnx")
    other = quadrant_onnx()
    other.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(other, tmp_path / "two.onnx")
    parts = [OnnxPart(label=name, path=tmp_path / f"{name}.onnx", takes={}) for name in ("one", "two")]
    with pytest.raises(ModelError, match="input 'image' of 'two' does not fit") as caught:
        stack_onnx(parts, tmp_path / "stack.onnx")
    assert "3" in str(caught.value.why)


def test_outputs_that_a_softmax_is_taken_of_are_named_where_there_are_several() -> None:
    assert several_notes("mean", ["logits", "box"]) == several_notes("max", ["logits"]) == ()
    (note,) = several_notes("probabilities", ["logits", "box"])
    assert "a softmax of every output: logits, box" in note


def test_votes_that_tie_tie_exactly_whatever_their_weights() -> None:
    one, two = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    for weights in ((2.0, 4.0, 1.0, 7.0), (0.1, 0.2, 0.3, 0.6), (0.7, 0.1, 0.2, 1.0)):
        result = fuse([one, one, one, two], Fusion(by="vote", weights=weights))[0]
        assert result[0] == result[1] == 0.5


def test_classes_of_maps_stand_on_the_second_axis_and_of_sequences_on_the_last() -> None:
    random = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 4, 5, generator=random) for _ in range(2)]
    for by in ("probabilities", "vote"):
        fusion = Fusion(by=by, weights=(1.0, 2.0))
        wanted = fuse([each.movedim(1, -1).reshape(-1, 3) for each in maps], fusion)
        torch.testing.assert_close(fuse(maps, fusion).movedim(1, -1).reshape(-1, 3), wanted)
    assert fuse([maps[0][:, 0]], Fusion(by="max", weights=(1.0,))).sum(-1).allclose(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("output", "by", "mentions"),
    [
        (torch.ones(4, 2, dtype=torch.int64), "mean", "int64 cannot be fused"),
        (torch.ones(4, 2, dtype=torch.int64), "vote", "int64 cannot be fused"),
        (torch.ones(4), "probabilities", "tells no classes apart"),
        (torch.ones(4, 1), "max", "tells no classes apart"),
    ],
)
def test_what_no_softmax_fits_is_refused(output: torch.Tensor, by: By, mentions: str) -> None:
    with pytest.raises(ModelError, match=mentions):
        fuse([output, output], Fusion(by=by, weights=(1.0, 1.0)))
    assert fuse([output.float()], Fusion(by="mean", weights=(1.0,))).tolist() == output.tolist()


def map_onnx(kind: int = onnx.TensorProto.FLOAT, batch: int | str = "batch", inner: str = "inner") -> onnx.ModelProto:
    """x [batch, 2, 3, 3] -> scores, of three nodes without names, one of whose results is called `inner`."""
    make = onnx.helper
    nodes = [
        make.make_node("Add", ["x", "one"], [inner]),
        make.make_node("Add", [inner, "one"], ["twice"]),
        make.make_node("Cast", ["twice"], ["scores"], to=kind),
    ]
    graph = make.make_graph(
        nodes,
        "map",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 2, 3, 3])],
        [make.make_tensor_value_info("scores", kind, [batch, 2, 3, 3])],
        [make.make_tensor("one", onnx.TensorProto.FLOAT, [1, 2, 1, 1], [1.0, 2.0])],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)


def parts_of(folder: Path, **models: onnx.ModelProto) -> list[OnnxPart]:
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    return [OnnxPart(label=name, path=folder / f"{name}.onnx", takes={}) for name in models]


def test_nodes_without_names_and_inner_tensors_called_as_outputs_are_stacked(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, fuse=map_onnx(), two=map_onnx(inner="logits"))
    parts[1] = OnnxPart(label="two", path=parts[1].path, takes={}, outputs=("logits",))
    x = np.arange(36, dtype=np.float32).reshape(2, 2, 3, 3)
    wanted = onnx_session(parts[0].path)({"x": x})["scores"]
    for fusion in (None, Fusion(by="probabilities", weights=(1.0, 1.0)), Fusion(by="vote", weights=(1.0, 1.0))):
        stack_onnx(parts, tmp_path / "stack.onnx", fusion=fusion)
        share_onnx(tmp_path / "stack.onnx")
        got = onnx_session(tmp_path / "stack.onnx")({"x": x})
        if fusion is None:
            assert set(got) == {"fuse.scores", "two.logits"}
            assert all(np.array_equal(value, wanted) for value in got.values())
        else:
            own = [torch.from_numpy(wanted)] * 2
            np.testing.assert_allclose(got["scores"], fuse(own, fusion).numpy(), atol=1e-6)


def test_an_input_that_is_an_output_too_keeps_its_name(tmp_path: Path) -> None:
    kind = onnx.TensorProto.FLOAT
    x, y = (onnx.helper.make_tensor_value_info(name, kind, ["N", 4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y, x])
    path = tmp_path / "through.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    parts = [OnnxPart(label=label, path=path, takes=takes) for label, takes in (("a", {}), ("b", {"x": "a.x"}))]
    stack_onnx(parts, tmp_path / "stack.onnx")
    values = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    answers = onnx_session(tmp_path / "stack.onnx")({"x": values})
    assert set(answers) == {"a.y", "b.y", "b.x"}
    np.testing.assert_array_equal(answers["b.x"], values)


def test_whole_numbers_of_onnx_files_are_not_fused(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, one=map_onnx(onnx.TensorProto.INT64), two=map_onnx(onnx.TensorProto.INT64))
    with pytest.raises(ModelError, match="int64 cannot be fused"):
        stack_onnx(parts, tmp_path / "stack.onnx", fusion=Fusion(by="mean", weights=(1.0, 1.0)))


def test_a_size_that_one_member_fixes_holds_for_all(tmp_path: Path) -> None:
    stack_onnx(parts_of(tmp_path, one=map_onnx(), two=map_onnx(batch=1)), tmp_path / "stack.onnx")
    (given,) = onnx.load(tmp_path / "stack.onnx").graph.input
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim] == [1, 2, 3, 3]
    chain = [*parts_of(tmp_path, one=map_onnx(), two=map_onnx(batch=1))]
    chain[1] = OnnxPart(label="two", path=chain[1].path, takes={"x": "one.scores"})
    stack_onnx(chain, tmp_path / "chain.onnx")
    (given,) = onnx.load(tmp_path / "chain.onnx").graph.input
    assert given.type.tensor_type.shape.dim[0].dim_value == 1


def test_members_called_as_attributes_of_modules_keep_apart() -> None:
    labels = ("train", "train_", "train__", "_parameters", "training", "plain")
    parts = []
    for index, label in enumerate(labels):
        layer = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(layer.weight, index)
        torch.nn.init.zeros_(layer.bias)
        parts.append(Part(label=label, module=layer, takes={"x": "x"}, positional=(0,), keywords={}))
    whole = Composite(parts, ["x"], lambda result: iter([("out", result)]))  # type: ignore[arg-type, list-item]
    got = whole(torch.ones(1, 1))
    assert {name: value.item() for name, value in got.items()} == {
        f"{label}.out": float(index) for index, label in enumerate(labels)
    }


def test_a_program_in_a_stack_is_switched_to_eval_mode_with_it() -> None:
    x = torch.randn(3, 2)
    program = torch.export.export(torch.nn.Linear(2, 2), (x,))
    flat = prepare_module(program, [TensorSpec(name="x", dtype="float32", shape=(3, 2))]).flat
    (wanted,) = flat(x)
    whole = copy.deepcopy(torch.nn.Sequential(flat)).train().eval()
    assert torch.equal(whole(x)[0], wanted)


def test_a_teacher_of_maps_has_its_classes_at_their_places() -> None:
    logits = torch.randn(2, 2, 4, 5)

    class Maps(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x, x.argmax(1)

    taught, chosen = Teacher(Maps(), [2, 0], 3)(logits)
    assert torch.equal(taught[:, [2, 0]], logits)
    assert bool((taught[:, 1] < -1000).all())
    assert torch.equal(chosen, logits.argmax(1))
