"""What `show` proposes next."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from exporter.show_view import _show_latency
from exporter.views import BundleView


@pytest.mark.parametrize("packed", [False, True])
def test_a_packed_bundle_is_unpacked_before_it_is_measured(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "b.tar.zst" if packed else tmp_path
    if packed:
        path.write_bytes(b"")
    said: list[str] = []
    view = cast(BundleView, SimpleNamespace(path=path, profiles={}, instructions={}, benchmarks={}))
    _show_latency(cast(Any, SimpleNamespace(result=said.append)), view)
    # Lines may break anywhere in a long path.
    text = "".join("".join(said).split())
    assert (f"edge-exporterunpack{path}`,then" in text) is packed
    assert (f"edge-exporterprofile{path}`" in text) is not packed
