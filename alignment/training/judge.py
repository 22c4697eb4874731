"""What three curves say: a verdict for each learning rate, loss, gradient, update and trajectory of weights.

Re-synchronised, a step leaves two questions, each with an answer of its own: is the candidate's gradient the reference's
(float64 decides, as in stage 5), and does the candidate's update follow the recipe's formula given its own gradient?

Free-running, the candidate may be as far from the reference at step t as

    allowed(t) = MARGIN · (spread(t) + own(t) + FLOOR_ULPS · ε · ‖w(t)‖)

spread(t): the largest distance of any envelope run up to t. It holds what rounding in the reference becomes as training
goes on. own(t): the sum, up to t, of the distances of the re-synchronised candidate's steps that were found right. It holds
what the candidate's own rounding adds at every step, where that is worse than the reference's (bias gradients that Paddle
sums one after another, its float32 beta powers), or of another sign where the reference happens to be exact. A step that is
found wrong adds nothing, so that no mistake excuses itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alignment.compare import Verdict, settle
from alignment.report import NOTHING, StageResult, TensorResult, Track, Trajectory
from alignment.training.curves import FREE, MEMORY, SHADOW, SYNCED, Curves, Participants, is_wrong

Floats = NDArray[np.float64]

# On right twins no tensor was at any step farther than 2.2 times the sum (docs/trajectories.md).
MARGIN = 10.0
FLOOR_ULPS = 4.0
# The same for the loss, one number whose distance may be small by luck: the envelope up to two steps ahead counts, too, and
# where the weights may be farther than the envelope's, the loss may as well.
LOSS_ULPS, AHEAD = 16.0, 2
# Relative difference of two learning rates that are the same: they are float32 in some frameworks.
RATE = 1e-6
# Of a stage's number and name.
STEP, STAGE = 6, "training"


_FREE = "free-running, inside the envelope", "free-running, outside the envelope"


@dataclass(frozen=True)
class Judged:
    """A training's rows in order of dependency, its figures, and the first step of each row that is not aligned."""

    stage: StageResult
    trajectory: Trajectory
    since: dict[tuple[str, str], int]


def judge(curves: Curves, participants: Participants, targets: dict[str, str], recipe: str, dtype: str) -> Judged:
    """The verdict on all that was measured. targets: label -> the candidate's name."""
    since: dict[tuple[str, str], int] = {}
    if not curves.numbers:
        none: tuple[float, ...] = ()
        nothing = Trajectory(
            dtype, recipe, 0, curves.runs, none, none, none, none, none, none, (), none, none, none, none, none, (),
            single=curves.stopped,
        )  # fmt: skip
        return Judged(StageResult(STEP, STAGE, tuple(_stopped(curves))), nothing, since)
    trained = [label for label in curves.series if label in participants.owners]
    rows = [*_rates(curves, participants, since), _step_loss(curves, since)]
    gradients = [row for label in trained for row in _gradient(curves, label, targets[label], dtype, since)]
    known = participants.recipe is not None and all(
        max(curves.series[label].ours, default=0.0) <= 1.0 for label in trained
    )
    updates = [_update(curves, label, targets[label], dtype, known, since) for label in trained]
    allowed = {label: _allowed(curves, label, known) for label in trained}
    ways = [_trajectory(curves, label, targets[label], dtype, allowed[label], since) for label in trained]
    ways.sort(key=lambda row: (since.get(("trajectory", row.name), math.inf), -row.strain))
    loss, bound = _free_loss(curves, _widened(curves, trained, allowed), since)
    rows += [*gradients, *updates, *ways, loss, *_stopped(curves)]
    if not trained:
        rows.append(TensorResult("trajectory", NOTHING, NOTHING, None, "inconclusive", "no parameter is trained"))
    trajectory = _figures(curves, recipe, dtype, trained, allowed, bound, since)
    notes = _notes(curves, participants, trajectory, known)
    return Judged(StageResult(STEP, STAGE, tuple(_rooted(rows)), notes), trajectory, since)


# ---------------------------------------------------------------------------------------------------------------- rows


def _rates(curves: Curves, participants: Participants, since: dict[tuple[str, str], int]) -> Iterator[TensorResult]:
    """The learning rates that the free-running sides say they step with."""
    ours, theirs = curves.rates["reference"], curves.rates[FREE]
    names = ["learning rate"]
    if participants.recipe is not None:
        names += [f"learning rate of {group.pattern}" for group in participants.recipe.groups]
    counts = {len(rates) for rates in (*ours, *theirs)}
    if len(counts) != 1:
        reason = f"the sides have different numbers of learning rates: {len(ours[0])} and {len(theirs[0])}"
        yield TensorResult("rate", names[0], names[0], (), "diverged", reason, strain=math.inf)
        return
    for group, name in zip(range(counts.pop()), names, strict=False):
        one, two = (np.array([rates[group] for rates in side]) for side in (ours, theirs))
        off = np.abs(two - one) / np.maximum(np.abs(one), np.finfo(float).tiny)
        step = _first(off > RATE, curves.numbers)
        last = f"{one[0]:.6g}" if len(set(one)) == 1 else f"{one[0]:.6g} … {one[-1]:.6g}"
        reason = f"the same at every step: {last}"
        if step is not None:
            since["rate", name] = step
            at = curves.numbers.index(step)
            reason = (
                f"differs from step {step} on: the reference steps with {one[at]:.6g}, the candidate with {two[at]:.6g}"
            )
        yield TensorResult(
            "rate", name, name, (), "aligned" if step is None else "diverged", reason,
            float(np.abs(two - one).max()), seen=float(off.max()), allowed=RATE, strain=float(off.max() / RATE),
            decided_by="semantics", comparisons=len(one),
        )  # fmt: skip


def _step_loss(curves: Curves, since: dict[tuple[str, str], int]) -> TensorResult:
    """The loss from the same weights, step by step."""
    ours, theirs, shadow = (np.array(curves.losses[who]) for who in ("reference", SYNCED, SHADOW))
    with np.errstate(all="ignore"):
        off, noise = np.abs(theirs - ours), np.abs(shadow - ours)
        noise = np.array([np.max(noise[max(0, n - MEMORY) : n + MEMORY + 1]) for n in range(len(noise))])
        allowed = MARGIN * noise + LOSS_ULPS * curves.eps * np.abs(ours)
    said = "from the reference's weights, it is the reference's", "from the reference's weights, it is another"
    return _row("loss", "loss of a step", "loss of a step", (), curves, off, allowed, since, said)


def _gradient(
    curves: Curves, label: str, target: str, dtype: str, since: dict[tuple[str, str], int]
) -> Iterator[TensorResult]:
    series = curves.series[label]
    if not any(series.size) and not series.missing:
        reason = "unused, by no path from the loss"
        yield TensorResult("gradient", label, target, series.shape, "aligned", reason)
        return
    wrong = [number for number in curves.numbers if is_wrong(series, number)]
    settled = settle([comparison for _, comparison in series.measured])
    said = dict(zip([number for number, _ in series.measured], settled, strict=True))
    wrong = sorted({*wrong, *(number for number, comparison in said.items() if comparison.verdict == "diverged")})
    comparisons = len(curves.numbers)
    if not wrong:
        strain = max((comparison.strain for comparison in settled), default=0.0)
        looked = f", {len(settled)} of them in float64" if settled else ""
        reason = f"from the reference's weights, it is the reference's at all {len(curves.numbers)} steps{looked}"
        yield TensorResult(
            "gradient",
            label,
            target,
            series.shape,
            "aligned",
            reason,
            strain=strain,
            dtype=dtype,
            comparisons=comparisons,
        )
        return
    first, worst = wrong[0], said.get(wrong[0])
    since["gradient", label] = first
    at = curves.numbers.index(first)
    rel = series.gradient[at] / series.size[at] if series.size[at] else math.inf
    if first in series.missing:
        why = "one side alone has a gradient"
    elif worst is not None and worst.verdict == "diverged":
        why = worst.reason
    else:
        why = f"the reference's own noise is {_share(series.noise[at], series.size[at])} of it"
    yield TensorResult(
        "gradient", label, target, series.shape, "diverged",
        f"from the reference's weights, wrong from step {first} on (relative L2 {rel:.2g}): {why}",
        rel_l2=rel, seen=worst.seen if worst else series.gradient[at], allowed=worst.allowed if worst else None,
        max_abs=worst.max_abs if worst else None, worst_index=worst.worst_index if worst else None,
        error_ratio=worst.error_ratio if worst else None, strain=worst.strain if worst else math.inf,
        dtype=worst.dtype if worst and worst.dtype else dtype, decided_by="semantics",
        batch=f"step {first}", comparisons=comparisons,
    )  # fmt: skip


def _update(
    curves: Curves, label: str, target: str, dtype: str, known: bool, since: dict[tuple[str, str], int]
) -> TensorResult:
    series = curves.series[label]
    if known:
        seen, allowed = np.array(series.excess), np.ones(len(series.excess))
        said = (
            "given its own gradient, by the recipe's formula",
            "given its own gradient, off the recipe's formula (seen in units of rounding),",
        )
    else:
        noise = np.array(series.update_noise)
        noise = np.array([np.max(noise[max(0, n - MEMORY) : n + MEMORY + 1]) for n in range(len(noise))])
        seen, allowed = np.array(series.update), MARGIN * noise
        said = (
            "as near to the reference's as its own noise explains (no formula is known),",
            "farther from the reference's than its own noise explains (no formula is known),",
        )
    row = _row("update", label, target, series.shape, curves, seen, allowed, since, said)
    at = curves.numbers.index(since["update", label]) if ("update", label) in since else 0
    size = series.update_size[at]
    return replace(row, dtype=dtype, rel_l2=series.update[at] / size if size else None)


def _allowed(curves: Curves, label: str, known: bool) -> Floats:
    """How far the free-running weights may be apart, at each step that was looked at."""
    series = curves.series[label]
    right = [
        known_step <= 1.0 and not is_wrong(series, number)
        for known_step, number in zip(
            series.excess if known else [0.0] * len(series.update), curves.numbers, strict=True
        )
    ]
    for group, _ in enumerate(curves.rates["reference"][0]):
        for place, (one, two) in enumerate(zip(curves.rates["reference"], curves.rates[SYNCED], strict=True)):
            same = len(one) == len(two) and abs(two[group] - one[group]) <= RATE * abs(one[group])
            right[place] = right[place] and same
    own = np.cumsum(np.where(right, series.update, 0.0))
    places = [curves.numbers.index(number) for number in curves.at]
    spread = np.maximum.accumulate(np.max(np.array(series.spread).reshape(len(places), -1), axis=1, initial=0.0))
    return np.asarray(MARGIN * (spread + own[places] + FLOOR_ULPS * curves.eps * np.array(series.norm)))


def _trajectory(
    curves: Curves, label: str, target: str, dtype: str, allowed: Floats, since: dict[tuple[str, str], int]
) -> TensorResult:
    series = curves.series[label]
    row = _row(
        "trajectory",
        label,
        target,
        series.shape,
        curves,
        np.array(series.apart),
        allowed,
        since,
        _FREE,
        curves.at,
    )
    last = series.apart[-1] / series.norm[-1] if series.norm and series.norm[-1] else None
    return replace(row, dtype=dtype, rel_l2=last)


def _widened(curves: Curves, trained: list[str], allowed: dict[str, Floats]) -> Floats:
    """How many times farther than the envelope's runs the weights may be, at each step: as far may the loss be."""
    if not trained:
        return np.ones(len(curves.numbers))
    norm = _together(curves, trained, "norm")
    spread, every = _spread(curves, trained), np.sqrt(sum(np.square(allowed[label]) for label in trained))
    share = every / (MARGIN * np.maximum(spread, curves.eps * norm))
    return np.asarray(np.interp(curves.numbers, curves.at, np.maximum.accumulate(np.maximum(share, 1.0))))


def _free_loss(
    curves: Curves, widened: Floats, since: dict[tuple[str, str], int]
) -> tuple[TensorResult, tuple[Floats, Floats]]:
    ours, theirs = (np.array(curves.losses[who]) for who in ("reference", FREE))
    with np.errstate(all="ignore"):
        runs = [np.abs(np.array(curves.losses[str(run)]) - ours) for run in range(1, curves.runs + 1)]
        reached = np.maximum.accumulate(np.max([np.zeros(len(ours)), *runs], axis=0))
        ahead = np.array([reached[min(n + AHEAD, len(ours) - 1)] for n in range(len(ours))])
        unit = curves.eps * np.abs(ours)
        allowed = MARGIN * widened * np.maximum(ahead, unit) + LOSS_ULPS * unit
        off = np.abs(theirs - ours)
    return _row("loss", "loss", "loss", (), curves, off, allowed, since, _FREE), (reached, allowed)


def _row(
    record: str,
    label: str,
    target: str,
    shape: tuple[int, ...],
    curves: Curves,
    seen: Floats,
    allowed: Floats,
    since: dict[tuple[str, str], int],
    said: tuple[str, str],
    at: list[int] | None = None,
) -> TensorResult:
    """One row of figures that may not be larger than what is allowed, at any step. said: what they are, right and wrong."""
    numbers = curves.numbers if at is None else at
    with np.errstate(all="ignore"):
        bad = ~(seen <= allowed)
        strain = np.where(seen == 0.0, 0.0, np.where(bad & ~np.isfinite(seen), np.inf, seen / allowed))
    step, worst = _first(bad, numbers), int(np.argmax(np.nan_to_num(strain, nan=np.inf)))
    where = worst
    reason = f"{said[0]} at all {len(numbers)} steps, nearest to the limit at step {numbers[worst]}"
    if step is not None:
        since[record, label] = step
        where = numbers.index(step)
        reason = f"{said[1]} from step {step} on, at {int(bad.sum())} of {len(numbers)} steps"
    return TensorResult(
        record, label, target, shape, "aligned" if step is None else "diverged", reason,
        seen=float(seen[where]), allowed=float(allowed[where]), strain=float(np.nan_to_num(strain[worst], nan=np.inf)),
        decided_by="precision", batch=f"step {numbers[where]}", comparisons=len(numbers),
    )  # fmt: skip


def _stopped(curves: Curves) -> Iterator[TensorResult]:
    """A loss that is no number on both sides is no agreement."""
    if curves.stopped:
        verdict: Verdict = "inconclusive" if "both" in curves.stopped else "diverged"
        reason = f"{curves.stopped}; nothing was compared after it"
        yield TensorResult("loss", "finite loss", "finite loss", (), verdict, reason, strain=math.inf)


def _rooted(rows: Iterable[TensorResult]) -> list[TensorResult]:
    """The rows with the divergences marked that start by themselves.

    A rate and an update given its own gradient start by themselves; a gradient where the loss of the same weights agrees; a
    free-running curve where no single step is wrong.
    """
    rows = list(rows)
    bad = {(row.record, row.name) for row in rows if row.verdict == "diverged"}
    forward = ("loss", "loss of a step") in bad
    steps = forward or any(record in ("rate", "gradient", "update") for record, _ in bad)

    ways = any(record == "trajectory" for record, _ in bad)

    def starts(row: TensorResult) -> bool:
        if row.record == "gradient":
            return not forward
        if row.record in ("rate", "update") or row.name == "loss of a step":
            return True
        return not steps and (row.record == "trajectory" or not ways)

    return [replace(row, root=starts(row)) if row.verdict == "diverged" else row for row in rows]


# -------------------------------------------------------------------------------------------------------------- figures


def _figures(
    curves: Curves,
    recipe: str,
    dtype: str,
    trained: list[str],
    allowed: dict[str, Floats],
    bound: tuple[Floats, Floats],
    since: dict[tuple[str, str], int],
) -> Trajectory:
    together = {name: _together(curves, trained, name) for name in ("apart", "norm", "moved")}
    spread, every = _spread(curves, trained), np.zeros(len(curves.at))
    if trained:
        every = np.sqrt(sum(np.square(allowed[label]) for label in trained))
    norm = np.maximum(together["norm"], np.finfo(float).tiny)
    blind = _first(every >= together["moved"], curves.at) if trained else None
    if blind is not None and not (every >= together["moved"])[-1]:
        # Early on, weights have hardly moved; only what stays so says nothing.
        last = int(np.flatnonzero(~(every >= together["moved"]))[-1])
        blind = curves.at[last + 1] if last + 1 < len(curves.at) else None
    tracks = sorted((_track(curves, label, allowed[label], since) for label in trained), key=_order)
    errors = [np.sqrt(sum(np.square(np.array(getattr(curves.series[label], key))) for label in trained))
              for key in ("update", "update_noise", "update_size")] if trained else [np.zeros(0)] * 3  # fmt: skip
    size = np.maximum(errors[2], np.finfo(float).tiny)
    return Trajectory(
        dtype=dtype,
        recipe=recipe,
        steps=len(curves.numbers),
        runs=curves.runs,
        reference=tuple(curves.losses["reference"]),
        candidate=tuple(curves.losses[FREE]),
        loss_envelope=_floats(bound[0]),
        loss_allowed=_floats(bound[1]),
        reference_rates=tuple(rates[0] for rates in curves.rates["reference"]),
        candidate_rates=tuple(rates[0] for rates in curves.rates[FREE]),
        at=tuple(curves.at),
        apart=_floats(together["apart"] / norm),
        envelope=_floats(spread / norm),
        allowed=_floats(every / norm),
        step_error=_floats(errors[0] / size),
        step_noise=_floats(errors[1] / size),
        tracks=tuple(_lean(track, number) for number, track in enumerate(tracks)),
        single=_single_in_words(len(curves.numbers), since),
        first=_first_in_words(tracks, since),
        blind=blind,
    )


# Tensors whose whole curves are kept.
KEPT_TRACKS = 12


def _lean(track: Track, number: int) -> Track:
    return track if number < KEPT_TRACKS else replace(track, apart=(), allowed=())


def _order(track: Track) -> tuple[float, float]:
    return (math.inf if track.left is None else track.left, -track.strain)


def _together(curves: Curves, trained: list[str], key: str) -> Floats:
    parts = [np.square(np.array(getattr(curves.series[label], key))) for label in trained]
    return np.sqrt(np.sum(parts, axis=0)) if parts else np.zeros(len(curves.at))


def _spread(curves: Curves, trained: list[str]) -> Floats:
    """The largest distance of an envelope run up to each step that was looked at, of all weights together."""
    if not trained:
        return np.zeros(len(curves.at))
    squares = sum(np.square(np.array(curves.series[label].spread)) for label in trained)
    return np.asarray(np.maximum.accumulate(np.sqrt(np.max(squares, axis=1))))


def _track(curves: Curves, label: str, allowed: Floats, since: dict[tuple[str, str], int]) -> Track:
    series = curves.series[label]
    apart, norm = np.array(series.apart), np.maximum(np.array(series.norm), np.finfo(float).tiny)
    with np.errstate(all="ignore"):
        strain = np.nan_to_num(np.where(apart == 0.0, 0.0, apart / allowed), nan=np.inf)
    worst = int(np.argmax(strain))
    return Track(
        label,
        since.get(("trajectory", label)),
        float(strain[worst]),
        curves.at[worst],
        _floats(apart / norm),
        _floats(allowed / norm),
    )


def _first_in_words(tracks: list[Track], since: dict[tuple[str, str], int]) -> str:
    """What left the envelope first: the tensors of the first step at which one did, the farthest out foremost."""
    if not tracks or tracks[0].left is None:
        loss = since.get(("loss", "loss"))
        return "" if loss is None else f"the loss, at step {loss}"
    same = [track for track in tracks if track.left == tracks[0].left]
    more = f" and {len(same) - 1} more" if len(same) > 1 else ""
    return f"{same[0].name}{more}, at step {same[0].left}"


def _single_in_words(count: int, since: dict[tuple[str, str], int]) -> str:
    """What the re-synchronised steps say."""
    single = {key: step for key, step in since.items() if key[0] != "trajectory" and key != ("loss", "loss")}
    if not single:
        return "right, the one step" if count == 1 else f"right, all {count} steps"
    (record, name), step = min(single.items(), key=lambda item: item[1])
    label = name if name.startswith(record) or record in name else f"{record} {name}"
    more = f" and {len(single) - 1} more" if len(single) > 1 else ""
    return f"wrong from step {step} on: {label}{more}"


def _notes(curves: Curves, participants: Participants, trajectory: Trajectory, known: bool) -> tuple[str, ...]:
    notes = []
    moving = [
        label for label in participants.buffers if label in curves.series and any(curves.series[label].update_size)
    ]
    if moving:
        notes.append(f"running statistics are no part of this, align check --step 5 judges them: {', '.join(moving)}")
    if participants.recipe is not None and not known:
        notes.append("the reference itself does not step by the recipe's formula: updates are judged beside its noise")
    if trajectory.blind is not None:
        notes.append(
            f"{trajectory.dtype}: from step {trajectory.blind} on rounding alone explains a distance as large as the way the "
            "weights have gone; from there only single steps are judged"
        )
    return tuple(notes)


def _first(bad: NDArray[np.bool_], numbers: list[int]) -> int | None:
    places = np.flatnonzero(bad)
    return numbers[int(places[0])] if places.size else None


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.2g}" if whole else "∞"


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
