"""Training on reviews: what a run learns, that it goes on after any end bit for bit, and the parity of the trained weights."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alignment.cli import run
from alignment.errors import AlignmentError
from alignment.training.fit import StoppedError
from alignment.training.recipe import Clip, Group, Optimizer, Recipe, Schedule
from alignment.training.recipe_file import read_recipe
from alignment.training.run_folder import BEST, LAST, METRICS, STATE, RunFolder, Saved, SideFolder
from alignment.training.runs import TrainOptions, resume, train
from checkpoints import CheckpointError, read

ROOT = Path(__file__).resolve().parents[3]
TWIN = "fastformer-classifier"
SIZES = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "max_position_embeddings": 8,
}
# 64 rows to train on, eight batches an epoch.
SMALL = TrainOptions(settings=SIZES, reviews=80, split="random", batch_size=8, epochs=2, threads=1)
TYPED = ["--reviews", "80", "--split", "random", "--batch-size", "8", "--epochs", "2", "--threads", "1"] + [
    part for name, value in SIZES.items() for part in ("--set", f"{name}={value}")
]
KEPT = (STATE, LAST, BEST, METRICS)
SIDES = ("reference", "candidate")


def contents(folder: Path, side: str, seed: int = 0) -> dict[str, bytes]:
    """Name -> bytes of all that a side's folder holds."""
    return {path.name: path.read_bytes() for path in (folder / f"seed-{seed}" / side).iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of both sides that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(TWIN, SMALL, folder).verdict == "aligned"
    return folder


def asked_after(steps: int):
    """Says stop from its call number `steps` + 1 on."""
    calls: list[int] = []

    def stop() -> bool:
        calls.append(0)
        return len(calls) > steps

    return stop


# ------------------------------------------------------------------------------------------------------ what is kept


def test_both_sides_start_alike_and_the_folder_holds_what_it_says(whole) -> None:
    for side in SIDES:
        held = contents(whole, side)
        assert set(held) == set(KEPT)
        lines = [json.loads(line) for line in held[METRICS].splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2]
        assert [line["steps"] for line in lines] == [8, 16]
        best = max(lines, key=lambda line: line["validation"]["macro_f1"])
        assert [line["best"] for line in lines][best["epoch"] - 1]
        state = read(whole / "seed-0" / side / STATE)
        last = read(whole / "seed-0" / side / LAST)
        assert {f"weight/{name}" for name in last} == {name for name in state if name.startswith("weight/")}
        assert all(np.array_equal(state[f"weight/{name}"], value) for name, value in last.items())
        assert sum(name.startswith("slot/first moment/") for name in state) > 10
    losses = [json.loads(contents(whole, side)[METRICS].splitlines()[0])["loss"] for side in SIDES]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    words = (whole / "vocabulary.txt").read_text().split("\n")
    assert words[0] == "<padding>"
    assert len(words) - 1 == json.loads((whole / "run.json").read_text())["reviews"]["words"]


def test_the_best_weights_are_those_of_the_epoch_with_the_best_macro_f(tmp_path) -> None:
    # A rate so high that no later epoch is better than the first.
    options = TrainOptions(**{**SMALL.__dict__, "side": "reference", "recipe": Recipe(Optimizer(learning_rate=0.03))})
    report = train(TWIN, TrainOptions(**{**options.__dict__, "epochs": 3}), tmp_path / "three")
    (one,) = report.runs
    scores = [epoch.validation.confusion.macro_f1 for epoch in one.history]
    assert one.best == 1 + scores.index(max(scores)) == 1
    assert one.validation.confusion.macro_f1 == max(scores)
    assert report.verdict is None
    train(TWIN, TrainOptions(**{**options.__dict__, "epochs": 1}), tmp_path / "one")
    three, first = (contents(tmp_path / name, "reference") for name in ("three", "one"))
    assert three[BEST] == first[BEST] == first[LAST] != three[LAST]


def test_training_stops_early_where_macro_f_does_not_rise(tmp_path) -> None:
    still = Recipe(Optimizer("sgd", learning_rate=1e-12))
    options = TrainOptions(**{**SMALL.__dict__, "side": "reference", "epochs": 9, "patience": 2, "recipe": still})
    (one,) = train(TWIN, options).runs
    assert (len(one.history), one.best) == (3, 1)
    assert one.ended == "no better macro-F in validation for 2 epochs"


@pytest.mark.slow
def test_it_learns(tmp_path) -> None:
    sizes = {**SIZES, "hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 48}
    options = TrainOptions(
        settings=sizes, reviews=6000, epochs=8, batch_size=16, threads=1, recipe=Recipe(Optimizer(learning_rate=3e-3))
    )
    report = train(TWIN, options)
    assert report.verdict == "aligned"
    for one in report.runs:
        assert one.test.confusion.accuracy > 0.35  # guessing gives 0.2, counting words 0.55
        assert one.train.confusion.accuracy > one.history[0].train.confusion.accuracy


# ------------------------------------------------------------------------------------------------------------- going on


RECIPES = {
    "adam": Recipe(),
    "momentum": Recipe(Optimizer("sgd", 0.1, momentum=0.9, nesterov=True), Schedule("onecycle", {"total_steps": 16})),
    "adamw": Recipe(Optimizer("adamw", amsgrad=True), Schedule("cosine", {"T_max": 2}, by="epoch"), Clip("norm", 0.1)),
    "plateau": Recipe(schedule=Schedule("plateau", {"patience": 0, "threshold": 0.5}), groups=(Group("*.bias", 2.0),)),
}


@pytest.mark.parametrize(("recipe", "dropout"), [*((name, "seeded") for name in RECIPES), ("adam", "own")])
def test_stopped_anywhere_it_ends_as_if_it_had_not(tmp_path, recipe, dropout) -> None:
    options = TrainOptions(
        **{**SMALL.__dict__, "dropout": dropout, "recipe": RECIPES[recipe], "epochs": 3, "reviews": 40}
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(TWIN, options, whole)
    with pytest.raises(StoppedError, match="epoch 1, after 3 of its 4 steps"):
        train(TWIN, options, cut, stop=asked_after(3))
    with pytest.raises(StoppedError, match="epoch 3, after 1 of its 4 steps"):
        resume(cut, stop=asked_after(6))
    with pytest.raises(StoppedError, match="epoch 1, after 2 of its 4 steps"):  # of the other side
        resume(cut, stop=asked_after(5))
    with pytest.raises(StoppedError, match="epoch 3, after 0 of its 4 steps"):
        resume(cut, stop=asked_after(6))
    assert resume(cut, save_every=0).verdict == "aligned"
    for side in SIDES:
        assert contents(cut, side) == contents(whole, side)


def test_a_process_that_dies_between_two_files_loses_nothing(tmp_path, whole, monkeypatch) -> None:
    """The best weights of an epoch are written, its state is not."""
    save, folder = SideFolder.save, tmp_path / "cut"

    def dies(self: SideFolder, saved: Saved) -> None:
        if len(saved.place.history) == 2:
            raise KeyboardInterrupt
        save(self, saved)

    monkeypatch.setattr(SideFolder, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        train(TWIN, SMALL, folder)
    monkeypatch.undo()
    (folder / "seed-0" / "reference" / f".{STATE}.abc.part").write_bytes(b"half")
    (folder / "vocabulary.txt").unlink()
    resume(folder)
    assert (folder / "vocabulary.txt").read_bytes() == (whole / "vocabulary.txt").read_bytes()
    for side in SIDES:
        assert contents(folder, side) == contents(whole, side)


# `align train` that sends itself a signal just before it saves one side for the so-manieth time.
SIGNALLED = """
import os, sys
from alignment.training.run_folder import SideFolder

side, left, number = sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))
save = SideFolder.save

def signalled(self, saved):
    global left
    if self.path.name == side:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)
    save(self, saved)

SideFolder.save = signalled
from alignment.cli import main
main(["train", *sys.argv[1:]])
"""


def signalled(side: str, count: int, number: int, *arguments: str) -> subprocess.CompletedProcess:
    """A run that saves at every step, and gets a signal before it saves a side for the `count`-th time."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SIGNALLED, side, str(count), str(int(number)), *arguments, "--save-every", "0"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_killed_midway_on_either_side_it_ends_bit_identical(tmp_path, whole) -> None:
    folder = tmp_path / "killed"
    killed = signalled("reference", 5, signal.SIGKILL, TWIN, *TYPED, "-o", str(folder))
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "seed-0" / "reference" / STATE).exists()
    assert not (folder / "seed-0" / "candidate").exists()
    killed = signalled("candidate", 6, signal.SIGKILL, "--resume", str(folder))
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "seed-0" / "candidate" / STATE).exists()
    assert not (folder / "result.json").exists()
    assert resume(folder).verdict == "aligned"
    for side in SIDES:
        assert contents(folder, side) == contents(whole, side)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, whole, number) -> None:
    folder = tmp_path / "stopped"
    stopped = signalled("reference", 2, number, TWIN, *TYPED, "-o", str(folder))
    assert stopped.returncode == 2
    assert f"all of it is kept: `align train --resume {folder}` goes on" in " ".join(stopped.stderr.split())
    resume(folder)
    for side in SIDES:
        assert contents(folder, side) == contents(whole, side)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_the_same_command_again_says_how_to_go_on(whole) -> None:
    with pytest.raises(AlignmentError, match=r"this very run already: `align train --resume .*run`"):
        train(TWIN, SMALL, whole)


def test_another_configuration_is_refused_with_what_differs(whole) -> None:
    other = TrainOptions(**{**SMALL.__dict__, "seed": 3, "recipe": Recipe(Optimizer(learning_rate=0.1))})
    with pytest.raises(AlignmentError) as caught:
        train(TWIN, other, whole)
    said = str(caught.value)
    assert "options.seed: 0 there, 3 asked for" in said
    assert "options.recipe.optimizer.learning_rate: 0.001 there, 0.1 asked for" in said
    assert "epochs" not in said


def test_other_reviews_than_it_was_trained_on_are_refused(tmp_path) -> None:
    from fake_data.amazon import write_synthetic

    options = TrainOptions(**{**SMALL.__dict__, "data": str(tmp_path / "a.json"), "side": "reference", "reviews": None})
    write_synthetic(tmp_path / "a.json", 80, seed=1)
    train(TWIN, options, tmp_path / "run")
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    assert len(resume(tmp_path / "run", data=str(tmp_path / "b.json")).runs) == 1
    write_synthetic(tmp_path / "b.json", 80, seed=2)
    with pytest.raises(AlignmentError, match=r"reviews\.hash"):
        resume(tmp_path / "run", data=str(tmp_path / "b.json"))


def test_training_starts_from_a_checkpoint_and_knows_it_again(tmp_path, whole) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes((whole / "seed-0" / "reference" / BEST).read_bytes())
    options = TrainOptions(**{**SMALL.__dict__, "weights": str(start), "epochs": 1})
    report = train(TWIN, options, tmp_path / "run")
    first = {one.side: one.history[0].loss for one in report.runs}
    initial = json.loads(contents(whole, "reference")[METRICS].splitlines()[0])["loss"]
    assert first["reference"] == pytest.approx(first["candidate"], rel=1e-5)
    assert first["reference"] < initial
    start.write_bytes((whole / "seed-0" / "reference" / LAST).read_bytes()[:-4] + bytes(4))
    with pytest.raises(AlignmentError, match="weights: "):
        resume(tmp_path / "run")


def test_two_processes_do_not_train_in_one_folder(whole) -> None:
    with RunFolder(whole).held(), pytest.raises(AlignmentError, match="another process trains in"):
        resume(whole)


def test_a_run_that_died_before_it_began_is_begun_again(tmp_path) -> None:
    (tmp_path / ".run.json.abc.part").write_bytes(b"{")
    options = TrainOptions(**{**SMALL.__dict__, "side": "reference", "epochs": 1})
    assert len(train(TWIN, options, tmp_path).runs) == 1


def test_a_folder_of_other_files_or_none_is_refused(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AlignmentError, match="is not empty and holds no run"):
        train(TWIN, SMALL, tmp_path)
    with pytest.raises(AlignmentError, match=r"holds no run: there is no run\.json"):
        resume(tmp_path)
    with pytest.raises(CheckpointError, match="can't make the folder"):
        train(TWIN, SMALL, tmp_path / "notes.txt" / "run")


def test_a_full_disk_loses_nothing(tmp_path, whole, capfd) -> None:
    folder = tmp_path / "full"
    with pytest.raises(StoppedError):
        train(TWIN, SMALL, folder, stop=asked_after(4))
    before = contents(folder, "reference")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file may be larger: what a full disk looks like
    try:
        status = run(["train", "--resume", str(folder), "--quiet"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capfd.readouterr().err
    assert status == 2
    assert "can't write: File too large" in said
    assert f"`align train --resume {folder}` goes on" in said
    assert contents(folder, "reference")[STATE] == before[STATE]
    assert run(["train", "--resume", str(folder), "--quiet"]) == 0
    for side in SIDES:
        assert contents(folder, side) == contents(whole, side)


def test_a_damaged_state_is_told(tmp_path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(TWIN, SMALL, folder, stop=asked_after(2))
    state = folder / "seed-0" / "reference" / STATE
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        resume(folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "vocab_size=50"], "vocab_size follows from the reviews"),
        (["--data", "nowhere.json"], "nowhere.json does not exist"),
        (["--length", "9"], "length 9 is more than the 8 tokens"),
        (["--schedule", "cosine:5"], "--schedule takes KIND"),
        (["--schedule", "cosine:T_min=5"], "no option 'T_min'"),
        (["--clip", "0.5"], "clipping is ''; there are value"),
        (["--momentum", "0.5"], "adam has no momentum"),
        (["--recipe", "nowhere.toml"], "nowhere.toml: can't read the recipe"),
        (["--resume", "x"], "leave out"),
        (["--reviews", "5"], "a split needs ten reviews"),
        (["--set", "num_classes=3"], "num_classes=3 is too small"),
        (["--optimizer", "sgd", "--lr", "1e30"], "lower the learning rate (--lr)"),
    ],
)
def test_what_can_not_be_trained_is_told_without_a_traceback(arguments, said, capfd) -> None:
    assert run(["train", TWIN, *TYPED, *arguments]) == 2
    err = capfd.readouterr().err
    assert said in " ".join(err.split())
    assert "Traceback" not in err


def test_a_twin_without_reviews_is_refused() -> None:
    with pytest.raises(AlignmentError, match="one label a row"):
        train("fast-transformer", SMALL.__class__())


# ---------------------------------------------------------------------------------------------------------- the recipe


def test_the_recipe_comes_from_a_file_and_what_is_typed_goes_before_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(
        '[optimizer]\nkind = "adamw"\nlearning_rate = 0.01\nweight_decay = 0.1\n[clip]\nkind = "value"\nlimit = 1\n'
        '[[groups]]\npattern = "*.bias"\nweight_decay = 0.0\n'
    )
    typed = [
        "--recipe",
        "r.toml",
        "--lr",
        "0.02",
        "--schedule",
        "cosine",
        "--side",
        "reference",
        "-o",
        "run",
    ]
    assert run(["train", TWIN, *TYPED, *typed, "--quiet"]) == 0
    assert json.loads(Path("run/run.json").read_text())["options"]["recipe"] == {
        "optimizer": {"kind": "adamw", "learning_rate": 0.02, "weight_decay": 0.1},
        "schedule": {"kind": "cosine", "T_max": 2, "by": "epoch"},
        "clip": {"kind": "value", "limit": 1},
        "groups": [{"pattern": "*.bias", "weight_decay": 0.0}],
    }
    lines = [json.loads(line) for line in Path(f"run/seed-0/reference/{METRICS}").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.02, 0.01])


@pytest.mark.parametrize("text", ["optimizer = 3", "[optimiser]", "[optimizer]\nkind = 'lion'", "not toml"])
def test_a_recipe_that_is_none_is_told_with_its_file(tmp_path, text) -> None:
    file = tmp_path / "r.toml"
    file.write_text(text)
    with pytest.raises(AlignmentError, match=r"r\.toml: can't read the recipe: \w+"):
        read_recipe(file)


# --------------------------------------------------------------------------------------------------------------- parity


def test_a_wrong_port_diverges_though_it_trains(tmp_path, monkeypatch, capfd) -> None:
    (tmp_path / "wrong_port.py").write_text(
        "from dataclasses import replace\n"
        "from alignment.twins import TWINS\n"
        f"right = TWINS[{TWIN!r}]\n"
        "twin = replace(right, candidate=replace(right.candidate, settings={'layer_norm_eps': 1e-3}))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert run(["train", "wrong_port:twin", *TYPED, "-o", "run"]) == 1
    out = capfd.readouterr().out
    assert "DIVERGED" in out
    assert "ROOT" in out
    held = json.loads(Path("run/result.json").read_text())
    assert held["verdict"] == "diverged"
    assert held["parity"][0]["check"]["verdict"] == "diverged"


def test_a_model_that_raises_in_training_is_told_with_its_side(tmp_path, monkeypatch, capfd) -> None:
    (tmp_path / "raising_port.py").write_text(
        "from dataclasses import replace\n"
        "from alignment.twins import TWINS\n"
        f"right = TWINS[{TWIN!r}]\n"
        "twin = replace(right, candidate=replace(right.candidate, settings={'layer_norm_eps': 0.1}))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert run(["train", "raising_port:twin", *TYPED]) == 2
    err = " ".join(capfd.readouterr().err.split())
    assert "the candidate (fastformer_paddle:FastformerClassifier) fails on epoch 0 batch 0: ValueError" in err
    assert "Traceback" not in err


def test_a_twin_with_a_mask_and_padding_at_the_end_is_trained() -> None:
    options = TrainOptions(
        settings={"embed": 8, "num_attention_heads": 2, "num_classes": 5}, reviews=80, split="random", length=6,
        batch_size=8, epochs=1, threads=1,
    )  # fmt: skip
    report = train("fastformer-text-classifier", options)
    assert report.verdict == "aligned"
    assert len(report.runs) == 2


def test_several_seeds_have_a_spread(tmp_path) -> None:
    options = TrainOptions(**{**SMALL.__dict__, "seeds": 2, "epochs": 1})
    report = train(TWIN, options, tmp_path / "run")
    assert [(one.seed, one.side) for one in report.runs] == [
        (0, "reference"),
        (0, "candidate"),
        (1, "reference"),
        (1, "candidate"),
    ]
    assert "they spread by" in report.comparison[0]
    assert contents(tmp_path / "run", "reference", 0)[LAST] != contents(tmp_path / "run", "reference", 1)[LAST]
