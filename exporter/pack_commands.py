"""What the commands that pack bundles do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.opening import opened


def pack(*, bundle: Path, output: Path | None, level: int, force: bool, **common: Any) -> None:
    """`edge-exporter pack`."""
    from exporter.pipeline.packing import pack as run_pack
    from exporter.tables import human_size

    with opened(**common) as (console, steps):
        packed = run_pack(bundle, output, steps, level=level, force=force)
        manifest = packed.manifest
        rows, variants = [], []
        for variant in manifest.variants:
            sizes = [packed.sizes[entry.path] for entry in manifest.files_of(variant)]
            before, after = (sum(column) for column in zip(*sizes, strict=True))
            rows.append((variant.name, human_size(before), human_size(after), f"{after / before:.0%}"))
            variants.append({"name": variant.name, "bytes": before, "packed_bytes": after})
        whole = sum(before for before, _ in packed.sizes.values())
        rows.append(("the bundle", human_size(whole), human_size(packed.size), f"{packed.size / whole:.0%}"))
        console.table(("", "size", "packed", ""), rows)
        console.result(f"packed: {packed.file}")
        console.document(
            {
                "schema": 1,
                "file": str(packed.file),
                "digest": manifest.digest,
                "bytes": whole,
                "packed_bytes": packed.size,
                "variants": variants,
            }
        )


def unpack(*, file: Path, output: Path | None, **common: Any) -> None:
    """`edge-exporter unpack`."""
    from exporter.pipeline.packing import unpack as run_unpack

    with opened(**common) as (console, _):
        folder, manifest = run_unpack(file, output)
        console.result(f"{len(manifest.files) + 1} files are as they were written")
        console.result(f"bundle: {folder}")
        console.document({"schema": 1, "bundle": str(folder), "digest": manifest.digest})
