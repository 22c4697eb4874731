"""Three curves of a training: free-running, re-synchronised before every step, and the reference against itself.

*Free-running*: both sides start from the same weights and go their own way. *Re-synchronised*: before every step the
candidate takes the reference's weights, optimizer and schedule state, so that each step is judged by itself. *The envelope*:
the reference again, several times, its initial weights moved by one unit in the last place; how far these runs part from
it is what rounding does to this training.

Here the curves are drawn; `alignment.training.judge` says what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from alignment.compare import Comparison, Pair, Tolerance, measure, sequential
from alignment.training.lockstep import Follower, Link, Moment, Tensors, distance, lockstep
from alignment.training.recipe import Recipe
from alignment.training.rules import Rule, Slots, change, rule_of
from alignment.training.trainer import Step, Trainer, TrainerState
from fake_data import Batch

Floats = NDArray[np.float64]

# Names of the followers that are not envelope runs.
FREE, SYNCED, SHADOW = "candidate", "synced", "shadow"
# What a step may leave of the rule's, elementwise: units in the last place of the weight, which is rounded when the step is
# added and when it decays; and a share of the step's summands, for Adam's beta powers, which Paddle holds in float32
# (measured 7e-6), and for the sums that clipping takes of all gradients.
WEIGHT_ULPS = 4.0
STEP_SHARE = 2e-5
# The same of a float64 run, in which Paddle's kernels hold momentum and weight decay in float32; and how many times its noise
# a gradient may be off there.
STEP_SHARE64, SEMANTICS = 2e-7, 1e4
# A gradient is looked at in float64 where it is further from the reference's than so many times the reference's own noise of
# the last steps, and units in the last place of the largest gradient in its layer.
SUSPICIOUS, GRADIENT_ULPS, MEMORY = 5.0, 16.0, 10
# After so many steps at which float64 called a tensor's gradient wrong, a suspicion is enough.
LOOKS = 3
# Tensors and steps of which gradients and updates of both sides are kept whole for an explanation of what diverges there.
KEPT_TENSORS, KEPT_STEPS, KEPT_SIZE = 6, 3, 4_000_000


@dataclass(frozen=True)
class Kept:
    """One re-synchronised step of one tensor, whole: what an explanation needs. All in float64, the reference's layout.

    slots: the optimizer's, before it. updated: which update of the tensor it is. gradients, updates, rates: the reference's and
    the candidate's. norm: of all gradients of the reference together.
    """

    number: int
    weights: Floats
    slots: Slots
    updated: int
    gradients: tuple[Floats, Floats]
    updates: tuple[Floats, Floats]
    rates: tuple[float, float]
    norm: float


@dataclass
class Series:
    """The figures of one tensor, one for each step; those of weights for each step at which they were looked at.

    gradient: distance of the re-synchronised candidate's gradient from the reference's; noise: that of the reference's own
    when its weights are moved by one unit in the last place; size: its norm. missing: steps where one side alone has one.
    suspicious: steps where the distance is more than the noise explains; measured: what float64 says, and of which step.
    update: distance of the re-synchronised candidate's step from the reference's; update_noise, update_size as for gradients.
    excess: how far the candidate's step lies from the rule, given its own gradient and learning rate, as a multiple of what
    rounding explains; ours: the same of the reference; both 0 where the rule is not known.
    norm, moved: of the reference's weights, and how far they are from where they began. apart: the free-running
    candidate's distance from the reference; spread: that of each envelope run.
    """

    shape: tuple[int, ...]
    gradient: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    suspicious: list[int] = field(default_factory=list)
    measured: list[tuple[int, Comparison]] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    update_noise: list[float] = field(default_factory=list)
    update_size: list[float] = field(default_factory=list)
    excess: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    spread: list[list[float]] = field(default_factory=list)


@dataclass
class Curves:
    """All that was measured.

    numbers: of the steps. at: those at which all weights were looked at. losses, rates: who -> one, and one for each group, for
    each step. series: label -> figures. kept: label -> whole steps. wrong: the reference's weights before the first step
    whose gradient is wrong, its number and its batch. stopped: why there are no more steps, if that is so.
    """

    eps: float
    runs: int
    numbers: list[int] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    kept: dict[str, list[Kept]] = field(default_factory=dict)
    wrong: tuple[int, Tensors, Batch] | None = None
    stopped: str = ""


Truth = Callable[[Tensors, TrainerState, Batch], tuple[dict[str, NDArray], dict[str, NDArray]]]


@dataclass(frozen=True)
class Participants:
    """Who takes part.

    reference, candidate: make a fresh trainer each time they are called, with the weights to begin with. link: how their
    tensors correspond. owners: label -> the reference's parameter that holds it, of all that are trained. moved: (weights,
    number) -> the same moved by one unit in the last place. recipe: None where no formula is known. eps: of the dtype.
    truth: (weights, state, batch) -> both sides' gradients in float64 by label; None where that can't be asked.
    summands: terms that a gradient sums up beyond a matrix product. buffers: labels of what is not trained.
    """

    reference: Callable[[], Trainer]
    candidate: Callable[[], Trainer]
    link: Link
    owners: Mapping[str, str]
    moved: Callable[[Tensors, int], dict[str, NDArray]]
    recipe: Recipe | None
    eps: float
    truth: Truth | None = None
    summands: int = 1
    buffers: tuple[str, ...] = ()


def draw(
    participants: Participants,
    batches: Iterable[Batch],
    *,
    envelope: int = 4,
    every: int = 1,
    epoch: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Curves:
    """Drive everybody over the batches, and measure. Stops where a loss is no finite number.

    Args:
        envelope: runs of the reference with its initial weights moved.
        every: look at all weights after each so many steps. epoch: steps of one; 0: there are none.
        progress: told the number of each step that is done.
    """
    reference, link = participants.reference(), participants.link
    begun = reference.weights()
    ours = Link(labelled=link.labelled, taken=link.labelled)
    followers = {
        FREE: Follower(participants.candidate(), link),
        SYNCED: Follower(participants.candidate(), link, synced=True, gradients=True),
        SHADOW: Follower(
            participants.reference(), ours, True, lambda weights: participants.moved(weights, 0), gradients=True
        ),
    }
    for run in range(1, envelope + 1):
        trainer = participants.reference()
        trainer.load_weights(participants.moved(begun, run))
        followers[str(run)] = Follower(trainer, ours)
    curves, first = Curves(participants.eps, envelope), link.labelled(begun)
    everybody = lockstep(
        reference, followers, batches, every=every, epoch=epoch, gradients=True, labelled=link.labelled
    )
    for moment in everybody:
        if not _losses(curves, moment):
            break
        _free(curves, moment, first)
        _synced(curves, participants, moment)
        if progress is not None:
            progress(moment.number)
        if curves.stopped:
            break
    return curves


def _losses(curves: Curves, moment: Moment) -> bool:
    """Take the losses and rates of a step, unless it is beyond numbers on both sides: then there is nothing to compare."""
    losses = {"reference": moment.reference.loss, **{who: step.loss for who, step in moment.followers.items()}}
    lost = [who for who in ("reference", FREE) if not math.isfinite(losses[who])]
    if lost:
        curves.stopped = f"the {lost[0]}'s loss is no finite number at step {moment.number}"
    if len(lost) == 2:
        curves.stopped = f"the losses of both sides are no finite numbers at step {moment.number}"
        return False
    curves.numbers.append(moment.number)
    for who, step in (("reference", moment.reference), *moment.followers.items()):
        curves.losses.setdefault(who, []).append(step.loss)
        curves.rates.setdefault(who, []).append(step.rates)
    return True


def _free(curves: Curves, moment: Moment, first: Tensors) -> None:
    """How far the weights are apart, where they were looked at."""
    assert moment.weights is not None
    assert moment.followed is not None
    looked = FREE in moment.followed
    if looked:
        curves.at.append(moment.number)
    for label, value in moment.weights.items():
        if value.dtype.kind != "f":
            continue
        series = curves.series.setdefault(label, Series(value.shape))
        if looked:
            series.norm.append(_norm(value))
            series.moved.append(distance(value, first[label]))
            series.apart.append(distance(moment.followed[FREE][label], value))
            runs = (moment.followed[str(run)][label] for run in range(1, curves.runs + 1))
            series.spread.append([distance(run, value) for run in runs])


def _synced(curves: Curves, participants: Participants, moment: Moment) -> None:
    """What the re-synchronised step tells of every tensor."""
    assert moment.weights is not None
    assert moment.followed is not None
    assert moment.before is not None
    assert moment.state is not None
    link, ours, theirs = participants.link, moment.reference, moment.followers[SYNCED]
    found = (
        link.labelled(_present(ours)),
        link.taken(_present(theirs)),
        link.labelled(_present(moment.followers[SHADOW])),
    )
    before, starts = link.labelled(moment.before), _starts(participants, moment.state)
    norms = total_norm(ours), total_norm(theirs)
    for label, series in curves.series.items():
        weights = before[label].astype(np.float64)
        after = moment.weights[label], moment.followed[SYNCED][label], moment.followed[SHADOW][label]
        updates = after[0] - weights, after[1] - weights
        series.update.append(distance(after[1], after[0]))
        series.update_noise.append(distance(after[2], after[0]))
        series.update_size.append(_norm(updates[0]))
        one, two = (gradients.get(label) for gradients in found[:2])
        if one is None or two is None:
            # A gradient of zeros is as good as none: frameworks differ in which they give to what is not used.
            lacking = any(value is not None and np.any(value) for value in (one, two))
            series.gradient.append(math.inf if lacking else 0.0)
            series.missing += [moment.number] if lacking else []
            for figures in (series.noise, series.size, series.excess, series.ours):
                figures.append(0.0)
            continue
        shadow = found[2].get(label)
        series.gradient.append(distance(two, one))
        series.noise.append(0.0 if shadow is None else distance(shadow, one))
        series.size.append(_norm(one))
        rates, (slots, updated) = _rates(participants, label, (ours, theirs)), starts[label]
        rule = None if participants.recipe is None else own_rule(participants.recipe, participants.owners[label])
        gradients = one.astype(np.float64), two.astype(np.float64)
        for side, figures in enumerate((series.ours, series.excess)):
            excess = 0.0
            if rule is not None:
                made = change(rule, weights, gradients[side], slots, updated, rates[side], norms[side])[0]
                # The same of all magnitudes: what the summands of the step are, where they cancel.
                sizes = {slot: np.abs(value) for slot, value in slots.items()}
                gross = change(
                    rule, np.abs(weights), np.abs(gradients[side]), sizes, updated, rates[side], norms[side]
                )[0]
                excess = _excess(weights, updates[side], made, gross, participants.eps)
            figures.append(excess)
        kept = Kept(moment.number, weights, slots, updated, gradients, updates, rates, norms[0])
        # Kept from here on: what a step did wrong, or a gradient far from the reference's and from its noise.
        far = series.gradient[-1] > max(1e-3 * series.size[-1], 100.0 * series.noise[-1])
        if series.excess[-1] > 1.0 or far or label in curves.kept:
            _keep(curves, label, kept)
    _look(curves, participants, moment, found)


def own_rule(recipe: Recipe, name: str) -> Rule:
    """The rule of a parameter, for learning rates that have its group's factor in them."""
    return replace(rule_of(recipe, name), factor=1.0)


def _excess(weights: Floats, update: Floats, due: Floats, gross: Floats, eps: float) -> float:
    """The largest distance of a step from what is due, as a multiple of what rounding explains."""
    share = STEP_SHARE if eps > 1e-10 else STEP_SHARE64
    with np.errstate(all="ignore"):
        allowed = WEIGHT_ULPS * eps * np.maximum(np.abs(weights), np.abs(weights + due)) + share * np.abs(gross)
        off = np.abs(update - due)
        ratio = np.divide(off, allowed, out=np.where(off > 0.0, np.inf, 0.0), where=allowed > 0.0)
    return float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0))


def _look(curves: Curves, participants: Participants, moment: Moment, found: tuple[dict[str, NDArray], ...]) -> None:
    """Find the gradients that noise does not explain, and ask float64 about them; about all at steps 1, 2, 4, 8, …"""
    assert moment.before is not None
    assert moment.state is not None
    largest: dict[str, float] = {}
    for label, series in curves.series.items():
        owner = label.rpartition(".")[0]
        largest[owner] = max(largest.get(owner, 0.0), series.size[-1])
    due, wanted = moment.number & (moment.number - 1) == 0, []
    exact = curves.eps < 1e-10
    every = max(largest.values(), default=0.0)
    for label, series in curves.series.items():
        # In float32 a suspicion costs a look. In float64 it decides, so that what the terms of a sum are is not taken from the
        # layer alone, whose inputs may be small.
        floor = GRADIENT_ULPS * curves.eps * (every if exact else largest[label.rpartition(".")[0]])
        factor = SEMANTICS if exact else SUSPICIOUS
        noise = factor * sequential(participants.summands) * max(series.noise[-MEMORY:])
        suspicious = not series.gradient[-1] <= noise + floor
        if suspicious:
            series.suspicious.append(moment.number)
        both = found[0].get(label) is not None and found[1].get(label) is not None
        if both and (due or (suspicious and _called_wrong(series) < LOOKS)):
            wanted.append(label)
    if participants.truth is not None and wanted:
        truth = participants.truth(moment.before, moment.state, moment.batch)
        scale = max((float(np.abs(value).max(initial=0.0)) for value in truth[0].values()), default=0.0)
        for label in wanted:
            pair = Pair(
                found[0][label],
                found[1][label],
                truth[0].get(label),
                truth[1].get(label),
                (found[2][label],) if label in found[2] else (),
                scale=scale,
                scale32=curves.eps * scale,
                summands=participants.summands,
            )
            curves.series[label].measured.append((moment.number, measure(pair, Tolerance())))
    wrong = [label for label in wanted if is_wrong(curves.series[label], moment.number)]
    wrong += [label for label, series in curves.series.items() if moment.number in series.missing]
    if wrong and curves.wrong is None:
        curves.wrong = (moment.number, dict(moment.before), moment.batch)


def _called_wrong(series: Series) -> int:
    return sum(comparison.verdict == "diverged" for _, comparison in series.measured)


def is_wrong(series: Series, number: int) -> bool:
    """Is the gradient of a step wrong? Float64 decides where it was asked."""
    if number in series.missing:
        return True
    said = [comparison.verdict for step, comparison in series.measured if step == number]
    return said[0] == "diverged" if said else number in series.suspicious


def _keep(curves: Curves, label: str, kept: Kept) -> None:
    if label not in curves.kept and (len(curves.kept) >= KEPT_TENSORS or kept.weights.size > KEPT_SIZE):
        return
    steps_kept = curves.kept.setdefault(label, [])
    if len(steps_kept) < KEPT_STEPS:
        steps_kept.append(kept)


def _present(step: Step) -> dict[str, NDArray]:
    return {name: value for name, value in (step.gradients or {}).items() if value is not None}


def total_norm(step: Step) -> float:
    """The norm of all gradients together."""
    return math.sqrt(sum(norm**2 for norm in step.norms.values() if norm is not None))


def _rates(participants: Participants, label: str, steps_of: tuple[Step, Step]) -> tuple[float, float]:
    """The learning rate that either side says it updated a tensor with."""
    number = 0 if participants.recipe is None else participants.recipe.group_of(participants.owners.get(label, label))
    ours, theirs = (step.rates[min(number, len(step.rates) - 1)] for step in steps_of)
    return ours, theirs


def _starts(participants: Participants, state: TrainerState) -> dict[str, tuple[dict[str, Floats], int]]:
    """Slots of each tensor, and which update of it comes next."""
    slots = {slot: participants.link.labelled(tensors) for slot, tensors in state.slots.items()}
    return {
        label: (
            {slot: held[label].astype(np.float64) for slot, held in slots.items() if label in held},
            state.updates.get(owner, 0) + 1,
        )
        for label, owner in participants.owners.items()
    }


def _norm(value: NDArray) -> float:
    return (
        distance(value, np.zeros((), value.dtype))
        if value.shape == ()
        else float(np.linalg.norm(value.astype(np.float64).ravel()))
    )
