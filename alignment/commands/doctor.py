"""`align doctor`: what here would make a check fail, slow, or say less than it seems to."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from alignment.commands._gate import FILE
from alignment.commands._options import refuse_unwritable
from alignment.conditions import Condition
from alignment.doctor import ORDER, examine, to_json, worst
from alignment.frameworks import FRAMEWORKS
from alignment.views.progress import progress
from checkpoints import write_aside

STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


@click.command("doctor", epilog="Exit status: 0 checks can run, 1 an error keeps them from it, 2 could not find out.")
@click.argument("frameworks", nargs=-1, type=click.Choice(list(FRAMEWORKS)), metavar="[torch|paddle]...")
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write every condition as JSON.")
@click.option("--quiet", is_flag=True, help="Print nothing; the exit status tells.")
def command(frameworks: tuple[str, ...], json_file: Path | None, quiet: bool) -> int:
    """Say what of this machine, the frameworks and their settings bears on a check, and what to do about it.

    Named frameworks are looked at alone: where one side is captured, the other need not be installed.
    """
    refuse_unwritable(json_file)
    with progress("examining"):
        found = examine(frameworks or tuple(FRAMEWORKS))
    if json_file is not None:
        with write_aside(json_file) as file:
            file.write(to_json(found))
    if not quiet:
        _print(found, Console(highlight=False))
    return int(worst(found) == "error")


def _print(found: tuple[Condition, ...], console: Console) -> None:
    """Facts by subject, then what to do, the worst first."""
    for subject in dict.fromkeys(one.subject for one in found):
        console.print(Text(subject, "bold"))
        table = _table()
        for one in found:
            if one.subject == subject:
                table.add_row(one.name, Text(one.value, "" if one.severity == "ok" else STYLES[one.severity]))
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
    for one in sorted(found, key=lambda one: -ORDER.index(one.severity)):
        if one.severity != "ok":
            console.print()
            title = Text(f"{one.severity}: ", STYLES[one.severity])
            console.print(title + Text(f"{one.subject}: {one.name}: {one.value}", "bold"))
            table = _table()
            table.add_row("why", one.why)
            table.add_row("do", one.remedy)
            console.print(Padding(table, (0, 0, 0, 2), expand=False))
    counts = ((sum(one.severity == kind for one in found), kind) for kind in reversed(ORDER[1:]))
    said = [f"{count} {kind}{'s' if count > 1 else ''}" for count, kind in counts if count]
    console.print()
    console.print(", ".join(said) or "nothing to say")


def _table() -> Table:
    table = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    return table
