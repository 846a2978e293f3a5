"""A student taught by one or several teachers, on unlabelled inputs (Hinton 2015, arXiv 1503.02531)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.compress.calling import Batch, Call, plainly
from exporter.errors import ModelError

HELD_OUT = 0.2
"""Share of the inputs that the student is judged on and never learns from."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How a student is taught; see `DistilStep` for what the numbers mean."""

    loss: Literal["kl", "mse"] = "kl"
    temperature: float = 4.0
    epochs: int = 40
    patience: int = 10
    rate: float = 1e-3
    batch_size: int = 32
    fuse: Literal["mean", "confidence"] = "mean"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Taught:
    """The best student of all epochs.

    Attributes:
        student: in eval mode.
        before: loss on the held-out inputs before the first epoch.
        best: the same of this student.
        epoch: after which this student was taken; 0 is the untaught one.
        stopped: why teaching ended.
    """

    student: nn.Module
    before: float
    best: float
    epoch: int
    stopped: str


def distil(
    student: nn.Module,
    teachers: Sequence[nn.Module],
    inputs: Batch,
    teaching: Teaching,
    *,
    call: Call = plainly,
    progress: Callable[[int], None] = lambda epoch: None,
) -> Taught:
    """Teaches a copy of a student to answer as its teachers do; no labels are used.

    Args:
        student: left unchanged.
        teachers: their answers are the goal; each gives as many outputs of the same shapes as the student.
        inputs: all samples, one tensor an input, along axis 0.
        teaching: loss and numbers.
        call: runs a module on a batch.
        progress: told how many epochs are done.

    Raises:
        ModelError: outputs of student and teachers differ in number or shape, or there are too few samples.
    """
    samples = len(inputs[0])
    held = max(1, round(HELD_OUT * samples))
    if samples - held < 2:
        raise ModelError(f"{samples} samples are too few to teach and to judge on", where="[calibration]")
    random = torch.Generator().manual_seed(teaching.seed)
    order = torch.randperm(samples, generator=random)
    goals = _goals(teachers, inputs, teaching, call)
    taught = copy.deepcopy(student).requires_grad_(True)
    _check_outputs(taught, inputs, goals, call)
    judged, learned = order[:held], order[held:]
    loss_of = _kl if teaching.loss == "kl" else _mse

    def held_out() -> float:
        taught.eval()
        with torch.no_grad():
            answers = call(taught, tuple(tensor[judged] for tensor in inputs))
            return float(loss_of(answers, [goal[judged] for goal in goals], teaching.temperature))

    before = best = held_out()
    kept, kept_epoch, stopped = copy.deepcopy(taught.state_dict()), 0, "all epochs done"
    if not math.isfinite(before):
        raise ModelError(
            "the student's loss is not finite before it has learned anything",
            where='[[compress.steps]] method = "distil"',
            hint="look at the student's outputs: NaN or infinity in them cannot be taught away",
        )
    optimizer = torch.optim.AdamW(taught.parameters(), teaching.rate, weight_decay=1e-4)
    steps = max(1, len(learned) // teaching.batch_size) * teaching.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, teaching.rate, total_steps=steps)
    for epoch in range(1, teaching.epochs + 1):
        taught.train()
        shuffled = learned[torch.randperm(len(learned), generator=random)]
        for index in range(max(1, len(learned) // teaching.batch_size)):
            chosen = shuffled[index * teaching.batch_size : (index + 1) * teaching.batch_size]
            answers = call(taught, tuple(tensor[chosen] for tensor in inputs))
            loss = loss_of(answers, [goal[chosen] for goal in goals], teaching.temperature)
            if not torch.isfinite(loss):
                stopped = f"the loss became {loss.item()} in epoch {epoch}: the best student before is kept"
                break
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(taught.parameters(), 5.0)
            optimizer.step()
            schedule.step()
        else:
            reached = held_out()
            if math.isfinite(reached) and reached < best:
                best, kept, kept_epoch = reached, copy.deepcopy(taught.state_dict()), epoch
            progress(epoch)
            if epoch - kept_epoch < teaching.patience:
                continue
            stopped = f"no better for {teaching.patience} epochs"
        break
    taught.load_state_dict(kept)
    taught.eval().requires_grad_(False)
    return Taught(student=taught, before=before, best=best, epoch=kept_epoch, stopped=stopped)


def _goals(teachers: Sequence[nn.Module], inputs: Batch, teaching: Teaching, call: Call) -> list[Tensor]:
    """What the student is to answer: the teachers' outputs, for KL as probabilities at the temperature."""
    answers: list[list[Tensor]] = []
    for teacher in teachers:
        taught_by = copy.deepcopy(teacher).eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(inputs[0]), 256):
                parts.append(call(taught_by, tuple(tensor[start : start + 256] for tensor in inputs)))
        answers.append([torch.cat(outputs) for outputs in zip(*parts, strict=True)])
    shapes = {tuple(tuple(output.shape) for output in outputs) for outputs in answers}
    if len(shapes) > 1:
        raise ModelError(
            "the teachers' outputs differ in number or shape",
            where='[[compress.steps]] method = "distil"',
            why="; ".join(str([list(shape) for shape in one]) for one in sorted(shapes)),
        )
    goals = []
    for outputs in zip(*answers, strict=True):
        if teaching.loss == "mse":
            goals.append(torch.stack(outputs).mean(0))
            continue
        chances = torch.stack([torch.softmax(output / teaching.temperature, -1) for output in outputs])
        if teaching.fuse == "confidence":
            # For each sample the teacher that is surest of it: teachers of different classes know different samples.
            sure = torch.stack([torch.softmax(output, -1).amax(-1, keepdim=True) for output in outputs])
            chances = chances * (sure == sure.amax(0, keepdim=True))
            chances = chances / chances.sum((0, -1), keepdim=True)
            goals.append(chances.sum(0))
        else:
            goals.append(chances.mean(0))
    return goals


def _check_outputs(student: nn.Module, inputs: Batch, goals: Sequence[Tensor], call: Call) -> None:
    student.eval()
    with torch.no_grad():
        answers = call(student, tuple(tensor[:2] for tensor in inputs))
    got, wanted = [list(answer.shape[1:]) for answer in answers], [list(goal.shape[1:]) for goal in goals]
    if got != wanted:
        raise ModelError(
            "the student's outputs do not match the teachers'",
            where='[[compress.steps]] method = "distil"',
            why=f"for one sample the student gives {got}, the teachers {wanted}",
            hint="give the student as many outputs, and as many classes, as its teachers have",
        )


def _kl(answers: Sequence[Tensor], goals: Sequence[Tensor], temperature: float) -> Tensor:
    losses = [
        nn.functional.kl_div(torch.log_softmax(answer / temperature, -1), goal, reduction="none").sum(-1).mean()
        for answer, goal in zip(answers, goals, strict=True)
    ]
    # Gradients shrink with the square of the temperature.
    return torch.stack(losses).sum() * temperature**2


def _mse(answers: Sequence[Tensor], goals: Sequence[Tensor], temperature: float) -> Tensor:
    losses = [nn.functional.mse_loss(answer, goal) for answer, goal in zip(answers, goals, strict=True)]
    return torch.stack(losses).sum()
