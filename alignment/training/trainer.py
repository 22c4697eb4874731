"""What one side offers to the loop that drives both: a model with its optimizer and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from alignment.training.recipe import Recipe
from fake_data import Batch


@dataclass(frozen=True)
class Step:
    """What one training step did.

    number: from 1. loss: before the update. rates: the learning rate of the parameters in no group, then that of each of the
    recipe's groups. norms: trainable parameter -> Euclidean norm of its gradient before clipping, None where it has none.
    gradients: the same gradients themselves, where they were asked for.
    """

    number: int
    loss: float
    rates: tuple[float, ...]
    norms: Mapping[str, float | None]
    gradients: Mapping[str, NDArray | None] | None = None


@dataclass(frozen=True)
class TrainerState:
    """An optimizer's and a schedule's state, in neutral words.

    steps: updates made so far. slots: ``"momentum"``, ``"first moment"``, ``"second moment"`` or ``"largest second moment"``
    (of other optimizers: the framework's own word) -> parameter's name -> array in that parameter's own layout and dtype.
    schedule: the schedule's position, JSON values (`alignment.training.rules.Position`).
    updates: parameter's name -> how often it was updated: fewer times than there were steps where it had no gradient in some.
    """

    steps: int = 0
    slots: Mapping[str, Mapping[str, NDArray]] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    updates: Mapping[str, int] = field(default_factory=dict)


class Trainer(Protocol):
    """One side. Names and layouts are the side's own."""

    def step(self, batch: Batch, *, gradients: bool = False) -> Step:
        """Forward and backward pass in training mode, clipping, the optimizer's update, then the schedule's step.

        gradients: copy every gradient to the host, as it is before clipping.
        """

    def end_epoch(self, metric: float | None = None) -> None:
        """Tell a schedule that goes by epochs, or by a metric (plateau), that one is over."""

    def recipe(self) -> Recipe:
        """What it trains by; of an optimizer of the user's own, as far as it can be read.

        Raises:
            AlignmentError: the optimizer or its schedule is of a kind that no recipe says.
        """

    def predict(self, batch: Batch) -> NDArray:
        """Logits of a batch, in evaluation mode."""

    def weights(self) -> dict[str, NDArray]:
        """Copies of all tensors of the state dict: parameters and buffers."""

    def load_weights(self, tensors: Mapping[str, NDArray]) -> None:
        """Fill every tensor of the state dict; the optimizer's state stays."""

    def state(self) -> TrainerState:
        """A copy of the optimizer's and the schedule's state."""

    def load_state(self, state: TrainerState) -> None:
        """Go on from a state that `state` gave, of this side or (converted) of the other."""
