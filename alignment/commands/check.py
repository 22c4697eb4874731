"""`align check`: run the staged checks on a twin and report."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource

from alignment.check import check, merge_reports
from alignment.commands._options import EXIT_STATUS, make_options, refuse_unwritable, shared_options, show_report
from alignment.config import find_config, read_config
from alignment.errors import AlignmentError
from alignment.experiment import Options
from alignment.frameworks import reserve_threads
from alignment.report import Report
from alignment.twins import DEFAULT_TWIN, TWINS, get_twin
from alignment.views.json import to_json
from alignment.views.progress import progress
from checkpoints import write_aside


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
@shared_options
@click.option(
    "--reprod-log",
    "reprod_log",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write each stage's tensors as a pair of reprod_log files.",
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
    strict: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    """Check that both sides of TWIN compute the same thing.

    TWIN is a built-in name: fast-transformer-classifier (the default), fastformer-classifier, fast-transformer (--set
    absolute_pos_emb=false for rotary positions) or fastformer-text-classifier; or package.module:attribute, an
    alignment.Twin of your own.
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
        refuse_unwritable(json_file)
    if reprod_log is not None:
        reprod_log.mkdir(parents=True, exist_ok=True)
        refuse_unwritable(reprod_log / "forward.npy")
    reserve_threads(threads)
    twins = []
    for name in names:
        chosen = get_twin(name)
        options = make_options(
            chosen,
            assignments=assignments,
            data=data,
            weights=weights,
            seed=seed,
            batch_size=batch_size,
            length=length,
            faults=faults,
            threads=threads,
            strict=strict,
            steps=steps,
        )
        twins.append((name, options))
    report = _run(twins, reprod_log)
    if json_file is not None:
        with write_aside(json_file) as file:
            file.write(to_json(report))
    if not quiet:
        show_report(report, verbose)
    return EXIT_STATUS[report.verdict]


def _typed(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _run(twins: list[tuple[str, Options]], reprod_log: Path | None) -> Report:
    reports = []
    with progress("preparing") as show:
        for name, options in twins:
            show(f"{name}: preparing")
            folder = reprod_log / name if reprod_log is not None and len(twins) > 1 else reprod_log
            reports.append(check(name, options, partial(show, name), folder))
    return merge_reports(reports)
