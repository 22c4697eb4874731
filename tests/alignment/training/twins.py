"""Small models of both frameworks with the same weights, and their trainers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import paddle
import torch

from alignment.frameworks import get_framework, get_trainer
from alignment.training.recipe import Recipe
from fake_data import Batch

LOSSES = {"torch": torch.nn.functional.cross_entropy, "paddle": paddle.nn.functional.cross_entropy}
FRAMEWORKS = ("torch", "paddle")


def small_torch(dropout: float = 0.0) -> torch.nn.Module:
    nn = torch.nn
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(dropout), nn.LayerNorm(5), nn.Linear(5, 4))


def small_paddle(dropout: float = 0.0) -> Any:
    nn = paddle.nn
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(dropout), nn.LayerNorm(5), nn.Linear(5, 4))


SMALL = {"torch": small_torch, "paddle": small_paddle}


def batches(count: int, width: int = 3, classes: int = 4, seed: int = 0) -> list[Batch]:
    random = np.random.default_rng(seed)
    return [
        Batch(f"{i}", {"x": random.normal(size=(6, width)).astype(np.float32)}, random.integers(0, classes, 6))
        for i in range(count)
    ]


def turned(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """From one framework's layout to the other's: all weights of two axes here are Linear's."""
    return {name: tensor.T if np.ndim(tensor) == 2 else tensor for name, tensor in tensors.items()}


def pair(
    recipe: Recipe | None,
    dtype: str = "float64",
    models: Mapping[str, Callable[..., Any]] = SMALL,
    settings: Mapping[str, Any] | None = None,
    optimizers: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> list[Any]:
    """A trainer of each framework, of the same model with the same weights."""
    made, weights = [], {}
    for name in FRAMEWORKS:
        framework = get_framework(name)
        model = framework.build(models[name], settings or {}, seed=seed)
        weights = turned(weights) if weights else framework.read_state(model)
        framework.load_state(model, weights)
        chosen = (optimizers or {}).get(name)
        made.append(
            get_trainer(name, framework.cast(model, dtype), recipe, loss=LOSSES[name], optimizer=chosen, **options)
        )
    return made


def assert_same_slots(one: Any, two: Any, **tolerances: float) -> None:
    """Two states, of torch and of Paddle."""
    assert one.steps == two.steps
    assert one.updates == two.updates
    assert one.slots.keys() == two.slots.keys()
    for slot, tensors in one.slots.items():
        assert tensors.keys() == two.slots[slot].keys()
        for name, tensor in turned(two.slots[slot]).items():
            np.testing.assert_allclose(tensor, tensors[name], err_msg=f"{slot} of {name}", **tolerances)


def assert_same_weights(one: Any, two: Any, **tolerances: float) -> None:
    """Two trainers, of torch and of Paddle."""
    ours = one.weights()
    for name, tensor in turned(two.weights()).items():
        np.testing.assert_allclose(tensor, ours[name], err_msg=name, **tolerances)
