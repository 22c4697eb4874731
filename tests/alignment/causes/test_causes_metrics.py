"""Figures as torch and Paddle compute them: the mistake in the metric is named and proved, another one is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment import AlignmentError, Scored, explain_metric
from alignment.causes.metrics import Formula, value

RNG = np.random.default_rng(0)
ROWS, BATCH, CLASSES = 101, 16, 7
TARGETS = RNG.integers(0, CLASSES, ROWS)
LOGITS = (RNG.normal(size=(ROWS, CLASSES)) + 2.0 * np.eye(CLASSES)[TARGETS]).astype(np.float32)
SIZES = (*(BATCH,) * (ROWS // BATCH), ROWS % BATCH)


def torch_accuracy() -> float:
    predicted = torch.from_numpy(LOGITS).argmax(-1)
    return float((predicted == torch.from_numpy(TARGETS)).float().mean())


def paddle_accuracies(column: bool) -> list[float]:
    """Of each batch; the targets as a column, as Paddle's own datasets and Accuracy metric have them, or not."""
    found = []
    for start in range(0, ROWS, BATCH):
        predicted = paddle.to_tensor(LOGITS[start : start + BATCH]).argmax(-1)
        targets = paddle.to_tensor(TARGETS[start : start + BATCH])
        found.append(float((predicted == (targets.unsqueeze(-1) if column else targets)).astype("float32").mean()))
    return found


RIGHT = Scored(torch_accuracy(), LOGITS, TARGETS)


def explained(candidate: Scored, reference: Scored = RIGHT, name: str = "accuracy"):
    (finding,) = explain_metric(name, reference, candidate)
    return finding


def test_predictions_against_a_column_of_targets() -> None:
    predicted = paddle.to_tensor(LOGITS).argmax(-1)
    column = paddle.to_tensor(TARGETS).unsqueeze(-1)
    assert (predicted == column).shape == [ROWS, ROWS]
    figure = float((predicted == column).astype("float32").mean())
    finding = explained(Scored(figure, predicted.numpy(), column.numpy()))
    assert (finding.cause, finding.side) == ("metric-broadcast", "candidate")
    assert finding.after < 1e-6 < 0.1 < finding.before
    assert f"targets [{ROWS}, 1]" in finding.evidence[1]
    assert f"0 of {ROWS} predictions differ" in finding.evidence


def test_hits_added_up_over_broadcast_batches_are_more_than_all() -> None:
    hits = 0.0
    for start in range(0, ROWS, BATCH):
        column = paddle.to_tensor(TARGETS[start : start + BATCH, None])
        hits += float((paddle.to_tensor(LOGITS[start : start + BATCH]).argmax(-1) == column).sum())
    assert hits > ROWS
    finding = explained(Scored(hits / ROWS, LOGITS, TARGETS[:, None], SIZES))
    assert finding.cause == "metric-broadcast"
    assert "over the number of rows" in finding.proof


def test_a_mean_of_batch_means_with_a_short_last_batch() -> None:
    finding = explained(Scored(float(np.mean(paddle_accuracies(column=False))), LOGITS, TARGETS, SIZES))
    assert (finding.cause, finding.side) == ("metric-batch-means", "candidate")
    assert finding.after < 1e-6 < finding.before


def test_a_mean_of_batch_means_on_the_reference_side() -> None:
    means = Scored(float(np.mean(paddle_accuracies(column=False))), LOGITS, TARGETS, SIZES)
    finding = explained(RIGHT, reference=means)
    assert (finding.cause, finding.side) == ("metric-batch-means", "reference")


def test_the_last_batch_left_out_and_the_last_batch_alone() -> None:
    means = paddle_accuracies(column=False)
    assert explained(Scored(float(np.mean(means[:-1])), LOGITS, TARGETS, SIZES)).cause == "metric-drop-last"
    assert explained(Scored(means[-1], LOGITS, TARGETS, SIZES)).cause == "metric-last-batch"


def test_a_mean_squared_error_of_a_column() -> None:
    predictions, targets = RNG.normal(size=(33, 1)).astype(np.float32), RNG.normal(size=33).astype(np.float32)
    right = float(torch.nn.functional.mse_loss(torch.from_numpy(predictions[:, 0]), torch.from_numpy(targets)))
    wrong = float(((paddle.to_tensor(predictions) - paddle.to_tensor(targets)) ** 2).mean())
    finding = explained(Scored(wrong, predictions, targets), Scored(right, predictions[:, 0], targets), "mse")
    assert finding.cause == "metric-broadcast"


def test_f1_averaged_over_batches() -> None:
    scored = Scored(0.0, LOGITS.argmax(-1), TARGETS, SIZES)
    for over in ("weighted", "batches"):
        figure = value("macro_f1", scored, Formula(over=over))
        finding = explained(
            replace(scored, figure=figure),
            Scored(value("macro_f1", scored, Formula()), LOGITS, TARGETS),
            "macro_f1",
        )
        assert finding.cause == "metric-batch-means"


def test_predictions_that_differ_too_are_not_explained_by_the_formula() -> None:
    """The candidate broadcasts, and its model is wrong besides: mending the metric leaves a gap."""
    other = np.where(np.arange(ROWS) % 5 == 0, (LOGITS.argmax(-1) + 1) % CLASSES, LOGITS.argmax(-1))
    figure = float((other == TARGETS[:, None]).mean())
    finding = explained(Scored(figure, other, TARGETS[:, None]))
    assert finding.cause is None
    assert "21 of 101 predictions differ" in finding.evidence
    assert "metric-broadcast" in finding.tried[0]


def test_one_prediction_in_a_thousand_that_differs_is_more_than_rounding() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 7, 1000)
    other = targets.copy()
    other[3] = (other[3] + 1) % 7
    finding = explained(
        Scored(float((other == targets[:, None]).mean()), other, targets[:, None]), Scored(1.0, targets, targets)
    )
    assert finding.cause is None
    assert "gap 0.86 → 0.001, more than rounding" in finding.tried[0]


def test_what_a_count_of_rows_could_give_proves_nothing() -> None:
    """With as many targets of each class the broadcast mean is 1 / C, which a model that guesses has, too."""
    targets = np.repeat(np.arange(5), 8)
    predicted = np.where(np.arange(40) % 4 == 0, (targets + 1) % 5, targets)
    finding = explained(
        Scored(float((predicted == targets[:, None]).mean()), predicted, targets[:, None]),
        Scored(float((predicted == targets).mean()), predicted, targets),
    )
    assert finding.cause is None
    assert finding.tried == (
        "metric-broadcast: comparing row by row, not all predictions with all targets ([N] and [N, 1] broadcast to [N, N]): "
        "gap 0.55 → 0, but other predictions could give this figure by an ordinary count",
    )


@pytest.mark.parametrize("figure", [0.4321, 0.0, float("nan"), float("inf"), 1.0])
def test_any_other_figure_is_unexplained(figure) -> None:
    for targets in (TARGETS, TARGETS[:, None]):
        finding = explained(Scored(figure, LOGITS, targets, SIZES))
        assert (finding.cause, finding.proof) == (None, "")


@given(st.integers(2, 40), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_a_count_of_other_rows_is_never_explained(rows, classes, seed) -> None:
    """The candidate counts rightly, on predictions that it did not hand over: no formula may take the blame."""
    rng = np.random.default_rng(seed)
    targets, predicted, others = rng.integers(0, classes, (3, rows))
    size = int(rng.integers(1, rows))
    sizes = [min(size, rows - start) for start in range(0, rows, size)]
    ours = Scored(float((predicted == targets).mean()), predicted, targets)
    theirs = Scored(float((others == targets).mean()), predicted, targets[:, None], tuple(sizes))
    assert all(finding.cause is None for finding in explain_metric("accuracy", ours, theirs))


def test_figures_that_agree_need_no_cause() -> None:
    assert explain_metric("accuracy", RIGHT, Scored(RIGHT.figure, LOGITS, TARGETS[:, None])) == ()


@pytest.mark.parametrize(
    ("name", "scored", "said"),
    [
        ("recall", RIGHT, "unknown metric 'recall'"),
        ("accuracy", Scored(0.5, LOGITS[:-1], TARGETS), "not the same rows"),
        ("accuracy", Scored(0.5, np.zeros((0, 3)), np.zeros(0, int)), "not the same rows"),
        ("accuracy", Scored(0.5, np.float64(1), np.int64(1)), "not the same rows"),
        ("accuracy", Scored(0.5, LOGITS[:, :1], TARGETS), "neither labels nor logits"),
        ("accuracy", Scored(0.5, LOGITS, np.stack([TARGETS, TARGETS], 1)), "not one to one"),
        ("accuracy", Scored(0.5, LOGITS, TARGETS, (16, 16)), "batches have 32 rows, its targets 101"),
        ("mse", Scored(0.5, LOGITS, TARGETS), "not one to one"),
    ],
)
def test_what_does_not_fit_is_named(name, scored, said) -> None:
    with pytest.raises(AlignmentError, match=said.replace("[", r"\[")):
        explain_metric(name, RIGHT, scored)
