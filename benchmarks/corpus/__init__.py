"""Real models with data of their own, each a function that prepares one `Case`; see CASES."""

from __future__ import annotations

import importlib
from pathlib import Path

from corpus.case import Case

CASES = {
    "fashion-mnist": "corpus.images:fashion_mnist",
    "magika": "corpus.files:magika",
    "japanese-vowels-bilstm": "corpus.series:bilstm",
    "japanese-vowels-fcn": "corpus.series:fcn",
    "crepe-tiny": "corpus.audio:crepe_tiny",
    "r-net": "corpus.faces:r_net",
    "o-net": "corpus.faces:o_net",
    "mobilenet-v3-style": "corpus.images:mobilenet_v3",
    "detector": "corpus.detection:detector",
    "vit": "corpus.images:vit",
    "efficientnet-lite0": "corpus.photos:efficientnet_lite0",
    "minilm": "corpus.sentences:minilm",
    "pp-ocr-rec": "corpus.ocr:recognition",
}
"""In the order of the table; `module:function`."""


def prepare(name: str, folder: Path) -> Case:
    """Makes the model and the data of a case; `folder` keeps trained weights from run to run."""
    module, function = CASES[name].split(":")
    case: Case = getattr(importlib.import_module(module), function)(folder)
    return case
