"""What a student is to learn: goals from teachers, losses, and hints between the layers of both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.compress.calling import Batch, Call
from exporter.errors import DataError, ModelError, closest

WHERE = '[[compress.steps]] method = "distil"'
AT_ONCE = 256
"""Samples that teachers answer together."""


def class_axis(output: Tensor) -> int:
    """Where an output's classes are: second in maps (N, C, H, W), as torch's losses have it, else last."""
    return 1 if output.dim() >= 4 else output.dim() - 1


def in_floats(call: Call) -> Call:
    """The same call, without outputs in whole numbers or yes and no: no gradient leads through them."""

    def called(module: nn.Module, batch: Batch) -> Sequence[Tensor]:
        outputs = [output for output in call(module, batch) if output.is_floating_point()]
        if not outputs:
            raise ModelError(
                "the model's outputs are whole numbers, which cannot be taught",
                where=WHERE,
                hint="let the factory's module return what they are made from, such as logits beside their argmax",
            )
        return outputs

    return called


def check_classes(outputs: Sequence[Tensor]) -> None:
    """Holds that every output has classes, which `kl` compares.

    Raises:
        ModelError: one is a value, of which softmax would make 1 whatever it is.
    """
    for index, output in enumerate(outputs, start=1):
        if output.dim() < 2 or output.shape[class_axis(output)] < 2:
            which = f"output {index} of {len(outputs)}" if len(outputs) > 1 else "the output"
            raise ModelError(
                f'`loss = "kl"` compares chances of classes, and {which} has no classes',
                where=f"{WHERE}, loss",
                why=f"for one sample its shape is {list(output.shape[1:])}",
                hint='use `loss = "mse"`, which compares values',
            )


def answers_of(teachers: Sequence[nn.Module], inputs: Batch, call: Call, device: torch.device) -> list[list[Tensor]]:
    """Outputs of each teacher on all inputs.

    Raises:
        ModelError: they differ in number or shape, or hold NaN or infinity.
    """
    answers: list[list[Tensor]] = []
    for teacher in teachers:
        knows = copy.deepcopy(teacher).eval().to(device)
        parts = []
        with torch.no_grad():
            for start in range(0, len(inputs[0]), AT_ONCE):
                parts.append(call(knows, tuple(tensor[start : start + AT_ONCE] for tensor in inputs)))
        answers.append([torch.cat(outputs) for outputs in zip(*parts, strict=True)])
    for index, outputs in enumerate(answers):
        if not all(bool(torch.isfinite(output).all()) for output in outputs):
            which = f"teacher {index + 1} of {len(teachers)}" if len(teachers) > 1 else "the teacher"
            raise ModelError(
                f"{which} answers NaN or infinity, which cannot be learned",
                where=f"{WHERE}, teachers",
                hint="look at its weights, and at the scale of its inputs ([model.inputs] preprocess)",
            )
    shapes = {tuple(tuple(output.shape) for output in outputs) for outputs in answers}
    if len(shapes) > 1:
        raise ModelError(
            "the teachers' outputs differ in number or shape",
            where=WHERE,
            why="; ".join(str([list(shape) for shape in one]) for one in sorted(shapes)),
        )
    return answers


def goals_of(
    answers: Sequence[Sequence[Tensor]], loss: str, temperature: float, fuse: Literal["mean", "confidence"]
) -> list[Tensor]:
    """What the student is to answer: the teachers' outputs, for `kl` as probabilities at the temperature."""
    goals = []
    for outputs in zip(*answers, strict=True):
        if loss == "mse":
            goals.append(torch.stack(outputs).mean(0))
            continue
        axis = class_axis(outputs[0])
        chances = torch.stack([torch.softmax(output / temperature, axis) for output in outputs])
        if fuse == "confidence":
            # For each sample the teacher that is surest of it: teachers of different classes know different samples.
            sure = torch.stack([torch.softmax(output, axis).amax(axis, keepdim=True) for output in outputs])
            chances = chances * (sure == sure.amax(0, keepdim=True))
            chances = chances / chances.sum((0, axis + 1), keepdim=True)
            goals.append(chances.sum(0))
        else:
            goals.append(chances.mean(0))
    return goals


def check_outputs(student: nn.Module, inputs: Batch, goals: Sequence[Tensor], call: Call) -> None:
    """Holds that a student answers in the shapes of its goals.

    Raises:
        ModelError: it does not.
    """
    student.eval()
    with torch.no_grad():
        answers = call(student, tuple(tensor[:2] for tensor in inputs))
    got, wanted = [list(answer.shape[1:]) for answer in answers], [list(goal.shape[1:]) for goal in goals]
    if got != wanted:
        raise ModelError(
            "the student's outputs do not match the teachers'",
            where=WHERE,
            why=f"for one sample the student gives {got}, the teachers {wanted}",
            hint="give the student as many outputs, and as many classes, as its teachers have",
        )


def checked_labels(labels: Tensor, goal: Tensor, loss: str) -> Tensor:
    """Labels as the loss takes them: class indices for `kl`, values in the output's shape for `mse`.

    Raises:
        DataError: they are neither.
    """
    given = f"{str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape[1:])}"
    if loss == "mse":
        fits, wanted = labels.shape == goal.shape, f"values of shape {list(goal.shape[1:])}"
        labels = labels.to(goal.dtype)
    else:
        axis = class_axis(goal)
        places = (*goal.shape[:axis], *goal.shape[axis + 1 :])
        fits = not labels.is_floating_point() and labels.shape == places
        labels = labels.long()  # torch has no smallest value of unsigned numbers.
        fits = fits and 0 <= int(labels.min()) <= int(labels.max()) < goal.shape[axis]
        wanted = f"class indices of shape {list(places[1:])} below {goal.shape[axis]}"
    if not fits:
        raise DataError(
            "the labels do not fit the student's first output",
            where=f"{WHERE}, labels",
            why=f'one sample has {given}; `loss = "{loss}"` takes {wanted}',
            hint="remove `labels`: teachers are enough",
        )
    return labels


def soft_loss(answers: Sequence[Tensor], goals: Sequence[Tensor], loss: str, temperature: float) -> Tensor:
    """Distance from the teachers' answers, summed over outputs."""
    if loss == "mse":
        losses = [nn.functional.mse_loss(answer, goal) for answer, goal in zip(answers, goals, strict=True)]
        return torch.stack(losses).sum()
    losses = [
        nn.functional.kl_div(torch.log_softmax(answer / temperature, axis), goal, reduction="none").sum(axis).mean()
        for answer, goal in zip(answers, goals, strict=True)
        for axis in (class_axis(goal),)
    ]
    # Gradients shrink with the square of the temperature.
    return torch.stack(losses).sum() * temperature**2


def hard_loss(answer: Tensor, labels: Tensor, loss: str) -> Tensor:
    """Distance from the labels."""
    if loss == "mse":
        return nn.functional.mse_loss(answer, labels)
    return nn.functional.cross_entropy(answer.movedim(class_axis(answer), 1), labels)


class Hints(nn.Module):
    """Layers of the student that are to answer as layers of its teachers do (FitNets, arXiv 1412.6550).

    Where they differ in width, a linear map between them is learned beside the student and dropped afterwards.
    """

    def __init__(
        self,
        pairs: Sequence[Mapping[str, str]],
        student: nn.Module,
        teachers: Sequence[nn.Module],
        inputs: Batch,
        call: Call,
        within: Callable[[nn.Module], nn.Module],
    ) -> None:
        """Finds the layers and makes the maps.

        Args:
            pairs: for each teacher, layer of the student -> its own layer; a teacher may have none.
            student: what is taught.
            teachers: left unchanged.
            inputs: all samples; a few are run.
            call: runs a module on a batch.
            within: the module that names its layers, within one that `call` runs.

        Raises:
            ModelError: there are no such layers, or they differ in more than their number of channels.
        """
        super().__init__()
        self.pairs, self.call, self.within = [dict(one) for one in pairs], call, within
        self.names = list(dict.fromkeys(name for one in self.pairs for name in one))
        check_hints(self.names, within(student), "student")
        for one, teacher in zip(self.pairs, teachers, strict=True):
            check_hints(list(one.values()), within(teacher), "teacher")
        self.teachers = [copy.deepcopy(teacher).eval().to(inputs[0].device) for teacher in teachers]
        few = tuple(tensor[:2] for tensor in inputs)
        with torch.no_grad(), self.watching(student) as own:
            call(student, few)
        self.maps = nn.ModuleList()
        for one, features in zip(self.pairs, self._taught(few), strict=True):
            maps = [self._map(name, other, own[name], features[other]) for name, other in one.items()]
            self.maps.append(nn.ModuleList(maps))
        self.to(inputs[0].device)

    @contextmanager
    def watching(self, student: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Features of the student's layers, by their names, as it runs."""
        with _features(self.within(student), self.names) as found:
            yield found

    def loss(self, own: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean square difference of all pairs and teachers, relative to the teachers' features."""
        losses = []
        for one, maps, features in zip(self.pairs, self.maps, self._taught(batch), strict=True):
            assert isinstance(maps, nn.ModuleList)
            for change, (name, other) in zip(maps, one.items(), strict=True):
                goal = features[other]
                mapped = change(own[name].movedim(_axis(own[name]), -1)).movedim(-1, _axis(own[name]))
                losses.append(nn.functional.mse_loss(mapped, goal) / (goal.square().mean() + 1e-8))
        return torch.stack(losses).mean()

    def _taught(self, batch: Batch) -> list[dict[str, Tensor]]:
        found = []
        for one, teacher in zip(self.pairs, self.teachers, strict=True):
            with torch.no_grad(), _features(self.within(teacher), list(one.values())) as features:
                if one:
                    self.call(teacher, batch)
            found.append(dict(features))
        return found

    @staticmethod
    def _map(name: str, other: str, own: Tensor, goal: Tensor) -> nn.Module:
        axis = _axis(own)
        mine, theirs = list(own.shape), list(goal.shape)
        inner, outer = mine.pop(axis), theirs.pop(axis) if own.dim() == goal.dim() else 0
        if own.dim() != goal.dim() or mine != theirs:
            raise ModelError(
                f"the hint '{name}' = '{other}' joins layers of different shapes",
                where=f"{WHERE}, hints",
                why=f"for one sample the student's is {list(own.shape[1:])} and the teacher's {list(goal.shape[1:])}",
                hint="join layers that differ in their number of channels only",
            )
        return nn.Identity() if inner == outer else nn.Linear(inner, outer, bias=False)


def check_hints(names: Sequence[str], module: nn.Module, whose: str) -> None:
    """Holds that hints name modules.

    Raises:
        ModelError: one does not; the closest is proposed.
    """
    known = [name for name, _ in module.named_modules() if name]
    if unknown := [f"'{name}'{closest(name, known)}" for name in names if name not in known]:
        raise ModelError(
            f"the {whose} has no module {', '.join(unknown)}",
            where=f"{WHERE}, hints",
            hint=f"its modules: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}",
        )


@contextmanager
def _features(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, inputs: object, output: object) -> None:
        del layer, inputs
        if not isinstance(output, Tensor):
            raise ModelError(
                f"the layer '{name}' gives no tensor", where=f"{WHERE}, hints", hint="name a layer within it"
            )
        found[name] = output

    make: Callable[[str], Callable[..., None]] = lambda name: partial(keep, name)  # noqa: E731
    hooks = [module.get_submodule(name).register_forward_hook(make(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _axis(features: Tensor) -> int:
    """Where channels are: second in images, last in sequences and vectors."""
    return 1 if features.dim() == 4 else features.dim() - 1
