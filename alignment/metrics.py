"""Classification metrics on NumPy arrays, for both sides alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def classification_metrics(logits: NDArray, targets: NDArray) -> dict[str, float]:
    """Accuracy and macro-F of logits [..., C] against int64 targets [...].

    Two figures go by the name of macro-F, and papers mix them (Opitz and Burst, "Macro F1 and Macro F1", arXiv 1911.03347):

    * ``macro_f1``: the mean over classes of each class's F1, the usual definition (scikit-learn's).
    * ``macro_f1_of_means``: 2PR / (P + R) of macro precision P and macro recall R, the historical port's.

    Classes are those that occur in the targets or the predictions; a class never predicted has precision 0.
    """
    return label_metrics(np.argmax(logits, axis=-1).ravel(), np.asarray(targets).ravel())


def label_metrics(predicted: NDArray, actual: NDArray) -> dict[str, float]:
    """The same of predicted and actual labels [N]."""
    classes = np.union1d(predicted, actual)
    hits = np.array([np.sum((predicted == c) & (actual == c)) for c in classes], dtype=np.float64)
    chosen = np.array([np.sum(predicted == c) for c in classes], dtype=np.float64)
    present = np.array([np.sum(actual == c) for c in classes], dtype=np.float64)
    precision = np.divide(hits, chosen, out=np.zeros_like(hits), where=chosen > 0)
    recall = np.divide(hits, present, out=np.zeros_like(hits), where=present > 0)
    f1 = 2.0 * hits / (chosen + present)
    mean_precision, mean_recall = precision.mean(), recall.mean()
    both = mean_precision + mean_recall
    return {
        "accuracy": float(hits.sum() / actual.size),
        "macro_f1": float(f1.mean()),
        "macro_f1_of_means": float(2.0 * mean_precision * mean_recall / both) if both else 0.0,
    }
