"""`align baseline`: write down how precise a port is, so that `align check --baseline` notices when it gets worse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from alignment.baseline import Baseline, baseline_of
from alignment.commands import check
from alignment.commands._gate import FILE, open_gate
from alignment.commands._options import finish, refuse_unwritable

_OUTPUT = click.Option(
    ["-o", "--baseline", "baseline_file"],
    type=FILE,
    metavar="FILE",
    required=True,
    help="The file to write; other twins that it has keep their entries.",
)


def write(
    baseline_file: Path,
    json_file: Path | None,
    html_file: Path | None,
    details: bool,
    waivers_file: Path | None,
    junit_file: Path | None,
    github: bool | None,
    verbose: bool,
    quiet: bool,
    **asked: Any,
) -> int:
    """Check TWIN and write how precise every tensor is to a small file, to be reviewed and kept with the port.

    `align check --baseline FILE` is then diverged where a tensor's error is several times what it was, though it is still
    aligned. Nothing is written unless the check is aligned. What is waived has no entry.
    """
    refuse_unwritable(baseline_file, json_file, html_file, junit_file)
    gate = open_gate(waivers_file, junit_file, github)
    kept = Baseline.read(baseline_file) if baseline_file.exists() else Baseline()
    report = gate.judge(check.make_report(details=details or html_file is not None, **asked))
    if report.verdict == "aligned":
        replace(kept, twins={**kept.twins, **baseline_of(report).twins}).write(baseline_file)
        click.echo(f"written: {baseline_file}", err=True)
    else:
        click.echo(f"not written: {baseline_file}; only a port that is aligned has a baseline", err=True)
    return finish(report, json_file, verbose, quiet, replace(gate, waivers=()), html_file)


# All that a check takes, its configuration file too, so that both rest on the same; `baseline` is the file there, too.
command = click.Command(
    "baseline",
    params=[_OUTPUT if parameter.name == "baseline_file" else parameter for parameter in check.command.params],
    callback=write,
    help=write.__doc__,
    epilog="Exit status: 0 aligned and written, 1 diverged, 2 could not decide or could not run.",
)
