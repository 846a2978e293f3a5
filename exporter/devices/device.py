"""The Device protocol: where a bundle runs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from exporter.artifacts import DeviceFacts, Manifest, Profile, Provenance
from exporter.events import Emit
from exporter.plan_types import ProfilePlan


class Prepared(Protocol):
    """A device that holds a bundle and everything that it needs."""

    @property
    def provenance(self) -> Provenance:
        """What a measurement made there counts as; values of different provenance are never ranked together."""

    @property
    def emulated(self) -> str:
        """What says that its processor is emulated; empty where it is not."""

    def self_test(self) -> dict[str, Any]:
        """What the bundle's own self-test printed there.

        Raises:
            BundleError: it failed.
        """

    def profile(self, settings: ProfilePlan) -> Profile:
        """Measures all variants there, after a self-test.

        Raises:
            BundleError: the self-test failed; nothing was measured.
        """


class Device(Protocol):
    """A place where bundles run. It opens no connection and makes no file before one of its methods is called."""

    @property
    def name(self) -> str:
        """What profiles call it."""

    @property
    def address(self) -> str:
        """How it is reached, as `--device` takes it."""

    def check(self) -> DeviceFacts:
        """Looks at what is there, and changes nothing.

        Raises:
            MissingError: the device cannot be reached, or lacks what even looking needs.
        """

    def prepared(self, bundle: Path, manifest: Manifest, emit: Emit) -> AbstractContextManager[Prepared]:
        """Brings a bundle and what it requires there, for this exporter alone, and cleans up at the end.

        Args:
            bundle: its folder, checked to hold what its manifest says.
            manifest: of the bundle.
            emit: is told what is sent and installed.

        Raises:
            MissingError: the device, an interpreter or a runtime is not there and cannot be had.
        """
