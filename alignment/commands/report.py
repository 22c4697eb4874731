"""`align report`: draw a saved report again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alignment.commands._gate import open_gate
from alignment.commands._options import finish, html_option, output_options, refuse_unwritable
from alignment.views.json import read_report


@click.command(
    "report", epilog="Exit status: that of the report. 0 aligned, 1 diverged, 2 could not decide or could not read it."
)
@click.argument("saved", metavar="REPORT.json", type=click.Path(path_type=Path))
@html_option
@output_options
def command(saved: Path, html_file: Path | None, verbose: bool, quiet: bool, **gated: Any) -> int:
    """Show the report that `align check`, `align explain` or `align compare` wrote with --json. No model is run.

    Charts of single tensors are in the page where the report was made with --details or --html.
    """
    refuse_unwritable(html_file, gated["junit_file"])
    gate = open_gate(**gated)
    return finish(read_report(saved), None, verbose, quiet, gate, html_file)
