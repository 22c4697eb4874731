"""How to train, said once for both sides: optimizer, groups of parameters, clipping, learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Optimizer:
    """An optimizer, by torch's definition of it.

    kind: ``"sgd"`` (with or without momentum), ``"adam"`` (decay added to the gradient, L2) or ``"adamw"`` (decoupled decay).
    """

    kind: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Group:
    """Parameters with settings of their own; the first group whose pattern fits a parameter holds it.

    pattern: shell-style, of the reference's parameter names, such as ``"*.bias"``. factor: of the learning rate.
    weight_decay: None: the optimizer's.
    """

    pattern: str
    factor: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True)
class Clip:
    """How gradients are clipped.

    kind: ``"value"`` (each element), ``"norm"`` (each tensor's Euclidean norm) or ``"global norm"`` (that of all together).
    """

    kind: Literal["value", "norm", "global norm"]
    limit: float


@dataclass(frozen=True)
class Schedule:
    """A learning rate over steps.

    kind: ``"constant"``, ``"step"``, ``"multistep"``, ``"cosine"``, ``"warmup"``, ``"plateau"`` or ``"onecycle"``.
    options: by torch's names.
    """

    kind: str = "constant"
    options: Mapping[str, Any] = field(default_factory=dict)


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

    def as_held(self) -> Recipe:
        """The recipe with momentum and weight decay rounded to float32.

        Paddle's kernels hold these so whatever they compute in: 0.9 is off by 2.6e-8 in a float64 run. Like weights and
        inputs, they should be what the float32 model is trained with.
        """
        chosen = self.optimizer
        return replace(
            self,
            optimizer=replace(chosen, momentum=_float32(chosen.momentum), weight_decay=_float32(chosen.weight_decay)),
            groups=tuple(
                group if group.weight_decay is None else replace(group, weight_decay=_float32(group.weight_decay))
                for group in self.groups
            ),
        )


def _float32(value: float) -> float:
    return float(np.float32(value))
