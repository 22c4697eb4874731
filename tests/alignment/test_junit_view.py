"""JUnit XML: the shape that CIs read, the right outcome for every tensor, and text that no XML can hold."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from alignment import Report, StageResult, TensorResult, TwinResult
from alignment.cli import run
from alignment.views.junit import to_junit

# Of Jenkins' xUnit plugin, junit-10.xsd: element -> (attributes, those it must have, elements inside).
SCHEMA = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, set(), {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "group", "timestamp", "hostname", "id", "package"},
        {"name", "tests", "failures", "errors"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, {"name", "value"}, set()),
    "testcase": (
        {"name", "classname", "time", "group"},
        {"name"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": ({"type", "message"}, set(), set()),
    "error": ({"type", "message"}, set(), set()),
    "skipped": ({"type", "message"}, set(), set()),
}


def validated(xml: bytes) -> ElementTree.Element:
    """The document, after the rules of the schema and the counts that readers rely on."""
    root = ElementTree.fromstring(xml)
    assert root.tag == "testsuites"
    for element in root.iter():
        allowed, needed, inside = SCHEMA[element.tag]
        assert needed <= set(element.attrib) <= allowed, element.tag
        assert {child.tag for child in element} <= inside, element.tag
    for suite in root:
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)
        for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert suite.get(count) == str(sum(case.find(tag) is not None for case in cases))
    for count in ("tests", "failures", "errors"):
        assert root.get(count) == str(sum(int(suite.get(count, "")) for suite in root))
    return root


def tensor(name: str, verdict: str, reason: str = "why", **fields) -> TensorResult:
    return TensorResult("activation", name, name, (2, 3), verdict, reason, **fields)  # type: ignore[arg-type]


def report(*tensors: TensorResult, **fields) -> Report:
    stages = (StageResult(3, "forward", tensors, ("a note",)),)
    twin = TwinResult("bag", "torch A", "paddle B", stages, {}, ("init",), ("one",), "fake data", 7, seconds=1.5)
    return Report((replace(twin, **fields),), {"torch": "2.13"})


def test_every_tensor_is_a_case_with_its_outcome() -> None:
    root = validated(
        to_junit(
            report(
                tensor("a", "aligned"),
                tensor(
                    "b", "diverged", "far off", root=True, seen=0.5, allowed=1e-12, worst_index=(1, 2), site="port.py:7"
                ),
                tensor("c", "inconclusive", "NaN on both sides"),
                tensor("d", "diverged", waived="known (me, until 2999-01-01)"),
            )
        )
    )
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert {case.get("classname") for case in cases.values()} == {"bag.step3 forward"}
    assert len(cases["activation a"]) == 0
    failure = cases["activation b"].find("failure")
    assert failure is not None
    assert (failure.get("type"), failure.get("message")) == ("diverged", "root divergence: far off")
    assert failure.text == "activation b [2, 3]\nseen 0.5, allowed 1e-12, worst at [1, 2]\nfar off\nat port.py:7"
    assert cases["activation c"].find("error").get("message") == "NaN on both sides"
    assert cases["activation d"].find("skipped").get("message") == "waived: known (me, until 2999-01-01)"
    assert (root[0].get("time"), root.get("errors"), root.get("failures")) == ("1.500", "1", "1")
    assert {p.get("name"): p.get("value") for p in root.iter("property")}["seed"] == "7"


@pytest.mark.parametrize(
    "given",
    [
        report(),
        report(stages=(), notes=("killed by signal SIGSEGV",)),
        report(tensor("a", "diverged", waived="known")),
        replace(report(tensor("a", "aligned")), problems=("a waiver is over",)),
    ],
)
def test_what_is_not_aligned_is_never_green(given) -> None:
    assert given.verdict == "inconclusive"
    root = validated(to_junit(given))
    assert int(root.get("errors", "0")) > 0


def test_a_crash_is_told_with_what_it_said() -> None:
    root = validated(to_junit(report(stages=(StageResult(3, "forward", ()),), notes=("killed by signal SIGSEGV",))))
    (error,) = root.iter("error")
    assert (error.get("message"), error.text) == ("nothing was compared", "killed by signal SIGSEGV")


def test_any_text_is_written_so_that_it_can_be_read() -> None:
    nasty = "a\x00\x1b[31m\x07 \"<&>'\ud800\ufffe]]>\U0001f600\n\té"
    root = validated(to_junit(report(tensor(nasty, "diverged", nasty), notes=(nasty,), data=nasty)))
    (failure,) = root.iter("failure")
    clean = "a\\x00\\x1b[31m\\x07 \"<&>'\\ud800\\ufffe]]>\U0001f600\n\té"
    assert failure.get("message") == clean
    assert clean in failure.text
    assert next(root.iter("testcase")).get("name") == f"activation {clean}"


def test_the_command_writes_it(tmp_path, monkeypatch, capsys, small_arguments) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["check", *small_arguments("fast-transformer"), "--step", "3", "--quiet", "--junit", "j.xml"]
    assert run([*arguments, "--inject", "gelu-form"]) == 1
    root = validated((tmp_path / "j.xml").read_bytes())
    assert [f.get("message", "").partition(":")[0] for f in root.iter("failure")].count("root divergence") >= 1
    assert run(arguments) == 0
    assert validated((tmp_path / "j.xml").read_bytes()).get("failures") == "0"
    assert run([*arguments[:-1], "no/such/folder/j.xml"]) == 2
    assert "no/such/folder/j.xml" in capsys.readouterr().err
