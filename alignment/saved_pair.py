"""Two saved traces side by side: compared record by record, and localised without running anything.

Where the models are at hand, each piece of the candidate is given the reference's own values (`alignment.localise`). Here
there is one free run of each side and no more. So a record that differs is a *root* where all that it was computed from
agrees, by the order in which the records came to be and by what is inside what; every other difference is inherited. A
fault behind another one is hidden until the first is mended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import checkpoints
from alignment.causes import WeightSuspect
from alignment.compare import EPS64, Comparison, Pair, Tolerance, bitwise, measure
from alignment.correspondence import OF_MODULES, correspond, path_of, rename, renamed
from alignment.errors import AlignmentError
from alignment.experiment import SIDES, Experiment, Options, State
from alignment.frameworks import Framework, ModuleInfo
from alignment.localise import FLOWS, FORWARD, Root, Scene, first_is_root, row_of
from alignment.report import StageResult, TensorResult
from alignment.saved_trace import SavedTrace
from alignment.trace import GRADIENT_OF, Kind, Trace, widest
from alignment.twins import Side, Twin
from checkpoints import CheckpointError, Layout, Slot, undo
from fake_data import InputSpec

Key = tuple[Kind, str]

BACKWARD: tuple[Kind, ...] = ("gradient", "input gradient", "activation gradient")
STAGES: tuple[tuple[int, str, tuple[Kind, ...]], ...] = (
    (3, "forward", ("input", "activation", "logits")),
    (4, "loss", ("loss",)),
    (5, "backward", BACKWARD),
)


class _Recorded:
    """What a saved trace knows of its side, told as a framework's adapter would tell it of a live model."""

    meanings = ()

    def __init__(self, saved: SavedTrace) -> None:
        self.name, self._saved = saved.trace.framework, saved

    def versions(self) -> dict[str, str]:
        return dict(self._saved.versions)

    def slots(self, _model: Any) -> tuple[Slot, ...]:
        return self._saved.slots

    def modules(self, _model: Any) -> tuple[ModuleInfo, ...]:
        return self._saved.modules

    def options(self, _model: Any, path: str) -> dict[str, Any]:
        return dict(self._saved.options.get(path, {}))

    def get_option(self, _model: Any, kind: str, option: str) -> dict[str, Any]:
        alike = (module.path for module in self._saved.modules if module.kind == kind)
        return {path: options[option] for path in alike if option in (options := self._saved.options[path])}


class SavedPair(Scene):
    """A scene of two saved traces: all that was recorded can be looked at, nothing can be run."""

    live = False

    def __init__(self, reference: SavedTrace, candidate: SavedTrace) -> None:
        self.sides = {"reference": reference, "candidate": candidate}
        super().__init__(_experiment(reference, candidate), reference.weights, reference.batch)
        self.reference64 = reference.trace
        self.candidate64 = renamed(candidate.trace, {two: one for one, two in self.experiment.paths.items()})
        self.forced_run = self.candidate64
        self.candidate_state = candidate.state

    def model(self, side: str, dtype: str | None = None) -> Any:
        """No model: what is known of it is in the trace."""
        return None

    def run(self, side: str, dtype: str | None = None, forced: Trace | None = None) -> Trace:
        """Nothing can be run.

        Raises:
            AlignmentError: always.
        """
        raise AlignmentError(f"the {side} of a saved pair can't be run: there is no model")

    # ------------------------------------------------------------------------------------------------------- comparing

    def judge(self, kind: Kind, name: str, candidate: NDArray | None) -> Comparison:
        """Compare a value with the reference's, in float64 alone: there is no float32 run to measure rounding by."""
        truth = self.reference64.get(kind, name)
        scale = self.gradient_scale if kind in BACKWARD else 0.0
        # A loss is a difference of logits, and has their rounding.
        scale = widest([self.reference64.get("logits", "logits")]) if kind == "loss" else scale
        tolerance = Tolerance()
        comparison = measure(Pair(truth, truth, truth, candidate, scale=scale), tolerance)
        if comparison.decided_by == "bitwise" and comparison.verdict == "aligned":
            return replace(comparison, reason="equal bit for bit")
        if comparison.decided_by != "semantics":
            return comparison
        rule = f"float64 alone: {tolerance.semantics_margin:g} × {EPS64:.2g} × the tensor's size"
        if scale:
            of = "logit" if kind == "loss" else "gradient"
            rule += f", and {tolerance.floor_ulps:g} × {EPS64:.2g} × the largest {of}"
        if comparison.verdict == "aligned":
            reason = f"differs by {comparison.seen:.1g}, allowed {comparison.allowed:.1g}"
        else:
            reason = comparison.reason
        return replace(comparison, reason=f"{reason} ({rule})")

    @cached_property
    def comparisons(self) -> dict[Key, Comparison]:
        """Every record of both sides, by the reference's name, in the order of the reference's run."""
        found: dict[Key, Comparison] = {}
        calls = {trace.framework: _Calls(trace) for trace in (self.reference64,)}[self.reference64.framework]
        for record in self.reference64.records:
            key = record.kind, record.name
            if record.kind == "activation" and path_of(record.name) == "criterion":
                # What the criterion gives is the loss, which is compared under that name.
                if self.reference64.get("loss", "loss") is not None:
                    continue
            value = self.value(self.candidate64, *key)
            if value is None:
                comparison = self._absent(*key, record.value)
                if comparison is not None:
                    found[key] = comparison
            elif record.value is None:
                if value.any():
                    found[key] = replace(bitwise(None, value), reason="no gradient on the reference side")
            else:
                found[key] = self.judge(*key, value)
        known = {(record.kind, record.name) for record in self.reference64.records}
        for record in self.candidate64.records:
            if record.kind in ("activation", "logits", "loss") and (record.kind, record.name) not in known:
                found[record.kind, record.name] = bitwise(None, record.value)
        self._calls = calls
        return found

    def _absent(self, kind: Kind, name: str, value: NDArray | None) -> Comparison | None:
        """A record that the candidate lacks: is that a difference?"""
        if kind in ("activation", "logits", "loss"):
            return bitwise(value, None)
        if value is None or kind == "input":
            return None  # no gradient on either side; or an argument that is handed over by name
        return bitwise(value, None) if self._due(self.candidate64, kind, name) else None


    @cached_property
    def weight_comparisons(self) -> dict[str, Comparison]:
        """Reference's name of a weight -> its comparison: weights are copies, so their bits must be equal."""
        theirs = {slot.name: slot for slot in self.sides["candidate"].slots}
        found = {}
        for slot in self.sides["reference"].slots:
            move = self.moves.get(slot.name)
            if move is None:
                continue
            found[slot.name] = bitwise(self.state[slot.name], undo(self.candidate_state[move.target], move))
            held = self.moves.get(slot.tied_to) if slot.tied_to else None
            tied, other = held.target if held else None, theirs[move.target].tied_to
            if found[slot.name].verdict == "aligned" and tied != other:
                reason = f"tied to {tied or 'nothing'} on the reference side, to {other or 'nothing'} on the candidate's"
                found[slot.name] = replace(found[slot.name], verdict="diverged", reason=reason)
        return found
