"""The report as JUnit XML, which every CI shows: a suite for each twin, a case for each tensor of each stage.

Elements and attributes are those of the schema of Jenkins' xUnit plugin (junit-10.xsd), which GitLab, Azure and others read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

from alignment.report import Report, StageResult, TensorResult, TwinResult
from alignment.views.words import described, named

# What XML 1.0 has no way to hold, not even escaped (https://www.w3.org/TR/xml/#charsets).
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: Report) -> bytes:
    """UTF-8 XML: diverged is a failure, inconclusive an error, waived is skipped with its reason."""
    suites = [_suite(twin, report) for twin in report.twins]
    if report.problems:
        cases = [_case("problems", problem, ("error", "problem", problem, problem)) for problem in report.problems]
        suites.append(_filled("problems", 0.0, cases))
    root = ElementTree.Element(
        "testsuites", name="alignment", time=_seconds(sum(twin.seconds for twin in report.twins))
    )
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    root.extend(suites)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _suite(twin: TwinResult, report: Report) -> ElementTree.Element:
    cases = [case for stage in twin.stages for case in _cases(twin, stage)]
    if not twin.stages:
        cases = [_case(twin.twin, "stages", ("error", "inconclusive", "nothing was compared", "\n".join(twin.notes)))]
    suite = _filled(twin.twin, twin.seconds, cases)
    said = {
        "reference": twin.reference,
        "candidate": twin.candidate,
        "data": twin.data,
        "batches": ", ".join(twin.batches),
        "weights": ", ".join(twin.weights),
        "seed": str(twin.seed),
        "faults": ", ".join(twin.faults),
        **report.versions,
    }
    properties = ElementTree.Element("properties")
    for name, value in said.items():
        ElementTree.SubElement(properties, "property", name=_clean(name), value=_clean(value))
    suite.insert(0, properties)
    return suite


def _cases(twin: TwinResult, stage: StageResult) -> Iterable[ElementTree.Element]:
    """The tensors of a stage; and the stage itself, where its verdict is none of theirs."""
    of = f"{twin.twin}.step{stage.step} {stage.name}"
    for tensor in stage.tensors:
        yield _case(of, named(tensor), _outcome(tensor))
    if stage.verdict == "inconclusive" and not any(t.verdict != "aligned" and t.waived is None for t in stage.tensors):
        left = "all that there is to compare is waived" if stage.tensors else "nothing was compared"
        yield _case(of, "stage", ("error", "inconclusive", left, "\n".join((*stage.notes, *twin.notes))))


def _outcome(tensor: TensorResult) -> tuple[str, str, str, str] | None:
    """(element, type, message, text) of a case that is not passed."""
    if tensor.waived is not None:
        return "skipped", "waived", f"waived: {tensor.waived}", described(tensor)
    if tensor.verdict == "aligned":
        return None
    kind = "failure" if tensor.verdict == "diverged" else "error"
    label = "root divergence: " if tensor.root else ""
    return kind, tensor.verdict, label + tensor.reason, described(tensor)


def _case(of: str, name: str, outcome: tuple[str, str, str, str] | None) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=_clean(of), name=_clean(name), time="0")
    if outcome is not None:
        element, kind, message, text = outcome
        ElementTree.SubElement(case, element, type=kind, message=_clean(message)).text = _clean(text)
    return case


def _filled(name: str, seconds: float, cases: list[ElementTree.Element]) -> ElementTree.Element:
    """A suite of cases, with how many came out which way."""
    suite = ElementTree.Element("testsuite", name=_clean(name), tests=str(len(cases)))
    for attribute, element in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(element) is not None for case in cases)))
    suite.set("time", _seconds(seconds))
    suite.extend(cases)
    return suite


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _clean(text: str) -> str:
    """The text with what XML can't hold written as Python would."""
    return _NOT_XML.sub(lambda found: ascii(found[0])[1:-1], text)
