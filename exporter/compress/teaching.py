"""A student taught by one or several teachers, with or without labels (Hinton 2015, arXiv 1503.02531)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exporter.compress.calling import Batch, Call, as_batch, check_words, learnable, plainly
from exporter.compress.halves import Learned
from exporter.compress.lessons import (
    WHERE,
    Hints,
    answers_of,
    check_classes,
    check_outputs,
    checked_labels,
    goals_of,
    hard_loss,
    in_floats,
    soft_loss,
)
from exporter.errors import DataError, ModelError

HELD_OUT = 0.2
"""Share of the inputs that the student is judged on and never learns from."""
KEEP_SECONDS = 2.0
"""How much teaching a kill may cost."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How a student is taught; see `DistilStep` for what the numbers mean.

    `hints` hold for every teacher, or there is one mapping for each.
    """

    loss: Literal["kl", "mse"] = "kl"
    temperature: float = 4.0
    epochs: int = 40
    patience: int = 10
    rate: float = 1e-3
    batch_size: int = 32
    fuse: Literal["mean", "confidence"] = "mean"
    hard: float = 0.3
    hints: Mapping[str, str] | Sequence[Mapping[str, str]] = field(default_factory=dict)
    hint_weight: float = 1.0
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
        resumed: after which epoch a killed run was taken up; 0 where there was none.
    """

    student: nn.Module
    before: float
    best: float
    epoch: int
    stopped: str
    resumed: int = 0

    def told(self, epochs: int) -> str:
        """How it went, in words; `epochs` is how many there were to be at most."""
        best = f"best after epoch {self.epoch} of {epochs}" if self.epoch else "no epoch made it better"
        return f"held-out loss {self.before:.4g} -> {self.best:.4g}, {best}; {self.stopped}"


def distil(
    student: nn.Module,
    teachers: Sequence[nn.Module],
    inputs: Batch,
    teaching: Teaching,
    *,
    labels: Tensor | None = None,
    zeros: Sequence[str] = (),
    call: Call = plainly,
    within: Callable[[nn.Module], nn.Module] = lambda module: module,
    progress: Callable[[int], None] = lambda epoch: None,
    unfinished: Path | None = None,
) -> Taught:
    """Teaches a copy of a student to answer as its teachers do; on a GPU where torch has one.

    Args:
        student: left unchanged.
        teachers: their answers are the goal; each gives as many outputs of the same shapes as the student. Outputs in
            whole numbers are left out.
        inputs: all samples, one tensor an input, along axis 0.
        teaching: loss and numbers.
        labels: of all samples, for the first output; `teaching.hard` weighs them. None: teachers alone.
        zeros: names of weights whose zeros stay.
        call: runs a module on a batch.
        within: the module whose layers `teaching.hints` name, within a student or teacher.
        progress: told how many epochs are done.
        unfinished: a file that keeps the state between epochs, taken up when it is there and removed at the end.

    Raises:
        DataError: the labels do not fit, or there are too few samples.
        ModelError: outputs of student and teachers differ in number or shape, some cannot be taught by this loss, or
            hints name no modules.
    """
    check_words(teaching)
    if not teachers:
        raise ValueError("give a teacher")
    samples = len(as_batch(inputs)[0])
    held = max(1, round(HELD_OUT * samples))
    if samples - held < 2:
        raise DataError(
            f"{samples} samples are too few to teach and to judge on",
            where="[calibration]",
            hint="give some hundred inputs: a fifth of them is held out",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = tuple(tensor.to(device) for tensor in inputs)
    call = in_floats(call)
    answers = answers_of(teachers, inputs, call, device)
    if teaching.loss == "kl":
        check_classes(answers[0])
    goals = goals_of(answers, teaching.loss, teaching.temperature, teaching.fuse)
    taught = learnable(copy.deepcopy(student)).to(device)
    check_outputs(taught, inputs, goals, call)
    targets = None if labels is None else checked_labels(labels.to(device), goals[0], teaching.loss)
    with torch.random.fork_rng(devices=[]):  # Dropout and maps between features, the same each time.
        torch.manual_seed(teaching.seed)
        pairs = [teaching.hints] * len(teachers) if isinstance(teaching.hints, Mapping) else teaching.hints
        hints = Hints(pairs, taught, teachers, inputs, call, within) if any(pairs) else None
        lesson = _Lesson(taught, inputs, goals, targets, hints, teaching, call, held)
        result = lesson.run(zeros, progress, unfinished)
    if unfinished is not None:
        unfinished.unlink(missing_ok=True)
    return result


class _Lesson:
    """The epochs of one student."""

    def __init__(
        self,
        taught: nn.Module,
        inputs: Batch,
        goals: Sequence[Tensor],
        labels: Tensor | None,
        hints: Hints | None,
        teaching: Teaching,
        call: Call,
        held: int,
    ) -> None:
        self.taught, self.inputs, self.goals, self.labels = taught, inputs, goals, labels
        self.hints, self.teaching, self.call = hints, teaching, call
        self.random = torch.Generator().manual_seed(teaching.seed)
        order = torch.randperm(len(inputs[0]), generator=self.random)
        self.judged, self.learned = order[:held], order[held:]
        self.batches = max(1, len(self.learned) // teaching.batch_size)
        self.own = Learned(taught)
        parameters = [*self.own.parameters, *(hints.parameters() if hints else ())]
        self.optimizer = torch.optim.AdamW(parameters, teaching.rate, weight_decay=1e-4)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, teaching.rate, total_steps=self.batches * teaching.epochs
        )

    def run(self, zeros: Sequence[str], progress: Callable[[int], None], unfinished: Path | None) -> Taught:
        """All epochs, from where a killed run was."""
        teaching, taught = self.teaching, self.taught
        masks = [(taught.get_parameter(name), taught.get_parameter(name) != 0) for name in zeros]
        before = best = self._held_out()
        kept, kept_epoch, stopped = _copied(taught), 0, "all epochs done"
        if not math.isfinite(before):
            raise ModelError(
                "the student's loss is not finite before it has learned anything",
                where=WHERE,
                hint="look at the student's outputs: NaN or infinity in them cannot be taught away",
            )
        first, saved = 1, time.monotonic()
        if state := _read(unfinished):
            self._restore(state)
            best, kept, kept_epoch, first = state["best"], state["kept"], state["kept_epoch"], state["epoch"] + 1
        resumed = first - 1
        for epoch in range(first, teaching.epochs + 1):
            if epoch - 1 - kept_epoch >= teaching.patience:
                stopped = f"no better for {teaching.patience} epochs"
                break
            if bad := self._epoch(masks):
                stopped = f"the loss became {bad} in epoch {epoch}: the best student before is kept"
                break
            reached = self._held_out()
            if math.isfinite(reached) and reached < best:
                best, kept, kept_epoch = reached, _copied(taught), epoch
            progress(epoch)
            if unfinished is not None and time.monotonic() - saved >= KEEP_SECONDS:
                _write(
                    unfinished, self._state() | {"best": best, "kept": kept, "kept_epoch": kept_epoch, "epoch": epoch}
                )
                saved = time.monotonic()
        else:
            if teaching.epochs - kept_epoch >= teaching.patience:
                stopped = f"no better for {teaching.patience} epochs"
        taught.load_state_dict(kept)
        student = taught.eval().requires_grad_(False).to("cpu")
        return Taught(student=student, before=before, best=best, epoch=kept_epoch, stopped=stopped, resumed=resumed)

    def _epoch(self, masks: Sequence[tuple[nn.Parameter, Tensor]]) -> str:
        """Learns once from every sample; says what the loss became where it is no number any more."""
        self.taught.train()
        size = self.teaching.batch_size
        shuffled = self.learned[torch.randperm(len(self.learned), generator=self.random)]
        for index in range(self.batches):
            loss = self._loss(shuffled[index * size : (index + 1) * size], hinted=True)
            if not torch.isfinite(loss):
                return str(loss.item())
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.own.take_gradients()
            nn.utils.clip_grad_norm_(self.own.parameters, 5.0)
            self.optimizer.step()
            self.own.give_values()
            self.schedule.step()
            with torch.no_grad():
                for weight, mask in masks:
                    weight.mul_(mask)
        return ""

    def _held_out(self) -> float:
        self.taught.eval()
        with torch.no_grad():
            return float(self._loss(self.judged, hinted=False))

    def _loss(self, chosen: Tensor, *, hinted: bool) -> Tensor:
        teaching = self.teaching
        batch = tuple(tensor[chosen] for tensor in self.inputs)
        hints = self.hints if hinted else None
        with ExitStack() as stack:
            own = stack.enter_context(hints.watching(self.taught)) if hints else {}
            answers = self.call(self.taught, batch)
        loss = soft_loss(answers, [goal[chosen] for goal in self.goals], teaching.loss, teaching.temperature)
        if self.labels is not None:
            hard = hard_loss(answers[0], self.labels[chosen], teaching.loss)
            loss = (1 - teaching.hard) * loss + teaching.hard * hard
        return loss + teaching.hint_weight * hints.loss(own, batch) if hints else loss

    def _state(self) -> dict[str, Any]:
        return {
            "student": self.taught.state_dict(),
            "maps": self.hints.state_dict() if self.hints else {},
            "halves": self.own.state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.random.get_state(),
            "random": torch.get_rng_state(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.taught.load_state_dict(state["student"])
        if self.hints:
            self.hints.load_state_dict(state["maps"])
        self.own.restore(state["halves"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.random.set_state(state["order"])
        torch.set_rng_state(state["random"])


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _write(path: Path, state: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    torch.save(dict(state), partial)
    partial.replace(path)


def _read(path: Path | None) -> dict[str, Any] | None:
    """What a killed run left; None where there is nothing that can be read."""
    if path is None or not path.is_file():
        return None
    try:
        found = torch.load(path, weights_only=True)
    except Exception:  # A damaged file only costs the epochs that it held.
        return None
    return found if isinstance(found, dict) else None
