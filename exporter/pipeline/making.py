"""What a step of [compress] is given, and what it makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.pipeline.models import Inputs, Models
from exporter.pipeline.results import DataChecked

if TYPE_CHECKING:
    from torch import nn

    from exporter.compress import Structure


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What all steps work with.

    Attributes:
        models: loads and runs them.
        inputs: of the model.
        checked: what is known of the data.
        data: folder with real inputs: example.npz and cases.npz.
    """

    models: Models
    inputs: Inputs
    checked: DataChecked
    data: Path


class Made(msgspec.Struct, kw_only=True):
    """What a step made: a module, how its architecture came about, and what the user should know."""

    module: nn.Module
    structure: Structure
    notes: tuple[str, ...] = ()
