"""An optimizer's state on its way to the other framework, in memory and as files.

one, two = (get_trainer(name, model, recipe, loss=loss) for …)
two.load_weights(checkpoints.convert(one.weights(), layout)); two.load_state(converted(one.state(), layout))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from alignment.errors import AlignmentError
from alignment.training.recipe import Recipe
from alignment.training.rules import Position
from alignment.training.trainer import TrainerState
from checkpoints import Layout
from checkpoints.optimizer import (
    OptimizerState,
    convert_optimizer,
    read_paddle_optimizer,
    read_torch_optimizer,
    write_paddle_optimizer,
    write_torch_optimizer,
)

SUFFIXES = {".pth": "torch", ".pt": "torch", ".bin": "torch", ".pdopt": "paddle"}


def converted(state: TrainerState, layout: Layout) -> TrainerState:
    """A trainer's state for the other side's trainer: each slot lies as its parameter does, and moves by the same layout.

    Raises:
        CheckpointError: the layout does not move a parameter that the state has.
    """
    moved = convert_optimizer(OptimizerState(state.slots, state.updates), layout)
    # A trainer knows a shared tensor by its first name.
    further = {name for group in layout.target_ties for name in group[1:]}
    slots = {
        slot: {name: value for name, value in held.items() if name not in further} for slot, held in moved.slots.items()
    }
    updates = {name: count for name, count in moved.updates.items() if name not in further}
    return replace(state, slots=slots, updates=updates)


def convert_file(
    source: Path,
    destination: Path,
    layout: Layout,
    *,
    given: Sequence[str],
    taken: Mapping[str, np.ndarray],
    names: Callable[[str], Mapping[str, str]],
    recipe: Recipe | None = None,
    reference: Mapping[str, str] | None = None,
) -> OptimizerState:
    """Convert a file of an optimizer's state; returns what was written.

    Args:
        layout: that of the weights, from the framework of `source` to that of `destination`; their suffixes say which.
        given: the source model's parameters in its order. taken: the target model's, with arrays of their shapes and dtypes.
        names: ``"source"`` or ``"target"`` -> what Paddle calls that side's parameters in a process of its own.
        recipe: what neither file says: for torch the optimizer's settings, for Paddle the schedule.
        reference: the target's parameters -> the reference's, for the recipe's groups; None: they are the same.

    Raises:
        CheckpointError: the source can't be read, or does not fit the layout.
        AlignmentError: a recipe is needed, or another one.
    """
    for path, framework in ((source, layout.source_framework), (destination, layout.target_framework)):
        if SUFFIXES.get(path.suffix) != framework:
            ends = ", ".join(suffix for suffix, own in SUFFIXES.items() if own == framework)
            raise AlignmentError(f"{path}: the optimizer's state of {framework} is a file that ends in {ends}")
    betas = (0.9, 0.999) if recipe is None else recipe.optimizer.betas
    if layout.source_framework == "torch":
        state = read_torch_optimizer(source, given)
    else:
        state = read_paddle_optimizer(source, names("source"), betas)
    state = convert_optimizer(state, layout)
    if recipe is not None:
        state = _by(recipe, state, source)
    if layout.target_framework == "paddle":
        betas = state.settings.get("betas", betas)
        write_paddle_optimizer(destination, state, names("target"), taken, (float(betas[0]), float(betas[1])))
    else:
        if recipe is None:
            raise AlignmentError(
                f"{destination}: torch's file says the optimizer's settings, and {source.name} does not; give a recipe with them"
            )
        groups: list[list[str]] = [[] for _ in range(1 + len(recipe.groups))]
        for name in taken:
            groups[recipe.group_of((reference or {}).get(name, name))].append(name)
        rate = float((state.schedule or {}).get("last_lr", recipe.optimizer.learning_rate))
        told = [(_torch_settings(recipe, number, rate), held) for number, held in enumerate(groups)]
        write_torch_optimizer(destination, state, told)
    return state


def _by(recipe: Recipe, state: OptimizerState, source: Path) -> OptimizerState:
    """The state with the recipe's schedule where that follows from the number of updates."""
    wanted = {"sgd": {"momentum"} if recipe.optimizer.momentum else set()}.get(
        recipe.optimizer.kind, {"first moment", "second moment"}
    )
    if recipe.optimizer.amsgrad:
        wanted = {*wanted, "largest second moment"}
    if state.updates and set(state.slots) != wanted:
        held = ", ".join(state.slots) or "nothing"
        raise AlignmentError(
            f"{source}: holds {held}, and the recipe's {recipe.optimizer.kind} keeps {', '.join(wanted)}"
        )
    counted = recipe.schedule.by == "step" and recipe.schedule.kind not in ("constant", "plateau")
    if state.schedule is not None or not counted or recipe.optimizer.kind == "sgd":
        return state
    position = replace(Position.start(recipe), position=max(state.updates.values(), default=0) - 1).moved(recipe)
    return replace(state, schedule={"last_epoch": position.position, "last_lr": position.rate})


def _torch_settings(recipe: Recipe, number: int, rate: float) -> dict[str, Any]:
    chosen, (factor, decay) = recipe.optimizer, recipe.settings_of(number)
    told: dict[str, Any] = {"lr": rate * factor, "initial_lr": chosen.learning_rate * factor, "weight_decay": decay}
    told |= {"maximize": False, "foreach": None, "differentiable": False, "fused": None}
    if chosen.kind == "sgd":
        return told | {"momentum": chosen.momentum, "dampening": 0.0, "nesterov": chosen.nesterov}
    told |= {"betas": chosen.betas, "eps": chosen.eps, "amsgrad": chosen.amsgrad, "capturable": False}
    return told | {"decoupled_weight_decay": chosen.kind == "adamw"}
