"""The digest of a set changes with what comes out of it, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from exporter.data import content_digest
from exporter.errors import DataError
from exporter.plan_types import DataPlan, EvaluationPlan

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def npz(folder: Path) -> Path:
    np.savez(folder / "d.npz", x=X)
    return folder / "d.npz"


def safetensors(folder: Path) -> Path:
    save_file({"x": X}, folder / "d.safetensors")
    return folder / "d.safetensors"


def npy_folder(folder: Path) -> Path:
    (folder / "d" / "x").mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(X):
        np.save(folder / "d" / "x" / f"{index}.npy", row)
    return folder / "d"


def digest(data: object, **plan: object) -> str:
    return content_digest(DataPlan(data=str(data), **plan))


@pytest.mark.parametrize("make", [npz, safetensors, npy_folder])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(draw=st.data())
def test_any_flipped_byte_changes_the_digest(make, tmp_path, draw):
    path = make(tmp_path)
    before = digest(path)
    files = sorted(path.rglob("*.npy")) if path.is_dir() else [path]
    file = draw.draw(st.sampled_from(files))
    raw = bytearray(file.read_bytes())
    raw[draw.draw(st.integers(0, len(raw) - 1))] ^= draw.draw(st.integers(1, 255))
    file.write_bytes(raw)
    assert digest(path) != before


def test_where_the_data_lie_and_the_batch_size_do_not_count(tmp_path):
    path = npy_folder(tmp_path)
    moved = tmp_path / "elsewhere"
    shutil.copytree(path, moved)
    assert digest(path, batch_size=1) == digest(moved, batch_size=7)
    (moved / ".DS_Store").write_bytes(b"x")
    assert digest(path) == digest(moved)


def test_file_names_inside_a_folder_count(tmp_path):
    path = npy_folder(tmp_path)
    before = digest(path)
    (path / "x" / "0.npy").rename(path / "x" / "9.npy")
    assert digest(path) != before


def test_plan_values_that_change_what_comes_out_count(tmp_path):
    path = npz(tmp_path)
    found = [
        digest(path),
        digest(path, samples=2),
        digest(path, rename={"x": "y"}),
        digest(path, ignore=("x",)),
        content_digest(DataPlan(data=str(path)), labels="y"),
    ]
    assert len(set(found)) == len(found)
    assert all(len(value) == 64 for value in found)
    assert content_digest(EvaluationPlan(data=str(path), labels="y")) == found[-1]
    assert digest(path, ignore=("a", "b")) == digest(path, ignore=("b", "a"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        digest(tmp_path / "gone.npz")
    assert str(tmp_path / "gone.npz") in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_callable_counts_by_its_source_and_by_what_it_yields(tmp_path):
    source = tmp_path / "feed.py"
    values = tmp_path / "values.txt"
    code = (
        "import numpy as np\nfrom pathlib import Path\n"
        "def data():\n"
        "    values = Path(__file__).with_name('values.txt').read_text().split()\n"
        "    yield {'x': np.array(values, np.float32)[:, None]}\n"
    )
    source.write_text(code)
    values.write_text("1 2 3")
    found = [digest(f"{source}:data")]
    assert digest(f"{source}:data") == found[0]
    values.write_text("1 2 4")
    found.append(digest(f"{source}:data"))
    source.write_text(code + "# changed\n")
    found.append(digest(f"{source}:data"))
    assert len(set(found)) == 3


def test_arrays_that_are_ignored_in_a_callable_do_not_count(tmp_path):
    source = tmp_path / "feed.py"
    source.write_text(
        "import time\nimport numpy as np\n"
        "def data():\n    yield {'x': np.ones((2, 3), np.float32), 'at': np.full(2, time.perf_counter_ns())}\n"
    )
    assert digest(f"{source}:data", ignore=("at",)) == digest(f"{source}:data", ignore=("at",))
    assert digest(f"{source}:data") != digest(f"{source}:data")
