"""Softmax regression in NumPy behind the protocol of a trainer: a side without a framework, whose rounding is one's choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from alignment.training.curves import Participants
from alignment.training.lockstep import Link
from alignment.training.recipe import Recipe
from alignment.training.rules import Position, change, rule_of
from alignment.training.trainer import Step, TrainerState
from fake_data import Batch

FEATURES, CLASSES, ROWS = 12, 4, 16


class SoftmaxTrainer:
    """weight [C, D] and bias [C]; `transposed` stores the weight as [D, C], and sums rows one after another."""

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        recipe: Recipe,
        *,
        transposed: bool = False,
        spoil: Callable[[dict[str, np.ndarray]], None] | None = None,
    ) -> None:
        self.transposed, self.spoil, self._recipe = transposed, spoil, recipe
        self.load_weights(weights)
        self.load_state(TrainerState(schedule=asdict(Position.start(recipe))))

    def step(self, batch: Batch, *, gradients: bool = False) -> Step:
        x = batch.inputs["x"].astype(self._weights["bias"].dtype)
        weight = self._weights["weight"].T if self.transposed else self._weights["weight"]
        logits = x @ weight.T + self._weights["bias"]
        logits -= logits.max(1, keepdims=True)
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        rows = np.arange(len(x))
        loss = float(-np.log(share[rows, batch.targets]).mean())
        share[rows, batch.targets] -= 1
        share /= len(x)
        order = slice(None, None, -1) if self.transposed else slice(None)
        found = {"weight": share[order].T @ x[order], "bias": np.add.accumulate(share[order], 0)[-1]}
        if self.spoil is not None:
            self.spoil(found)
        rate, norm = self._position.rate, float(np.sqrt(sum(np.square(g).sum() for g in found.values())))
        for name, gradient in found.items():
            stored = gradient.T if self.transposed else gradient
            self._updates[name] = self._updates.get(name, 0) + 1
            dtype = self._weights[name].dtype
            added, slots = change(
                rule_of(self._recipe, name), self._weights[name].astype(np.float64), stored.astype(np.float64),
                self._slots.get(name, {}), self._updates[name], rate, norm,
            )  # fmt: skip
            self._weights[name] = (self._weights[name] + added).astype(dtype)
            self._slots[name] = {slot: value.astype(dtype) for slot, value in slots.items()}
        self._steps += 1
        self._position = self._position.moved(self._recipe)
        norms = {name: float(np.linalg.norm(g)) for name, g in found.items()}
        copies = {name: g.T.copy() if self.transposed else g.copy() for name, g in found.items()}
        return Step(self._steps, loss, (rate,), norms, copies if gradients else None)

    def end_epoch(self, metric: float | None = None) -> None:
        self.told = metric

    def recipe(self) -> Recipe:
        return self._recipe

    def predict(self, batch: Batch) -> np.ndarray:
        raise NotImplementedError

    def weights(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self._weights.items()}

    def load_weights(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._weights = {name: np.array(value) for name, value in tensors.items()}

    def state(self) -> TrainerState:
        slots: dict[str, dict[str, np.ndarray]] = {}
        for name, held in self._slots.items():
            for slot, value in held.items():
                slots.setdefault(slot, {})[name] = value.copy()
        return TrainerState(self._steps, slots, asdict(self._position), dict(self._updates))

    def load_state(self, state: TrainerState) -> None:
        self._slots: dict[str, dict[str, np.ndarray]] = {}
        for slot, held in state.slots.items():
            for name, value in held.items():
                self._slots.setdefault(name, {})[slot] = np.array(value)
        self._updates, self._steps = dict(state.updates), state.steps
        self._position = Position(**state.schedule)


def turned(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(value.T) for name, value in tensors.items()}


def turned_state(state: TrainerState) -> TrainerState:
    return replace(state, slots={slot: turned(held) for slot, held in state.slots.items()})


TURNED = Link(given=turned, taken=turned, state=turned_state)


def batches(steps: int, seed: int = 0, scale: float = 1.0) -> list[Batch]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((steps, ROWS, FEATURES)) * scale
    y = generator.integers(0, CLASSES, (steps, ROWS))
    return [Batch(f"step-{n + 1}", {"x": x[n].astype(np.float32)}, y[n]) for n in range(steps)]


def participants(
    recipe: Recipe, candidate: Recipe | None = None, dtype: str = "float32", seed: int = 0, spoil: Any = None
) -> Participants:
    """Both sides from the same weights; the candidate transposed, with a recipe and a flaw of its own if asked for."""
    generator = np.random.default_rng(seed)
    weights = {
        "weight": (0.1 * generator.standard_normal((CLASSES, FEATURES))).astype(np.float32).astype(dtype),
        "bias": (0.1 * generator.standard_normal(CLASSES)).astype(np.float32).astype(dtype),
    }

    def moved(tensors: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
        up = np.random.default_rng(number + 1)
        return {
            n: np.nextafter(v, np.where(up.random(v.shape) < 0.5, -9, 9).astype(v.dtype)) for n, v in tensors.items()
        }

    return Participants(
        reference=lambda: SoftmaxTrainer(weights, recipe),
        candidate=lambda: SoftmaxTrainer(turned(weights), candidate or recipe, transposed=True, spoil=spoil),
        link=TURNED,
        owners={"weight": "weight", "bias": "bias"},
        moved=moved,
        recipe=recipe,
        eps=float(np.finfo(dtype).eps),
    )
