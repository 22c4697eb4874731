"""The report for a person at a terminal: a line for each stage, then what matters, the root divergence first."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from alignment.report import Report, StageResult, TensorResult, TwinResult

STYLES = {"aligned": "green", "diverged": "bold red", "inconclusive": "yellow"}
MARKS = {"aligned": "✓", "diverged": "✗", "inconclusive": "?"}

# Diverging tensors shown without --verbose: the first in order of dependency tell the most.
SHOWN = 8


def print_report(report: Report, console: Console, verbose: bool = False) -> None:
    """Print the whole report. verbose: a line for every tensor, not only for those that matter."""
    for twin in report.twins:
        _print_twin(twin, console, verbose)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    console.print(f"[dim]{escape(versions)}[/]")
    if len(report.twins) > 1:
        counts = [sum(twin.verdict == verdict for twin in report.twins) for verdict in STYLES]
        console.print(_verdict(report.verdict) + Text(f": {counts[0]} of {len(report.twins)} twins aligned"))


def _print_twin(twin: TwinResult, console: Console, verbose: bool) -> None:
    console.print()
    console.print(
        Text(twin.twin, "bold") + Text("  ") + _verdict(twin.verdict) + Text(f"  {twin.seconds:.1f} s", "dim")
    )
    console.print(f"  reference {escape(twin.reference)}    candidate {escape(twin.candidate)}", style="dim")
    console.print(
        f"  {escape(twin.data)}; batches {', '.join(twin.batches)}; weights {escape(', '.join(twin.weights))}; seed {twin.seed}",
        style="dim",
    )
    for fault in twin.faults:
        console.print(f"  planted on the candidate: {fault}", style="magenta")
    for note in twin.notes:
        console.print(f"  note: {escape(note)}", style="dim")
    for stage in twin.stages:
        _print_stage(stage, console, verbose)


def _print_stage(stage: StageResult, console: Console, verbose: bool) -> None:
    bad = [tensor for tensor in stage.tensors if tensor.verdict != "aligned"]
    comparisons = sum(tensor.comparisons for tensor in stage.tensors)
    counted = f"{len(stage.tensors)} tensors, {comparisons} comparisons"
    if bad:
        counted = f"{len(bad)} of {counted}"
    line = Text.assemble(
        ("  ", ""),
        (MARKS[stage.verdict], STYLES[stage.verdict]),
        (f" step {stage.step} {stage.name:<15}", "bold"),
        _verdict(stage.verdict),
        (f"  {counted}", "dim"),
    )
    console.print(line)
    if verbose or bad:
        for note in stage.notes:
            console.print(f"      {escape(note)}", style="dim")
    if verbose:
        _print_tensors(stage.tensors, console)
    elif bad:
        _print_tensors(bad[:SHOWN], console)
        if len(bad) > SHOWN:
            console.print(f"      … and {len(bad) - SHOWN} more; --verbose or --json shows all", style="dim")
    else:
        _print_closest(stage, console)


def _print_closest(stage: StageResult, console: Console) -> None:
    """An aligned stage in one line: how near its nearest tensor came to what is allowed."""
    measured = [tensor for tensor in stage.tensors if tensor.allowed and tensor.strain]
    if measured:
        nearest = max(measured, key=lambda tensor: tensor.strain)
        console.print(
            f"      nearest to its limit: {escape(nearest.name)} ({nearest.record}), {nearest.strain:.1%} of what is allowed",
            style="dim",
        )


def _print_tensors(tensors: Iterable[TensorResult], console: Console) -> None:
    table = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False, expand=False)
    table.add_column("", no_wrap=True)
    table.add_column("tensor", overflow="fold", min_width=24)
    table.add_column("seen", justify="right", no_wrap=True)
    table.add_column("allowed", justify="right", no_wrap=True)
    table.add_column("rel. L2", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=1)
    for tensor in tensors:
        mark = Text("ROOT", "bold white on red") if tensor.root else Text(MARKS[tensor.verdict], STYLES[tensor.verdict])
        names = tensor.name
        if tensor.reference_name and tensor.candidate_name and tensor.reference_name != tensor.candidate_name:
            names = f"{tensor.reference_name} → {tensor.candidate_name}"
        shape = "" if not tensor.shape else f" {list(tensor.shape)}"
        where = f" ({tensor.weights}, {tensor.batch})" if tensor.batch and tensor.verdict != "aligned" else ""
        label = Text.assemble((names, ""), (f"\n{tensor.record}{shape}", "dim"))
        table.add_row(
            mark,
            label,
            _figure(tensor.seen),
            _figure(tensor.allowed),
            _figure(tensor.rel_l2),
            Text(tensor.reason + where),
        )
    console.print(_indented(table))


def _indented(table: Table) -> Table:
    grid = Table.grid(padding=(0, 0, 0, 4))
    grid.add_row("", table)
    return grid


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _verdict(verdict: str) -> Text:
    return Text(verdict.upper(), STYLES[verdict])
