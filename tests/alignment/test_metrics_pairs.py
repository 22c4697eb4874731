"""The metrics against scikit-learn, and against what people use on each side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from alignment.errors import AlignmentError
from alignment.metrics import Confusion, label_metrics

CLASSES = 6
# Few rows of many classes: most cases have a class that is never predicted, never right, or not there at all.
labels = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=30)


@given(labels)
def test_every_figure_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    predicted, actual = np.array(pairs).T
    confusion = Confusion.of(predicted, actual, CLASSES)
    named = {"labels": range(CLASSES), "zero_division": 0}
    per_class = sklearn_metrics.precision_recall_fscore_support(actual, predicted, **named)
    macro = sklearn_metrics.precision_recall_fscore_support(actual, predicted, average="macro", zero_division=0)
    assert (confusion.counts == sklearn_metrics.confusion_matrix(actual, predicted, labels=range(CLASSES))).all()
    assert confusion.accuracy == pytest.approx(sklearn_metrics.accuracy_score(actual, predicted), abs=1e-15)
    for own, due in zip(
        (confusion.precision, confusion.recall, confusion.f1, confusion.support), per_class, strict=True
    ):
        np.testing.assert_allclose(own, due, rtol=0, atol=1e-15)
    assert (confusion.macro_precision, confusion.macro_recall, confusion.macro_f1) == pytest.approx(
        macro[:3], abs=1e-15
    )
    both = macro[0] + macro[1]
    assert confusion.macro_f1_of_means == pytest.approx(2 * macro[0] * macro[1] / both if both else 0.0, abs=1e-15)
    assert (confusion.occurring == np.isin(range(CLASSES), np.union1d(predicted, actual))).all()


@given(labels)
def test_labels_of_any_numbers_give_the_same_figures(pairs: list[tuple[int, int]]) -> None:
    predicted, actual = np.array(pairs).T
    figures = Confusion.of(predicted, actual, CLASSES).figures()
    assert label_metrics(predicted * 1000 - 7, actual * 1000 - 7) == {
        name: figures[name] for name in ("accuracy", "macro_f1", "macro_f1_of_means")
    }


@given(labels, st.integers(1, 8))
def test_batches_add_up_however_they_are_cut(pairs: list[tuple[int, int]], batch_size: int) -> None:
    predicted, actual = np.array(pairs).T
    confusion = Confusion.empty(CLASSES)
    for start in range(0, len(pairs), batch_size):
        confusion += Confusion.of(predicted[start : start + batch_size], actual[start : start + batch_size], CLASSES)
    assert confusion.figures() == Confusion.of(predicted, actual, CLASSES).figures()


def _batches(seed: int, classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits and targets of 300 rows in batches of 64: the last has 44."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(300, classes)).astype(np.float32)
    targets = generator.integers(0, classes, 300)
    return [(logits[start : start + 64], targets[start : start + 64]) for start in range(0, 300, 64)]


def test_accuracy_is_that_of_paddles_metric() -> None:
    paddle = pytest.importorskip("paddle")
    metric, confusion = paddle.metric.Accuracy(), Confusion.empty(5)
    for logits, targets in _batches(0, 5):
        metric.update(metric.compute(paddle.to_tensor(logits), paddle.to_tensor(targets[:, None])))
        confusion += Confusion.of_logits(logits, targets)
    assert confusion.rows == 300
    assert confusion.accuracy == pytest.approx(metric.accumulate(), abs=1e-12)


def test_precision_and_recall_of_two_classes_are_those_of_paddles_metrics() -> None:
    """Paddle's are of the class 1 alone, of probabilities that are rounded at a half."""
    paddle = pytest.importorskip("paddle")
    precision, recall, confusion = paddle.metric.Precision(), paddle.metric.Recall(), Confusion.empty(2)
    for logits, targets in _batches(1, 2):
        probability = 1.0 / (1.0 + np.exp(logits[:, 0] - logits[:, 1]))
        precision.update(probability, targets)
        recall.update(probability, targets)
        confusion += Confusion.of_logits(logits, targets)
    assert confusion.precision[1] == pytest.approx(precision.accumulate(), abs=1e-12)
    assert confusion.recall[1] == pytest.approx(recall.accumulate(), abs=1e-12)


def test_the_figures_are_those_of_plain_torch() -> None:
    torch = pytest.importorskip("torch")
    classes, confusion = 5, Confusion.empty(5)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for logits, targets in _batches(2, classes):
        chosen, actual = torch.from_numpy(logits).argmax(-1), torch.from_numpy(targets)
        counts.index_put_((actual, chosen), torch.ones_like(actual), accumulate=True)
        confusion += Confusion.of_logits(logits, targets)
    assert (torch.from_numpy(confusion.counts) == counts).all()
    hits = counts.diagonal().double()
    precision, recall = hits / counts.sum(0), hits / counts.sum(1)
    f1 = 2 * precision * recall / (precision + recall)
    assert confusion.accuracy == pytest.approx(float(hits.sum() / counts.sum()), abs=1e-12)
    assert confusion.macro_precision == pytest.approx(float(precision.mean()), abs=1e-12)
    assert confusion.macro_recall == pytest.approx(float(recall.mean()), abs=1e-12)
    assert confusion.macro_f1 == pytest.approx(float(f1.mean()), abs=1e-12)


def test_the_mean_of_batch_means_is_another_figure() -> None:
    """The known fault: a short last batch counts as much as a full one."""
    parts = [Confusion.of_logits(logits, targets) for logits, targets in _batches(3, 5)]
    whole = parts[0] + parts[1] + parts[2] + parts[3] + parts[4]
    assert abs(np.mean([part.accuracy for part in parts]) - whole.accuracy) > 1e-4
    assert np.average([part.accuracy for part in parts], weights=[64, 64, 64, 64, 44]) == pytest.approx(whole.accuracy)


def test_no_rows_give_no_figure() -> None:
    assert all(np.isnan(figure) for figure in Confusion.empty(3).figures().values())
    assert Confusion.empty(3).rows == 0


@pytest.mark.parametrize(
    ("predicted", "actual", "said"),
    [
        (np.zeros(4, int), np.zeros((4, 1), int), r"\[4\] and actual ones \[4, 1\]"),
        (np.zeros(4, int), np.full(4, 3), "go from 3 to 3"),
        (np.full(4, -1), np.zeros(4, int), "go from -1 to -1"),
        (np.zeros(4), np.zeros(4, int), "whole numbers, not float64"),
    ],
)
def test_what_would_be_miscounted_is_refused(predicted: np.ndarray, actual: np.ndarray, said: str) -> None:
    with pytest.raises(AlignmentError, match=said):
        Confusion.of(predicted, actual, 3)


def test_logits_and_classes_must_fit() -> None:
    with pytest.raises(AlignmentError, match="no counts of one task"):
        _ = Confusion.empty(2) + Confusion.empty(3)
    with pytest.raises(AlignmentError, match="last axis of classes"):
        Confusion.of_logits(np.zeros((4, 0)), np.zeros(4, int))
