"""One inference on a user's inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from .bundle import HERE, Bundle
from .choice import choose, lacking, not_shown, refuse_wrong
from .engine import Engine
from .faults import BAD_INPUT, BROKEN, Fault, brief, say
from .feeds import read_inputs, write_outputs
from .host import cpu_features

Check = Callable[[Callable[[str], bool]], "list[str]"]
"""Compares the listed files that a predicate picks with the manifest; one problem for each that differs."""


def pick(bundle: Bundle, asked: str | None, check: Check) -> tuple[str, str]:
    """(variant, why), once its files are those that the manifest lists."""
    features = cpu_features()
    name, why = (asked, "asked for") if asked else choose(bundle, features)
    refuse_wrong(bundle, name)
    absent = lacking(bundle.variants[name], features)
    if absent and asked:
        say(f"warning: {not_shown(bundle.variants[name], absent)}")
    folder = f"{PurePosixPath(bundle.variants[name]['main']).parent}/"
    problems = check(lambda path: path.startswith(folder))
    if problems:
        raise Fault(BROKEN, "the bundle does not hold what it claims" + "".join(f"\n  - {one}" for one in problems))
    return name, why


def infer(engine: Engine, bundle: Bundle, name: str, why: str, given: Path, result: Path) -> list[dict[str, Any]]:
    """Runs an npz file of model-ready inputs through a variant and writes its outputs.

    Returns:
        Name, dtype and shape of each output.

    Raises:
        Fault: the inputs do not fit, or the outputs cannot be written.
    """
    arrays = read_inputs(engine.numpy, bundle, given)
    session = engine.open(bundle, name)
    say(f"variant {name}: {why}")
    try:
        outputs = session.run(arrays)
    except Exception as error:  # the runtime's own exception types are unknown here
        runtime = engine.runtime_of(bundle.variants[name])
        raise Fault(BAD_INPUT, f"{runtime.NAME} refused these inputs: {brief(error)}") from error
    if HERE in result.resolve().parents:
        say(f"warning: {result} lies in the bundle, which counts as a file added to it")
    write_outputs(engine.numpy, outputs, result)
    return [{"name": key, "dtype": str(array.dtype), "shape": list(array.shape)} for key, array in outputs.items()]
