"""Options of the commands that a CI runs: what a report must pass besides its own verdict, and who else reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from alignment.baseline import Baseline, apply_baseline
from alignment.report import Report
from alignment.views.github import on_github, tell_github
from alignment.views.junit import to_junit
from alignment.waivers import Waiver, apply_waivers, read_waivers
from checkpoints import write_aside

Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(dir_okay=False, path_type=Path)

_GATE = (
    click.option(
        "--waivers",
        "waivers_file",
        type=FILE,
        metavar="FILE",
        help="Divergences that are known and count for nothing until their day: a TOML file of [[waiver]].",
    ),
    click.option("--junit", "junit_file", type=FILE, metavar="FILE", help="Write the report as JUnit XML."),
    click.option(
        "--github/--no-github",
        default=None,
        help="Annotate the source and write a summary, as GitHub's workflows read it  [default: in one of them]",
    ),
)

baseline_option = click.option(
    "--baseline",
    "baseline_file",
    type=FILE,
    metavar="FILE",
    help="Call diverged, too, what became less precise than `align baseline` wrote to this file.",
)


def gate_options(command: Command) -> Command:
    """Waivers, and the views for machines."""
    for option in reversed(_GATE):
        command = option(command)
    return command


@dataclass(frozen=True)
class Gate:
    """What a report must pass besides its own verdict, and where machines read it."""

    waivers: tuple[Waiver, ...] = ()
    baseline: Baseline | None = None
    junit: Path | None = None
    github: bool = False

    def judge(self, report: Report) -> Report:
        """The report as the baseline and the waivers see it; a loss of precision may be waived, too."""
        if self.baseline is not None:
            report = apply_baseline(report, self.baseline)
        return apply_waivers(report, self.waivers)

    def tell(self, report: Report) -> None:
        """Write the views that were asked for."""
        if self.junit is not None:
            with write_aside(self.junit) as file:
                file.write(to_junit(report))
        if self.github:
            tell_github(report)


def open_gate(
    waivers_file: Path | None, junit_file: Path | None, github: bool | None, baseline_file: Path | None = None
) -> Gate:
    """The gate that the options describe; files that can't be read are told before the work.

    Raises:
        AlignmentError: one of the files is missing or damaged.
    """
    return Gate(
        () if waivers_file is None else read_waivers(waivers_file),
        None if baseline_file is None else Baseline.read(baseline_file),
        junit_file,
        on_github() if github is None else github,
    )
