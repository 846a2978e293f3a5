"""[merge]: several state dicts into one, compared with each of them and with their base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter import sources
from exporter.artifacts import Fidelity, HistoryEntry, canonical, file_digest
from exporter.errors import DataError
from exporter.merge_checks import NEEDS_BASE
from exporter.pipeline.comparing import compare
from exporter.pipeline.judging import judge, judged_by
from exporter.pipeline.models import STATE, Inputs, Models, TorchModel, write_model
from exporter.pipeline.results import DataChecked, Reference, load_json
from exporter.pipeline.steps import versions
from exporter.plan import Plan
from exporter.plan_types import MergePlan

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.merge import State


class Merging:
    """Makes the merged model of a plan, and refuses it when it is worse than what went into it."""

    def __init__(self, models: Models, plan: Plan, inputs: Inputs, checked: DataChecked, data: Path) -> None:
        if plan.merge is None:
            raise ValueError("the plan merges nothing")
        self.models = models
        self.plan = plan
        self.merge: MergePlan = plan.merge
        self.inputs = inputs
        self.checked = checked
        self.data = data
        self.members = {
            member.label: self._own(member.weights) for member in plan.merge.models if member.weights is not None
        }
        self.base = plan.merge.base or plan.model.weights
        self.scored = judged_by(plan.evaluation) is not None
        if plan.merge.method == "greedy-soup" and not self.scored:
            raise DataError(
                "a greedy soup adds models while the metric does not fall, and there are no labels",
                where="merge.method",
                hint="name the labels, `[evaluation] labels = ...`, or take `average`",
            )

    def run(self) -> tuple[TorchModel, tuple[HistoryEntry, ...]]:
        """The merged model, and the table of it, its members and its base.

        Raises:
            ModelError: the members are not of one architecture, or not of the factory's.
            GateError: the merged model is worse than the best of them, and `accept` is `better`.
        """
        merged, notes = self._merged()
        reference = self.models.outputs(merged, self.inputs)
        entries = []
        if self.base is not None:
            entries.append(self._entry(self._own(self.base), "base", "base", reference))
        entries += [self._entry(model, label, "member", reference) for label, model in self.members.items()]
        result = self._entry(merged, f"merged ({self.merge.method})", "merged", reference, notes)
        entries.append(msgspec.structs.replace(result, fidelity=None))
        compare(entries, self.merge.accept, self.models.steps.emit)
        return merged, tuple(entries)

    def _merged(self) -> tuple[TorchModel, tuple[str, ...]]:
        bare = msgspec.structs.replace(self.plan.model, weights=None)
        norms = self.merge.norms and "calibration" in self.models.data.sections
        parts = {
            "architecture": sources.identify(bare).digest,
            "members": [[self.members[member.label].content, member.weight] for member in self.merge.models],
            "base": file_digest(self.base) if self.base and self.merge.method in NEEDS_BASE else None,
            "method": self.merge.method,
            "numbers": [getattr(self.merge, key) for key in ("scale", "density", "drop", "position", "seed")],
            "norms": self.models.data.parts("calibration") if norms else None,
            "inputs": self.inputs,
            "soup": [self.models.data.digests[self.models.data.judged], judged_by(self.plan.evaluation)]
            if self.merge.method == "greedy-soup"
            else None,
            "versions": versions("torch"),
        }
        stored = self.models.steps.stored(
            "merge", 1, parts, lambda folder: self._build(folder, norms), label=f"merge ({self.merge.method})"
        )
        model = TorchModel(plan=bare, kind="factory", content=stored.content, folder=stored.folder)
        return model, load_json(stored.folder / "notes.json", tuple[str, ...])

    def _build(self, folder: Path, norms: bool) -> None:
        from exporter.compress import batch_norms, reestimate_norms
        from exporter.merge import Recipe, greedy_soup, merge_states, strangers

        notes: list[str] = []
        with self._states() as states:
            base = states.pop("base", None)
            if self.merge.method == "greedy-soup":
                state, chosen = greedy_soup(states, self._score)
                notes.append(f"{', '.join(chosen)} went into the soup, chosen on the evaluation data")
            else:
                recipe = Recipe(
                    method=self.merge.method,
                    weights={member.label: member.weight for member in self.merge.models},
                    scale=self.merge.scale,
                    density=self.merge.density,
                    drop=self.merge.drop,
                    position=self.merge.position,
                    seed=self.merge.seed,
                )
                state = merge_states(states, recipe, base=base)
            for left, right, distance in strangers(states):
                notes.append(
                    f"'{left}' and '{right}' share no base (their weights are {distance:.2f} lengths apart): merging "
                    "such weights rarely works"
                )
        write_model(folder, state, ())
        if norms:
            model = self._own(folder / STATE)
            module = self.models.prepared(model, self.inputs).flat.inner
            if count := len(batch_norms(module)):
                call = self.models.call(model, self.inputs)
                module = reestimate_norms(module, self.models.calibration(self.inputs), call=call)
                write_model(folder, module.state_dict(), ())
                notes.append(f"the statistics of {count} batch norms were estimated again on the calibration inputs")
        elif self.merge.norms:
            notes.append("batch norms keep merged statistics: there are no calibration inputs to estimate them on")
        (folder / "notes.json").write_bytes(canonical(notes))

    def _own(self, weights: Path) -> TorchModel:
        plan = msgspec.structs.replace(self.plan.model, weights=weights)
        return TorchModel(plan=plan, kind="factory", content=sources.identify(plan).digest)

    @contextmanager
    def _states(self) -> Iterator[dict[str, State]]:
        """Members by name, and `base` where the method needs one; .safetensors files stay on disk."""
        from exporter.merge import LoadedState, open_states

        files = {member.label: member.weights for member in self.merge.models if member.weights is not None}
        if self.base is not None and self.merge.method in NEEDS_BASE:
            files["base"] = self.base
        lazy = [label for label, path in files.items() if path.suffix.lower() == ".safetensors"]
        with open_states([files[label] for label in lazy]) as opened:
            found: dict[str, State] = dict(zip(lazy, opened, strict=True))
            for label, path in files.items():
                if label not in found:
                    state = sources.read_state(path, allow_pickle=self.plan.model.allow_pickle)
                    found[label] = LoadedState(state)
            yield {label: found[label] for label in files}

    def _score(self, state: Mapping[str, Tensor]) -> float:
        """The metric of a state dict, with its norms re-estimated where the plan asks for it."""
        from exporter.compress import reestimate_norms
        from exporter.onnx_export import prepare_module, torch_session

        first = next(iter(self.members.values()))
        module = sources.load_factory(msgspec.structs.replace(self.plan.model, weights=None))
        module.load_state_dict(dict(state))
        if self.merge.norms and "calibration" in self.models.data.sections:
            call = self.models.call(first, self.inputs)
            module = reestimate_norms(module, self.models.calibration(self.inputs), call=call)
        fidelity = judge(
            self.models.data,
            self.inputs,
            self.models.outputs(first, self.inputs, "run the first member"),
            torch_session(prepare_module(module, self.inputs, self.plan.model.outputs)),
            self.plan.evaluation,
            runs_in="torch",
            progress=lambda done: None,
        )
        if fidelity.metric is None:
            raise ValueError("a score needs labels")
        return fidelity.metric.value

    def _entry(
        self, model: TorchModel, name: str, role: str, reference: Reference, notes: tuple[str, ...] = ()
    ) -> HistoryEntry:
        fidelity: Fidelity = self.models.judged(model, self.inputs, reference, name)
        return HistoryEntry(
            name=name,
            role=role,  # type: ignore[arg-type]
            digest=model.content,
            cost=self.models.cost(model, self.inputs, self.checked, self.data),
            fidelity=fidelity,
            metric=fidelity.metric.value if fidelity.metric else None,
            notes=notes,
        )
