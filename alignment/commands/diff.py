"""`align diff`: two checkpoints, tensor by tensor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console

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
@click.option(
    "--mapping", "mapping_file", metavar="FILE", help="How the twin's sides correspond where names differ, with --twin."
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
    mapping_file: str | None,
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
    if layout_file and (twin_name or assignments or mapping_file):
        raise click.UsageError("--layout already says what --twin, --set and --mapping could.")
    for option, given in (("--set", assignments), ("--mapping", mapping_file)):
        if given and twin_name is None:
            raise click.UsageError(f"{option} goes with --twin.")
    if json_file is not None:
        refuse_unwritable(json_file)
    with progress("comparing") as say:
        layout: Layout | None = None
        if layout_file is not None:
            layout = Layout.load(layout_file)
        elif twin_name is not None:
            say("building the models of the twin")
            layout = twin_layout(twin_name, assignments, mapping_file, reference, candidate, entry)
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
    shown = [tensor for tensor in diff.tensors if verbose or tensor.verdict != "equal"]
    shown.sort(key=lambda tensor: tensor.verdict != "diverged")
    for tensor in shown if verbose else shown[:SHOWN]:
        console.out("\n".join(_lines(tensor)))
    if not verbose and len(shown) > SHOWN:
        console.out(f"… and {len(shown) - SHOWN} more: --verbose shows them, --json FILE writes them")
    counts = {verdict: sum(tensor.verdict == verdict for tensor in diff.tensors) for verdict in STATUS}
    asked = diff.atol is not None or diff.rtol is not None
    parts = [f"{len(diff.tensors)} tensors", f"{counts['equal']} with equal bits"]
    parts += [f"{counts['within']} within the tolerance"] * (counts["within"] > 0)
    parts += [f"{counts['diverged']} diverged"] * (counts["diverged"] > 0)
    tolerance = f" (atol {diff.atol or 0:g}, rtol {diff.rtol or 0:g})" if asked else ""
    words = {"equal": "equal bits", "within": "within the tolerance", "diverged": "diverged"}
    console.print(f"[bold]{words[diff.verdict]}[/]: {', '.join(parts)}{tolerance}")
    for line in diff.left_out:
        console.out(f"  {printable(line)}")


def _lines(tensor: TensorDiff) -> list[str]:
    """One tensor: a line that names it, then what was found. Names come out of files, so they are made harmless."""
    name = printable(tensor.label)
    if tensor.name and tensor.candidate_name and tensor.name != tensor.candidate_name:
        name = printable(f"{tensor.name} → {tensor.candidate_name}")
    shape = tensor.shape if tensor.shape is not None else tensor.candidate_shape
    dtypes = " / ".join(dict.fromkeys(dtype for dtype in (tensor.dtype, tensor.candidate_dtype) if dtype))
    details = [tensor.problem] if tensor.problem else []
    if tensor.statistics is not None:
        details += _figures(tensor.statistics)
    return [f"{tensor.verdict:<9} {name}  {list(shape or ())} {dtypes}", *(f"{'':9} {detail}" for detail in details)]


def _figures(found: Statistics) -> list[str]:
    if found.worst is None:
        return [] if found.equal_bits else ["equal values; signs of zero, bits of NaN, or the dtypes differ"]
    figures = f"max |Δ| {found.max_abs:.3g}, rms {found.rms:.3g}, relative L2 {found.relative_l2:.3g}"
    lines = [f"{found.differing:,} of {found.elements:,} differ; {figures}"]
    if found.one_not_finite:
        lines.append(f"{found.one_not_finite:,} NaN or infinite on one side alone")
    what = "first such" if found.one_not_finite else "largest"
    lines.append(f"{what} at {list(found.worst)}: {found.worst_reference:.9g} / {found.worst_candidate:.9g}")
    if found.ulps is not None:
        lines.append(f"ULP 50/90/99 %, max: {found.ulps.p50} / {found.ulps.p90} / {found.ulps.p99}, {found.ulps.max}")
    return lines
