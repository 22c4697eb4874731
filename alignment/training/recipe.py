"""How to train, said once for both sides: optimizer, groups of parameters, clipping, learning-rate schedule.

Definitions are torch's, and so are the names of options; `alignment.training.rules` has the formulas. What the other
framework has no counterpart for is refused here, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alignment.errors import AlignmentError
from checkpoints.tables import read_table

KINDS = ("sgd", "adam", "adamw")
CLIPS = ("value", "norm", "global norm")
# Options that an optimizer of a kind does not have.
FOREIGN = {
    "sgd": ("betas", "eps", "amsgrad"),
    "adam": ("momentum", "nesterov"),
    "adamw": ("momentum", "nesterov"),
}
# kind -> option -> torch's default; REQUIRED where there is none
REQUIRED = object()
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "step": {"step_size": REQUIRED, "gamma": 0.1},
    "multistep": {"milestones": REQUIRED, "gamma": 0.1},
    "cosine": {"T_max": REQUIRED, "eta_min": 0.0},
    "warmup": {"start_factor": 1.0 / 3.0, "end_factor": 1.0, "total_iters": 5},
    "plateau": {
        "mode": "min",
        "factor": 0.1,
        "patience": 10,
        "threshold": 1e-4,
        "threshold_mode": "rel",
        "cooldown": 0,
        "min_lr": 0.0,
        "eps": 1e-8,
    },
    "onecycle": {
        "max_lr": None,  # the optimizer's learning rate
        "total_steps": REQUIRED,
        "pct_start": 0.3,
        "anneal_strategy": "cos",
        "div_factor": 25.0,
        "final_div_factor": 1e4,
        "three_phase": False,
    },
}


@dataclass(frozen=True)
class Optimizer:
    """An optimizer, by torch's definition of it.

    kind: ``"sgd"`` (with or without momentum), ``"adam"`` (decay added to the gradient, L2) or ``"adamw"`` (decoupled
    decay). There is no dampening: Paddle has none.

    AlignmentError where an option is out of its range, or set for a kind that does not have it.
    """

    kind: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _one_of("optimizer", self.kind, KINDS)
        for name in FOREIGN[self.kind]:
            _need(
                getattr(self, name) == _default(Optimizer, name),
                f"{self.kind} has no {name}; take it out of the recipe",
            )
        for name in ("learning_rate", "eps", "weight_decay"):
            _at_least_zero(name, getattr(self, name))
        _need(_number(self.momentum) and 0.0 <= self.momentum < 1.0, f"momentum is {self.momentum!r}, not in [0, 1)")
        _need(bool(self.momentum) or not self.nesterov, "Nesterov's momentum needs a momentum; set it, such as 0.9")
        _need(
            isinstance(self.betas, Sequence)
            and len(self.betas) == 2
            and all(_number(beta) and 0.0 <= beta < 1.0 for beta in self.betas),
            f"betas are {self.betas!r}, not two numbers in [0, 1)",
        )
        for name in ("nesterov", "amsgrad"):
            _need(isinstance(getattr(self, name), bool), f"{name} is {getattr(self, name)!r}, neither true nor false")
        object.__setattr__(self, "betas", tuple(self.betas))


@dataclass(frozen=True)
class Group:
    """Parameters with settings of their own; the first group whose pattern fits a parameter holds it.

    pattern: shell-style, of the reference's parameter names, such as ``"*.bias"``. factor: of the learning rate, whatever the
    schedule makes of that. weight_decay: None: the optimizer's.
    """

    pattern: str
    factor: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        _need(
            isinstance(self.pattern, str) and bool(self.pattern), f"a group's pattern is {self.pattern!r}, not a text"
        )
        _at_least_zero(f"factor of group {self.pattern}", self.factor)
        if self.weight_decay is not None:
            _at_least_zero(f"weight_decay of group {self.pattern}", self.weight_decay)


@dataclass(frozen=True)
class Clip:
    """How gradients are clipped, as torch's `clip_grad_value_` and `clip_grad_norm_` do it.

    kind: ``"value"`` (each element), ``"norm"`` (each tensor's Euclidean norm) or ``"global norm"`` (that of all together).
    """

    kind: Literal["value", "norm", "global norm"]
    limit: float

    def __post_init__(self) -> None:
        _one_of("clipping", self.kind, CLIPS)
        _need(_number(self.limit) and self.limit > 0.0, f"gradients can't be clipped at {self.limit!r}")


@dataclass(frozen=True)
class Schedule:
    """A learning rate over steps, or over epochs.

    kind: ``"constant"``, ``"step"``, ``"multistep"``, ``"cosine"``, ``"warmup"``, ``"plateau"`` or ``"onecycle"``.
    options: by torch's names; what is left out is torch's default (see `settled`). by: ``"step"`` or ``"epoch"``: what is
    counted; a plateau always goes by the metrics that `Trainer.end_epoch` is given.

    AlignmentError where an option is unknown, missing or out of its range.
    """

    kind: str = "constant"
    options: Mapping[str, Any] = field(default_factory=dict)
    by: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        _one_of("schedule", self.kind, SCHEDULES)
        _one_of("by", self.by, ("step", "epoch"))
        known = SCHEDULES[self.kind]
        for name in self.options:
            _need(name in known, f"a {self.kind} schedule has no option {name!r}; it has {', '.join(known) or 'none'}")
        for name, default in known.items():
            _need(default is not REQUIRED or name in self.options, f"a {self.kind} schedule needs the option {name}")
        _check_schedule(self.kind, self.settled())

    def settled(self) -> dict[str, Any]:
        """All options, those left out as torch has them."""
        return {**SCHEDULES[self.kind], **self.options}


@dataclass(frozen=True)
class Recipe:
    """All of it. A parameter in no group takes the optimizer's own settings."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    clip: Clip | None = None
    groups: tuple[Group, ...] = ()

    def group_of(self, name: str) -> int:
        """Which group holds a parameter, by the reference's name for it: 0 for none of them, else its number from 1."""
        fits = (number for number, group in enumerate(self.groups, 1) if fnmatchcase(name, group.pattern))
        return next(fits, 0)

    def settings_of(self, number: int) -> tuple[float, float]:
        """(factor of the learning rate, weight decay) of a group by its number; 0: of the parameters in none."""
        if not number:
            return 1.0, self.optimizer.weight_decay
        group = self.groups[number - 1]
        return group.factor, self.optimizer.weight_decay if group.weight_decay is None else group.weight_decay

    def as_held(self) -> Recipe:
        """The recipe with momentum and weight decay rounded to float32.

        Paddle's kernels hold these so whatever they compute in: 0.9 is off by 2.6e-8 in a float64 run. Like weights and
        inputs, they should be what the float32 model is trained with.
        """
        chosen = self.optimizer
        held = replace(chosen, momentum=_float32(chosen.momentum), weight_decay=_float32(chosen.weight_decay))
        groups = (
            group if group.weight_decay is None else replace(group, weight_decay=_float32(group.weight_decay))
            for group in self.groups
        )
        return replace(self, optimizer=held, groups=tuple(groups))

    def to_dict(self) -> dict[str, Any]:
        """As JSON and TOML have it: what is not said is the default."""
        found: dict[str, Any] = {"optimizer": _said(self.optimizer, always=("kind", "learning_rate"))}
        if self.schedule != Schedule():
            found["schedule"] = {"kind": self.schedule.kind, **_plain(self.schedule.options)}
            if self.schedule.by != "step":
                found["schedule"]["by"] = self.schedule.by
        if self.clip is not None:
            found["clip"] = _said(self.clip)
        if self.groups:
            found["groups"] = [_said(group) for group in self.groups]
        return found

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Recipe:
        """From what `to_dict` gives, or from a table of a TOML file.

        Raises:
            AlignmentError: an unknown key, or a value that is not right.
        """
        _table("a recipe", data, ("optimizer", "schedule", "clip", "groups"))
        schedule = dict(_table("schedule", data.get("schedule", {})))
        kind, by = schedule.pop("kind", "constant"), schedule.pop("by", "step")
        groups = data.get("groups", ())
        _need(isinstance(groups, Sequence) and not isinstance(groups, str), "groups are a list of tables")
        return Recipe(
            _made(Optimizer, "optimizer", data.get("optimizer", {})),
            Schedule(kind, schedule, by),
            None if data.get("clip") is None else _made(Clip, "clip", data["clip"]),
            tuple(_made(Group, "a group", group) for group in groups),
        )

    @staticmethod
    def read(path: str | Path) -> Recipe:
        """Of a .toml or .json file with the tables ``optimizer``, ``schedule``, ``clip`` and a list ``groups``.

        Raises:
            AlignmentError: it can't be read, or something in it is not right.
        """
        path = Path(path)
        try:
            data = read_table(path, "a recipe")
        except OSError as error:
            raise AlignmentError(f"{path}: can't read the recipe: {error.strerror}") from error
        except ValueError as error:
            raise AlignmentError(f"{path}: not a recipe: {error}") from error
        try:
            return Recipe.from_dict(data)
        except AlignmentError as error:
            raise AlignmentError(f"{path}: {error}") from error


def differences(one: Recipe, other: Recipe) -> tuple[str, ...]:
    """What two recipes say differently, one sentence for each option: ``"weight_decay: 0.01 against 0.0"``."""
    found = [
        f"{name}: {_shown(getattr(one.optimizer, name))} against {_shown(getattr(other.optimizer, name))}"
        for name in (option.name for option in fields(Optimizer))
        if getattr(one.optimizer, name) != getattr(other.optimizer, name)
    ]
    ours, theirs = (f"{recipe.clip.kind} {recipe.clip.limit:g}" if recipe.clip else "none" for recipe in (one, other))
    found += [f"clipping: {ours} against {theirs}"] if ours != theirs else []
    if one.schedule.kind != other.schedule.kind:
        found.append(f"schedule: {one.schedule.kind} against {other.schedule.kind}")
    else:
        before, after = one.schedule.settled(), other.schedule.settled()
        found += [
            f"{name} of the {one.schedule.kind} schedule: {_shown(before[name])} against {_shown(after[name])}"
            for name in before
            if before[name] != after[name]
        ]
    groups = [
        {group.pattern: recipe.settings_of(i) for i, group in enumerate(recipe.groups, 1)} for recipe in (one, other)
    ]
    for pattern in dict.fromkeys((*groups[0], *groups[1])):
        settings = [held.get(pattern, recipe.settings_of(0)) for held, recipe in zip(groups, (one, other), strict=True)]
        for name, ours_, theirs_ in zip(("rate's factor", "weight_decay"), *settings, strict=True):
            if ours_ != theirs_:
                found.append(f"{name} of {pattern}: {ours_:g} against {theirs_:g}")
    return tuple(found)


def _check_schedule(kind: str, options: Mapping[str, Any]) -> None:
    where = f"of a {kind} schedule"
    for name in ("gamma", "factor"):
        if name in options:  # Paddle takes none of 1 and above
            value = options[name]
            _need(_number(value) and 0.0 < value < 1.0, f"{name} {where} is {value!r}, not in (0, 1)")
    for name in ("step_size", "T_max", "total_iters", "total_steps"):
        if name in options:
            _need(_count(options[name], 1), f"{name} {where} is {options[name]!r}, not a whole number from 1")
    for name in ("patience", "cooldown"):
        if name in options:
            _need(_count(options[name], 0), f"{name} {where} is {options[name]!r}, not a whole number from 0")
    for name in ("eta_min", "threshold", "min_lr", "eps"):
        if name in options:
            _at_least_zero(f"{name} {where}", options[name])
    if kind == "multistep":
        steps = options["milestones"]
        rising = isinstance(steps, Sequence) and not isinstance(steps, str) and all(_count(step, 1) for step in steps)
        rising = rising and all(one < two for one, two in pairwise(steps))
        _need(rising, f"milestones {where} are {steps!r}, not whole numbers that rise: Paddle takes no others")
    if kind == "warmup":
        start, end = options["start_factor"], options["end_factor"]
        _need(_number(start) and 0.0 < start <= 1.0, f"start_factor {where} is {start!r}, not in (0, 1]")
        _need(_number(end) and 0.0 <= end <= 1.0, f"end_factor {where} is {end!r}, not in [0, 1]")
    if kind == "plateau":
        _one_of(f"mode {where}", options["mode"], ("min", "max"))
        _one_of(f"threshold_mode {where}", options["threshold_mode"], ("rel", "abs"))
    if kind == "onecycle":
        _one_of(f"anneal_strategy {where}", options["anneal_strategy"], ("cos", "linear"))
        _need(isinstance(options["three_phase"], bool), f"three_phase {where} is neither true nor false")
        if options["max_lr"] is not None:
            _at_least_zero(f"max_lr {where}", options["max_lr"])
        for name in ("div_factor", "final_div_factor"):
            _need(_number(options[name]) and options[name] > 0.0, f"{name} {where} is {options[name]!r}, not above 0")
        share, total = options["pct_start"], options["total_steps"]
        top = 0.5 if options["three_phase"] else 1.0
        _need(
            isinstance(share, float) and share * total > 1.0 and share < top,
            f"pct_start {where} is {share!r}: the rate must rise for more than one of {total} steps, and for less than "
            f"{'half' if top < 1.0 else 'all'} of them",
        )


def _need(held: bool, message: str) -> None:
    if not held:
        raise AlignmentError(message)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _at_least_zero(name: str, value: Any) -> None:
    _need(_number(value) and value >= 0.0, f"{name} is {value!r}, not a number from 0")


def _one_of(name: str, value: Any, known: Any) -> None:
    _need(isinstance(value, str) and value in known, f"{name} is {value!r}; there are {', '.join(known)}")


def _default(kind: type[Any], name: str) -> Any:
    return next(option.default for option in fields(kind) if option.name == name)


def _said(value: Any, always: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass that are not as they are by default."""
    kept = (o for o in fields(value) if o.name in always or getattr(value, o.name) != o.default)
    return {option.name: _plain(getattr(value, option.name)) for option in kept}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _table(what: str, data: Any, known: Sequence[str] | None = None) -> Mapping[str, Any]:
    _need(isinstance(data, Mapping), f"{what} is {data!r}, not a table")
    unknown = sorted(str(key) for key in data if known is not None and key not in known)
    _need(not unknown, f"{what} has no {', '.join(unknown)}; known: {', '.join(known or ())}")
    return dict(data)


def _made(kind: type[Any], what: str, data: Any) -> Any:
    given = _table(what, data, [option.name for option in fields(kind)])
    for option in fields(kind):
        missing = option.default is dataclasses.MISSING and option.name not in given
        _need(not missing, f"{what} needs {option.name}")
    return kind(**given)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _float32(value: float) -> float:
    return float(np.float32(value))
