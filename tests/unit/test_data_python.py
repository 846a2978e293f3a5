"""Data from Python callables."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.artifacts import TensorSpec
from exporter.data import check, content_digest, infer_inputs, open_set
from exporter.errors import DataError
from exporter.plan_types import DataPlan

SPEC = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
GENERATOR = """
import numpy as np
def data():
    for start in (0, 3, 6):
        rows = np.arange(start, min(start + 3, 7), dtype=np.float32)
        yield {"x": np.stack([rows, rows], axis=1), "y": rows.astype(np.int64)}
"""
WHOLE = np.repeat(np.arange(7, dtype=np.float32)[:, None], 2, axis=1)


def written(folder: Path, code: str, name: str = "feed.py") -> str:
    path = folder / name
    path.write_text(code)
    return f"{path}:data"


def opened(data: str, *inputs: TensorSpec, labels: str | None = None, **plan: object):
    return open_set(DataPlan(data=data, **plan), inputs=inputs or (SPEC,), preprocessing={}, labels=labels)


def failure(folder: Path, code: str) -> DataError:
    data = written(folder, "import numpy as np\n" + code)
    with pytest.raises(DataError) as caught:
        check(opened(data))
    return caught.value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(size=st.integers(1, 9), samples=st.none() | st.integers(1, 9))
def test_batches_of_any_size_join_to_what_was_yielded(tmp_path, size, samples):
    data_set = opened(written(tmp_path, GENERATOR), labels="y", samples=samples)
    for _ in range(2):
        batches = list(data_set.batches(size))
        np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in batches]), WHOLE[:samples])
        np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), np.arange(7)[:samples])
        assert all(len(b.inputs["x"]) == size for b in batches[:-1])


def test_the_count_is_known_after_a_check_only(tmp_path):
    data_set = opened(written(tmp_path, GENERATOR), labels="y")
    assert data_set.samples is None
    assert check(data_set).samples == 7


@pytest.mark.parametrize(
    "body",
    ["return [{'x': X}, {'x': X}]", "return iter([{'x': X}])", "return {'x': X}", "return ({'x': X} for _ in 'ab')"],
)
def test_lists_iterators_single_dicts_and_generators_will_do(body, tmp_path):
    code = f"import numpy as np\nX = np.ones((2, 2), np.float32)\ndef data():\n    {body}\n"
    data_set = opened(written(tmp_path, code))
    assert check(data_set).samples == check(data_set).samples > 0


def test_inference_takes_names_dtypes_and_shapes_of_the_first_dict(tmp_path):
    plan = DataPlan(data=written(tmp_path, GENERATOR))
    assert infer_inputs(plan, labels="y", preprocessing={}) == (SPEC,)


def test_a_fixed_batch_drops_and_notes_the_rest(tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(2, 2))
    data_set = opened(written(tmp_path, GENERATOR), spec, ignore=("y",))
    assert [batch.inputs["x"].shape for batch in data_set.batches(8)] == [(2, 2)] * 3
    report = check(data_set)
    assert report.samples == 6
    assert any("fixed batch of 2" in note for note in report.notes)


def test_inputs_without_a_common_sample_axis_come_as_yielded(tmp_path):
    code = """
import numpy as np
def data():
    for length in (4, 6, 8):
        yield {"audio": np.ones((1, length), np.float32), "rate": np.array(16000), "state": np.zeros((2, 1, 3), "f4")}
"""
    specs = (
        TensorSpec(name="audio", dtype="float32", shape=(1, "time")),
        TensorSpec(name="rate", dtype="int64", shape=()),
        TensorSpec(name="state", dtype="float32", shape=(2, 1, 3)),
    )
    data_set = opened(written(tmp_path, code), *specs)
    batches = list(data_set.batches(32))
    assert [batch.inputs["audio"].shape for batch in batches] == [(1, 4), (1, 6), (1, 8)]
    assert batches[0].inputs["rate"].shape == ()
    assert check(data_set).samples == 3
    assert len(list(opened(written(tmp_path, code), *specs, samples=2).batches(1))) == 2


def test_a_callable_that_raises_is_told_with_its_words_and_line(tmp_path):
    error = failure(tmp_path, "def data():\n    yield {'x': np.ones((1, 2), 'f4')}\n    np.zeros(2).reshape(3)\n")
    assert error.what == "the data callable failed"
    assert "cannot reshape array" in (error.why or "")
    assert f"{tmp_path / 'feed.py'}:4" in (error.where or "")
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("yield 3", "yielded an int where a dict of arrays"),
        ("yield (np.ones(2), np.ones(2))", "yielded a tuple of 2 (ndarray, ndarray)"),
        ("yield {'x': [1, 2]}", "'x': a list of 2 (int, int); an array is expected"),
        ("yield {'x': None}", "'x': None; an array is expected"),
        ("yield {'x': 'abc'}", "'x': a str"),
        ("yield {3: np.ones(2)}", "a dict with 3:"),
        ("yield None", "yielded None"),
        ("yield {'x': np.array([{}, {}], dtype=object)}", "need pickling"),
        ("yield {'x': np.ones((2, 2), 'f4'), 'y': np.ones(3)}", "differ on axis 0: 'x' [2, 2], 'y' [3]"),
        ("yield {'z': np.ones((2, 2), 'f4')}", "input 'x' is missing"),
        ("return None", "cannot be called without arguments, or returns nothing that can be iterated"),
        ("if False: yield", "the data have 0 samples"),
        ("yield {'x': np.full((2, 2), np.nan, 'f4')}", "4 NaN"),
    ],
)
def test_what_is_no_dict_of_arrays_is_described(body, words, tmp_path):
    assert words in str(failure(tmp_path, f"def data():\n    {body}\n"))


def test_a_callable_that_needs_arguments_is_told_so(tmp_path):
    assert "without arguments" in str(failure(tmp_path, "def data(path):\n    yield path\n"))


def test_the_same_used_up_iterator_twice_is_an_error(tmp_path):
    code = "import numpy as np\nONCE = iter([{'x': np.ones((1, 2), np.float32)}])\ndef data():\n    return ONCE\n"
    data_set = opened(written(tmp_path, code))
    assert len(list(data_set.batches(1))) == 1
    with pytest.raises(DataError, match="same iterator again"):
        list(data_set.batches(1))


@pytest.mark.parametrize(
    "body",
    [
        "    for _ in range(3): yield {'x': np.random.default_rng().normal(size=(2, 2)).astype('f4')}",
        "    for k in np.random.default_rng().permutation(64): yield {'x': np.full((1, 2), k, np.float32)}",
        "    for k in range(next(lengths)): yield {'x': np.full((1, 2), k, np.float32)}",
    ],
    ids=["noise", "shuffled", "shorter"],
)
def test_other_samples_in_another_pass_are_an_error(tmp_path, body):
    code = f"import numpy as np, itertools\nlengths = itertools.count(5, -1)\ndef data():\n{body}\n"
    data_set = opened(written(tmp_path, code))
    list(data_set.batches(2))
    with pytest.raises(DataError, match="gives other samples each time"):
        list(data_set.batches(2))


def test_a_pass_that_was_left_early_says_nothing_of_what_follows(tmp_path):
    data = written(tmp_path, GENERATOR)
    next(iter(opened(data, labels="y").batches(1)))
    assert len(list(opened(data, labels="y").batches(1))) == 7
    assert len(list(opened(data, labels="y").batches(1))) == 7


def test_another_build_may_find_other_samples(tmp_path):
    data = written(
        tmp_path, "import numpy as np\ndef data(): yield {'x': np.random.default_rng().normal(size=(2, 2))}"
    )
    assert content_digest(DataPlan(data=data)) != content_digest(DataPlan(data=data))


def test_problems_before_a_failure_are_told_with_it(tmp_path):
    text = str(failure(tmp_path, "def data():\n    yield {'x': np.ones((1, 5), 'f4')}\n    raise OSError('disk')\n"))
    assert "5 on axis 1" in text
    assert "OSError: disk" in text


def test_only_as_many_samples_as_wanted_are_drawn_from_an_endless_generator(tmp_path):
    code = "import numpy as np\ndef data():\n    while True:\n        yield {'x': np.ones((4, 2), np.float32)}\n"
    plan = DataPlan(data=written(tmp_path, code), samples=10)
    assert check(open_set(plan, inputs=(SPEC,), preprocessing={})).samples == 10
    assert content_digest(plan)


@pytest.mark.parametrize("code", ["import no_such_package_at_all", "def data(:", "raise SystemExit(3)"])
def test_a_file_that_does_not_load_is_an_error(code, tmp_path):
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        opened(written(tmp_path, code))
    assert caught.value.why


def test_a_missing_function_and_module_are_named(tmp_path):
    written(tmp_path, GENERATOR)
    with pytest.raises(DataError, match="has no 'date'; did you mean 'data'"):
        opened(f"{tmp_path / 'feed.py'}:date")
    with pytest.raises(DataError, match="is a module, not a callable"):
        opened(f"{tmp_path / 'feed.py'}:np")
    with pytest.raises(DataError, match="cannot be imported"):
        opened("no_such_module_at_all:data")
    with pytest.raises(DataError, match="no module 'no_such_module_at_all'"):
        content_digest(DataPlan(data="no_such_module_at_all:data"))


def test_a_file_can_import_its_neighbours_and_leaves_the_path_as_it_was(tmp_path):
    (tmp_path / "neighbour_of_feed.py").write_text("ROWS = 3\n")
    code = """
import numpy as np
from dataclasses import dataclass
@dataclass
class Shape:
    rows: int
def data():
    from neighbour_of_feed import ROWS
    yield {"x": np.ones((Shape(ROWS).rows, 2), np.float32)}
"""
    path, names = list(sys.path), set(sys.modules)
    assert check(opened(written(tmp_path, code))).samples == 3
    assert sys.path == path
    assert "feed" not in set(sys.modules) - names
    assert not (tmp_path / "__pycache__").exists()


def test_a_dotted_module_is_found_from_the_working_folder(tmp_path, monkeypatch):
    package = tmp_path / "feeds_for_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    written(package, GENERATOR, "numbers.py")
    monkeypatch.chdir(tmp_path)
    data_set = opened("feeds_for_a_test.numbers:data", ignore=("y",))
    assert check(data_set).samples == 7
