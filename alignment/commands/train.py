"""`align train`: train either side of a twin, or both, on reviews, and compare the trained weights."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from alignment.check import merge_reports
from alignment.commands._options import EXIT_STATUS, _Console
from alignment.errors import AlignmentError
from alignment.frameworks import reserve_threads
from alignment.training.fit import StoppedError
from alignment.training.recipe import CLIPS, KINDS, SCHEDULES, Recipe
from alignment.training.recipe_file import read_recipe
from alignment.training.run_folder import PARITY, REPORT, RESULT, RunFolder
from alignment.training.runs import SAVE_EVERY, TrainOptions, TrainReport, resume, train
from alignment.twins import DEFAULT_TWIN, get_twin, parse_settings
from alignment.views.progress import progress
from alignment.views.terminal import print_report
from alignment.views.training import epoch_line, print_training, to_dict
from checkpoints import CheckpointError, write_aside

DEFAULTS = TrainOptions()
# Schedules that need to know how long training lasts -> the option that says it.
LASTING = {"cosine": "T_max", "onecycle": "total_steps"}
# Options that go with --resume: the others are the run's own.
OF_A_SESSION = {"resumed", "data", "save_every", "quiet", "verbose"}


@click.command("train", epilog="Exit status: 0 aligned (or one side trained), 1 diverged, 2 could not decide or run.")
@click.argument("twin", required=False, metavar="[TWIN]")
@click.option(
    "-o",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the run here: weights, state, metrics, report. Without it nothing is kept.",
)
@click.option(
    "--resume",
    "resumed",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Go on with the run in DIR that was stopped or killed.",
)
@click.option(
    "--side",
    type=click.Choice(["reference", "candidate", "both"]),
    default=DEFAULTS.side,
    show_default=True,
    help="Which are trained; all start from the reference's initial weights.",
)
@click.option(
    "--data", default=DEFAULTS.data, show_default=True, metavar="synthetic|FILE", help="Made-up or real reviews."
)
@click.option(
    "--reviews", type=click.IntRange(1), help="Read no more than so many  [default: all; 20,000 made-up ones]"
)
@click.option(
    "--split",
    type=click.Choice(["balanced", "random"]),
    default=DEFAULTS.split,
    show_default=True,
    help="As many reviews of each rating, or as they come.",
)
@click.option(
    "--split-seed",
    type=click.IntRange(0),
    default=DEFAULTS.split_seed,
    show_default=True,
    help="Which rows are in which part.",
)
@click.option("--length", type=click.IntRange(1), help="Tokens of a row  [default: the model's longest]")
@click.option(
    "--min-count",
    type=click.IntRange(1),
    default=DEFAULTS.min_count,
    show_default=True,
    help="A word met less often becomes <unknown>.",
)
@click.option("--max-words", type=click.IntRange(1), help="Only that many words, the most frequent.")
@click.option(
    "--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A size or other setting of both sides."
)
@click.option(
    "--weights", default=DEFAULTS.weights, show_default=True, metavar="init|FILE", help="What training starts from."
)
@click.option("--epochs", type=click.IntRange(1), default=DEFAULTS.epochs, show_default=True, help="At most so many.")
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=DEFAULTS.patience,
    show_default=True,
    help="Stop after so many epochs without a better macro-F in validation.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=DEFAULTS.batch_size, show_default=True, help="Rows of a step."
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Optimizer, schedule, clipping and groups as TOML; the options below go before it.",
)
@click.option("--optimizer", type=click.Choice(KINDS), help="[default: adam]")
@click.option("--lr", "learning_rate", type=click.FloatRange(0, min_open=True), help="[default: 0.001]")
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="Of sgd  [default: 0]")
@click.option("--weight-decay", type=click.FloatRange(0), help="[default: 0]")
@click.option(
    "--schedule",
    metavar="KIND[:NAME=VALUE,…]",
    help=f"Of the learning rate, options by torch's names: {', '.join(SCHEDULES)}  [default: constant]",
)
@click.option("--clip", metavar="KIND:LIMIT", help=f"Clip gradients: {', '.join(CLIPS)}, such as 'global norm:1'.")
@click.option(
    "--dropout",
    type=click.Choice(["seeded", "own", "off"]),
    default=DEFAULTS.dropout,
    show_default=True,
    help="The same masks on both sides, or the frameworks' own. The rate is a setting: --set dropout=0.2",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=DEFAULTS.seed,
    show_default=True,
    help="Of initial weights, order and dropout.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=DEFAULTS.seeds,
    show_default=True,
    help="Train with so many, from --seed on.",
)
@click.option(
    "--save-every",
    type=click.FloatRange(0),
    default=SAVE_EVERY,
    show_default=True,
    metavar="SECONDS",
    help="Save that often within an epoch, too.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads of both frameworks  [default: all cores; one for small sizes]",
)
@click.option("--verbose", is_flag=True, help="The whole report of each parity check, too.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors; the exit status tells.")
def command(
    twin: str | None,
    folder: Path | None,
    resumed: Path | None,
    save_every: float,
    verbose: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Train TWIN on reviews: either side, or both from the same initial weights; then compare the trained weights.

    The best weights by macro-F in validation are kept and tested. Where both sides are trained, the reference's are converted
    into the candidate, and steps 3 and 4 of a check, predictions and metrics compared on the validation rows: the exit status
    is that comparison's.
    """
    context = click.get_current_context()
    typed = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if resumed is not None and (others := sorted(typed - OF_A_SESSION)):
        raise AlignmentError(
            f"--resume takes all but --data and --save-every from the folder: leave out {', '.join(map(_flag, others))}"
        )
    reserve_threads(given["threads"])
    kept = folder or resumed
    try:
        with progress("preparing") as show, _asked_to_stop() as stop:
            common: dict[str, Any] = {"save_every": save_every, "progress": show, "stop": stop}
            if resumed is not None:
                epochs = RunFolder(resumed).about()["options"]["epochs"]
                told = None if quiet else partial(_tell, epochs)
                report = resume(resumed, data=given["data"] if "data" in typed else None, on_epoch=told, **common)
            else:
                name = twin or DEFAULT_TWIN
                options = _options(name, **given)
                report = train(
                    name, options, folder, on_epoch=None if quiet else partial(_tell, options.epochs), **common
                )
    except StoppedError as error:
        how = f"all of it is kept: `align train --resume {kept}` goes on" if kept else "nothing is kept without -o DIR"
        raise AlignmentError(f"{error}; {how}") from error
    except CheckpointError as error:
        if kept is None:
            raise
        raise CheckpointError(
            f"{error}\nWhat was saved before is still there. When it can be read and written again, "
            f"`align train --resume {kept}` goes on."
        ) from error
    if kept is not None:
        write_report(report, kept)
    if not quiet:
        console = _Console(highlight=False)
        print_training(report, console)
        for parity in report.parities:
            if verbose or parity.verdict != "aligned":
                print_report(parity.report, console, False)
        if kept is not None:
            console.print(f"[dim]weights, metrics and {REPORT}: {kept}[/]", soft_wrap=True)
    return 0 if report.verdict is None else EXIT_STATUS[report.verdict]


def write_report(report: TrainReport, folder: Path) -> None:
    """Write result.json, report.html and, where both sides were trained, parity.html."""
    from alignment.views.html import to_html  # the template engine, of use to this alone
    from alignment.views.training_html import to_training_html

    RunFolder(folder).write_json(RESULT, to_dict(report))
    pages = {REPORT: to_training_html(report)}
    if report.parities:
        pages[PARITY] = to_html(merge_reports([parity.report for parity in report.parities]))
    for name, page in pages.items():
        with write_aside(folder / name) as file:
            file.write(page)


def _options(
    twin: str,
    *,
    assignments: tuple[str, ...],
    recipe_file: Path | None,
    optimizer: str | None,
    learning_rate: float | None,
    momentum: float | None,
    weight_decay: float | None,
    schedule: str | None,
    clip: str | None,
    **given: Any,
) -> TrainOptions:
    mentioned = {assignment.partition("=")[0].strip() for assignment in assignments}
    settings = {key: value for key, value in parse_settings(get_twin(twin), assignments).items() if key in mentioned}
    table = {} if recipe_file is None else read_recipe(recipe_file).to_dict()
    told = {"kind": optimizer, "learning_rate": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
    changed = {name: value for name, value in told.items() if value is not None}
    table = {**table, "optimizer": {**table.get("optimizer", {}), **changed}}
    if schedule is not None:
        table["schedule"] = _schedule(schedule, given["epochs"])
    if clip is not None:
        kind, _, limit = clip.rpartition(":")
        table["clip"] = {"kind": kind.strip(), "limit": _number(limit)}
    return TrainOptions(settings=settings, recipe=Recipe.from_dict(table), **given)


def _schedule(text: str, epochs: int) -> dict[str, Any]:
    """``"cosine:T_max=900"`` as a table; how long it lasts is, where that is not said, the epochs there are."""
    kind, _, rest = text.partition(":")
    kind, options = kind.strip(), {}
    for part in rest.split(",") if rest else ():
        name, equals, value = (one.strip() for one in part.partition("="))
        if not equals:
            raise AlignmentError(
                f"--schedule takes KIND or KIND:NAME=VALUE,…, not {text!r}; lists go into a --recipe file"
            )
        options[name] = _number(value)
    if kind in LASTING and LASTING[kind] not in options:
        options = {LASTING[kind]: epochs, "by": "epoch", **options}
    return {"kind": kind, **options}


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _tell(epochs: int, seed: int, side: str, epoch: Any) -> None:
    click.echo(epoch_line(seed, side, epoch, epochs))


def _flag(name: str) -> str:
    found = next(p for p in click.get_current_context().command.params if p.name == name)
    return found.opts[-1] if isinstance(found, click.Option) else "TWIN"


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether the process was asked to stop: Ctrl-C, or SIGTERM. A second Ctrl-C stops at once, where the program is."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        click.echo("stopping after this step; again: at once, without saving it", err=True)

    def stop() -> bool:
        # Not before the first step: importing paddle sets a handler of its own.
        for number in (signal.SIGINT, signal.SIGTERM) if not before else ():
            before[number] = signal.signal(number, note)
        return bool(asked)

    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
