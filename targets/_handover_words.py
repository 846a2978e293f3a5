"""Names of tensors as Kotlin and Swift take them: identifiers, texts and comments."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from exporter.artifacts import TensorSpec

_KEPT = (
    "as associatedtype break case catch class continue default defer deinit do else enum extension fallthrough false "
    "fileprivate for func fun guard if import in init inout interface internal is let nil null object open operator "
    "package private protocol public repeat rethrows return self static struct subscript super switch this throw "
    "throws true try typealias typeof val var when where while"
)
"""What either language keeps for itself."""
_USED = "context environment inputs interpreter it model outputs path results session"
"""What the lines around a tensor's name call something else."""
TAKEN = frozenset(f"{_KEPT} {_USED}".split())


def identifiers(specs: Sequence[TensorSpec]) -> list[str]:
    """An identifier of Kotlin and Swift for each tensor, each another one."""
    found: list[str] = []
    for spec in specs:
        word = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in spec.name)
        # Nothing but underscores is no name in Kotlin.
        word = word if word[:1].isalpha() else f"t_{word}"
        while word in TAKEN or word in found:
            word += "_"
        found.append(word)
    return found


def kotlin_text(name: str) -> str:
    """A name as a text of Kotlin, where a dollar sign would begin a variable."""
    return json.dumps(name).replace("$", "\\$")


def swift_text(name: str) -> str:
    """A name as a text of Swift."""
    return re.sub(r"\\u([0-9a-f]{4})", r"\\u{\1}", json.dumps(name, ensure_ascii=False))


def comment(spec: TensorSpec) -> str:
    """A tensor in one line."""
    return " ".join(str(spec).split())
