"""One loop that drives all trainers of a comparison on identical batches: the reference, and whoever is held against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from alignment.training.trainer import Step, Trainer, TrainerState
from fake_data import Batch

Tensors = Mapping[str, NDArray]
Changed = Callable[[dict[str, NDArray]], dict[str, NDArray]]


def _same(tensors: Tensors) -> dict[str, NDArray]:
    return dict(tensors)


def _same_state(state: TrainerState) -> TrainerState:
    return state


@dataclass(frozen=True)
class Link:
    """How a follower's tensors correspond to the reference's; by default they are the same.

    labelled: tensors of the reference (weights, or gradients of some) -> by the labels they are compared under.
    given: the reference's whole state dict -> the follower's. taken: the follower's tensors -> by the same labels as
    `labelled` gives, in the reference's layout. state: the reference's optimizer and schedule state -> the follower's.
    own_schedule: a follower's schedule can't take the reference's position, and keeps its own.
    """

    labelled: Callable[[Tensors], dict[str, NDArray]] = _same
    given: Callable[[Tensors], dict[str, NDArray]] = _same
    taken: Callable[[Tensors], dict[str, NDArray]] = _same
    state: Callable[[TrainerState], TrainerState] = _same_state
    own_schedule: bool = False


@dataclass(frozen=True)
class Follower:
    """One more trainer in the loop.

    synced: it takes the reference's weights, optimizer and schedule state before every step; else it goes its own way.
    moved: what becomes of the reference's weights before a synced follower takes them. gradients: keep its gradients.
    """

    trainer: Trainer
    link: Link = field(default_factory=Link)
    synced: bool = False
    moved: Changed | None = None
    gradients: bool = False


@dataclass(frozen=True)
class Moment:
    """One step of all trainers.

    reference, followers: what each did. before, state: the reference's weights and state before it, where somebody is synced.
    weights, followed: the reference's and each follower's after it, by label, where they were looked at.
    """

    number: int
    batch: Batch
    reference: Step
    followers: Mapping[str, Step]
    before: Tensors | None = None
    state: TrainerState | None = None
    weights: dict[str, NDArray] | None = None
    followed: Mapping[str, dict[str, NDArray]] | None = None

    def deviation(self, name: str) -> dict[str, float]:
        """Euclidean distance of a follower's weights from the reference's, by label; empty where they were not looked at."""
        if self.weights is None or self.followed is None:
            return {}
        theirs = self.followed[name]
        return {label: distance(theirs[label], value) for label, value in self.weights.items() if label in theirs}


def lockstep(
    reference: Trainer,
    followers: Mapping[str, Follower],
    batches: Iterable[Batch],
    *,
    every: int = 0,
    epoch: int = 0,
    gradients: bool = False,
    labelled: Callable[[Tensors], dict[str, NDArray]] = _same,
) -> Iterator[Moment]:
    """Step all trainers on each batch in turn; what each did comes as a `Moment`.

    Args:
        reference: the trainer whose way is the truth.
        followers: name -> who is held against it. Each must have the weights it begins with.
        batches: one for each step; the same object is given to all.
        every: look at all weights after each `every`-th step, and after the first; 0: never. Without, and without synced
            followers, nothing is copied and the loop costs no more than the trainers' own steps.
        epoch: steps after which an epoch is over, and the schedules are told, each with its trainer's mean loss; 0: never.
        gradients: keep the reference's gradients. labelled: see `Link`.
    """
    synced = {name: one for name, one in followers.items() if one.synced}
    losses: list[list[float]] = []
    for number, batch in enumerate(batches, 1):
        before = state = None
        if synced:
            before, state = reference.weights(), reference.state()
            for one in synced.values():
                one.trainer.load_weights(one.link.given(before if one.moved is None else one.moved(before)))
                given = one.link.state(state)
                if one.link.own_schedule:
                    given = replace(given, schedule=one.trainer.state().schedule)
                one.trainer.load_state(given)
        ours = reference.step(batch, gradients=gradients)
        steps = {name: one.trainer.step(batch, gradients=one.gradients) for name, one in followers.items()}
        if epoch:
            losses.append([step.loss for step in (ours, *steps.values())])
            if number % epoch == 0:
                means = np.mean(losses, axis=0)
                losses = []
                for trainer, mean in zip((reference, *(f.trainer for f in followers.values())), means, strict=True):
                    trainer.end_epoch(float(mean))
        looked = every > 0 and (number == 1 or number % every == 0)
        weights: dict[str, NDArray] | None = None
        followed: dict[str, dict[str, NDArray]] | None = None
        if looked or synced:
            weights = labelled(reference.weights())
            wanted = followers if looked else synced
            followed = {name: one.link.taken(one.trainer.weights()) for name, one in wanted.items()}
        yield Moment(number, batch, ours, steps, before, state, weights, followed)


def distance(one: NDArray, two: NDArray) -> float:
    """‖one − two‖₂ in float64; infinite where one holds what is no number."""
    if one.shape != two.shape:
        return float("inf")
    with np.errstate(all="ignore"):
        found = float(np.linalg.norm((one.astype(np.float64) - two).ravel()))
    return found if np.isfinite(found) else float("inf")
