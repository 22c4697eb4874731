"""`align check`: run the staged checks on a twin and report."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console

from alignment.check import check, merge_reports
from alignment.config import find_config, read_config
from alignment.errors import AlignmentError
from alignment.experiment import Options
from alignment.faults import FAULTS
from alignment.frameworks import reserve_threads
from alignment.report import Report
from alignment.twins import DEFAULT_TWIN, TWINS, Twin, get_twin, parse_settings
from alignment.views.json import to_json
from alignment.views.progress import progress
from alignment.views.terminal import print_report
from checkpoints import write_aside

EXIT_STATUS = {"aligned": 0, "diverged": 1, "inconclusive": 2}


def _configure(context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    """Let a configuration file give the defaults of the other options."""
    names = {_long_name(p): p.name for p in context.command.params if p.name and p.name != "config"}
    options = [p for p in context.command.params if isinstance(p, click.Option)]
    flags = {_long_name(p) for p in options if p.is_flag}
    repeated = {_long_name(p) for p in options if p.multiple}
    path = value or find_config()
    configured = read_config(path, names.keys(), flags, repeated)
    if configured:
        click.echo(f"options from {path}: {', '.join(configured)}", err=True)
    context.default_map = {names[key] or "": given for key, given in configured.items()}
    return value


def _long_name(parameter: click.Parameter) -> str:
    return max(parameter.opts, key=len).lstrip("-")


@click.command("check", epilog="Exit status: 0 aligned, 1 diverged, 2 could not decide or could not run.")
@click.argument("twin", required=False, metavar="[TWIN]")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_configure,
    help="Defaults for these options; otherwise alignment.toml or [tool.alignment] in pyproject.toml here.",
)
@click.option("--all", "every", is_flag=True, help="Check every built-in twin.")
@click.option(
    "--step",
    "steps",
    type=click.IntRange(1, 5),
    multiple=True,
    metavar="N",
    help="Only this stage: 1 structure, 2 initialization, 3 forward, 4 loss, 5 backward. May be repeated.",
)
@click.option(
    "--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A size or other setting of both sides."
)
@click.option(
    "--data",
    metavar="fake|synthetic|FILE",
    help="Where ordinary batches come from: random ids, made-up reviews, or a file of real ones.",
)
@click.option(
    "--weights",
    default="init",
    show_default=True,
    metavar="init|random|FILE",
    help="The reference's own initialisation, random weights only, or a checkpoint. Random ones are always tried too.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of weights and batches.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Rows of a batch.")
@click.option("--length", type=click.IntRange(1), help="Tokens of a row  [default: 64, or the model's longest if less]")
@click.option(
    "--inject",
    "faults",
    multiple=True,
    type=click.Choice(list(FAULTS)),
    metavar="NAME",
    help=f"Plant a fault on the candidate, to see it found: {', '.join(FAULTS)}. May be repeated.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the report as JSON.",
)
@click.option(
    "--reprod-log",
    "reprod_log",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write each stage's tensors as a pair of reprod_log files.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads of both frameworks  [default: all cores; one for small runs]",
)
@click.option("--verbose", is_flag=True, help="A line for every tensor.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors; the exit status tells.")
def command(
    twin: str | None,
    every: bool,
    steps: tuple[int, ...],
    assignments: tuple[str, ...],
    data: str | None,
    weights: str,
    seed: int,
    batch_size: int,
    length: int | None,
    faults: tuple[str, ...],
    json_file: Path | None,
    reprod_log: Path | None,
    threads: int | None,
    verbose: bool,
    quiet: bool,
) -> int:
    """Check that both sides of TWIN compute the same thing.

    TWIN is a built-in name: fast-transformer-classifier (the default), fastformer-classifier, fast-transformer (--set
    absolute_pos_emb=false for rotary positions) or fastformer-text-classifier.
    """
    if every and twin:
        typed = {name for name in ("every", "twin") if _typed(name)}
        if typed == {"every", "twin"}:
            raise AlignmentError(f"--all checks every twin: leave out {twin!r}, or leave out --all")
        every = "twin" not in typed  # what was typed goes before what a configuration file says
    if every and assignments:
        raise AlignmentError("--set goes with one twin: the twins have different settings, so leave it out with --all")
    names = list(TWINS) if every else [twin or DEFAULT_TWIN]
    if json_file is not None:
        _refuse_unwritable(json_file)
    if reprod_log is not None:
        reprod_log.mkdir(parents=True, exist_ok=True)
        _refuse_unwritable(reprod_log / "forward.npy")
    reserve_threads(threads)
    twins = []
    for name in names:
        chosen = get_twin(name)
        mentioned = {assignment.partition("=")[0].strip() for assignment in assignments}
        settings = {key: value for key, value in parse_settings(chosen, assignments).items() if key in mentioned}
        options = Options(
            steps=tuple(sorted(set(steps))) or (1, 2, 3, 4, 5),
            settings=settings,
            data=data,
            weights=weights,
            seed=seed,
            batch_size=batch_size,
            length=length,
            faults=faults,
            threads=threads,
        )
        twins.append((chosen, options))
    report = _run(twins, reprod_log)
    if json_file is not None:
        with write_aside(json_file) as file:
            file.write(to_json(report))
    if not quiet:
        try:
            print_report(report, _Console(highlight=False), verbose)
        except BrokenPipeError:
            # The reader of our output went away (`align check | head`); the verdict stands.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_STATUS[report.verdict]


class _Console(Console):
    """A console that lets us say what a closed pipe means; rich would exit with status 1, which here is a verdict."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _typed(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _refuse_unwritable(path: Path) -> None:
    """Before the work, not after it: a report that can't be written would be lost."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise AlignmentError(f"{path}: can't write there; name a file in a folder that exists and can be written to")


def _run(twins: list[tuple[Twin, Options]], reprod_log: Path | None) -> Report:
    reports = []
    with progress("preparing") as show:
        for twin, options in twins:
            show(f"{twin.name}: preparing")
            folder = reprod_log / twin.name if reprod_log is not None and len(twins) > 1 else reprod_log
            reports.append(check(twin, options, partial(show, twin.name), folder))
    return merge_reports(reports)
