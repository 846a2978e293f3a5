"""Bundles: written, sealed, read back, and checked byte for byte."""

from exporter.bundle.manifest import (
    BENCHMARK,
    INSTRUCTIONS,
    MANIFEST,
    PROFILES,
    read_benchmark_profiles,
    read_instruction_profiles,
    read_manifest,
    read_profile,
    read_profiles,
    sealed_manifest,
    sealed_profile,
    write_atomically,
)
from exporter.bundle.packed import is_packed, opened_bundle
from exporter.bundle.verify import check_bundle, check_runtime_signature
from exporter.bundle.view import read_view
from exporter.bundle.write import SAMPLES, BundleParts, bundle_name, write_bundle

__all__ = [
    "BENCHMARK",
    "INSTRUCTIONS",
    "MANIFEST",
    "PROFILES",
    "SAMPLES",
    "BundleParts",
    "bundle_name",
    "check_bundle",
    "check_runtime_signature",
    "is_packed",
    "opened_bundle",
    "read_benchmark_profiles",
    "read_instruction_profiles",
    "read_manifest",
    "read_profile",
    "read_profiles",
    "read_view",
    "sealed_manifest",
    "sealed_profile",
    "write_atomically",
    "write_bundle",
]
