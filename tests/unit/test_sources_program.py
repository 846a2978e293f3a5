"""torch.export archives in: nothing in them may run code."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exporter.errors import ModelError
from exporter.plan_types import ModelPlan
from exporter.sources import identify, load_program
from exporter.sources.program_scan import is_plain_expression


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("held", torch.ones(3))
        self.constant = torch.arange(2.0)

    def forward(self, image, ids):
        scores = self.linear(image) + self.held + image.shape[0] // 2
        return {"scores": scores.reshape(image.shape[0] * 3, -1), "a key": ids + 1, "const": self.constant * 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=64)
    program = torch.export.export(
        Net().eval(),
        (torch.randn(2, 4),),
        {"ids": torch.zeros(2, 5, dtype=torch.int64)},
        dynamic_shapes={"image": {0: batch}, "ids": {0: batch, 1: length}},
    )
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.export.save(program, path)
    return path


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], **extra: bytes) -> Path:
    """The archive with members changed, dropped or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
        for name, data in extra.items():
            new.writestr(name if name.startswith("..") else f"{root}/{name}", data)
    return target


def model_json(edit: Callable[[dict], None]) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        program = json.loads(data)
        edit(program)
        return json.dumps(program).encode()

    return change


def same(_: str, data: bytes) -> bytes:
    return data


def refused(path: Path, match: str) -> ModelError:
    with pytest.raises(ModelError, match=match) as caught:
        load_program(path, allow_pickle=False)
    return caught.value


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def pickled(bomb: Bomb, folder: Path) -> bytes:
    torch.save((bomb,), folder / "bomb.pt")
    return (folder / "bomb.pt").read_bytes()


def test_program_with_dynamic_axes_is_read_and_computes_the_same(saved):
    program = load_program(saved, allow_pickle=False)
    result = program.module(check_guards=False)(torch.ones(3, 4), ids=torch.zeros(3, 7, dtype=torch.int64))
    assert {name: list(value.shape) for name, value in result.items()} == {
        "scores": [9, 1], "a key": [3, 7], "const": [2]
    }  # fmt: skip


def test_program_is_identified_by_its_bytes(saved, tmp_path):
    copy = tmp_path / "copy.pt2"
    copy.write_bytes(saved.read_bytes())
    source = identify(ModelPlan(source=str(saved)))
    assert source.kind == "torch-export"
    assert identify(ModelPlan(source=str(copy))).digest == source.digest


def test_pickled_weight_is_refused(saved, tmp_path):
    def change(name: str, data: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        return pickled(Bomb(tmp_path / "ran"), tmp_path) if name.endswith("weights/weight_0") else data

    error = refused(rewritten(saved, tmp_path / "m.pt2", change), "pickle refused")
    assert "--allow-pickle" in error.hint
    assert not (tmp_path / "ran").exists()


def test_pickle_in_the_sample_inputs_is_refused_naming_what_it_calls(saved, tmp_path):
    bomb = pickled(Bomb(tmp_path / "ran"), tmp_path)
    path = rewritten(saved, tmp_path / "m.pt2", lambda n, d: bomb if n.endswith("sample_inputs/model.pt") else d)
    refused(path, "pickle refused: member data/sample_inputs/model.pt.*open")
    assert not (tmp_path / "ran").exists()


def test_pickle_is_read_when_the_user_allows_it(saved, tmp_path):
    bomb = pickled(Bomb(tmp_path / "ran"), tmp_path)
    path = rewritten(saved, tmp_path / "m.pt2", lambda n, d: bomb if n.endswith("sample_inputs/model.pt") else d)
    load_program(path, allow_pickle=True)
    assert (tmp_path / "ran").exists()


def node(program: dict) -> dict:
    return program["graph_module"]["graph"]["nodes"][0]


EDITS = {
    "expression": lambda p, ran: p["graph_module"]["graph"]["tensor_values"]["image"]["sizes"].__setitem__(
        0, {"as_expr": {"expr_str": f"open({ran!r}, 'w')", "hint": {"as_int": 2}}}
    ),
    "operator": lambda p, ran: node(p).update(target="torch.os.system"),
    "module of torch.ops": lambda p, ran: node(p).update(target="torch.ops.import_module.__call__"),
    "method of torch.ops": lambda p, ran: node(p).update(target="torch.ops.load_library.x"),
    "file operator": lambda p, ran: node(p).update(target="torch.ops.aten.from_file.default"),
    "python operator": lambda p, ran: node(p).update(target="_operator.methodcaller"),
    "node name": lambda p, ran: node(p).update(name=f"x = open({ran!r}, 'w')"),
    "argument name": lambda p, ran: p["graph_module"]["module_call_graph"][0]["signature"].update(
        forward_arg_names=[f"a=open({ran!r}, 'w')", "ids"]
    ),
    "input key": lambda p, ran: p["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec=p["graph_module"]["module_call_graph"][0]["signature"]["in_spec"].replace("ids", "ids=1+f()")
    ),
    "weight name": lambda p, ran: p["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
        parameter_name='linear.weight", x) + open("ran'
    ),
}


@pytest.mark.parametrize("part", EDITS)
def test_text_that_torch_would_turn_into_code_is_refused(part, saved, tmp_path):
    ran = tmp_path / "ran"
    path = rewritten(saved, tmp_path / "m.pt2", model_json(lambda p: EDITS[part](p, str(ran))))
    error = refused(path, "could run code")
    assert "models/model.json" in error.where
    assert not ran.exists()


def test_source_of_input_checks_is_never_run(saved, tmp_path):
    ran = tmp_path / "ran"
    edit = model_json(lambda p: p.update(guards_code=[f"open({str(ran)!r}, 'w') is not None"]))
    program = load_program(rewritten(saved, tmp_path / "m.pt2", edit), allow_pickle=False)
    program.module()(torch.ones(3, 4), ids=torch.zeros(3, 7, dtype=torch.int64))
    assert not ran.exists()


def test_compiled_code_is_refused(saved, tmp_path):
    path = rewritten(saved, tmp_path / "m.pt2", same, **{"data/aotinductor/model/x.so": b"\x7fELF"})
    refused(path, "could run code")


def test_members_that_lead_out_of_the_archive_are_refused(saved, tmp_path):
    refused(rewritten(saved, tmp_path / "m.pt2", same, **{"../../evil": b"x"}), "leads out")


def test_members_that_unpack_to_more_than_the_archive_are_refused(saved, tmp_path):
    path = tmp_path / "m.pt2"
    path.write_bytes(saved.read_bytes())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/extra/zeros", b"\0" * 50_000_000)
    refused(path, "oversized")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(saved, tmp_path):
    refused(rewritten(saved, tmp_path / "m.pt2", same, **{"models/model.json": b"{}"}), "two members")


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_damaged_archive_is_an_error(saved, tmp_path, size):
    (tmp_path / "m.pt2").write_bytes(saved.read_bytes()[:size])
    refused(tmp_path / "m.pt2", "damaged")


def test_other_zip_archive_is_no_program(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("a/b", os.urandom(8))
    refused(tmp_path / "m.pt2", "no torch.export program")


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s23', positive=True, integer=True)",
        "Mul(Integer(3), Symbol('s23', positive=True, integer=True))",
        "FloorDiv(Symbol('u0', integer=True), Integer(2))",
        "2*s0 + Max(1, s1)//3",
        "PowByNatural(s0, 2)",
        "Float('1.5', precision=53)",
    ],
)
def test_expressions_of_symbolic_shapes_are_plain(text):
    assert is_plain_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "s0.__class__",
        "open('x', 'w')",
        "Symbol('s0').func('x')",
        'Symbol("a\', b")',
        "Integer('__import__')",
        "[x for x in ().__class__.__bases__]",
        "lambda: 1",
        "9**999999999",
        "((s0**9)**9)**9",
        "Symbol('s0', **{})",
        "s0 if s0 else s1",
        "f'{s0}'",
        "preview(s0)",
        "",
    ],
)
def test_expressions_that_could_do_more_than_arithmetic_are_not_plain(text):
    assert not is_plain_expression(text)


@given(st.text(max_size=40))
def test_plain_expressions_never_reach_into_objects(text):
    if is_plain_expression(text):
        assert "__" not in text
        assert "[" not in text
        assert "lambda" not in text
