"""One tensor, and a whole report, in plain text: what messages of other programs are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alignment.report import Report, TensorResult, TwinResult

# Tensors of a message: the first in order of dependency tell the most.
SHOWN = 5


def named(tensor: TensorResult) -> str:
    """``"gradient encoder.fc.bias"``; with the candidate's name where that is another."""
    other = tensor.candidate_name if tensor.reference_name and tensor.candidate_name != tensor.reference_name else None
    return f"{tensor.record} {tensor.name}" + (f" → {other}" if other else "")


def figures(tensor: TensorResult) -> str:
    """``"seen 4.7e-04, allowed 1.2e-12, worst at [2, 5]"``, as far as they were measured."""
    parts = [
        None if tensor.seen is None else f"seen {tensor.seen:.2g}",
        None if tensor.allowed is None else f"allowed {tensor.allowed:.2g}",
        None if tensor.worst_index is None else f"worst at {list(tensor.worst_index)}",
    ]
    return ", ".join(part for part in parts if part)


def where(tensor: TensorResult) -> str:
    """``"init weights, batch longest; diverges in 4 of 16"``: where the worst was seen, and how often."""
    if not tensor.diverging:
        return ""
    count = f"; diverges in {len(tensor.diverging)} of {tensor.comparisons}" if tensor.comparisons > 1 else ""
    return f"{tensor.weights} weights, batch {tensor.batch}{count}"


def described(tensor: TensorResult) -> str:
    """Everything about one tensor, a line for each thing."""
    shape = f" {list(tensor.shape)}" if tensor.shape else ""
    lines = [named(tensor) + shape, figures(tensor), tensor.reason, where(tensor), tensor.site and f"at {tensor.site}"]
    return "\n".join(line for line in lines if line)


def unmet(twin: TwinResult) -> list[TensorResult]:
    """What keeps a twin from being aligned, roots first, then in order of dependency."""
    found = [t for stage in twin.stages for t in stage.tensors if t.verdict != "aligned" and t.waived is None]
    return sorted(found, key=lambda tensor: (not tensor.root, tensor.verdict != "diverged"))


def telling(twin: TwinResult) -> list[TensorResult]:
    """Of these, what does not merely depend on others: all of them, where nothing is known to start by itself.

    Of what became less precise the first, which nothing before it explains.
    """
    found = unmet(twin)
    worse = next((t for t in found if less_precise(t)), None)
    return [t for t in found if t.root or t.verdict == "inconclusive" or t is worse] or found


def less_precise(tensor: TensorResult) -> bool:
    """Aligned by itself, and less precise than its baseline says?"""
    return tensor.verdict == "diverged" and tensor.decided_by == "baseline"


def message(report: Report) -> str:
    """What to tell of a report that is not aligned: the roots first, with figures and lines of source."""
    return "\n".join(line for twin in report.twins if twin.verdict != "aligned" for line in _twin(twin)) + "".join(
        f"\n{problem}" for problem in report.problems
    )


def _why_more(twin: TwinResult, shown: Sequence[TensorResult]) -> str:
    """What is known of the rest: what follows from a root, what became less precise with it."""
    worse = sum(less_precise(tensor) for tensor in unmet(twin)) - sum(map(less_precise, shown))
    if worse:
        return f", of which {worse} became less precise, too"
    return ", which depend on the roots" if any(tensor.root for tensor in shown) else ""


def _twin(twin: TwinResult) -> Iterable[str]:
    yield f"{twin.twin}: {twin.verdict}"
    shown, total = telling(twin)[:SHOWN], len(unmet(twin))
    for tensor in shown:
        first, *rest = described(tensor).splitlines()
        yield f"  {'root' if tensor.root else tensor.verdict}: {first}"
        yield from (f"    {line}" for line in rest)
    if total > len(shown):
        yield f"  and {total - len(shown)} more" + _why_more(twin, shown)
    yield "  " + ", ".join(f"step {stage.step} {stage.name} {stage.verdict}" for stage in twin.stages)
    if twin.batches:
        yield f"  seed {twin.seed}; weights {', '.join(twin.weights)}; batches {', '.join(twin.batches)}"
    yield from (f"  note: {note}" for note in twin.notes)
