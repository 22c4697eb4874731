"""What GitHub reads: annotations with their escapes, and a summary whose cells are no markup."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alignment import AlignmentError, Report, StageResult, TensorResult, TwinResult
from alignment.cli import run
from alignment.views.github import MOST_ANNOTATIONS, error, notices, summary, tell_github


@pytest.fixture(autouse=True)
def _workspace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def tensor(name: str, verdict: str = "diverged", **fields) -> TensorResult:
    return TensorResult("activation", name, name, (2,), verdict, "why", **fields)  # type: ignore[arg-type]


def report(*tensors: TensorResult, **fields) -> Report:
    twin = TwinResult(
        "bag", "torch A", "paddle B", (StageResult(3, "forward", tensors),), {}, ("init",), ("one",), "fake data", 0
    )
    return Report((replace(twin, **fields),), {"torch": "2.13"})


def test_a_root_is_an_error_at_its_line_and_its_consequences_are_not() -> None:
    root = tensor("act", root=True, seen=0.5, allowed=1e-12, site="port.py:12")
    assert list(notices(report(tensor("later"), root, tensor("fine", "aligned")))) == [
        "::error file=port.py,line=12,title=bag%3A activation act diverged::why; seen 0.5, allowed 1e-12"
    ]


def test_of_what_became_less_precise_the_first_is_told_and_the_rest_counted() -> None:
    worse = [tensor(name, decided_by="baseline", site="port.py:4") for name in ("a", "b", "c")]
    (line,) = notices(report(*worse))
    assert line.startswith("::error file=port.py,line=4,title=bag%3A activation a diverged::why; ")
    assert line.endswith("; the first of 3 tensors that became less precise")


def test_what_could_not_run_is_told_at_the_line_that_its_message_names(tmp_path) -> None:
    said = "the candidate (port:Net) fails on batch 'one' at models/port.py:31: ValueError: shapes"
    assert error(said, "t") == f"::error file=models/port.py,line=31,title=t::{said}"
    trace = f'Aborted\n  File "/usr/lib/layers.py", line 3 in call\n  File "{tmp_path}/port.py", line 28 in forward'
    (line,) = notices(report(notes=(trace,)))
    assert line.startswith("::error file=port.py,line=28,title=bag%3A inconclusive::Aborted%0A")


def test_a_summary_that_cant_be_written_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "none" / "summary.md"))
    with pytest.raises(AlignmentError, match="can't write the summary there, where GITHUB_STEP_SUMMARY says"):
        tell_github(report(tensor("a", "aligned")))


def test_the_summary_says_what_it_rests_on() -> None:
    text = summary(report(tensor("a", "aligned"), faults=("gelu-form",)))
    assert "reference torch A, candidate paddle B\nfake data; batches one; weights init; seed 0\n" in text
    assert "**planted on the candidate: gelu-form**" in text


def test_every_sign_that_means_something_is_escaped() -> None:
    assert error("50%\r\nof: a, b", "a:b,c%\n") == "::error title=a%3Ab%2Cc%25%0A::50%25%0D%0Aof: a, b"


def test_files_are_named_from_the_repository_whatever_the_working_directory(tmp_path, monkeypatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    assert error("m", "t", "port.py:3") == "::error file=models/port.py,line=3,title=t::m"
    assert error("m", "t", str(tmp_path / "a,b.py") + ":3") == "::error file=a%2Cb.py,line=3,title=t::m"
    assert error("m", "t", "/elsewhere/port.py:3") == "::error title=t::m"


def test_there_are_no_more_than_github_shows_and_the_last_says_so() -> None:
    lines = list(notices(report(*(tensor(f"t{number}", root=True) for number in range(30)))))
    assert len(lines) == MOST_ANNOTATIONS
    assert lines[-1] == "::error title=alignment::and 21 more: see the summary"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (report(notes=("killed by signal SIGSEGV",)), "killed by signal SIGSEGV"),
        (report(tensor("a", waived="known")), "nothing was compared"),
        (report(tensor("a", "inconclusive")), "why"),
        (replace(report(tensor("a", "aligned")), problems=("a waiver is over",)), "a waiver is over"),
    ],
)
def test_whatever_fails_is_told(given, said) -> None:
    (line,) = notices(given)
    assert line.startswith("::error ")
    assert line.endswith(f"::{said}")


def test_an_aligned_report_is_silent() -> None:
    assert list(notices(report(tensor("a", "aligned")))) == []


def test_cells_of_the_summary_are_text() -> None:
    nasty = "a|b`c`<img src=x>*_[l](u)\n# h\x1b ![i](j)"
    text = summary(report(tensor(nasty, root=True), notes=(nasty,)))
    (row,) = (line for line in text.splitlines() if line.startswith("| root"))
    assert row.count("|") == 6
    for sign in ("`", "<", "*", "_", "[", "\x1b"):
        assert sign not in row
    assert "\n# h" not in text


def test_a_step_of_a_workflow_is_noticed(tmp_path, monkeypatch, capsys, small_arguments) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    arguments = ["check", *small_arguments("fast-transformer"), "--step", "3", "--quiet", "--inject", "gelu-form"]
    assert run(arguments) == 1
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "summary.md").exists()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (tmp_path / "summary.md").write_text("what another step wrote\n")
    assert run(arguments) == 1
    out = capsys.readouterr().out
    assert out.startswith("::error ")
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("what another step wrote\n## ❌ alignment: diverged")
    assert run([*arguments, "--no-github"]) == 1
    assert capsys.readouterr().out == ""


def test_an_isolated_check_tells_it_once(tmp_path, monkeypatch, capsys, small_arguments) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    arguments = [*small_arguments("fast-transformer"), "--step", "3", "--quiet", "--isolate", "--inject", "gelu-form"]
    assert run(["check", *arguments]) == 1
    assert (tmp_path / "summary.md").read_text().count("## ❌ alignment") == 1


def test_what_could_not_run_is_an_error_there_too(monkeypatch, capsys) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert run(["check", "no-such-twin"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("::error title=align could not run::unknown twin 'no-such-twin'")
    assert captured.err.startswith("error: unknown twin")
