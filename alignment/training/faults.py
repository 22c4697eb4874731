"""Faults of training that can be planted on the candidate, to see that they are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.faults import FAULTS, Fault, get_fault
from alignment.frameworks import Framework
from alignment.training.recipe import Clip, Recipe, Schedule
from alignment.training.rules import Position
from alignment.training.trainer import Step, Trainer, TrainerState
from fake_data import Batch


@dataclass(frozen=True)
class TrainingFault:
    """One way a port trains otherwise.

    recipe: the right recipe -> the candidate's. trainer: the candidate's trainer -> one that does it wrong. plant:
    (adapter, candidate) changes the model. needs: what the recipe must have, in words; empty where nothing.
    hits: does a recipe give the fault something to hit?
    """

    name: str
    summary: str
    recipe: Callable[[Recipe], Recipe] | None = None
    trainer: Callable[[Trainer], Trainer] | None = None
    plant: Callable[[Framework, Any], None] | None = None
    needs: str = ""
    hits: Callable[[Recipe], bool] = lambda _recipe: True


def get_training_fault(name: str) -> Fault | TrainingFault:
    """The fault of training, or of the model (`alignment.faults`), of a name.

    Raises:
        AlignmentError: there is none; the message lists those there are.
    """
    if name in TRAINING_FAULTS:
        return TRAINING_FAULTS[name]
    if ":" in name or name in FAULTS:
        return get_fault(name)
    raise AlignmentError(
        f"unknown fault {name!r}; faults of training: {', '.join(TRAINING_FAULTS)}; of the model: {', '.join(FAULTS)}"
    )


def _optimizer(**changed: Any) -> Callable[[Recipe], Recipe]:
    return lambda recipe: replace(recipe, optimizer=replace(recipe.optimizer, **changed))


def _is(*kinds: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.optimizer.kind in kinds


def _scaled(recipe: Recipe) -> Recipe:
    return replace(recipe, optimizer=replace(recipe.optimizer, learning_rate=recipe.optimizer.learning_rate * 0.5))


def _other_clip(recipe: Recipe) -> Recipe:
    assert recipe.clip is not None
    return replace(recipe, clip=Clip("norm" if recipe.clip.kind == "global norm" else "global norm", recipe.clip.limit))


def _added_up(framework: Framework, model: Any) -> None:
    """Each backward pass adds to the gradients of the one before."""
    for slot in framework.slots(model):
        if slot.role == "parameter" and slot.tied_to is None:
            framework.replace_gradient(model, slot.name, _Sum())


class _Sum:
    def __init__(self) -> None:
        self._sum: NDArray | None = None

    def __call__(self, gradient: NDArray) -> NDArray:
        self._sum = gradient.copy() if self._sum is None else self._sum + gradient
        return self._sum


class _Ahead:
    """A trainer whose schedule is one step ahead of its updates."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.load_state(trainer.state())

    def step(self, batch: Batch, *, gradients: bool = False) -> Step:
        return self._trainer.step(batch, gradients=gradients)

    def end_epoch(self, metric: float | None = None) -> None:
        self._trainer.end_epoch(metric)

    def predict(self, batch: Batch) -> NDArray:
        return self._trainer.predict(batch)

    def recipe(self) -> Recipe:
        return self._trainer.recipe()

    def weights(self) -> dict[str, NDArray]:
        return self._trainer.weights()

    def load_weights(self, tensors: Mapping[str, NDArray]) -> None:
        self._trainer.load_weights(tensors)

    def state(self) -> TrainerState:
        return self._trainer.state()

    def load_state(self, state: TrainerState) -> None:
        further = Position(**state.schedule).moved(self._trainer.recipe())
        self._trainer.load_state(replace(state, schedule=asdict(further)))


def _moves_by_steps(recipe: Recipe) -> bool:
    return recipe.schedule.kind not in ("constant", "plateau") and recipe.schedule.by == "step"


TRAINING_FAULTS = {
    fault.name: fault
    for fault in (
        TrainingFault(
            "l2-for-decoupled",
            "AdamW's decay is added to the gradient",
            recipe=_optimizer(kind="adam"),
            needs="AdamW with weight decay",
            hits=lambda recipe: recipe.optimizer.kind == "adamw" and recipe.optimizer.weight_decay > 0,
        ),
        TrainingFault(
            "adamw-for-adam",
            "AdamW with its default decay of 0.01 where the recipe has Adam",
            recipe=_optimizer(kind="adamw", weight_decay=0.01),
            needs="Adam without weight decay",
            hits=lambda recipe: recipe.optimizer.kind == "adam" and not recipe.optimizer.weight_decay,
        ),
        TrainingFault(
            "decay-overridden",
            "weights do not decay",
            recipe=_optimizer(weight_decay=0.0),
            needs="weight decay",
            hits=lambda recipe: recipe.optimizer.weight_decay > 0,
        ),
        TrainingFault("adam-eps", "Adam's epsilon is 1e-6", recipe=_optimizer(eps=1e-6), needs="Adam or AdamW",
                      hits=_is("adam", "adamw")),
        TrainingFault("adam-betas", "Adam's second beta is 0.99", recipe=_optimizer(betas=(0.9, 0.99)),
                      needs="Adam or AdamW", hits=_is("adam", "adamw")),
        TrainingFault(
            "momentum-default",
            "momentum of 0.9 where the recipe has none",
            recipe=_optimizer(momentum=0.9),
            needs="SGD without momentum",
            hits=lambda recipe: recipe.optimizer.kind == "sgd" and not recipe.optimizer.momentum,
        ),
        TrainingFault("lr-scaled", "half the learning rate", recipe=_scaled),
        TrainingFault(
            "clip-kind",
            "gradients are clipped by each tensor's norm for that of all together, or the other way round",
            recipe=_other_clip,
            needs="clipping",
            hits=lambda recipe: recipe.clip is not None,
        ),
        TrainingFault("grads-not-cleared", "gradients add up over steps", plant=_added_up),
        TrainingFault(
            "scheduler-off-by-one",
            "the schedule is one step ahead of the updates",
            trainer=_Ahead,
            needs="a schedule that goes by steps",
            hits=_moves_by_steps,
        ),
        TrainingFault(
            "scheduler-not-stepped",
            "the learning rate stays where the schedule begins",
            recipe=lambda recipe: replace(recipe, schedule=Schedule()),
            needs="a schedule that goes by steps",
            hits=_moves_by_steps,
        ),
    )
}  # fmt: skip
