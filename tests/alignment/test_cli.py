"""The command line: exit status, bad input in one paragraph, files written whole, the same options for every script."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alignment.cli import run
from alignment.config import read_config
from alignment.errors import AlignmentError
from fake_data.amazon import synthetic_reviews

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch) -> None:
    """Away from the repository, so that no configuration file is found by chance."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def reviews(tmp_path) -> Path:
    path = tmp_path / "reviews.json.gz"
    with gzip.open(path, "wt") as file:
        for review in synthetic_reviews(60, 0):
            file.write(json.dumps(review) + "\n")
    return path


def refused(capsys, arguments: list[str], *said: str) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    for words in said:
        assert words in captured.err


def test_aligned_exits_0_and_prints_every_stage(capsys, small_arguments) -> None:
    assert run(["check", *small_arguments("fast-transformer")]) == 0
    out = capsys.readouterr().out
    for name in ("structure", "initialization", "forward", "loss", "backward"):
        assert f"{name} " in out
    assert out.count("ALIGNED") == 6
    assert "nearest to its limit" in out


def test_a_planted_fault_exits_1_and_the_json_names_it(capsys, tmp_path, small_arguments) -> None:
    file = tmp_path / "report.json"
    arguments = ["check", *small_arguments("fast-transformer-classifier"), "--inject", "stale-bias-gradient"]
    assert run([*arguments, "--json", str(file)]) == 1
    assert "ROOT" in capsys.readouterr().out
    report = json.loads(file.read_text())
    bad = [(s["step"], t["reference_name"]) for s in report["twins"][0]["stages"] for t in s["tensors"]
           if t["verdict"] == "diverged"]  # fmt: skip
    assert report["verdict"] == "diverged"
    assert bad == [(5, "dense_linear.bias")]


def test_the_root_divergence_comes_before_what_follows_from_it(capsys, small_arguments) -> None:
    assert run(["check", *small_arguments("fast-transformer"), "--step", "3", "--inject", "gelu-form"]) == 1
    lines = capsys.readouterr().out.splitlines()
    marks = [line for line in lines if "ROOT" in line or line.strip().startswith("✗  ")]
    assert "ROOT" in marks[0]


def test_verbose_lists_every_tensor_and_quiet_none(capsys, small_arguments) -> None:
    arguments = ["check", *small_arguments("fastformer-text-classifier"), "--step", "3"]
    assert run([*arguments, "--verbose"]) == 0
    assert "att_fc2" in capsys.readouterr().out
    assert run([*arguments, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""


def test_reviews_from_a_file(capsys, reviews, small_arguments) -> None:
    arguments = ["check", *small_arguments("fastformer-classifier"), "--step", "3", "--data", str(reviews)]
    place = arguments.index("vocab_size=40")
    assert run(arguments[: place - 1] + arguments[place + 1 :]) == 0
    assert "reviews-1" in capsys.readouterr().out
    refused(capsys, arguments, "vocab_size=40 is too small", "--set vocab_size=")


def test_reviews_for_every_twin(reviews) -> None:
    for name in ("fast-transformer", "fastformer-text-classifier"):
        small = ["--set", "dim=16", "--set", "heads=2", "--set", "dim_head=8"] if name == "fast-transformer" else []
        assert run(["check", name, *small, "--step", "3", "--data", str(reviews), "--batch-size", "2", "--quiet"]) == 0


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(capsys, reviews, keep) -> None:
    content = reviews.read_bytes()
    reviews.write_bytes(content[: int(len(content) * keep)])
    refused(capsys, ["check", "--data", str(reviews)], str(reviews))


def test_missing_empty_and_senseless_files_are_refused(capsys, tmp_path) -> None:
    refused(capsys, ["check", "--data", "no/such/file.json"], "no/such/file.json")
    (tmp_path / "empty.json").write_text("")
    refused(capsys, ["check", "--data", "empty.json"], "empty.json")
    (tmp_path / "noise.json").write_bytes(os.urandom(4096))
    refused(capsys, ["check", "--data", "noise.json"], "noise.json")
    refused(capsys, ["check", "--data", str(tmp_path)], str(tmp_path))
    refused(capsys, ["check", "--weights", "no/such/file.pth"], "no/such/file.pth")


def test_a_hostile_pickle_is_refused_and_never_runs(capsys, tmp_path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    (tmp_path / "weights.pdparams").write_bytes(pickle.dumps({"token_emb.weight": Hostile()}))
    refused(capsys, ["check", "--weights", "weights.pdparams"], "weights.pdparams", "system")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "nonsense"], "fast-transformer-classifier"),
        (["check", "--all", "fast-transformer"], "--all"),
        (["check", "--step", "6"], "--step"),
        (["check", "--set", "dim"], "NAME=VALUE"),
        (["check", "--set", "nonsense=1"], "nonsense"),
        (["check", "--set", "dim=x"], "dim=x"),
        (["check", "--inject", "nonsense"], "stale-bias-gradient"),
        (["check", "fastformer-text-classifier", "--inject", "gelu-form"], "nothing to hit"),
        (["check", "--json", "no/such/folder/report.json", "--step", "1"], "no/such/folder/report.json"),
        (["check", "--length", "5000"], "5000"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_exits_2_and_says_what_is_wrong(capsys, arguments, said) -> None:
    refused(capsys, arguments, said)


def test_a_report_that_cannot_be_written_is_noticed_before_the_work(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("alignment.commands.check.check", lambda *_: pytest.fail("the check ran first"))
    refused(capsys, ["check", "--json", "no/such/folder/report.json"], "no/such/folder")


def test_help_lists_the_faults_and_needs_no_framework() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['paddle'] = None\n"
        "from alignment.cli import run\n"
        "sys.exit(run(['check', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stale-bias-gradient" in done.stdout


@pytest.mark.parametrize("missing", ["torch", "paddle"])
def test_a_missing_framework_is_named_with_its_remedy(missing) -> None:
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name == {missing!r} else find(name, *a)\n"
        "from alignment.cli import run\n"
        "sys.exit(run(['check']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{missing} is not installed" in done.stderr
    assert f"pip install {missing}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_each_step_has_a_script_that_takes_the_same_options(step, small_arguments, tmp_path) -> None:
    script = ROOT / "alignment" / f"check_step{step}.py"
    file = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(script), *small_arguments("fastformer-text-classifier"), "--json", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [s["step"] for s in json.loads(file.read_text())["twins"][0]["stages"]] == [step]


def test_reprod_log_files_come_in_pairs_that_the_package_finds_equal(tmp_path, small_arguments) -> None:
    folder = tmp_path / "logs"
    assert run(["check", *small_arguments("fast-transformer"), "--reprod-log", str(folder), "--quiet"]) == 0
    from reprod_log import ReprodDiffHelper

    stems = {path.name.rpartition("_")[0] for path in folder.iterdir()}
    assert stems == {"structure", "init", "forward", "loss", "bp_align"}
    for stem in stems:
        helper = ReprodDiffHelper()
        ours, theirs = (helper.load_info(str(folder / f"{stem}_{side}.npy")) for side in ("torch", "paddle"))
        assert ours.keys() == theirs.keys()
        assert ours
        assert all(ours[key].shape == theirs[key].shape for key in ours)
        assert max(np.abs(ours[key] - theirs[key]).mean() for key in ours) < 1e-5


def test_options_from_a_configuration_file(capsys, tmp_path, small_arguments) -> None:
    (tmp_path / "alignment.toml").write_text(
        'twin = "fastformer-text-classifier"\nstep = [3]\ndata = "fake"\nquiet = true\n[set]\nvocab_size = 40\nembed = 16\n'
    )
    file = tmp_path / "report.json"
    assert run(["check", "--json", str(file)]) == 0
    twin = json.loads(file.read_text())["twins"][0]
    assert twin["twin"] == "fastformer-text-classifier"
    assert twin["settings"]["embed"] == 16
    assert [stage["step"] for stage in twin["stages"]] == [3]
    (tmp_path / "alignment.toml").write_text("stepp = [3]\n")
    refused(capsys, ["check"], "stepp", "alignment.toml")


def test_configuration_is_read_from_pyproject_too(tmp_path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.alignment]\nset = {dim = 32, absolute_pos_emb = false}\n[tool.x]\ny = 1\n"
    )
    assert read_config(None, {"set"}, repeated={"set"}) == {"set": ["dim=32", "absolute_pos_emb=false"]}
    (tmp_path / "pyproject.toml").write_text("[tool.alignment\n")
    with pytest.raises(AlignmentError, match=r"pyproject\.toml"):
        read_config(None, {"set"})


def test_ctrl_c_is_one_line(capsys, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alignment.commands.check.check", interrupted)
    refused(capsys, ["check"], "interrupted")


def test_a_closed_pipe_does_not_change_the_verdict(small_arguments) -> None:
    command = f"{sys.executable} -m alignment check {' '.join(small_arguments('fastformer-text-classifier'))} --step 1 --verbose"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_report_through_a_link_or_to_a_device_leaves_them_what_they_are(tmp_path, small_arguments) -> None:
    target = tmp_path / "target.json"
    target.write_text("old")
    (tmp_path / "link.json").symlink_to(target)
    arguments = ["check", *small_arguments("fastformer-text-classifier"), "--step", "1", "--quiet", "--json"]
    assert run([*arguments, "link.json"]) == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads(target.read_text())["verdict"] == "aligned"
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    assert run([*arguments, "pipe"]) == 0
    assert json.loads(reader.communicate()[0])["verdict"] == "aligned"
    assert not (tmp_path / "pipe").is_file()


@pytest.mark.parametrize(
    "line", ["batch-size = [1, 2]", "quiet = 7", "seed = 'x'", "[tool.alignment]", "twin = {a = 1}"]
)
def test_senseless_values_in_a_configuration_file(capsys, tmp_path, line) -> None:
    (tmp_path / "alignment.toml").write_text(line + "\n")
    assert run(["check", "--step", "1"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_typed_goes_before_a_configuration_file(tmp_path, small_arguments) -> None:
    (tmp_path / "alignment.toml").write_text("all = true\nstep = 1\nquiet = true\n")
    assert run(["check", *small_arguments("fastformer-text-classifier"), "--json", "report.json"]) == 0
    assert [twin["twin"] for twin in json.loads((tmp_path / "report.json").read_text())["twins"]] == [
        "fastformer-text-classifier"
    ]


def test_an_internal_error_is_no_verdict(capsys, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("alignment.commands.check.check", broken)
    assert run(["check"]) == 2
    assert "internal error" in capsys.readouterr().err
