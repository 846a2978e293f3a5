"""Four questions about one image, and the mean accuracy of their answers."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

QUESTIONS = {
    # T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot
    "kind": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    "group": [0, 1, 0, 2, 0, 3, 0, 3, 4, 3],
    "footwear": [0, 0, 0, 0, 0, 1, 0, 1, 0, 1],
    "upper_body": [1, 0, 1, 1, 1, 0, 1, 0, 0, 0],
}
"""For each of the ten classes the answer."""


def mean_accuracy(outputs: Mapping[str, NDArray[np.generic]], labels: NDArray[np.generic]) -> float:
    """Mean over the questions of the share of right answers.

    Args:
        outputs: `<question>.logits`, (n, answers) each.
        labels: class of each image, (n,).

    Returns:
        Between 0 and 1.
    """
    right = []
    for name, answers in QUESTIONS.items():
        given = outputs[f"{name}.logits"].argmax(1)
        right.append((given == np.array(answers)[labels]).mean())
    return float(np.mean(right))
