"""The files of a target that quantizes by itself: repaired where they fail the gate, made faster, or left out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from exporter.artifacts import (
    Coverage,
    Fidelity,
    NodeDamage,
    QuantScheme,
    TensorSpec,
    canonical,
    digest_of,
    file_digest,
)
from exporter.events import Note
from exporter.pipeline.candidates import Made
from exporter.pipeline.converted import check_variants
from exporter.pipeline.forms import formed_inputs
from exporter.pipeline.job import Job
from exporter.pipeline.judged import Judged, products_among
from exporter.pipeline.mending import Mending
from exporter.pipeline.quick_races import QuickRaces
from exporter.pipeline.ranking import ranked_batches
from exporter.pipeline.repair import Remedy
from exporter.pipeline.results import Int8Model, load_json
from exporter.pipeline.steps import versions
from exporter.plan import TargetPlan
from exporter.target_api import Int8File, Requantizing, SchemeNeed, Target, TensorForm, VariantFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

Place = tuple[Path, VariantFile]
Gated = Callable[[Path, VariantFile], Fidelity]


class Requantized:
    """Makes the int8 files of one target again, from what its `convert` left; a `Maker` for `Mending`."""

    remedies: tuple[Remedy, ...] = ("few-floats", "products", "floats")

    def __init__(
        self,
        job: Job,
        target: Target,
        requantizing: Requantizing,
        plan: TargetPlan,
        inputs: tuple[TensorSpec, ...],
        form: TensorForm,
        gated: Gated,
        races: QuickRaces,
    ) -> None:
        """`target` and `requantizing` are the same; `gated` evaluates a variant and holds it against the gate."""
        self._job, self._plan, self._target, self._requantizing = job, plan, target, requantizing
        self._inputs, self._form, self._gated = inputs, form, gated
        self._places: dict[str, Place] = {}
        races = msgspec.structs.replace(races, files=lambda model: self._places[model.content])
        self._mending = Mending(emit=job.steps.emit, quantize=plan.quantize, races=races, maker=self)

    def settle(self, made: Made) -> Made:
        """The files to publish; one that fails the gate is among them only where repairing did not help."""
        self._base, self._content = made.folder, made.content
        kept: list[tuple[Place, Fidelity]] = []
        models: list[Int8Model] = []
        for variant, fidelity in made.judged:
            place = made.folder, variant
            if variant.coverage is None:
                kept.append((place, fidelity))
            elif fidelity.gate.failures and variant.offered:
                why = "; ".join(fidelity.gate.failures)
                self._job.steps.emit(Note(text=f"{variant.name} is left out: {why}"))
            else:
                judged = self._mended(Judged(model=self._model(place, self._scheme(variant)), fidelity=fidelity))
                models.append(judged.model)
                kept.append((self._places[judged.model.content], judged.fidelity))
        if [place for place, _ in kept] == [(made.folder, variant) for variant, _ in made.judged]:
            return msgspec.structs.replace(made, models=models)
        folder = self._assembled([place for place, _ in kept])
        judged_variants = [(variant, found) for (_, variant), found in kept]
        return msgspec.structs.replace(made, folder=folder, judged=judged_variants, models=models)

    def quantized(self, model: Int8Model, scheme: QuantScheme) -> Int8Model:
        """See `Maker`."""
        _, variant = self._places[model.content]
        name = self._target.name

        def build(folder: Path) -> None:
            (folder / "variants").mkdir()
            made = self._requantizing.requantize(self._base, variant, scheme, self._plan.options, folder / "variants")
            check_variants(name, (made,), folder / "variants", whole=False)
            (folder / "variant.json").write_bytes(canonical(made))

        parts = {
            **self._parts(),
            "variant": variant.name,
            "scheme": scheme,
        }
        stored = self._job.steps.stored("requantize", 1, parts, build, label=f"{name}: quantize {variant.name} again")
        made = load_json(stored.folder / "variant.json", VariantFile)
        return self._model((stored.folder / "variants", made), scheme)

    def judged(self, model: Int8Model, scheme: QuantScheme) -> Judged:
        """See `Maker`."""
        candidate = self.quantized(model, scheme)
        return Judged(model=candidate, fidelity=self._gated(*self._places[candidate.content]))

    def rank(self, model: Int8Model) -> Sequence[NodeDamage]:
        """See `Maker`."""
        label = f"{self._target.name}: rank the operators of {model.file.name} by their noise"
        progress = self._job.steps.progress(label)

        def build(folder: Path) -> None:
            batches = (
                formed_inputs(batch, self._inputs, self._form) for batch in ranked_batches(self._job, self._inputs)
            )
            found = self._requantizing.damage(self._base, model.file.path, _counted(batches, progress))
            (folder / "damage.json").write_bytes(canonical(found))

        parts = {
            **self._parts(),
            "model": model.content,
            **self._job.data.judged_parts(),
            "inputs": self._inputs,
            "form": self._form,
        }
        stored = self._job.steps.stored("rank", 1, parts, build, label=label)
        return load_json(stored.folder / "damage.json", tuple[NodeDamage, ...])

    def uneven(self, model: Int8Model) -> int:
        """See `Maker`; such files are not equalized."""
        return 0

    def products(self, model: Int8Model) -> tuple[str, ...]:
        """See `Maker`."""
        return products_among(self._requantizing.products, model)

    def _mended(self, judged: Judged) -> Judged:
        if judged.fidelity.gate.failures:
            judged = self._mending.repaired(judged)
        static = self._places[judged.model.content][1].scheme
        return self._mending.hastened(judged) if static is not None and not static.dynamic else judged

    def _scheme(self, variant: VariantFile) -> QuantScheme:
        return variant.scheme or self._plan.quantize.scheme

    def _model(self, place: Place, scheme: QuantScheme) -> Int8Model:
        folder, variant = place
        path = folder / variant.main
        content = digest_of([file_digest(path), variant.name, scheme])
        self._places[content] = place
        file = Int8File(
            name=variant.name,
            path=path,
            scheme=scheme,
            coverage=variant.coverage or Coverage(eligible=0, quantized=0),
            requires=variant.requires,
            specialises=variant.specialises,
        )
        return Int8Model(file=file, content=content, wanted=SchemeNeed(name=variant.name))

    def _parts(self) -> dict[str, Any]:
        """What decides everything that is made from the converted files."""
        return {
            "target": [self._target.name, self._target.version],
            "base": self._content,
            "options": self._plan.options,
            "versions": versions(*self._target.distributions),
        }

    def _assembled(self, places: Sequence[Place]) -> Path:
        """One folder with all variants, as a conversion leaves it."""

        def build(folder: Path) -> None:
            for source, variant in places:
                own = PurePosixPath(variant.main).parent
                shutil.copytree(source / own, folder / "variants" / own)

        parts = {
            "target": [self._target.name, self._target.version],
            "files": [[variant.main, file_digest(source / variant.main)] for source, variant in places],
        }
        label = f"{self._target.name}: put the files together"
        return self._job.steps.stored("assemble", 1, parts, build, label=label).folder / "variants"


def _counted(batches: Iterable[Arrays], progress: Callable[[int], None]) -> Iterator[Arrays]:
    for done, batch in enumerate(batches, start=1):
        yield batch
        progress(done)
