"""Baselines: how precise a port was when it was accepted, in a small file to review, so that it can't get worse unseen.

Aligned is a wide word: ten times the reference's float32 error is within it. A port whose error is that of the reference
today and five times that tomorrow has changed all the same, most often by a kernel, a dtype or an order of operations that
nobody meant to change. The file has two figures for each tensor, to two digits:

* ``error_ratio``: the candidate's float32 error over the reference's own, without what is always allowed
  (`Tolerance.floor_ulps`): that floor is in the strain, so that a scalar which rounds well by luck has no large ratio.
* ``rel_l2``: of the float64 difference.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignment.compare import Tolerance
from alignment.errors import AlignmentError
from alignment.experiment import Options
from alignment.mapping import quoted
from alignment.report import Report, StageResult, TensorResult, TwinResult
from alignment.scope import listed
from alignment.stages import STAGES
from alignment.trees import module_of
from alignment.waivers import UNRUN
from checkpoints import write_aside
from checkpoints.tables import read_toml

VERSION = 1
# How many times the error ratio may be what it was, counted from 1: better than the reference is no promise. Measured on right
# ports, in 78,000 pairs of runs of one tensor under two seeds: 1.2 times in 99 of 100, at most 3.3; of one number 4.2.
FACTOR = 4.0
# A float64 difference is worse where it is this many times what it was, and uses this share of what rounding explains: where the
# true value is zero, or Adam divides by next to nothing, it is anything from 0 to 1e-4 of the value, and up to 0.04 of that.
SEMANTICS_FACTOR = 10.0
SEMANTICS_SHARE = 0.1
# What has no rounding.
EXACT = ("module", "parameter", "buffer", "initializer", "metric")
HEAD = """\
# How precise these ports were when they were accepted. `align baseline` writes this file, `align check --baseline` reads it.
# error_ratio: float32 error of the candidate over the reference's own. rel_l2: of the float64 difference.
# factor: how many times its error ratio a tensor may have before it is called less precise.
"""


@dataclass(frozen=True)
class Precision:
    """One tensor's figures. error_ratio: None where both sides had the same bits."""

    rel_l2: float
    error_ratio: float | None = None


@dataclass(frozen=True)
class TwinBaseline:
    """One twin's figures.

    conditions: what they rest on; a check under others can't be held to them. versions: of the frameworks, for the reader.
    stages: stage -> record -> tensor -> its figures, in order of dependency.
    """

    conditions: Mapping[str, str]
    versions: Mapping[str, str]
    stages: Mapping[str, Mapping[str, Mapping[str, Precision]]]


@dataclass(frozen=True)
class Baseline:
    """The figures of some twins, by the name they are asked for.

    factor: how many times an error ratio may be what it was. path: of the file they were read from.
    """

    twins: Mapping[str, TwinBaseline] = field(default_factory=dict)
    factor: float = FACTOR
    path: Path | None = None

    @staticmethod
    def read(path: str | Path) -> Baseline:
        """Read a baseline.

        Raises:
            AlignmentError: names the file and the first thing in it that isn't right.
        """
        path = Path(path)
        try:
            data = read_toml(path)
        except FileNotFoundError as error:
            raise AlignmentError(f"{path}: there is no such baseline; `align baseline` writes one") from error
        except OSError as error:
            raise AlignmentError(f"{path}: can't read the baseline: {error.strerror}") from error
        except ValueError as error:
            raise AlignmentError(f"{path}: the baseline is damaged: {error}; write it again, or restore it") from error
        if data.get("version") != VERSION:
            raise AlignmentError(f"{path}: no baseline of version {VERSION}: version = {data.get('version')!r}")
        factor = data.get("factor", FACTOR)
        if type(factor) not in (int, float) or not 1 <= factor <= sys.float_info.max:
            raise AlignmentError(f"{path}: factor must be a number from 1 on, not {factor!r}")
        twins = _table(data.get("twins"), f"{path}: [twins]")
        read = {name: _read_twin(f"{path}: {name}", entry) for name, entry in twins.items()}
        return Baseline(read, float(factor), path)

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all; twins in order of their names, so that a difference shows what changed."""
        blocks = [f"{HEAD}\nversion = {VERSION}\nfactor = {self.factor!r}\n"]
        for name, twin in sorted(self.twins.items()):
            for key, values in (("conditions", twin.conditions), ("versions", twin.versions)):
                rows = [f"{_key(one)} = {quoted(said)}\n" for one, said in sorted(values.items())]
                blocks.append(f"[twins.{_key(name)}.{key}]\n" + "".join(rows))
            for stage, records in twin.stages.items():
                for record, tensors in records.items():
                    rows = [f"{_key(tensor)} = {_written(figures)}\n" for tensor, figures in tensors.items()]
                    blocks.append(f"[twins.{_key(name)}.{stage}.{_key(record)}]\n" + "".join(rows))
        with write_aside(Path(path)) as file:
            file.write("\n".join(blocks).encode())


def baseline_of(report: Report) -> Baseline:
    """The figures of a report that is aligned.

    Raises:
        AlignmentError: it is not, or a fault was planted.
    """
    if report.verdict != "aligned":
        raise AlignmentError(
            f"the report is {report.verdict}: there is no precision to hold on to; mend the port first"
        )
    if any(twin.faults for twin in report.twins):
        raise AlignmentError("a fault was planted: a baseline is of the port as it is")
    return Baseline({_asked(twin): _twin_baseline(twin, report) for twin in report.twins})


def apply_baseline(report: Report, baseline: Baseline) -> Report:
    """The report with what became less precise diverged, though it is aligned by itself.

    A tensor of the baseline that is not compared any more is inconclusive, and so is a twin that has no baseline or was
    checked under other conditions; one that the baseline does not have is noted.
    """
    twins, problems = [], list(report.problems)
    for twin in report.twins:
        held = baseline.twins.get(_asked(twin))
        where = f"the baseline {baseline.path}" if baseline.path else "the baseline"
        if not twin.tensors:
            pass  # it crashed, or never began: its own notes say more than conditions that nobody knows
        elif held is None:
            problems.append(f"{_asked(twin)} is not in {where}: `align baseline` adds it")
        else:
            conditions = _conditions(twin)
            differ = [
                f"{name} {held.conditions.get(name, 'nothing')} (now {conditions.get(name, 'nothing')})"
                for name in sorted({*held.conditions, *conditions})
                if held.conditions.get(name) != conditions.get(name)
            ]
            if differ:
                problems.append(
                    f"{where} of {_asked(twin)} was made with {'; '.join(differ)}: check likewise, or make it again"
                )
            else:
                twin = _held(twin, held, report, baseline.factor, where)
        twins.append(twin)
    return replace(report, twins=tuple(twins), problems=tuple(problems))


def _held(twin: TwinResult, held: TwinBaseline, report: Report, factor: float, where: str) -> TwinResult:
    sites = {module.path: module.site for module in twin.candidate_tree}

    def sited(tensor: TensorResult) -> TensorResult:
        """With the line that makes the module, where it became less precise; a root has a line already."""
        if tensor.verdict != "diverged" or tensor.decided_by != "baseline" or tensor.candidate_name is None:
            return tensor
        path = module_of(tensor.record, tensor.candidate_name, sites)
        return tensor if path is None else replace(tensor, site=sites[path])

    stages = tuple(_held_stage(stage, held.stages.get(stage.name, {}), factor) for stage in twin.stages)
    stages = tuple(replace(stage, tensors=tuple(map(sited, stage.tensors))) for stage in stages)
    judged = [
        held.stages[stage.name][tensor.record].get(_name(tensor)) is not None
        for stage in twin.stages
        for tensor in stage.tensors
        if figures_of(tensor) is not None and tensor.record in held.stages.get(stage.name, {})
    ]
    worse = sum(t.decided_by == "baseline" and t.verdict == "diverged" for stage in stages for t in stage.tensors)
    notes = [f"held to {where}: {worse or 'none'} of {sum(judged)} tensors less precise than it says"]
    if stages != twin.stages:
        now = {
            name: version for name, version in report.versions.items() if held.versions.get(name, version) != version
        }
        notes += [f"the baseline was made with {name} {held.versions[name]}, this is {now[name]}" for name in now]
    return replace(twin, stages=stages, notes=(*twin.notes, *notes))


def _unrun(stage: StageResult) -> bool:
    """Is its only row that of what could not run?"""
    return any(tensor.name in UNRUN for tensor in stage.tensors)


def _held_stage(stage: StageResult, held: Mapping[str, Mapping[str, Precision]], factor: float) -> StageResult:
    if _unrun(stage):
        return stage
    rows = [_held_tensor(t, held.get(t.record, {}).get(_name(t)), factor) for t in stage.tensors]
    present = {(tensor.record, _name(tensor)) for tensor in stage.tensors}
    gone = [(record, name) for record, tensors in held.items() for name in tensors if (record, name) not in present]
    reason = "in the baseline, and not compared any more: take it up again, or make the baseline again"
    rows += [
        TensorResult(record, name, None, None, "inconclusive", reason, decided_by="baseline") for record, name in gone
    ]
    new = [t.name for t in stage.tensors if figures_of(t) is not None and _name(t) not in held.get(t.record, {})]
    notes = (f"not in the baseline: {listed(new)}; `align baseline` adds them",) if new else ()
    return replace(stage, tensors=tuple(rows), notes=(*stage.notes, *notes))


def _held_tensor(tensor: TensorResult, was: Precision | None, factor: float) -> TensorResult:
    now = figures_of(tensor)
    if was is None or now is None:
        return tensor
    ratio = now.error_ratio or 0.0
    # One number may round well by luck, a thousand don't.
    most = factor * max(was.error_ratio or 0.0, 1.0) * (1 + 1 / math.sqrt(max(1, math.prod(tensor.shape or ()))))
    if ratio > most:
        reason = (
            f"less precise than it was: float32 error {ratio:.2g} times the reference's, in the baseline {_said(was)}; "
        )
        return _worse(tensor, reason, ratio, most, "float32")
    share = tensor.seen / tensor.allowed if tensor.seen and tensor.allowed and tensor.dtype == "float64" else 0.0
    if now.rel_l2 > SEMANTICS_FACTOR * was.rel_l2 and share > SEMANTICS_SHARE:
        reason = f"less precise than it was: float64 relative L2 {now.rel_l2:.2g}, in the baseline {was.rel_l2:.2g}; "
        return _worse(tensor, reason, now.rel_l2, SEMANTICS_FACTOR * was.rel_l2, "float64")
    return tensor


def _said(was: Precision) -> str:
    return "the same bits" if was.error_ratio is None else f"{was.error_ratio:.2g} times"


def _worse(tensor: TensorResult, reason: str, seen: float, allowed: float, dtype: str) -> TensorResult:
    return replace(
        tensor,
        verdict="diverged",
        reason=f"{reason}allowed {allowed:.2g}",
        seen=seen,
        allowed=allowed,
        strain=seen / allowed if allowed else math.inf,
        dtype=dtype,
        decided_by="baseline",
    )


def _twin_baseline(twin: TwinResult, report: Report) -> TwinBaseline:
    stages: dict[str, dict[str, dict[str, Precision]]] = {}
    for stage in twin.stages:
        for tensor in stage.tensors:
            figures = figures_of(tensor)
            if figures is not None:
                stages.setdefault(stage.name, {}).setdefault(tensor.record, {})[_name(tensor)] = figures
    return TwinBaseline(_conditions(twin), dict(report.versions), stages)


def figures_of(tensor: TensorResult) -> Precision | None:
    """What is written of a tensor; None of one that has no rounding, or is not aligned."""
    unfit = tensor.verdict != "aligned" or tensor.record in EXACT
    if unfit or tensor.rel_l2 is None or not math.isfinite(tensor.rel_l2):
        return None
    if tensor.error_ratio is None:
        return Precision(tensor.rel_l2)
    return Precision(tensor.rel_l2, min(tensor.error_ratio, Tolerance().precision_ratio * tensor.strain))


def _conditions(twin: TwinResult) -> dict[str, str]:
    """What figures rest on, as texts. The seed and the threads are not among them: precision goes by neither."""
    names = ("batch_size", "length", "strict", "dropout", "precision", "reference_device", "candidate_device")
    options = {name: twin.options.get(name) for name in names}
    return {
        "data": twin.data,
        "batches": ", ".join(twin.batches),
        "weights": ", ".join(twin.weights),
        **{name: str(value) for name, value in options.items() if value and value != Options.precision},
        **{f"settings.{name}": str(value) for name, value in twin.settings.items()},
    }


def _asked(twin: TwinResult) -> str:
    return str(twin.options.get("twin") or twin.twin)


def _name(tensor: TensorResult) -> str:
    """A tensor's key beside others of its record."""
    both = tensor.reference_name and tensor.candidate_name and tensor.reference_name != tensor.candidate_name
    return f"{tensor.reference_name} → {tensor.candidate_name}" if both else tensor.name


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else quoted(name)


def _written(figures: Precision) -> str:
    ratio = "" if figures.error_ratio is None else f"error_ratio = {figures.error_ratio:.2g}, "
    return f"{{ {ratio}rel_l2 = {figures.rel_l2:.2g} }}"


def _read_twin(where: str, data: Any) -> TwinBaseline:
    table = dict(_table(data, where))
    texts = []
    for key in ("conditions", "versions"):
        values = _table(table.pop(key, {}), f"{where}.{key}")
        if not all(isinstance(value, str) for value in values.values()):
            raise AlignmentError(f"{where}.{key}: every value must be a text")
        texts.append(values)
    known = [stage.name for stage in STAGES]
    if set(table) - set(known):
        unknown = ", ".join(sorted(set(table) - set(known)))
        raise AlignmentError(f"{where}: unknown stage {unknown}; known: {', '.join(known)}")
    stages = {
        stage: {
            record: {
                name: _read_figures(f"{where}.{stage}.{record}: {name}", figures)
                for name, figures in _table(tensors, f"{where}.{stage}.{record}").items()
            }
            for record, tensors in _table(records, f"{where}.{stage}").items()
        }
        for stage, records in table.items()
    }
    return TwinBaseline(texts[0], texts[1], stages)


def _read_figures(where: str, data: Any) -> Precision:
    table = _table(data, where)
    if not {"rel_l2"} <= set(table) <= {"rel_l2", "error_ratio"}:
        raise AlignmentError(f"{where}: must have rel_l2 and may have error_ratio, and nothing else")
    for name, value in table.items():
        if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
            raise AlignmentError(
                f"{where}: {name} must be a finite number from 0 on, not {json.dumps(value, default=str)}"
            )
    return Precision(float(table["rel_l2"]), None if "error_ratio" not in table else float(table["error_ratio"]))


def _table(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise AlignmentError(f"{where} must be a table")
    return data
