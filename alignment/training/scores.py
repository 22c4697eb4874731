"""How good a model's predictions are: the loss, and the confusion matrix that all other figures follow from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.metrics import Confusion

# The metrics that two sides' predictions are compared by.
COMPARED = ("accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_f1_of_means")


@dataclass(frozen=True, eq=False)
class Scores:
    """Of the predictions of some rows. loss: their mean cross entropy, in float64."""

    loss: float
    confusion: Confusion

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON has them; `from_dict` needs the loss and the confusion matrix alone."""
        confusion = self.confusion
        return {
            "loss": self.loss,
            **confusion.figures(),
            "precision": confusion.precision.tolist(),
            "recall": confusion.recall.tolist(),
            "f1": confusion.f1.tolist(),
            "confusion": confusion.counts.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scores:
        """What `to_dict` gave."""
        return cls(float(values["loss"]), Confusion(np.array(values["confusion"], dtype=np.int64)))


def score(logits: NDArray, labels: NDArray) -> Scores:
    """Scores of logits [n, C] against labels int64 [n].

    Raises:
        AlignmentError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise AlignmentError(
            "the logits are not finite: the weights have grown beyond all measure; lower the learning rate, or clip gradients"
        )
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    losses = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(labels)), labels]
    return Scores(float(losses.mean()), Confusion.of_logits(logits, labels))


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 of a single value."""
    found = np.array(list(values), dtype=np.float64)
    return float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else 0.0
