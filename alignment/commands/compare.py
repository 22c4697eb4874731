"""`align compare`: judge what two sides did apart, with neither framework."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from alignment.apart import compare_captures
from alignment.capture_file import SUFFIX
from alignment.commands._gate import baseline_option, open_gate
from alignment.commands._options import (
    finish,
    json_option,
    output_options,
    refuse_unwritable,
    step_option,
    view_options,
)
from alignment.errors import AlignmentError
from alignment.foreign import compare_dumps
from alignment.views.progress import progress


@click.command("compare", epilog="Exit status: 0 aligned, 1 diverged, 2 could not decide or could not run.")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@step_option
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Of dumps in float32 alone: a difference up to this share of the tensor's largest element counts as none.",
)
@click.option(
    "--mapping",
    metavar="FILE",
    help="Of captures: what is compared and how strictly, in place of what the candidate was captured with.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Of captures: call a batch norm's running variance diverged, too, where the frameworks define it differently.",
)
@json_option
@view_options
@baseline_option
@output_options
def command(
    reference: Path,
    candidate: Path,
    steps: tuple[int, ...],
    tolerance: float | None,
    mapping: str | None,
    strict: bool,
    json_file: Path | None,
    html_file: Path | None,
    details: bool,
    verbose: bool,
    quiet: bool,
    **gated: Any,
) -> int:
    """Compare what two sides did, the reference's first; no framework is needed.

    Two captures of `align capture` (.safetensors) give the report of `align check`. Two .npy files of the reprod_log package, or
    two dump folders of PaDiff, hold float32 alone: they can show that the two differ, and, given a --tolerance, that they do not.
    """
    refuse_unwritable(json_file, html_file, gated["junit_file"])
    gate = open_gate(**gated)
    details = details or html_file is not None
    captures = [path.suffix == SUFFIX for path in (reference, candidate)]
    if all(captures):
        if tolerance is not None:
            raise AlignmentError(
                "--tolerance goes with dumps in float32 alone: captures say themselves how much is rounding"
            )
        with progress("comparing") as show:
            report = compare_captures(
                reference,
                candidate,
                sorted(set(steps)) or (1, 2, 3, 4, 5),
                partial(show, "comparing"),
                mapping=mapping,
                strict=strict,
                details=details,
            )
    elif any(captures):
        odd = candidate if captures[0] else reference
        raise AlignmentError(f"{odd}: a capture is compared with a capture ({SUFFIX} files)")
    else:
        for name in (name for name, said in (("step", steps), ("mapping", mapping), ("strict", strict)) if said):
            raise AlignmentError(f"--{name} goes with captures: a dump has the tensors it has")
        report = compare_dumps(reference, candidate, tolerance, details)
    return finish(report, json_file, verbose, quiet, gate, html_file)
