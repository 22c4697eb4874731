"""What the trainers of all frameworks share. A trainer keeps a model, an optimizer and a schedule of its framework's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from glob import escape
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.frameworks import Dropout, Loss
from alignment.frameworks.masks import Masks
from alignment.training.recipe import Group, Recipe
from alignment.training.rules import checked
from alignment.training.trainer import Step, TrainerState
from fake_data import Batch

# model -> optimizer, or (optimizer, scheduler): a scheduler that is not given is not stepped.
OwnOptimizer = Callable[[Any], Any]

# kind of optimizer -> slots that it may keep
ADAMS = frozenset({"first moment", "second moment", "largest second moment"})
KEPT = {"sgd": frozenset({"momentum"}), "adam": ADAMS, "adamw": ADAMS}


class BaseTrainer(ABC):
    """A `Trainer` but for the framework's own calls.

    slots: slot, by the toolkit's word for it -> the framework's; others keep the framework's.
    """

    slots: ClassVar[dict[str, str]]

    def __init__(
        self,
        model: Any,
        recipe: Recipe | None,
        *,
        loss: Loss,
        dropout: Dropout,
        names: Mapping[str, str] | None,
        optimizer: OwnOptimizer | None,
    ) -> None:
        if recipe is None and optimizer is None:
            raise AlignmentError("a trainer needs a recipe, or an optimizer of your own")
        self.model, self._loss, self._names = model, loss, names or {}
        self._own = optimizer is not None
        self._recipe = recipe or Recipe()
        if self._dtype() == "float64":
            self._recipe = self._recipe.as_held()
        self._masks = Masks(dropout) if isinstance(dropout, int) else None
        self._own_dropout = dropout == "own" or isinstance(dropout, tuple)
        self._own_seed = dropout[1] if isinstance(dropout, tuple) else None
        self._mode, self._looked = "", False
        self._parameters = self._trainable()
        self._groups = {full: self._recipe.group_of(self._named(full)) for full in self._parameters}
        self._steps = 0
        self._updates = dict.fromkeys(self._parameters, 0)
        if optimizer is None:
            self._optimizer, self._scheduler = self._made()
        else:
            found = optimizer(model)
            self._optimizer, self._scheduler = found if isinstance(found, tuple) else (found, None)

    def _named(self, full: str) -> str:
        """The reference's name of a parameter."""
        return self._names.get(full, full)

    # ------------------------------------------------------------------------------------------------------- a step

    def step(self, batch: Batch, *, gradients: bool = False) -> Step:
        """See `Trainer.step`."""
        self._set_mode("train")
        if self._masks is not None:
            self._masks.restart(self._steps + 1)
        if self._own_seed is not None:
            self._seed(int(np.random.SeedSequence((self._own_seed, self._steps + 1)).generate_state(1)[0]))
        value = self._backward(batch)
        found = self._gradients()
        if not self._looked:
            self._look(found)
        norms = self._norms(list(found.values()))
        copies = {full: self._copied(found.get(full)) for full in self._parameters} if gradients else None
        if self._recipe.clip is not None and found and not self._clips_itself():
            self._clip(list(found.values()), norms)
        rates = self._rates()
        self._optimizer.step()
        self._steps += 1
        for full in found:
            self._updates[full] += 1
        if self._scheduler is not None and self._recipe.schedule.by == "step" and not self._plateau():
            self._move_on(None)
        loss, *sizes = self._to_host(value, norms)
        measured: dict[str, float | None] = dict.fromkeys(self._parameters)
        measured.update(zip(found, sizes, strict=True))
        return Step(self._steps, loss, rates, measured, copies)

    def _look(self, gradients: Mapping[str, Any]) -> None:
        """At the first gradients: sparse ones are none that both sides could clip, measure and update by alike."""
        sparse = [full for full, gradient in gradients.items() if self._is_sparse(gradient)]
        if sparse:
            raise AlignmentError(
                f"the gradient of {', '.join(sparse)} is sparse, and is updated in another way than a dense one; build the "
                "Embedding with sparse=False"
            )
        self._looked = True

    def end_epoch(self, metric: float | None = None) -> None:
        """See `Trainer.end_epoch`."""
        if self._scheduler is None:
            return
        if self._plateau():
            self._move_on(checked(metric))
        elif self._recipe.schedule.by == "epoch":
            self._move_on(None)

    def _set_mode(self, mode: str) -> None:
        if mode == self._mode:
            return
        if mode == "train" and self._own_dropout:
            self.model.train()
        else:
            self._set_model(mode, self._masks)
        self._mode = mode

    # -------------------------------------------------------------------------------------------------------- state

    def state(self) -> TrainerState:
        """See `Trainer.state`."""
        words = {own: slot for slot, own in self.slots.items()}
        slots: dict[str, dict[str, NDArray]] = {}
        for full in self._parameters:
            if self._updates[full]:
                for own, tensor in self._held(full).items():
                    slots.setdefault(words.get(own, own), {})[full] = self._copied(tensor)
        updates = {full: count for full, count in self._updates.items() if count}
        return TrainerState(self._steps, slots, self._position(), updates)

    def load_state(self, state: TrainerState) -> None:
        """See `Trainer.load_state`."""
        unknown = [full for full in state.updates if full not in self._parameters]
        if unknown:
            raise AlignmentError(
                f"the optimizer's state has parameters that the model has not, or does not train: {', '.join(unknown)}; "
                "convert it with the weights"
            )
        odd = set() if self._own else set(state.slots) - KEPT[self._recipe.optimizer.kind]
        if odd:
            raise AlignmentError(
                f"the state holds {', '.join(sorted(odd))}, which {self._recipe.optimizer.kind} does not keep: it is of "
                "another optimizer"
            )
        self._forget()
        for full, count in state.updates.items():
            held = {slot: kept[full] for slot, kept in state.slots.items() if full in kept}
            for slot, value in held.items():
                shape = tuple(self._parameters[full].shape)
                if value.ndim and value.shape != shape:
                    raise AlignmentError(
                        f"the optimizer's state of {full}: {slot} has shape {list(value.shape)}, the parameter has "
                        f"{list(shape)}; convert it with the weights"
                    )
            self._fill(full, count, held)
        self._place(state.schedule)
        self._updates = {full: state.updates.get(full, 0) for full in self._parameters}
        self._steps = state.steps

    def recipe(self) -> Recipe:
        """See `Trainer.recipe`."""
        return self._read() if self._own else self._recipe

    def _groups_of(self, settings: Mapping[str, tuple[float, float]], usual: tuple[float, float]) -> tuple[Group, ...]:
        """Parameter -> (factor of the rate, decay): a group for each that is not as usual."""
        return tuple(
            Group(escape(self._named(full)), factor, None if decay == usual[1] else decay)
            for full, (factor, decay) in settings.items()
            if (factor, decay) != usual
        )

    # ---------------------------------------------------------------------------------------- what frameworks differ in

    @abstractmethod
    def _dtype(self) -> str: ...

    @abstractmethod
    def _trainable(self) -> dict[str, Any]:
        """Parameters that are trained, by name."""

    @abstractmethod
    def _made(self) -> tuple[Any, Any]:
        """(optimizer, scheduler or None) of the recipe."""

    @abstractmethod
    def _set_model(self, mode: str, masks: Masks | None) -> None: ...

    @abstractmethod
    def _seed(self, seed: int) -> None:
        """Seed the framework's random numbers."""

    @abstractmethod
    def _backward(self, batch: Batch) -> Any:
        """The loss of a batch, whose gradients alone the parameters then have."""

    @abstractmethod
    def _gradients(self) -> dict[str, Any]:
        """Of the parameters that have one."""

    @abstractmethod
    def _is_sparse(self, gradient: Any) -> bool: ...

    @abstractmethod
    def _norms(self, gradients: Sequence[Any]) -> Any:
        """A vector of their Euclidean norms, right to 1e-6 in float32, which the frameworks' own functions are not."""

    @abstractmethod
    def _to_host(self, value: Any, norms: Any) -> list[float]:
        """The loss and the norms, in one transfer."""

    @abstractmethod
    def _copied(self, tensor: Any) -> Any:
        """On the host; None of None."""

    @abstractmethod
    def _clips_itself(self) -> bool: ...

    @abstractmethod
    def _clip(self, gradients: Sequence[Any], norms: Any) -> None:
        """In place."""

    @abstractmethod
    def _rates(self) -> tuple[float, ...]: ...

    @abstractmethod
    def _plateau(self) -> bool:
        """Does the schedule go by a metric?"""

    @abstractmethod
    def _move_on(self, metric: float | None) -> None:
        """One step of the schedule."""

    @abstractmethod
    def _held(self, full: str) -> Mapping[str, Any]:
        """What the optimizer keeps of a parameter, by the framework's words, without counts of its updates."""

    @abstractmethod
    def _forget(self) -> None:
        """Empty the optimizer's state."""

    @abstractmethod
    def _fill(self, full: str, count: int, held: Mapping[str, NDArray]) -> None:
        """Set what the optimizer keeps of a parameter that was updated `count` times, by slot."""

    @abstractmethod
    def _position(self) -> dict[str, Any]:
        """The schedule's state; as `alignment.training.rules.Position` names it where it is the recipe's."""

    @abstractmethod
    def _place(self, position: Mapping[str, Any]) -> None:
        """Set the schedule's state; an empty one: its beginning."""

    @abstractmethod
    def _read(self) -> Recipe:
        """The recipe that an optimizer of the user's own follows."""


def no_loss() -> AlignmentError:
    """There is nothing to go back from."""
    return AlignmentError(
        "there is no loss to train by: the batch has no targets, or the logits are not one row for each of them"
    )


def not_said(what: str) -> AlignmentError:
    """A recipe has no word for what an optimizer of the user's own does."""
    return AlignmentError(f"{what}: no recipe says that, so it can't be held against the other side's option by option")


def same_in_all(framework: str, groups: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Refuse groups of parameters that differ in what a recipe has for all alike."""
    for name in names:
        values = {str(group[name]) for group in groups if name in group}
        if len(values) > 1:
            raise not_said(f"{framework}'s groups of parameters have different {name} ({', '.join(sorted(values))})")
