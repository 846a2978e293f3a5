"""Writes docs/schema/*.json: the JSON schemas of a bundle's files, from the types that read them.

`python docs/make_schemas.py` after a change of exporter/artifacts.py; a test holds them up to date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import BenchmarkProfile, InstructionProfile, Manifest, Profile

FOLDER = Path(__file__).parent / "schema"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
KINDS: dict[str, type[msgspec.Struct]] = {
    "manifest": Manifest,
    "profile": Profile,
    "instructions": InstructionProfile,
    "benchmark": BenchmarkProfile,
}


def schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON schema of a type, its attributes' documentation included."""
    return {"$schema": DRAFT, **msgspec.json.schema(kind)}


def text(kind: type[msgspec.Struct]) -> str:
    """The schema as it lies in the folder."""
    return json.dumps(schema(kind), indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, kind in KINDS.items():
        (FOLDER / f"{name}.schema.json").write_text(text(kind), encoding="utf-8")
