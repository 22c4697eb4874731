"""`align explain`: say what is behind each root divergence of a twin, and prove it."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import orjson
from click.core import ParameterSource

from alignment.capture import save_traces
from alignment.capture_file import SUFFIX
from alignment.check import merge_reports, run_check
from alignment.commands._gate import open_gate
from alignment.commands._options import (
    finish,
    make_options,
    output_options,
    prepare_folder,
    refuse_unwritable,
    run_options,
    shared_options,
    view_options,
)
from alignment.errors import AlignmentError
from alignment.experiment import Options
from alignment.explain import explain_checked, explain_traces
from alignment.frameworks import reserve_threads
from alignment.mapping import ModelMapping
from alignment.report import Report
from alignment.repro import refuse_unnamed, write_repros
from alignment.twins import DEFAULT_TWIN, get_twin
from alignment.views.progress import progress

# What a report's options tell, and `Options` has no field for: how the twin was asked for, where the mapping was read, and how
# it was trained.
TOLD = ("twin", "mapping_file", "training")


@click.command("explain", epilog="Exit status: 0 aligned, 1 diverged, 2 could not decide or could not run.")
@click.argument("twin", required=False, metavar="[TWIN|REPORT.json|REFERENCE.safetensors]")
@click.argument("candidate", required=False, metavar="[CANDIDATE.safetensors]")
@shared_options
@run_options
@view_options
@click.option(
    "--repro",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write a script and its inputs for each root, that shows it alone.",
)
@click.option(
    "--traces",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write what both sides did as captures, to be explained where neither framework is installed.",
)
@output_options
def command(
    twin: str | None,
    candidate: str | None,
    json_file: Path | None,
    html_file: Path | None,
    details: bool,
    repro: Path | None,
    traces: Path | None,
    waivers_file: Path | None,
    junit_file: Path | None,
    github: bool | None,
    verbose: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Say what is behind the divergences of TWIN: where they start, which side is wrong, why, and how that is proved.

    TWIN is a built-in name, or package.module:attribute. A report written by `align check --json` stands for the twins in it
    that diverged, with the options they were checked with. Two captures, the reference's first, are explained
    without the models: those that --traces wrote, or of `align capture`.
    """
    refuse_unwritable(json_file, html_file, junit_file)
    gate = open_gate(waivers_file, junit_file, github)
    details = details or html_file is not None
    if is_trace(twin) or candidate is not None:
        refuse_options(click.get_current_context())
        report = explain_pair(twin or "", candidate, details)
    else:
        report = explain_twins(twin or DEFAULT_TWIN, repro, traces, given | {"details": details})
    return finish(report, json_file, verbose, quiet, gate, html_file)


def is_trace(name: str | None) -> bool:
    """Is this the name of a capture, and not of a twin or a report?"""
    return name is not None and name.endswith(SUFFIX)


def refuse_options(context: click.Context) -> None:
    """What says how to run a model means nothing where none is run."""
    views = {"json_file", "html_file", "details", "waivers_file", "junit_file", "github", "verbose", "quiet"}
    fine = {"twin", "candidate", *views}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name not in fine and source is ParameterSource.COMMANDLINE:
            raise AlignmentError(f"{parameter.opts[0]} means nothing for captures: no model is run")


def explain_pair(reference: str, candidate: str | None, details: bool = False) -> Report:
    """Explain two captures. details: as in `Options`.

    Raises:
        AlignmentError: these are not two captures, or they can't be explained.
    """
    if candidate is None:
        raise AlignmentError(f"{reference}: a capture is explained beside the other side's: name the candidate's, too")
    if not (is_trace(reference) and is_trace(candidate)):
        odd = candidate if is_trace(reference) else reference
        raise AlignmentError(f"{odd}: two arguments must both be captures ({SUFFIX} files), the reference's first")
    return explain_traces(reference, candidate, details)


def explain_twins(name: str, repro: Path | None, traces: Path | None, given: dict[str, Any]) -> Report:
    """Check a twin, or those of a saved report, and explain what diverges."""
    for folder in (repro, traces):
        if folder is not None:
            prepare_folder(folder)
    reserve_threads(given["threads"])
    saved = name.endswith(".json")
    if saved:
        asked = [(one, replace(options, details=given["details"])) for one, options in read_report(Path(name))]
    else:
        asked = [(name, make_options(get_twin(name), **given))]
    reports = []
    with progress("preparing") as show:
        for one, options in asked:
            show(f"{one}: preparing")
            if repro is not None:
                refuse_unnamed(get_twin(one), options)
            checked = run_check(one, options, partial(show, one))
            reports.append(explain_checked(checked))
            if repro is not None:
                write_repros(checked, repro)
            if traces is not None and checked.experiment.layout is None:
                click.echo(f"{one}: no traces: the candidate can't be given the reference's weights", err=True)
            elif traces is not None:
                save_traces(checked, traces if len(asked) == 1 else traces / re.sub(r"[^\w.-]+", "_", one))
    return merge_reports(reports)


def read_report(path: Path) -> list[tuple[str, Options]]:
    """The twins of a saved report that did not come out aligned, with the options they were checked with.

    Raises:
        AlignmentError: no such file, no report, or nothing in it to explain.
    """
    try:
        twins = orjson.loads(path.read_bytes())["twins"]
        asked = [(entry["options"], entry["seed"]) for entry in twins if entry["verdict"] != "aligned"]
        if not all(given for given, _ in asked):
            raise AlignmentError(
                "there is no twin to run again from this report: it is of two captures (name those), or of a check "
                "that crashed"
            )
        found = [
            (
                str(given["twin"]),
                Options(**{key: _as_given(key, value) for key, value in given.items() if key not in TOLD}, seed=seed),
            )
            for given, seed in asked
        ]
    except AlignmentError as error:
        raise AlignmentError(f"{path}: {error}") from error
    except OSError as error:
        raise AlignmentError(f"{path}: can't read the report: {error.strerror}") from error
    except (orjson.JSONDecodeError, LookupError, TypeError) as error:
        raise AlignmentError(f"{path} is no report of `align check --json`: {error}") from error
    if not found:
        raise AlignmentError(f"{path}: every twin in this report is aligned: there is nothing to explain")
    return found


def _as_given(key: str, value: Any) -> Any:
    if key == "mapping" and isinstance(value, dict):
        return ModelMapping.from_dict(value)
    return tuple(value) if isinstance(value, list) else value
