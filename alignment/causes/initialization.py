"""Initialisers that draw from another distribution: which distributions each framework's layers start from by themselves.

A hypothesis names two distributions without a free number: the one the reference draws from and the one the candidate
draws from. Each side's values must fit its own. The correction maps the candidate's draws from the one distribution to the
other; it is right where `compare_initializers` then finds nothing. The figures of a trial are |σ/σ_reference − 1| of the
candidate's standard deviation before and after. Facts measured on torch 2.13 and paddle 3.3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from alignment.causes.suspect import Array, Cause, Trial
from alignment.compare import Comparison
from alignment.experiment import Experiment
from alignment.initializers import MANY, compare_initializers
from alignment.stages import drawn_initializers, initializer_seeds
from checkpoints import Slot

# How often a sample of the very distribution that is asked for would be refused, by each of three tests.
REFUSED = 1e-6
# Fewer values a side prove nothing about a distribution; they may still make a hypothesis.
ENOUGH = 500


@dataclass(frozen=True)
class InitializerSuspect:
    """A tensor whose two initialisers draw from different distributions.

    kind, local: its layer's kind by torch's name, and its name there. shape, fan_in, fan_out: in the reference's layout; of
    a bias the fans of its layer's weight, and 0 where there is none. reference, candidate: values under several seeds,
    [seeds, *shape]. tests: how many initialisers are judged in the run.
    """

    name: str
    kind: str
    local: str
    shape: tuple[int, ...]
    fan_in: int
    fan_out: int
    reference: Array
    candidate: Array
    tests: int
    record: str = "initializer"

    def compare(self, candidate: Array) -> Comparison:
        """Judge values that the candidate would have drawn."""
        return compare_initializers(self.reference, candidate.astype(self.reference.dtype), self.tests)

    def trial(self, change: str, corrected: Array) -> Trial:
        """One trial of values that the candidate would have drawn."""
        enough = min(self.reference.size, self.candidate.size) >= ENOUGH or not np.any(self.candidate)
        proved = enough and self.compare(corrected).verdict == "aligned"
        off = _off(self.candidate, self.reference), _off(corrected, self.reference)
        return Trial(change, *off, proved, "σ/σ_reference − 1")


def initializer_suspects(experiment: Experiment) -> Iterator[InitializerSuspect]:
    """A suspect for each parameter and buffer whose initialisers draw from different distributions."""
    slots = {slot.name: slot for slot in experiment.slots}
    drawn = drawn_initializers(experiment, initializer_seeds(experiment))
    for name, (reference, candidate) in drawn.items():
        slot = slots[name]
        weight = slot if len(slot.shape) > 1 else slots.get(f"{name.rpartition('.')[0]}.weight")
        suspect = InitializerSuspect(
            name, slot.kind, slot.local, slot.shape, *_fans(weight), reference, candidate, len(drawn)
        )
        if suspect.compare(candidate).verdict == "diverged":
            yield suspect


def _fans(weight: Slot | None) -> tuple[int, int]:
    """Inputs and outputs that a value of a weight [out, in, ...] takes part in."""
    if weight is None or len(weight.shape) < 2:
        return 0, 0
    out, into, *kernel = weight.shape
    return into * math.prod(kernel), out * math.prod(kernel)


def _off(candidate: Array, reference: Array) -> float:
    ours, theirs = (float(np.std(value, dtype=np.float64)) for value in (reference, candidate))
    return abs(theirs / ours - 1.0) if ours else (0.0 if theirs == 0.0 else math.inf)


# ------------------------------------------------------------------------------------------------------- distributions


@dataclass(frozen=True)
class Uniform:
    """Uniform within ±bound."""

    bound: float

    @property
    def std(self) -> float:
        """Standard deviation."""
        return self.bound / math.sqrt(3.0)

    def __str__(self) -> str:
        return f"uniform in ±{self.bound:.4g}"

    def probability(self, values: Array) -> Array:
        """Of a draw below each value."""
        return np.clip((values / self.bound + 1.0) / 2.0, 0.0, 1.0)

    def draws(self, probability: Array) -> Array:
        """Values of these probabilities."""
        return (2.0 * probability - 1.0) * self.bound


@dataclass(frozen=True)
class Normal:
    """Normal around 0."""

    std: float

    def __str__(self) -> str:
        return f"normal with standard deviation {self.std:.4g}"

    def probability(self, values: Array) -> Array:
        """Of a draw below each value."""
        from scipy.special import ndtr

        return np.asarray(ndtr(values / self.std))

    def draws(self, probability: Array) -> Array:
        """Values of these probabilities."""
        from scipy.special import ndtri

        return np.asarray(self.std * ndtri(np.clip(probability, 1e-12, 1 - 1e-12)))


Distribution = Uniform | Normal


def fits(values: Array, distribution: Distribution) -> bool:
    """Is this a sample of the distribution? By its shape, its standard deviation and its largest value.

    The largest value tells bounds and tails that the others are too coarse for: within ±√3 σ lie all values of a uniform
    distribution, and of a normal one all but one in twelve.
    """
    from scipy.special import kolmogorov

    values = _flat(values)
    count = values.size
    if count < 2:
        return False
    below = np.sort(distribution.probability(values))
    steps = np.arange(count + 1) / count
    gap = max(float((steps[1:] - below).max()), float((below - steps[:-1]).max()))
    kurtosis = 1.8 if isinstance(distribution, Uniform) else 3.0
    z = (float((values**2).mean()) / distribution.std**2 - 1.0) / math.sqrt((kurtosis - 1.0) / count)
    largest = float(np.abs(values).max())
    if isinstance(distribution, Uniform) and largest > distribution.bound * (1 + 1e-5):
        return False
    inside = 2.0 * float(distribution.probability(np.array(largest))) - 1.0
    as_small = inside**count
    as_large = -math.expm1(count * math.log(inside)) if 0.0 < inside < 1.0 else 1.0
    shape, spread = float(kolmogorov(gap * math.sqrt(count))), math.erfc(abs(z) / math.sqrt(2.0))
    return min(shape, spread, as_small, as_large) >= REFUSED


def _flat(values: Array) -> Array:
    """The values that are drawn at all, in float64; of very many some."""
    drawn = values[:, ~_fixed(values)].ravel()
    if drawn.size > MANY:
        drawn = np.random.default_rng(0).permutation(drawn)[:MANY]
    return drawn.astype(np.float64)


def _fixed(values: Array) -> Array:
    """Which positions hold one constant under every seed."""
    return np.asarray((values == values[:1]).all(axis=0))


def _mapped(values: Array, source: Distribution, target: Distribution) -> Array:
    """Draws from one distribution as draws from another; constants stay."""
    return np.where(_fixed(values)[None], values, target.draws(source.probability(values.astype(np.float64))))


# -------------------------------------------------------------------------------------------------------------- rules

# The reference's distribution with its formula, the candidate's with its own.
Pair = tuple[Distribution, str, Distribution, str]


def _root(square: float) -> float:
    return math.sqrt(square)


def _linear(suspect: InitializerSuspect) -> Iterator[Pair]:
    if suspect.kind.removeprefix("compat.") == "Linear" and suspect.local == "weight" and suspect.fan_in:
        into, out = suspect.fan_in, suspect.fan_out
        yield Uniform(_root(1 / into)), "1/√in", Uniform(_root(6 / (into + out))), "√(6/(in + out)), Xavier"


def _convolution(suspect: InitializerSuspect) -> Iterator[Pair]:
    if not suspect.kind.startswith("Conv") or suspect.local != "weight" or not suspect.fan_in:
        return
    torchs = Uniform(_root(1 / suspect.fan_in))
    if suspect.kind.startswith("ConvTranspose"):
        bound = _root(6 / (suspect.fan_in + suspect.fan_out))
        yield torchs, "1/√fan", Uniform(bound), "√(6/(fan in + fan out)), Xavier"
        return
    # Paddle counts the input channels of all groups, whose number the weight doesn't tell.
    for groups in (n for n in range(1, suspect.shape[0] + 1) if suspect.shape[0] % n == 0):
        said = "√(2/fan)" + (f" with the channels of {groups} groups in the fan" if groups > 1 else "")
        yield torchs, "1/√fan", Normal(_root(2 / (suspect.fan_in * groups))), said


def _embedding(suspect: InitializerSuspect) -> Iterator[Pair]:
    if suspect.kind == "Embedding" and suspect.local == "weight":
        number, width = suspect.shape
        yield Normal(1.0), "1", Uniform(_root(6 / (number + width))), "√(6/(number + width)), Xavier"


def _attention(suspect: InitializerSuspect) -> Iterator[Pair]:
    """Xavier of the three packed matrices [3·d, d], or of each one [d, d]."""
    if len(suspect.shape) != 2 or suspect.local == "bias" or suspect.kind == "Embedding":
        return
    width = suspect.shape[1]
    if suspect.shape[0] in (width, 3 * width):
        packed, single = Uniform(_root(6 / (4 * width))), Uniform(_root(6 / (2 * width)))
        yield packed, "√(6/4d), Xavier of the packed matrix", single, "√(6/2d), Xavier of each matrix"


def _slope(suspect: InitializerSuspect) -> Iterator[Pair]:
    if len(suspect.shape) > 1 and suspect.kind != "Embedding" and suspect.fan_in:
        said = "√(6/fan), KaimingUniform without the slope √5"
        yield Uniform(_root(1 / suspect.fan_in)), "1/√fan", Uniform(_root(6 / suspect.fan_in)), said


def _of_pairs(pairs: Callable[[InitializerSuspect], Iterable[Pair]], suspect: InitializerSuspect) -> Iterator[Trial]:
    if not np.array_equal(_fixed(suspect.reference), _fixed(suspect.candidate)):
        return
    for ours, our_formula, theirs, their_formula in pairs(suspect):
        if math.isclose(ours.std, theirs.std, rel_tol=1e-3) and type(ours) is type(theirs):
            continue
        if fits(suspect.reference, ours) and fits(suspect.candidate, theirs):
            change = f"drawing {suspect.name} {ours} ({our_formula}) and not {theirs} ({their_formula})"
            yield suspect.trial(change, _mapped(suspect.candidate, theirs, ours))
            return


def _zero_bias(suspect: InitializerSuspect) -> Iterator[Trial]:
    """Zero under every seed, where the reference draws from ±1/√fan of its layer's weight."""
    if suspect.candidate.any() or "bias" not in suspect.local or not suspect.fan_in:
        return
    ours = Uniform(_root(1 / suspect.fan_in))
    if not _fixed(suspect.reference).any() and fits(suspect.reference, ours):
        change = f"drawing {suspect.name} {ours} (1/√fan) and not zero"
        yield suspect.trial(change, _drawn(suspect.candidate.shape, ours))


def _drawn(shape: tuple[int, ...], distribution: Distribution) -> Array:
    return distribution.draws(np.random.default_rng(0).random(shape))


def _padding_row(suspect: InitializerSuspect) -> Iterator[Trial]:
    """Whole rows of an Embedding are constant on one side only."""
    if suspect.kind != "Embedding" or len(suspect.shape) != 2:
        return
    ours, theirs = _fixed(suspect.reference), _fixed(suspect.candidate)
    rows = np.flatnonzero((ours != theirs).all(axis=1))
    if not rows.size or not ours[rows].all():
        return
    corrected = suspect.candidate.copy()
    corrected[:, rows] = suspect.reference[:, rows]
    change = f"setting row {', '.join(map(str, rows))} of {suspect.name} to the reference's constant"
    yield suspect.trial(change, corrected)


def _constant(suspect: InitializerSuspect) -> Iterator[Trial]:
    """Both sides start from constants, and not the same."""
    if _fixed(suspect.reference).all() and _fixed(suspect.candidate).all():
        ours, theirs = (np.unique(values) for values in (suspect.reference, suspect.candidate))
        if ours.size == theirs.size == 1 and ours[0] != theirs[0]:
            change = f"starting {suspect.name} from {ours[0]:.6g} and not {theirs[0]:.6g}, by the constants' difference"
            corrected = suspect.candidate + (ours[0] - theirs[0])
            aligned = suspect.compare(corrected).verdict == "aligned"
            left = float(np.abs(corrected - ours[0]).max())
            yield Trial(change, float(abs(ours[0] - theirs[0])), left, aligned, "difference")


def _scale(suspect: InitializerSuspect) -> Iterator[Trial]:
    """The same shape, another scale: the factor is measured, and so the shape alone can refute it."""
    if not np.array_equal(_fixed(suspect.reference), _fixed(suspect.candidate)):
        return
    ours, theirs = _flat(suspect.reference), _flat(suspect.candidate)
    if min(ours.size, theirs.size) < 2 or not ours.std() or not theirs.std():
        return
    factor = float(ours.std() / theirs.std())
    tails = [float(((v - v.mean()) ** 4).mean() / v.var() ** 2) for v in (ours, theirs)]
    # 24/n is the variance of a normal sample's kurtosis; a uniform one's is less.
    apart = abs(tails[0] - tails[1]) / math.sqrt(24 / ours.size + 24 / theirs.size)
    if math.erfc(apart / math.sqrt(2.0)) < REFUSED:
        return
    change = f"multiplying what is drawn for {suspect.name} by {factor:.4g}"
    fixed = _fixed(suspect.candidate)[None]
    trial = suspect.trial(change, np.where(fixed, suspect.candidate, factor * suspect.candidate))
    if trial.proved:
        yield trial


Rule = Callable[[InitializerSuspect], Iterable[Trial]]

# (name, what is wrong, what to change, rule), the most particular first.
RULES: tuple[tuple[str, str, str, Rule], ...] = (
    (
        "linear-init",
        "a Linear weight starts as Paddle's own does (Xavier), not as torch's",
        "pass weight_attr= with Uniform(-1/√in, 1/√in)",
        partial(_of_pairs, _linear),
    ),
    (
        "conv-init",
        "a convolution starts as Paddle's own does, not as torch's",
        "pass weight_attr= with Uniform(-1/√fan, 1/√fan)",
        partial(_of_pairs, _convolution),
    ),
    (
        "embedding-init",
        "an Embedding starts as Paddle's own does (Xavier), not as torch's",
        "pass weight_attr= with Normal(0, 1)",
        partial(_of_pairs, _embedding),
    ),
    (
        "mha-init",
        "queries, keys and values start √2 too large: Xavier of each matrix, where torch packs three",
        "draw them uniform in ±√(6/4d)",
        partial(_of_pairs, _attention),
    ),
    (
        "kaiming-slope",
        "KaimingUniform leaves out the negative slope",
        'pass nonlinearity="leaky_relu" with negative_slope=',
        partial(_of_pairs, _slope),
    ),
    (
        "bias-init",
        "a bias starts at zero, Paddle's default, where torch draws it",
        "pass bias_attr= with Uniform(-1/√fan, 1/√fan)",
        _zero_bias,
    ),
    (
        "padding-row-init",
        "a row of an Embedding starts from drawn values, where the reference has a constant",
        "set the padding row as the reference does",
        _padding_row,
    ),
    ("init-constant", "a tensor starts from another constant", "start from the reference's constant", _constant),
    (
        "init-scale",
        "an initialiser draws from the right kind of distribution at another scale",
        "draw from the reference's bounds, or with its standard deviation",
        _scale,
    ),
)


def _unless_known(place: int, suspect: InitializerSuspect) -> Iterator[Trial]:
    """The trials of a rule, unless one before it is proved."""
    trials = list(RULES[place][3](suspect))
    known = trials and any(trial.proved for *_, rule in RULES[:place] for trial in rule(suspect))
    yield from () if known else trials


CAUSES: tuple[Cause, ...] = tuple(
    Cause(name, summary, remedy, ("initializer",), partial(_unless_known, place))
    for place, (name, summary, remedy, _) in enumerate(RULES)
)
