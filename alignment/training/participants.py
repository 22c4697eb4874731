"""The live twin as a `Participants`: trainers of both sides, and how their tensors and optimizer states correspond."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import checkpoints
from alignment.compare import EPS32, EPS64
from alignment.correspondence import first_names
from alignment.errors import AlignmentError
from alignment.experiment import SIDES, Experiment, State, moved_by_one_ulp, plant
from alignment.frameworks import Dropout, get_trainer
from alignment.frameworks.training import OwnOptimizer
from alignment.stages import no_weights
from alignment.training.curves import Participants
from alignment.training.faults import TrainingFault
from alignment.training.lockstep import Link, Tensors
from alignment.training.recipe import Optimizer, Recipe
from alignment.training.state import converted
from alignment.training.trainer import Trainer, TrainerState
from checkpoints import Layout, undo
from fake_data import Batch


@dataclass(frozen=True)
class Sides:
    """Makes the trainers of a twin.

    weights: the reference's, float32, which every trainer begins with. dropout: as `get_trainer` takes it. faults: of the
    training, planted on the candidate besides those of the experiment. optimizers: the reference's and the candidate's own,
    as `get_trainer` takes them, in place of the recipe's.
    """

    experiment: Experiment
    recipe: Recipe
    weights: State
    dropout: Dropout = None
    faults: tuple[TrainingFault, ...] = ()
    optimizers: tuple[OwnOptimizer | None, OwnOptimizer | None] = (None, None)

    def make(self, side: str, dtype: str, recipe: Recipe | None = None) -> Trainer:
        """A fresh trainer with the weights to begin with; the candidate's with the planted faults."""
        experiment = self.experiment
        framework, _ = experiment.side(side)
        model, candidate = experiment.build(side), side == "candidate"
        if dtype != "float32":
            model = framework.cast(model, dtype)
        names = None
        if candidate:
            plant(experiment, model)
            assert experiment.layout is not None
            names = {move.target: move.source for move in experiment.layout.moves}
            for fault in self.faults:
                if fault.plant is not None:
                    fault.plant(framework, model)
        framework.load_state(model, experiment.candidate_state(self.weights) if candidate else self.weights)
        chosen = recipe or self.recipe
        for fault in self.faults if candidate and recipe is None else ():
            chosen = chosen if fault.recipe is None else fault.recipe(chosen)
        own = None if recipe is not None else self.optimizers[candidate]
        made = get_trainer(
            framework.name,
            model,
            chosen,
            loss=experiment.loss(side),
            dropout=self.dropout,
            names=names,
            optimizer=None if own is None else partial(_called, own, side),
        )
        for fault in self.faults if candidate and recipe is None else ():
            made = made if fault.trainer is None else fault.trainer(made)
        return made


def _called(own: OwnOptimizer, side: str, model: Any) -> Any:
    try:
        return own(model)
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        raise AlignmentError(f"the {side}'s optimizer can't be made: {type(error).__name__}: {error}") from error


def recipes_of(sides: Sides) -> tuple[Recipe | None, Recipe | None]:
    """What either side trains by, optimizers of the user's own as far as they can be read."""
    found: list[Recipe | None] = []
    for side, own in zip(SIDES, sides.optimizers, strict=True):
        try:
            found.append(sides.recipe if own is None else sides.make(side, "float32").recipe())
        except AlignmentError:
            found.append(None)
    return found[0], found[1]


def participants_of(sides: Sides, dtype: str, summands: int, recipe: Recipe | None) -> Participants:
    """Everybody who takes part in the curves of one dtype. recipe: what the reference trains by, where that is known.

    Raises:
        AlignmentError: the candidate can't be given the reference's weights.
    """
    experiment = sides.experiment
    layout = experiment.layout
    if layout is None:
        raise AlignmentError(no_weights(experiment).reason)
    exact = dtype == "float64"
    return Participants(
        reference=lambda: sides.make("reference", dtype),
        candidate=lambda: sides.make("candidate", dtype),
        link=replace(link_of(experiment, layout, dtype), own_schedule=any(sides.optimizers)),
        owners=_owners(experiment, layout),
        moved=lambda weights, number: moved_by_one_ulp(dict(weights), experiment.options.seed + number),
        recipe=recipe.as_held() if exact and recipe is not None else recipe,
        eps=EPS64 if exact else EPS32,
        truth=None if exact else _Truth(sides, layout),
        summands=summands,
        buffers=tuple(slot.name for slot in experiment.slots if slot.role == "buffer"),
    )


def link_of(experiment: Experiment, layout: Layout, dtype: str = "float32") -> Link:
    """How a candidate's tensors correspond to the reference's."""
    if dtype != "float32":
        layout = checkpoints.retype(layout, {move.source: dtype for move in layout.moves})
    moves = {move.target: move for move in layout.moves}

    def labelled(tensors: Tensors) -> dict[str, NDArray]:
        wanted = {move.label for move in layout.moves}
        parts = checkpoints.split(dict(tensors), layout)
        return {label: value for label, value in parts.items() if label in wanted}

    def taken(tensors: Tensors) -> dict[str, NDArray]:
        return {moves[name].label: undo(value, moves[name]) for name, value in tensors.items() if name in moves}

    def given(tensors: Tensors) -> dict[str, NDArray]:
        return experiment.converted(dict(tensors), layout)

    def state(state: TrainerState) -> TrainerState:
        return converted(state, layout)

    return Link(labelled, given, taken, state)


def _owners(experiment: Experiment, layout: Layout) -> dict[str, str]:
    slots = {slot.name: slot for slot in experiment.slots}
    ties = first_names(slots.values(), {move.label for move in layout.moves})
    return {
        move.label: move.source
        for move in layout.moves
        if slots[move.label].role == "parameter" and ties[move.label] is None
    }


class _Truth:
    """Both sides' gradients in float64, of a batch and of weights as they are at some step."""

    def __init__(self, sides: Sides, layout: Layout) -> None:
        self._sides, self._layout = sides, layout
        self._trainers: tuple[Trainer, Trainer] | None = None

    def __call__(
        self, weights: Tensors, state: TrainerState, batch: Batch
    ) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
        still = Recipe(Optimizer("sgd", learning_rate=0.0))
        if self._trainers is None:
            self._trainers = (
                self._sides.make("reference", "float64", still),
                self._sides.make("candidate", "float64", still),
            )
        link = link_of(self._sides.experiment, self._layout, "float64")
        wide = {name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in weights.items()}
        found = []
        for trainer, given in zip(self._trainers, (wide, link.given(wide)), strict=True):
            trainer.load_weights(given)
            trainer.load_state(TrainerState(state.steps))  # whose number the masks of dropout depend on
            step = trainer.step(batch, gradients=True)
            found.append({name: value for name, value in (step.gradients or {}).items() if value is not None})
        return link.labelled(found[0]), link.taken(found[1])
