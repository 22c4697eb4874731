"""A training run for the person at the terminal, and as plain values for JSON. No figure is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from alignment.training.reviews import PARTS
from alignment.training.run_folder import Epoch
from alignment.training.runs import SideRun, TrainReport
from alignment.training.scores import spread
from alignment.views.json import to_dict as check_to_dict
from alignment.views.terminal import MARKS, STYLES

SCHEMA, VERSION = "alignment.training.result", 1
STARS = ("1★", "2★", "3★", "4★", "5★")
FIGURES = ("accuracy", "macro_f1", "macro_f1_of_means")


def epoch_line(seed: int, side: str, epoch: Epoch, epochs: int) -> str:
    """One line when an epoch is over."""
    confusion = epoch.validation.confusion
    figures = f"loss {epoch.validation.loss:.4f}, accuracy {percent(confusion.accuracy)}"
    best = "  best" if epoch.best else ""
    return (
        f"seed {seed} {side}  epoch {epoch.number:2}/{epochs}  loss {epoch.loss:.4f}  "
        f"validation: {figures}, macro-F {percent(confusion.macro_f1)}{best}"
    )


def percent(value: float) -> str:
    """A share of one in percent, without the sign."""
    return f"{100 * value:.2f}"


def figures(runs: Sequence[SideRun], part: str) -> dict[str, tuple[float, float]]:
    """Name of a figure -> its mean and spread over the runs."""
    scores = [run.scores(part) for run in runs]
    found = {name: spread(getattr(one.confusion, name) for one in scores) for name in FIGURES}
    return {"loss": spread(one.loss for one in scores), **found}


def print_training(report: TrainReport, console: Console) -> None:
    """Figures of each side, the confusion matrix of the test rows, and how the trained weights compare."""
    heading = Text.assemble((report.twin, "bold"), ("  trained", ""), (f"  {report.seconds:.1f} s", "dim"))
    console.print(heading)
    rows = ", ".join(f"{name} {count:,}" for name, count in report.rows.items())
    _said(console, f"{report.source}: {rows}")
    seeds = report.options.seeds
    _said(console, f"{seeds} seed{'s' if seeds > 1 else ''}, {report.options.dropout} dropout, {_recipe(report)}")
    for note in report.notes:
        _said(console, f"note: {note}", "yellow")
    console.print(_figures_table(report))
    for side in report.options.sides:
        run = report.of(side)[0]
        of = f" of seed {run.seed}" if seeds > 1 else ""
        console.print(Padding(Text(f"{side}{of}, {run.ended}, weights of epoch {run.best}, test rows:"), (1, 0, 0, 2)))
        console.print(Padding(_confusion_table(run), (0, 0, 0, 4), expand=False))
    for line in report.comparison:
        _said(console, line, "")
    for parity in report.parities:
        told = {name: parity.metrics[name] for name in ("loss", "accuracy", "macro_f1", *parity.unequal)}
        metrics = ", ".join(f"{name} {one:.4f} and {two:.4f}" for name, (one, two) in told.items())
        found = Text.assemble(
            ("  ", ""),
            (MARKS[parity.verdict], STYLES[parity.verdict]),
            (f" seed {parity.seed}: the reference's trained weights in the candidate: ", ""),
            (parity.verdict.upper(), STYLES[parity.verdict]),
        )
        console.print(found)
        same = parity.rows - parity.differing
        _said(console, f"  {same:,} of {parity.rows:,} predictions in validation the same; {metrics}")
        if parity.differing:
            why = "rounding decides them" if parity.decided else "rounding does not explain that"
            _said(console, f"  {parity.differing:,} differ: {why}; logits differ by at most {parity.logits:.1e}")


def _figures_table(report: TrainReport) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for heading in ("  side", "rows"):
        table.add_column(heading, no_wrap=True)
    for heading in ("loss", "accuracy", "macro-F"):
        table.add_column(heading, justify="right", no_wrap=True)
    several = report.options.seeds > 1
    for side in report.options.sides:
        for part in PARTS:
            held = figures(report.of(side), part)
            loss, *shares = (held[name] for name in ("loss", "accuracy", "macro_f1"))
            told = [f"{loss[0]:.4f}" + (f" ± {loss[1]:.4f}" if several else "")]
            told += [percent(mean) + (f" ± {percent(sd)}" if several else "") for mean, sd in shares]
            table.add_row(f"  {side}", part, *told)
    return table


def _confusion_table(run: SideRun) -> Table:
    confusion = run.test.confusion
    table = Table(box=None, padding=(0, 1), pad_edge=False, title_justify="left")
    table.add_column("actual", style="dim")
    names = class_names(len(confusion.counts))
    for name in names:
        table.add_column(name, justify="right")
    for name in ("precision", "recall", "F1"):
        table.add_column(name, justify="right")
    for place, name in enumerate(names):
        row = enumerate(confusion.counts[place].tolist())
        counts = [Text(f"{count:,}", "bold" if place == column else "") for column, count in row]
        shares = (confusion.precision[place], confusion.recall[place], confusion.f1[place])
        table.add_row(name, *counts, *(percent(share) for share in shares))
    return table


def class_names(count: int) -> tuple[str, ...]:
    """What the classes are called: stars, or numbers where a twin has other ones."""
    return STARS if count == len(STARS) else tuple(str(number) for number in range(count))


def _recipe(report: TrainReport) -> str:
    recipe, options = report.options.recipe, report.options
    parts = [f"{recipe.optimizer.kind} {recipe.optimizer.learning_rate:g}"]
    if recipe.optimizer.weight_decay:
        parts.append(f"weight decay {recipe.optimizer.weight_decay:g}")
    parts.append(f"{recipe.schedule.kind} schedule")
    if recipe.clip is not None:
        parts.append(f"{recipe.clip.kind} clipped to {recipe.clip.limit:g}")
    return ", ".join((*parts, f"batches of {options.batch_size}, rows of {report.length} tokens"))


def _said(console: Console, text: str, style: str = "dim") -> None:
    console.print(Padding(Text(text, style), (0, 0, 0, 2), expand=False))


def to_dict(report: TrainReport) -> dict[str, Any]:
    """The whole report, as result.json has it."""
    options = report.options
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "verdict": report.verdict,
        "twin": report.twin,
        "settings": dict(report.settings),
        "options": options.to_dict(),
        "source": report.source,
        "rows": dict(report.rows),
        "length": report.length,
        "notes": list(report.notes),
        "versions": dict(report.versions),
        "seconds": report.seconds,
        "summary": {
            side: {
                part: {
                    name: {"mean": mean, "spread": sd} for name, (mean, sd) in figures(report.of(side), part).items()
                }
                for part in PARTS
            }
            for side in options.sides
        },
        "comparison": list(report.comparison),
        "runs": [
            {
                "seed": run.seed,
                "side": run.side,
                "name": run.name,
                "ended": run.ended,
                "best": run.best,
                "tokens_per_second": run.tokens,
                "history": [epoch.to_dict() for epoch in run.history],
                **{part: run.scores(part).to_dict() for part in PARTS},
            }
            for run in report.runs
        ],
        "parity": [
            {
                "seed": parity.seed,
                "verdict": parity.verdict,
                "rows": parity.rows,
                "checked": parity.checked,
                "differing": parity.differing,
                "decided_by_rounding": parity.decided,
                "largest_difference_of_logits": parity.logits,
                "metrics": {name: list(pair) for name, pair in parity.metrics.items()},
                "unequal": list(parity.unequal),
                "check": check_to_dict(parity.report),
            }
            for parity in report.parities
        ],
    }
