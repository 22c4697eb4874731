"""Schedules of torch, of Paddle and by the rule: the same rate at every position, for all options."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.training.recipe import Optimizer, Recipe, Schedule
from alignment.training.rules import Position

from .twins import pair

# Torch warns of a schedule that moves before any step was made.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")

GAMMA = st.floats(0.05, 0.95)
COUNT = st.integers(1, 12)
CLOSED = st.one_of(
    st.builds(lambda n, g: ("step", {"step_size": n, "gamma": g}), COUNT, GAMMA),
    st.builds(
        lambda steps, g: ("multistep", {"milestones": sorted(steps), "gamma": g}), st.sets(COUNT, max_size=4), GAMMA
    ),
    st.builds(lambda n, low: ("cosine", {"T_max": n, "eta_min": low}), COUNT, st.sampled_from([0.0, 0.01, 0.2])),
    st.builds(
        lambda a, b, n: ("warmup", {"start_factor": a, "end_factor": b, "total_iters": n}),
        st.floats(0.01, 1.0),
        st.floats(0.01, 1.0),
        COUNT,
    ),
    st.builds(
        lambda n, share, kind, div, last, three: (
            "onecycle",
            {
                "total_steps": n,
                "pct_start": share,
                "anneal_strategy": kind,
                "div_factor": div,
                "final_div_factor": last,
                "three_phase": three,
            },
        ),
        st.integers(20, 40),
        st.floats(0.1, 0.45),
        st.sampled_from(["cos", "linear"]),
        st.floats(1.0, 50.0),
        st.floats(0.5, 1e4),
        st.booleans(),
    ),
)


@given(CLOSED, st.floats(1e-4, 1.0))
@settings(max_examples=150, deadline=None)
def test_schedules_by_position(kind_and_options, base) -> None:
    recipe = Recipe(Optimizer("sgd", base), Schedule(*kind_and_options, by="epoch"))
    one, two = pair(recipe)
    position = Position.start(recipe)
    for _ in range(20):
        for trainer in (one, two):
            held = trainer.state().schedule
            assert held["position"] == position.position
            assert held["rate"] == pytest.approx(position.rate, rel=1e-9, abs=1e-15 * base)
            trainer.end_epoch()
        position = position.moved(recipe)


@given(
    st.lists(st.sampled_from([0.1, 0.5, 0.5001, 0.9, 1.0, 1.0001, 2.0]), min_size=8, max_size=25),
    st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["min", "max"]),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "threshold": st.sampled_from([0.0, 1e-4, 0.2]),
            "patience": st.integers(0, 3),
            "cooldown": st.integers(0, 4),
            "factor": GAMMA,
            "min_lr": st.sampled_from([0.0, 0.02]),
            "eps": st.sampled_from([1e-8, 0.01]),
        }
    ),
)
@settings(max_examples=200, deadline=None)
def test_plateaus_by_metric(metrics, options) -> None:
    recipe = Recipe(Optimizer("sgd", 0.1), Schedule("plateau", options))
    one, two = pair(recipe)
    position = Position.start(recipe)
    for metric in metrics:
        position = position.moved(recipe, metric)
        for trainer in (one, two):
            trainer.end_epoch(metric)
            held = trainer.state().schedule
            assert held["rate"] == pytest.approx(position.rate, rel=1e-12)
            assert (held["best"], held["cooldown"]) == (position.best, position.cooldown)
