"""`align explain`: say what is behind each root divergence of a twin, and prove it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import orjson

from alignment.check import merge_reports, run_check
from alignment.commands._options import EXIT_STATUS, make_options, refuse_unwritable, shared_options, show_report
from alignment.errors import AlignmentError
from alignment.experiment import Options
from alignment.explain import explain_checked
from alignment.frameworks import reserve_threads
from alignment.repro import write_repros
from alignment.twins import DEFAULT_TWIN, get_twin
from alignment.views.json import to_json
from alignment.views.progress import progress
from checkpoints import write_aside


@click.command("explain", epilog="Exit status: 0 aligned, 1 diverged, 2 could not decide or could not run.")
@click.argument("twin", required=False, metavar="[TWIN|REPORT.json]")
@shared_options
@click.option(
    "--repro",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write a script and its inputs for each root, that shows it alone.",
)
@click.option("--verbose", is_flag=True, help="A line for every tensor, root and identity.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors; the exit status tells.")
def command(
    twin: str | None, json_file: Path | None, repro: Path | None, verbose: bool, quiet: bool, **given: Any
) -> int:
    """Say what is behind the divergences of TWIN: where they start, which side is wrong, why, and how that is proved.

    TWIN is a built-in name, or package.module:attribute. A report written by `align check --json` stands for the twins in it
    that diverged, with the options they were checked with.
    """
    if json_file is not None:
        refuse_unwritable(json_file)
    if repro is not None:
        repro.mkdir(parents=True, exist_ok=True)
        refuse_unwritable(repro / "repro.py")
    reserve_threads(given["threads"])
    name = twin or DEFAULT_TWIN
    saved = name.endswith(".json")
    asked = read_report(Path(name)) if saved else [(name, make_options(get_twin(name), **given))]
    reports = []
    with progress("preparing") as show:
        for one, options in asked:
            show(f"{one}: preparing")
            checked = run_check(one, options, partial(show, one))
            reports.append(explain_checked(checked))
            if repro is not None:
                write_repros(checked, repro)
    report = merge_reports(reports)
    if json_file is not None:
        with write_aside(json_file) as file:
            file.write(to_json(report))
    if not quiet:
        show_report(report, verbose)
    return EXIT_STATUS[report.verdict]


def read_report(path: Path) -> list[tuple[str, Options]]:
    """The twins of a saved report that did not come out aligned, with the options they were checked with.

    Raises:
        AlignmentError: no such file, no report, or nothing in it to explain.
    """
    try:
        twins = orjson.loads(path.read_bytes())["twins"]
        asked = [(entry["options"], entry["seed"]) for entry in twins if entry["verdict"] != "aligned"]
        found = [
            (
                str(given["twin"]),
                Options(**{key: _as_given(value) for key, value in given.items() if key != "twin"}, seed=seed),
            )
            for given, seed in asked
        ]
    except OSError as error:
        raise AlignmentError(f"{path}: can't read the report: {error.strerror}") from error
    except (orjson.JSONDecodeError, LookupError, TypeError) as error:
        raise AlignmentError(f"{path} is no report of `align check --json`: {error}") from error
    if not found:
        raise AlignmentError(f"{path}: every twin in this report is aligned: there is nothing to explain")
    return found


def _as_given(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
