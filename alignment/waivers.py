"""Waivers: divergences that are known, with a reason, somebody who owns each, and a day on which it is over.

A waiver is an entry of a TOML file:

    [[waiver]]
    twin = "speech-*"                # a glob; all where left out, as for stage and record
    stage = "backward"
    record = "gradient"
    name = "encoder.*.bias"
    reason = "the kernel sums rows one after another: issue 123"
    owner = "asr team"
    expires = 2027-03-31             # the last day on which it holds

What it waives stays in the report with its verdict, and counts for nothing. It is no way to forget: a waiver that is over,
and one that nothing needs any more, keep the report from being aligned.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from alignment.errors import AlignmentError
from alignment.experiment import PRECISIONS
from alignment.report import NOTHING, Report, StageResult, TensorResult, TwinResult
from alignment.stages import STAGES
from checkpoints.tables import read_toml

# Rows of what could not run: a stage, or its further run in another dtype.
UNRUN = frozenset((NOTHING, *(f"({dtype})" for dtype in PRECISIONS)))


@dataclass(frozen=True)
class Waiver:
    """A divergence that is known.

    twin, stage, record, name: globs (``*``, ``?``, ``[…]``) of what is waived; `name` is compared with both sides' names, as
    a glob and as it is. expires: the last day on which it holds.
    """

    name: str
    reason: str
    owner: str
    expires: datetime.date
    twin: str = "*"
    stage: str = "*"
    record: str = "*"

    def covers(self, twin: TwinResult, stage: StageResult, tensor: TensorResult) -> bool:
        """Is this tensor meant? The row of a stage that could not run is no tensor, and is never waived."""
        names = [name for name in (tensor.reference_name, tensor.candidate_name) if name]
        return (
            self.names(twin)
            and fnmatchcase(stage.name, self.stage)
            and fnmatchcase(tensor.record, self.record)
            and not UNRUN.intersection(names)
            and any(name == self.name or fnmatchcase(name, self.name) for name in names)
        )

    def names(self, twin: TwinResult) -> bool:
        """Is this twin meant, by its name or as it was asked for?"""
        return any(fnmatchcase(str(name), self.twin) for name in (twin.twin, twin.options.get("twin", twin.twin)))

    def concerns(self, twin: TwinResult) -> bool:
        """Did every stage run whose tensors could be meant? A waiver for what was not asked is not judged."""
        ran = {stage.name for stage in twin.stages if any(tensor.name not in UNRUN for tensor in stage.tensors)}
        meant = {stage.name for stage in STAGES if fnmatchcase(stage.name, self.stage)}
        return self.names(twin) and meant <= ran

    def __str__(self) -> str:
        where = {"twin": self.twin, "stage": self.stage, "record": self.record, "name": self.name}
        return " ".join(f"{key}={glob}" for key, glob in where.items() if glob != "*" or key == "name")


def read_waivers(path: str | Path) -> tuple[Waiver, ...]:
    """The waivers of a TOML file.

    Raises:
        AlignmentError: names the file and the first thing in it that isn't right.
    """
    path = Path(path)
    try:
        data = read_toml(path)
    except OSError as error:
        raise AlignmentError(f"{path}: can't read the waivers: {error.strerror}") from error
    except ValueError as error:
        raise AlignmentError(f"{path}: the waivers are no TOML: {error}") from error
    rows = data.get("waiver", [])
    if set(data) - {"waiver"} or not isinstance(rows, list):
        raise AlignmentError(f"{path}: waivers are tables [[waiver]], and nothing else stands beside them")
    return tuple(_waiver(f"{path}: waiver {number}", row) for number, row in enumerate(rows, start=1))


def apply_waivers(report: Report, waivers: Sequence[Waiver], today: datetime.date | None = None) -> Report:
    """The report with what is waived marked so, and a problem for each waiver that is over or that nothing needs.

    A waiver that is over waives nothing. One of a twin or a stage that did not run is not judged.
    """
    today = today or datetime.date.today()
    valid = [waiver for waiver in waivers if waiver.expires >= today]
    used: set[Waiver] = set()

    def waived(twin: TwinResult, stage: StageResult, tensor: TensorResult) -> TensorResult:
        if tensor.verdict == "aligned":
            return tensor
        for waiver in valid:
            if waiver.covers(twin, stage, tensor):
                used.add(waiver)
                said = f"{waiver.reason} ({waiver.owner}, until {waiver.expires})"
                return replace(tensor, waived=said)
        return tensor

    twins = tuple(
        replace(
            twin,
            stages=tuple(
                replace(stage, tensors=tuple(waived(twin, stage, tensor) for tensor in stage.tensors))
                for stage in twin.stages
            ),
        )
        for twin in report.twins
    )
    problems = []
    for waiver in waivers:
        of = f"the waiver of {waiver} ({waiver.reason}; {waiver.owner})"
        if waiver not in valid and any(waiver.names(twin) for twin in report.twins):
            problems.append(f"{of} was over on {waiver.expires}: mend what it waives, or give it another day")
        elif waiver in valid and waiver not in used and any(waiver.concerns(twin) for twin in report.twins):
            problems.append(f"{of} waives nothing any more: take it out")
    return replace(report, twins=twins, problems=(*report.problems, *problems))


def _waiver(where: str, row: Any) -> Waiver:
    if not isinstance(row, Mapping):
        raise AlignmentError(f"{where}: must be a table [[waiver]]")
    known = {field.name: field.default is MISSING for field in fields(Waiver)}
    unknown = sorted(set(row) - set(known))
    if unknown:
        raise AlignmentError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(known)}")
    lacking = [name for name, needed in known.items() if needed and name not in row]
    if lacking:
        raise AlignmentError(f"{where}: {', '.join(lacking)} is missing")
    for name, value in row.items():
        if name == "expires":
            if type(value) is not datetime.date:
                raise AlignmentError(f"{where}: expires must be a day without quotes, as 2027-03-31, not {value!r}")
        elif not isinstance(value, str) or not value.strip():
            raise AlignmentError(f"{where}: {name} must be a text, not {value!r}")
    return Waiver(**row)
