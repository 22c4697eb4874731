"""Waivers: what they cover, when they are over, what they never excuse, and how every view shows them."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from alignment import AlignmentError, Report, StageResult, TensorResult, TwinResult
from alignment.cli import run
from alignment.report import NOTHING
from alignment.views.github import notices, summary
from alignment.views.json import SCHEMA, from_dict, to_dict
from alignment.views.junit import to_junit
from alignment.waivers import Waiver, apply_waivers, read_waivers

TODAY = datetime.date(2026, 6, 15)


def tensor(name: str, verdict: str = "diverged", record: str = "gradient", **fields) -> TensorResult:
    return TensorResult(record, name, fields.pop("candidate", name), (2,), verdict, "why", **fields)  # type: ignore[arg-type]


def report(*tensors: TensorResult, stage: tuple[int, str] = (5, "backward"), name: str = "bag") -> Report:
    stages = (StageResult(*stage, tensors),)
    return Report((TwinResult(name, "torch A", "paddle B", stages, {}, ("init",), ("one",), "fake data", 0),))


def waiver(name: str = "fc.bias", expires: datetime.date = TODAY, **fields) -> Waiver:
    return Waiver(
        **({"name": name, "reason": "known", "owner": "me", "expires": expires, "stage": "backward"} | fields)
    )


FINE = tensor("other", "aligned")


def applied(given: Report, *waivers: Waiver) -> Report:
    return apply_waivers(given, waivers, TODAY)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": "fc.*"},
        {"name": "*"},
        {"name": "f?.bia[s]"},
        {"name": "out.bias"},  # the candidate's name
        {"record": "grad*", "twin": "b*"},
    ],
)
def test_what_a_waiver_covers_counts_for_nothing_and_keeps_its_verdict(fields) -> None:
    result = applied(report(tensor("fc.bias", candidate="out.bias", root=True), FINE), waiver(**fields))
    first, second = result.twins[0].stages[0].tensors
    assert (result.verdict, result.problems) == ("aligned", ())
    assert (first.verdict, first.waived, second.waived) == ("diverged", "known (me, until 2026-06-15)", None)


@pytest.mark.parametrize(
    "fields",
    [{"name": "fc"}, {"name": "FC.BIAS"}, {"twin": "bags"}, {"stage": "forward"}, {"record": "update"}],
)
def test_what_it_does_not_cover_stays_diverged(fields) -> None:
    assert applied(report(tensor("fc.bias"), FINE), waiver(**fields)).verdict == "diverged"


def test_a_name_with_brackets_is_meant_as_it_is() -> None:
    result = applied(report(tensor("output[1]"), FINE), waiver("output[1]"))
    assert result.verdict == "aligned"


def test_a_twin_may_be_meant_as_it_was_asked_for() -> None:
    given = report(tensor("fc.bias"), FINE, name="Bag (port)")
    given = replace(given, twins=(replace(given.twins[0], options={"twin": "models.bag:twin"}),))
    assert applied(given, waiver(twin="models.bag:*")).verdict == "aligned"


def test_the_last_day_counts_and_the_next_does_not() -> None:
    given = report(tensor("fc.bias"), FINE)
    assert applied(given, waiver(expires=TODAY)).verdict == "aligned"
    over = applied(given, waiver(expires=TODAY - datetime.timedelta(days=1)))
    assert (over.verdict, over.twins[0].stages[0].tensors[0].waived) == ("diverged", None)
    assert "was over on 2026-06-14" in over.problems[0]
    assert "known; me" in over.problems[0]


def test_one_that_is_over_fails_even_where_nothing_diverges() -> None:
    over = applied(report(FINE), waiver(expires=datetime.date(2020, 1, 1)))
    assert over.verdict == "inconclusive"
    assert applied(report(FINE), waiver(expires=datetime.date(2020, 1, 1), twin="bags")).verdict == "aligned"


def test_one_that_nothing_needs_fails() -> None:
    result = applied(report(tensor("fc.bias", "aligned"), FINE), waiver())
    assert result.verdict == "inconclusive"
    assert result.problems == (
        "the waiver of stage=backward name=fc.bias (known; me) waives nothing any more: take it out",
    )


@pytest.mark.parametrize("fields", [{"stage": "forward"}, {"stage": "*"}, {"twin": "another"}])
def test_one_of_what_did_not_run_is_not_judged(fields) -> None:
    """Only step 5 of one twin ran: a waiver for any stage may be needed in another."""
    assert applied(report(FINE), waiver(**fields)).verdict == "aligned"


def test_something_must_be_left_to_compare() -> None:
    result = applied(report(tensor("fc.bias")), waiver())
    assert (result.verdict, result.problems) == ("inconclusive", ())


def test_what_could_not_run_is_never_waived() -> None:
    crashed = report(tensor(NOTHING, "inconclusive", record="module"), FINE)
    assert applied(crashed, waiver("*")).verdict == "inconclusive"
    low = report(tensor("(bfloat16)", "inconclusive", record="output"), FINE)
    assert applied(low, waiver("*")).verdict == "inconclusive"
    nothing = Report((replace(report().twins[0], stages=()),))
    assert applied(nothing, waiver("*")).verdict == "inconclusive"


ENTRY = '[[waiver]]\nname = "fc.bias"\nreason = "known"\nowner = "me"\nexpires = 2027-03-31\n'


def test_a_file_is_read(tmp_path) -> None:
    file = tmp_path / "waivers.toml"
    file.write_text(ENTRY + 'stage = "backward"\n' + ENTRY.replace("fc.bias", "*"))
    first, second = read_waivers(file)
    assert first == Waiver("fc.bias", "known", "me", datetime.date(2027, 3, 31), stage="backward")
    assert (second.name, second.stage, second.twin, second.record) == ("*", "*", "*", "*")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ENTRY + "x = ", "no TOML"),
        (ENTRY.replace("owner", "ower"), "waiver 1: unknown key ower; known: name, reason, owner, expires, twin"),
        (ENTRY + ENTRY.replace('reason = "known"\n', ""), "waiver 2: reason is missing"),
        (ENTRY.replace("expires = 2027-03-31\n", ""), "waiver 1: expires is missing"),
        (ENTRY.replace("2027-03-31", '"2027-03-31"'), "expires must be a day without quotes"),
        (ENTRY.replace("2027-03-31", "2027-03-31T00:00:00"), "expires must be a day without quotes"),
        (ENTRY.replace("2027-03-31", "2027-13-31"), "no TOML"),
        (ENTRY.replace('"known"', '" "'), "reason must be a text"),
        (ENTRY.replace('"me"', "3"), "owner must be a text"),
        ("waiver = 3", "waivers are tables"),
        ("waiver = [3]", "waiver 1: must be a table"),
        ("tolerance = 1\n" + ENTRY, "nothing else stands beside them"),
    ],
)
def test_a_damaged_file_is_told(tmp_path, text, said) -> None:
    file = tmp_path / "waivers.toml"
    file.write_text(text)
    with pytest.raises(AlignmentError) as error:
        read_waivers(file)
    assert str(error.value).startswith(str(file))
    assert said in str(error.value)


def test_every_view_shows_what_is_waived() -> None:
    result = applied(report(tensor("fc.bias", root=True), FINE), waiver())
    data = to_dict(result)
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(data)
    assert data["twins"][0]["stages"][0]["tensors"][0]["waived"] == "known (me, until 2026-06-15)"
    assert from_dict(data) == result
    assert b'<skipped type="waived" message="waived: known (me, until 2026-06-15)">' in to_junit(result)
    assert list(notices(result)) == []
    assert "| root | gradient fc.bias |" in summary(result)
    assert "known (me, until 2026-06-15)" in summary(result)


def test_the_command_line_lets_a_waived_divergence_pass(tmp_path, monkeypatch, capsys, small_arguments) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    arguments = [
        "check",
        *small_arguments("fast-transformer-classifier"),
        "--step",
        "5",
        "--inject",
        "stale-bias-gradient",
    ]
    (tmp_path / "w.toml").write_text(
        ENTRY.replace("fc.bias", "dense_linear.bias").replace("2027", "9999") + 'stage = "backward"\n'
    )
    assert run([*arguments, "--quiet"]) == 1
    assert run([*arguments, "--waivers", "w.toml", "--json", "r.json"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 waived" in out
    assert "waived: dense_linear.bias: known (me, until 9999-03-31)" in out
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == "aligned"
    assert run([*arguments[:-2], "--waivers", "w.toml"]) == 2
    assert capsys.readouterr().out.rstrip().endswith("INCONCLUSIVE: 1 of 1 twin aligned, 1 problem besides")
    assert run(["explain", *arguments[1:-4], *arguments[-2:], "--quiet", "--waivers", "w.toml"]) == 0
    (tmp_path / "alignment.toml").write_text('waivers = "w.toml"\n')
    assert run([*arguments, "--quiet"]) == 0
    assert run([*arguments, "--quiet", "--waivers", "none.toml"]) == 2
    assert "none.toml: can't read the waivers" in capsys.readouterr().err
