"""`align diff`: two checkpoints, tensor by tensor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignment.checkpoint_diff import CheckpointDiff, TensorDiff, compare_checkpoints
from alignment.commands._options import refuse_unwritable
from alignment.commands.convert import twin_layout
from alignment.statistics import Statistics
from alignment.views.progress import progress
from checkpoints import Layout, write_aside
from checkpoints.errors import printable

SCHEMA = "alignment.diff/1"
STATUS = {"equal": 0, "within": 0, "diverged": 1}
SHOWN = 20


@click.command("diff", short_help="Compare two checkpoint files tensor by tensor.")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--layout", "layout_file", type=click.Path(path_type=Path), help="How the candidate stores each tensor.")
@click.option("--twin", "twin_name", metavar="NAME", help="Take the layout from the two live models of this twin.")
@click.option(
    "--set", "assignments", metavar="NAME=VALUE", multiple=True, help="A setting of the twin that no file can tell."
)
@click.option("--atol", type=click.FloatRange(0), help="Within: |candidate - reference| <= atol + rtol * |reference|.")
@click.option("--rtol", type=click.FloatRange(0), help="See --atol; without either only equal bits will do.")
@click.option("--ulps", is_flag=True, help="Also the distance in units in the last place, where bits differ.")
@click.option("--bfloat16", is_flag=True, help="Sixteen-bit tensors that a format can't name are bfloat16.")
@click.option("--entry", metavar="KEY", help="The state dict to take where REFERENCE nests several.")
@click.option("--candidate-entry", metavar="KEY", help="The same for CANDIDATE.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads  [default: all cores]")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it all as JSON."
)
@click.option("--verbose", "-v", is_flag=True, help=f"Every tensor, not only the first {SHOWN} that differ.")
def command(
    reference: Path,
    candidate: Path,
    layout_file: Path | None,
    twin_name: str | None,
    assignments: tuple[str, ...],
    atol: float | None,
    rtol: float | None,
    ulps: bool,
    bfloat16: bool,
    entry: str | None,
    candidate_entry: str | None,
    threads: int | None,
    json_file: Path | None,
    verbose: bool,
) -> int:
    """Compare the checkpoints REFERENCE and CANDIDATE, of one framework or of two.

    With neither --layout nor --twin, both store every tensor under the same name in the same way. Exit status: 0 where all
    bits are equal or all is within the tolerance, 1 where anything differs or is missing, 2 where it could not be decided.
    """
    if layout_file and (twin_name or assignments):
        raise click.UsageError("--layout already says what --twin and --set could.")
    if assignments and twin_name is None:
        raise click.UsageError("--set goes with --twin.")
    if json_file is not None:
        refuse_unwritable(json_file)
    with progress("comparing") as say:
        layout: Layout | None = None
        if layout_file is not None:
            layout = Layout.load(layout_file)
        elif twin_name is not None:
            say("building the models of the twin")
            layout = twin_layout(twin_name, assignments, reference, candidate, entry)
        found = compare_checkpoints(
            reference,
            candidate,
            layout,
            atol=atol,
            rtol=rtol,
            ulps=ulps,
            bfloat16=bfloat16,
            entry=entry,
            candidate_entry=candidate_entry,
            threads=threads,
            progress=say,
        )
    if json_file is not None:
        with write_aside(json_file) as file:
            file.write(orjson.dumps(as_json(found), option=orjson.OPT_INDENT_2) + b"\n")
    _show(Console(highlight=False), found, verbose)
    return STATUS[found.verdict]


def as_json(diff: CheckpointDiff) -> dict[str, Any]:
    """The whole result; infinite figures, which JSON can't say, are the text "inf"."""
    return {"schema": SCHEMA, **_plain(asdict(diff))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, complex) or (isinstance(value, float) and not abs(value) < float("inf")):
        return str(value)
    return value


# ---- what the user sees --------------------------------------------------------------------------------------------


def _show(console: Console, diff: CheckpointDiff, verbose: bool) -> None:
    counts = {verdict: sum(tensor.verdict == verdict for tensor in diff.tensors) for verdict in STATUS}
    shown = [tensor for tensor in diff.tensors if verbose or tensor.verdict != "equal"]
    shown.sort(key=lambda tensor: tensor.verdict != "diverged")
    hidden = 0 if verbose else max(0, len(shown) - SHOWN)
    if shown:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for header in ("tensor", "shape", "dtype", "verdict", "differ", "max |Δ|", "rms", "rel. L2", "worst"):
            table.add_column(header, overflow="fold", justify="left")
        for tensor in shown[: None if verbose else SHOWN]:
            table.add_row(*_row(tensor))
        console.print(table)
    if hidden:
        console.print(f"  and {hidden} more: --verbose shows them, --json FILE writes them")
    tolerance = (
        "" if diff.atol is None and diff.rtol is None else f" (atol {diff.atol or 0:g}, rtol {diff.rtol or 0:g})"
    )
    parts = [f"{len(diff.tensors)} tensors", f"{counts['equal']} with equal bits"]
    parts += [f"{counts['within']} within the tolerance{tolerance}"] * (counts["within"] > 0)
    parts += [f"{counts['diverged']} diverged{tolerance}"] * (counts["diverged"] > 0)
    words = {"equal": "equal bits", "within": "within the tolerance", "diverged": "diverged"}
    console.print(f"[bold]{words[diff.verdict]}[/]: {', '.join(parts)}")
    for line in diff.left_out:
        console.out(f"  {line}")


def _row(tensor: TensorDiff) -> list[str]:
    names = tensor.label
    if tensor.name and tensor.candidate_name and tensor.name != tensor.candidate_name:
        names = f"{tensor.name} → {tensor.candidate_name}"
    shape = tensor.shape if tensor.shape is not None else tensor.candidate_shape
    dtypes = dict.fromkeys(dtype for dtype in (tensor.dtype, tensor.candidate_dtype) if dtype)
    row = [_escaped(names), "×".join(map(str, shape or ())) or "scalar", " / ".join(dtypes), tensor.verdict]
    if tensor.statistics is None:
        return [*row, tensor.problem or ""]
    return row + _figures(tensor.statistics)


def _figures(found: Statistics) -> list[str]:
    if found.worst is None:
        return ["0", "0", "0", "0", "" if found.equal_bits else "signs of zero, NaN bits or dtypes"]
    place = f"[{', '.join(map(str, found.worst))}]: {found.worst_reference:.6g} / {found.worst_candidate:.6g}"
    extra = f"; {found.one_not_finite} NaN or infinite on one side" if found.one_not_finite else ""
    if found.ulps is not None:
        extra += f"; ULP 50/90/99/max {found.ulps.p50}/{found.ulps.p90}/{found.ulps.p99}/{found.ulps.max}"
    figures = (found.max_abs, found.rms, found.relative_l2)
    return [f"{found.differing:,}", *(f"{figure:.3g}" for figure in figures), _escaped(place + extra)]


def _escaped(text: str) -> str:
    """Names come out of files: nothing in them is markup, or speaks to the terminal."""
    return escape(printable(text))
