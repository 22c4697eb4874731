"""Options that the commands which run a twin share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from alignment.commands._gate import Gate, gate_options
from alignment.errors import AlignmentError
from alignment.experiment import DROPOUT, PRECISIONS, Options
from alignment.faults import FAULTS
from alignment.report import EXIT_STATUS as EXIT_STATUS
from alignment.report import Report
from alignment.twins import Twin, parse_settings
from alignment.views.json import to_json
from alignment.views.terminal import print_report
from checkpoints import write_aside

# Columns where there is no terminal to ask: a CI's log takes more than the 80 that would be assumed, and tables need them.
LOG_WIDTH = 120

Command = TypeVar("Command", bound=Callable[..., Any])

step_option = click.option(
    "--step",
    "steps",
    type=click.IntRange(1, 5),
    multiple=True,
    metavar="N",
    help="Only this stage: 1 structure, 2 initialization, 3 forward, 4 loss, 5 backward. May be repeated.",
)

json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the report as JSON.",
)

html_option = click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the report as one HTML page that needs no network.",
)

_OUTPUT = (
    click.option("--verbose", is_flag=True, help="A line for every tensor, and with findings every root and identity."),
    click.option("--quiet", is_flag=True, help="Print nothing but errors; the exit status tells."),
)

_VIEWS = (
    html_option,
    click.option(
        "--details",
        is_flag=True,
        help="Keep in the report where the differences of each tensor sit, and the worst of them; --html does by itself.",
    ),
)

_SHARED = (
    click.option(
        "--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A size or other setting of both sides."
    ),
    click.option(
        "--data",
        metavar="fake|synthetic|FILE",
        help="Where ordinary batches come from: random ids, made-up reviews, or a file of real ones.",
    ),
    click.option(
        "--weights",
        default="init",
        show_default=True,
        metavar="init|random|FILE",
        help="The reference's own initialisation, random weights only, or a checkpoint. Random ones are always tried too.",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of weights and batches."
    ),
    click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Rows of a batch."),
    click.option(
        "--length", type=click.IntRange(1), help="Tokens of a row  [default: 64, or the model's longest if less]"
    ),
    click.option(
        "--inject",
        "faults",
        multiple=True,
        metavar="NAME",
        help=f"Plant a fault on the candidate, to see it found: {', '.join(FAULTS)}, or package.module:attribute. "
        "May be repeated.",
    ),
    click.option(
        "--mapping",
        metavar="FILE",
        help="How the two sides' parts correspond where names differ, and what is compared; `align map` writes one.",
    ),
    json_option,
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        help="CPU threads of both frameworks  [default: all cores; one for small runs]",
    ),
    click.option(
        "--strict",
        is_flag=True,
        help="Call diverged, too, what the frameworks' own layers define differently: batch norm's running variance, the "
        "padding row of an embedding.",
    ),
)

_DEVICE = "cpu|gpu[:N]"
_RUN = (
    click.option(
        "--dropout",
        type=click.Choice(DROPOUT),
        help="Dropout layers let everything pass, or apply the same seeded masks on both sides, in training mode  "
        "[default: the twin's own choice, frozen]",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="float32",
        show_default=True,
        help="Run both sides in this dtype, too, and judge the candidate's errors by the reference's.",
    ),
    click.option(
        "--device", metavar=_DEVICE, help="Where both sides run  [default: where their frameworks put models]"
    ),
    click.option("--reference-device", metavar=_DEVICE, help="Where the reference runs."),
    click.option("--candidate-device", metavar=_DEVICE, help="Where the candidate runs."),
)


def run_options(command: Command) -> Command:
    """The options of how both sides are run in one environment: dropout, a further dtype, devices."""
    for option in reversed(_RUN):
        command = option(command)
    return command


def shared_options(command: Command) -> Command:
    """The options of sizes, weights, data, faults, threads, the mapping and the JSON file."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def output_options(command: Command) -> Command:
    """What becomes of the report: the views for machines, and how much is printed."""
    for option in reversed(_OUTPUT):
        command = option(command)
    return gate_options(command)


def view_options(command: Command) -> Command:
    """The HTML report, and what it shows of each tensor."""
    for option in reversed(_VIEWS):
        command = option(command)
    return command


def make_options(
    twin: Twin,
    *,
    assignments: tuple[str, ...],
    data: str | None,
    weights: str,
    seed: int,
    batch_size: int,
    length: int | None,
    faults: tuple[str, ...],
    threads: int | None,
    strict: bool,
    mapping: str | None = None,
    dropout: str | None = None,
    precision: str = "float32",
    device: str | None = None,
    reference_device: str | None = None,
    candidate_device: str | None = None,
    details: bool = False,
    steps: tuple[int, ...] = (),
) -> Options:
    """The options of a check of `twin` as the command line gave them."""
    mentioned = {assignment.partition("=")[0].strip() for assignment in assignments}
    settings = {key: value for key, value in parse_settings(twin, assignments).items() if key in mentioned}
    return Options(
        steps=tuple(sorted(set(steps))) or (1, 2, 3, 4, 5),
        settings=settings,
        data=data,
        weights=weights,
        seed=seed,
        batch_size=batch_size,
        length=length,
        faults=faults,
        threads=threads,
        strict=strict,
        mapping=mapping,
        dropout=dropout,
        precision=precision,
        reference_device=reference_device or device,
        candidate_device=candidate_device or device,
        details=details,
    )


def prepare_folder(folder: Path) -> None:
    """Make a folder that results go to, before the work."""
    folder.mkdir(parents=True, exist_ok=True)
    refuse_unwritable(folder / "any")


def refuse_unwritable(*paths: Path | None) -> None:
    """Before the work, not after it: a report that can't be written would be lost."""
    for path in paths:
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            raise AlignmentError(
                f"{path}: can't write there; name a file in a folder that exists and can be written to"
            )


def finish(
    report: Report, json_file: Path | None, verbose: bool, quiet: bool, gate: Gate, html_file: Path | None = None
) -> int:
    """Let a report pass its gate, write and show it as was asked for; returns the exit status."""
    report = gate.judge(report)
    if json_file is not None:
        with write_aside(json_file) as file:
            file.write(to_json(report))
    if html_file is not None:
        from alignment.views.html import to_html  # the template engine, of use to this alone

        with write_aside(html_file) as file:
            file.write(to_html(report))
    if not quiet:
        show_report(report, verbose)
    gate.tell(report)
    return EXIT_STATUS[report.verdict]


def show_report(report: Report, verbose: bool) -> None:
    """Print a report; that its reader goes away (`align check | head`) changes no verdict."""
    narrow = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    try:
        print_report(report, _Console(highlight=False, width=LOG_WIDTH if narrow else None), verbose)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Console(Console):
    """A console that lets us say what a closed pipe means; rich would exit with status 1, which here is a verdict."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
