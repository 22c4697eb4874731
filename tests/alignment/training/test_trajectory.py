"""Trajectories of real twins, small: right ones stay in the envelope, and each planted fault is found, named, and dated."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import jsonschema
import numpy as np
import orjson
import pytest

import alignment
from alignment import AlignmentError, Clip, Group, Optimizer, Options, Recipe, Schedule, Side, Training, Twin
from alignment.training.faults import TRAINING_FAULTS
from alignment.views.html import to_html
from alignment.views.json import SCHEMA, from_dict, to_dict, to_json
from alignment.views.junit import to_junit

from ..conftest import SMALL, VOCABULARY

NAME = "fastformer-text-classifier"
ADAM, ADAMW = Recipe(Optimizer("adam")), Recipe(Optimizer("adamw", weight_decay=0.01))
SGD = Recipe(Optimizer("sgd", learning_rate=0.1))
STEPPED = replace(ADAM, schedule=Schedule("step", {"step_size": 3}))


def options(name: str = NAME, **more) -> Options:
    given = {"settings": SMALL[name] | VOCABULARY.get(name, {}), "data": "fake", "batch_size": 3, "length": 8}
    return Options(**given | more)


def run(recipe: Recipe = ADAM, *faults: str, name: str = NAME, steps: int = 6, **more):
    asked = options(name, **{key: more.pop(key) for key in ("seed", "dropout") if key in more})
    training = Training(**{"steps": steps, "recipe": recipe, "envelope": 3, "probe": 4, "faults": faults} | more)
    return alignment.trajectory(name, asked, training)


def findings(report) -> list[tuple[str | None, str]]:
    return [(finding.cause, finding.side) for finding in report.twins[0].findings]


@pytest.mark.parametrize("name", SMALL)
def test_right_twins_are_aligned(name):
    report = run(ADAMW, name=name)
    twin = report.twins[0]
    assert report.verdict == "aligned", [row.reason for row in twin.tensors if row.verdict != "aligned"]
    assert [one.dtype for one in twin.trajectories] == ["float32", "float64"]
    single, exact = twin.trajectories
    assert (single.steps, exact.steps) == (6, 4)
    assert single.strain < 0.5
    # In float64 a right port parts by rounding alone.
    assert max(exact.apart) < 1e-9 < max(single.apart)


def test_groups_clipping_schedules_and_seeded_dropout_are_aligned_too():
    recipe = Recipe(
        Optimizer("adamw", weight_decay=0.01),
        Schedule("onecycle", {"total_steps": 12}),
        Clip("global norm", 0.1),
        (Group("*.bias", 2.0, 0.0),),
    )
    report = run(recipe, dropout="seeded")
    assert report.verdict == "aligned", [row.reason for row in report.twins[0].tensors if row.verdict != "aligned"]
    rates = [row.name for row in report.twins[0].tensors if row.record == "rate"]
    assert rates == ["learning rate", "learning rate of *.bias"]


FAULTS = {
    "l2-for-decoupled": (ADAMW, 1, "update"),
    "adamw-for-adam": (ADAM, 1, "update"),
    "decay-overridden": (ADAMW, 1, "update"),
    "adam-eps": (ADAM, 1, "update"),
    "adam-betas": (ADAM, 2, "update"),
    "momentum-default": (SGD, 2, "trajectory"),
    "lr-scaled": (SGD, 1, "rate"),
    "clip-kind": (replace(SGD, clip=Clip("global norm", 0.1)), 1, "update"),
    "grads-not-cleared": (SGD, 2, "gradient"),
    "scheduler-off-by-one": (STEPPED, 3, "rate"),
    "scheduler-not-stepped": (STEPPED, 4, "rate"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_of_training_is_found_named_and_dated(fault):
    recipe, step, record = FAULTS[fault]
    report = run(recipe, fault)
    twin = report.twins[0]
    assert report.verdict == "diverged"
    assert findings(report) == [(fault, "candidate")]
    (finding,) = twin.findings
    assert finding.proof
    assert f"from step {step} on" in finding.symptom
    assert {row.record for row in twin.roots} == {record}
    assert finding.roots[0].startswith(record)
    assert twin.faults == (fault,)


def test_every_fault_of_training_is_tried_here():
    assert set(FAULTS) == set(TRAINING_FAULTS)


def test_a_replaced_bias_gradient_is_explained_with_the_weights_of_its_step():
    report = run(ADAM, "stale-bias-gradient", name="fastformer-classifier")
    twin = report.twins[0]
    assert findings(report) == [("stale-bias-gradient", "candidate")]
    assert "from step 1 on" in twin.findings[0].symptom
    assert "Σ" in twin.findings[0].side_reason
    assert [(row.record, row.name) for row in twin.roots] == [("gradient", "dense_linear.bias")]


def test_a_wrong_forward_pass_is_explained_too():
    report = run(ADAM, "layernorm-eps", name="fastformer-classifier", steps=3)
    assert [cause for cause, _ in findings(report)] == ["layernorm-eps"]


def test_all_in_float64():
    report = run(ADAM, float64=True)
    assert [one.dtype for one in report.twins[0].trajectories] == ["float64"]
    assert report.verdict == "aligned"


def test_a_schedule_by_epochs():
    recipe = replace(SGD, schedule=Schedule("plateau", {"patience": 0, "threshold": 0.5, "factor": 0.5}))
    report = run(recipe, epoch=2)
    rates = report.twins[0].trajectories[0].reference_rates
    assert report.verdict == "aligned"
    assert rates[0] > rates[-1]
    with pytest.raises(AlignmentError, match="--epoch"):
        Training(recipe=recipe)


# --------------------------------------------------------------------------------------------------------- one's own pair


@pytest.fixture
def own(monkeypatch):
    """A twin of one's own whose inputs come from a generator, with optimizers of one's own."""
    import paddle
    import torch

    module = types.ModuleType("own_training")
    module.torch_net = lambda: torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    module.paddle_net = lambda: paddle.nn.Sequential(paddle.nn.Linear(6, 8), paddle.nn.Tanh(), paddle.nn.Linear(8, 3))
    module.torch_adamw = lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    module.paddle_adamw = lambda model: paddle.optimizer.AdamW(1e-3, parameters=model.parameters(), weight_decay=0.05)
    module.paddle_adam = lambda model: paddle.optimizer.Adam(
        1e-3, parameters=model.parameters(), weight_decay=paddle.regularizer.L2Decay(0.05)
    )
    module.broken = lambda _model: 1 / 0
    generator = np.random.default_rng(0)
    given = [(generator.standard_normal((5, 6)).astype(np.float32), generator.integers(0, 3, 5)) for _ in range(4)]
    module.twin = Twin(
        "own", "two small nets",
        Side("torch", "own_training:torch_net", loss=torch.nn.functional.cross_entropy),
        Side("paddle", "own_training:paddle_net", loss=paddle.nn.functional.cross_entropy),
        {}, (pair for pair in given), loss="function",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "own_training", module)


def test_a_pair_of_ones_own_with_its_own_optimizers(own):
    both = {"reference_optimizer": "own_training:torch_adamw", "candidate_optimizer": "own_training:paddle_adamw"}
    report = alignment.trajectory("own_training:twin", training=Training(steps=6, envelope=2, probe=2, **both))
    assert report.verdict == "aligned", [row.reason for row in report.twins[0].tensors if row.verdict != "aligned"]
    assert report.twins[0].data == "given inputs"
    assert "weight decay 0.05" in report.twins[0].trajectories[0].recipe
    assert any("taken again" in note for note in report.twins[0].notes)


def test_the_wrong_optimizer_of_ones_own_is_named(own):
    both = {"reference_optimizer": "own_training:torch_adamw", "candidate_optimizer": "own_training:paddle_adam"}
    report = alignment.trajectory("own_training:twin", training=Training(steps=3, envelope=2, probe=2, **both))
    assert findings(report) == [("l2-for-decoupled", "candidate")]
    assert any("differ in kind" in note for note in report.twins[0].notes)


def test_an_optimizer_that_can_not_be_made_says_whose(own):
    with pytest.raises(AlignmentError, match="the candidate's optimizer can't be made: ZeroDivisionError"):
        alignment.trajectory("own_training:twin", training=Training(steps=2, candidate_optimizer="own_training:broken"))


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"envelope": 0}, "envelope must be at least 1"),
        ({"every": 300}, "every must be from 1 to the 200 steps"),
        ({"epoch": 0}, "epoch must be at least 1"),
    ],
)
def test_bad_numbers_are_told(given, said):
    with pytest.raises(AlignmentError, match=said):
        Training(**given)


def test_a_fault_with_nothing_to_hit_is_told():
    with pytest.raises(AlignmentError, match="nothing to hit: it needs AdamW with weight decay"):
        run(ADAM, "l2-for-decoupled")
    with pytest.raises(AlignmentError, match="unknown fault 'nonsense'; faults of training: l2-for-decoupled"):
        run(ADAM, "nonsense")


# ------------------------------------------------------------------------------------------------------------------ views


@pytest.fixture(scope="module")
def diverged():
    return run(ADAMW, "l2-for-decoupled")


def test_the_report_as_json_follows_its_schema_and_comes_back(diverged):
    written = orjson.loads(to_json(diverged))
    jsonschema.validate(written, orjson.loads(SCHEMA.read_bytes()))
    again = from_dict(written)
    assert again.twins[0].trajectories == diverged.twins[0].trajectories
    assert again.verdict == "diverged"


def test_a_training_that_ends_in_no_number_is_written_as_json_can(diverged):
    twin = diverged.twins[0]
    first = twin.trajectories[0]
    lost = replace(first, candidate=(*first.candidate[:-1], float("nan")), apart=(float("inf"),) * len(first.apart))
    report = replace(diverged, twins=(replace(twin, trajectories=(lost,)),))
    written = orjson.loads(to_json(report))
    jsonschema.validate(written, orjson.loads(SCHEMA.read_bytes()))
    assert written["twins"][0]["trajectories"][0]["candidate"][-1] is None
    assert np.isnan(from_dict(written).twins[0].trajectories[0].candidate[-1])
    data = to_html(report).partition(b'id="data">')[2].partition(b"</script>")[0]
    assert orjson.loads(data)["twins"][0]["trajectories"][0]["candidate"][-1] is None


def test_the_page_has_the_curves_and_the_tensors_in_the_order_in_which_they_left(diverged):
    page = to_html(diverged).decode()
    for trajectory in diverged.twins[0].trajectories:
        assert f"Training in {trajectory.dtype}" in page
        assert trajectory.first in page
        names = [track.name for track in trajectory.tracks[:12]]
        part = page.partition(f"Training in {trajectory.dtype}")[2]
        places = [part.index(f'class="id">{name}<') for name in names]
        assert places == sorted(places)
    data = orjson.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["twins"][0]["trajectories"][0]["reference"] == list(diverged.twins[0].trajectories[0].reference)


def test_junit_has_a_case_for_each_row(diverged):
    suite = to_junit(diverged).decode()
    assert suite.count("<testcase") == len(diverged.twins[0].tensors)
    assert "update" in suite


def test_the_dictionary_has_no_array(diverged):
    assert to_dict(diverged)["twins"][0]["options"]["training"]["steps"] == 6
