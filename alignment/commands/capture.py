"""`align capture`: run one side of a twin, where the other's framework need not be installed, and write what it did."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from alignment.capture import Captured, Keep, capture_candidate, capture_reference, twin_of_capture
from alignment.capture_file import Level, read_capture
from alignment.commands._options import make_options, shared_options
from alignment.errors import AlignmentError
from alignment.frameworks import FRAMEWORKS, reserve_threads
from alignment.twins import DEFAULT_TWIN, Twin, get_twin
from alignment.views.progress import progress

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# What a candidate's capture takes from the reference's.
FROM_REFERENCE = (
    *("assignments", "data", "weights", "seed", "batch_size", "length", "level", "only", "train_steps"),
    *("strict", "initializers"),
)


class Size(click.ParamType):
    """A number of bytes: 300000, 200MB, 1.5GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([a-zA-Z]*)\s*", str(value))
        if match is None or match[2].upper() not in UNITS:
            self.fail(f"{value!r} is no size; write 200MB, 1.5GiB or a number of bytes", param, ctx)
        return int(float(match[1]) * UNITS[match[2].upper()])


@click.command("capture", epilog="Exit status: 0 written, 2 could not run.")
@click.argument("twin", required=False, metavar="[TWIN]")
@click.option(
    "--side",
    required=True,
    metavar="reference|candidate|" + "|".join(FRAMEWORKS),
    help="Which side to run: by its part, or by its framework where the two sides have different ones.",
)
@click.option(
    "-o",
    "--out",
    "out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.safetensors",
    help="The file to write.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="REFERENCE.safetensors",
    help="The reference's capture; a candidate gets weights, batches, settings and seeds from it.",
)
@click.option(
    "--level",
    type=click.Choice(get_args(Level)),
    default="all",
    show_default=True,
    help="Keep everything; the outputs of the model's own children, logits, loss and gradients; or figures of every tensor.",
)
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Keep records whose name matches, as in a shell. May be repeated."
)
@click.option(
    "--budget", type=Size(), metavar="SIZE", help="The most the file may have: 200MB, 1.5GiB. The rest is left out."
)
@click.option(
    "--train-steps", type=click.IntRange(0, 10_000), default=0, show_default=True, help="Steps of Adam to record, too."
)
@click.option(
    "--initializers",
    is_flag=True,
    help="Keep what the side's own initialiser gives under several seeds, to compare it, too.",
)
@shared_options
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    twin: str | None,
    side: str,
    out: Path,
    source: Path | None,
    level: Level,
    only: tuple[str, ...],
    budget: int | None,
    train_steps: int,
    initializers: bool,
    json_file: Path | None,
    quiet: bool,
    **given: Any,
) -> int:
    """Run one side of TWIN and write what it did, to be compared with the other's by `align compare`.

    Only that side's framework is needed. The reference is captured first; the candidate with --from and the reference's file, on
    any machine. TWIN is a built-in name, or package.module:attribute; with --from it may be left out.
    """
    if json_file is not None:
        raise AlignmentError("--json goes with `align compare`: a capture has no report")
    if source is None:
        chosen = twin or DEFAULT_TWIN
        if _part(side, get_twin(chosen)) == "candidate":
            raise AlignmentError(
                "a candidate is captured from the reference's capture, which holds the weights and batches it is to be given: "
                "name that with --from REFERENCE.safetensors"
            )
        written = _reference(chosen, out, Keep(level, only, budget), train_steps, initializers, given)
    else:
        written = _candidate(twin, side, source, out, budget, given)
    if not quiet:
        click.echo(written.describe())
        for note in written.notes:
            click.echo(f"note: {note}")
    return 0


def _reference(
    twin: str, out: Path, keep: Keep, train_steps: int, initializers: bool, given: dict[str, Any]
) -> Captured:
    if given["mapping"] is not None:
        raise AlignmentError("--mapping goes with the candidate's capture, or with `align compare`: leave it out here")
    reserve_threads(given["threads"])
    options = make_options(get_twin(twin), **given)
    with progress("preparing") as show:
        show(f"{twin}: preparing")
        show_ = partial(show, twin)
        return capture_reference(twin, out, options, keep, train_steps, show_, initializers=initializers)


def _candidate(
    twin: str | None, side: str, source: Path, out: Path, budget: int | None, given: dict[str, Any]
) -> Captured:
    context = click.get_current_context()
    for parameter in context.command.params:
        typed = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if parameter.name in FROM_REFERENCE and typed:
            raise AlignmentError(f"{parameter.opts[0]} is taken from the reference's capture: leave it out with --from")
    chosen = twin_of_capture(read_capture(source), twin, source)
    name = twin or chosen.name
    if _part(side, chosen) == "reference":
        raise AlignmentError("--from goes with the candidate: the reference is captured without it")
    reserve_threads(given["threads"])
    with progress("preparing") as show:
        show(f"{name}: preparing")
        return capture_candidate(
            source,
            out,
            twin,
            given["faults"],
            threads=given["threads"],
            budget=budget,
            progress=partial(show, name),
            mapping=given["mapping"],
        )


def _part(side: str, chosen: Twin) -> str:
    """``"reference"`` or ``"candidate"``, of a side named by its part or its framework."""
    if side in ("reference", "candidate"):
        return side
    parts = {"reference": chosen.reference.framework, "candidate": chosen.candidate.framework}
    named = [part for part, framework in parts.items() if framework == side]
    if len(named) != 1:
        both = ", ".join(f"{part} {framework}" for part, framework in parts.items())
        raise AlignmentError(
            f"--side {side} does not tell which side of {chosen.name} is meant ({both}): name reference or candidate"
        )
    return named[0]
