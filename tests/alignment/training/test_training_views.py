"""A training run at the terminal, as JSON and as a page: every figure is that of the report, and no text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from alignment.metrics import Confusion
from alignment.report import Report, StageResult, TensorResult, TwinResult
from alignment.training.parity import Parity
from alignment.training.run_folder import Epoch
from alignment.training.runs import SideRun, TrainOptions, TrainReport
from alignment.training.scores import Scores
from alignment.views.training import print_training, to_dict
from alignment.views.training_html import to_training_html

from ..chromium import ARTEFACTS, chromium, resize, screenshot

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">'


def scores(seed: int, rows: int = 100) -> Scores:
    generator = np.random.default_rng(seed)
    actual = generator.integers(0, 5, rows)
    predicted = np.where(generator.random(rows) < 0.5, actual, generator.integers(0, 5, rows))
    return Scores(1.0 + seed / 100, Confusion.of(predicted, actual, 5))


def run_of(side: str, seed: int) -> SideRun:
    history = tuple(
        Epoch(n, 8 * n, 1e-3, 2.0 / n, scores(n + seed), scores(n + seed + 50), best=n == 2) for n in (1, 2, 3)
    )
    return SideRun(
        seed, side, f"package:{side}", history, "all 3 epochs", 2, scores(1 + seed), scores(2), scores(3 + seed), 5.0
    )


def parity(seed: int, verdict: str = "aligned") -> Parity:
    tensor = TensorResult("logits", "logits", "logits", (2, 5), verdict, "same", 1)  # type: ignore[arg-type]
    twin = TwinResult(
        "twin", "torch a", "paddle b", (StageResult(3, "forward", (tensor,)),), {}, ("w",), ("b",), "rows", seed
    )
    return Parity(seed, Report((twin,)), 100, 64, 0, 0, 1e-6, scores(7), scores(7))


def report_of(twin: str = "a-twin", sides: str = "both", seeds: int = 2) -> TrainReport:
    options = TrainOptions(side=sides, seeds=seeds)  # type: ignore[arg-type]
    runs = tuple(run_of(side, seed) for seed in range(seeds) for side in options.sides)
    parities = tuple(map(parity, range(seeds))) if sides == "both" else ()
    rows = {"train": 100, "validation": 100, "test": 100}
    return TrainReport(
        twin, options, {"dim": 8}, "100 reviews", rows, 16, runs, parities, {"alignment": "0"}, ("a note",), 1.0
    )  # fmt: skip


class Page(HTMLParser):
    """Texts of cells and scripts, and whether all elements are closed."""

    def __init__(self, source: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.feed(source.decode())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts.append(data)
        elif self.rows and self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data


def test_the_page_is_whole_and_asks_for_nothing() -> None:
    source = to_training_html(report_of())
    page = Page(source)
    assert page.addresses == []
    policy = re.search(r"script-src ([^\"]*)", source.decode()).group(1)  # type: ignore[union-attr]
    data, *run = page.scripts
    for script in run:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"sha256-{digest}" in policy
    assert [one["side"] for one in json.loads(data)["runs"]] == ["reference", "candidate"] * 2


def test_its_figures_are_those_of_the_report() -> None:
    report = report_of(seeds=1)
    page = Page(to_training_html(report))
    cells = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    for one in report.runs:
        confusion = one.test.confusion
        percent = f"{100 * confusion.accuracy:.2f}", f"{100 * confusion.macro_f1:.2f}"
        assert [one.side, "test 100", f"{one.test.loss:.4f}", *percent] in [row[:5] for row in cells]
        for place in range(5):
            counts = [str(count) for count in confusion.counts[place]]
            shares = [f"{100 * values[place]:.2f}" for values in (confusion.precision, confusion.recall, confusion.f1)]
            assert [f"{place + 1}★", *counts, *shares] in cells


@pytest.mark.parametrize("sides", ["reference", "candidate", "both"])
def test_the_terminal_says_the_same(sides) -> None:
    report = report_of(sides=sides)
    printed = io.StringIO()
    print_training(report, Console(file=printed, width=100, highlight=False))
    said = printed.getvalue()
    accuracy = [100 * one.test.confusion.accuracy for one in report.of(report.options.sides[0])]
    assert f"{np.mean(accuracy):.2f} ± {np.std(accuracy, ddof=1):.2f}" in said
    assert ("ALIGNED" in said) == (sides == "both")
    assert "note: a note" in said


def test_json_holds_all_of_it() -> None:
    report = report_of()
    held = json.loads(json.dumps(to_dict(report)))
    assert held["verdict"] == "aligned"
    assert [run["history"][1]["validation"]["confusion"] for run in held["runs"]] == [
        run.history[1].validation.confusion.counts.tolist() for run in report.runs
    ]
    assert held["parity"][1]["metrics"]["accuracy"][0] == report.parities[1].reference.confusion.accuracy
    assert TrainOptions.from_dict(held["options"]) == report.options


def test_predictions_that_differ_diverge_unless_rounding_decides_them() -> None:
    one = parity(0)
    assert one.verdict == "aligned"
    assert replace(one, differing=2, decided=2).verdict == "aligned"
    assert replace(one, differing=2).verdict == "diverged"
    assert replace(one, candidate=scores(8)).verdict == "diverged"
    assert replace(one, candidate=Scores(one.reference.loss + 4e-4, one.reference.confusion)).unequal == ("loss",)
    assert parity(0, "inconclusive").verdict == "inconclusive"


def test_a_run_of_one_side_has_no_verdict() -> None:
    assert report_of(sides="candidate").verdict is None
    assert b">trained<" in to_training_html(report_of(sides="candidate"))
    worst = replace(report_of(), parities=(parity(0), parity(1, "diverged")))
    assert worst.verdict == "diverged"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_in_a_browser(browser, tmp_path, width) -> None:
    file = tmp_path / "report.html"
    file.write_bytes(to_training_html(report_of(HOSTILE)))
    resize(browser, width, 900)
    browser.get(file.as_uri())
    browser.execute_script("document.querySelectorAll('.chart').forEach((box) => box.draw())")
    assert browser.execute_script("return document.querySelectorAll('.chart svg').length") == 3
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_script(
        "echarts.getInstanceByDom(document.querySelector('.chart')).dispatchAction("
        "{type: 'showTip', seriesIndex: 0, dataIndex: 1})"
    )
    time.sleep(0.3)
    assert "reference, seed 0, validation, epoch 2" in browser.execute_script(
        "return document.querySelector('.tip').textContent"
    )
    assert browser.execute_script("return [window.hacked ?? null, document.images.length]") == [None, 0]
    height = browser.execute_script("return document.documentElement.scrollHeight")
    resize(browser, width, height)
    time.sleep(0.3)
    screenshot(browser, ARTEFACTS / f"training-{width}.png")
    assert browser.get_log("browser") == []
