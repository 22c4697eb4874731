"""Each rule's fault is named and proved from steps alone; a step that is wrong in another way is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alignment.causes.updates import CAUSES, StatisticSuspect, UpdateSuspect
from alignment.training.rules import Rule, steps

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(5, 4))
GRADIENTS = tuple(RNG.normal(size=(5, 4)) * 10.0 ** RNG.integers(-9, 1, (5, 4)) for _ in range(3))
RATES = (1e-3, 5e-4, 2.5e-4)
NORMS = tuple(3.0 * float(np.linalg.norm(g)) for g in GRADIENTS)

ADAM = Rule()
ADAMW = Rule(decay=0.01, decoupled=True)
SGD = Rule("sgd")
CLIPPED = Rule("sgd", clip="global norm", clip_at=0.1)
RMSPROP = Rule("rmsprop")

FAULTS = [
    ("adamw-for-adam", ADAM, ADAMW, 1),
    ("l2-for-decoupled", ADAMW, Rule(decay=0.01), 1),
    ("decay-overridden", ADAMW, ADAM, 1),
    ("adam-eps", ADAM, Rule(eps=1e-7), 1),
    ("rmsprop-eps", RMSPROP, Rule("rmsprop", eps_place="inside"), 1),
    ("rmsprop-eps", RMSPROP, Rule("rmsprop", rho=0.95, eps=1e-6, eps_place="inside"), 1),
    ("sgd-for-adam", ADAM, SGD, 1),
    ("sparse-adam", ADAM, Rule(ahead=1), 3),
    ("momentum-default", SGD, Rule("sgd", momentum=0.9), 2),
    ("clip-kind", CLIPPED, Rule("sgd", clip="norm", clip_at=0.1), 1),
    ("clip-kind", CLIPPED, Rule("sgd", clip="value", clip_at=0.1), 1),
    ("grads-not-cleared", SGD, Rule("sgd", accumulated=True), 3),
    ("scheduler-not-stepped", ADAM, Rule(stepped=False), 3),
    ("amsgrad", ADAM, Rule(amsgrad=True), 3),
    ("adam-betas", ADAM, Rule(beta2=0.99), 3),
    ("lr-scaled", ADAM, Rule(factor=1.7), 2),
    ("sign-of-step", SGD, Rule("sgd", factor=-1.0), 2),
]


def suspect(reference, candidate, candidate_gradients=None):
    count = len(reference)
    gradients = GRADIENTS[:count]
    return UpdateSuspect(
        "w", WEIGHTS, gradients, candidate_gradients or gradients, tuple(reference), tuple(candidate), RATES[:count],
        NORMS[:count],
    )  # fmt: skip


def made(options, count):
    return steps(options, WEIGHTS, GRADIENTS[:count], RATES[:count], NORMS[:count])


def proved(one):
    return [cause.name for cause in CAUSES for trial in cause.test(one) if trial.proved]


@pytest.mark.parametrize(("name", "right", "wrong", "count"), FAULTS)
def test_each_fault_is_named_and_proved(name, right, wrong, count):
    assert proved(suspect(made(right, count), made(wrong, count))) == [name]


@pytest.mark.parametrize(("name", "right", "wrong", "count"), FAULTS)
def test_a_near_miss_is_not_proved(name, right, wrong, count):
    off = [step * (1.0 + 1e-2 * RNG.normal(size=step.shape)) for step in made(wrong, count)]
    assert proved(suspect(made(right, count), off)) == []


def test_the_difference_of_the_gradients_is_not_held_against_a_rule():
    theirs = tuple(g + 1e-12 for g in GRADIENTS[:1])
    wrong = steps(ADAMW, WEIGHTS, theirs, RATES[:1])
    assert proved(suspect(made(ADAM, 1), wrong, theirs)) == ["adamw-for-adam"]


def test_adams_first_steps_with_the_bias_correction_one_ahead():
    one = np.ones(1)
    found = steps(Rule(ahead=1), one, [one] * 3, [1.0] * 3)
    np.testing.assert_allclose(np.ravel(found), [-0.744, -0.859, -0.910], atol=1e-3)


def test_adam_is_torchs():
    torch = pytest.importorskip("torch")
    for options, build in (
        (Rule(decay=0.1), lambda p: torch.optim.Adam(p, weight_decay=0.1)),
        (ADAMW, lambda p: torch.optim.AdamW(p, weight_decay=0.01)),
        (Rule(amsgrad=True), lambda p: torch.optim.Adam(p, amsgrad=True)),
        (Rule("sgd", momentum=0.9, nesterov=True),
         lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True)),
        (RMSPROP, lambda p: torch.optim.RMSprop(p, lr=1e-3)),
    ):  # fmt: skip
        parameter = torch.nn.Parameter(torch.tensor(WEIGHTS))
        optimizer, before = build([parameter]), WEIGHTS
        for ours, gradient in zip(steps(options, WEIGHTS, GRADIENTS, [1e-3] * 3), GRADIENTS, strict=True):
            parameter.grad = torch.tensor(gradient)
            optimizer.step()
            after = parameter.detach().numpy().copy()
            np.testing.assert_allclose(ours, after - before, rtol=1e-9, atol=1e-13)
            before = after


def statistic(local, candidate_of, count=None):
    old, batch = RNG.normal(size=6), 1.0 + RNG.random(6)
    reference = 0.1 * (batch - old)
    return StatisticSuspect(f"bn.{local}", local, old, reference, candidate_of(old, batch), count)


def test_a_copied_momentum():
    one = statistic("running_mean", lambda old, batch: 0.9 * (batch - old))
    assert proved(one) == ["bn-momentum"]
    assert "the increment is 9 times" in next(iter(CAUSES[-2].test(one))).change
    assert proved(statistic("running_mean", lambda old, batch: 0.9 * batch - 0.8 * old)) == []
    assert proved(statistic("running_mean", lambda old, batch: 0.1234567 * (batch - old))) == []


def test_a_copied_momentum_of_a_variance_that_is_biased_too():
    both = statistic("running_var", lambda old, batch: 0.9 * (batch * 31 / 32 - old))
    assert proved(replace(both, momentum=0.1)) == ["bn-momentum"]
    assert proved(replace(both, momentum=0.2)) == []
    assert proved(replace(both, momentum=0.1, count=64)) == []


def test_a_biased_variance():
    def biased(old, batch):
        return 0.1 * (batch * 31 / 32 - old)

    assert proved(statistic("running_var", biased)) == ["bn-biased-variance"]
    assert proved(statistic("running_var", biased, 32)) == ["bn-biased-variance"]
    assert proved(statistic("running_var", biased, 64)) == []
    assert proved(statistic("running_mean", biased)) == []
    assert proved(statistic("running_var", lambda old, batch: 0.1 * (batch * 0.97 - old))) == []
