"""How a model is composed of several: the members, what feeds them, and how their outputs are fused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import TensorSpec, digest_of

if TYPE_CHECKING:
    from torch import nn

    from exporter.merge import Fusion
    from exporter.pipeline.models import TorchModel


class MemberModel(msgspec.Struct, frozen=True, kw_only=True):
    """One member.

    Attributes:
        label: its name in the composition.
        model: what it is loaded from.
        takes: its own inputs and what feeds each; empty for all inputs of the composition.
        outputs: names of its outputs; by default its own.
        classes: that its outputs stand for; empty where it knows them all.
        weight: its share relative to the others'.
    """

    label: str
    model: TorchModel
    takes: dict[str, str] = {}
    outputs: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    weight: float = 1.0


class Composition(msgspec.Struct, frozen=True, kw_only=True):
    """Several models in one.

    Attributes:
        members: in the order of their outputs.
        inputs: names of the inputs, in order.
        expose: outputs that are kept although another member takes them.
        fusion: fuses the members' outputs.
    """

    members: tuple[MemberModel, ...]
    inputs: tuple[str, ...]
    expose: tuple[str, ...] = ()
    fusion: Fusion | None = None

    @property
    def content(self) -> str:
        """Digest of everything that decides what it computes."""
        members = [
            [one.label, one.model.content, one.takes, one.outputs, one.classes, one.weight] for one in self.members
        ]
        return digest_of([members, self.inputs, self.expose, msgspec.to_builtins(self.fusion)])

    def module(self) -> nn.Module:
        """All members in one module, in eval mode."""
        from exporter.merge import Composite, Part
        from exporter.onnx_export import flatten, prepare_module

        parts = []
        for member in self.members:
            takes = member.takes or {name: name for name in self.inputs}
            # Only the names of inputs decide how a module is called.
            specs = [TensorSpec(name=own, dtype="float32", shape=()) for own in takes]
            flat = prepare_module(member.model.load(), specs).flat
            parts.append(
                Part(
                    label=member.label,
                    module=flat.inner,
                    takes=takes,
                    positional=flat.convention.positional,
                    keywords=flat.convention.keywords,
                    outputs=member.outputs,
                )
            )
        composite = Composite(parts, self.inputs, flatten, expose=self.expose, fusion=self.fusion)
        composite.training = False
        return composite
