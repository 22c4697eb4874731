"""`align trajectory` as a person types it: options, files, exit status, and errors without a traceback."""

from __future__ import annotations

import orjson
import pytest

from alignment import Clip, Group, Optimizer, Recipe, Schedule
from alignment.cli import run
from alignment.commands.trajectory import make_recipe

from ..conftest import SMALL

NAME = "fastformer-text-classifier"
SIZES = [part for name, value in SMALL[NAME].items() for part in ("--set", f"{name}={value}")]
SHORT = ["--data", "fake", "--batch-size", "3", "--length", "8", "--steps", "3", "--envelope", "2", "--probe", "2"]
NOTHING = dict.fromkeys(("kind", "lr", "weight_decay", "momentum", "betas", "eps", "schedule", "clip"))


def align(*arguments: str) -> int:
    return run(["trajectory", NAME, *SIZES, *SHORT, *arguments])


def test_a_right_twin_ends_with_0_and_a_few_lines(capsys):
    assert align() == 0
    said = capsys.readouterr().out
    assert "step 6 training" in said
    assert "float32, 3 steps of adam 0.001" in said
    assert "by themselves  right, all 3 steps" in said
    assert "inside the envelope of 2 runs" in said


def test_a_planted_fault_ends_with_1_and_all_files(capsys, tmp_path):
    files = {name: tmp_path / f"report.{name}" for name in ("json", "html", "junit")}
    arguments = [part for name, file in files.items() for part in (f"--{name}", str(file))]
    assert align("--optimizer", "adamw", "--weight-decay", "0.01", "--fault", "l2-for-decoupled", *arguments) == 1
    said = capsys.readouterr().out
    assert "finding: l2-for-decoupled" in said
    assert "planted on the candidate: l2-for-decoupled" in said
    report = orjson.loads(files["json"].read_bytes())
    assert [one["dtype"] for one in report["twins"][0]["trajectories"]] == ["float32", "float64"]
    assert b"Training in float64" in files["html"].read_bytes()
    assert b"<failure" in files["junit"].read_bytes()
    # The page can be drawn again from the JSON report.
    assert run(["report", str(files["json"]), "--html", str(tmp_path / "again.html")]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--schedule", "step"], "a step schedule needs the option step_size"),
        (["--schedule", "step:step_size=2x"], "--schedule takes KIND:NAME=VALUE"),
        (["--schedule", "step:__import__('os')"], "--schedule takes KIND:NAME=VALUE"),
        (["--clip", "norm"], "--clip takes KIND:LIMIT"),
        (["--optimizer", "sgd", "--eps", "1e-3"], "sgd has no eps"),
        (["--recipe", "nowhere.toml"], "can't read the recipe"),
        (["--fault", "nonsense"], "unknown fault 'nonsense'"),
        (["--fault", "clip-kind"], "it needs clipping"),
        (["--precision", "float16"], "--precision means nothing for a training"),
        (["--reference-optimizer", "nowhere:make"], "nowhere:make can't be imported"),
        (["--schedule", "plateau"], "--epoch"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_ends_with_2_and_a_sentence(arguments, said, capsys):
    assert align(*arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_a_recipe_file_and_options_beside_it(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(
        '[optimizer]\nkind = "adamw"\nweight_decay = 0.05\n[clip]\nkind = "norm"\nlimit = 2.0\n'
        '[[groups]]\npattern = "*.bias"\nweight_decay = 0.0\n'
    )
    made = make_recipe(file, **NOTHING | {"lr": 0.01, "schedule": "multistep:milestones=[3,5],gamma=0.5"})
    assert made == Recipe(
        Optimizer("adamw", 0.01, weight_decay=0.05),
        Schedule("multistep", {"milestones": [3, 5], "gamma": 0.5}),
        Clip("norm", 2.0),
        (Group("*.bias", weight_decay=0.0),),
    )
    cycle = "onecycle:total_steps=9,anneal_strategy=linear"
    assert make_recipe(None, **NOTHING | {"clip": "global norm:1", "schedule": cycle}) == Recipe(
        Optimizer("adam"),
        Schedule("onecycle", {"total_steps": 9, "anneal_strategy": "linear"}),
        Clip("global norm", 1.0),
    )
