"""`align check`: run the staged checks on a twin and report."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from alignment.apart import compare_captures
from alignment.cases import DEFAULT_TIMEOUT, Case, check_isolated
from alignment.check import Progress, check, merge_reports
from alignment.commands._gate import baseline_option, open_gate
from alignment.commands._options import (
    finish,
    make_options,
    output_options,
    prepare_folder,
    refuse_unwritable,
    run_options,
    shared_options,
    step_option,
    view_options,
)
from alignment.config import find_config, read_config
from alignment.errors import AlignmentError
from alignment.experiment import SIDES
from alignment.frameworks import reserve_threads
from alignment.isolation import run_isolated
from alignment.mapping import ModelMapping
from alignment.report import Report
from alignment.twins import DEFAULT_TWIN, TWINS, get_twin
from alignment.views.github import without_github
from alignment.views.progress import progress

# Seconds that either side may take with a Python of its own.
SIDE_TIMEOUT = 3600.0


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
@step_option
@shared_options
@run_options
@view_options
@click.option(
    "--reprod-log",
    "reprod_log",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write each stage's tensors as a pair of reprod_log files.",
)
@click.option(
    "--reference-python",
    metavar="PATH",
    help="Run the reference with this Python, in an environment of its own; alignment must be installed there.",
)
@click.option("--candidate-python", metavar="PATH", help="Run the candidate with this Python.")
@click.option(
    "--isolate",
    is_flag=True,
    help="Run each check in a process of its own: a model that crashes or hangs costs one inconclusive result.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="How long a check may take with --isolate, or either side with a Python of its own, before it is killed  "
    f"[default: {DEFAULT_TIMEOUT:.0f}; {SIDE_TIMEOUT:.0f} for a side]",
)
@baseline_option
@output_options
def command(
    json_file: Path | None,
    html_file: Path | None,
    details: bool,
    waivers_file: Path | None,
    baseline_file: Path | None,
    junit_file: Path | None,
    github: bool | None,
    verbose: bool,
    quiet: bool,
    **asked: Any,
) -> int:
    """Check that both sides of TWIN compute the same thing.

    TWIN is a built-in name: fast-transformer-classifier (the default), fastformer-classifier, fast-transformer (--set
    absolute_pos_emb=false for rotary positions) or fastformer-text-classifier; or package.module:attribute, an
    alignment.Twin of your own.
    """
    refuse_unwritable(json_file, html_file, junit_file)
    gate = open_gate(waivers_file, junit_file, github, baseline_file)
    report = make_report(details=details or html_file is not None, **asked)
    return finish(report, json_file, verbose, quiet, gate, html_file)


def make_report(
    twin: str | None,
    every: bool,
    reprod_log: Path | None,
    reference_python: str | None,
    candidate_python: str | None,
    isolate: bool,
    timeout: float | None,
    details: bool = False,
    **given: Any,
) -> Report:
    """Run what the command line asks for.

    Raises:
        AlignmentError: options that do not go together, or it can't run.
    """
    if every and twin:
        typed = {name for name in ("every", "twin") if _typed(name)}
        if typed == {"every", "twin"}:
            raise AlignmentError(f"--all checks every twin: leave out {twin!r}, or leave out --all")
        every = "twin" not in typed  # what was typed goes before what a configuration file says
    if every and given["assignments"]:
        raise AlignmentError("--set goes with one twin: the twins have different settings, so leave it out with --all")
    if every and given["mapping"]:
        raise AlignmentError("--mapping goes with one twin: leave it out with --all")
    apart = reference_python is not None or candidate_python is not None
    if timeout is not None and not (isolate or apart):
        raise AlignmentError(
            "--timeout goes with --isolate, or with --reference-python and --candidate-python: only a process of its own "
            "can be killed"
        )
    if apart:
        here = {
            "isolate": isolate,
            "reprod-log": reprod_log is not None,
            "precision": given["precision"] != "float32",
            **{
                name: given[name.replace("-", "_")]
                for name in ("dropout", "device", "reference-device", "candidate-device")
            },
        }
        for name in (name for name, said in here.items() if said):
            raise AlignmentError(
                f"--{name} goes with a check in one environment, not with --reference-python or --candidate-python: leave it out"
            )
    names = list(TWINS) if every else [twin or DEFAULT_TWIN]
    if reprod_log is not None:
        prepare_folder(reprod_log)
    if apart:
        return _run_apart(names, (reference_python, candidate_python), given, timeout or SIDE_TIMEOUT, details)
    runs: list[tuple[str, Run]]
    if isolate:
        said = given_options(click.get_current_context()) | ({"details": True} if details else {})
        runs = [(name, partial(_run_isolated, Case(name, said), timeout or DEFAULT_TIMEOUT)) for name in names]
    else:
        reserve_threads(given["threads"])
        runs = [(name, partial(check, name, make_options(get_twin(name), details=details, **given))) for name in names]
    return _run(runs, reprod_log)


def _typed(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


# Option -> the name of its value; what an interpreter of the reference's is told.
_TOLD = {"set": "assignments", "batch-size": "batch_size"} | {
    name: name for name in ("data", "weights", "seed", "length", "threads")
}


def _run_apart(
    names: list[str], pythons: tuple[str | None, str | None], given: dict[str, Any], timeout: float, details: bool
) -> Report:
    """Each side captured by an interpreter of its own, and the two captures compared here."""
    values = [(name, given[held]) for name, held in _TOLD.items()]
    several = [(name, one) for name, value in values for one in (value if isinstance(value, tuple) else (value,))]
    arguments = [part for name, value in several if value is not None for part in (f"--{name}", str(value))]
    steps = sorted(set(given["steps"])) or (1, 2, 3, 4, 5)
    arguments += ["--strict"] if given["strict"] else []
    arguments += ["--initializers"] if 2 in steps else []
    planted = [part for fault in given["faults"] for part in ("--inject", fault)]
    if given["mapping"]:
        ModelMapping.read(given["mapping"])  # before the work: the candidate comes second
        planted += ["--mapping", given["mapping"]]
    reports = []
    with progress("preparing") as show:
        for name in names:
            with tempfile.TemporaryDirectory(prefix="align-") as folder:
                reference, candidate = (Path(folder) / f"{side}.safetensors" for side in SIDES)
                own = [*arguments, "-o", str(reference)]
                show(f"{name}: the reference", 0, 3)
                _capture(name, "reference", pythons[0], own, timeout, reference)
                show(f"{name}: the candidate", 1, 3)
                own = ["--from", str(reference), *planted, "-o", str(candidate)]
                _capture(name, "candidate", pythons[1], own, timeout, candidate)
                show(f"{name}: comparing", 2, 3)
                reports.append(compare_captures(reference, candidate, steps, details=details))
    return merge_reports(reports)


def _capture(twin: str, side: str, python: str | None, arguments: list[str], timeout: float, written: Path) -> None:
    """Run `align capture` with another interpreter.

    Raises:
        AlignmentError: it ended with anything but 0, was killed, or took too long; with the last that it said.
    """
    python = python or sys.executable
    command = [python, "-m", "alignment", "capture", twin, "--side", side, "--quiet", *arguments]
    done = run_isolated(command, timeout, env=without_github())
    if done.returncode != 0 or not written.is_file():
        what = done.outcome + ("" if done.returncode else ", but it wrote no capture")
        said = done.last_output or "(nothing)"
        raise AlignmentError(f"{twin}: the {side}, run by {python}: {what}; the last it said:\n{said}")


# Told (done, total) and a folder for reprod_log files.
Run = Callable[[Progress, Path | None], Report]


def _run(runs: list[tuple[str, Run]], reprod_log: Path | None) -> Report:
    reports = []
    with progress("preparing") as show:
        for name, run in runs:
            show(f"{name}: preparing")
            folder = reprod_log / name if reprod_log is not None and len(runs) > 1 else reprod_log
            reports.append(run(partial(show, name), folder))
    return merge_reports(reports)


def _run_isolated(case: Case, timeout: float, _progress: Progress, reprod_log: Path | None) -> Report:
    folder = {} if reprod_log is None else {"reprod-log": str(reprod_log)}
    return check_isolated(Case(case.twin, {**case.options, **folder}), timeout)


# Options of this command that say what becomes of the result, or where it is made, and not what is checked.
NOT_OF_A_CASE = {
    "all",
    "baseline",
    "candidate-python",
    "config",
    "details",
    "html",
    "github",
    "isolate",
    "json",
    "junit",
    "quiet",
    "reference-python",
    "reprod-log",
    "timeout",
    "verbose",
    "waivers",
}


def case_options() -> dict[str, click.Option]:
    """The options that describe a case, by their long names."""
    options = {_long_name(p): p for p in command.params if isinstance(p, click.Option)}
    return {name: option for name, option in options.items() if name not in NOT_OF_A_CASE}


def given_options(context: click.Context) -> dict[str, Any]:
    """What the command line and the configuration file said about the case, as a `Case` has it."""
    given = {name: context.params[option.name or ""] for name, option in case_options().items()}
    said = {name: value for name, value in given.items() if value is not None and value is not False and value != ()}
    if "set" in said:
        said["set"] = dict(assignment.partition("=")[::2] for assignment in said["set"])
    return said
