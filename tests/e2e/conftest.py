"""What several modules of whole builds share."""

from __future__ import annotations

import pytest
from support import Workplace


@pytest.fixture(scope="module")
def ready(shared_place: Workplace) -> Workplace:
    """With the quadrant CNN as model.onnx, and calib.npz and eval.npz."""
    shared_place.onnx()
    shared_place.quadrants()
    return shared_place
