"""Both frameworks' trainers and the rule: driven alike, they do the same, step by step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment import AlignmentError
from alignment.frameworks import get_framework, get_trainer
from alignment.training.recipe import Clip, Group, Optimizer, Recipe, Schedule
from alignment.training.rules import Position, Replay, rate_at
from fake_data import Batch

from .. import own_paddle, own_torch
from .twins import assert_same_slots, assert_same_weights, batches, pair

NETS = {"torch": own_torch.Net, "paddle": own_paddle.Net}
GROUPS = (Group("*.bias", 2.0, 0.0), Group("4.*", 0.5, 0.3))

DECAY = st.sampled_from([0.0, 0.01, 0.3])
OPTIMIZERS = st.one_of(
    st.builds(Optimizer, st.just("sgd"), st.just(0.1), weight_decay=DECAY),
    st.builds(
        Optimizer,
        st.just("sgd"),
        st.just(0.1),
        momentum=st.sampled_from([0.5, 0.9]),
        nesterov=st.booleans(),
        weight_decay=DECAY,
    ),
    st.builds(
        Optimizer,
        st.sampled_from(["adam", "adamw"]),
        st.just(0.01),
        betas=st.sampled_from([(0.9, 0.999), (0.8, 0.9), (0.0, 0.99)]),
        eps=st.sampled_from([1e-8, 1e-3]),
        amsgrad=st.booleans(),
        weight_decay=DECAY,
    ),
)
SCHEDULES = st.sampled_from(
    [
        Schedule(),
        Schedule("step", {"step_size": 3, "gamma": 0.5}),
        Schedule("multistep", {"milestones": [2, 3, 7], "gamma": 0.3}),
        Schedule("cosine", {"T_max": 5, "eta_min": 0.002}),
        Schedule("warmup", {"start_factor": 0.1, "end_factor": 0.9, "total_iters": 6}),
        Schedule("onecycle", {"total_steps": 10}),
        Schedule("onecycle", {"total_steps": 12, "anneal_strategy": "linear", "three_phase": True, "max_lr": 0.3}),
        Schedule("step", {"step_size": 2}, by="epoch"),
        Schedule("plateau", {"factor": 0.5, "patience": 0, "cooldown": 1}),
    ]
)
CLIPS = st.one_of(
    st.none(),
    st.builds(Clip, st.sampled_from(["value", "norm", "global norm"]), st.sampled_from([0.01, 0.3, 100.0])),
)
RECIPES = st.builds(Recipe, OPTIMIZERS, SCHEDULES, CLIPS, st.sampled_from([(), GROUPS]))


@given(RECIPES)
@settings(max_examples=60, deadline=None)
def test_torch_paddle_and_the_rule_make_the_same_steps_in_float64(recipe) -> None:
    one, two = pair(recipe)
    rule = Replay(recipe.as_held(), one.weights())
    for number, batch in enumerate(batches(10), 1):
        rates = rule.rates
        ours, theirs = one.step(batch, gradients=True), two.step(batch)
        rule.step(ours.gradients)
        assert ours.number == theirs.number == number
        assert ours.rates == pytest.approx(rates, rel=1e-12)
        assert theirs.rates == pytest.approx(rates, rel=1e-12)
        assert theirs.loss == pytest.approx(ours.loss, rel=1e-11)
        assert theirs.norms == pytest.approx(ours.norms, rel=1e-9)
        if number % 2 == 0:
            for each in (one, two, rule):
                each.end_epoch(1.0 / min(number, 5))
        assert_same_weights(one, two, rtol=1e-10, atol=1e-12)
        for name, tensor in one.weights().items():
            np.testing.assert_allclose(rule.weights[name], tensor, rtol=1e-11, atol=1e-13, err_msg=name)
        assert_same_slots(one.state(), two.state(), rtol=1e-9, atol=1e-12)
    before = rule.state()
    assert before.updates == one.state().updates
    for slot, tensors in one.state().slots.items():
        for name, tensor in tensors.items():
            np.testing.assert_allclose(
                before.slots[slot][name], tensor, rtol=1e-11, atol=1e-14, err_msg=f"{slot} {name}"
            )


@pytest.mark.parametrize("dropout", [None, 3])
def test_a_parameter_that_is_not_used_stays_on_both_sides(dropout) -> None:
    one, two = pair(Recipe(Optimizer("adamw", weight_decay=0.1)), models=NETS, dropout=dropout)
    start = one.weights()["unused.weight"]
    for batch in batches(5, width=6):
        ours, theirs = one.step(batch, gradients=True), two.step(batch, gradients=True)
        assert ours.norms["unused.weight"] is theirs.norms["unused.weight"] is None
        assert ours.gradients["unused.weight"] is theirs.gradients["unused.weight"] is None
        assert theirs.norms["head.weight"] == pytest.approx(ours.norms["head.weight"], rel=1e-12)
        np.testing.assert_allclose(theirs.gradients["head.weight"].T, ours.gradients["head.weight"], atol=1e-13)
    np.testing.assert_array_equal(one.weights()["unused.weight"], start)
    np.testing.assert_array_equal(two.weights()["unused.weight"].T, start)
    assert "unused.weight" not in one.state().updates
    assert_same_slots(one.state(), two.state(), atol=1e-14)
    assert_same_weights(one, two, atol=1e-14)
    np.testing.assert_allclose(one.predict(batch), two.predict(batch), atol=1e-13)


def sometimes(framework):
    """A model that uses its second half in every other batch only."""
    nn = framework.nn

    class Sometimes(nn.Module if framework is torch else nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x):
            return self.one(x) + self.two(x) if float(x[0, 0]) > 0 else self.one(x)

    return Sometimes


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_parameter_used_now_and_then_is_updated_alike(kind) -> None:
    momentum = {"momentum": 0.9} if kind == "sgd" else {}
    recipe = Recipe(Optimizer(kind, 0.01, weight_decay=0.1, **momentum))
    one, two = pair(recipe, models={"torch": sometimes(torch), "paddle": sometimes(paddle)})
    rule = Replay(recipe.as_held(), one.weights())
    for batch in batches(12, seed=3):
        rule.step(one.step(batch, gradients=True).gradients)
        two.step(batch)
    updates = one.state().updates
    assert 0 < updates["two.weight"] < updates["one.weight"] == 12
    assert_same_slots(one.state(), two.state(), atol=1e-14)
    assert_same_weights(one, two, atol=1e-14)
    for name, tensor in one.weights().items():
        np.testing.assert_allclose(rule.weights[name], tensor, atol=1e-14)


def test_clipping_is_that_of_the_frameworks_own_functions() -> None:
    for kind, limit in (("global norm", 0.1), ("norm", 0.05), ("value", 0.01)):
        recipe = Recipe(Optimizer("sgd", 1.0), clip=Clip(kind, limit))
        for trainer, start, utils in zip(pair(recipe), pair(recipe), (torch.nn.utils, paddle.nn.utils), strict=True):
            before, batch = trainer.weights(), batches(1)[0]
            gradients = trainer.step(batch, gradients=True).gradients
            start._backward(batch)
            parameters = list(start._parameters.values())
            if kind == "value":
                utils.clip_grad_value_(parameters, limit)
            else:
                for held in [parameters] if kind == "global norm" else [[p] for p in parameters]:
                    utils.clip_grad_norm_(held, limit)
            start._optimizer.step()
            changed = start.weights()
            for name, tensor in trainer.weights().items():
                np.testing.assert_allclose(tensor, changed[name], rtol=1e-13, err_msg=f"{kind} {name}")
            assert any(np.abs(before[n] - changed[n] - gradients[n]).max() > 1e-3 for n in gradients)


def test_norms_are_right_where_the_frameworks_own_are_not() -> None:
    """Two million float32: paddle.linalg.norm, by which its clip_grad_norm_ clips, is off by more than 1e-4."""
    models = {
        "torch": lambda: torch.nn.Sequential(torch.nn.Linear(3, 500), torch.nn.Linear(500, 4000)),
        "paddle": lambda: paddle.nn.Sequential(paddle.nn.Linear(3, 500), paddle.nn.Linear(500, 4000)),
    }
    for trainer in pair(Recipe(clip=Clip("global norm", 0.1)), dtype="float32", models=models):
        step = trainer.step(batches(1)[0], gradients=True)
        for name, gradient in step.gradients.items():
            assert step.norms[name] == pytest.approx(float(np.linalg.norm(np.float64(gradient))), rel=2e-6)
    gradient = np.random.default_rng(0).normal(size=(1000, 2000)).astype(np.float32)
    exact = float(np.linalg.norm(np.float64(gradient)))
    assert abs(float(paddle.linalg.norm(paddle.to_tensor(gradient))) / exact - 1.0) > 1e-4


@pytest.mark.parametrize("kind", ["seeded", "frozen", "own"])
def test_dropout_in_training(kind) -> None:
    recipe, batch = Recipe(Optimizer("sgd", 0.0)), batches(1)[0]
    losses = []
    for seed in (3, 4) if kind == "seeded" else (None,):
        told = {"seeded": seed, "frozen": None, "own": "own"}[kind]
        one, two = pair(recipe, settings={"dropout": 0.5}, dropout=told)
        made = [[trainer.step(batch).loss for _ in range(4)] for trainer in (one, two)]
        predicted = [trainer.predict(batch) for trainer in (one, two)]
        np.testing.assert_allclose(*predicted, atol=1e-12)
        losses.append(made)
        if kind == "own":
            assert len({*made[0], *made[1]}) == 8
        else:
            assert made[0] == pytest.approx(made[1], rel=1e-12)
        if kind == "seeded":  # a new mask for each step, and the same again in the same step
            assert len(set(made[0])) == 4
            one.load_state(replace(one.state(), steps=0))
            assert [one.step(batch).loss for _ in range(4)] == made[0]
        if kind == "frozen":
            assert len(set(made[0])) == 1
    assert kind != "seeded" or losses[0] != losses[1]


def test_own_dropout_with_a_seed_is_drawn_again_by_the_steps_number() -> None:
    for first, again in zip(
        *(pair(Recipe(Optimizer("sgd", 0.0)), settings={"dropout": 0.5}, dropout=("own", 7)) for _ in range(2)),
        strict=True,
    ):
        losses = [first.step(batches(1)[0]).loss for _ in range(4)]
        assert len(set(losses)) == 4
        again.load_weights(first.weights())
        again.load_state(replace(first.state(), steps=2))
        assert [again.step(batches(1)[0]).loss for _ in range(2)] == losses[2:]


def test_a_factor_holds_whatever_the_schedule_makes_of_the_rate() -> None:
    schedule = Schedule("plateau", {"patience": 0, "min_lr": 0.04, "factor": 0.3})
    for trainer in pair(Recipe(Optimizer("sgd", 0.1), schedule, groups=(Group("4.*", 0.5),))):
        for metric in (1.0, 2.0, 3.0):
            trainer.end_epoch(metric)
        assert trainer.step(batches(1)[0]).rates == pytest.approx((0.04, 0.02))


def test_a_plateau_looks_for_a_better_metric_while_it_cools_down() -> None:
    """Where Paddle's own does not: 0.5 is the best, and 0.7 is no improvement on it."""
    schedule = Schedule("plateau", {"patience": 0, "cooldown": 2, "factor": 0.5})
    metrics = (1.0, 1.0, 0.5, 0.9, 0.7)
    rates = []
    for trainer in pair(Recipe(Optimizer("sgd", 0.1), schedule)):
        for metric in metrics:
            trainer.end_epoch(metric)
        rates.append(trainer.step(batches(1)[0]).rates[0])
    scheduler = paddle.optimizer.lr.ReduceOnPlateau(0.1, patience=0, cooldown=2, factor=0.5)
    for metric in metrics:
        scheduler.step(metric)
    assert rates == [0.025, 0.025]
    assert scheduler.last_lr == 0.05


def test_a_schedule_that_is_over_or_is_told_no_metric_says_so() -> None:
    for trainer in pair(Recipe(schedule=Schedule("onecycle", {"total_steps": 4}))):
        for batch in batches(4):
            trainer.step(batch)
        with pytest.raises(AlignmentError, match="can't go on"):
            trainer.step(batch)
    for trainer in pair(Recipe(schedule=Schedule("plateau"))):
        with pytest.raises(AlignmentError, match="goes by a metric"):
            trainer.end_epoch()
    with pytest.raises(AlignmentError, match="over"):
        rate_at(Schedule("onecycle", {"total_steps": 4}), 0.1, 5)


def test_groups_are_said_by_the_references_names() -> None:
    recipe = Recipe(Optimizer("sgd", 0.1), groups=(Group("head.*", 0.0),))
    for trainer in pair(recipe, names={"4.weight": "head.weight"}):
        before = trainer.weights()
        trainer.step(batches(1)[0])
        changed = {name for name, tensor in trainer.weights().items() if not np.array_equal(tensor, before[name])}
        assert changed == before.keys() - {"4.weight"}


@pytest.mark.parametrize("framework", [torch, paddle])
def test_a_sparse_gradient_is_refused(framework) -> None:
    nn, name = framework.nn, framework.__name__
    model = get_framework(name).build(lambda: nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 4)), {})
    trainer = get_trainer(name, model, Recipe(), loss=nn.functional.cross_entropy)
    with pytest.raises(AlignmentError, match=r"0.weight is sparse.*sparse=False"):
        trainer.step(Batch("b", {"ids": np.array([1, 2, 2])}, np.array([0, 1, 2])))


def test_a_batch_without_a_loss_says_so() -> None:
    for name, target in NETS.items():
        model = get_framework(name).build(target, {}, criterion=True)
        trainer = get_trainer(name, model, Recipe(), loss="criterion")
        batch = batches(1, width=6)[0]
        with pytest.raises(AlignmentError, match="no loss"):
            trainer.step(type(batch)("b", batch.inputs, None))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_in_float32_the_two_part_by_rounding_alone(kind) -> None:
    one, two = pair(Recipe(Optimizer(kind, 1e-3, weight_decay=0.01)), dtype="float32")
    for batch in batches(50):
        one.step(batch), two.step(batch)
    assert_same_weights(one, two, rtol=0.0, atol=4e-6)


def test_what_a_parameter_says_of_rate_and_decay_gives_way_to_the_recipe() -> None:
    attribute = paddle.ParamAttr(learning_rate=0.1, regularizer=paddle.regularizer.L2Decay(0.5))

    def said():
        model = paddle.nn.Sequential(paddle.nn.Linear(3, 4, weight_attr=attribute))
        return model

    one, two = pair(
        Recipe(Optimizer("sgd", 0.1)),
        models={"torch": lambda: torch.nn.Sequential(torch.nn.Linear(3, 4)), "paddle": said},
    )
    for batch in batches(3):
        one.step(batch), two.step(batch)
    assert_same_weights(one, two, atol=1e-15)


def test_positions_of_all_schedules_move_as_the_rule_says() -> None:
    recipe = Recipe(
        schedule=Schedule("plateau", {"mode": "max", "threshold_mode": "abs", "threshold": 0.1, "patience": 1})
    )
    position = Position.start(recipe)
    for metric, rate in ((0.5, 1e-3), (0.55, 1e-3), (0.59, 1e-4), (0.7, 1e-4), (0.75, 1e-4), (0.79, 1e-5)):
        position = position.moved(recipe, metric)
        assert position.rate == pytest.approx(rate), metric
