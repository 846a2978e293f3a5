"""Names of tensors as Kotlin and Swift take them: identifiers, texts and comments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from exporter.artifacts import TensorSpec

_KEPT = (
    "Any Self as associatedtype await break case catch class continue default defer deinit do else enum extension "
    "fallthrough false fileprivate for func fun guard if import in init inout interface internal is let nil null "
    "object open operator package private protocol public repeat rethrows return self static struct subscript super "
    "switch this throw throws true try typealias typeof val var when where while"
)
"""What either language keeps for itself."""
_USED = (
    "Bundle Data Interpreter NSMutableData ORTEnv ORTSession ORTValue context environment inputs interpreter it "
    "model outputs path results session"
)
"""What the lines around a tensor's name call something else."""
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
"""What both languages write in texts in the same way, and other ways than JSON does."""
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

    def written(letter: str) -> str:
        if letter.isascii() and letter.isprintable():
            return letter
        units = letter.encode("utf-16-be")
        return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))

    return _quoted(name, {**_ESCAPED, "$": "\\$"}, written)


def swift_text(name: str) -> str:
    """A name as a text of Swift."""
    return _quoted(name, _ESCAPED, lambda letter: letter if letter.isprintable() else f"\\u{{{ord(letter):x}}}")


def _quoted(name: str, escaped: Mapping[str, str], written: Callable[[str], str]) -> str:
    return f'"{"".join(escaped[letter] if letter in escaped else written(letter) for letter in name)}"'


def comment(spec: TensorSpec) -> str:
    """A tensor in one line."""
    return " ".join(str(spec).split())
