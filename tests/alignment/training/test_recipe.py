"""Recipes: what they refuse, how they are written down, and what two of them say differently."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment import AlignmentError
from alignment.training.recipe import Clip, Group, Optimizer, Recipe, Schedule, differences

RATES = st.floats(0.0, 1.0, allow_nan=False)
RECIPES = st.builds(
    Recipe,
    st.one_of(
        st.builds(Optimizer, st.just("sgd"), RATES, momentum=st.floats(0.1, 0.99), nesterov=st.booleans()),
        st.builds(
            Optimizer, st.sampled_from(["adam", "adamw"]), RATES, eps=RATES, amsgrad=st.booleans(), weight_decay=RATES
        ),
    ),
    st.sampled_from(
        [
            Schedule(),
            Schedule(by="epoch"),
            Schedule("multistep", {"milestones": [2, 5], "gamma": 0.5}, by="epoch"),
            Schedule("onecycle", {"total_steps": 50, "max_lr": 0.1}),
            Schedule("plateau", {"mode": "max"}),
        ]
    ),
    st.none() | st.builds(Clip, st.sampled_from(["value", "norm", "global norm"]), st.floats(0.1, 9.0)),
    st.lists(st.builds(Group, st.sampled_from(["*.bias", "a*"]), RATES, st.none() | RATES), max_size=2).map(tuple),
)


@given(RECIPES)
def test_a_recipe_survives_json_and_differs_from_none_but_others(recipe) -> None:
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert differences(again, recipe) == ()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"optimiser": {}}, "a recipe has no optimiser; known: optimizer, schedule, clip, groups"),
        ({"optimizer": {"kind": "lion"}}, "optimizer is 'lion'; there are sgd, adam, adamw"),
        ({"optimizer": {"lr": 1.0}}, "optimizer has no lr"),
        ({"optimizer": {"learning_rate": -1.0}}, "learning_rate is -1.0"),
        ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate is nan"),
        ({"optimizer": {"learning_rate": True}}, "learning_rate is True"),
        ({"optimizer": {"kind": "sgd", "eps": 0.1}}, "sgd has no eps"),
        ({"optimizer": {"momentum": 0.9}}, "adam has no momentum"),
        ({"optimizer": {"kind": "sgd", "nesterov": True}}, "needs a momentum"),
        ({"optimizer": {"betas": [0.9]}}, "betas are"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "betas are"),
        ({"optimizer": {"amsgrad": 1}}, "amsgrad is 1"),
        ({"optimizer": []}, "optimizer is .., not a table"),
        ({"schedule": {"kind": "poly"}}, "schedule is 'poly'"),
        ({"schedule": {"kind": "step"}}, "a step schedule needs the option step_size"),
        ({"schedule": {"kind": "step", "step_size": 0}}, "step_size of a step schedule is 0"),
        ({"schedule": {"kind": "step", "step_size": 2, "gamma": 1.0}}, "gamma of a step schedule is 1.0"),
        ({"schedule": {"kind": "step", "step_size": 2, "gama": 0.1}}, "no option 'gama'; it has step_size, gamma"),
        ({"schedule": {"kind": "multistep", "milestones": [3, 3]}}, "milestones"),
        ({"schedule": {"kind": "warmup", "start_factor": 0.0}}, "start_factor"),
        ({"schedule": {"kind": "plateau", "mode": "up"}}, "mode of a plateau schedule is 'up'"),
        ({"schedule": {"kind": "onecycle", "total_steps": 3}}, "pct_start"),
        (
            {"schedule": {"kind": "onecycle", "total_steps": 30, "three_phase": True, "pct_start": 0.6}},
            "less than half",
        ),
        ({"schedule": {"by": "hour"}}, "by is 'hour'"),
        ({"clip": {"kind": "norm"}}, "clip needs limit"),
        ({"clip": {"kind": "all", "limit": 1.0}}, "clipping is 'all'"),
        ({"clip": {"kind": "norm", "limit": 0.0}}, "can't be clipped at 0.0"),
        ({"groups": {"pattern": "a"}}, "groups are a list"),
        ({"groups": [{"factor": 2.0}]}, "a group needs pattern"),
        ({"groups": [{"pattern": "a", "factor": -2.0}]}, "factor of group a"),
    ],
)
def test_what_is_wrong_is_said(table, message) -> None:
    with pytest.raises(AlignmentError, match=message):
        Recipe.from_dict(table)


def test_files(tmp_path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[optimizer]\nkind = "sgd"\nmomentum = 0.5\n[[groups]]\npattern = "*.bias"\nfactor = 2.0\n')
    assert Recipe.read(path) == Recipe(Optimizer("sgd", momentum=0.5), groups=(Group("*.bias", 2.0),))
    for text, message in (("[optimizer", "not a recipe"), ("x = 1", r"r.toml: a recipe has no x")):
        path.write_text(text)
        with pytest.raises(AlignmentError, match=message):
            Recipe.read(path)
    with pytest.raises(AlignmentError, match="can't read"):
        Recipe.read(tmp_path / "none.json")
    path.with_suffix(".yml").write_text("")
    with pytest.raises(AlignmentError, match=r"a recipe is a \.toml or \.json file"):
        Recipe.read(path.with_suffix(".yml"))


def test_the_first_group_that_fits_holds_a_parameter() -> None:
    recipe = Recipe(Optimizer(weight_decay=0.1), groups=(Group("a.*", 2.0), Group("*.bias", 0.5, 0.0)))
    assert [recipe.group_of(name) for name in ("a.bias", "b.bias", "b.weight")] == [1, 2, 0]
    assert [recipe.settings_of(number) for number in range(3)] == [(1.0, 0.1), (2.0, 0.1), (0.5, 0.0)]


def test_differences_are_listed_option_by_option() -> None:
    one = Recipe(Optimizer("sgd", 0.1, momentum=0.9), Schedule("step", {"step_size": 2}), None, (Group("b*", 2.0),))
    two = Recipe(Optimizer("sgd", 0.1), Schedule("step", {"step_size": 3}), Clip("norm", 1.0), (Group("b*", 2.0, 0.5),))
    assert differences(one, two) == (
        "momentum: 0.9 against 0",
        "clipping: none against norm 1",
        "step_size of the step schedule: 2 against 3",
        "weight_decay of b*: 0 against 0.5",
    )
    assert differences(one, Recipe(Optimizer("sgd", 0.1, momentum=0.9)))[0] == "schedule: step against constant"
