"""`align check --isolate`: a model that crashes, aborts or hangs costs one inconclusive result, in every view."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import jsonschema
import orjson
import pytest

from alignment.cases import Case, check_isolated, run_case
from alignment.check import check
from alignment.cli import run
from alignment.experiment import Options
from alignment.views.json import SCHEMA, from_dict, to_dict

MOODY = ["moody:twin", "--step", "3", "--threads", "1"]


@pytest.fixture(autouse=True)
def _beside_the_moody_twin(tmp_path, monkeypatch) -> None:
    shutil.copy(Path(__file__).with_name("moody.py"), tmp_path)
    monkeypatch.chdir(tmp_path)


def isolated(capsys, mood: str, *more: str, status: int) -> tuple[str, dict]:
    arguments = ["check", *MOODY, "--set", f"mood={mood}", "--isolate", "--json", "report.json", *more]
    assert run(arguments) == status
    report = json.loads(Path("report.json").read_text())
    jsonschema.validate(report, orjson.loads(SCHEMA.read_bytes()))
    assert "moody" not in sys.modules  # nothing of it was run here
    return " ".join(capsys.readouterr().out.split()), report


def test_what_neither_crashes_nor_hangs_is_judged_as_ever(capsys) -> None:
    out, report = isolated(capsys, "good", status=0)
    assert "moody ALIGNED" in out
    assert report["verdict"] == "aligned"
    assert len(report["twins"][0]["stages"][0]["tensors"]) == 3
    out, report = isolated(capsys, "double", status=1)
    assert "ROOT" in out
    assert report["verdict"] == "diverged"


@pytest.mark.parametrize(("mood", "signal"), [("abort", "SIGABRT"), ("segfault", "SIGSEGV")])
def test_a_crash_is_inconclusive_and_says_where(capsys, mood, signal) -> None:
    out, report = isolated(capsys, mood, status=2)
    assert "INCONCLUSIVE" in out
    assert f"nothing was decided: killed by signal {signal}" in out
    (twin,) = report["twins"]
    assert report["verdict"] == twin["verdict"] == "inconclusive"
    reason, said = twin["notes"]
    assert signal in reason
    assert 'moody.py", line' in said
    assert "in forward" in said
    assert ("about to abort" in said) == (mood == "abort")
    assert "experiment.py" not in said
    assert [stage["verdict"] for stage in twin["stages"]] == ["inconclusive"]


@pytest.mark.slow
def test_a_hang_costs_its_time_and_no_more(capsys) -> None:
    out, report = isolated(capsys, "hang", "--timeout", "20", status=2)
    assert "no answer after 20 s" in out
    (twin,) = report["twins"]
    assert "about to hang" in twin["notes"][1]
    assert "in forward" in twin["notes"][1]
    assert 20 <= twin["seconds"] < 25


@pytest.mark.parametrize("mood", ["raise", "leave"])
def test_a_model_that_raises_is_told_with_its_message(capsys, mood) -> None:
    out, report = isolated(capsys, mood, status=2)
    (note,) = report["twins"][0]["notes"]
    assert note.startswith("nothing was decided: could not run: the candidate (moody:Candidate) fails on batch")
    assert re.search(r" at moody\.py:\d+: ", note)
    assert note in out


def test_a_module_that_crashes_when_imported_is_a_crash_like_any_other(capsys) -> None:
    Path("moody.py").write_text("import os\nos.abort()\n")
    _, report = isolated(capsys, "good", status=2)
    assert "SIGABRT" in report["twins"][0]["notes"][0]


def test_a_report_written_before_the_crash_proves_nothing() -> None:
    source = Path("moody.py").read_text()
    Path("moody.py").write_text(f"import atexit, os\natexit.register(os.abort)\n{source}")
    answer = run_case(Case("moody:twin", {"step": [3], "threads": 1}))
    assert answer.report is None
    assert answer.reason == "killed by signal SIGABRT after its report was written"


def test_a_report_that_its_exit_status_denies_proves_nothing() -> None:
    source = Path("moody.py").read_text()
    Path("moody.py").write_text(f"import atexit, os\natexit.register(os._exit, 1)\n{source}")
    answer = run_case(Case("moody:twin", {"step": [3], "threads": 1}))
    assert answer.report is None
    assert answer.reason == "exit status 1, though its report says aligned"


@pytest.mark.slow
def test_every_twin_gets_a_result(capsys, monkeypatch) -> None:
    monkeypatch.setattr("alignment.commands.check.TWINS", ["moody:twin", "nonsense", "fastformer-text-classifier"])
    arguments = ["--all", "--isolate", "--step", "1", "--threads", "1", "--json", "report.json"]
    assert run(["check", *arguments]) == 2
    report = json.loads(Path("report.json").read_text())
    assert [twin["verdict"] for twin in report["twins"]] == ["aligned", "inconclusive", "aligned"]
    assert "unknown twin 'nonsense'" in report["twins"][1]["notes"][0]
    assert "2 of 3 twins aligned" in capsys.readouterr().out


def test_options_reach_the_child(capsys, small_arguments) -> None:
    Path("alignment.toml").write_text('seed = 5\nset = {dim = 8}\ninject = ["loss-reduction"]\n')
    arguments = ["check", *small_arguments("fast-transformer"), "--step", "1", "--isolate", "--json", "report.json"]
    assert run([*arguments, "--reprod-log", "logs"]) == 0
    (twin,) = json.loads(Path("report.json").read_text())["twins"]
    assert twin["seed"] == 5
    assert twin["faults"] == ["loss-reduction"]
    assert twin["settings"]["dim"] == 16
    assert twin["options"]["batch_size"] == 3
    assert [stage["step"] for stage in twin["stages"]] == [1]
    assert {path.name for path in Path("logs").iterdir()} == {"structure_torch.npy", "structure_paddle.npy"}


def test_a_timeout_needs_a_process_that_can_be_killed(capsys) -> None:
    assert run(["check", "--timeout", "5"]) == 2
    assert "--isolate" in capsys.readouterr().err
    assert run(["check", "--isolate", "--timeout", "0"]) == 2


def test_a_crashed_report_cannot_be_explained_and_says_so(capsys) -> None:
    isolated(capsys, "abort", status=2)
    assert run(["explain", "report.json"]) == 2
    assert "crashed" in capsys.readouterr().err


def test_from_python() -> None:
    report = check_isolated(Case("moody:twin", {"set": {"mood": "abort"}, "step": 3, "inject": "gelu-form", "seed": 4}))
    assert report.verdict == "inconclusive"
    (twin,) = report.twins
    assert (twin.seed, twin.faults, twin.settings) == (4, ("gelu-form",), {"mood": "abort"})
    assert [stage.name for stage in twin.stages] == ["forward"]


def test_a_report_survives_json(small) -> None:
    options = small("fast-transformer-classifier", faults=("stale-bias-gradient",), steps=(1, 5))
    assert isinstance(options, Options)
    report = check("fast-transformer-classifier", options)
    again = from_dict(orjson.loads(orjson.dumps(to_dict(report), option=orjson.OPT_SERIALIZE_NUMPY)))
    assert to_dict(again) == to_dict(from_dict(to_dict(again)))
    assert to_dict(again) == orjson.loads(orjson.dumps(to_dict(report), option=orjson.OPT_SERIALIZE_NUMPY))
    assert [t.strain for s in again.twins[0].stages for t in s.tensors] == [
        t.strain for s in report.twins[0].stages for t in s.tensors
    ]
