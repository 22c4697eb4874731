"""--html, --details and `align report`: what they write, read and refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import orjson
import pytest

from alignment import AlignmentError
from alignment.cli import run
from alignment.views.json import SCHEMA, from_dict, read_report, to_dict, to_json

from .synthetic import synthetic_report

FAULT = ("--inject", "stale-bias-gradient")


@pytest.fixture
def saved(tmp_path):
    file = tmp_path / "report.json"
    file.write_bytes(to_json(synthetic_report(20, 4)))
    return file


def test_what_is_written_is_read_again_and_follows_the_schema(saved) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    report = synthetic_report(20, 4)
    jsonschema.validate(orjson.loads(saved.read_bytes()), orjson.loads(SCHEMA.read_bytes()))
    assert read_report(saved) == from_dict(to_dict(report)) == report
    assert to_json(read_report(saved)) == saved.read_bytes()


def test_details_take_one_line_each(saved) -> None:
    lines = saved.read_text().splitlines()
    assert sum('"detail": {' in line for line in lines) == 20
    assert len(lines) < 1500


def test_a_report_of_an_earlier_version_has_neither_trees_nor_details(saved) -> None:
    written = orjson.loads(saved.read_bytes())
    for twin in written["twins"]:
        del twin["reference_tree"], twin["candidate_tree"]
        for stage in twin["stages"]:
            for tensor in stage["tensors"]:
                del tensor["detail"]
    saved.write_bytes(orjson.dumps(written))
    report = read_report(saved)
    assert report.verdict == "diverged"
    assert run(["report", str(saved), "--quiet", "--html", str(saved.with_suffix(".html"))]) == 1
    assert saved.with_suffix(".html").stat().st_size > 1_000_000


def test_a_saved_report_is_shown_and_drawn(saved, capsys) -> None:
    page = saved.with_suffix(".html")
    assert run(["report", str(saved), "--html", str(page)]) == 1
    assert "DIVERGED" in capsys.readouterr().out
    assert page.read_bytes().startswith(b"<!doctype html>")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no report that --json wrote"),
        ("[]", "no schema_version"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1}', "no report that --json wrote"),
        ('{"schema_version": 1, "twins": 3, "versions": {}}', "no report that --json wrote"),
        ('{"schema_version": 1, "twins": [[]], "versions": {}}', "no report that --json wrote"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, capsys, content, said) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    page = tmp_path / "page.html"
    assert run(["report", str(file), "--html", str(page)]) == 2
    assert said in capsys.readouterr().err
    assert not page.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "<b>"}, "verdict is '<b>'"),
        ({"shape": "x"}, "shape is 'x'"),
        ({"shape": [1.5]}, "shape is '1.5'"),
        ({"reason": None}, "reason is 'None'"),
        ({"root": 1}, "root is '1'"),
        ({"seen": "1"}, "seen is '1'"),
        ({"comparisons": True}, "comparisons is 'True'"),
        ({"detail": 7}, "no report"),
        ({"novelty": 7}, "novelty"),
    ],
)
def test_a_figure_of_another_kind_is_named(saved, change, said) -> None:
    written = orjson.loads(saved.read_bytes())
    written["twins"][0]["stages"][0]["tensors"][3] |= change
    saved.write_bytes(orjson.dumps(written))
    with pytest.raises(AlignmentError, match="no report that --json wrote") as caught:
        read_report(saved)
    assert said in str(caught.value)


def test_an_infinite_strain_and_losses_that_are_not_finite_come_back(tmp_path) -> None:
    report = synthetic_report(4, 2)
    (twin,) = report.twins
    stage = twin.stages[0]
    endless = replace(stage, tensors=tuple(replace(tensor, strain=math.inf) for tensor in stage.tensors))
    effect = replace(twin.effect, candidate=(math.nan,) * 5)
    file = tmp_path / "report.json"
    file.write_bytes(to_json(replace(report, twins=(replace(twin, stages=(endless,), effect=effect),))))
    (again,) = read_report(file).twins
    assert [tensor.strain for tensor in again.tensors] == [math.inf, math.inf]
    assert again.effect is not None
    assert all(math.isnan(loss) for loss in again.effect.candidate)
    assert run(["report", str(file), "--html", str(tmp_path / "page.html")]) == 0


def test_a_missing_file_and_a_place_that_can_not_be_written_to(saved, tmp_path, capsys) -> None:
    assert run(["report", str(tmp_path / "none.json")]) == 2
    assert "can't read the report" in capsys.readouterr().err
    assert run(["report", str(saved), "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "can't write there" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("command", ["check", "explain"])
def test_a_twin_is_drawn(command, small_arguments, tmp_path) -> None:
    page, report = tmp_path / "page.html", tmp_path / "report.json"
    given = [command, *small_arguments("fast-transformer-classifier"), *FAULT, "--quiet"]
    assert run([*given, "--html", str(page), "--json", str(report)]) == 1
    (twin,) = read_report(report).twins
    assert all(root.detail is not None for root in twin.roots)
    assert twin.reference_tree
    text = page.read_text()
    assert "dense_linear.bias" in text
    assert ("<strong>Proof.</strong>" in text) == (command == "explain")
    # Drawn again from the saved report it is the same page.
    again = tmp_path / "again.html"
    assert run(["report", str(report), "--quiet", "--html", str(again)]) == 1
    assert again.read_bytes() == page.read_bytes()


def test_json_has_details_only_where_asked_for(small_arguments, tmp_path) -> None:
    plain, detailed = tmp_path / "plain.json", tmp_path / "detailed.json"
    given = ["check", *small_arguments("fast-transformer-classifier"), "--step", "3", "--quiet"]
    assert run([*given, "--json", str(plain)]) == run([*given, "--json", str(detailed), "--details"]) == 0
    one, two = read_report(plain).twins[0], read_report(detailed).twins[0]
    assert not any(tensor.detail for tensor in one.tensors)
    assert all(tensor.detail for tensor in two.tensors if tensor.record == "activation")


def test_no_work_is_done_where_the_page_can_not_be_written(small_arguments, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("alignment.commands.check.check", lambda *_: pytest.fail("work was done"))
    nowhere = str(tmp_path / "no" / "page.html")
    for command in (["check", *small_arguments("fast-transformer")], ["explain", *small_arguments("fast-transformer")]):
        assert run([*command, "--html", nowhere]) == 2
        assert "can't write there" in capsys.readouterr().err
    assert run(["compare", "a.npy", "b.npy", "--html", nowhere]) == 2
    assert "can't write there" in capsys.readouterr().err


def test_an_isolated_check_has_details(small_arguments, tmp_path) -> None:
    page = tmp_path / "page.html"
    given = ["check", *small_arguments("fast-transformer-classifier"), "--step", "5", *FAULT, "--isolate", "--quiet"]
    assert run([*given, "--html", str(page)]) == 1
    assert '"heat":[' in page.read_text()


def test_two_captures_are_drawn(small_arguments, tmp_path) -> None:
    files = [str(tmp_path / f"{side}.safetensors") for side in ("reference", "candidate")]
    assert (
        run(["capture", *small_arguments("fast-transformer-classifier"), "--quiet", "--side", "torch", "-o", files[0]])
        == 0
    )
    assert run(["capture", "--side", "paddle", "--from", files[0], *FAULT, "--quiet", "-o", files[1]]) == 0
    for command in ("compare", "explain"):
        page = tmp_path / f"{command}.html"
        assert run([command, *files, "--quiet", "--html", str(page)]) == 1
        assert '"heat":[' in page.read_text()
