"""The result of a check: one `Report`, from which every view is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from alignment.compare import Verdict, overall
from alignment.details import Detail

SCHEMA_VERSION = 1
EXIT_STATUS = {"aligned": 0, "diverged": 1, "inconclusive": 2}
# In place of a tensor's name where a stage could not compare any.
NOTHING = "(all)"


@dataclass(frozen=True)
class TensorResult:
    """One tensor's verdict in one stage: the worst of its comparisons over batches and weights.

    record: what was compared: module, parameter, buffer, initializer, activation, logits, loss, metric, gradient, update;
    where a root lies between modules: input (what a module is given), input gradient, activation gradient; of a training:
    rate (of learning), trajectory (a tensor's weights, free-running).
    reference_name, candidate_name: each side's own name; None where that side has no such tensor.
    max_abs, rel_l2, worst_index: of the difference, in the dtype named by `dtype`. allowed: the largest `seen` that would
    still be aligned, `seen` being max_abs in float64 (semantics), the RMS error in float32 (precision), or -log10 of the
    p-value (initializers).
    error_ratio: RMS float32 error of the candidate over the reference's, both against the float64 truth.
    weights, batch: where the worst was seen. comparisons: how many there were; diverging: those that diverged, as
    ``weights/batch``.
    strain: seen over allowed; 1 is the limit.
    root: this divergence starts by itself: all that it depends on agrees, or was made to. Others are its consequences.
    detail: the differences of the comparison whose figures these are, where that was asked for and there are two tensors.
    site: of a root, and of what became less precise than its baseline: ``"file:line"`` in the candidate's source, if known.
    waived: why it counts for nothing, whatever its verdict; None: it counts.
    """

    record: str
    reference_name: str | None
    candidate_name: str | None
    shape: tuple[int, ...] | None
    verdict: Verdict
    reason: str
    max_abs: float | None = None
    rel_l2: float | None = None
    error_ratio: float | None = None
    worst_index: tuple[int, ...] | None = None
    seen: float | None = None
    allowed: float | None = None
    strain: float = 0.0
    dtype: str | None = None
    decided_by: str | None = None
    weights: str | None = None
    batch: str | None = None
    comparisons: int = 1
    diverging: tuple[str, ...] = ()
    root: bool = False
    detail: Detail | None = None
    site: str | None = None
    waived: str | None = None

    @property
    def name(self) -> str:
        """The reference's name, or the candidate's where the reference has none."""
        return self.reference_name or self.candidate_name or "?"


@dataclass(frozen=True)
class StageResult:
    """One stage's verdict and its tensors, in order of dependency. notes: what the reader should know besides."""

    step: int
    name: str
    tensors: tuple[TensorResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Aligned only if at least one tensor was compared and every one is aligned, but for those that are waived."""
        return overall(tensor.verdict for tensor in self.tensors if tensor.waived is None)


@dataclass(frozen=True)
class Finding:
    """What is behind one or several root divergences.

    roots: ``"record name"`` of each. symptom: what is seen, and how much of all that diverges is inherited.
    cause: its name, or None where no known cause could be proved. summary, remedy: what is wrong, and what to change.
    side: ``"reference"`` or ``"candidate"``; side_reason: why it is said to be that one.
    proof: the correction and how far the difference fell; before, after: its relative L2 without and with it.
    tried: what was tried in vain, with figures. evidence: identities that were checked.
    sites: ``"file:line what"`` in the candidate's source.
    """

    roots: tuple[str, ...]
    symptom: str
    cause: str | None
    summary: str
    remedy: str
    side: str
    side_reason: str
    proof: str = ""
    before: float | None = None
    after: float | None = None
    tried: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Effect:
    """What the divergence does to training: losses of both sides at each step of Adam, from the same weights, in float32.

    envelope: how far the reference's own loss moves when its weights are moved by one unit in the last place.
    """

    learning_rate: float
    reference: tuple[float, ...]
    candidate: tuple[float, ...]
    envelope: tuple[float, ...]
    summary: str


@dataclass(frozen=True)
class Track:
    """How far one tensor's weights parted in training.

    left: the first step at which the free-running candidate was outside the envelope; None: it never was. strain: the
    largest distance over what is allowed, and worst: at which step. apart, allowed: at each step of `Trajectory.at`,
    Euclidean distances over the norm of the reference's weights; empty where they are not kept.
    """

    name: str
    left: int | None
    strain: float
    worst: int
    apart: tuple[float, ...] = ()
    allowed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """Training on both sides, step by step: free-running, re-synchronised, and the reference against itself.

    dtype: of all runs. recipe: in words. steps: that were compared. runs: of the reference with its weights moved by one unit
    in the last place, which make the envelope.
    reference, candidate: losses of the free-running sides, one for each step; loss_envelope, loss_allowed: how far the
    envelope's losses are from the reference's, and how far the candidate's may be.
    reference_rates, candidate_rates: learning rates of the parameters in no group.
    at: steps at which all weights were looked at; apart, envelope, allowed: there, the distance of all weights together over
    their norm: the free-running candidate's, the envelope's largest, and what is allowed.
    step_error, step_noise: distance of the re-synchronised candidate's step from the reference's, over the latter's size, and
    that of the reference's own with its weights moved.
    blind: the first step from which rounding alone explains a distance as large as the way that the weights have gone: the
    free-running curve says nothing from there. tracks: of each tensor, those first that left first, then by strain.
    single: what the re-synchronised steps say, in words. first: what left the envelope first; empty where nothing did.
    """

    dtype: str
    recipe: str
    steps: int
    runs: int
    reference: tuple[float, ...]
    candidate: tuple[float, ...]
    loss_envelope: tuple[float, ...]
    loss_allowed: tuple[float, ...]
    reference_rates: tuple[float, ...]
    candidate_rates: tuple[float, ...]
    at: tuple[int, ...]
    apart: tuple[float, ...]
    envelope: tuple[float, ...]
    allowed: tuple[float, ...]
    step_error: tuple[float, ...]
    step_noise: tuple[float, ...]
    tracks: tuple[Track, ...]
    single: str = ""
    first: str = ""
    blind: int | None = None

    @property
    def strain(self) -> float:
        """The largest share that any tensor took of what is allowed; 1 is the limit."""
        return max((track.strain for track in self.tracks), default=0.0)

    @property
    def free(self) -> str:
        """What the free-running candidate did, in words."""
        if not self.steps:
            return "nothing was compared"
        where = "outside" if self.first else "inside"
        most = f"at most {self.strain:.1%} of" if self.strain <= 1.0 else f"up to {self.strain:.3g} times"
        nearest = max(self.tracks, key=lambda track: track.strain, default=None)
        at = "" if nearest is None else f", by {nearest.name} at step {nearest.worst}"
        return f"{where} the envelope of {self.runs} runs; {most} what is allowed{at}"


@dataclass(frozen=True)
class Module:
    """One module of a side's tree.

    path: in this side's own words, ``""`` the root. kind: its layer kind, or the name of the user's own class where `own`.
    counterpart: the other side's path; None where there is none. site: ``"file:line"`` of the source that makes it, of the
    root its class; None where that is not known.
    """

    path: str
    kind: str
    own: bool
    counterpart: str | None = None
    site: str | None = None


@dataclass(frozen=True)
class TwinResult:
    """One twin's verdict: its stages and what they rest on. reference_tree, candidate_tree: each parent before its children."""

    twin: str
    reference: str
    candidate: str
    stages: tuple[StageResult, ...]
    settings: Mapping[str, Any]
    weights: tuple[str, ...]
    batches: tuple[str, ...]
    data: str
    seed: int
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    effect: Effect | None = None
    reference_tree: tuple[Module, ...] = ()
    candidate_tree: tuple[Module, ...] = ()
    trajectories: tuple[Trajectory, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Aligned only if at least one stage ran and every one is aligned."""
        return overall(stage.verdict for stage in self.stages)

    @cached_property
    def tensors(self) -> tuple[TensorResult, ...]:
        """Those of all stages, in order."""
        return tuple(tensor for stage in self.stages for tensor in stage.tensors)

    @property
    def roots(self) -> tuple[TensorResult, ...]:
        """The divergences that start by themselves, in order of dependency."""
        return tuple(tensor for tensor in self.tensors if tensor.root)


@dataclass(frozen=True)
class Report:
    """Everything a check found.

    versions: of python, numpy, this package and each framework. problems: what keeps the report from being aligned besides
    its twins: a waiver that is over, or that nothing needs.
    """

    twins: tuple[TwinResult, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Aligned only if at least one twin was checked, every one is aligned, and there are no problems besides."""
        left: tuple[Verdict, ...] = ("inconclusive",) if self.problems else ()
        return overall((*(twin.verdict for twin in self.twins), *left))
