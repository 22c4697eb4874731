"""Both frameworks' trainers: driven alike, they do the same."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch

from alignment.frameworks import get_framework, get_trainer
from alignment.training.recipe import Group, Optimizer, Recipe
from fake_data import Batch

from .. import own_paddle, own_torch

RANDOM = np.random.default_rng(0)
BATCHES = [Batch("b", {"x": RANDOM.normal(size=(8, 6)).astype("f4")}, RANDOM.integers(0, 4, 8)) for _ in range(10)]
LOSSES = {"torch": torch.nn.functional.cross_entropy, "paddle": paddle.nn.functional.cross_entropy}
LINEAR = ("first.weight", "unused.weight", "head.weight", "tied.weight")


def pair(recipe: Recipe, dtype: str = "float64", **options):
    """Trainers of both frameworks for the same model with the same weights."""
    weights = get_framework("torch").read_state(get_framework("torch").build(own_torch.Net, {}))
    made = []
    for name, target in (("torch", own_torch.Net), ("paddle", own_paddle.Net)):
        framework = get_framework(name)
        model = framework.build(target, {})
        framework.load_state(model, turned(weights) if name == "paddle" else weights)
        made.append(get_trainer(name, framework.cast(model, dtype), recipe, loss=LOSSES[name], **options))
    return made


def turned(tensors):
    """Between the two frameworks' layouts."""
    return {name: tensor.T if name in LINEAR else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("groups", [(), (Group("*.bias", 2.0, 0.0), Group("head*", 0.5, 0.3))])
@pytest.mark.parametrize("dropout", [None, 3])
@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer("sgd", weight_decay=0.1),
        Optimizer("sgd", momentum=0.9, nesterov=True, weight_decay=0.01),
        Optimizer("adam", weight_decay=0.01),
        Optimizer("adam", amsgrad=True),
        Optimizer("adamw", weight_decay=0.01),
    ],
)
def test_ten_steps_in_float64_agree_to_its_rounding(optimizer, dropout, groups) -> None:
    one, two = pair(Recipe(optimizer, groups=groups), dropout=dropout)
    for number, batch in enumerate(BATCHES, 1):
        ours, theirs = one.step(batch, gradients=True), two.step(batch, gradients=True)
        assert ours.number == theirs.number == number
        assert ours.rates == theirs.rates
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-13)
        assert ours.norms.keys() == theirs.norms.keys()
        for name, norm in ours.norms.items():
            assert theirs.norms[name] == (None if norm is None else pytest.approx(norm, rel=1e-12)), name
    before, after = one.state(), two.state()
    for name, tensor in turned(two.weights()).items():
        np.testing.assert_allclose(tensor, one.weights()[name], atol=1e-14, err_msg=name)
    assert before.updates == after.updates
    assert "unused.weight" not in before.updates
    assert before.slots.keys() == after.slots.keys()
    for slot, tensors in before.slots.items():
        for name, tensor in turned(after.slots[slot]).items():
            np.testing.assert_allclose(tensor, tensors[name], atol=1e-14, err_msg=f"{slot} of {name}")
    np.testing.assert_allclose(one.predict(BATCHES[0]), two.predict(BATCHES[0]), atol=1e-13)
