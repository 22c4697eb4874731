"""Each wrong way to compute a loss is named from two numbers, and one that fits no formula is not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from alignment import get_twin
from alignment.causes.loss import CAUSES, Formula, Given, Loss, hypotheses, right_formulas
from alignment.causes.suspect import Suspect
from alignment.experiment import Options, prepare
from alignment.localise import localise
from alignment.stages import run_stages

RNG = np.random.default_rng(0)
TARGETS = RNG.integers(0, 5, (6, 5))
GIVEN = Given(3.0 * RNG.normal(size=(6, 5, 5)), TARGETS, {"w": 0.1 + RNG.random(5)}, RNG.random((6, 5)) < 0.3)
FAR = Given(40.0 * GIVEN.logits, TARGETS, {}, None)

MEAN = Formula()
FAULTS = [
    ("loss-reduction", GIVEN, MEAN, Formula(divisor="one")),
    ("loss-reduction", GIVEN, MEAN, Formula(divisor="rows")),
    ("ce-ignore-index", GIVEN, Formula(ignored=2), Formula(ignored=2, divisor="terms")),
    ("ce-ignore-index", GIVEN, MEAN, Formula(ignored=0)),
    ("ce-ignore-index", GIVEN, MEAN, Formula(ignored=0, divisor="terms")),
    ("double-softmax", GIVEN, MEAN, Formula(softmaxes=1)),
    ("label-smoothing", GIVEN, Formula(smoothing=0.1), MEAN),
    ("label-smoothing", GIVEN, MEAN, Formula(smoothing=0.05)),
    ("ce-axis", GIVEN, MEAN, Formula(axis="swapped")),
    ("ce-axis", GIVEN, MEAN, Formula(axis="batch")),
    ("log-base", GIVEN, MEAN, Formula(base=2.0)),
    ("log-epsilon", GIVEN, MEAN, Formula(floor=1e-5)),
    ("class-weight", GIVEN, MEAN, Formula(weight="w")),
    ("soft-label-weight", GIVEN, Formula(weight="w", smoothing=0.25),
     Formula(weight="w", smoothing=0.25, by_sample=True, divisor="weights")),
    ("ce-clip", FAR, MEAN, Formula(clip=True)),
    ("smooth-l1", GIVEN, Formula("smooth-l1", beta=0.5), Formula("smooth-l1", beta=0.5, huber=True)),
    ("smooth-l1", GIVEN, Formula("smooth-l1"), Formula("smooth-l1", beta=0.5)),
    ("loss-over-padding", GIVEN, Formula(ignored="padding"), MEAN),
    ("loss-over-padding", GIVEN, Formula(ignored="padding"), Formula(ignored="padding", divisor="terms")),
]  # fmt: skip


def suspect(given, reference, candidate):
    """A suspect of the criterion's output, without anything that runs."""
    one = object.__new__(Suspect)
    one.record, one.name, one.owner = "activation", "criterion", "criterion"
    one.reference, one.candidate = np.float64(reference), np.float64(candidate)
    inputs = {} if given.padding is None else {"ids": np.where(given.padding, 0, 1)}
    one.scene = SimpleNamespace(
        dtype="float64",
        state=given.weights,
        batch=SimpleNamespace(inputs=inputs, targets=given.targets),
        experiment=SimpleNamespace(batches=(), settings={}, twin=SimpleNamespace(padding=lambda _: 0)),
        judge=lambda _kind, _name, value: SimpleNamespace(
            verdict="aligned" if abs(value - reference) <= 1e-13 * abs(reference) else "diverged"
        ),
    )
    one.__dict__["inputs"] = [given.logits, given.targets]
    one.__dict__["logits"], one.__dict__["targets"] = given.logits, given.targets
    return one


def proved(one):
    return [cause.name for cause in CAUSES for trial in cause.test(one) if trial.proved]


@pytest.mark.parametrize(("name", "given", "right", "wrong"), FAULTS)
def test_each_fault_is_named_and_proved(name, given, right, wrong):
    loss = Loss(given)
    assert proved(suspect(given, loss.value(right), loss.value(wrong))) == [name]


@pytest.mark.parametrize(("name", "given", "right", "wrong"), FAULTS)
def test_a_near_miss_is_not_proved(name, given, right, wrong):
    loss = Loss(given)
    assert proved(suspect(given, loss.value(right), loss.value(wrong) * 1.0000123)) == []


@pytest.mark.parametrize("seed", range(10))
def test_nothing_fits_by_chance(seed):
    rng = np.random.default_rng(seed)
    given = Given(
        rng.normal(size=(6, 5, 5)), rng.integers(0, 5, (6, 5)), {"w": rng.random(5) + 0.1}, rng.random((6, 5)) < 0.3
    )
    right = Loss(given).value(MEAN)
    assert hypotheses(given, right, right * rng.uniform(0.2, 3.0), 1e-10) == []
    assert right_formulas(Loss(given), right * rng.uniform(0.2, 3.0), 1e-10) == []


def test_what_cannot_be_told_apart_is_not_proved():
    given = Given(GIVEN.logits, TARGETS, {}, TARGETS == 2)  # padding is just where the targets are of class 2
    one = suspect(given, Loss(given).value(MEAN), Loss(given).value(Formula(ignored=2)))
    assert {cause.name for cause in CAUSES if list(cause.test(one))} == {"ce-ignore-index", "loss-over-padding"}
    assert proved(one) == []


def test_factors_of_a_loss_that_is_not_known():
    assert proved(suspect(GIVEN, 1.234, 0.617)) == ["loss-half"]
    assert proved(suspect(GIVEN, 1.234, 12.34)) == ["loss-scaled"]
    assert proved(suspect(GIVEN, 1.234, 1.234 * 1.23456)) == []


def test_losses_of_samples_where_a_number_is_due():
    losses = RNG.random(8)
    assert proved(suspect(GIVEN, losses.mean(), losses)) == ["loss-reduction"]
    assert proved(suspect(GIVEN, 1.01 * losses.mean(), losses)) == []


def test_formulas_are_torchs():
    torch = pytest.importorskip("torch")
    cross_entropy = torch.nn.functional.cross_entropy
    logits, targets = torch.tensor(GIVEN.logits).flatten(0, 1), torch.tensor(TARGETS).flatten()
    weights, loss = torch.tensor(GIVEN.weights["w"]), Loss(GIVEN)
    for formula, value in (
        (MEAN, cross_entropy(logits, targets)),
        (Formula(ignored=3), cross_entropy(logits, targets, ignore_index=3)),
        (Formula(smoothing=0.1), cross_entropy(logits, targets, label_smoothing=0.1)),
        (Formula(weight="w", divisor="weights"), cross_entropy(logits, targets, weight=weights)),
        (Formula("smooth-l1", beta=0.5), torch.nn.functional.smooth_l1_loss(
            logits, torch.nn.functional.one_hot(targets).to(logits.dtype), beta=0.5)),
    ):  # fmt: skip
        assert loss.value(formula) == pytest.approx(float(value), rel=1e-12)


@pytest.mark.parametrize(
    ("twin", "name"),
    [("loss_soft_labels", "soft-label-weight"), ("loss_ignore_index", "ce-ignore-index"), ("loss_sequence", "ce-axis")],
)
def test_a_wrong_port_is_diagnosed(twin, name):
    twin = get_twin(f"mutants.gallery:{twin}__{name.replace('-', '_')}")
    experiment = prepare(twin, Options(data="fake", batch_size=3, steps=(4,)))
    _, scenes = localise(experiment, run_stages(experiment, lambda: None))
    roots = [Suspect(root, scene) for scene in scenes for root in scene.roots]
    assert roots
    assert [proved(root) for root in roots] == [[name]] * len(roots)
