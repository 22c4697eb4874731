"""Steps of an optimizer and of running statistics that are not the reference's though the gradients are.

A step is explained by rules: one `Rule` gives the reference's steps from its gradients, another that differs in one
thing gives the candidate's from its own. That one thing is the cause, and taking its effect away proves it.

The rules are those of `alignment.training.rules`. Batch norm's running variance is unbiased in torch (N − 1) and biased in
Paddle (N).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from alignment.causes.gradients import factor_of, is_round
from alignment.causes.suspect import AMBIGUOUS, Cause, Trial, relative
from alignment.training.rules import RULES, Rule, Slots, steps
from alignment.training.rules import change as step_of

Array = NDArray

# How far a rule may lie from the steps of a side, relatively: Paddle keeps the powers of Adam's betas in float32, which
# moves every step from the second on by up to 7e-6.
FITS = 2e-5
# What is left of a difference, as a share of it, where a rule explains it.
LEFT = 0.01


# -------------------------------------------------------------------------------------------------------------- suspects


@dataclass(frozen=True, eq=False)
class UpdateSuspect:
    """A parameter's steps that differ. Everything is float64 and in the reference's layout.

    weights: before the first step. gradients, steps: of either side, one for each step. learning_rates: of the
    reference's schedule. norms: of all gradients of the reference together, where they are known.
    starts: where both sides were given the same before every step, so that none follows from another: weights, slots, and
    which update it is, for each. rule: what the reference steps by, where that is known.
    """

    name: str
    weights: Array
    reference_gradients: tuple[Array, ...]
    candidate_gradients: tuple[Array, ...]
    reference_steps: tuple[Array, ...]
    candidate_steps: tuple[Array, ...]
    learning_rates: tuple[float, ...]
    norms: tuple[float, ...] | None = None
    starts: tuple[tuple[Array, Slots, int], ...] = ()
    rule: Rule | None = None
    record: str = "update"

    def made(self, options: Rule, side: str) -> Array:
        """All steps that a rule makes of one side's gradients, one after the other."""
        gradients = self.reference_gradients if side == "reference" else self.candidate_gradients
        if self.starts:
            norms = [None] * len(gradients) if self.norms is None else self.norms
            given = zip(self.starts, gradients, self.learning_rates, norms, strict=True)
            return np.stack([step_of(options, w, g, slots, n, rate, norm)[0] for (w, slots, n), g, rate, norm in given])
        return np.stack(steps(options, self.weights, gradients, self.learning_rates, self.norms))

    @cached_property
    def reference(self) -> Array:
        """The reference's steps."""
        return np.stack(self.reference_steps)

    @cached_property
    def candidate(self) -> Array:
        """The candidate's steps."""
        return np.stack(self.candidate_steps)

    @cached_property
    def trials(self) -> list[tuple[str, Trial]]:
        """Every hypothesis that holds, by the name of its cause."""
        return list(_explained(self))


@dataclass(frozen=True, eq=False)
class StatisticSuspect:
    """A running statistic whose change in one forward pass differs.

    local: its name in torch, ``"running_mean"`` or ``"running_var"``. before: its value; reference, candidate: how it
    changed, in float64. count: values a channel in the batch; momentum: the reference's; None where they are not known.
    """

    name: str
    local: str
    before: Array
    reference: Array
    candidate: Array
    count: int | None = None
    momentum: float | None = None
    record: str = "update"


AnyUpdate = UpdateSuspect | StatisticSuspect


def _trial(suspect: AnyUpdate, change: str, corrected: Array) -> Trial:
    before = relative(suspect.candidate, suspect.reference)
    after = relative(corrected, suspect.reference)
    return Trial(change, before, after, bool(before > 0.0 and after <= FITS and after <= LEFT * before))


# ------------------------------------------------------------------------------------------------------------ optimizers

EPSILONS = (0.0, *(10.0**-power for power in range(3, 17)))
DECAYS = (0.0, 1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.5)
CLIPS = (0.01, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
STARTS = (Rule(), Rule("sgd"), Rule("rmsprop"))


def changes(options: Rule) -> Iterator[Rule]:
    """Rules that differ in one thing somebody may have set otherwise or left at a default."""
    for kind in RULES:
        if kind != options.kind:
            yield replace(options, kind=kind)
    for decay in dict.fromkeys((options.decay, *DECAYS)):
        for decoupled in (False, True):
            yield replace(options, decay=decay, decoupled=decoupled and decay > 0.0)
    for clip in (None, "value", "norm", "global norm"):
        bounds = CLIPS if options.clip is None else (options.clip_at,)
        for bound in bounds if clip else (1.0,):
            yield replace(options, clip=clip, clip_at=bound)
    if options.clip:
        yield from (replace(options, clip_at=bound) for bound in CLIPS)
    yield replace(options, accumulated=not options.accumulated)
    yield replace(options, stepped=not options.stepped)
    if options.kind in ("adam", "rmsprop"):
        places = ("outside", "inside", "unscaled") if options.kind == "adam" else ("outside", "inside")
        for eps in dict.fromkeys((options.eps, *EPSILONS)):
            for place in places:
                yield replace(options, eps=eps, eps_place=place)
    if options.kind == "adam":
        yield replace(options, amsgrad=not options.amsgrad)
        yield replace(options, ahead=1 - options.ahead)
        yield from (replace(options, beta1=beta) for beta in (0.5, 0.8, 0.9, 0.95))
        yield from (replace(options, beta2=beta) for beta in (0.9, 0.95, 0.98, 0.99, 0.999))
    if options.kind == "rmsprop":
        for rho in (0.9, 0.95, 0.99):
            yield replace(options, rho=rho)
            # Paddle's defaults, all of them.
            yield replace(options, rho=rho, eps=1e-6, eps_place="inside")
    if options.kind != "adam":
        for momentum in (0.0, 0.5, 0.9, 0.95, 0.99):
            yield from (replace(options, momentum=momentum, nesterov=bool(momentum) and n) for n in (False, True))


# Which cause it is that rules differ in a field; the first that does decides.
CAUSE_OF = {
    "clip": "clip-kind",
    "clip_at": "clip-kind",
    "accumulated": "grads-not-cleared",
    "stepped": "scheduler-not-stepped",
    "amsgrad": "amsgrad",
    "ahead": "sparse-adam",
    "beta1": "adam-betas",
    "beta2": "adam-betas",
    "momentum": "momentum-default",
    "nesterov": "momentum-default",
    "rho": "rmsprop-eps",
}


def _changed(right: Rule, wrong: Rule) -> set[str]:
    return {field.name for field in fields(Rule) if getattr(right, field.name) != getattr(wrong, field.name)}


def name_of(right: Rule, wrong: Rule) -> str:
    """The cause when the candidate steps by one rule for another."""
    changed = _changed(right, wrong)
    if "kind" in changed:
        return "sgd-for-adam" if (right.kind, wrong.kind) == ("adam", "sgd") else "optimizer-kind"
    if "decay" in changed:
        if not wrong.decay:
            return "decay-overridden"
        adamw = not right.decay and wrong.decoupled and right.kind == "adam"
        return "adamw-for-adam" if adamw else "decay-other"
    if "decoupled" in changed:
        return "l2-for-decoupled"
    named = next((cause for field, cause in CAUSE_OF.items() if field in changed), None)
    return named or f"{right.kind}-eps"


def right_rules(suspect: UpdateSuspect) -> list[Rule]:
    """Rules that give the reference's steps: the known one, or a plain one, else those that differ from one in one thing."""
    if suspect.rule is not None and _fits(suspect, suspect.rule, "reference"):
        return [suspect.rule]
    plain = [start for start in STARTS if _fits(suspect, start, "reference")]
    if plain:
        return plain
    near = dict.fromkeys(rule for start in STARTS for rule in changes(start))
    return [rule for rule in near if _fits(suspect, rule, "reference")]


def _fits(suspect: UpdateSuspect, rule: Rule, side: str) -> bool:
    if rule.clip == "global norm" and suspect.norms is None:
        return False
    with np.errstate(all="ignore"):
        made = suspect.made(rule, side)
    wanted = suspect.reference if side == "reference" else suspect.candidate
    return bool(np.isfinite(made).all()) and relative(made, wanted) <= FITS


def _explained(suspect: UpdateSuspect) -> Iterator[tuple[str, Trial]]:
    if suspect.candidate.shape != suspect.reference.shape or not suspect.candidate_steps:
        return
    found: dict[str, Trial] = {}
    rules = right_rules(suspect)
    for right in rules:
        for wrong in dict.fromkeys(changes(right)):
            if wrong == right or (wrong.clip == "global norm" and suspect.norms is None):
                continue
            with np.errstate(all="ignore"):
                made = suspect.made(wrong, "candidate")
            if not np.isfinite(made).all():
                continue
            corrected = suspect.candidate - made + suspect.made(right, "reference")
            trial = _trial(suspect, f"stepping by {_said(right, wrong)}", corrected)
            name = name_of(right, wrong)
            if trial.proved and (name not in found or trial.after < found[name].after):
                found[name] = trial
    least = min((trial.after for trial in found.values()), default=0.0)
    # A rule that leaves much more than another does is only near it. Those as good as each other prove none of them.
    best = {name: trial for name, trial in found.items() if trial.after <= max(10.0 * least, 1e-9)}
    for name, trial in best.items():
        yield name, trial if len(best) == 1 else replace(trial, proved=False, doubt=AMBIGUOUS)
    if not best:
        yield from _by_factor(suspect)


def _by_factor(suspect: UpdateSuspect) -> Iterator[tuple[str, Trial]]:
    """Every step is a constant multiple of the reference's."""
    if not suspect.candidate.any():
        return
    factor = factor_of(suspect.candidate, suspect.reference)
    if factor is None or suspect.reference.size < 2:
        return
    name = "sign-of-step" if abs(factor + 1.0) <= 1e-6 else "lr-scaled"
    change = "changing the sign of every step" if name == "sign-of-step" else f"dividing every step by {factor:.6g}"
    yield name, _trial(suspect, change, suspect.candidate / factor)


def _said(right: Rule, wrong: Rule) -> str:
    changed = [field.name for field in fields(Rule) if field.name in _changed(right, wrong)]
    parts = [f"{name.replace('_', ' ')} {_plain(getattr(right, name))}" for name in changed]
    others = [_plain(getattr(wrong, name)) for name in changed]
    return f"{right.kind} with {', '.join(parts)} (the candidate: {', '.join(others)})"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _by_rule(name: str, suspect: AnyUpdate) -> Iterator[Trial]:
    if isinstance(suspect, UpdateSuspect):
        yield from (trial for found, trial in suspect.trials if found == name)


# ------------------------------------------------------------------------------------------------------------ statistics

MOMENTA = (0.1, 0.01, 0.05, 0.2, 0.3, 0.001, 0.003, 0.5, 0.9, 0.99)


def _momentum(suspect: AnyUpdate) -> Iterator[Trial]:
    """The increment is (1 − m)/m times the reference's: Paddle's momentum is the share of the old value."""
    if not isinstance(suspect, StatisticSuspect):
        return
    factor = factor_of(suspect.candidate, suspect.reference)
    if factor is not None and (factor <= 0.0 or abs(factor - 1.0) <= 1e-4):
        return
    momentum = math.nan if factor is None else 1.0 / (1.0 + factor)
    known = suspect.momentum is None or abs(suspect.momentum - momentum) <= 1e-6
    if factor is not None and is_round(momentum, 2, 1e-6) and known:
        change = f"giving the new value the weight {momentum:.3g}, not {1.0 - momentum:.3g}: the increment is {factor:.4g} times"
        yield _trial(suspect, change, suspect.candidate / factor)
    else:
        yield from _momentum_of_a_biased_variance(suspect)


def _momentum_of_a_biased_variance(suspect: StatisticSuspect) -> Iterator[Trial]:
    """The momentum is taken for 1 minus itself, and the variance is Paddle's besides."""
    momentum = suspect.momentum
    if momentum is None or not 0.0 < momentum < 1.0 or momentum == 0.5:
        return
    share = 1.0 - float(np.float32(round(momentum, 6)))  # which the candidate holds as float32
    scaled = suspect.candidate * (momentum / share)
    for change, corrected in _unbiased(replace(suspect, candidate=scaled)):
        change = f"giving the new value the weight {momentum:.3g}, not {1.0 - momentum:.3g}, and {change}"
        yield _trial(suspect, change, corrected)


def _biased(suspect: AnyUpdate) -> Iterator[Trial]:
    """What the variance is moved towards is (N − 1)/N times the reference's, N values a channel."""
    if isinstance(suspect, StatisticSuspect):
        yield from (_trial(suspect, change, corrected) for change, corrected in _unbiased(suspect))


def _unbiased(suspect: StatisticSuspect) -> Iterator[tuple[str, Array]]:
    """The change of a variance that was estimated with bias, in words, and as it is without."""
    if suspect.local != "running_var" or suspect.reference.size < 2:
        return
    for momentum in MOMENTA if suspect.momentum is None else (suspect.momentum,):
        old = momentum * suspect.before
        ratio = factor_of(suspect.candidate + old, suspect.reference + old)
        if ratio is None or not 0.0 < ratio < 1.0:
            continue
        count = round(1.0 / (1.0 - ratio))
        if count < 2 or (suspect.count is not None and suspect.count != count):
            continue
        exact = (count - 1) / count
        # The candidate's ratio is exact only as far as its momentum is: a float32 0.9 is off by 3e-8.
        if abs(ratio - exact) > 1e-6 * (1.0 - exact) + 1e-7:
            continue
        change = f"dividing the batch's sum of squares by {count - 1}, not by the {count} values a channel"
        yield change, (suspect.candidate + old) / exact - old
        return


# ------------------------------------------------------------------------------------------------------------- the table

TABLE = (
    (
        "adamw-for-adam",
        "weights decay by AdamW where the reference uses Adam",
        "use Adam, or pass weight_decay=0.0: Paddle's AdamW decays by 0.01 unless told otherwise",
    ),
    (
        "l2-for-decoupled",
        "weight decay is added to the gradient on one side and decoupled from it on the other",
        "use AdamW for torch's AdamW, and Adam with weight_decay= for torch's Adam with weight_decay",
    ),
    (
        "decay-overridden",
        "weights do not decay where the reference's do",
        "take the regularizer out of ParamAttr, or apply_decay_param_fun= off: they override weight_decay=",
    ),
    ("decay-other", "weights decay by another amount", "set weight_decay= as the reference has it"),
    ("adam-eps", "Adam's epsilon is another, or in another place", "pass epsilon= of the reference"),
    (
        "rmsprop-eps",
        "RMSProp's epsilon or decay is another, or epsilon is under the root",
        "pass rho= and epsilon= of the reference; Paddle's epsilon is under the root, so step by hand where it matters",
    ),
    ("adam-betas", "Adam's betas are others", "pass beta1= and beta2= of the reference"),
    ("amsgrad", "AMSGrad on one side only", "set amsgrad= as the reference has it"),
    ("sparse-adam", "Adam's bias correction is one step ahead", "build the Embedding with sparse=False"),
    ("sgd-for-adam", "plain gradient descent where the reference uses Adam", "use Adam"),
    ("optimizer-kind", "another kind of optimizer", "use the reference's"),
    (
        "momentum-default",
        "momentum on one side only, or another",
        "pass momentum=0.0, or use SGD: Paddle's Momentum takes 0.9 unless told otherwise",
    ),
    (
        "clip-kind",
        "gradients are clipped in another way",
        "use ClipGradByGlobalNorm for torch's clip_grad_norm_, ClipGradByValue for clip_grad_value_",
    ),
    ("grads-not-cleared", "gradients add up over steps", "call clear_grad() after each step"),
    ("scheduler-not-stepped", "the learning rate stays where it began", "call scheduler.step() after each step"),
    ("sign-of-step", "every step goes the other way", "look for a negated loss, gradient or learning rate"),
    ("lr-scaled", "every step is a constant multiple of the reference's", "set the reference's learning rate"),
)

CAUSES: tuple[Cause, ...] = (
    *(Cause(name, summary, remedy, ("update",), partial(_by_rule, name)) for name, summary, remedy in TABLE),
    Cause(
        "bn-momentum",
        "batch norm's momentum is copied, where Paddle's is the share of the old value: 1 minus torch's",
        "pass momentum=1 - m",
        ("update",),
        _momentum,
    ),
    Cause(
        "bn-biased-variance",
        "batch norm's running variance is biased, as Paddle's always is",
        "multiply the batch's variance by N / (N - 1) when updating it, or accept the difference: it shrinks with N",
        ("update",),
        _biased,
    ),
)
