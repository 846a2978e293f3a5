"""[compress] for phones: latency is measured on LiteRT, and what fixes the batch of files fixes no other."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support import Workplace

from exporter.registry import load_target

FACTORY = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 4096), nn.BatchNorm1d(4096), nn.ReLU(), nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 2)
    )
"""
PLAN = """
schema = 1
name = "phone"
[model]
source = "model.py:make"
[calibration]
data = "calib.npz"
[quantize]
enabled = false
[gate]
min_sqnr_db = -100.0
[[compress.steps]]
method = "prune-channels"
latency = 0.8
multiple = 2048
ignore = ["3"]
[[compress.steps]]
method = "norms"
[targets.mobile]
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # Three runs of the converter, each of half a minute on a busy machine.
@pytest.mark.skipif(
    load_target("mobile").missing(load_target("mobile").options_type()) is not None,
    reason="the extra `mobile` is missing",
)
def test_channels_are_pruned_to_a_latency_on_a_phones_runtime_and_norms_see_whole_batches(place: Workplace) -> None:
    place.write("model.py", FACTORY)
    place.npz("calib.npz", x=np.random.default_rng(0).normal(1, 2, (48, 32)).astype(np.float32))
    result = place.build(place.write("plan.toml", PLAN))
    assert result.code == 0, result.err
    (mobile,) = result.document["targets"]
    pruned, norms = mobile["history"][1:]
    found = re.match(
        r"latency (\S+)x of the model before on mobile \(.+, 1 candidates measured\)", pruned["notes"][0]
    )
    assert found is not None
    assert 0.2 < float(found[1]) <= 0.8
    assert "0 4096 -> 2048" in pruned["notes"][0]
    # The files take one sample at a time, of which norms could learn nothing.
    assert mobile["variants"][0]["fidelity"]["outputs"][0]["sqnr_db"] == pytest.approx(
        norms["fidelity"]["outputs"][0]["sqnr_db"], abs=0.01
    )
    before, after = (step["fidelity"]["outputs"][0]["sqnr_db"] for step in (pruned, norms))
    assert abs(after - before) > 0.1
