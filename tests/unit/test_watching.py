"""Files that change while a build reads them, and code that decides what is read, are noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exporter.errors import DataError
from exporter.measure import metric_digest
from exporter.pipeline.watching import Watch
from exporter.sources.closure import import_closure


def test_a_file_that_is_written_to_or_replaced_is_named(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_text("one")
    watch = Watch()
    watch.add(files)
    watch.add(files)
    watch.check()
    os.utime(files[1], ns=(1, 1))
    with pytest.raises(DataError, match="changed while") as caught:
        watch.check()
    assert str(caught.value.where) == str(files[1])
    other = Watch()
    other.add(files[:1])
    files[0].unlink()
    with pytest.raises(DataError, match="changed while"):
        other.check()


def test_a_neighbour_named_like_a_standard_module_counts(tmp_path: Path) -> None:
    (tmp_path / "wave.py").write_text("WIDTH = 1")
    (tmp_path / "model.py").write_text("import wave, struct")
    closure = import_closure("model", tmp_path / "model.py", [str(tmp_path)])
    assert closure.modules["wave"] == tmp_path / "wave.py"
    assert "struct" not in closure.modules


def test_a_metric_of_a_package_depends_on_all_of_it_and_on_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scores").mkdir()
    sources = {
        "scores/__init__.py": "",
        "scores/core.py": "from .helper import f\nimport beside_scores",
        "scores/helper.py": "f = 1",
        "beside_scores.py": "g = 1",
        "unrelated.py": "h = 1",
    }
    for name, text in sources.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = [metric_digest("scores.core:agree", None)]
    for name, differs in (("scores/helper.py", True), ("beside_scores.py", True), ("unrelated.py", False)):
        (tmp_path / name).write_text("f = g = h = 2")
        seen.append(metric_digest("scores.core:agree", None))
        assert (seen[-1] != seen[-2]) == differs
    assert metric_digest("nothing.there:agree", "y") == "nothing.there:agree(y)"
