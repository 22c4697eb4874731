"""Figures of a metric that differ though both sides' predictions are the same.

A figure is made by a `Formula`: which predictions are held against which targets, and over what the result is averaged. One
formula gives the reference's figure from what the reference was given, another that differs in one thing gives the
candidate's from what that was given: this one thing is the cause. The correction takes its effect out of the candidate's
figure; what is left must be rounding, so predictions that differ, too, are not explained by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from alignment.causes.suspect import AMBIGUOUS, Cause, Trial
from alignment.metrics import label_metrics

Array = NDArray

# How far a formula may lie from a figure, relatively: figures are often float32.
FITS = 1e-6
# Pairs of a prediction and a target that are held against each other at most.
MOST_PAIRS = 100_000_000

LABELLED = ("accuracy", "macro_f1", "macro_f1_of_means")
ELEMENTWISE = ("accuracy", "mse", "mae")
METRICS = (*LABELLED, "mse", "mae")


@dataclass(frozen=True, eq=False)
class Scored:
    """What one side made a figure of.

    figure: what it reported. predictions, targets: as they were held against each other, with the shapes they had there;
    predictions of a class may be logits [..., C]. batch_sizes: rows of each batch; empty for all rows at once.
    """

    figure: float
    predictions: Array
    targets: Array
    batch_sizes: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.targets)

    @property
    def batches(self) -> list[slice]:
        """Where each batch is."""
        ends = np.cumsum((0, *(self.batch_sizes or (self.rows,)))).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]

    @property
    def broadcasts(self) -> bool:
        """Are predictions [N] held against targets [N, 1], or the other way round?"""
        shapes = {self.predictions.shape, self.targets.shape}
        return self.rows > 1 and shapes == {(self.rows,), (self.rows, 1)}


@dataclass(frozen=True, eq=False)
class MetricSuspect:
    """A metric whose figures differ. name: one of `METRICS`. Predictions of classes are labels here, not logits."""

    name: str
    reference: Scored
    candidate: Scored
    record: str = "metric"

    @cached_property
    def trials(self) -> list[tuple[str, Trial]]:
        """Every hypothesis that holds, by the name of its cause."""
        return list(_explained(self))


@dataclass(frozen=True)
class Formula:
    """How a figure is made.

    pairs: "rows" (each prediction against its own target) or all with all, as [N] against [N, 1] are broadcast: their
    "mean", or their "sum" over the number of rows. over: "all" rows at once, or batch by batch: "weighted" by their rows,
    a plain mean of the "batches", the "full" batches alone (the last, short one is left out), or the "last" batch alone.
    """

    pairs: str = "rows"
    over: str = "all"


PAIRS = ("rows", "mean", "sum")
OVER = ("all", "weighted", "batches", "full", "last")


def value(name: str, scored: Scored, formula: Formula) -> float | None:
    """The figure that a formula gives, or None where it has no meaning here."""
    if formula.pairs != "rows" and (name not in ELEMENTWISE or not scored.broadcasts):
        return None
    batches = [slice(0, scored.rows)] if formula.over == "all" else scored.batches
    sizes = [batch.stop - batch.start for batch in batches]
    if formula.over != "all" and len(sizes) < 2:
        return None
    if formula.over == "batches" and len(set(sizes)) == 1:
        return None  # the same as weighted
    if formula.over == "full":
        if sizes[-1] >= sizes[0]:
            return None
        batches, sizes = batches[:-1], sizes[:-1]
    elif formula.over == "last":
        batches, sizes = batches[-1:], sizes[-1:]
    if formula.pairs != "rows" and sum(size * size for size in sizes) > MOST_PAIRS:
        return None
    values = [_of_batch(name, scored.predictions[one], scored.targets[one], formula.pairs) for one in batches]
    return float(np.average(values, weights=None if formula.over == "batches" else sizes))


def ordinary(name: str, scored: Scored) -> float:
    """The figure as it should be made: row by row, all rows at once."""
    return _of_batch(name, scored.predictions, scored.targets, "rows")


def _of_batch(name: str, predictions: Array, targets: Array, pairs: str) -> float:
    if pairs == "rows":
        predictions, targets = predictions.ravel(), targets.ravel()
        if name in LABELLED:
            return label_metrics(predictions, targets)[name]
    if name == "accuracy":
        found = np.asarray(predictions == targets, dtype=np.float64)
    else:
        gap = np.float64(predictions) - np.float64(targets)
        found = gap * gap if name == "mse" else np.abs(gap)
    return float(found.sum() / len(targets)) if pairs == "sum" else float(found.mean())


def name_of(right: Formula, wrong: Formula) -> str:
    """The cause when one side's figure is made by one formula and the other's by another that differs in one thing."""
    if right.pairs != wrong.pairs:
        return "metric-broadcast"
    over = {right.over, wrong.over}
    if "last" in over:
        return "metric-last-batch"
    return "metric-drop-last" if "full" in over else "metric-batch-means"


def _explained(suspect: MetricSuspect) -> Iterator[tuple[str, Trial]]:
    sides = suspect.reference, suspect.candidate
    if agree(*(side.figure for side in sides)):
        return
    rights, wrongs = (list(_formulas(suspect.name, side)) for side in sides)
    found: dict[str, Trial] = {}
    for right, wrong in product(rights, wrongs):
        trial = _trial(suspect, right, wrong)
        if trial is None:
            continue
        known = found.get(name_of(right, wrong))
        if known is None or (trial.proved, -trial.after) > (known.proved, -known.after):
            found[name_of(right, wrong)] = trial
    for name, trial in found.items():
        # Formulas that cannot be told apart here prove none of them.
        yield name, trial if len(found) == 1 else replace(trial, proved=False, doubt=AMBIGUOUS)


def _formulas(name: str, scored: Scored) -> Iterator[Formula]:
    """Those that give a side's figure."""
    for pairs, over in product(PAIRS, OVER):
        made = value(name, scored, Formula(pairs, over))
        if made is not None and agree(made, scored.figure):
            yield Formula(pairs, over)


def _trial(suspect: MetricSuspect, right: Formula, wrong: Formula) -> Trial | None:
    """Both figures with the effect of their formula taken out; None where the formulas differ in nothing, or in two things."""
    if right == wrong or (right.pairs != wrong.pairs and right.over != wrong.over and not _usual(right, wrong)):
        return None
    sides = (suspect.reference, right), (suspect.candidate, wrong)
    corrected, tells = [], True
    for side, formula in sides:
        made, due = value(suspect.name, side, formula), ordinary(suspect.name, side)
        assert made is not None
        corrected.append(side.figure - made + due)
        tells = tells and (agree(made, due) or _tells(suspect.name, side))
    before, after = abs(suspect.candidate.figure - suspect.reference.figure), abs(corrected[1] - corrected[0])
    rounding = FITS * max(*(abs(side.figure) for side, _ in sides), *(abs(one) for one in corrected))
    doubt = "" if tells else "but other predictions could give this figure by an ordinary count"
    proved = tells and after <= 2.0 * rounding and after <= 0.01 * before
    return Trial(_said(right, wrong), before, after, proved, "gap", doubt)


def _usual(*formulas: Formula) -> bool:
    """Do they differ in no more than whether batches are weighted by their rows or all rows are taken at once?"""
    return {formula.over for formula in formulas} <= {"all", "weighted"}


def agree(one: float, two: float) -> bool:
    """Is the gap between two figures rounding? Never where one is no number."""
    return one == two or (math.isfinite(one - two) and abs(one - two) <= FITS * max(abs(one), abs(two)))


def _tells(name: str, scored: Scored) -> bool:
    """Is the figure none that an ordinary count gives? An accuracy of k / N may come from k right rows, whatever they are."""
    if name != "accuracy":
        return True
    count = scored.figure * scored.rows
    return count > scored.rows * (1.0 + FITS) or abs(count - round(count)) > FITS * max(count, 1.0)


def _said(right: Formula, wrong: Formula) -> str:
    pairs = {
        "rows": "row by row",
        "mean": "all predictions with all targets ([N] and [N, 1] broadcast to [N, N])",
        "sum": "all predictions with all targets ([N] and [N, 1] broadcast to [N, N]) over the number of rows",
    }
    if right.pairs != wrong.pairs:
        return f"comparing {pairs[right.pairs]}, not {pairs[wrong.pairs]}"
    over = {
        "all": "over all rows",
        "weighted": "over batches by their rows",
        "batches": "over batches, a short one counting as much as a full one",
        "full": "over full batches alone",
        "last": "over the last batch alone",
    }
    return f"averaging {over[right.over]}, not {over[wrong.over]}"


def _named(name: str, suspect: MetricSuspect) -> Iterator[Trial]:
    yield from (trial for found, trial in suspect.trials if found == name)


# (name, what is wrong, what to change)
TABLE = (
    (
        "metric-broadcast",
        "predictions [N] and targets [N, 1] are broadcast to [N, N]: each prediction is held against every target",
        "bring both to one shape, and assert that they have it: targets.squeeze(-1)",
    ),
    (
        "metric-batch-means",
        "the figures of batches are averaged as they are, so that a short last batch counts as much as a full one",
        "weight each batch by its rows, or collect all predictions and compute the metric once",
    ),
    ("metric-drop-last", "the short last batch is left out of the metric", "evaluate with drop_last=False"),
    ("metric-last-batch", "the figure is that of the last batch alone", "add up over all batches, then divide"),
)

CAUSES: tuple[Cause, ...] = tuple(
    Cause(name, summary, remedy, ("metric",), partial(_named, name)) for name, summary, remedy in TABLE
)
