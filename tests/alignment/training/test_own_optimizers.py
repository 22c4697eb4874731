"""Optimizers of the user's own in the trainers: what they really do is compared, and what they say is read."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch

from alignment import AlignmentError
from alignment.training.recipe import Clip, Group, Optimizer, Recipe, Schedule, differences

from .twins import assert_same_slots, assert_same_weights, batches, pair

PADDLE_LR = paddle.optimizer.lr
TORCH_LR = torch.optim.lr_scheduler


def steps(trainers, count: int = 6) -> float:
    """The largest difference of weights after some steps."""
    one, two = trainers
    for batch in batches(count):
        one.step(batch), two.step(batch)
    return max(np.abs(t.T - one.weights()[n]).max() for n, t in two.weights().items())


def own(torch_optimizer, paddle_optimizer, recipe=None, **options):
    return pair(recipe, optimizers={"torch": torch_optimizer, "paddle": paddle_optimizer}, **options)


def scheduled(model, scheduler):
    return paddle.optimizer.SGD(scheduler, parameters=model.parameters()), scheduler


ADAMW = (
    lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.5),
    lambda m: paddle.optimizer.AdamW(0.01, parameters=m.parameters(), weight_decay=0.5),
)


def test_a_right_pair_of_ones_own_is_aligned_and_reads_as_one_recipe() -> None:
    one, two = own(*ADAMW)
    assert steps((one, two)) < 1e-13
    assert_same_slots(one.state(), two.state(), atol=1e-14)
    assert one.recipe() == two.recipe() == Recipe(Optimizer("adamw", 0.01, weight_decay=0.5))


# What a port may have, against torch's: what it says of itself, and how far the weights are off after six steps at least.
WRONG = {
    "decay as L2": (
        ADAMW[0],
        lambda m: paddle.optimizer.Adam(0.01, parameters=m.parameters(), weight_decay=0.5),
        ("kind: adamw against adam",),
    ),
    "AdamW's default decay": (
        lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
        lambda m: paddle.optimizer.AdamW(0.01, parameters=m.parameters()),
        ("kind: adam against adamw", "weight_decay: 0 against 0.01"),
    ),
    "Momentum's default": (
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        lambda m: paddle.optimizer.Momentum(0.1, parameters=m.parameters()),
        ("momentum: 0 against 0.9",),
    ),
    "decay left out for biases": (
        ADAMW[0],
        lambda m: paddle.optimizer.AdamW(
            0.01,
            parameters=m.parameters(),
            weight_decay=0.5,
            apply_decay_param_fun=lambda name: not name.startswith("linear_") or ".b_" not in name,
        ),
        ("weight_decay of 0.bias: 0.5 against 0", "weight_decay of 4.bias: 0.5 against 0"),
    ),
    "a regularizer of a layer's own": (
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.1),
        lambda m: (
            setattr(m[0].weight, "regularizer", paddle.regularizer.L2Decay(0.0)),
            paddle.optimizer.SGD(0.1, parameters=m.parameters(), weight_decay=0.1),
        )[1],
        ("weight_decay of 0.weight: 0.1 against 0",),
    ),
    "a rate of a layer's own": (
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        lambda m: (
            m[4].bias.optimize_attr.update(learning_rate=0.5),
            paddle.optimizer.SGD(0.1, parameters=m.parameters()),
        )[1],
        ("rate's factor of 4.bias: 1 against 0.5",),
    ),
    "clipping of another kind": (
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        lambda m: paddle.optimizer.SGD(0.1, parameters=m.parameters(), grad_clip=paddle.nn.ClipGradByNorm(0.05)),
        ("clipping: global norm 0.05 against norm 0.05",),
    ),
    "a schedule that is not stepped": (
        lambda m: (o := torch.optim.SGD(m.parameters(), lr=0.1), TORCH_LR.StepLR(o, 2)),
        lambda m: paddle.optimizer.SGD(PADDLE_LR.StepDecay(0.1, 2), parameters=m.parameters()),
        ("schedule: step against constant",),
    ),
    "the one-cycle's other end": (
        lambda m: (
            o := torch.optim.SGD(m.parameters(), lr=0.1),
            TORCH_LR.OneCycleLR(o, 0.1, 6, cycle_momentum=False),
        ),
        lambda m: scheduled(m, PADDLE_LR.OneCycleLR(0.1, 6)),
        ("final_div_factor of the onecycle schedule: 10000 against 40",),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pair_differs_and_says_in_what(name) -> None:
    ours, theirs, told = WRONG[name]
    recipe = Recipe(clip=Clip("global norm", 0.05)) if "clipping" in name else None
    # Paddle's clip_by_norm has no float64 on a CPU.
    trainers = own(ours, theirs, recipe, dtype="float32" if "clipping" in name else "float64")
    assert differences(*(trainer.recipe() for trainer in trainers)) == pytest.approx(told)
    assert steps(trainers) > 1e-6


def test_right_schedules_of_ones_own_read_alike_and_step_alike() -> None:
    pairs = {
        "step": (lambda o: TORCH_LR.StepLR(o, 2), lambda: PADDLE_LR.StepDecay(0.1, 2)),
        "multistep": (
            lambda o: TORCH_LR.MultiStepLR(o, [1, 3], 0.5),
            lambda: PADDLE_LR.MultiStepDecay(0.1, [1, 3], 0.5),
        ),
        "cosine": (lambda o: TORCH_LR.CosineAnnealingLR(o, 4), lambda: PADDLE_LR.CosineAnnealingDecay(0.1, 4)),
        "warmup": (lambda o: TORCH_LR.LinearLR(o, 0.2, 1.0, 4), lambda: PADDLE_LR.LinearWarmup(0.1, 4, 0.02, 0.1)),
        "onecycle": (
            lambda o: TORCH_LR.OneCycleLR(o, 0.1, 9, cycle_momentum=False),
            lambda: PADDLE_LR.OneCycleLR(0.1, 9, end_learning_rate=0.1 / 25 / 1e4),
        ),
        "plateau": (lambda o: TORCH_LR.ReduceLROnPlateau(o), lambda: PADDLE_LR.ReduceOnPlateau(0.1)),
    }
    for kind, (ours, theirs) in pairs.items():

        def one(model, ours=ours):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            return optimizer, ours(optimizer)

        def two(model, theirs=theirs):
            return scheduled(model, theirs())

        trainers = own(one, two)
        recipes = [trainer.recipe() for trainer in trainers]
        assert recipes[0].schedule.kind == kind
        assert [text for text in differences(*recipes) if "factor" not in text] == [], kind
        assert steps(trainers) < 1e-13, kind
        rates = [trainer.step(batches(1)[0]).rates for trainer in trainers]
        assert rates[0] == pytest.approx(rates[1], rel=1e-12)


def test_a_grad_clip_of_paddles_own_counts_each_of_its_groups_by_itself() -> None:
    """So that its global norm is none: a difference that one sees in the weights alone."""

    def two(model, grouped):
        parameters = model.parameters()
        groups = [{"params": parameters[:2]}, {"params": parameters[2:]}] if grouped else parameters
        return paddle.optimizer.SGD(0.1, parameters=groups, grad_clip=paddle.nn.ClipGradByGlobalNorm(0.05))

    recipe = Recipe(clip=Clip("global norm", 0.05))
    for grouped, low, high in ((False, 1e-9, 1e-5), (True, 1e-4, 1.0)):
        trainers = own(
            lambda m: torch.optim.SGD(m.parameters(), lr=0.1), lambda m, grouped=grouped: two(m, grouped), recipe
        )
        assert low < steps(trainers) < high


def test_groups_are_read_by_the_references_names() -> None:
    def one(model):
        biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
        others = [p for n, p in model.named_parameters() if not n.endswith("bias")]
        return torch.optim.AdamW([{"params": others}, {"params": biases, "weight_decay": 0.0, "lr": 0.02}], lr=0.01)

    def two(model):
        biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
        others = [p for n, p in model.named_parameters() if not n.endswith("bias")]
        groups = [{"params": others}, {"params": biases, "weight_decay": 0.0, "learning_rate": 2.0}]
        return paddle.optimizer.AdamW(0.01, parameters=groups, weight_decay=0.01)

    trainers = own(one, two)
    recipes = [trainer.recipe() for trainer in trainers]
    assert recipes[0] == recipes[1]
    assert recipes[0].groups == tuple(Group(name, 2.0, 0.0) for name in ("0.bias", "3.bias", "4.bias"))
    assert trainers[0].step(batches(1)[0]).rates == pytest.approx(trainers[1].step(batches(1)[0]).rates)
    # Paddle's AdamW holds its decay as float32.
    assert steps(trainers) < 1e-9


def test_what_no_recipe_says_is_told() -> None:
    for ours, theirs, messages in (
        (
            lambda m: torch.optim.RMSprop(m.parameters()),
            lambda m: paddle.optimizer.Lamb(parameters=m.parameters()),
            ("torch's RMSprop", "Paddle's Lamb"),
        ),
        (
            lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, dampening=0.1),
            lambda m: paddle.optimizer.SGD(0.1, m.parameters(), weight_decay=paddle.regularizer.L1Decay(0.1)),
            ("dampening=0.1", "Paddle's L1Decay"),
        ),
        (
            lambda m: (o := torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), TORCH_LR.OneCycleLR(o, 0.1, 9)),
            lambda m: scheduled(m, PADDLE_LR.NoamDecay(8, 9)),
            ("cycle_momentum", "Paddle's NoamDecay"),
        ),
    ):
        for trainer, message in zip(own(ours, theirs), messages, strict=True):
            with pytest.raises(AlignmentError, match=message):
                trainer.recipe()
    with pytest.raises(AlignmentError, match="a recipe, or an optimizer"):
        pair(None)


@pytest.mark.parametrize("side", [0, 1])
def test_an_optimizer_of_ones_own_resumes_without_a_bit_lost(side) -> None:
    def one(model):
        optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9)
        first, second = TORCH_LR.LinearLR(optimizer, 0.1, 1.0, 3), TORCH_LR.StepLR(optimizer, 2)
        return optimizer, TORCH_LR.SequentialLR(optimizer, [first, second], [3])

    def two(model):
        scheduler = PADDLE_LR.LinearWarmup(PADDLE_LR.StepDecay(0.01, 2), 3, 0.001, 0.01)
        return paddle.optimizer.RMSProp(scheduler, parameters=model.parameters(), momentum=0.9), scheduler

    whole, first, second = (own(one, two)[side] for _ in range(3))
    for batch in batches(4):
        first.step(batch)
    second.load_weights(first.weights())
    second.load_state(first.state())
    assert {"mean square"} <= set(first.state().slots)
    for batch in batches(8):
        whole.step(batch)
    for batch in batches(8)[4:]:
        step = second.step(batch)
    assert step.number == 8
    for name, tensor in second.weights().items():
        np.testing.assert_array_equal(tensor, whole.weights()[name], err_msg=name)
    assert second.state().schedule == whole.state().schedule


def test_a_recipe_still_says_when_an_own_schedule_steps() -> None:
    def one(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return optimizer, TORCH_LR.StepLR(optimizer, 1)

    def two(model):
        return scheduled(model, PADDLE_LR.StepDecay(0.1, 1))

    for trainer in own(one, two, Recipe(schedule=Schedule(by="epoch"))):
        assert [trainer.step(batch).rates for batch in batches(2)] == [(0.1,), (0.1,)]
        trainer.end_epoch()
        assert trainer.step(batches(1)[0]).rates == pytest.approx((0.01,))
        assert trainer.recipe().schedule == Schedule("step", {"step_size": 1, "gamma": 0.1}, by="epoch")


def test_right_trainers_of_a_recipe_give_it_back() -> None:
    recipe = Recipe(Optimizer("sgd", 0.1, momentum=0.5))
    assert [trainer.recipe() for trainer in pair(recipe)] == [recipe, recipe]
    one, two = pair(recipe)
    one.step(batches(1)[0]), two.step(batches(1)[0])
    assert_same_weights(one, two, atol=1e-15)
