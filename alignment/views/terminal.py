"""The report for a person at a terminal: a line for each stage, then what matters, the root divergence first."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from alignment.report import Effect, Finding, Report, StageResult, TensorResult, Trajectory, TwinResult
from alignment.views.words import where

STYLES = {"aligned": "green", "diverged": "bold red", "inconclusive": "yellow"}
MARKS = {"aligned": "✓", "diverged": "✗", "inconclusive": "?"}

# Diverging tensors shown without --verbose: the first in order of dependency tell the most.
SHOWN = 8
# After the stage that holds the root: what diverges there may be its consequence.
FOLLOWING = 3
# Roots and source lines of one finding shown without --verbose.
SHOWN_ROOTS = 4


def print_report(report: Report, console: Console, verbose: bool = False) -> None:
    """Print the whole report. verbose: a line for every tensor, not only for those that matter."""
    for twin in report.twins:
        _print_twin(twin, console, verbose)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    console.print(f"[dim]{escape(versions)}[/]")
    for problem in report.problems:
        _print(console, 0, f"problem: {problem}", STYLES[report.verdict])
    if len(report.twins) > 1 or report.problems:
        aligned, count = sum(twin.verdict == "aligned" for twin in report.twins), len(report.problems)
        besides = f", {count} problem{'s' if count > 1 else ''} besides" if count else ""
        console.print(
            _verdict(report.verdict)
            + Text(f": {aligned} of {len(report.twins)} twin{'s' if len(report.twins) > 1 else ''} aligned{besides}")
        )


def _print_twin(twin: TwinResult, console: Console, verbose: bool) -> None:
    console.print()
    console.print(
        Text(twin.twin, "bold") + Text("  ") + _verdict(twin.verdict) + Text(f"  {twin.seconds:.1f} s", "dim")
    )
    if twin.batches:  # else nothing ran
        _print(console, 2, f"reference {twin.reference}, candidate {twin.candidate}", "dim")
        tried = f"{twin.data}; batches {', '.join(twin.batches)}; weights {', '.join(twin.weights)}; seed {twin.seed}"
        _print(console, 2, tried, "dim")
    for fault in twin.faults:
        _print(console, 2, f"planted on the candidate: {fault}", "magenta")
    for note in twin.notes:
        _print(console, 2, f"note: {note}", "dim")
    rooted = bool(twin.trajectories)  # whose figures follow: a few rows say enough
    for stage in twin.stages:
        _print_stage(stage, console, verbose, FOLLOWING if rooted else SHOWN)
        rooted = rooted or stage.verdict == "diverged"
    for trajectory in twin.trajectories:
        _print_trajectory(trajectory, console)
    for number, finding in enumerate(twin.findings, start=1):
        _print_finding(finding, number, len(twin.findings), console, verbose)
    if twin.effect is not None:
        _print_effect(twin.effect, console)


def _print_finding(finding: Finding, number: int, of: int, console: Console, verbose: bool) -> None:
    """One finding as a short list: what is seen, where it starts, who is wrong, why, how that is proved, what to do."""
    console.print()
    title = f"  finding {number} of {of}: " if of > 1 else "  finding: "
    known = finding.cause is not None
    console.print(
        Text.assemble((title, "bold"), (finding.cause or "unexplained", "bold magenta" if known else "yellow"))
    )
    roots = finding.roots if verbose else finding.roots[:SHOWN_ROOTS]
    more = f" and {len(finding.roots) - len(roots)} more" if len(finding.roots) > len(roots) else ""
    lines = [
        ("symptom", finding.symptom),
        ("root", ", ".join(roots) + more),
        ("side", f"{finding.side}: {finding.side_reason}"),
        ("cause", finding.summary),
        ("proof", finding.proof),
        *(("tried", line) for line in finding.tried),
        *(("evidence", line) for line in (finding.evidence if verbose or not known else ())),
        ("change", finding.remedy),
        *(("where", site) for site in finding.sites[: None if verbose else SHOWN_ROOTS]),
    ]
    table = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for label, line in lines:
        if line:
            table.add_row(label, Text(line))
    console.print(Padding(table, (0, 0, 0, 4), expand=False))


def _print_trajectory(trajectory: Trajectory, console: Console) -> None:
    """A training in a few lines: each step by itself, the free-running sides, and what left the envelope first."""
    console.print()
    _print(
        console,
        2,
        f"{trajectory.dtype}, {trajectory.steps} step{'s' if trajectory.steps != 1 else ''} of {trajectory.recipe}",
        "bold",
    )
    lines = [
        ("by themselves", trajectory.single),
        ("free-running", trajectory.free),
        ("left first", trajectory.first),
        ("loss", f"{_ends(trajectory.reference)} the reference, {_ends(trajectory.candidate)} the candidate"),
    ]
    table = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for label, line in lines:
        if line:
            table.add_row(label, Text(line))
    console.print(Padding(table, (0, 0, 0, 4), expand=False))


def _ends(losses: tuple[float, ...]) -> str:
    return f"{losses[0]:.6g} → {losses[-1]:.6g}" if losses else "none"


def _print_effect(effect: Effect, console: Console) -> None:
    console.print()
    console.print(Text("  effect on training", "bold"))
    table = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False)
    table.add_column("step", justify="right", no_wrap=True)
    for column in ("reference", "candidate", "difference", "rounding explains"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = zip(effect.reference, effect.candidate, effect.envelope, strict=True)
    for step, (ours, theirs, envelope) in enumerate(rows):
        table.add_row(str(step), f"{ours:.7f}", f"{theirs:.7f}", f"{theirs - ours:+.1e}", f"{envelope:.0e}")
    console.print(Padding(table, (0, 0, 0, 4), expand=False))
    _print(console, 4, effect.summary, "")


def _print(console: Console, indent: int, text: str, style: str) -> None:
    console.print(Padding(Text(text, style), (0, 0, 0, indent), expand=False))


def _print_stage(stage: StageResult, console: Console, verbose: bool, shown: int) -> None:
    waived = [tensor for tensor in stage.tensors if tensor.waived is not None]
    bad = [tensor for tensor in stage.tensors if tensor.verdict != "aligned" and tensor.waived is None]
    comparisons = sum(tensor.comparisons for tensor in stage.tensors)
    counted = f"{len(stage.tensors)} tensors, {comparisons} comparisons"
    if bad:
        counted = f"{len(bad)} of {counted}"
    if waived:
        counted = f"{counted}, {len(waived)} waived"
    line = Text.assemble(
        ("  ", ""),
        (MARKS[stage.verdict], STYLES[stage.verdict]),
        (f" step {stage.step} {stage.name:<15}", "bold"),
        _verdict(stage.verdict),
        (f"  {counted}", "dim"),
    )
    console.print(line)
    for note in stage.notes:
        _print(console, 6, note, "dim")
    if verbose:
        _print_tensors(stage.tensors, console)
    elif bad:
        bad = sorted(bad, key=lambda tensor: not tensor.root)
        _print_tensors(bad[:shown], console)
        if len(bad) > shown:
            _print(console, 6, f"… and {len(bad) - shown} more; --verbose or --json shows all", "dim")
    else:
        _print_closest(stage, console)
    for said in dict.fromkeys(tensor.waived for tensor in waived):
        names = [tensor.name for tensor in waived if tensor.waived == said]
        more = f" and {len(names) - FOLLOWING} more" if len(names) > FOLLOWING else ""
        _print(console, 6, f"waived: {', '.join(names[:FOLLOWING])}{more}: {said}", "yellow")


def _print_closest(stage: StageResult, console: Console) -> None:
    """An aligned stage in one line: how near its nearest tensor came to what is allowed."""
    measured = [tensor for tensor in stage.tensors if tensor.allowed and tensor.strain and tensor.waived is None]
    if measured:
        nearest = max(measured, key=lambda tensor: tensor.strain)
        text = f"nearest to its limit: {nearest.name} ({nearest.record}), {nearest.strain:.1%} of what is allowed"
        _print(console, 6, text, "dim")


def _print_tensors(tensors: Iterable[TensorResult], console: Console) -> None:
    table = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("tensor", overflow="fold", ratio=2)
    table.add_column("seen", justify="right", no_wrap=True)
    table.add_column("allowed", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=3)
    for tensor in tensors:
        mark = Text("ROOT", "bold white on red") if tensor.root else Text(MARKS[tensor.verdict], STYLES[tensor.verdict])
        said = tensor.reason + _where(tensor)
        if tensor.waived is not None:
            mark, said = Text("waived", "dim"), f"waived: {tensor.waived}; {said}"
        names = tensor.name
        if tensor.reference_name and tensor.candidate_name and tensor.reference_name != tensor.candidate_name:
            names = f"{tensor.reference_name} → {tensor.candidate_name}"
        shape = f" {list(tensor.shape)}" if tensor.shape else ""
        label = Text.assemble((names, ""), (f"\n{tensor.record}{shape}", "dim"))
        table.add_row(mark, label, _figure(tensor.seen), _figure(tensor.allowed), Text(said))
    console.print(Padding(table, (0, 0, 0, 4), expand=False))


def _where(tensor: TensorResult) -> str:
    """Where the worst was seen, and in how many of the comparisons."""
    return f" ({where(tensor)})" if tensor.diverging else ""


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _verdict(verdict: str) -> Text:
    return Text(verdict.upper(), STYLES[verdict])
