"""Losses that differ though both sides are given the same logits and targets.

A loss is a `Formula`: a kind and a few options. One formula gives the reference's value, another that differs from it in
one thing gives the candidate's: that one thing is the cause. Both values are numbers of sixteen digits, so that a formula
that fits by chance is out of the question where its options are written-down ones.

Sources: torch's and Paddle's documentation of cross_entropy, nll_loss and smooth_l1_loss; label smoothing is Szegedy et
al., arXiv 1512.00567, section 7; Huber's loss is smooth L1 (Girshick, arXiv 1504.08083) times its delta.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from alignment.causes.gradients import elsewhere, is_round
from alignment.causes.suspect import AMBIGUOUS, Cause, Suspect, Trial, relative

Array = NDArray

# How far a formula's value may lie from a side's, relatively, by the precision of the run.
FITS = {"float64": 1e-10, "float32": 2e-6}
# Where Paddle's cross entropy on a CPU stops: no probability counts as less than exp(-64).
CLIP = 64.0
# Logits of more numbers than this are not tried: each formula reads them all.
MOST = 20_000_000
# And of more than this only formulas that differ from the defaults in one option.
MANY = 1_000_000


@dataclass(frozen=True)
class Formula:
    """One way to compute a loss from logits (… × classes) and targets.

    kind: "ce" (cross entropy) or "smooth-l1" (of one-hot targets, or of targets as large as the logits).
    axis: where the classes are: "last"; "swapped" (the last two axes for each other) or "batch" (softmax over axis 0).
    softmaxes: how often the logits are put through softmax before the loss does it itself. base: of the logarithm.
    smoothing: share of the target spread over all classes. weight: name of the classes' weights, or None; by_sample: does
    each sample count by the weight of its whole target, where each class's part of it should count by its own?
    ignored: a class that counts for nothing, or "padding": positions of padding ids; None. clip: are losses clipped at 64?
    floor: added to a probability before its logarithm. beta: where smooth L1 turns; huber: times beta?
    divisor: what the sum is divided by: "terms" (all), "kept" (those not ignored), "weights" (their classes' weights),
    "rows" (of the batch), "one".
    """

    kind: str = "ce"
    axis: str = "last"
    softmaxes: int = 0
    base: float = math.e
    smoothing: float = 0.0
    weight: str | None = None
    by_sample: bool = False
    ignored: int | str | None = None
    clip: bool = False
    floor: float = 0.0
    beta: float = 1.0
    huber: bool = False
    divisor: str = "kept"


@dataclass(frozen=True)
class Given:
    """What a loss is computed from. weights: name -> weights of the classes; padding: positions of padding ids, or None."""

    logits: Array
    targets: Array
    weights: dict[str, Array]
    padding: Array | None


class Loss:
    """Values of formulas for given logits and targets; what several formulas share is computed once."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self._known: dict[Any, Any] = {}

    def value(self, formula: Formula) -> float | None:
        """The loss, or None where the formula has no meaning here."""
        with np.errstate(all="ignore"):
            if formula.kind == "smooth-l1":
                return self._smooth_l1(formula)
            return self._cross_entropy(formula)

    def _cross_entropy(self, formula: Formula) -> float | None:
        given = self.given
        if given.logits.shape[:-1] != given.targets.shape or given.targets.dtype.kind not in "iu":
            return None
        if formula.divisor == "rows" and given.targets.ndim < 2:
            return None  # that is all terms
        parts = self._parts(formula)
        if parts is None:
            return None
        picked, spread = parts
        if formula.clip:
            picked = np.minimum(picked, CLIP)
        terms = (1.0 - formula.smoothing) * picked + formula.smoothing * spread if formula.smoothing else picked
        if formula.by_sample:
            if formula.weight is None:
                return None
            terms = terms * self._sample_weights(formula, formula.weight)
        kept = self._kept(formula)
        if kept is None:
            return None
        total = float(terms[kept].sum()) / math.log(formula.base)
        count: float | None = {
            "one": 1.0,
            "rows": float(len(given.targets)) if given.targets.ndim else 1.0,
            "terms": float(kept.size),
            "kept": float(kept.sum()),
            "weights": self._weights_of_targets(formula, kept),
        }[formula.divisor]
        return total / count if count else None

    def _kept(self, formula: Formula) -> Array | None:
        targets = self.given.targets
        if formula.ignored == "padding":
            return None if self.given.padding is None else ~self.given.padding
        return np.ones(targets.shape, bool) if formula.ignored is None else targets != formula.ignored

    def _weights_of_targets(self, formula: Formula, kept: Array) -> float | None:
        """Σ over terms of the weights of the classes, each as likely as the target says."""
        return None if formula.weight is None else float(self._sample_weights(formula, formula.weight)[kept].sum())

    def _sample_weights(self, formula: Formula, name: str) -> Array:
        weights = self.given.weights[name]
        return weights[self.given.targets] * (1.0 - formula.smoothing) + formula.smoothing * weights.mean()

    def _parts(self, formula: Formula) -> tuple[Array, Array] | None:
        """For each target the loss of its class, and the mean loss of all classes."""
        key = formula.axis, formula.softmaxes, formula.floor, formula.weight, formula.by_sample
        if key not in self._known:
            self._known[key] = self._parts_anew(formula)
        return self._known[key]

    def _parts_anew(self, formula: Formula) -> tuple[Array, Array] | None:
        logits, targets = self.given.logits, self.given.targets
        if formula.axis == "swapped":
            if logits.ndim < 3 or logits.shape[-1] != logits.shape[-2]:
                return None
            logits = np.swapaxes(logits, -1, -2)
        over = 0 if formula.axis == "batch" else -1
        for _ in range(formula.softmaxes):
            logits = np.exp(log_softmax(logits, over))
        losses = -log_softmax(logits, over)
        if formula.floor:
            losses = -np.log(np.exp(-losses) + formula.floor)
        if formula.weight is not None and not formula.by_sample:
            losses = losses * self.given.weights[formula.weight]
        if targets.size and (targets.max() >= losses.shape[-1] or targets.min() < 0):
            return None
        return np.take_along_axis(losses, targets[..., None], -1)[..., 0], losses.mean(-1)

    def _smooth_l1(self, formula: Formula) -> float | None:
        logits, targets = self.given.logits, self.given.targets
        if targets.shape == logits.shape:
            wanted = np.float64(targets)
        elif targets.shape == logits.shape[:-1] and targets.dtype.kind in "iu":
            wanted = np.float64(targets[..., None] == np.arange(logits.shape[-1]))
        else:
            return None
        far, beta = np.abs(logits - wanted), formula.beta
        terms = np.where(far < beta, 0.5 * far**2 / beta, far - 0.5 * beta) * (beta if formula.huber else 1.0)
        count = {"one": 1.0, "rows": float(len(logits)), "terms": float(terms.size), "kept": float(terms.size)}
        return float(terms.sum()) / count[formula.divisor] if formula.divisor in count else None


# Options somebody may have set, by name. Weights and ignored classes depend on the model at hand.
SMOOTHINGS = tuple(round(0.01 * step, 2) for step in range(1, 51))
CHOICES: dict[str, tuple[Any, ...]] = {
    "axis": ("last", "swapped", "batch"),
    "softmaxes": (0, 1),
    "base": (math.e, 2.0, 10.0),
    "smoothing": (0.0, *SMOOTHINGS),
    "by_sample": (False, True),
    "clip": (False, True),
    "floor": (0.0, *(10.0**-power for power in range(4, 16))),
    "beta": (1.0, 0.1, 0.2, 0.25, 0.5, 2.0, 5.0, 10.0, 1 / 9),
    "huber": (False, True),
    "divisor": ("kept", "terms", "weights", "rows", "one"),
}
OPTIONS_OF = {
    "ce": ("axis", "softmaxes", "base", "smoothing", "weight", "by_sample", "ignored", "clip", "floor", "divisor"),
    "smooth-l1": ("beta", "huber", "divisor"),
}
MOST_IGNORED = 100

# Which cause it is that a formula differs in an option.
CAUSE_OF = {
    "axis": "ce-axis",
    "softmaxes": "double-softmax",
    "base": "log-base",
    "smoothing": "label-smoothing",
    "weight": "class-weight",
    "clip": "ce-clip",
    "floor": "log-epsilon",
    "beta": "smooth-l1",
    "huber": "smooth-l1",
}


def name_of(right: Formula, wrong: Formula) -> str:
    """The cause when the candidate computes one formula for another that differs in one thing."""
    changed = {field.name for field in fields(Formula) if getattr(right, field.name) != getattr(wrong, field.name)}
    if "ignored" in changed:
        return "loss-over-padding" if "padding" in (right.ignored, wrong.ignored) else "ce-ignore-index"
    if "by_sample" in changed:
        return "soft-label-weight"
    if changed == {"divisor"}:
        divisors = {right.divisor, wrong.divisor}
        if "weights" in divisors:
            return "soft-label-weight"
        if divisors == {"kept", "terms"}:
            return "loss-over-padding" if right.ignored == "padding" else "ce-ignore-index"
        return "loss-reduction"
    return CAUSE_OF[next(iter(changed))]


def _choices(loss: Loss) -> dict[str, tuple[Any, ...]]:
    classes = loss.given.logits.shape[-1]
    present = np.unique(loss.given.targets)
    ignored = [int(one) for one in present[:MOST_IGNORED] if one < classes]
    padding = () if loss.given.padding is None else ("padding",)
    return {**CHOICES, "weight": (None, *loss.given.weights), "ignored": (None, *ignored, *padding)}


def _changes(formula: Formula, choices: dict[str, tuple[Any, ...]]) -> Iterator[Formula]:
    """Formulas that differ in one thing: one option; or what is ignored together with what the sum is divided by."""
    for option in OPTIONS_OF[formula.kind]:
        for value in choices[option]:
            if value == getattr(formula, option):
                continue
            yield replace(formula, **{option: value})
            if option == "ignored" and formula.divisor == "kept":
                yield replace(formula, ignored=value, divisor="terms")
    if formula.weight is not None:
        for by_sample, divisor in product((False, True), choices["divisor"]):
            if by_sample != formula.by_sample and divisor != formula.divisor:
                yield replace(formula, by_sample=by_sample, divisor=divisor)


def right_formulas(loss: Loss, value: float, within: float) -> list[Formula]:
    """Formulas that give the value, those nearest to the defaults first; none if it takes more than three options."""
    choices = _choices(loss)
    for changed in range(4 if loss.given.logits.size <= MANY else 2):
        found = []
        for kind, options in OPTIONS_OF.items():
            for some in combinations(options, changed):
                if changed == 3 and not {"weight", "divisor"} <= set(some):
                    continue  # three at once only where weights leave a choice of what to divide by
                others = [[v for v in choices[o] if v != getattr(Formula(), o)] for o in some]
                for values in product(*others):
                    formula = Formula(kind, **dict(zip(some, values, strict=True)))
                    if _fits(loss.value(formula), value, within):
                        found.append(formula)
        if found:
            return found
    return []


def _fits(value: float | None, wanted: float, within: float) -> bool:
    return value is not None and math.isfinite(value) and abs(value - wanted) <= within * abs(wanted)


# --------------------------------------------------------------------------------------------------------------- in words


def _said(right: Formula, wrong: Formula) -> str:
    changed = [field.name for field in fields(Formula) if getattr(right, field.name) != getattr(wrong, field.name)]
    option = next((one for one in ("ignored", "by_sample") if one in changed), changed[0])
    one, two = getattr(wrong, option), getattr(right, option)
    divisors = {
        "kept": "the targets that count",
        "terms": "all targets",
        "weights": "their classes' weights",
        "rows": "the rows of the batch",
        "one": "nothing",
    }
    axes = {"last": "the last axis", "swapped": "the axis before the last", "batch": "the batch axis"}
    words = {
        "axis": lambda: f"taking {axes[two]} for the classes, where the candidate takes {axes[one]}",
        "softmaxes": lambda: f"putting the logits through softmax {two} times before the loss, not {one}",
        "base": lambda: f"taking logarithms to the base {two:.4g}, not {one:.4g}",
        "smoothing": lambda: f"smoothing labels by {two:g}, not by {one:g}",
        "weight": lambda: f"weighting classes by {two or 'nothing'}, not by {one or 'nothing'}",
        "by_sample": lambda: "weighting " + ("samples, not classes" if two else "classes, not samples"),
        "ignored": lambda: f"ignoring {_nothing(two)}, not {_nothing(one)}",
        "clip": lambda: f"losses above {CLIP:g} {'are clipped' if two else 'stay as they are, not clipped'}",
        "floor": lambda: f"adding {two:g} to probabilities before the logarithm, not {one:g}",
        "beta": lambda: f"smooth L1 turning at {two:.4g}, not at {one:.4g}",
        "huber": lambda: (
            f"{'Huber' if two else 'smooth L1'}, not {'Huber' if one else 'smooth L1'}: a factor {right.beta:g}"
        ),
        "divisor": lambda: f"dividing the sum by {divisors[right.divisor]}, not by {divisors[wrong.divisor]}",
    }
    said = words[option]()
    return f"{said}, and {words['divisor']()}" if option == "by_sample" and "divisor" in changed else said


def _nothing(ignored: int | str | None) -> str:
    if ignored is None:
        return "nothing"
    return "padding" if ignored == "padding" else f"targets of class {ignored}"


# ---------------------------------------------------------------------------------------------------------------- suspects


def _given(suspect: Suspect) -> Given | None:
    """What the loss is computed from; None where this is no loss."""
    if suspect.record == "activation" and suspect.owner != "criterion":
        return None
    logits, targets = suspect.logits, suspect.targets
    if suspect.record == "activation" and len(suspect.inputs) == 2:
        logits, targets = suspect.inputs
    if logits is None or targets is None or not logits.ndim or not 0 < logits.size <= MOST:
        return None
    classes = logits.shape[-1]
    weights = {
        name: np.float64(value)
        for name, value in suspect.scene.state.items()
        if value.shape == (classes,) and value.dtype.kind == "f" and (value > 0).all()
    }
    return Given(np.float64(logits), targets, weights, _padding(suspect, targets))


def _padding(suspect: Suspect, targets: Array) -> Array | None:
    for values in suspect.scene.batch.inputs.values():
        if values.dtype.kind == "i" and values.size == targets.size and targets.size > len(values):
            found = (values == suspect.padding()).reshape(targets.shape)
            return found if found.any() and not found.all() else None
    return None


def hypotheses(given: Given, reference: float, candidate: float, within: float) -> list[tuple[str, Formula, Formula]]:
    """(cause, right formula, wrong formula): the one gives the reference's value, the other the candidate's."""
    loss = Loss(given)
    choices = _choices(loss)
    found = [
        (name_of(right, wrong), right, wrong)
        for right in right_formulas(loss, reference, within)
        for wrong in _changes(right, choices)
        if _fits(loss.value(wrong), candidate, within) and wrong != right
    ]
    return found


def _all(suspect: Suspect | CriterionSuspect) -> list[tuple[str, Trial]]:
    """Every hypothesis with its trial. Kept with the suspect: each cause asks for its own."""
    known: list[tuple[str, Trial]] | None = suspect.__dict__.get("_losses")
    if known is None:
        known = suspect.__dict__["_losses"] = list(_tried(suspect))
    return known


@dataclass(frozen=True, eq=False)
class CriterionSuspect:
    """Both frameworks' own cross entropy of the same logits, in float64; what is not reduced is summed up here.

    record, name: of the row (``"cross_entropy[mean]"``). given: the logits and targets. right: what was asked for.
    reference, candidate: the values.
    """

    record: str
    name: str
    given: Given
    right: Formula
    reference: Array
    candidate: Array

    def trial(self, change: str, corrected: Array) -> Iterator[Trial]:
        """One trial of a corrected value."""
        before, after = relative(self.candidate, self.reference), relative(corrected, self.reference)
        yield Trial(change, before, after, after <= FITS["float64"] and after <= 0.01 * before)


def _tried(suspect: Suspect | CriterionSuspect) -> Iterator[tuple[str, Trial]]:
    if isinstance(suspect, CriterionSuspect):
        yield from _tried_with(suspect, suspect.given, FITS["float64"])
    elif (given := _given(suspect)) is not None:
        found = list(_tried_with(suspect, given, FITS[suspect.scene.dtype]))
        yield from found or _by_factor(suspect)


def _tried_with(suspect: Suspect | CriterionSuspect, given: Given, within: float) -> Iterator[tuple[str, Trial]]:
    candidate, reference = suspect.candidate, suspect.reference
    if candidate is None or not np.isfinite(candidate).all():
        return
    if candidate.shape != reference.shape:
        yield from _unreduced(suspect, candidate)
        return
    if reference.size != 1:
        return
    right_value, wrong_value = float(reference.ravel()[0]), float(candidate.ravel()[0])
    found = hypotheses(given, right_value, wrong_value, within)
    if isinstance(suspect, CriterionSuspect):
        found = [one for one in found if one[1] == suspect.right]
    loss = Loss(given)
    names: dict[str, tuple[Formula, Formula]] = {}
    for name, right, wrong in found:
        names.setdefault(name, (right, wrong))
    for name, (right, wrong) in names.items():
        right_one, wrong_one = loss.value(right), loss.value(wrong)
        assert right_one is not None
        assert wrong_one is not None
        for trial in suspect.trial(_said(right, wrong), candidate - wrong_one + right_one):
            # Formulas that cannot be told apart here prove none of them.
            yield name, trial if len(names) == 1 else replace(trial, proved=False, doubt=AMBIGUOUS)


def _unreduced(suspect: Suspect | CriterionSuspect, candidate: Array) -> Iterator[tuple[str, Trial]]:
    """The candidate keeps a loss for each sample, where the reference has one number."""
    if suspect.reference.size == 1 < candidate.size:
        for what, value in (("mean", candidate.mean()), ("sum", candidate.sum())):
            reduced = np.full(suspect.reference.shape, value)
            for trial in suspect.trial(f"taking the {what} of the losses of the samples", reduced):
                yield "loss-reduction", trial


def _by_factor(suspect: Suspect) -> Iterator[tuple[str, Trial]]:
    """A loss of a formula that is not known: a size of the batch, in batches of two sizes, or a round number."""
    if suspect.candidate is None or suspect.candidate.shape != suspect.reference.shape or suspect.reference.size != 1:
        return
    if not suspect.reference.any() or not np.isfinite(suspect.candidate).all():
        return
    factor, targets = float((suspect.candidate / suspect.reference).ravel()[0]), suspect.targets
    if targets is not None and targets.size > 1:
        for power, said in ((1, "dividing the loss"), (-1, "multiplying the loss")):
            if abs(factor / targets.size**power - 1.0) > 1e-9:
                continue
            for other in elsewhere(suspect):
                there = float(other.candidate.sum()) / float(other.reference.sum()) if other.reference.any() else 0.0
                if abs(there / other.counts["targets"] ** power - 1.0) <= 1e-9:
                    change = f"{said} by {targets.size}, the number of targets (in another batch it is the factor, too)"
                    for trial in suspect.trial(change, suspect.candidate / factor):
                        yield "loss-reduction", trial
                    return
    if is_round(factor, 3, 1e-9) or is_round(1.0 / factor, 3, 1e-9):
        name = "loss-half" if abs(factor - 0.5) <= 1e-9 else "loss-scaled"
        for trial in suspect.trial(f"dividing the loss by {factor:.6g}", suspect.candidate / factor):
            yield name, trial


def _named(name: str, suspect: Suspect | CriterionSuspect) -> Iterator[Trial]:
    for found, trial in _all(suspect):
        if found == name:
            yield trial


# (name, what is wrong, what to change)
TABLE = (
    ("loss-reduction", "the loss is reduced in another way", "set reduction= as the reference has it"),
    (
        "ce-ignore-index",
        "targets that are ignored count in the mean, or other targets are ignored",
        "divide the sum by the number of targets that count: Paddle's mean divides by all of them where ignore_index is "
        "negative, which the default is",
    ),
    (
        "double-softmax",
        "the cross entropy is given probabilities, and applies softmax again",
        "give it logits, or pass use_softmax=False",
    ),
    ("label-smoothing", "the loss smooths labels by another amount", "set label_smoothing= as the reference has it"),
    ("smooth-l1", "smooth L1 in another form", "pass is_huber=False and delta= the reference's beta"),
    ("ce-axis", "the cross entropy takes another axis for the classes", "pass axis=1 where the classes are on axis 1"),
    (
        "soft-label-weight",
        "the weighted mean of soft labels is divided by another sum",
        "reduce by hand: torch divides by the number of samples, Paddle by the weights of their labels",
    ),
    ("class-weight", "classes are weighted on one side only", "pass weight= as the reference has it"),
    ("log-base", "logarithms are to another base", "use the natural logarithm on both sides"),
    ("log-epsilon", "another epsilon is added before the logarithm", "use log_softmax, or the reference's epsilon"),
    (
        "ce-clip",
        "losses of single targets are clipped at 64",
        "scale the logits down, or run on a GPU: Paddle's cross entropy on a CPU takes no probability below exp(-64)",
    ),
    ("loss-over-padding", "the loss counts padding on one side only", "mask the same positions on both sides"),
    ("loss-half", "the loss is half of what it should be", "look for a factor 0.5 on one side"),
    ("loss-scaled", "the loss is a round multiple of the reference's", "look for a factor on one side"),
)

CAUSES: tuple[Cause, ...] = tuple(
    Cause(name, summary, remedy, ("loss", "activation"), partial(_named, name)) for name, summary, remedy in TABLE
)
