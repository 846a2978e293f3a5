"""Fusing outputs: numbers worked out by hand, the same in torch and in ONNX, and learned weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import ModelError
from exporter.merge import Fusion, OnnxPart, fuse, learn_weights, stack_onnx
from exporter.merge.fusing import By
from exporter.onnx_export import onnx_session, share_onnx
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
