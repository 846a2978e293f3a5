"""Task metrics that the corpus needs beside accuracy: each takes (outputs, labels) and is better when higher."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]
CREPE_FIRST_CENTS, CREPE_STEP = 1997.3794084376191, 20.0


def pitch_within_10_cents(outputs: Arrays, labels: np.ndarray) -> float:
    """Share of frames whose pitch is at most 10 cents off (raw pitch accuracy; Kim et al., arXiv 1802.06182).

    Outputs are activations (n, 360); labels are pitches in Hz.
    """
    scores = next(iter(outputs.values()))
    cents = CREPE_FIRST_CENTS + CREPE_STEP * np.arange(scores.shape[1])
    near = np.abs(np.arange(scores.shape[1]) - scores.argmax(1)[:, None]) <= 4
    weights = scores * near
    found = 10 * 2 ** ((weights * cents).sum(1) / weights.sum(1) / 1200)
    return float((1200 * np.abs(np.log2(found / labels)) < 10).mean())


def face_auc(outputs: Arrays, labels: np.ndarray) -> float:
    """Area under the ROC curve of the face probability: the output (n, 2), column 1."""
    score = next(array for array in outputs.values() if array.shape[1] == 2)[:, 1]
    faces, others = score[labels == 1], score[labels == 0]
    above = (faces[:, None] > others[None]).mean() + 0.5 * (faces[:, None] == others[None]).mean()
    return float(above)


def detected(outputs: Arrays, labels: np.ndarray) -> float:
    """Share of pictures whose most certain box has the right class and an IoU of at least 0.5.

    Output (n, cells, 15): centre, width and height in pixels, objectness, 10 class scores.
    Labels (n, 5): class, centre, width and height.
    """
    found = next(iter(outputs.values()))
    certain = found[:, :, 4] * found[:, :, 5:].max(2)
    best = found[np.arange(len(found)), certain.argmax(1)]
    right = best[:, 5:].argmax(1) == labels[:, 0]
    corners = [(box[:, :2] - box[:, 2:4] / 2, box[:, :2] + box[:, 2:4] / 2) for box in (best[:, :4], labels[:, 1:])]
    (low, high), (true_low, true_high) = corners
    overlap = np.clip(np.minimum(high, true_high) - np.maximum(low, true_low), 0, None).prod(1)
    union = (high - low).prod(1) + (true_high - true_low).prod(1) - overlap
    return float((right & (overlap / union >= 0.5)).mean())


def recall_at_1(outputs: Arrays, labels: np.ndarray) -> float:
    """Share of texts whose nearest name is their own; see `recall_at`."""
    return recall_at(1, outputs, labels)


def recall_at(count: int, outputs: Arrays, labels: np.ndarray) -> float:
    """Retrieval: output (2n, d) holds n queries, then their n names; labels number the pairs."""
    vectors = next(iter(outputs.values()))
    half = len(vectors) // 2
    nearest = np.argsort(-vectors[:half] @ vectors[half:].T, axis=1, kind="stable")[:, :count]
    return float((labels[half:][nearest] == labels[:half, None]).any(1).mean())


def characters(outputs: Arrays, labels: np.ndarray) -> float:
    """1 - character error rate; output (n, steps, classes) for CTC with blank 0, labels (n, length) padded with 0."""
    best = next(iter(outputs.values())).argmax(2)
    wrong = total = 0
    for row, label in zip(best, labels, strict=True):
        before = np.concatenate([[0], row[:-1]])
        text, truth = row[(row != before) & (row != 0)].tolist(), label[label != 0].tolist()
        wrong += _edits(text, truth)
        total += len(truth)
    return 1 - wrong / total


def _edits(one: list[int], other: list[int]) -> int:
    """Levenshtein distance."""
    line = list(range(len(other) + 1))
    for index, mine in enumerate(one, 1):
        corner, line[0] = line[0], index
        for place, theirs in enumerate(other, 1):
            corner, line[place] = line[place], min(line[place] + 1, line[place - 1] + 1, corner + (mine != theirs))
    return line[-1]
