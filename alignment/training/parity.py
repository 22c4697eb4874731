"""Parity of trained weights: the reference's, converted into the candidate, on the validation rows.

Steps 3 (forward) and 4 (loss) of a check run on some of the rows; predictions and metrics are compared on all of them. Where
two predictions differ, their rows are among those that are checked: if they pass, two logits were so near to each other that
rounding decides which is larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from alignment.check import run_check
from alignment.experiment import Experiment, Options
from alignment.inputs import GIVEN_BATCHES
from alignment.report import Report
from alignment.training.fit import predict
from alignment.training.reviews import ReviewTask
from alignment.training.scores import COMPARED, Scores, score
from alignment.training.trainer import Trainer

STEPS = (3, 4)
DECIMALS = 4


@dataclass(frozen=True, eq=False)
class Parity:
    """The candidate with the reference's trained weights beside the reference.

    report: of steps 3 and 4. rows: whose predictions were compared. checked: whose activations and losses were. differing:
    predictions that are not the same; decided: those of them that rounding decides. logits: the largest difference of two.
    reference, candidate: scores in validation.
    """

    seed: int
    report: Report
    rows: int
    checked: int
    differing: int
    decided: int
    logits: float
    reference: Scores
    candidate: Scores

    @property
    def metrics(self) -> dict[str, tuple[float, float]]:
        """Name -> (the reference's, the candidate's), the loss among them."""
        one, two = (
            {"loss": scores.loss, **{name: getattr(scores.confusion, name) for name in COMPARED}}
            for scores in (self.reference, self.candidate)
        )
        return {name: (one[name], two[name]) for name in one}

    @property
    def unequal(self) -> tuple[str, ...]:
        """The metrics that are not the same to four decimals."""
        return tuple(name for name, (one, two) in self.metrics.items() if round(one, DECIMALS) != round(two, DECIMALS))

    @property
    def verdict(self) -> Literal["aligned", "diverged", "inconclusive"]:
        """That of the report; diverged, too, where predictions differ that rounding does not decide, or metrics do without."""
        if self.differing > self.decided or (self.unequal and not self.differing):
            return "diverged"
        return self.report.verdict


def compare_trained(
    experiment: Experiment, trainers: Mapping[str, Trainer], weights: Path, task: ReviewTask, batch_size: int, seed: int
) -> Parity:
    """Compare the two sides, whose models hold the trained weights already.

    Args:
        trainers: ``"reference"`` and ``"candidate"``. weights: the reference's, as a file.

    Raises:
        AlignmentError: one of the sides fails.
    """
    part = task.validation
    one, two = (predict(trainers[side], part, batch_size, f"the {side}") for side in ("reference", "candidate"))
    differing = np.flatnonzero(one.argmax(axis=1) != two.argmax(axis=1))
    others = np.setdiff1d(np.arange(len(part)), differing)
    checked = np.concatenate([differing, others])[: GIVEN_BATCHES * batch_size]
    batches = [
        (tuple(array[rows] for array in part.inputs.values()), part.labels[rows])
        for rows in (checked[start : start + batch_size] for start in range(0, len(checked), batch_size))
    ]
    twin = replace(experiment.twin, inputs=batches, mode="eval", dropout="frozen")
    options = Options(
        steps=STEPS,
        settings=task.settings,
        weights=str(weights),
        seed=seed,
        batch_size=batch_size,
        length=task.length,
        threads=experiment.threads,
    )
    report = run_check(twin, options).report
    found = Parity(
        seed,
        report,
        len(part),
        len(checked),
        len(differing),
        len(differing) if report.verdict == "aligned" and len(differing) <= len(checked) else 0,
        float(np.abs(one.astype(np.float64) - two).max()),
        score(one, part.labels),
        score(two, part.labels),
    )
    return replace(found, report=_told(found))


def _told(parity: Parity) -> Report:
    """The report, saying what it rests on."""
    same = parity.rows - parity.differing
    lines = [
        f"{same:,} of {parity.rows:,} predictions in validation are the same; logits differ by at most {parity.logits:.1e}",
        "; ".join(f"{name} {one:.{DECIMALS}f} and {two:.{DECIMALS}f}" for name, (one, two) in parity.metrics.items()),
    ]
    if parity.differing:
        why = "rounding decides" if parity.decided else "rounding does not explain it"
        lines.append(f"{parity.differing:,} predictions differ: {why}")
    (twin,) = parity.report.twins
    data = f"{parity.checked:,} of {parity.rows:,} validation rows"
    return replace(parity.report, twins=(replace(twin, data=data, notes=(*lines, *twin.notes)),))
