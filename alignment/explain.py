"""From root divergences to findings: what is wrong, on which side, why, how that is proved, and what it does to training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alignment.capture_file import read_detailed
from alignment.causes import AnySuspect, Cause, Suspect, Trial, diagnose
from alignment.check import Checked, asked_for, own_versions, run_check
from alignment.compare import EPS32
from alignment.errors import AlignmentError
from alignment.experiment import LEARNING_RATE, NOISE_RUNS, Experiment, Options
from alignment.localise import Root, Scene, row_of
from alignment.report import Effect, Finding, Report, StageResult, TensorResult, TwinResult
from alignment.saved_pair import SavedPair, pair_stages, weight_suspects
from alignment.sides import Law, attribute, laws
from alignment.sites import sites_of
from alignment.stages import bounded
from alignment.suspects import other_suspects
from alignment.trees import module_trees
from alignment.twins import Twin
from fake_data import Batch

# Steps of Adam whose losses tell what a divergence does to training.
TRAINING_STEPS = 5
# Hypotheses that were tried in vain and are worth a line.
SHOWN_TRIALS = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Case:
    """One root with what was found out about it."""

    label: str
    row: TensorResult
    step: str
    suspect: AnySuspect | None
    scene: Scene | None
    root: Root | None
    found: list[tuple[Cause, Trial]]
    laws: list[Law]


def explain(
    twin: str | Twin | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    *,
    reference: Any = None,
    candidate: Any = None,
    inputs: Any = None,
    loss: Any = None,
    mode: Literal["eval", "train"] = "eval",
    dropout: Literal["frozen", "seeded"] = "frozen",
) -> Report:
    """Check a twin, or two models, and explain what diverges. The arguments are those of `alignment.check`.

    Returns:
        The report of `alignment.check`, its twin with `findings` and `effect`.

    Raises:
        AlignmentError, CheckpointError, DataError: it could not run; the message says what to change.
    """
    asked = asked_for(twin, reference, candidate, inputs, loss, mode, dropout)
    return explain_checked(run_check(asked, options or Options(), progress))


def explain_checked(checked: Checked) -> Report:
    """Add findings to a check that has run."""
    result = checked.report.twins[0]
    findings = findings_of(checked.experiment, checked.scenes, result.stages)
    effect, notes = None, result.notes
    if findings:
        try:
            effect = _effect(checked.experiment)
        except (Exception, SystemExit) as error:  # a candidate this wrong may not train; what was found stands
            notes = (*notes, f"the effect on training could not be measured: {type(error).__name__}: {error}")
    return replace(checked.report, twins=(replace(result, findings=findings, effect=effect, notes=notes),))


def explain_traces(reference: str | Path, candidate: str | Path, details: bool = False) -> Report:
    """Explain two captures, without either framework and without the models. details: as in `Options`.

    Raises:
        AlignmentError: one is no capture, or has no detailed run; or the two are not of one batch and of models whose weights
            correspond.
    """
    start = time.perf_counter()
    ours, theirs = read_detailed(reference), read_detailed(candidate)
    one, two = ours.about, theirs.about
    files = f"{reference} and {candidate}"
    try:
        pair = SavedPair(ours, theirs)
        stages, notes = pair_stages(pair, details)
        findings = findings_of(pair.experiment, (pair,), stages)
        trees = module_trees(pair.experiment)
    except AlignmentError as error:
        raise AlignmentError(f"{files}: {error}") from error
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        # Files may say anything: shapes that no layer has, options that no layer takes.
        what = f"{type(error).__name__}: {error}"
        raise AlignmentError(f"{files}: what they hold does not fit together: {what}") from error
    result = TwinResult(
        twin=one.twin if one.twin == two.twin else f"{one.twin} / {two.twin}",
        reference=f"{ours.trace.framework} {one.target}",
        candidate=f"{theirs.trace.framework} {two.target}",
        stages=bounded(stages),
        settings={},
        weights=(ours.weights,),
        batches=(ours.batch.name,),
        data=one.data,
        seed=one.seed,
        notes=(f"from captures, in float64 alone: {files}", *notes),
        seconds=time.perf_counter() - start,
        findings=findings,
        reference_tree=trees[0],
        candidate_tree=trees[1],
    )
    return Report((result,), own_versions() | dict(one.versions) | dict(two.versions))


# ---------------------------------------------------------------------------------------------------------- diagnosing


def findings_of(
    experiment: Experiment, scenes: Sequence[Scene], stages: tuple[StageResult, ...]
) -> tuple[Finding, ...]:
    """What is behind the roots of stages that ran models."""
    cases = list(_cases(experiment, scenes, stages))
    inherited = sum(t.verdict == "diverged" and not t.root for stage in stages for t in stage.tensors)
    return tuple(_finding(group, experiment, inherited) for group in _groups(cases))


def _cases(experiment: Experiment, scenes: Sequence[Scene], stages: Sequence[StageResult]) -> Iterable[_Case]:
    rows = {(t.record, t.name): (stage, t) for stage in stages for t in stage.tensors if t.root}
    proved: list[Cause] = []
    seen = set()
    for scene in scenes:
        for root in scene.roots:
            key = row_of(root)
            if key in seen or key not in rows:
                continue
            seen.add(key)
            if root.owner not in experiment.paths or root.reference is None:
                continue  # one side has no such module, or no such gradient: there is nothing to hold a cause against
            suspect = Suspect(root, scene)
            found = diagnose(suspect, proved)
            proved += [cause for cause, trial in found if trial.proved and cause not in proved]
            yield _case(rows.pop(key), suspect, scene, root, found, laws(scene, root))
    others = {(suspect.record, suspect.name): suspect for suspect in _others(experiment, scenes, rows.values())}
    for key, place in rows.items():
        other = others.get(key)
        found = [] if other is None else diagnose(other, proved)
        proved += [cause for cause, trial in found if trial.proved and cause not in proved]
        yield _case(place, other, None, None, found, [])


def _others(
    experiment: Experiment, scenes: Sequence[Scene], places: Iterable[tuple[StageResult, TensorResult]]
) -> Iterable[AnySuspect]:
    """Suspects for the roots that are in no scene."""
    for scene in scenes:
        if isinstance(scene, SavedPair):
            return weight_suspects(scene)
    return other_suspects(experiment, [(stage.step, row) for stage, row in places])


def _case(
    place: tuple[StageResult, TensorResult],
    suspect: AnySuspect | None,
    scene: Scene | None,
    root: Root | None,
    found: list[tuple[Cause, Trial]],
    checked: list[Law],
) -> _Case:
    stage, row = place
    return _Case(
        f"{row.record} {row.name}", row, f"step {stage.step} {stage.name}", suspect, scene, root, found, checked
    )


def _groups(cases: list[_Case]) -> list[list[_Case]]:
    """Roots with one cause belong together; so do those without a known one in the same piece of code."""
    groups: dict[tuple[str, str], list[_Case]] = {}
    for case in cases:
        cause = next((cause.name for cause, trial in case.found if trial.proved), None)
        owner = case.root.owner if case.root is not None else case.label
        groups.setdefault(("cause", cause) if cause else ("owner", owner), []).append(case)
    return list(groups.values())


def _finding(group: list[_Case], experiment: Experiment, inherited: int) -> Finding:
    case = group[0]
    side, reason = ("candidate", _why_candidate(case.row)) if case.root is None else attribute(case.root, case.laws)
    return finding_of(
        case.found,
        tuple(one.label for one in group),
        _symptom(case, len(group) - 1, inherited),
        side,
        reason,
        tuple(law.describe() for law in case.laws),
        tuple(dict.fromkeys(site for one in group for site in sites_of(one.row, experiment, one.root, one.scene))),
    )


def finding_of(
    found: Sequence[tuple[Cause, Trial]],
    roots: tuple[str, ...],
    symptom: str,
    side: str,
    reason: str,
    evidence: tuple[str, ...] = (),
    sites: tuple[str, ...] = (),
) -> Finding:
    """What was diagnosed, as a finding: the cause that is proved, or what was tried in vain."""
    cause, trial = next(((c, t) for c, t in found if t.proved), (None, None))
    tried = [
        f"{c.name}: {t.change}: {t.figure} {t.before:.2g} → {t.after:.2g}, {t.doubt or 'more than rounding'}"
        for c, t in found
        if not t.proved
    ]
    return Finding(
        roots=roots,
        symptom=symptom,
        cause=cause.name if cause else None,
        summary=cause.summary if cause else "unexplained: no known cause makes the difference vanish",
        remedy=cause.remedy
        if cause
        else "compare the two sides' code at the lines below; the evidence says what does not hold",
        side=side,
        side_reason=reason,
        proof=f"{trial.change}: {trial.figure} {trial.before:.2g} → {trial.after:.2g}" if trial else "",
        before=trial.before if trial else None,
        after=trial.after if trial else None,
        tried=() if cause else tuple(tried[:SHOWN_TRIALS]),
        evidence=evidence,
        sites=sites,
    )


def _why_candidate(row: TensorResult) -> str:
    if row.record in ("parameter", "buffer"):
        return (
            "both were given the same weights, and the reference holds them; the reference is the truth by definition"
        )
    return "the reference is the truth by definition"


def _symptom(case: _Case, more: int, inherited: int) -> str:
    row = case.row
    figure = "" if row.rel_l2 is None or not np.isfinite(row.rel_l2) else f" by {row.rel_l2:.2g} (relative L2)"
    seen = "" if row.seen is None or row.allowed is None else f"; seen {row.seen:.2g}, allowed {row.allowed:.2g}"
    others = f", and {more} more of its kind" if more else ""
    rest = f"; {inherited} more tensors inherit from the roots" if inherited else ""
    return f"{case.step}: {case.label} differs{figure}{others}{seen}{rest}"


# ------------------------------------------------------------------------------------------------------------- effect


def _effect(experiment: Experiment) -> Effect | None:
    """Losses of a few training steps on both sides, and how far rounding alone moves the reference's."""
    if experiment.layout is None:
        return None
    first = experiment.batches[0]
    usable = [b for b in experiment.batches if experiment.has_loss(b) and _shapes(b) == _shapes(first)]
    if not usable:
        return None
    batches = [usable[step % len(usable)] for step in range(TRAINING_STEPS)]
    name, state = next(iter(experiment.weights.items()))
    held = experiment.model("candidate", "float32")
    held.user, model, candidate = None, experiment.plain_reference(), held.module
    experiment.candidate.load_state(candidate, experiment.candidate_state(state))
    reference_losses = []
    try:
        for weights in (state, *experiment.moved(name, NOISE_RUNS + 1)):
            experiment.reference.load_state(model, weights)
            losses = experiment.reference.train(
                model,
                batches,
                loss=experiment.loss("reference"),
                learning_rate=LEARNING_RATE,
            )
            reference_losses.append(losses)
        theirs = experiment.candidate.train(
            candidate,
            batches,
            loss=experiment.loss("candidate"),
            learning_rate=LEARNING_RATE,
        )
    finally:
        experiment.reference.load_state(model, state)
    ours, *moved = np.array(reference_losses)
    # One rounding of the loss itself is always possible.
    envelope = np.maximum(np.abs(np.array(moved) - ours).max(0), 2 * EPS32 * np.abs(ours))
    return Effect(
        LEARNING_RATE,
        tuple(ours.tolist()),
        tuple(theirs),
        tuple(envelope.tolist()),
        _effect_in_words(ours, np.array(theirs), envelope),
    )


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    return [value.shape for value in batch.inputs.values()]


def _effect_in_words(ours: np.ndarray, theirs: np.ndarray, envelope: np.ndarray) -> str:
    gap = np.abs(theirs - ours)
    outside = np.flatnonzero(~(gap <= 10 * envelope))
    if not outside.size:
        return (
            f"after {len(ours)} steps of Adam the losses are as near as rounding explains: "
            "the divergence does not reach training on these batches"
        )
    first = int(outside[0])
    when = "before the first step" if first == 0 else f"from the loss after step {first} on"
    how = (
        "the loss itself differs"
        if first == 0
        else "the losses before agree, so it is the update that is wrong, not what is printed"
    )
    return (
        f"the losses part {when}: by {gap[first]:.2g} there, {gap[first] / envelope[first]:.2g} times what rounding explains "
        f"({envelope[first]:.1g}); {how}"
    )
