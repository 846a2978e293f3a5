"""Factories and weights in: what is accepted, and one clear message for everything else."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exporter.errors import ModelError
from exporter.plan_types import ModelPlan
from exporter.sources import identify, load_factory

GOOD = """
import torch
from torch import nn
from layers import Block

def make(width=4):
    return nn.Sequential(Block(width), nn.Dropout(0.5))

def raises():
    return broken()

def broken():
    raise ValueError("no such checkpoint")

def leaves():
    raise SystemExit(2)

def nothing():
    pass

def needs(width, depth):
    return make(width)

value = 3
module = nn.Linear(2, 2)
"""
LAYERS = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 3)

    def forward(self, x):
        return self.linear(x)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(GOOD)
    (tmp_path / "layers.py").write_text(LAYERS)
    return tmp_path


def plan(project: Path, attribute: str = "make", **more) -> ModelPlan:
    return ModelPlan(source=f"{project / 'model.py'}:{attribute}", **more)


def refused(given: ModelPlan, match: str) -> ModelError:
    with pytest.raises(ModelError, match=match) as caught:
        load_factory(given)
    assert caught.value.exit_code == 3
    assert "Traceback" not in str(caught.value)
    return caught.value


def test_factory_is_called_with_its_arguments_and_the_module_is_in_eval_mode_without_gradients(project):
    module = load_factory(plan(project, args={"width": 7}))
    assert module(torch.zeros(2, 7)).shape == (2, 3)
    assert not any(m.training for m in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


def test_loading_leaves_the_import_path_as_it_was(project):
    before = list(sys.path)
    load_factory(plan(project))
    assert sys.path == before


def test_modules_of_one_name_beside_two_factories_are_told_apart(project, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "model.py").write_text(GOOD)
    (other / "layers.py").write_text(LAYERS.replace("width, 3", "width, 5"))
    assert load_factory(plan(project))(torch.zeros(1, 4)).shape == (1, 3)
    assert load_factory(plan(other))(torch.zeros(1, 4)).shape == (1, 5)


def test_file_in_a_package_may_use_relative_imports(tmp_path):
    package = tmp_path / "relpkg" / "sub"
    package.mkdir(parents=True)
    (tmp_path / "relpkg" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (tmp_path / "relpkg" / "layers.py").write_text(LAYERS)
    (package / "model.py").write_text("from ..layers import Block\ndef make():\n    return Block(4)\n")
    given = ModelPlan(source=f"{package / 'model.py'}:make")
    assert load_factory(given)(torch.zeros(1, 4)).shape == (1, 3)
    assert {path.name for path in identify(given).files} >= {"model.py", "layers.py", "__init__.py"}


def test_importable_module_and_dotted_attribute_are_accepted(project, monkeypatch):
    (project / "srcpkg_a").mkdir()
    (project / "srcpkg_a" / "zoo.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n    @classmethod\n    def small(cls):\n        return cls(2, 2)\n"
    )
    monkeypatch.chdir(project)
    assert isinstance(load_factory(ModelPlan(source="srcpkg_a.zoo:Net.small")), nn.Linear)


def test_error_in_the_factory_gives_its_words_and_the_last_line_of_the_users_code(project):
    error = refused(plan(project, "raises"), "raised ValueError")
    assert "no such checkpoint" in error.why
    assert error.where.endswith("model.py:13, in broken")


def test_factory_that_exits_is_an_error_not_an_exit(project):
    refused(plan(project, "leaves"), "raised SystemExit")


def test_result_that_is_no_module_is_named_by_its_type(project):
    refused(plan(project, "nothing"), "returned no torch.nn.Module but None")


def test_missing_and_unknown_arguments_are_named_with_the_line_to_write(project):
    error = refused(plan(project, "needs", args={"widht": 3}), "needs other arguments")
    assert "needs 'width', 'depth'" in error.why
    assert "takes no 'widht'; did you mean 'width'?" in error.why
    assert "args = {" in error.hint


def test_unknown_attribute_gets_the_closest_name(project):
    assert "'make'" in refused(plan(project, "mak"), "has no 'mak'").hint


@pytest.mark.parametrize(("attribute", "match"), [("value", "not callable"), ("module", "already made")])
def test_attribute_that_makes_nothing_is_refused(project, attribute, match):
    refused(plan(project, attribute), match)


def test_failing_import_names_the_module_to_install_and_the_line(project):
    (project / "layers.py").write_text("import no_such_module_here\n")
    error = refused(plan(project), "cannot be imported: ModuleNotFoundError")
    assert "layers.py:1" in error.where
    assert "no_such_module_here" in error.hint


def test_unknown_module_says_where_it_was_looked_for():
    assert "searched" in refused(ModelPlan(source="no_such_pkg.zoo:make"), "no module 'no_such_pkg'").hint


def test_missing_file_gets_the_closest_name(project):
    error = refused(ModelPlan(source=f"{project / 'modl.py'}:make"), "does not exist")
    assert "model.py" in error.hint


def test_syntax_error_is_found_without_importing(project):
    (project / "model.py").write_text("def make(:\n")
    with pytest.raises(ModelError, match="not valid Python") as caught:
        identify(plan(project))
    assert caught.value.where.endswith("model.py:1")


def weights(project: Path, **changes) -> dict[str, torch.Tensor]:
    state = {"0.linear.weight": torch.ones(3, 4), "0.linear.bias": torch.zeros(3)}
    return state | changes


def test_safetensors_are_loaded(project):
    save_file(weights(project), project / "w.safetensors")
    module = load_factory(plan(project, weights=project / "w.safetensors"))
    assert torch.equal(module(torch.ones(1, 4)), torch.full((1, 3), 4.0))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_torch_state_dicts_are_loaded_with_and_without_a_wrapper(project, wrap):
    state = weights(project)
    torch.save({wrap: state, "epoch": 3} if wrap else state, project / "w.pt")
    module = load_factory(plan(project, weights=project / "w.pt"))
    assert torch.equal(module[0].linear.weight, torch.ones(3, 4))


def test_element_type_of_the_module_is_kept(project):
    (project / "model.py").write_text(GOOD + "\ndef half():\n    return make().to(torch.bfloat16)\n")
    save_file(weights(project), project / "w.safetensors")
    module = load_factory(plan(project, "half", weights=project / "w.safetensors"))
    assert module[0].linear.weight.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`torch.nn.utils:FutureWarning")
def test_a_module_with_norms_of_weights_in_their_old_form_can_be_copied(project):
    (project / "normed.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 2)))\n"
    )
    module = load_factory(ModelPlan(source=f"{project / 'normed.py'}:make"))
    inputs = torch.randn(3, 4)
    assert torch.equal(copy.deepcopy(module)(inputs), module(inputs))


def test_parameters_that_are_tied_may_be_stored_once(project):
    (project / "model.py").write_text(
        "from torch import nn\ndef make():\n    m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))\n"
        "    m[1].weight = m[0].weight\n    return m\n"
    )
    state = {"0.weight": torch.ones(3, 3), "0.bias": torch.zeros(3), "1.bias": torch.zeros(3)}
    save_file(state, project / "w.safetensors")
    assert torch.equal(load_factory(plan(project, weights=project / "w.safetensors"))[1].weight, torch.ones(3, 3))


def test_weights_of_another_architecture_name_all_differences_and_load_nothing(project):
    state = {"0.linear.weight": torch.ones(9, 4), "head.weight": torch.ones(2), "0.linear.biass": torch.zeros(3)}
    save_file(state, project / "w.safetensors")
    message = str(refused(plan(project, weights=project / "w.safetensors"), "not this model's"))
    assert "1 missing in the file: 0.linear.bias" in message
    assert "2 unknown to the model" in message
    assert "did you mean '0.linear.bias'?" in message
    assert "0.linear.weight: [9, 4] in the file, [3, 4] in the model" in message


def test_long_lists_of_keys_are_cut_with_their_count(project):
    save_file({f"other.{n}": torch.ones(1) for n in range(25)}, project / "w.safetensors")
    message = str(refused(plan(project, weights=project / "w.safetensors"), "not this model's"))
    assert "25 unknown to the model" in message
    assert "and 15 more" in message


def test_prefix_of_data_parallel_is_recognised(project):
    state = {f"module.{name}": tensor for name, tensor in weights(project).items()}
    save_file(state, project / "w.safetensors")
    error = refused(plan(project, weights=project / "w.safetensors"), "not this model's")
    assert "'module.' (DataParallel writes it)" in error.hint


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_pickle_is_refused_naming_what_it_would_call_and_runs_nothing(project):
    torch.save({"state_dict": weights(project), "x": Bomb(project / "ran")}, project / "w.pt")
    error = refused(plan(project, weights=project / "w.pt"), r"pickle refused.*open")
    assert "--allow-pickle" in error.hint
    assert "allow_pickle = true" in error.hint
    assert not (project / "ran").exists()


def test_pickle_is_read_when_the_user_allows_it(project):
    torch.save({"state_dict": weights(project), "x": Bomb(project / "ran")}, project / "w.pt")
    module = load_factory(plan(project, weights=project / "w.pt", allow_pickle=True))
    assert torch.equal(module[0].linear.weight, torch.ones(3, 4))


def test_plain_pickle_is_refused(project):
    (project / "w.pth").write_bytes(pickle.dumps({"x": Bomb(project / "ran")}))
    refused(plan(project, weights=project / "w.pth"), "pickle refused|cannot be read")
    assert not (project / "ran").exists()


def test_weights_that_are_no_state_dict_are_refused(project):
    torch.save([torch.ones(1)], project / "w.pt")
    refused(plan(project, weights=project / "w.pt"), "no state dict but a list")


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, (200_000_000).to_bytes(8, "little") + b"{}"])
def test_damaged_safetensors_are_refused_before_the_library_reads_them(project, data):
    (project / "w.safetensors").write_bytes(data)
    refused(plan(project, weights=project / "w.safetensors"), "not a safetensors file")


def test_missing_weights_and_unknown_suffix_are_refused(project):
    refused(plan(project, weights=project / "none.pt"), "weights file does not exist")
    (project / "w.npz").write_bytes(b"")
    refused(plan(project, weights=project / "w.npz"), "'.npz' file cannot be read")


def digest(given: ModelPlan) -> str:
    return identify(given).digest


def test_digest_follows_contents_and_nothing_else(project, tmp_path_factory):
    first = digest(plan(project))
    moved = tmp_path_factory.mktemp("moved")
    for name in ("model.py", "layers.py"):
        (moved / name).write_bytes((project / name).read_bytes())
    assert digest(plan(moved)) == first
    (project / "unrelated.py").write_text("x = 1")
    assert digest(plan(project)) == first
    assert digest(plan(project, "raises")) != first
    assert digest(plan(project, args={"width": 5})) != first
    (project / "layers.py").write_text(LAYERS + "\n# edited\n")
    assert digest(plan(project)) != first


def test_digest_covers_weights_and_files_that_the_factory_depends_on(project):
    save_file(weights(project), project / "w.safetensors")
    (project / "vocab.txt").write_text("a b")
    given = plan(project, weights=project / "w.safetensors", depends=(project / "vocab.txt",))
    first = digest(given)
    (project / "vocab.txt").write_text("a c")
    second = digest(given)
    save_file(weights(project, **{"0.linear.bias": torch.ones(3)}), project / "w.safetensors")
    assert len({first, second, digest(given)}) == 3


def test_digest_follows_imports_through_packages_and_submodules(project):
    package = project / "srcpkg_b"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "__init__.py").write_text("from . import leaf\n")
    (package / "deep" / "leaf.py").write_text("x = 1\n")
    (project / "model.py").write_text("from srcpkg_b import deep\n" + GOOD)
    source = identify(plan(project))
    assert {"__init__.py", "leaf.py", "layers.py", "model.py"} <= {path.name for path in source.files}
    (package / "deep" / "leaf.py").write_text("x = 2\n")
    assert digest(plan(project)) != source.digest


def test_nothing_is_executed_and_no_heavy_library_imported_for_a_digest(project):
    (project / "model.py").write_text(GOOD + f"\nopen({str(project / 'ran')!r}, 'w')\n")
    code = (
        "import sys\nfrom exporter.sources import identify\nfrom exporter.plan_types import ModelPlan\n"
        f"source = identify(ModelPlan(source={str(project / 'model.py')!r} + ':make'))\n"
        "assert source.kind == 'factory'\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'PIL'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert not (project / "ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl"])
def test_pickled_module_as_a_source_is_refused_with_what_to_do_instead(tmp_path, suffix):
    (tmp_path / f"m{suffix}").write_bytes(b"x")
    with pytest.raises(ModelError, match="runs code") as caught:
        identify(ModelPlan(source=str(tmp_path / f"m{suffix}")))
    assert "weights" in caught.value.hint


def test_unknown_source_lists_what_is_accepted(tmp_path):
    with pytest.raises(ModelError, match="unknown form") as caught:
        identify(ModelPlan(source=str(tmp_path / "m.tflite")))
    assert all(word in caught.value.hint for word in (".pt2", ".onnx", "file.py:function"))


@pytest.mark.parametrize("name", ["m.pt2", "m.onnx"])
def test_missing_model_file_is_named(tmp_path, name):
    with pytest.raises(ModelError, match="does not exist") as caught:
        identify(ModelPlan(source=str(tmp_path / name)))
    assert name in caught.value.where


def test_a_factory_that_keeps_its_module_gives_no_two_models(project, monkeypatch):
    (project / "keeping.py").write_text(
        "import functools\nfrom torch import nn\n\n@functools.cache\ndef make():\n    return nn.Linear(2, 1)\n"
    )
    monkeypatch.syspath_prepend(project)
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_file({"weight": torch.full((1, 2), value), "bias": torch.zeros(1)}, project / f"{name}.safetensors")
    given = ModelPlan(source="keeping:make", weights=project / "a.safetensors")
    first = load_factory(given)
    assert load_factory(given) is first  # One model, loaded twice.
    refused(msgspec.structs.replace(given, weights=project / "b.safetensors"), "returned the same module again")
    assert first.weight.tolist() == [[1.0, 1.0]]
    refused(msgspec.structs.replace(given, weights=None), "returned the same module again")
    with torch.no_grad():
        first.weight += 1
    refused(given, "returned the same module again")
