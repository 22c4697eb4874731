"""The report as JSON, as `report.schema.json` beside this file describes it."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import orjson

from alignment.details import Detail, Element
from alignment.errors import AlignmentError
from alignment.report import (
    SCHEMA_VERSION,
    Effect,
    Finding,
    Module,
    Report,
    StageResult,
    TensorResult,
    Track,
    Trajectory,
    TwinResult,
)

SCHEMA = Path(__file__).with_name("report.schema.json")


def to_json(report: Report) -> bytes:
    """UTF-8 JSON, indented. Infinite and undefined figures become null: JSON has no word for them."""
    written = to_dict(report)
    for twin in written["twins"]:
        for side in ("reference_tree", "candidate_tree"):
            twin[side] = [_on_one_line(module) for module in twin[side]]
        for trajectory in twin["trajectories"]:
            trajectory["tracks"] = [_on_one_line(track) for track in trajectory["tracks"]]
            for key, value in trajectory.items():
                trajectory[key] = _on_one_line(value) if isinstance(value, tuple) else value
        for stage in twin["stages"]:
            for tensor in stage["tensors"]:
                tensor["detail"] = tensor["detail"] and _on_one_line(tensor["detail"])
    return orjson.dumps(written, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _on_one_line(value: Any) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(value))


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
        "reference_tree": [asdict(module) for module in twin.reference_tree],
        "candidate_tree": [asdict(module) for module in twin.candidate_tree],
        "trajectories": [asdict(one) for one in twin.trajectories],
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
        "detail": None if tensor.detail is None else _detail(tensor.detail),
        "site": tensor.site,
        "waived": tensor.waived,
    }


def _detail(detail: Detail) -> dict[str, Any]:
    # Not by asdict, which copies every number of hundreds of heat maps.
    return {**vars(detail), "worst": [vars(element) for element in detail.worst]}


def from_dict(report: Mapping[str, Any]) -> Report:
    """The report that `to_dict` wrote; figures that JSON has no word for stay None, but an undefined strain is
    infinite, and an undefined loss no number.
    """
    twins = tuple(_read_twin(twin) for twin in report["twins"])
    return Report(twins, dict(report["versions"]), tuple(report.get("problems", ())))


def read_report(path: Path) -> Report:
    """The report in a file that `to_json` wrote.

    Raises:
        AlignmentError: no such file, or no report of this schema version; the message says what in it is something else.
    """
    try:
        written = orjson.loads(path.read_bytes())
        if not isinstance(written, dict) or "schema_version" not in written:
            raise AlignmentError(f"{path} is no report that --json wrote: it has no schema_version")
        if written["schema_version"] != SCHEMA_VERSION:
            version = written["schema_version"]
            raise AlignmentError(
                f"{path} is a report of schema version {version!r}, this package reads {SCHEMA_VERSION}: make it again"
            )
        report = from_dict(written)
    except OSError as error:
        raise AlignmentError(f"{path}: can't read the report: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise AlignmentError(f"{path} is no report that --json wrote: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise AlignmentError(f"{path} is no report that --json wrote: {type(error).__name__}: {error}") from error
    odd = _odd(report, Report, "report")
    if odd:
        raise AlignmentError(f"{path} is no report that --json wrote: {odd}")
    return report


def _odd(value: Any, expected: Any, where: str) -> str:
    """What in a value is not of its field's type, in words; empty where all is."""
    if isinstance(expected, type) and dataclasses.is_dataclass(expected):
        if not isinstance(value, expected):
            return f"{where} is {str(value)[:60]!r}"
        hints = get_type_hints(expected)
        found = (_odd(getattr(value, field.name), hints[field.name], field.name) for field in fields(expected))
        return next(filter(None, found), "")
    origin, inner = get_origin(expected), get_args(expected)
    if origin is Literal:
        fits = isinstance(value, str) and value in inner
    elif origin is tuple:
        if isinstance(value, tuple):
            kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
            odd = "" if len(kinds) == len(value) else f"{where} has {len(value)} entries"
            return odd or next(filter(None, (_odd(v, kind, where) for v, kind in zip(value, kinds, strict=True))), "")
        fits = False
    elif origin in (Union, types.UnionType):
        odds = [_odd(value, kind, where) for kind in inner]
        # Of what may be null, what is wrong with the other kind says more.
        return "" if "" in odds else odds[0]
    elif origin is Mapping:
        fits = isinstance(value, dict)
    elif expected is float:
        # JSON has no word for an undefined figure: null.
        fits = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    else:
        fits = expected is Any or (isinstance(value, expected) and (expected is bool or not isinstance(value, bool)))
    return "" if fits else f"{where} is {str(value)[:60]!r}"


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
            "effect": None if effect is None else Effect(**{key: _losses(value) for key, value in effect.items()}),
            # Reports of earlier versions have no trees.
            "reference_tree": tuple(Module(**module) for module in twin.get("reference_tree", ())),
            "candidate_tree": tuple(Module(**module) for module in twin.get("candidate_tree", ())),
            "trajectories": tuple(_read_trajectory(one) for one in twin.get("trajectories", ())),
        }
    )


def _read_stage(stage: Mapping[str, Any]) -> StageResult:
    tensors = tuple(_read_tensor(tensor) for tensor in stage["tensors"])
    return StageResult(stage["step"], stage["name"], tensors, tuple(stage["notes"]))


def _read_tensor(tensor: Mapping[str, Any]) -> TensorResult:
    given = {key: _tuple(value) for key, value in tensor.items()}
    detail = tensor.get("detail")
    return TensorResult(
        **given
        | {
            "strain": _unbounded(tensor["strain"]),
            "detail": None if detail is None else _read_detail(detail),
        }
    )


def _read_detail(detail: Mapping[str, Any]) -> Detail:
    given = {key: _tuple(value) for key, value in detail.items()}
    worst = tuple(Element(**{key: _tuple(value) for key, value in element.items()}) for element in detail["worst"])
    return Detail(**given | {"points": tuple(map(tuple, detail["points"])), "worst": worst})


def _read_trajectory(written: Mapping[str, Any]) -> Trajectory:
    given = _losses_of(written)
    tracks = (_losses_of(track) | {"strain": _unbounded(track["strain"])} for track in written["tracks"])
    return Trajectory(**given | {"tracks": tuple(Track(**track) for track in tracks)})


def _losses_of(written: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _losses(value) for key, value in written.items()}


def _unbounded(strain: float | None) -> float:
    return math.inf if strain is None else strain


def _losses(value: Any) -> Any:
    return tuple(math.nan if loss is None else loss for loss in value) if isinstance(value, list) else value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
