"""Classification metrics on NumPy arrays, for both sides alike.

All are made of a `Confusion`, whose counts of batches add up: no figure depends on how the rows were cut into batches.

    confusion = Confusion.empty(5)
    for logits, targets in validation:
        confusion += Confusion.of_logits(logits, targets)
    print(confusion.accuracy, confusion.macro_f1, confusion.f1)

Two figures go by the name of macro-F, and papers mix them (Opitz and Burst, "Macro F1 and Macro F1", arXiv 1911.03347):

* ``macro_f1``: the mean over classes of each class's F1, the usual definition (scikit-learn's).
* ``macro_f1_of_means``: 2PR / (P + R) of macro precision P and macro recall R, the historical port's.

A class that is never predicted has precision 0, one that never occurs recall 0, one with neither hit nor miss F1 0: what
scikit-learn calls ``zero_division=0``. Means are over the classes that occur in the targets or the predictions, as
scikit-learn's are where no labels are named; a class that does neither counts for nothing, whatever the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError

Figures = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Confusion:
    """How often each class was taken for each: counts int64 [C, C], rows the actual classes, columns the predicted ones.

    Without any row every figure is NaN.
    """

    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, classes: int) -> Confusion:
        """Of no rows yet."""
        return cls(np.zeros((classes, classes), dtype=np.int64))

    @classmethod
    def of(cls, predicted: NDArray, actual: NDArray, classes: int) -> Confusion:
        """Of labels in 0 … classes - 1, any integer dtype, both of one shape.

        Raises:
            AlignmentError: the shapes differ (as [N] and [N, 1], which would be broadcast), or a label is none.
        """
        predicted, actual = np.asarray(predicted), np.asarray(actual)
        if predicted.shape != actual.shape:
            raise AlignmentError(
                f"predicted labels {list(predicted.shape)} and actual ones {list(actual.shape)} are not one to one: "
                "bring both to one shape"
            )
        for what, labels in (("predicted", predicted), ("actual", actual)):
            if labels.dtype.kind not in "biu":
                raise AlignmentError(f"{what} labels are whole numbers, not {labels.dtype}; of logits take of_logits")
            if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                raise AlignmentError(
                    f"{what} labels go from {labels.min()} to {labels.max()}, those of {classes} classes from 0 to {classes - 1}"
                )
        places = actual.ravel().astype(np.int64) * classes + predicted.ravel().astype(np.int64)
        return cls(np.bincount(places, minlength=classes * classes).reshape(classes, classes))

    @classmethod
    def of_logits(cls, logits: NDArray, targets: NDArray) -> Confusion:
        """Of logits [..., C], whose largest is the prediction (the first of equal ones), and labels [...]."""
        logits = np.asarray(logits)
        if logits.ndim < 1 or not logits.shape[-1]:
            raise AlignmentError(f"logits have a last axis of classes, these are {list(logits.shape)}")
        return cls.of(np.argmax(logits, axis=-1), targets, logits.shape[-1])

    def __add__(self, other: Confusion) -> Confusion:
        """Of the rows of both."""
        if self.counts.shape != other.counts.shape:
            raise AlignmentError(f"{len(self.counts)} and {len(other.counts)} classes: no counts of one task")
        return Confusion(self.counts + other.counts)

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.counts.sum())

    @cached_property
    def hits(self) -> NDArray[np.int64]:
        """Rows of each class that were taken for it, int64 [C]."""
        return np.diagonal(self.counts)

    @cached_property
    def support(self) -> NDArray[np.int64]:
        """Rows of each class, int64 [C]."""
        return np.asarray(self.counts.sum(axis=1))

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Rows that were taken for each class, int64 [C]."""
        return np.asarray(self.counts.sum(axis=0))

    @cached_property
    def occurring(self) -> NDArray[np.bool_]:
        """Which classes occur in targets or predictions, bool [C]: those that means are over."""
        return (self.support + self.predicted) > 0

    @property
    def accuracy(self) -> float:
        """The share of rows that were predicted right."""
        return float(self.hits.sum() / self.rows) if self.rows else float("nan")

    @cached_property
    def precision(self) -> Figures:
        """Of each class: of the rows taken for it, the share that is of it; float64 [C]."""
        return _share(self.hits, self.predicted)

    @cached_property
    def recall(self) -> Figures:
        """Of each class: of its rows, the share taken for it; float64 [C]."""
        return _share(self.hits, self.support)

    @cached_property
    def f1(self) -> Figures:
        """Of each class: the harmonic mean of precision and recall, 2 hits / (support + predicted); float64 [C]."""
        return _share(2 * self.hits, self.support + self.predicted)

    @property
    def macro_precision(self) -> float:
        """The mean of the classes' precisions."""
        return self._mean(self.precision)

    @property
    def macro_recall(self) -> float:
        """The mean of the classes' recalls."""
        return self._mean(self.recall)

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1."""
        return self._mean(self.f1)

    @property
    def macro_f1_of_means(self) -> float:
        """The F1 of macro precision and macro recall."""
        precision, recall = self.macro_precision, self.macro_recall
        return 0.0 if precision + recall == 0.0 else 2.0 * precision * recall / (precision + recall)

    def figures(self) -> dict[str, float]:
        """Accuracy and the macro figures, by name."""
        names = ("accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_f1_of_means")
        return {name: getattr(self, name) for name in names}

    def _mean(self, figures: Figures) -> float:
        return float(figures[self.occurring].mean()) if self.rows else float("nan")


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> Figures:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def classification_metrics(logits: NDArray, targets: NDArray) -> dict[str, float]:
    """``accuracy``, ``macro_f1`` and ``macro_f1_of_means`` of logits [..., C] against int64 targets [...]."""
    return label_metrics(np.argmax(logits, axis=-1).ravel(), np.asarray(targets).ravel())


def label_metrics(predicted: NDArray, actual: NDArray) -> dict[str, float]:
    """The same of predicted and actual labels [N], whatever numbers they are."""
    labels, places = np.unique(np.stack([predicted, actual]), return_inverse=True)
    chosen, right = places.reshape(2, -1)
    confusion = Confusion.of(chosen, right, len(labels))
    return {name: getattr(confusion, name) for name in ("accuracy", "macro_f1", "macro_f1_of_means")}
