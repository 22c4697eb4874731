"""Optimizers, clipping and schedules as formulas in float64: the third opinion where two frameworks' trainers differ.

Sources: Adam is Kingma and Ba, arXiv 1412.6980, algorithm 1 (its "unscaled" epsilon is ε̂ of section 2); decoupled decay
Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; AMSGrad Reddi et al., arXiv 1904.09237, with torch's order: the largest
second moment is taken before its bias is corrected. RMSProp, momentum, the three kinds of clipping and the schedules are as
torch's and Paddle's documentation have them: torch's RMSProp adds epsilon to the root, Paddle's to what is under it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.training.recipe import Recipe, Schedule
from alignment.training.trainer import TrainerState

Array = NDArray
Slots = Mapping[str, Array]

# What torch's clip_grad_norm_ (and Paddle's function of that name) adds to a norm before dividing by it. Paddle's class
# ClipGradByGlobalNorm adds nothing.
CLIP_EPS = 1e-6


@dataclass(frozen=True)
class Rule:
    """A rule that makes steps of gradients.

    kind: "adam", "sgd" (with or without momentum) or "rmsprop". factor: of the learning rate. beta1, beta2, rho: decay of
    the averages. eps, and eps_place: "outside" the root, "inside" it, or "unscaled" (outside, before the bias correction).
    decay: of the weights; decoupled from the gradient or added to it (L2). amsgrad: the largest second moment so far.
    ahead: steps by which the bias correction is ahead. clip: "value", "norm", "global norm" or None, at what, and what is
    added to the norm. accumulated: are gradients summed up over steps? stepped: does the learning rate follow its schedule?
    """

    kind: str = "adam"
    factor: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    rho: float = 0.99
    eps: float = 1e-8
    eps_place: str = "outside"
    momentum: float = 0.0
    nesterov: bool = False
    decay: float = 0.0
    decoupled: bool = False
    amsgrad: bool = False
    ahead: int = 0
    clip: str | None = None
    clip_at: float = 1.0
    clip_eps: float = 0.0
    accumulated: bool = False
    stepped: bool = True


def rule_of(recipe: Recipe, name: str) -> Rule:
    """The rule of a parameter, by the reference's name for it."""
    chosen, (factor, decay) = recipe.optimizer, recipe.settings_of(recipe.group_of(name))
    rule = Rule(
        "sgd" if chosen.kind == "sgd" else "adam",
        factor=factor,
        beta1=chosen.betas[0],
        beta2=chosen.betas[1],
        eps=chosen.eps,
        momentum=chosen.momentum,
        nesterov=chosen.nesterov,
        decay=decay,
        decoupled=chosen.kind == "adamw",
        amsgrad=chosen.amsgrad,
    )
    if recipe.clip is None:
        return rule
    return replace(rule, clip=recipe.clip.kind, clip_at=recipe.clip.limit, clip_eps=CLIP_EPS)


def adam(rule: Rule, g: Array, slots: Slots, number: int) -> tuple[Array, Slots]:
    """Adam's direction, m̂ / (√v̂ + ε), and its moments; `number`: which update this is, from 1."""
    step, zero = number + rule.ahead, np.zeros_like(g)
    m = rule.beta1 * slots.get("first moment", zero) + (1.0 - rule.beta1) * g
    v = rule.beta2 * slots.get("second moment", zero) + (1.0 - rule.beta2) * g * g
    held = {"first moment": m, "second moment": v}
    if rule.amsgrad:
        held["largest second moment"] = np.maximum(slots.get("largest second moment", zero), v)
    unbiased = held.get("largest second moment", v) / (1.0 - rule.beta2**step)
    eps = rule.eps / math.sqrt(1.0 - rule.beta2**step) if rule.eps_place == "unscaled" else rule.eps
    root = np.sqrt(unbiased + eps) if rule.eps_place == "inside" else np.sqrt(unbiased) + eps
    return np.divide(m / (1.0 - rule.beta1**step), root, out=np.zeros_like(m), where=root != 0.0), held


def sgd(rule: Rule, g: Array, slots: Slots, _number: int) -> tuple[Array, Slots]:
    """The direction of stochastic gradient descent: u ← μu + g, and with Nesterov's momentum g + μu."""
    if not rule.momentum:
        return g, {}
    u = rule.momentum * slots.get("momentum", np.zeros_like(g)) + g
    return g + rule.momentum * u if rule.nesterov else u, {"momentum": u}


def rmsprop(rule: Rule, g: Array, slots: Slots, _number: int) -> tuple[Array, Slots]:
    """RMSProp's direction: u ← μu + g / (√v + ε), or g / √(v + ε) with epsilon inside."""
    zero = np.zeros_like(g)
    v = rule.rho * slots.get("mean square", zero) + (1.0 - rule.rho) * g * g
    root = np.sqrt(v + rule.eps) if rule.eps_place == "inside" else np.sqrt(v) + rule.eps
    u = rule.momentum * slots.get("momentum", zero) + np.divide(g, root, out=np.zeros_like(g), where=root != 0.0)
    return u, {"mean square": v, "momentum": u}


RULES: dict[str, Callable[[Rule, Array, Slots, int], tuple[Array, Slots]]] = {
    "adam": adam,
    "sgd": sgd,
    "rmsprop": rmsprop,
}


def clipped(gradient: Array, kind: str | None, bound: float, norm: float | None, eps: float = 0.0) -> Array:
    """A gradient by a way of clipping; `norm` is that of all gradients together, `eps` what is added to a norm."""
    if kind == "value":
        return np.clip(gradient, -bound, bound)
    own = float(np.linalg.norm(gradient)) if kind == "norm" else norm
    return gradient if kind is None or own is None or own + eps <= bound else gradient * (bound / (own + eps))


def change(
    rule: Rule, weights: Array, gradient: Array, slots: Slots, number: int, rate: float, norm: float | None = None
) -> tuple[Array, Slots]:
    """What one step adds to a tensor, and its slots after that. All arrays float64, of one shape.

    number: which update of the tensor this is, from 1. rate: before the rule's factor. norm: of all gradients together,
    which clipping by the global norm needs.
    """
    rate = rule.factor * rate
    g = clipped(gradient, rule.clip, rule.clip_at, norm, rule.clip_eps)
    if not rule.decoupled:
        g = g + rule.decay * weights
    direction, held = RULES[rule.kind](rule, g, slots, number)
    return -rate * direction - (rate * rule.decay * weights if rule.decoupled else 0.0), held


def steps(
    rule: Rule,
    weights: Array,
    gradients: Sequence[Array],
    rates: Sequence[float],
    norms: Sequence[float | None] | None = None,
) -> list[Array]:
    """The changes of a tensor that a rule makes of its gradients.

    rates: learning rate of each step. norms: of all tensors' gradients together at each step, which clipping by the
    global norm needs.
    """
    given = [np.asarray(g, np.float64) for g in gradients]
    if rule.accumulated:
        given = [np.sum(given[: last + 1], axis=0) for last in range(len(given))]
    totals = [None] * len(given) if norms is None else list(norms)
    found: list[Array] = []
    w, slots = np.asarray(weights, np.float64), {}  # type: tuple[Array, Slots]
    for number, (g, norm) in enumerate(zip(given, totals, strict=True), 1):
        rate = rates[number - 1] if rule.stepped else rates[0]
        step, slots = change(rule, w, g, slots, number, rate, norm)
        found.append(step)
        w = w + step
    return found


# ------------------------------------------------------------------------------------------------------------- schedules


def rate_at(schedule: Schedule, base: float, position: int) -> float:
    """The learning rate after a schedule was moved on `position` times, in closed form; a plateau has none.

    Raises:
        AlignmentError: a one-cycle schedule is over.
    """
    told = schedule.settled()
    if schedule.kind == "step":
        return float(base * told["gamma"] ** (position // told["step_size"]))
    if schedule.kind == "multistep":
        return float(base * told["gamma"] ** sum(position >= milestone for milestone in told["milestones"]))
    if schedule.kind == "cosine":
        return float(_cosine(base, told["eta_min"], position / told["T_max"]))
    if schedule.kind == "warmup":
        start, end = told["start_factor"], told["end_factor"]
        return float(base * (start + (end - start) * min(position / told["total_iters"], 1.0)))
    if schedule.kind == "onecycle":
        return _one_cycle(told, base, position)
    return base


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * share)) / 2.0


def _one_cycle(told: Mapping[str, Any], base: float, position: int) -> float:
    total = told["total_steps"]
    if position > total:
        raise AlignmentError(f"the onecycle schedule is over: it has {total} steps, and was to make step {position}")
    top = base if told["max_lr"] is None else told["max_lr"]
    first = top / told["div_factor"]
    rise = told["pct_start"] * total - 1.0
    ends, rates = [0.0, rise, total - 1.0], [first, top, first / told["final_div_factor"]]
    if told["three_phase"]:
        ends, rates = [0.0, rise, 2.0 * told["pct_start"] * total - 2.0, total - 1.0], [first, top, first, rates[-1]]
    phase = next((number for number, end in enumerate(ends[1:-1]) if position <= end), len(ends) - 2)
    share = (position - ends[phase]) / (ends[phase + 1] - ends[phase])
    start, end = rates[phase : phase + 2]
    return float(_cosine(start, end, share) if told["anneal_strategy"] == "cos" else start + (end - start) * share)


@dataclass(frozen=True)
class Position:
    """Where a schedule is. position: how often it was moved on. rate: now. best, bad, cooldown: a plateau's best metric,
    how many epochs went by without a better one, and for how many more none is counted.
    """

    position: int
    rate: float
    best: float | None = None
    bad: int = 0
    cooldown: int = 0

    @staticmethod
    def start(recipe: Recipe) -> Position:
        """Before the first step."""
        return Position(0, rate_at(recipe.schedule, recipe.optimizer.learning_rate, 0))

    def moved(self, recipe: Recipe, metric: float | None = None) -> Position:
        """After one step of a schedule; a plateau is told the metric of an epoch."""
        number = self.position + 1
        if recipe.schedule.kind != "plateau":
            return replace(self, position=number, rate=rate_at(recipe.schedule, recipe.optimizer.learning_rate, number))
        told, metric = recipe.schedule.settled(), checked(metric)
        better = self.best is None or is_better(metric, self.best, told)
        best, bad = (metric, 0) if better else (self.best, self.bad + 1)
        cooldown = max(self.cooldown - 1, 0)
        if self.cooldown:
            bad = 0
        rate = self.rate
        if bad > told["patience"]:
            lower = max(rate * told["factor"], told["min_lr"])
            rate = lower if rate - lower > told["eps"] else rate
            bad, cooldown = 0, told["cooldown"]
        return Position(number, rate, best, bad, cooldown)


def is_better(metric: float, best: float, told: Mapping[str, Any]) -> bool:
    """Does a plateau's metric count as better than the best one so far?"""
    sign = 1.0 if told["mode"] == "max" else -1.0
    margin = told["threshold"] * (best if told["threshold_mode"] == "rel" else 1.0)
    return sign * metric > sign * (best + sign * margin)


def checked(metric: float | None) -> float:
    """The metric that a plateau was told.

    Raises:
        AlignmentError: there is none, or it is not a number: the frameworks go on from there in different ways.
    """
    if metric is None or math.isnan(metric):
        raise AlignmentError(
            f"a plateau schedule goes by a metric, and was told {metric}: give end_epoch the epoch's metric"
        )
    return float(metric)


# ----------------------------------------------------------------------------------------------------------- all of it


class Replay:
    """A recipe followed in float64 from gradients alone.

    weights: parameter, by the reference's name for it -> array of any floating dtype, before the first step.
    """

    def __init__(self, recipe: Recipe, weights: Mapping[str, Array]) -> None:
        self.recipe = recipe
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
        self._rules = {name: rule_of(recipe, name) for name in weights}
        self._slots: dict[str, Slots] = {}
        self._updates: dict[str, int] = {}
        self._steps = 0
        self._position = Position.start(recipe)

    @property
    def rates(self) -> tuple[float, ...]:
        """As in `alignment.training.trainer.Step`."""
        numbers = range(1 + len(self.recipe.groups))
        return tuple(self._position.rate * self.recipe.settings_of(number)[0] for number in numbers)

    def step(self, gradients: Mapping[str, Array | None]) -> dict[str, Array]:
        """The change of each parameter by one step; one without a gradient stays, and so does its state."""
        given = {name: np.asarray(g, np.float64) for name, g in gradients.items() if g is not None}
        norm = math.sqrt(sum(float(np.sum(g * g)) for g in given.values()))
        changes = {}
        for name, g in given.items():
            self._updates[name] = self._updates.get(name, 0) + 1
            held = self._slots.get(name, {})
            changes[name], self._slots[name] = change(
                self._rules[name], self.weights[name], g, held, self._updates[name], self._position.rate, norm
            )
            self.weights[name] = self.weights[name] + changes[name]
        self._steps += 1
        if self.recipe.schedule.by == "step" and self.recipe.schedule.kind != "plateau":
            self._position = self._position.moved(self.recipe)
        return changes

    def end_epoch(self, metric: float | None = None) -> None:
        """As `Trainer.end_epoch`."""
        if self.recipe.schedule.by == "epoch" or self.recipe.schedule.kind == "plateau":
            self._position = self._position.moved(self.recipe, metric)

    def state(self) -> TrainerState:
        """As `Trainer.state`, without the schedule's position."""
        slots: dict[str, dict[str, Array]] = {}
        for name, held in self._slots.items():
            for slot, value in held.items():
                slots.setdefault(slot, {})[name] = value
        return TrainerState(self._steps, slots, {}, dict(self._updates))
