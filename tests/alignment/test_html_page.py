"""The page without a browser: it is whole, small, self-contained, and no name in it can become markup or script."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest

from alignment.report import Report, TwinResult
from alignment.views import html
from alignment.views.html import to_html

from .synthetic import HOSTILE, hostile_names, synthetic_report

VOID = {"meta", "link", "br", "input", "img", "hr"}
# Where an address would make a browser ask for something.
ADDRESSES = {"src", "srcset", "href", "action", "data", "poster", "background", "formaction", "ping", "cite"}


class Page(HTMLParser):
    """What a browser's parser makes of a page: elements with their attributes, texts of scripts, and whether all are closed."""

    def __init__(self, source: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(source.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not (self.open and self.open[-1] == "style"):
            self.text.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.elements if attribute in attributes]


@pytest.fixture(scope="module")
def report() -> Report:
    return synthetic_report(60, 8)


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(to_html(report))


def data_of(page: Page) -> dict:
    return orjson.loads(page.scripts[0])


def test_it_parses_and_every_element_is_closed(page):
    assert page.open == []
    assert [tag for tag, _ in page.elements if tag == "script"] == ["script"] * 3


def test_ids_are_unique_and_what_refers_to_one_finds_it(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    referred = {value.removeprefix("#") for value in page.values("href")} | set(page.values("aria-labelledby"))
    assert referred <= set(ids)


def test_it_asks_the_network_for_nothing(report, page):
    addresses = [a for _, attributes in page.elements for name, a in attributes.items() if name in ADDRESSES]
    assert [address for address in addresses if not (address or "").startswith("#")] == []
    style = (html.FOLDER / "report.css").read_text()
    assert "@import" not in style
    assert "url(" not in style
    (policy,) = (a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    # The scripts in the page are those that the policy names, and no other would run.
    sums = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in page.scripts[1:]}
    assert set(policy.partition("script-src ")[2].split()) == sums


def test_the_charting_library_is_the_published_one():
    stated = (html.FOLDER / "README.md").read_text()
    (digest,) = re.findall(r"`([0-9a-f]{64})`", stated)
    library = html.FOLDER / "echarts.min.js"
    assert hashlib.sha256(library.read_bytes()).hexdigest() == digest
    assert "6.1.0" in stated
    assert 'version="6.1.0"' in library.read_text(encoding="utf-8").replace("'", '"')
    for name in ("echarts.LICENSE", "echarts.LICENSE-d3", "echarts.NOTICE"):
        assert (html.FOLDER / name).stat().st_size > 100
        assert name in stated


@pytest.mark.slow
def test_a_report_of_500_tensors_that_all_diverge_is_below_3_mb():
    assert len(to_html(synthetic_report(500, 500))) <= 3_000_000


def test_the_page_says_what_the_report_says(report, page):
    text = re.sub(r"\s+", " ", " ".join(page.text))
    twin = report.twins[0]
    finding = twin.findings[0]
    for said in ("diverged", "1 root divergence, 1 of 1 finding proved", "8 of 60 tensors are not aligned", twin.data):
        assert said in text
    for said in (finding.cause, finding.summary, finding.proof, finding.remedy, *finding.sites, *finding.evidence):
        assert said in text
    assert twin.roots[0].reason in text
    sited = replace(twin.roots[0], site="models/port.py:12")
    stages = [replace(s, tensors=tuple(sited if t is twin.roots[0] else t for t in s.tensors)) for s in twin.stages]
    at = Page(to_html(replace(report, twins=(replace(twin, stages=tuple(stages)),))))
    assert "at models/port.py:12" in re.sub(r"\s+", " ", " ".join(at.text))
    assert "alignment 0" in text
    assert twin.effect.summary in text


def test_the_data_are_the_reports_figures(report, page):
    (twin,) = data_of(page)["twins"]
    assert len(twin["tensors"]) == 60
    for tensor, shown in zip(report.twins[0].tensors, twin["tensors"], strict=True):
        assert (shown["reference_name"], shown["verdict"], shown["reason"]) == (
            tensor.name, tensor.verdict, tensor.reason,
        )  # fmt: skip
        assert shown["detail"]["counts"] == list(tensor.detail.counts)
    assert [tensor["root"] for tensor in twin["tensors"]].count(True) == 1
    root = next(tensor for tensor in twin["tensors"] if tensor["root"])
    assert len(root["detail"]["heat"]) == 32 * 32


def test_undefined_figures_are_written_as_json_can(report):
    twin = report.twins[0]
    stage = twin.stages[0]
    odd = replace(stage.tensors[0], strain=math.inf, max_abs=math.nan, seen=math.inf)
    changed = replace(report, twins=(replace(twin, stages=(replace(stage, tensors=(odd,)),)),))
    (shown,) = data_of(Page(to_html(changed)))["twins"][0]["tensors"]
    assert (shown["strain"], shown.get("max_abs"), shown.get("seen")) == (None, None, None)


def test_hostile_names_stay_text():
    hostile, plain = synthetic_report(12, 4, hostile_names), synthetic_report(12, 4)
    page, twin = Page(to_html(hostile)), Page(to_html(plain))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in twin.elements]
    assert [set(attributes) for _, attributes in page.elements] == [set(attributes) for _, attributes in twin.elements]
    assert len(page.scripts) == 3
    assert HOSTILE in data_of(page)["twins"][0]["tensors"][0]["reference_name"]
    assert any(HOSTILE in text for text in page.text)


def test_several_twins_and_one_that_never_ran(report):
    crashed = TwinResult("crashed", "", "", (), {}, (), (), "", 0, notes=("nothing was decided: killed",))
    page = Page(to_html(replace(report, twins=(*report.twins, crashed))))
    text = " ".join(page.text)
    assert "2 twins" in re.sub(r"\s+", " ", text)
    assert "nothing was decided: killed" in text
    assert len(page.values("id")) == len(set(page.values("id")))
    assert "#twin-1" in page.values("href")


def test_what_is_waived_counts_for_nothing_and_says_why(report):
    def waive(twin: TwinResult) -> TwinResult:
        stages = tuple(
            replace(stage, tensors=tuple(replace(t, waived="known <b>") for t in stage.tensors))
            for stage in twin.stages
        )
        return replace(twin, stages=stages)

    waived = replace(report, twins=tuple(map(waive, report.twins)), problems=("a waiver is over",))
    page = Page(to_html(waived))
    shown = " ".join("".join(page.text).split())
    assert "a waiver is over" in shown
    assert "Where it starts" not in shown
    for stage in report.twins[0].stages:
        assert f"{len(stage.tensors)} waived" in shown
    tensors = data_of(page)["twins"][0]["tensors"]
    assert {(t["verdict"], t["waived"]) for t in tensors} == {("waived", "known <b>")}
    assert {node["verdict"] for tree in data_of(page)["twins"][0]["trees"].values() for node in tree} == {None}


def test_a_problem_besides_an_aligned_twin_is_the_first_that_is_read():
    aligned = synthetic_report(4, 0)
    assert aligned.verdict == "aligned"
    page = Page(to_html(replace(aligned, problems=("a waiver is over",))))
    shown = " ".join("".join(page.text).split())
    assert shown.index("inconclusive") < shown.index("1 twin: 1 aligned") < shown.index("a waiver is over")
    headings = [tag for tag, _ in page.elements if tag in ("h1", "h2")]
    assert headings == ["h1", "h2"]


def test_what_is_waived_is_not_nearest_to_its_limit(report):
    (stage, *_) = (stage for stage in report.twins[0].stages if stage.verdict == "diverged")
    aligned = [t for t in stage.tensors if t.verdict == "aligned"]
    near, far = replace(aligned[0], seen=0.5, allowed=1.0, strain=0.5), replace(aligned[0], waived="known", strain=7.0)
    assert html._closest(replace(stage, tensors=(near, far))) == "at most 50% of what is allowed"


def test_every_verdict_has_a_mark_and_a_colour(page):
    style = (html.FOLDER / "report.css").read_text()
    for verdict in data_of(page)["severity"]:
        assert f".v-{verdict} {{" in style
        assert data_of(page)["verdicts"][verdict]


def test_scripts_and_templates_are_shipped():
    for name in ("report.html", "report.css", "report.js", "echarts.min.js"):
        assert (Path(html.__file__).parent / "html" / name).is_file()
