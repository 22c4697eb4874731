"""The report as JSON, as `report.schema.json` beside this file describes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from alignment.report import SCHEMA_VERSION, Effect, Finding, Report, StageResult, TensorResult, TwinResult

SCHEMA = Path(__file__).with_name("report.schema.json")


def to_json(report: Report) -> bytes:
    """UTF-8 JSON, indented. Infinite and undefined figures become null: JSON has no word for them."""
    return orjson.dumps(
        to_dict(report), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    )


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain dicts and lists."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": report.verdict,
        "versions": dict(report.versions),
        "problems": list(report.problems),
        "twins": [_twin(twin) for twin in report.twins],
    }


def _twin(twin: TwinResult) -> dict[str, Any]:
    return {
        "twin": twin.twin,
        "verdict": twin.verdict,
        "reference": twin.reference,
        "candidate": twin.candidate,
        "settings": dict(twin.settings),
        "weights": list(twin.weights),
        "batches": list(twin.batches),
        "data": twin.data,
        "seed": twin.seed,
        "faults": list(twin.faults),
        "notes": list(twin.notes),
        "seconds": round(twin.seconds, 3),
        "options": dict(twin.options),
        "stages": [_stage(stage) for stage in twin.stages],
        "findings": [asdict(finding) for finding in twin.findings],
        "effect": None if twin.effect is None else asdict(twin.effect),
    }


def _stage(stage: StageResult) -> dict[str, Any]:
    return {
        "step": stage.step,
        "name": stage.name,
        "verdict": stage.verdict,
        "notes": list(stage.notes),
        "tensors": [_tensor(tensor) for tensor in stage.tensors],
    }


def _tensor(tensor: TensorResult) -> dict[str, Any]:
    return {
        "record": tensor.record,
        "reference_name": tensor.reference_name,
        "candidate_name": tensor.candidate_name,
        "shape": None if tensor.shape is None else list(tensor.shape),
        "verdict": tensor.verdict,
        "root": tensor.root,
        "max_abs": tensor.max_abs,
        "rel_l2": tensor.rel_l2,
        "error_ratio": tensor.error_ratio,
        "worst_index": None if tensor.worst_index is None else list(tensor.worst_index),
        "seen": tensor.seen,
        "allowed": tensor.allowed,
        "strain": tensor.strain,
        "reason": tensor.reason,
        "dtype": tensor.dtype,
        "decided_by": tensor.decided_by,
        "weights": tensor.weights,
        "batch": tensor.batch,
        "comparisons": tensor.comparisons,
        "diverging": list(tensor.diverging),
        "site": tensor.site,
        "waived": tensor.waived,
    }


def from_dict(report: Mapping[str, Any]) -> Report:
    """The report that `to_dict` wrote; figures that JSON has no word for stay None, but an undefined strain is infinite."""
    twins = tuple(_read_twin(twin) for twin in report["twins"])
    return Report(twins, dict(report["versions"]), tuple(report.get("problems", ())))


def _read_twin(twin: Mapping[str, Any]) -> TwinResult:
    given = {key: _tuple(value) for key, value in twin.items() if key != "verdict"}
    effect = twin["effect"]
    return TwinResult(
        **given
        | {
            "stages": tuple(_read_stage(stage) for stage in twin["stages"]),
            "findings": tuple(
                Finding(**{key: _tuple(value) for key, value in one.items()}) for one in twin["findings"]
            ),
            "effect": None if effect is None else Effect(**{key: _tuple(value) for key, value in effect.items()}),
        }
    )


def _read_stage(stage: Mapping[str, Any]) -> StageResult:
    tensors = tuple(_read_tensor(tensor) for tensor in stage["tensors"])
    return StageResult(stage["step"], stage["name"], tensors, tuple(stage["notes"]))


def _read_tensor(tensor: Mapping[str, Any]) -> TensorResult:
    given = {key: _tuple(value) for key, value in tensor.items()}
    return TensorResult(**given | {"strain": math.inf if tensor["strain"] is None else tensor["strain"]})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
