"""`align map`: write down how a candidate's parts correspond to the reference's, to be edited."""

from __future__ import annotations

from pathlib import Path

import click

from alignment.capture import trees_beside
from alignment.commands._options import refuse_unwritable
from alignment.errors import AlignmentError
from alignment.mapping import ModelMapping
from alignment.proposal import propose
from alignment.twins import get_twin, parse_settings
from alignment.views.progress import progress
from checkpoints import write_aside


@click.command(
    "map",
    short_help="Write a mapping file where names differ, to edit.",
    epilog="Exit status: 0 everything has one counterpart, 2 something is left open, or could not run.",
)
@click.argument("twin")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The mapping file to write (.toml).",
)
@click.option(
    "--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A size or other setting of both sides."
)
@click.option(
    "--from",
    "source",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="REFERENCE.safetensors",
    help="The reference's capture, where the reference's framework need not be installed; it tells the settings, too.",
)
@click.option("--mapping", "known", metavar="FILE", help="A mapping that says some of it already.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def command(
    twin: str, output: Path, assignments: tuple[str, ...], source: Path | None, known: str | None, force: bool
) -> int:
    """Match the modules and tensors of TWIN's two sides and write all that was found to a mapping file, to edit.

    How each was found (by name, order or shape) stands beside it; what is ambiguous stands there with its choices, to be
    uncommented. Use the file with `align check TWIN --mapping FILE`.
    """
    if output.suffix != ".toml":
        raise AlignmentError(f"{output}: the mapping is written with comments, as .toml")
    refuse_unwritable(output)
    if output.exists() and not force:
        raise AlignmentError(f"{output}: exists; choose another name, or overwrite it with --force")
    with progress("matching"):
        chosen = get_twin(twin)
        mapping = None if known is None else ModelMapping.read(known)
        if source is not None and assignments:
            raise AlignmentError("--set is taken from the reference's capture: leave it out with --from")
        trees = None if source is None else trees_beside(source, chosen)
        proposal = propose(chosen, parse_settings(chosen, assignments), mapping, twin, trees)
    with write_aside(output) as file:
        file.write(proposal.text.encode())
    left = [
        f"{count} {what}"
        for count, what in ((proposal.ambiguous, "ambiguous"), (proposal.unmatched, "without a counterpart"))
        if count
    ]
    click.echo(f"{output}: {proposal.summary}" + (f"; {', '.join(left)}: edit the file" if left else ""))
    return 2 if left else 0
