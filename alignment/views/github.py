"""The report on GitHub: annotations at the candidate's lines of source, and a summary of the step.

Workflow commands and their escapes: https://docs.github.com/actions/reference/workflow-commands-for-github-actions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from alignment.errors import AlignmentError
from alignment.report import Report, TensorResult, TwinResult
from alignment.views.words import figures, less_precise, named, telling, unmet, where

# GitHub shows this many errors of a step.
MOST_ANNOTATIONS = 10
# Rows of a table in the summary; a step may write 1 MiB.
MOST_ROWS = 50
# How messages name a line: ours, and a traceback's.
_SITE = re.compile(r'\bat (\S+\.py):(\d+)|File "([^"\n]+\.py)", line (\d+)')
MARKS = {"aligned": "✅", "diverged": "❌", "inconclusive": "⚠️"}


def on_github() -> bool:
    """Is this a step of a GitHub workflow?"""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def without_github() -> dict[str, str]:
    """The environment of a process whose report this one draws."""
    return {name: value for name, value in os.environ.items() if name != "GITHUB_ACTIONS"}


def tell_github(report: Report) -> None:
    """Print the annotations, and append the summary to the file that GitHub names, if it does."""
    for line in notices(report):
        print(line, flush=True)
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if file:
        try:
            with Path(file).open("a", encoding="utf-8") as summary_file:
                summary_file.write(summary(report))
        except OSError as failure:
            raise AlignmentError(
                f"{file}: can't write the summary there, where GITHUB_STEP_SUMMARY says: {failure.strerror}"
            ) from failure


def notices(report: Report) -> Iterable[str]:
    """An ``::error`` for each tensor whose divergence starts by itself, at its line of source where that is known."""
    lines = [error(problem, title="alignment") for problem in report.problems]
    for twin in report.twins:
        found = telling(twin)
        lines += [_annotation(twin, tensor) for tensor in found]
        if twin.verdict != "aligned" and not found:
            said = " ".join(twin.notes) or "nothing was compared"
            lines.append(error(said, title=f"{twin.twin}: {twin.verdict}"))
    more = len(lines) - MOST_ANNOTATIONS
    if more > 0:
        lines = [*lines[: MOST_ANNOTATIONS - 1], error(f"and {more + 1} more: see the summary", title="alignment")]
    return lines


def error(message: str, title: str, site: str | None = None) -> str:
    """One annotation. site: ``"file:line"``, else the first that the message names; none is shown outside the repository."""
    sites = [site] if site else [f"{found[1] or found[3]}:{found[2] or found[4]}" for found in _SITE.finditer(message)]
    place = next((place for place in map(_in_repository, sites) if place), {})
    properties = ",".join(f"{name}={_property(value)}" for name, value in {**place, "title": title}.items())
    return f"::error {properties}::{_data(message)}"


def summary(report: Report) -> str:
    """The report as Markdown."""
    lines = [f"## {MARKS[report.verdict]} alignment: {report.verdict}"]
    lines += ["", *(f"- ⚠️ {_text(problem)}" for problem in report.problems)] if report.problems else []
    for twin in report.twins:
        lines += [
            "",
            f"### {MARKS[twin.verdict]} {_text(twin.twin)}: {twin.verdict}",
            "",
            *_rests_on(twin),
            *_stages(twin),
        ]
        found = unmet(twin)
        lines += _table("what keeps it from being aligned", found, "why", lambda tensor: tensor.reason)
        waived = [tensor for stage in twin.stages for tensor in stage.tensors if tensor.waived is not None]
        lines += _table("waived", waived, "waiver", lambda tensor: tensor.waived or "")
        lines += ["", *(f"- {_text(note)}" for note in twin.notes)] if twin.notes else []
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return "\n".join([*lines, "", _text(versions), ""])


def _rests_on(twin: TwinResult) -> Iterable[str]:
    if twin.batches:  # else nothing ran
        yield _text(f"reference {twin.reference}, candidate {twin.candidate}")
        tried = f"{twin.data}; batches {', '.join(twin.batches)}; weights {', '.join(twin.weights)}; seed {twin.seed}"
        yield from (_text(tried), *(f"**planted on the candidate: {_text(fault)}**" for fault in twin.faults), "")


def _stages(twin: TwinResult) -> Iterable[str]:
    yield "| step | verdict | tensors | comparisons |"
    yield "|---|---|---:|---:|"
    for stage in twin.stages:
        comparisons = sum(tensor.comparisons for tensor in stage.tensors)
        verdict = f"{MARKS[stage.verdict]} {stage.verdict}"
        yield f"| {stage.step} {stage.name} | {verdict} | {len(stage.tensors)} | {comparisons} |"


def _table(title: str, tensors: list[TensorResult], column: str, say: Callable[[TensorResult], str]) -> Iterable[str]:
    if not tensors:
        return
    yield from ("", f"**{title}**", "", f"| | tensor | figures | {column} | source |", "|---|---|---|---|---|")
    for tensor in tensors[:MOST_ROWS]:
        mark = "root" if tensor.root else tensor.verdict
        cells = (named(tensor), "; ".join(part for part in (figures(tensor), where(tensor)) if part), say(tensor))
        yield f"| {mark} | {' | '.join(map(_text, cells))} | {_text(tensor.site or '')} |"
    if len(tensors) > MOST_ROWS:
        yield f"| | and {len(tensors) - MOST_ROWS} more | | | |"


def _annotation(twin: TwinResult, tensor: TensorResult) -> str:
    worse = sum(map(less_precise, unmet(twin))) if less_precise(tensor) else 0
    first = f"the first of {worse} tensors that became less precise" if worse > 1 else ""
    text = "; ".join(part for part in (tensor.reason, figures(tensor), where(tensor), first) if part)
    return error(text, title=f"{twin.twin}: {named(tensor)} {tensor.verdict}", site=tensor.site)


def _in_repository(site: str) -> dict[str, str]:
    file, _, line = site.rpartition(":")
    root = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    try:
        return {"file": str(Path(file).resolve().relative_to(root)), "line": line}
    except ValueError:
        return {}


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _text(text: str) -> str:
    """Plain text in a cell of a table: nothing in a tensor's name or a reason is markup."""
    text = re.sub(r"[\\`*_{}\[\]<>#|~!&]", lambda found: f"&#{ord(found[0])};", text)
    return " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
