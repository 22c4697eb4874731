"""A training run as one HTML page: figures, learning curves, confusion matrices, and the parity of the trained weights."""

from __future__ import annotations

from alignment.training.reviews import PARTS
from alignment.training.runs import TrainReport
from alignment.views.html import MARKS, render
from alignment.views.training import class_names, figures, to_dict


def to_training_html(report: TrainReport) -> bytes:
    """The page, UTF-8; it asks for nothing else. No name or text of the report can become markup or script in it."""
    written = to_dict(report)
    data = {"runs": [{key: run[key] for key in ("seed", "side", "best", "history")} for run in written["runs"]]}
    return render(
        "training.html",
        "training.js",
        data,
        report=report,
        word=report.verdict or "trained",
        verdicts=MARKS,
        several=report.options.seeds > 1,
        summary={side: {part: figures(report.of(side), part) for part in PARTS} for side in report.options.sides},
        parts=("test", "validation", "train"),
        classes=class_names(len(report.runs[0].test.confusion.counts)),
        recipe=written["options"]["recipe"],
        options=written["options"],
    )
