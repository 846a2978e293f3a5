"""How the weights of a plan's members become one state dict, with what data tell about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exporter import sources
from exporter.measure import load_metric
from exporter.merge_checks import KNOWING, NEEDS_BASE
from exporter.pipeline.models import STATE, Inputs, Models, TorchModel
from exporter.plan import Plan
from exporter.plan_types import MergePlan

if TYPE_CHECKING:
    from torch import Tensor, nn

    from exporter.merge import Recipe, State

RANGES: Mapping[str, tuple[str, ...]] = {
    "slerp": ("position",),
    "task-arithmetic": ("scale",),
    "ties": ("scale", "density"),
    "dare": ("scale", "drop"),
}
LIMITS = {"position": (0.0, 1.0), "scale": (0.05, 1.5), "density": (0.05, 1.0), "drop": (0.0, 0.95)}
WEIGHT = (0.05, 2.0)
"""Range of a member's weight; searched where a method has no number of its own."""


class Weighing:
    """Merges weights; nothing is stored here."""

    def __init__(
        self, models: Models, plan: Plan, merge: MergePlan, inputs: Inputs, members: Mapping[str, TorchModel]
    ) -> None:
        self.models = models
        self.plan = plan
        self.merge = merge
        self.inputs = inputs
        self.members = members
        self.alone = False
        """Set where what came out is one member as it was."""

    def state(self, base: TorchModel | None, folder: Path) -> tuple[dict[str, Tensor], list[str]]:
        """The merged state dict, and what the user should know about it.

        Args:
            base: what all were fine-tuned from, where the method needs it.
            folder: takes what is known of each member, one file each, so that memory does not hold them all.
        """
        from exporter.merge import greedy_soup, merge_states, open_states, strangers

        notes: list[str] = []
        tied, learned = self._names()
        known = self._knowledge(folder) if self.merge.method in KNOWING else {}
        with _states(self.members, base, tied) as states, open_states(list(known.values())) as opened:
            start = states.pop("base", None)
            knowledge = dict(zip(known, opened, strict=True)) or None
            where = "the labelled calibration data" if self.merge.labels else "the evaluation data"

            def merged(recipe: Recipe) -> dict[str, Tensor]:
                return merge_states(states, recipe, base=start, knowledge=knowledge)

            if self.merge.method == "greedy-soup":
                state, chosen = greedy_soup(states, self.score)
                notes.append(f"{', '.join(chosen)} went into the soup, chosen on {where}")
                self.alone = len(chosen) == 1
            elif self.merge.search:
                state, text = self._searched(merged)
                notes.append(f"{text} on {where}")
            else:
                state = merged(self._recipe({}))
            notes += _halves(states)
            notes += averaged_notes(self.merge.method, states, knowledge or {}, learned)
            for left, right, distance in strangers(states, learned):
                notes.append(
                    f"'{left}' and '{right}' share no base (their weights are {distance:.2f} lengths apart): merging "
                    'such weights rarely works; `method = "transfer"` teaches one student by both'
                )
        for path in known.values():
            path.unlink()
        return state, notes

    def score(self, state: Mapping[str, Tensor], count: int = 0) -> float:
        """The metric of a state dict, its norms re-estimated where the plan asks for it; not of one model alone."""
        import numpy as np

        from exporter.compress import apply_structure, reestimate_norms
        from exporter.onnx_export import prepare_module, torch_session

        first = next(iter(self.members.values()))
        module: nn.Module = apply_structure(
            sources.load_factory(msgspec.structs.replace(first.plan, weights=None)), first.structure
        )
        module.load_state_dict(dict(state))
        if self.merge.norms and count != 1 and "calibration" in self.models.data.sections:
            call = self.models.call(first, self.inputs)
            module = reestimate_norms(module, self.models.calibration(self.inputs), call=call)
        session = torch_session(prepare_module(module, self.inputs, self.plan.model.outputs))
        evaluation, data = self.plan.evaluation, self.models.data
        if self.merge.labels:
            batches = data.learning(self.inputs).batches(data.sections["calibration"].batch_size)
        else:
            batches = data.open("evaluation", self.inputs).batches(data.sections["evaluation"].batch_size)
        outputs, labels = [], []
        for batch in batches:
            outputs.append(session(batch.inputs))
            labels.append(np.asarray(batch.labels))
        metric = load_metric(
            evaluation.metric if evaluation else "accuracy", evaluation.output if evaluation else None
        )
        whole = {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}
        return metric(whole, np.concatenate(labels))

    def _names(self) -> tuple[Sequence[Sequence[str]], set[str]]:
        """Names of the architecture's tensors that are one, and of those that are learned; no module is kept."""
        from torch import nn

        from exporter.merge import tied_names

        module = next(iter(self.members.values())).load()
        assert isinstance(module, nn.Module)
        return tied_names(module), {name for name, _ in module.named_parameters(remove_duplicate=False)}

    def _searched(self, merged: Callable[[Recipe], dict[str, Tensor]]) -> tuple[dict[str, Tensor], str]:
        from exporter.merge import search

        names = RANGES.get(self.merge.method, ())
        weights = {f"weight of {one.label}": one.weight for one in self.merge.models}
        start = {name: float(getattr(self.merge, name)) for name in names} or weights
        ranges = {name: LIMITS.get(name, (WEIGHT[0], max(WEIGHT[1], 2 * value))) for name, value in start.items()}
        label = f"merge ({self.merge.method})"
        progress, count = self.models.steps.progress(label), 0

        def score(values: Mapping[str, float]) -> float:
            nonlocal count
            reached = self.score(merged(self._recipe(values)))
            count += 1
            progress(count)
            return reached

        found = search(start, ranges, score, self.merge.search)
        chosen = ", ".join(f"{name} {value:.3g}" for name, value in found.values.items())
        text = f"{chosen}: {found.score:.4f} instead of {found.start:.4f} after {found.evaluations} evaluations"
        return merged(self._recipe(found.values)), text

    def _recipe(self, values: Mapping[str, float]) -> Recipe:
        from exporter.merge import Recipe

        numbers = {key: getattr(self.merge, key) for key in ("scale", "density", "drop", "position")}
        weights = {one.label: values.get(f"weight of {one.label}", one.weight) for one in self.merge.models}
        numbers |= {key: value for key, value in values.items() if key in numbers}
        return Recipe(method=self.merge.method, weights=weights, seed=self.merge.seed, **numbers)

    def _knowledge(self, folder: Path) -> dict[str, Path]:
        """What the method has to know of each member, as one .safetensors file each."""
        from safetensors.torch import save_file

        from exporter.merge import fisher_information, grams

        files: dict[str, Path] = {}
        for label, model in self.members.items():
            call = self.models.call(model, self.inputs)
            module = self.models.prepared(model, self.inputs).flat.inner
            batches = self.models.calibration(self.inputs)
            if self.merge.method == "fisher":
                known = fisher_information(module, batches, call=call, loss=self.merge.loss, seed=self.merge.seed)
            else:
                known = grams(module, batches, call=call)
            files[label] = folder / f"{len(files)}.known.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in known.items()}, files[label])
        return files


def state_file(model: TorchModel) -> Path:
    """The file that holds a model's state dict."""
    path = model.folder / STATE if model.folder else model.plan.weights
    assert path is not None, "weights are merged of models that have some"
    return path


@contextmanager
def _states(
    members: Mapping[str, TorchModel], base: TorchModel | None, tied: Sequence[Sequence[str]]
) -> Iterator[dict[str, State]]:
    """Members by name, and `base`; .safetensors files stay on disk, and may hold a tied tensor by one name only."""
    from exporter.merge import LoadedState, TiedState, open_states

    files = {label: state_file(model) for label, model in members.items()}
    if base is not None:
        files["base"] = state_file(base)
    lazy = [label for label, path in files.items() if path.suffix.lower() == ".safetensors"]
    pickled = any(model.plan.allow_pickle for model in members.values())
    with open_states([files[label] for label in lazy]) as opened:
        found: dict[str, State] = dict(zip(lazy, opened, strict=True))
        for label, path in files.items():
            if label not in found:
                found[label] = LoadedState(sources.read_state(path, allow_pickle=pickled))
        yield {label: TiedState(found[label], tied) for label in files}


def _halves(states: Mapping[str, State]) -> list[str]:
    """Says where members keep their weights in unequal types, or in halves: what comes out has the first one's."""
    import torch

    own, *others = states
    kinds: dict[str, set[torch.dtype]] = {}
    for label, state in states.items():
        found = {state.get(name).dtype for name in state.names()}
        kinds[label] = {kind for kind in found if kind.is_floating_point}
    if kinds[own] <= {torch.float32} and all(kinds[label] == kinds[own] for label in others):
        return []
    shown = "; ".join(
        f"'{label}' {', '.join(sorted(str(kind).removeprefix('torch.') for kind in found)) or 'none'}"
        for label, found in kinds.items()
    )
    return [f"weights are merged in float32, and what comes out has the types of '{own}'; they are {shown}"]


def averaged_notes(
    method: str, states: Mapping[str, State], knowledge: Mapping[str, State], learned: set[str]
) -> list[str]:
    """Names the weights that a method which looks at what models do has found out nothing about."""
    if not knowledge:
        return []
    own, known = next(iter(states.values())), set(next(iter(knowledge.values())).names())
    weights = [name for name in own.names() if name in learned and len(own.shape(name)) > 1]
    if not (plain := [name for name in weights if name not in known]):
        return []
    shown = ", ".join(plain[:4]) + (", ..." if len(plain) > 4 else "")
    return [f"'{method}' finds out nothing about {len(plain)} of {len(weights)} weights, which are averaged: {shown}"]


def numbers(merge: MergePlan) -> Sequence[Any]:
    """Everything in a plan's [merge] that decides the merged weights, beside models and data."""
    keys = ("method", "scale", "density", "drop", "position", "seed", "search", "labels", "loss", "norms")
    return [getattr(merge, key) for key in keys]


def needs_base(merge: MergePlan) -> bool:
    """Whether the method works on what models learned since their base."""
    return merge.method in NEEDS_BASE
