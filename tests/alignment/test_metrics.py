from __future__ import annotations

import numpy as np
import pytest

from alignment.metrics import classification_metrics


def one_hot(predictions: list[int], classes: int = 3) -> np.ndarray:
    return np.eye(classes)[predictions]


def test_both_definitions_of_macro_f_by_hand() -> None:
    # Class 0: P 2/3, R 1. Class 1: P 1, R 1/2. Class 2: P 1/2, R 1/2.
    targets = np.array([0, 0, 1, 1, 2, 2])
    metrics = classification_metrics(one_hot([0, 0, 1, 2, 2, 0]), targets)
    precision, recall = (2 / 3 + 1 + 1 / 2) / 3, (1 + 1 / 2 + 1 / 2) / 3
    f1 = (0.8 + 2 / 3 + 0.5) / 3
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["macro_f1"] == pytest.approx(f1)
    assert metrics["macro_f1_of_means"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert metrics["macro_f1"] != pytest.approx(metrics["macro_f1_of_means"], abs=1e-3)


def test_all_wrong_is_zero_and_not_nan() -> None:
    metrics = classification_metrics(one_hot([1, 1]), np.array([0, 0]))
    assert metrics == {"accuracy": 0.0, "macro_f1": 0.0, "macro_f1_of_means": 0.0}


def test_token_logits_count_every_position() -> None:
    logits = one_hot([0, 1, 2, 0]).reshape(2, 2, 3)
    assert classification_metrics(logits, np.array([[0, 1], [2, 1]]))["accuracy"] == 0.75
