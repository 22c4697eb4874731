"""Each wrong gradient is named and proved, on numbers alone where they suffice and on running twins; near misses are not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from alignment import get_twin
from alignment.causes import gradients
from alignment.causes.gradients import CAUSES, embedding_weight, factor_of, is_round, linear_bias, linear_weight
from alignment.causes.suspect import Suspect, relative
from alignment.experiment import Options, prepare
from alignment.faults import Fault
from alignment.localise import localise
from alignment.stages import run_stages
from alignment.trace import Record, Trace
from checkpoints.structure import Slot
from mutants.fastformer_faults import FASTFORMER_FAULTS

RNG = np.random.default_rng(0)
X, DY, IDS = RNG.normal(size=(3, 4, 6)), RNG.normal(size=(3, 4, 6)), RNG.integers(0, 6, (3, 4))
WEIGHT = linear_weight(X, DY, (6, 6))


def suspect(candidate, reference, local="weight", *, kind="Linear", ids=None, tied=False, value=None):
    """A suspect parameter `layer.…` (and `other.weight`, tied to it), without anything that runs."""
    one = object.__new__(Suspect)
    one.record, one.name, one.owner = "gradient", f"layer.{local}", "layer"
    one.candidate, one.reference = candidate, reference
    one.root = SimpleNamespace(kind="gradient")
    slots = [Slot(f"layer.{local}", kind, local, reference.shape, "float32")]
    if tied:
        slots.append(Slot("other.weight", "Linear", "weight", reference.shape, "float32", tied_to="layer.weight"))
    flows = [("input", "layer", X if ids is None else ids), ("activation gradient", "layer", DY)]
    flows += [("input", "other", X), ("activation gradient", "other", DY)]
    trace = Trace("torch", "float64", tuple(Record(*flow) for flow in flows))
    experiment = SimpleNamespace(
        batches=(),
        settings={},
        twin=SimpleNamespace(padding=lambda _: 0),
        slots=tuple(slots),
        candidate=SimpleNamespace(slots=lambda _: tuple(slots)),
        candidate_model=None,
    )
    one.scene = SimpleNamespace(
        live=True,
        dtype="float64",
        state={} if value is None else {one.name: value},
        batch=SimpleNamespace(inputs={"ids": IDS}, targets=np.zeros(8, int)),
        experiment=experiment,
        reference64=trace,
        forced_run=trace,
        moves={slot.name: SimpleNamespace(target=slot.name) for slot in slots},
        judge=lambda _kind, _name, value: SimpleNamespace(
            verdict="aligned" if np.abs(value - reference).max() <= 1e-14 else "diverged"
        ),
    )
    one.options = lambda _side: {}
    return one


@pytest.fixture(autouse=True)
def numbers_alone(request, monkeypatch):
    """Suspects of numbers alone have no model that could be run."""
    if "runs" not in request.node.name:
        monkeypatch.setattr(gradients, "derivatives", lambda *_: None)


def proved(one):
    found = [(cause.name, trial) for cause in CAUSES if one.record in cause.records for trial in cause.test(one)]
    return [name for name, trial in found if trial.proved]


def noisy(gradient):
    return gradient * (1.0 + 1e-4 * RNG.normal(size=gradient.shape))


def test_a_stale_bias_gradient():
    bias = linear_bias(X, DY, (6,))
    one = suspect(np.full(6, 1 / 8), bias, "bias")
    assert proved(one) == ["stale-bias-gradient"]
    trial = next(iter(CAUSES[2].test(one)))
    assert (
        "0.125 in every entry is 1/8: with 8 targets it is what the mean hands to each per-sample loss" in trial.change
    )
    assert proved(suspect(np.full(6, 0.126), bias, "bias")) == ["bias-gradient-constant"]
    assert proved(suspect(np.full(6, 1 / 8), noisy(bias), "bias")) == []
    assert proved(suspect(noisy(np.full(6, 1 / 8)), bias, "bias")) == []
    # What is no number is no constant: the identity would give the right sum all the same.
    assert proved(suspect(np.full(6, np.nan), bias, "bias")) == []
    assert proved(suspect(np.array([1 / 8, np.nan, 3, 4, 5, 6]), bias, "bias")) == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gradient-sign", lambda g: -g),
        ("gradient-scaled", lambda g: 2.0 * g),
        ("gradient-scaled", lambda g: 0.731 * g),
        ("gradient-clipped", lambda g: g * (0.25 / np.linalg.norm(g))),
        ("gradient-clipped", lambda g: g * (0.5 / (np.linalg.norm(g) + 1e-6))),
        ("gradient-clipped", lambda g: np.clip(g, -1.0, 1.0)),
        ("gradient-offset", lambda g: g + 1e-5),
        ("weight-gradient-transposed", lambda g: g.T),
    ],
)
def test_relations(name, wrong):
    assert proved(suspect(wrong(WEIGHT), WEIGHT)) == [name]
    assert proved(suspect(noisy(wrong(WEIGHT)), WEIGHT)) == []


def test_clipping_needs_a_bound_that_somebody_wrote_down():
    assert proved(suspect(WEIGHT * (0.2513 / np.linalg.norm(WEIGHT)), WEIGHT)) == ["gradient-scaled"]


def test_a_true_zero_is_a_multiple_of_nothing():
    zero = 1e-20 * RNG.normal(size=6)
    assert proved(suspect(np.full(6, 1e-9), zero, "bias")) == ["gradient-offset"]
    assert proved(suspect(3e7 * zero, zero, "bias")) == []
    assert proved(suspect(np.array([1e-9]), np.array([1e-20]), "bias")) == ["gradient-offset"]
    assert proved(suspect(np.array([1.2345e-9]), np.array([1e-20]), "bias")) == []


def test_a_use_that_does_not_train():
    rows = embedding_weight(IDS, DY, (6, 6))
    both = rows + WEIGHT
    for candidate in (rows, WEIGHT):
        assert proved(suspect(candidate, both, kind="Embedding", ids=IDS, tied=True)) == (
            ["tie-detached"] if candidate is rows else ["tie-lost"]
        )
    assert proved(suspect(rows + 0.5 * WEIGHT, both, kind="Embedding", ids=IDS, tied=True)) == []
    assert proved(suspect(noisy(rows), both, kind="Embedding", ids=IDS, tied=True)) == []


def test_the_padding_row():
    rows = embedding_weight(np.zeros_like(IDS) + np.arange(4), DY, (6, 6))
    without = rows * (np.arange(6) > 0)[:, None]
    ids = np.zeros_like(IDS) + np.arange(4)
    assert proved(suspect(rows, without, kind="Embedding", ids=ids)) == ["embedding-padding-gradient"]
    assert proved(suspect(without, rows, kind="Embedding", ids=ids)) == ["embedding-padding-frozen"]
    other = rows * (np.arange(6) != 1)[:, None]
    assert proved(suspect(other, rows, kind="Embedding", ids=ids)) == []
    assert proved(suspect(noisy(without), rows, kind="Embedding", ids=ids)) == []


def test_ties_of_a_maximum():
    value = np.array([[1.0, 2.0, 0.5], [1.0, 1.0, 0.5], [0.0, 2.0, 0.4]])
    first = np.array([[0.7, -0.3, 0.9], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    shared = np.array([[0.35, -0.15, 0.45], [0.35, 0.0, 0.45], [0.0, -0.15, 0.0]])
    assert proved(suspect(shared, first, value=value)) == ["max-ties"]
    assert proved(suspect(first, shared, value=value)) == ["max-ties"]
    off = shared.copy()
    off[0, 0] += 0.1
    assert proved(suspect(off, first, value=value)) == []
    assert proved(suspect(shared, first, value=value + np.arange(3)[:, None] * 1e-9)) == []


def test_a_factor_that_is_the_batch_is_named_so_only_where_it_follows_the_batch(monkeypatch):
    one = suspect(8.0 * WEIGHT, WEIGHT)
    for there, name in ((6.0, "gradient-reduction"), (8.0, "gradient-scaled")):
        counts = {"targets": 6, "rows of the batch": 6, "positions of the batch": 6}
        other = gradients.Elsewhere(counts, WEIGHT, there * WEIGHT)
        monkeypatch.setattr(gradients, "elsewhere", lambda _, other=other: iter([other]))
        assert proved(one) == [name]


def test_round_numbers_and_factors():
    assert [is_round(x) for x in (0.25, 5.0, 1e-9, 0.251, 0.0, np.inf)] == [True, True, True, False, False, False]
    assert factor_of(3.0 * WEIGHT, WEIGHT) == pytest.approx(3.0)
    assert factor_of(WEIGHT.T, WEIGHT) is None
    assert factor_of(WEIGHT, np.zeros_like(WEIGHT)) is None


MORE = {fault.name: fault for fault in FASTFORMER_FAULTS}


def roots(twin, options):
    experiment = prepare(get_twin(twin), options)
    _, scenes = localise(experiment, run_stages(experiment, lambda: None))
    return [Suspect(root, scene) for scene in scenes[:1] for root in scene.roots]


@pytest.mark.parametrize(
    ("fault", "twin", "name"),
    [
        ("stale-bias-gradient", "fastformer-text-classifier", "stale-bias-gradient"),
        ("graph-cut", "fastformer-text-classifier", "graph-cut"),
        ("graph-cut-embedding", "fastformer-text-classifier", "graph-cut"),
        ("bias-gradient-zero", "fastformer-text-classifier", "gradient-zero"),
        ("tie-lost", "fast-transformer-classifier", "tie-lost"),
        ("embedding-padding-frozen", "fast-transformer", "embedding-padding-frozen"),
    ],
)
def test_runs_of_a_planted_fault(small, fault, twin, name):
    found = roots(twin, small(twin, faults=(MORE.get(fault, fault),), steps=(5,)))
    assert found
    assert [proved(root) for root in found] == [[name]] * len(found)


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        ("tie_detached", "tie-detached"),
        ("grad_scale", "gradient-scaled"),
        ("graph_cut", "graph-cut"),
        ("max_ties", "max-ties"),
    ],
)
def test_runs_of_a_wrong_port(mutant, name):
    found = roots(f"mutants.gallery:tied_net__{mutant}", Options(data="fake", batch_size=3, steps=(5,)))
    assert found
    assert [proved(root) for root in found] == [[name]] * len(found)


def planted(change):
    def plant(framework, model, _twin):
        framework.replace_gradient(model, "fc.weight", change)
        return ["fc.weight"]

    return Fault("wrong", "a wrong gradient", 5, plant=plant)


def test_runs_where_backward_is_not_the_derivative_of_forward(small):
    twin = "fastformer-text-classifier"
    [root] = roots(
        twin, small(twin, faults=(planted(lambda g: g * np.arange(g.size).reshape(g.shape) / g.size),), steps=(5,))
    )
    assert proved(root) == ["backward-not-derivative"]
    # A reference that is wrong itself is not what differentiating the candidate's forward pass gives.
    root.reference = 1.001 * root.reference
    assert proved(root) == []
    assert relative(root.candidate, root.reference) > 0.1
