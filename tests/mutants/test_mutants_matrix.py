"""The measurement counts what it should: right ports raise no alarm, shares add up, and the pages say what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alignment import Options
from alignment.experiment import prepare
from alignment.twins import get_twin
from fake_data import make_batch
from mutants.fastformer_faults import CAUSES, EXPECTED, FASTFORMER_FAULTS
from mutants.historical import second_losses
from mutants.matrix import DOCS, Clean, Outcome, clean, missed, pairs, planted, summary, tables


@pytest.mark.parametrize("number", [1, 2, 3, 5, 10])
def test_right_configurations_raise_no_alarm(number) -> None:
    result = clean(number)
    assert not result.error
    assert (result.verdict, result.alarms) == ("aligned", ())
    assert len(result.tools) == 6


def test_a_fault_with_nothing_to_hit_is_not_counted() -> None:
    outcome = planted("gelu-form", "fastformer-text-classifier")
    assert not outcome.applies
    assert summary([outcome], [])["planted"] == 0


def test_every_fault_says_where_it_belongs_and_what_it_is() -> None:
    names = {fault.name for fault in FASTFORMER_FAULTS}
    assert names <= set(EXPECTED)
    assert names <= set(CAUSES)
    assert len(names) == len(FASTFORMER_FAULTS)


def test_what_is_missed_is_counted_and_listed() -> None:
    right = Outcome("a", "t", True, 3, True, 3, True, True, True, True, True, ("a",))
    wrong = Outcome("a", "u", True, 3, False, 0, False, False, True, False, False, ())
    alarm = Clean("t", {}, 1, None, 0, "diverged", ("logits",))
    figures = summary([right, wrong], [alarm])
    assert figures["detected"] == [1, 2]
    assert figures["cause named right"] == [1, 2]
    assert figures["false alarms"] == [1, 1]
    assert "| a | 2 | 1 | 1 | 1 | 1 | 1 | 1 |" in tables([right, wrong], [alarm])
    lines = list(missed([right, wrong], [alarm]))
    assert len(lines) == 2
    assert lines[0].startswith("a on u: not detected")
    assert lines[1].startswith("false alarm")


def test_the_page_shows_the_recorded_figures() -> None:
    """The tables are those of the record, and the record is of the faults there are."""
    document = json.loads((DOCS / "mutants.json").read_text())
    outcomes = [Outcome(**row) for row in document["planted"]]
    cleans = [Clean(**row) for row in document["clean"]]
    assert summary(outcomes, cleans) == document["summary"]
    assert tables(outcomes, cleans) in (DOCS / "mutants.md").read_text()
    assert {(one.fault, one.twin) for one in outcomes} <= set(pairs())
    assert len(cleans) >= 300


def test_a_stale_bias_shifts_the_second_loss_far_beyond_rounding() -> None:
    settings = {"num_tokens": 100, "dim": 16, "depth": 1, "max_seq_len": 8, "heads": 2, "dim_head": 8}
    experiment = prepare(
        get_twin("fast-transformer-classifier"), Options(settings=settings, data="fake", batch_size=16, length=8)
    )
    spec = experiment.twin.inputs(experiment.settings)
    batches = [make_batch(spec, seed=0, batch_size=16, length=8, name=name) for name in ("one", "two")]
    state = experiment.weights["init"]
    right, stale = second_losses(experiment, "reference", state, batches)
    experiment.candidate.load_state(experiment.candidate_model, experiment.candidate_state(state))
    port, _ = second_losses(experiment, "candidate", state, batches)
    assert np.isclose(right, port, atol=1e-6)
    assert abs(stale - right) > 20 * abs(port - right)
    assert abs(stale - right) > 1e-5
