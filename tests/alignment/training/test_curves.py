"""Three curves and what they say, on a softmax regression in NumPy whose candidate sums in another order, transposed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from alignment.training.curves import FREE, SYNCED, Curves, draw
from alignment.training.judge import MARGIN, Judged, judge
from alignment.training.lockstep import Follower, lockstep
from alignment.training.recipe import Clip, Optimizer, Recipe, Schedule

from .softmax import TURNED, SoftmaxTrainer, batches, participants, turned

ADAM, ADAMW = Recipe(Optimizer("adam", 0.01)), Recipe(Optimizer("adamw", 0.01, weight_decay=0.05))
SGD = Recipe(Optimizer("sgd", 0.1, momentum=0.9))
TARGETS = {"weight": "weight", "bias": "bias"}


def drawn(recipe: Recipe, candidate: Recipe | None = None, steps: int = 30, **options) -> tuple[Curves, Judged]:
    dtype = options.get("dtype", "float32")
    members = participants(recipe, candidate, **options)
    curves = draw(members, batches(steps, options.get("seed", 0)), envelope=3)
    return curves, judge(curves, members, TARGETS, "a recipe", dtype)


def verdicts(judged: Judged) -> dict[tuple[str, str], str]:
    return {(row.record, row.name): row.verdict for row in judged.stage.tensors}


def roots(judged: Judged) -> set[tuple[str, str]]:
    return {(row.record, row.name) for row in judged.stage.tensors if row.root}


# ------------------------------------------------------------------------------------------------------------- the loop


def test_all_take_the_same_batches_and_the_synced_one_the_references_state():
    members = participants(ADAM)
    reference = members.reference()
    followers = {
        "free": Follower(members.candidate(), TURNED),
        "synced": Follower(members.candidate(), TURNED, synced=True),
    }
    given = batches(4)
    for moment, batch in zip(lockstep(reference, followers, given, every=2), given, strict=True):
        assert moment.batch is batch
        assert moment.state is not None
        assert moment.state.steps == moment.number - 1
        synced = followers["synced"].trainer.state()
        for slot, held in turned_slots(reference).items():
            np.testing.assert_allclose(synced.slots[slot]["weight"], held, rtol=1e-4, atol=1e-12)
        assert moment.followed is not None
        assert set(moment.followed) == ({"free", "synced"} if moment.number in (1, 2, 4) else {"synced"})


def turned_slots(trainer: SoftmaxTrainer) -> dict[str, np.ndarray]:
    return {slot: turned(held)["weight"] for slot, held in trainer.state().slots.items()}


def test_without_capture_nothing_is_copied():
    members = participants(SGD)
    reference, candidate = members.reference(), members.candidate()
    reference.weights = candidate.weights = reference.state = None  # type: ignore[assignment,method-assign]
    moments = list(lockstep(reference, {"free": Follower(candidate, TURNED)}, batches(3)))
    assert [moment.number for moment in moments] == [1, 2, 3]
    assert moments[0].deviation("free") == {}


def test_an_epoch_ends_with_each_trainers_own_mean_loss():
    members = participants(SGD)
    reference, candidate = members.reference(), members.candidate()
    moments = list(lockstep(reference, {"free": Follower(candidate, TURNED)}, batches(4), epoch=2))
    assert reference.told == pytest.approx(np.mean([moment.reference.loss for moment in moments[2:]]))
    assert candidate.told == pytest.approx(np.mean([moment.followers["free"].loss for moment in moments[2:]]))


# ------------------------------------------------------------------------------------------------------- right and wrong


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("recipe", [ADAM, ADAMW, SGD, replace(SGD, clip=Clip("global norm", 0.5))], ids=str)
def test_a_right_candidate_stays_in_the_envelope(recipe, dtype):
    for seed in range(3):
        curves, judged = drawn(recipe, dtype=dtype, seed=seed)
        assert judged.stage.verdict == "aligned", judged.trajectory
        assert judged.trajectory.first == ""
        # The two do not round alike, or the test would show nothing.
        assert any(curves.series["weight"].apart)
        assert judged.trajectory.strain < 0.5


@pytest.mark.parametrize(
    ("right", "wrong", "root"),
    [
        (ADAMW, replace(ADAMW, optimizer=replace(ADAMW.optimizer, kind="adam")), "update"),
        (ADAM, replace(ADAM, optimizer=replace(ADAM.optimizer, eps=1e-5)), "update"),
        (ADAM, replace(ADAM, optimizer=replace(ADAM.optimizer, learning_rate=0.0101)), "rate"),
        (SGD, replace(SGD, optimizer=replace(SGD.optimizer, nesterov=True)), "update"),
        (replace(SGD, clip=Clip("global norm", 0.1)), replace(SGD, clip=Clip("norm", 0.1)), "update"),
        (replace(SGD, schedule=Schedule("step", {"step_size": 5})), SGD, "rate"),
    ],
    ids=["l2", "eps", "rate", "nesterov", "clip", "schedule"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_another_recipe_is_found_at_its_first_step(right, wrong, root, dtype):
    _, judged = drawn(right, wrong, dtype=dtype)
    assert judged.stage.verdict == "diverged"
    assert {record for record, _ in roots(judged)} == {root}
    first = 6 if right.schedule.kind == "step" else 1
    assert min(step for (record, _), step in judged.since.items() if record == root) == first
    assert {record for record, name in judged.since} - {root} <= {"trajectory", "loss"}


def test_what_the_candidate_holds_of_earlier_steps_is_seen_free_running_alone():
    plain = replace(SGD, optimizer=Optimizer("sgd", 0.1))
    _, judged = drawn(plain, SGD)
    assert {record for record, _ in roots(judged)} == {"trajectory"}
    assert judged.trajectory.tracks[0].left == 2
    assert judged.trajectory.single == "right, all 30 steps"
    assert judged.trajectory.first.startswith("weight and 1 more, at step 2") or "at step 2" in judged.trajectory.first


def test_a_wrong_gradient_is_the_root_and_excuses_nothing():
    def shifted(found):
        found["bias"] = np.full_like(found["bias"], 1 / 16)

    _, judged = drawn(ADAM, spoil=shifted)
    assert roots(judged) == {("gradient", "bias")}
    assert judged.since["gradient", "bias"] == 1
    assert verdicts(judged)["gradient", "weight"] == "aligned"
    assert verdicts(judged)["update", "bias"] == "aligned"
    assert verdicts(judged)["trajectory", "bias"] == "diverged"


def test_a_gradient_on_one_side_alone_diverges():
    def lost(found):
        del found["bias"]

    _, judged = drawn(SGD, spoil=lost, steps=5)
    assert verdicts(judged)["gradient", "bias"] == "diverged"
    assert "one side alone" in next(
        r.reason for r in judged.stage.tensors if (r.record, r.name) == ("gradient", "bias")
    )


@pytest.mark.parametrize("last", [4, 1])
def test_a_loss_that_is_no_number_on_both_sides_is_not_aligned(last):
    huge = batches(6)
    huge[last - 1].inputs["x"][0, 0] = np.nan
    members = participants(SGD)
    curves = draw(members, huge, envelope=2)
    judged = judge(curves, members, TARGETS, "a recipe", "float32")
    assert curves.numbers == list(range(1, last))
    assert curves.stopped == f"the losses of both sides are no finite numbers at step {last}"
    assert judged.stage.verdict == "inconclusive"
    assert [row.name for row in judged.stage.tensors if row.verdict != "aligned"] == ["finite loss"]
    assert judged.trajectory.steps == last - 1


def test_a_loss_that_is_no_number_on_one_side_diverges():
    def broken(found):
        found["weight"][0, 0] = np.nan

    curves, judged = drawn(SGD, spoil=broken, steps=5)
    assert judged.stage.verdict == "diverged"
    assert curves.stopped == "the candidate's loss is no finite number at step 2"


def test_an_envelope_as_wide_as_the_way_is_said():
    """A rate so small that a step is less than the rounding of the weights: nothing can be seen."""
    tiny = Recipe(Optimizer("sgd", 1e-9))
    _, judged = drawn(tiny, steps=4)
    assert judged.trajectory.blind == 1
    assert any("from step 1 on rounding alone explains" in note for note in judged.stage.notes)


def test_without_a_formula_updates_are_judged_beside_the_references_noise():
    members = replace(participants(ADAMW, replace(ADAMW, optimizer=replace(ADAMW.optimizer, kind="adam"))), recipe=None)
    curves = draw(members, batches(10), envelope=2)
    judged = judge(curves, members, TARGETS, "unknown", "float32")
    assert verdicts(judged)["update", "weight"] == "diverged"
    right = replace(participants(ADAMW), recipe=None)
    curves = draw(right, batches(10), envelope=2)
    assert judge(curves, right, TARGETS, "unknown", "float32").stage.verdict == "aligned"


def test_what_is_allowed_is_what_the_page_says():
    curves, judged = drawn(ADAM)
    series = curves.series["weight"]
    spread = np.maximum.accumulate(np.max(series.spread, axis=1))
    due = MARGIN * (spread + np.cumsum(series.update) + 4 * curves.eps * np.array(series.norm))
    track = next(track for track in judged.trajectory.tracks if track.name == "weight")
    np.testing.assert_allclose(np.array(track.allowed) * series.norm, due, rtol=1e-12)
    assert track.strain == pytest.approx(np.max(np.array(series.apart) / due))


def test_losses_are_kept_of_everybody():
    curves, judged = drawn(SGD, steps=6)
    assert set(curves.losses) == {"reference", FREE, SYNCED, "shadow", "1", "2", "3"}
    assert all(len(losses) == 6 for losses in curves.losses.values())
    assert judged.trajectory.reference == tuple(curves.losses["reference"])
    assert math.isclose(judged.trajectory.reference[0], math.log(4), rel_tol=0.5)
