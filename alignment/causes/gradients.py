"""Gradients that are wrong though the forward pass is right.

Three instruments prove a cause. A relation of the candidate's gradient to the reference's (a factor, an offset, a
transpose) is undone. An identity says what the gradient must be: a Linear's weight gradient is ∂yᵀx and its bias
gradient Σ ∂y over rows, in each of its uses. And the candidate's own forward pass is differentiated numerically: where
that gives the reference's gradient, forward is right and backward is not its derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

import checkpoints
from alignment.causes.suspect import Cause, Suspect, Trial, relative
from alignment.correspondence import path_of
from alignment.localise import FORWARD, Scene
from alignment.trace import GRADIENT_OF, Kind, Trace
from checkpoints import Slot

Array = NDArray

PARAMETERS = ("gradient",)
FLOWING = tuple(GRADIENT_OF.values())
ALL = (*PARAMETERS, *FLOWING)

# Two float64 numbers closer than this, relatively, are one number with rounding.
SAME = 1e-7
# How well central differences of fourth order must meet a derivative.
DERIVATIVE = 1e-6
# Most uses of one parameter that are told apart.
MOST_USES = 64

FORWARD_OF: dict[str, Kind] = {gradient: flow for flow, gradient in GRADIENT_OF.items()}


def is_round(value: float, digits: int = 2, within: float = SAME) -> bool:
    """Is it a number that people write down: one of so many significant digits?"""
    value = abs(value)
    if not 0.0 < value < math.inf:
        return False
    return abs(value - float(f"{value:.{digits - 1}e}")) <= within * value


def factor_of(candidate: Array, reference: Array) -> float | None:
    """The number that one array is of the other, where it is one number throughout."""
    if candidate.shape != reference.shape or not reference.any():
        return None
    one, two = candidate.ravel(), reference.ravel()
    factor = float(one @ two) / float(two @ two)
    return factor if factor and relative(one, factor * two) <= SAME * abs(factor) else None


def counts(suspect: Suspect) -> dict[str, int]:
    """Numbers that a mean may divide by."""
    first = next(iter(suspect.scene.batch.inputs.values()))
    found = {} if suspect.targets is None else {"targets": int(suspect.targets.size)}
    return found | {"rows of the batch": len(first), "positions of the batch": int(first.size)}


@dataclass(frozen=True)
class Elsewhere:
    """The same record in another batch, of another size."""

    counts: dict[str, int]
    reference: Array
    candidate: Array


def elsewhere(suspect: Suspect) -> Iterator[Elsewhere]:
    """The suspect in the other batches of the check whose size differs."""
    scene, here = suspect.scene, suspect.scene.batch
    for batch in scene.experiment.batches:
        sizes = [None if one.targets is None else one.targets.size for one in (batch, here)]
        if sizes[0] is None or sizes[0] == sizes[1]:
            continue
        other = Scene(scene.experiment, scene.weights, batch, scene.dtype)
        reference = other.reference64.get(suspect.root.kind, suspect.name)
        candidate = other.value(other.forced_run, suspect.root.kind, suspect.name)
        if reference is not None and candidate is not None and candidate.shape == reference.shape:
            first = next(iter(batch.inputs.values()))
            found = {"targets": int(sizes[0]), "rows of the batch": len(first), "positions of the batch": first.size}
            yield Elsewhere(found, np.float64(reference), np.float64(candidate))


# -------------------------------------------------------------------------------------------------- identities of layers


@dataclass(frozen=True)
class Use:
    """One use of a parameter, in words, and what it adds to the parameter's gradient."""

    name: str
    owner: str
    gradient: Array


def uses(suspect: Suspect) -> list[Use]:
    """Every use of the parameter on the reference side, where its gradient follows from what the trace holds.

    Empty where one of the uses is of a layer whose identity is not known.
    """
    found = []
    slots = _slots(suspect)
    names = {s.tied_to or s.name for s in slots if s.name == suspect.name}
    for slot in slots:
        if (slot.tied_to or slot.name) not in names:
            continue
        identity = IDENTITIES.get((slot.kind, slot.local))
        if identity is None:
            return []
        path = slot.name.rpartition(".")[0]
        trace = suspect.scene.reference64
        for label in trace.names("activation gradient"):
            given, gradient = trace.get("input", label), trace.get("activation gradient", label)
            if path_of(label) == path and given is not None and gradient is not None:
                found.append(Use(label, path, identity(given, np.float64(gradient), suspect.reference.shape)))
    return found


def _slots(suspect: Suspect) -> tuple[Slot, ...]:
    return suspect.scene.experiment.slots


def linear_weight(x: Array, dy: Array, _shape: tuple[int, ...]) -> Array:
    """∂W = ∂yᵀx over all rows."""
    return dy.reshape(-1, dy.shape[-1]).T @ np.float64(x).reshape(-1, x.shape[-1])


def linear_bias(_x: Array, dy: Array, _shape: tuple[int, ...]) -> Array:
    """∂b = Σ ∂y over all rows."""
    return dy.reshape(-1, dy.shape[-1]).sum(0)


def embedding_weight(ids: Array, dy: Array, shape: tuple[int, ...]) -> Array:
    """Each row of the table gets the sum of the gradients of where it was looked up."""
    gradient = np.zeros(shape)
    np.add.at(gradient, ids.astype(np.int64).ravel(), dy.reshape(-1, shape[-1]))
    return gradient


IDENTITIES: dict[tuple[str, str], Callable[[Array, Array, tuple[int, ...]], Array]] = {
    ("Linear", "weight"): linear_weight,
    ("Linear", "bias"): linear_bias,
    ("Embedding", "weight"): embedding_weight,
}


# ------------------------------------------------------------------------------------------------ numerical derivatives


def derivatives(suspect: Suspect, directions: list[Array]) -> list[float] | None:
    """Derivatives of the candidate's own forward pass with respect to this tensor, weighted by the reference's gradients.

    The tensor is moved a little both ways, twice (Richardson's extrapolation: the error is of fourth order); what the
    candidate then computes from it, up to the next values it is given, is weighted by the loss's gradient with respect
    to them. Always in float64. None where the candidate can't be run again.
    """
    scene = suspect.scene
    if not scene.live:
        return None
    if scene.dtype != "float64":
        scene = Scene(scene.experiment, scene.weights, scene.batch, "float64")
    value = _moved_tensor(suspect, scene)
    if value is None or value.shape != suspect.reference.shape:
        return None
    size = max(float(np.linalg.norm(value)), 0.1 * math.sqrt(value.size))
    found = []
    for direction in directions:
        # As float32, in which weights are converted.
        way = direction.astype(np.float32)
        step = 2e-3 * size / float(np.linalg.norm(direction))
        wide, narrow = (_difference(suspect, scene, value, way, h) / (2 * h) for h in (step, step / 2))
        found.append((4 * narrow - wide) / 3)
    return found


def _moved_tensor(suspect: Suspect, scene: Scene) -> Array | None:
    if suspect.record == "gradient":
        value = scene.state.get(suspect.name)
    else:
        value = scene.reference64.get(FORWARD_OF[suspect.record], suspect.name)
    return None if value is None or value.dtype.kind != "f" else np.float64(value)


def _difference(suspect: Suspect, scene: Scene, value: Array, way: Array, step: float) -> float:
    """What moving the tensor up by a step makes different from moving it down, weighted by the reference's gradients."""
    if suspect.record == "gradient":
        up, down = (_run_with(suspect, scene, way, sign * step) for sign in (1, -1))
    else:
        key = FORWARD_OF[suspect.record], suspect.name
        up, down = (scene.forced(given={key: value + sign * step * np.float64(way)}) for sign in (1, -1))
    total = 0.0
    for record in scene.reference64.records:
        if record.kind not in FORWARD and record.kind != "loss":
            continue
        flow = GRADIENT_OF.get(record.kind)
        seed = np.float64(1.0) if flow is None else scene.reference64.get(flow, record.name)
        one, two = (scene.value(trace, record.kind, record.name) for trace in (up, down))
        moved_itself = flow == suspect.record and record.name == suspect.name
        if seed is None or one is None or two is None or one.dtype.kind != "f" or moved_itself:
            continue
        if one.shape == two.shape and seed.shape in ((), one.shape):
            total += float((seed * (np.float64(one) - np.float64(two))).sum())
    return total


def _run_with(suspect: Suspect, scene: Scene, way: Array, step: float) -> Trace:
    """A forced run of the candidate with one parameter, under all of its names, moved."""
    experiment, model = scene.experiment, scene.model("candidate")
    assert experiment.layout is not None
    tied = {s.tied_to or s.name for s in _slots(suspect) if s.name == suspect.name}
    names = [s.name for s in _slots(suspect) if (s.tied_to or s.name) in tied and s.name in scene.moves]
    state = experiment.converted(checkpoints.join(scene.state, experiment.layout))
    # All but this one at rest: a tensor of the candidate's may hold others beside it.
    still = {name: np.zeros_like(value) for name, value in scene.state.items()}
    ways = checkpoints.join({**still, **dict.fromkeys(names, way)}, experiment.layout)
    ways = checkpoints.convert(ways, experiment.layout)
    for target, moving in ways.items():
        if moving.any():
            state[target] = np.float64(state[target]) + step * np.float64(moving)
    try:
        experiment.candidate.load_state(model, state)
        return scene.run("candidate", forced=scene.given)
    finally:
        scene.load("candidate", model, scene.state)


def _by_derivative(suspect: Suspect, change: str) -> Iterator[Trial]:
    """Proof that the candidate's forward pass has the reference's gradient, whatever its backward pass gives."""
    reference = suspect.reference
    norm = float(np.linalg.norm(reference))
    if not norm:
        return
    rng = np.random.default_rng(0)
    directions = [reference / norm, *(rng.standard_normal(reference.shape) for _ in range(2))]
    directions = [np.float64(way.astype(np.float32)) for way in directions]
    measured = derivatives(suspect, directions)
    if measured is None:
        return
    errors = [one - float((reference * way).sum()) for one, way in zip(measured, directions, strict=True)]
    after = math.sqrt(sum(error**2 for error in errors) / len(errors)) / norm
    candidate = suspect.candidate
    given = np.zeros_like(reference) if candidate is None or candidate.shape != reference.shape else candidate
    before = relative(given, reference)
    yield Trial(change, before, after, after <= DERIVATIVE and after <= 0.01 * before)


# ------------------------------------------------------------------------------------------------------- what is missing


def _graph_cut(suspect: Suspect) -> Iterator[Trial]:
    if suspect.candidate is None and suspect.reference.any():
        yield from _by_derivative(
            suspect,
            "the candidate has no gradient here; differentiating its own forward pass numerically, which depends on "
            "this tensor as the reference's does",
        )


def _gradient_zero(suspect: Suspect) -> Iterator[Trial]:
    if suspect.candidate is not None and suspect.reference.any() and not suspect.candidate.any():
        yield from _by_derivative(
            suspect,
            "the candidate's gradient is zero throughout; differentiating its own forward pass numerically, which "
            "depends on this tensor as the reference's does",
        )


def _missing_uses(suspect: Suspect, detached: bool) -> Iterator[Trial]:
    """The candidate's gradient is that of some of the parameter's uses; the others' are added."""
    candidate, found = suspect.candidate, uses(suspect)
    if candidate is None or candidate.shape != suspect.reference.shape or not 2 <= len(found) <= MOST_USES:
        return
    table = np.stack([use.gradient.ravel() for use in found], axis=1)
    if np.linalg.matrix_rank(table) < len(found):
        return
    parts = np.linalg.lstsq(table, candidate.ravel(), rcond=None)[0]
    kept = [round(float(part)) for part in parts]
    if np.abs(parts - kept).max() > 1e-5 or sorted(set(kept)) != [0, 1]:
        return
    missing = [use for use, part in zip(found, kept, strict=True) if part == 0]
    # A tie that the candidate keeps, and another module that does not train by it: there its value is used alone.
    others = any(use.owner != suspect.owner for use in missing)
    if (others and _tied_on_the_candidate(suspect)) != detached:
        return
    change = "adding the gradient of what the candidate's leaves out: " + ", ".join(use.name for use in missing)
    yield from suspect.trial(change, candidate + sum(use.gradient for use in missing))


def _tied_on_the_candidate(suspect: Suspect) -> bool:
    """Does the candidate hold further names of this parameter, as the reference does?"""
    experiment, moves = suspect.scene.experiment, suspect.scene.moves
    here = [s.name for s in _slots(suspect) if s.tied_to == suspect.name and s.name in moves]
    tied = {s.name: s.tied_to for s in experiment.candidate.slots(experiment.candidate_model)}
    return bool(here) and all(tied.get(moves[name].target) is not None for name in here)


def _padding_row(suspect: Suspect, trains: bool) -> Iterator[Trial]:
    """One row of an embedding trains on one side only, and all else is equal."""
    candidate, reference = suspect.candidate, suspect.reference
    if candidate is None or candidate.shape != reference.shape or reference.ndim != 2:
        return
    slot = next((s for s in _slots(suspect) if s.name == suspect.name), None)
    if slot is None or slot.kind != "Embedding":
        return
    row = suspect.options("reference").get("padding_idx")
    for here in dict.fromkeys((suspect.padding() if row is None else int(row), 0)):
        if (
            not 0 <= here < len(reference)
            or bool(candidate[here].any()) != trains
            or bool(reference[here].any()) == trains
        ):
            continue
        corrected = candidate.copy()
        if trains:
            corrected[here] = 0.0
            yield from suspect.trial(f"leaving row {here}, which is padding, without a gradient", corrected)
        elif found := uses(suspect):
            corrected[here] = sum(use.gradient for use in found)[here]  # type: ignore[index]
            yield from suspect.trial(f"summing the gradients of where row {here} was looked up", corrected)


# ---------------------------------------------------------------------------------------------------------- wrong places


def _stale_bias(suspect: Suspect) -> Iterator[Trial]:
    """A bias gradient of 1/B in every entry, where B terms make the mean that is the loss."""
    value = _one_value(suspect)
    if value is None:
        return
    for what, count in counts(suspect).items():
        if abs(value * count - 1.0) <= 1e-6 and count > 1:
            said = f"{value:.6g} in every entry is 1/{count}: with {count} {what} it is what the mean hands to each "
            said += "per-sample loss, an upstream gradient in the wrong place"
            yield from _by_rows(suspect, said)
            return


def _constant_bias(suspect: Suspect) -> Iterator[Trial]:
    value = _one_value(suspect)
    if value is not None and not _is_zero(suspect) and not any(trial.proved for trial in _stale_bias(suspect)):
        yield from _by_rows(suspect, f"the candidate has {value:.6g} in every entry")


def _one_value(suspect: Suspect) -> float | None:
    """The value of a bias gradient that is the same in every entry, where the reference's is not."""
    candidate, reference = suspect.candidate, suspect.reference
    if candidate is None or candidate.shape != reference.shape or reference.ndim != 1 or reference.size < 2:
        return None
    value = float(candidate[0])
    if not value or not np.isfinite(candidate).all() or np.ptp(candidate) > SAME * abs(value):
        return None
    if np.ptp(reference) <= 1e-3 * np.abs(reference).max():
        return None
    return value


def _by_rows(suspect: Suspect, said: str) -> Iterator[Trial]:
    """The sum over rows of the output's gradient: the candidate's own where it made one, else what it was given."""
    trace, total = suspect.scene.forced_run, np.zeros_like(suspect.reference)
    source = "the candidate's own"
    labels = [
        label for label in suspect.scene.reference64.names("activation gradient") if path_of(label) == suspect.owner
    ]
    for label in labels:
        own = trace.get("activation gradient", label)
        if own is None:
            own, source = suspect.scene.reference64.get("activation gradient", label), "the"
        if own is None or own.shape[-1:] != total.shape:
            return
        total = total + linear_bias(own, np.float64(own), total.shape)
    if labels:
        yield from suspect.trial(f"{said}; summing {source} gradient of {suspect.owner}'s output over its rows", total)


def _transposed(suspect: Suspect) -> Iterator[Trial]:
    candidate = suspect.candidate
    if candidate is None or candidate.ndim != 2 or candidate.shape[0] != candidate.shape[1] or len(candidate) < 2:
        return
    if relative(candidate.T, suspect.reference) <= 1e-3:
        yield from suspect.trial("transposing the gradient", candidate.T)


def _max_ties(suspect: Suspect) -> Iterator[Trial]:
    """The gradient of a maximum goes to other entries among those that share it."""
    candidate, reference = suspect.candidate, suspect.reference
    if candidate is None or candidate.shape != reference.shape or not candidate.ndim:
        return
    value = _moved_tensor(suspect, suspect.scene)
    if value is None or value.shape != reference.shape:
        return
    for axis in range(value.ndim):
        for what, best in (("maximum", value.max), ("minimum", value.min)):
            ties = value == best(axis=axis, keepdims=True)
            many = ties.sum(axis, keepdims=True)
            differs = ~np.isclose(candidate, reference, rtol=SAME, atol=0.0)
            if not (many > 1).any() or (differs & ~(ties & (many > 1))).any() or reference[~ties].any():
                continue
            total = candidate.sum(axis, keepdims=True)
            order = np.cumsum(ties, axis)
            shares = {
                "the first of": ties & (order == 1),
                "the last of": ties & (order == many),
                "every one of": ties / many,
            }
            if all(relative(share * total, candidate) > SAME for share in shares.values()):
                continue
            for who, share in shares.items():
                if relative(share * total, reference) <= SAME:
                    change = f"giving the gradient of a {what} over axis {axis} to {who} the entries that share it"
                    yield from suspect.trial(change, share * total)
                    return


# ------------------------------------------------------------------------------------------------------------- relations


def _factor(suspect: Suspect) -> float | None:
    candidate, reference = suspect.candidate, suspect.reference
    if candidate is None or reference.size < 2 or _is_zero(suspect):
        return None
    factor = factor_of(candidate, reference)
    return None if factor is None or abs(factor - 1.0) <= 1e-12 else factor


def _is_zero(suspect: Suspect) -> bool:
    """Is the reference's gradient only rounding of a zero? Then it is a multiple of nothing."""
    return suspect.scene.judge(suspect.root.kind, suspect.name, np.zeros_like(suspect.reference)).verdict == "aligned"


def _undone(suspect: Suspect, factor: float, said: str) -> Iterator[Trial]:
    assert suspect.candidate is not None
    yield from suspect.trial(said, suspect.candidate / factor)


def _sign(suspect: Suspect) -> Iterator[Trial]:
    factor = _factor(suspect)
    if factor is not None and abs(factor + 1.0) <= SAME:
        yield from _undone(suspect, -1.0, "changing the sign of the gradient")


def _clipped(suspect: Suspect) -> Iterator[Trial]:
    """Clipping to a norm that somebody wrote down, or to a largest value that some entries have and the others keep below."""
    factor, candidate, reference = _factor(suspect), suspect.candidate, suspect.reference
    if candidate is None or candidate.shape != reference.shape:
        return
    if factor is not None:
        norm = float(np.linalg.norm(reference))
        # torch's clip_grad_norm_ adds 1e-6 to the norm it divides by.
        for bound in (factor * norm, factor * (norm + 1e-6)):
            if 0.0 < factor < 1.0 and is_round(bound) and not is_round(factor, 3):
                said = f"the candidate's norm is {bound:.2g}, the reference's {norm:.4g}: undoing the clipping to {bound:.2g}"
                yield from _undone(suspect, factor, said)
                return
    bound = float(np.abs(candidate).max(initial=0.0))
    cut = np.abs(reference) > bound * (1.0 + SAME)
    kept = ~cut & (reference != 0.0)
    if bound and kept.any() and (cut.sum() >= 2 or (cut.any() and is_round(bound))):
        clipped = np.clip(reference, -bound, bound)
        if relative(candidate, clipped) > 1e-3:
            return
        yield from suspect.trial(
            f"undoing the clipping of every entry to ±{bound:.4g}", candidate - clipped + reference
        )


def _of_the_sum(suspect: Suspect) -> Iterator[Trial]:
    """A factor that is a size of the batch, here and in a batch of another size."""
    factor = _factor(suspect)
    if factor is None:
        return
    for what, count in counts(suspect).items():
        for power, said in ((1, "the sum"), (-1, "the mean of the mean")):
            if count < 2 or abs(factor / count**power - 1.0) > SAME:
                continue
            for other in elsewhere(suspect):
                there = factor_of(other.candidate, other.reference)
                if there is None or abs(there / other.counts[what] ** power - 1.0) > SAME:
                    return
                times = "divided" if power == 1 else "multiplied"
                change = f"the gradient is that of {said}: {times} by the {count} {what}"
                change += f" ({other.counts[what]} in another batch, where it is the factor, too)"
                yield from _undone(suspect, factor, change)
                return


def _scaled(suspect: Suspect) -> Iterator[Trial]:
    factor = _factor(suspect)
    if factor is not None and not _explained(suspect, (SIGN, CLIPPED, OF_THE_SUM)):
        yield from _undone(suspect, factor, f"dividing the gradient by {factor:.6g}")


def _offset(suspect: Suspect) -> Iterator[Trial]:
    """The same number is added to every entry."""
    candidate, reference = suspect.candidate, suspect.reference
    if candidate is None or candidate.shape != reference.shape:
        return
    difference = candidate - reference
    offset = float(difference.mean()) if difference.size else 0.0
    # Cancellation leaves of a small offset of a large gradient only what its rounding does not hide.
    slack = SAME * abs(offset) + 1e-15 * float(np.abs(reference).max(initial=0.0))
    if not offset or np.ptp(difference) > slack or (difference.size == 1 and not is_round(offset, within=1e-6)):
        return
    if not _explained(suspect, (STALE_BIAS, SIGN)):
        yield from suspect.trial(f"taking {offset:.4g} away from every entry of the gradient", candidate - offset)


def _not_the_derivative(suspect: Suspect) -> Iterator[Trial]:
    candidate = suspect.candidate
    if candidate is not None and candidate.any() and not _explained(suspect, (*SPECIFIC, *RELATIONS)):
        yield from _by_derivative(suspect, "differentiating the candidate's own forward pass numerically")


def _explained(suspect: Suspect, causes: tuple[Cause, ...]) -> bool:
    return any(t.proved for c in causes if suspect.record in c.records for t in c.test(suspect))


# ------------------------------------------------------------------------------------------- what the reference leaves out


@dataclass(frozen=True, eq=False)
class CutSuspect:
    """A parameter's gradient on both sides, each side's own, and the derivative of the reference's own loss beside them.

    reference, candidate: None where that side has none. directions: of the parameter; slopes: the loss's derivative along
    each, by central differences of fourth order. All in float64.
    """

    record: str
    name: str
    reference: Array | None
    candidate: Array | None
    directions: tuple[Array, ...]
    slopes: tuple[float, ...]


def _reference_cut(suspect: CutSuspect, whole: bool) -> Iterator[Trial]:
    """The reference's loss has the candidate's gradient for its derivative, and not the reference's."""
    ours, theirs = suspect.reference, suspect.candidate
    if theirs is None or not theirs.any() or (ours is None or not ours.any()) != whole:
        return
    before, after = (
        math.sqrt(
            sum(
                (slope - (0.0 if gradient is None else float((gradient * way).sum()))) ** 2
                for way, slope in zip(suspect.directions, suspect.slopes, strict=True)
            )
            / len(suspect.slopes)
        )
        / float(np.linalg.norm(theirs))
        for gradient in (ours, theirs)
    )
    which = "it has none there" if ours is None else "the reference's own is off by as much as is said first"
    change = f"differentiating the reference's own loss numerically, which gives the candidate's gradient ({which})"
    yield Trial(change, before, after, after <= DERIVATIVE and after <= 0.01 * before, "distance from the derivative")


# ------------------------------------------------------------------------------------------------------------- the table

STALE_BIAS = Cause(
    "stale-bias-gradient",
    "the bias gets what the mean hands to each per-sample loss as its gradient, in every entry",
    "report it to the framework with these numbers, and train with a version whose bias gradient is the sum over rows",
    PARAMETERS,
    _stale_bias,
)
SIGN = Cause("gradient-sign", "the gradient has the wrong sign", "look for a negated term or hook", ALL, _sign)
CLIPPED = Cause(
    "gradient-clipped",
    "the gradient is clipped on one side only",
    "take the clipping away (the optimizer's grad_clip=, a hook), or give both sides the same",
    ALL,
    _clipped,
)
OF_THE_SUM = Cause(
    "gradient-reduction",
    "the gradient is that of a sum over the batch where the reference's is that of a mean, or the other way round",
    "reduce what the backward pass starts from as the reference does",
    ALL,
    _of_the_sum,
)

SPECIFIC: tuple[Cause, ...] = (
    Cause(
        "graph-cut",
        "the value leaves the graph (.numpy(), to_tensor, detach), so that nothing before it trains",
        "compute with tensors throughout; list the parameters without a gradient after the first backward pass",
        ALL,
        _graph_cut,
    ),
    Cause(
        "gradient-zero",
        "the gradient is zero although the loss depends on the tensor",
        "look for a hook or a custom backward pass that returns zeros",
        ALL,
        _gradient_zero,
    ),
    STALE_BIAS,
    Cause(
        "bias-gradient-constant",
        "the bias's gradient is one number in every entry",
        "look for a hook or a custom backward pass that reduces over the wrong axes",
        PARAMETERS,
        _constant_bias,
    ),
    Cause(
        "tie-detached",
        "a tied weight is used without training it in one of its places",
        "use the parameter itself in every place, without detach()",
        PARAMETERS,
        partial(_missing_uses, detached=True),
    ),
    Cause(
        "tie-lost",
        "one parameter is used in several places, and the candidate trains it for some of them only",
        "share the parameter, not its values",
        PARAMETERS,
        partial(_missing_uses, detached=False),
    ),
    Cause(
        "weight-gradient-transposed",
        "the gradient of a square weight is transposed",
        "transpose it where it is made: a layout was mixed up in a custom backward pass or an exchange of gradients",
        PARAMETERS,
        _transposed,
    ),
    Cause(
        "embedding-padding-gradient",
        "the padding row of an embedding trains although it must not",
        "pass padding_idx= to the lookup",
        PARAMETERS,
        partial(_padding_row, trains=True),
    ),
    Cause(
        "embedding-padding-frozen",
        "one row of an embedding does not train although it is an ordinary one",
        "drop padding_idx= from the lookup",
        PARAMETERS,
        partial(_padding_row, trains=False),
    ),
    Cause(
        "max-ties",
        "where several entries share the maximum its gradient goes to others of them",
        "use paddle.compat.max(x, axis), which gives it to one as torch's max(dim) does (amax shares it out)",
        ALL,
        _max_ties,
    ),
)
RELATIONS: tuple[Cause, ...] = (
    SIGN,
    CLIPPED,
    OF_THE_SUM,
    Cause(
        "gradient-scaled",
        "the gradient is a constant multiple of the reference's",
        "look for a factor that acts on the way back only: x·a + x.detach()·(1−a), a hook, gradients that are not cleared",
        ALL,
        _scaled,
    ),
    Cause(
        "gradient-offset",
        "the same number is added to every entry of the gradient",
        "look for a hook or a regularizer that adds to the gradient",
        ALL,
        _offset,
    ),
)
CAUSES: tuple[Cause, ...] = (
    *SPECIFIC,
    *RELATIONS,
    Cause(
        "backward-not-derivative",
        "the forward pass is right, but the backward pass is not its derivative",
        "look for a custom backward pass, a hook or a detach() in this piece of code",
        ALL,
        _not_the_derivative,
    ),
)
CUTS: tuple[Cause, ...] = (
    Cause(
        "detach-missing",
        "the reference cuts the graph (detach, no_grad), so that nothing before it trains; the candidate does not",
        "cut it at the same place: x.detach() in Paddle, too",
        ("gradient",),
        partial(_reference_cut, whole=True),
    ),
    Cause(
        "detach-missing",
        "the reference cuts one of the ways from here to the loss (detach, a hook); the candidate cuts none",
        "cut it at the same place: x.detach() in Paddle, too",
        ("gradient",),
        partial(_reference_cut, whole=False),
    ),
)
