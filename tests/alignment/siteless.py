"""Reports of captures beside those of live checks: a capture knows no line of the candidate's source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from alignment import StageResult, TensorResult


def siteless(rows: Iterable[TensorResult]) -> tuple[TensorResult, ...]:
    """The rows without lines of source."""
    return tuple(replace(row, site=None) for row in rows)


def siteless_stages(stages: Iterable[StageResult]) -> tuple[StageResult, ...]:
    """The stages, their rows without lines of source."""
    return tuple(replace(stage, tensors=siteless(stage.tensors)) for stage in stages)
