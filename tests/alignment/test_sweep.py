"""Sweeps: a grid or a file of cases, results that survive crashes, hangs and kill -9, on this machine and on Ray."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from alignment.cases import Case
from alignment.cli import run
from alignment.commands.check import NOT_OF_A_CASE, case_options
from alignment.commands.sweep import grid, read_cases
from alignment.errors import AlignmentError
from alignment.sweep import CaseResult, _run_there, local, on_ray, sweep, verdict_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _beside_the_moody_twin(tmp_path, monkeypatch) -> None:
    shutil.copy(Path(__file__).with_name("moody.py"), tmp_path)
    monkeypatch.chdir(tmp_path)


def lines(path: str = "sweep.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def essence(path: str) -> dict[str, tuple]:
    """The last result of each case, without what depends on the clock."""
    return {
        one["id"]: tuple((k, str(v)) for k, v in one.items() if k not in ("seconds", "last_output"))
        for one in lines(path)
    }


def aligned(case: Case) -> CaseResult:
    return CaseResult(case, "aligned", 1.0, tensor="logits logits", strain=0.5)


# --------------------------------------------------------------------------------------------------------------- cases


def test_a_grid_is_every_combination() -> None:
    cases = grid(["a:b", "c:d"], {"set": ("dim=32,64", "depth=1"), "seed": ("0..2,7",), "weights": ("init,random",)})
    assert len(cases) == 2 * 2 * 4 * 2
    assert len({case.id for case in cases}) == len(cases)
    assert cases[0] == Case("a:b", {"set": {"dim": "32", "depth": "1"}, "seed": 0, "weights": "init"})
    assert {case.options["seed"] for case in cases} == {0, 1, 2, 7}


def test_options_that_may_be_repeated_are_an_axis_each_time() -> None:
    both = grid(["a:b"], {"inject": ("x", "y,z"), "step": ("3", "5")})
    assert [case.options for case in both] == [
        {"inject": ["x", "y"], "step": [3, 5]},
        {"inject": ["x", "z"], "step": [3, 5]},
    ]
    assert [case.options["seed"] for case in grid(["a:b"], {"seed": ("1", "2")})] == [1, 2]


def test_a_case_is_the_same_case_however_it_is_written() -> None:
    case = Case("a:b", {"seed": 1, "set": {"dim": 32, "on": True}})
    assert case.id == Case("a:b", {"set": {"on": "true", "dim": "32"}, "seed": "1"}).id
    others = [Case("a:c", case.options), Case("a:b", {"seed": 1}), Case("a:b", {"seed": 2, "set": case.options["set"]})]
    assert len({case.id, *(other.id for other in others)}) == 4


def test_a_case_of_another_version_is_another_case(monkeypatch) -> None:
    before = Case("a:b").id
    monkeypatch.setattr("alignment.cases._version", lambda: "99")
    assert Case("a:b").id != before


def test_a_case_says_what_the_command_line_would() -> None:
    options = {"seed": 3, "set": {"dim": 8, "on": False}, "step": [1, 2], "inject": ["x:y"], "flag": True, "no": False}
    assert Case("-a:b", options).arguments() == [
        f"--config={os.devnull}",
        "--seed=3", "--set=dim=8", "--set=on=false", "--step=1", "--step=2", "--inject=x:y", "--flag", "--", "-a:b",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_cases_from_a_file(suffix) -> None:
    wanted = [
        Case("fast-transformer", {"seed": 2, "set": {"dim": 32, "absolute_pos_emb": False}, "step": [3]}),
        Case("moody:twin", {"weights": "random", "inject": ["gelu-form"]}),
    ]
    Path("cases.toml").write_text(
        '[[case]]\ntwin = "fast-transformer"\nseed = 2\nset = {dim = 32, absolute_pos_emb = false}\nstep = 3\n'
        '[[case]]\ntwin = "moody:twin"\nweights = "random"\ninject = ["gelu-form"]\n'
    )
    Path("cases.json").write_text(json.dumps({"case": [{"twin": case.twin, **case.options} for case in wanted]}))
    assert [case.id for case in read_cases(Path(f"cases.{suffix}"))] == [case.id for case in wanted]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[case]]\ntwin = "a:b"\nsede = 2\n', "case 1: unknown key sede; known: batch-size"),
        ('[[case]]\ntwin = "a:b"\n[[case]]\nseed = 1\n', "case 2: names no twin"),
        ('[[case]]\ntwin = "a:b"\nseed = -1\n', "case 1: seed: -1 is not in the range"),
        ('[[case]]\ntwin = "a:b"\nseed = [1, 2]\n', r"seed = \[1, 2\] is not a value"),
        ('[[case]]\ntwin = "a:b"\nset = "dim=3"\n', "set = 'dim=3' is not a value"),
        ('[[case]]\ntwin = "a:b"\njson = "x"\n', "unknown key json"),
        ('[[case]]\ntwin = "a:b"\n[more]\nx = 1\n', "nothing else"),
        ("case = []\n", 'a list named "case"'),
        ("[[case]\n", "can't read the cases"),
    ],
)
def test_a_senseless_file_of_cases_is_refused(text, said) -> None:
    Path("cases.toml").write_text(text)
    with pytest.raises(AlignmentError, match=f"cases.toml.*{said}"):
        read_cases(Path("cases.toml"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "unknown twin 'nonsense'"),
        (["fast-transformer", "--set", "nonsense=1,2"], "no setting 'nonsense'"),
        (["fast-transformer", "--set", "dim=8,x"], "dim=x"),
        (["fast-transformer", "--set", "dim"], "NAME=VALUE"),
        (["--seed", "0..x"], "0..x"),
        (["--seed", "3..1"], "empty range"),
        (["--step", "6"], "6"),
        (["--all", "fast-transformer"], "--all"),
        (["--cases", "cases.toml", "--seed", "1"], "--cases"),
        (["--cases", "missing.toml"], "missing.toml"),
        (["--on", "ray", "--jobs", "2"], "--jobs"),
        (["--ray-address", "x"], "--on ray"),
        (["-o", "no/such/folder/sweep.jsonl"], "no/such/folder"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(capsys, monkeypatch, arguments, said) -> None:
    monkeypatch.setattr("alignment.sweep.run_case", lambda *_: pytest.fail("a case ran"))
    assert run(["sweep", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not Path("sweep.jsonl").exists()


def test_every_option_of_a_check_is_swept_or_is_none_of_a_case() -> None:
    """An option that says what is checked belongs to a case; one that says where the result goes belongs to NOT_OF_A_CASE."""
    assert set(case_options()) == {
        "batch-size", "candidate-device", "data", "device", "dropout", "inject", "length", "mapping", "precision",
        "reference-device", "seed", "set", "step", "strict", "threads", "weights",
    }  # fmt: skip
    assert NOT_OF_A_CASE.isdisjoint(case_options())


# -------------------------------------------------------------------------------------------------------- results file


def test_what_is_finished_is_not_run_again() -> None:
    cases = [Case("a:b", {"seed": seed}) for seed in range(4)]
    ran: list[Case] = []

    def engine(todo):
        ran.extend(todo)
        yield from map(aligned, todo)

    file = Path("results.jsonl")
    first = list(sweep(cases[:2], file, engine))
    again = list(sweep([*cases, *cases], file, engine))
    assert ran == cases
    assert [result.earlier for result in again] == [True, True, False, False]
    assert [(result.case, result.verdict, result.strain) for result in again[:2]] == [
        (result.case, result.verdict, result.strain) for result in first
    ]
    assert len(lines("results.jsonl")) == 4


def test_what_is_inconclusive_is_run_again_when_asked() -> None:
    case = Case("a:b")
    file = Path("results.jsonl")
    lost = CaseResult(case, "inconclusive", 1.0, reason="no answer after 1 s", last_output="a\nb")
    assert list(sweep([case], file, lambda _: iter([lost]))) == [lost]
    (kept,) = sweep([case], file, lambda todo: iter([aligned(one) for one in todo]))
    assert (kept.verdict, kept.reason, kept.last_output, kept.earlier) == ("inconclusive", lost.reason, "a\nb", True)
    (retried,) = sweep([case], file, lambda todo: iter([aligned(one) for one in todo]), retry=True)
    assert (retried.verdict, retried.earlier) == ("aligned", False)
    (last,) = sweep([case], file, lambda todo: iter([]))
    assert (last.verdict, last.earlier) == ("aligned", True)


@pytest.mark.parametrize("keep", [1, 3, 40, -1])
def test_a_truncated_last_line_does_not_count_and_harms_nothing(keep) -> None:
    cases = [Case("a:b", {"seed": seed}) for seed in range(3)]
    file = Path("results.jsonl")
    list(sweep(cases, file, lambda todo: map(aligned, todo)))
    whole = file.read_bytes().splitlines(keepends=True)
    for finished in (0, 2):
        file.write_bytes(b"".join(whole[:finished]) + whole[finished][:keep])
        results = list(sweep(cases, file, lambda todo: map(aligned, todo)))
        assert [result.earlier for result in results] == [index < finished for index in range(3)]
        assert file.read_bytes().splitlines(keepends=True) == whole


def test_nothing_is_left_of_a_long_line_without_an_end() -> None:
    file = Path("results.jsonl")
    list(sweep([Case("a:b")], file, lambda todo: map(aligned, todo)))
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"id":' + b"x" * 5000)
    assert [result.earlier for result in sweep([Case("a:b")], file)] == [True]
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    ["not json\n", '{"id": "x"}\n', '{"id": "x", "twin": "a", "options": {}, "more": 1}\n', "[1]\n", "precious"],
)
def test_a_file_of_something_else_is_refused_and_left_alone(content) -> None:
    Path("other.txt").write_text(content)
    with pytest.raises(AlignmentError, match=r"other\.txt.*name another file"):
        list(sweep([Case("a:b")], Path("other.txt"), lambda todo: map(aligned, todo)))
    assert Path("other.txt").read_text() == content


def test_two_sweeps_do_not_share_a_file() -> None:
    running = sweep([Case("a:b")], Path("results.jsonl"), lambda todo: map(aligned, todo))
    next(running)
    with pytest.raises(AlignmentError, match="another sweep"):
        next(sweep([Case("a:b")], Path("results.jsonl")))
    running.close()
    assert len(list(sweep([Case("a:b")], Path("results.jsonl")))) == 1


def test_a_result_is_on_the_disk_before_it_is_told(monkeypatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(len(lines("results.jsonl"))))
    for number, _ in enumerate(
        sweep([Case("a:b"), Case("c:d")], Path("results.jsonl"), lambda todo: map(aligned, todo)), 1
    ):
        assert synced == list(range(1, number + 1))


def test_the_verdict_of_nothing_is_no_verdict() -> None:
    lost = CaseResult(Case("a:b"), "inconclusive", 1.0)
    wrong = CaseResult(Case("a:b"), "diverged", 1.0)
    assert verdict_of([]) == "inconclusive"
    assert verdict_of([aligned(Case("a:b"))]) == "aligned"
    assert verdict_of([aligned(Case("a:b")), lost]) == "inconclusive"
    assert verdict_of([lost, wrong]) == "diverged"


# ------------------------------------------------------------------------------------------------------- command line


@pytest.mark.slow
def test_crashes_and_hangs_cost_only_themselves(capsys) -> None:
    arguments = ["moody:twin", "--step", "3", "--set", "mood=abort,hang,double,raise,good", "--case-timeout", "25"]
    assert run(["sweep", *arguments, "-o", "moods.jsonl"]) == 1
    results = {one["options"]["set"]["mood"]: one for one in lines("moods.jsonl")}
    assert {mood: one["verdict"] for mood, one in results.items()} == {
        "abort": "inconclusive", "hang": "inconclusive", "double": "diverged", "raise": "inconclusive", "good": "aligned",
    }  # fmt: skip
    assert results["abort"]["reason"] == "killed by signal SIGABRT"
    assert "about to abort" in results["abort"]["last_output"]
    assert "no answer after 25 s" in results["hang"]["reason"]
    assert results["raise"]["reason"].startswith("could not run: the candidate (moody:Candidate) fails on batch")
    assert (results["double"]["stage"], results["double"]["tensor"]) == ("forward", "input criterion")
    assert results["double"]["strain"] > 1e6
    assert results["good"]["strain"] < 1
    out = " ".join(capsys.readouterr().out.split())
    assert "✓ aligned 1 ✗ diverged 1 ? inconclusive 3 5 cases; results in moods.jsonl" in out
    assert "5/5" in out
    assert out.count("killed by signal SIGABRT") == 2
    # All is known now: the same command says the same, and runs nothing.
    assert run(["sweep", *arguments, "-o", "moods.jsonl"]) == 1
    assert "5 cases, 5 of them from before" in capsys.readouterr().out
    assert len(lines("moods.jsonl")) == 5


def test_aligned_exits_0_and_inconclusive_2(capsys, monkeypatch) -> None:
    monkeypatch.setattr("alignment.commands.sweep.local", lambda *_: lambda todo: map(aligned, todo))
    assert run(["sweep", "--all", "--seed", "0..1"]) == 0
    assert len(lines()) == 8
    lost = "alignment.commands.sweep.local"
    monkeypatch.setattr(
        lost, lambda *_: lambda todo: (CaseResult(one, "inconclusive", 1.0, reason="lost") for one in todo)
    )
    assert run(["sweep", "--all", "--seed", "0..2"]) == 2
    out = capsys.readouterr().out
    assert "12 cases, 8 of them from before" in out


FOUR = ["--step", "1", "--seed", "0..3"]


def started(output: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "alignment", "sweep", "moody:twin", "--jobs", "1", "-o", output, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A test run in the background may be told to ignore Ctrl-C, which children would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def when_finished(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """Wait until that many cases have been told and the next one runs; the processes that then run."""
    assert process.stdout is not None
    for _ in range(count):
        assert process.stdout.readline()
    children: list[psutil.Process] = []
    while not children:
        time.sleep(0.02)
        assert process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True)
    return children


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


@pytest.mark.slow
def test_killed_midway_and_run_again_is_as_if_never_killed() -> None:
    assert started("whole.jsonl", *FOUR).wait(300) == 0
    process = started("killed.jsonl", *FOUR)
    children = when_finished(process, 1)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    finished = len(lines("killed.jsonl"))
    assert 1 <= finished < 4
    if sys.platform == "linux":
        assert all_gone(children)
    with Path("killed.jsonl").open("a") as file:
        file.write('{"id":"half a li')
    again = started("killed.jsonl", *FOUR)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0
    assert f"{finished} of them from before" in out
    assert len(lines("killed.jsonl")) == 4
    assert essence("killed.jsonl") == essence("whole.jsonl")


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on() -> None:
    process = started("sweep.jsonl", "--step", "3", "--set", "mood=good,hang,double")
    children = when_finished(process, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "interrupted: 1 of 3 cases are finished and kept in sweep.jsonl" in errors
    assert "Traceback" not in errors
    assert all_gone(children)
    assert len(lines()) == 1


def test_jobs_run_side_by_side_each_with_one_thread(monkeypatch) -> None:
    seen: list[Case] = []
    now = most = 0

    def run_case(case, *_):
        nonlocal now, most
        seen.append(case)
        now += 1
        most = max(most, now)
        time.sleep(0.2)
        now -= 1
        raise AlignmentError("no more processes")

    monkeypatch.setattr("alignment.sweep.run_case", run_case)
    cases = [Case("a:b", {"seed": seed}) for seed in range(6)]
    results = list(sweep(cases, engine=local(jobs=3)))
    assert most == 3
    assert {case.options["threads"] for case in seen} == {1}
    assert {result.case.id for result in results} == {case.id for case in cases}
    assert {(result.verdict, result.reason) for result in results} == {
        ("inconclusive", "could not be started: no more processes")
    }


# ----------------------------------------------------------------------------------------------------------------- ray


@pytest.fixture
def cluster(monkeypatch):
    """A local Ray cluster of two cores, whose workers import this checkout."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000, logging_level="error"
    )
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_a_ray_cluster_gives_what_this_machine_gives(cluster) -> None:
    cases = [Case("moody:twin", {"step": [3], "set": {"mood": mood}}) for mood in ("good", "abort", "double", "raise")]
    there = list(sweep(cases, Path("ray.jsonl"), on_ray(timeout=120)))
    here = list(sweep(cases, Path("local.jsonl"), local(timeout=120)))
    assert len(there) == len(here) == 4
    assert essence("ray.jsonl") == essence("local.jsonl")
    assert {one.verdict for one in there} == {"aligned", "inconclusive", "diverged"}
    assert cluster.is_initialized()  # it was not ours to shut down


@pytest.mark.slow
def test_a_sweep_on_ray_that_is_left_ends_what_runs_there(cluster) -> None:
    cases = [Case("moody:twin", {"step": [3], "set": {"mood": mood}}) for mood in ("good", "hang")]
    with contextlib.closing(sweep(cases, engine=on_ray(timeout=300))) as running:
        assert next(running).verdict == "aligned"
        hanging = [p for p in psutil.process_iter() if "mood=hang" in " ".join(_command(p))]
        assert hanging
    if sys.platform == "linux":
        assert all_gone(hanging)


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def test_a_node_with_another_version_decides_nothing() -> None:
    result = _run_there(Case("moody:twin"), "another id", 1.0, ".")
    assert result.verdict == "inconclusive"
    assert "another version" in result.reason


def test_a_missing_ray_is_told_with_its_remedy(capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(["sweep", "moody:twin", "--on", "ray"]) == 2
    assert "pip install 'alignment[ray]'" in capsys.readouterr().err
