"""The page in a headless Chromium: it opens without an error, unfolds, filters, draws, prints, and stays within its width."""

from __future__ import annotations

import base64
import time

import pytest

from alignment.views.html import to_html

from .chromium import ARTEFACTS, chromium, resize, screenshot
from .synthetic import hostile_names, synthetic_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_bytes(to_html(synthetic_report(60, 8)))
    return file.as_uri()


@pytest.fixture
def page(browser, address):
    resize(browser, 1280, 900)
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []


def ask(browser, script: str, *arguments):
    return browser.execute_script(f"return {script}", *arguments)


def press(browser, *keys: str) -> None:
    for key in keys:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": key, **text})


def focused(browser) -> str:
    return ask(browser, "document.activeElement.getAttribute('aria-label')")


def test_it_opens_and_its_charts_are_drawn_when_they_are_seen(page):
    assert "Diverged" in page.title.title()
    assert ask(page, "document.querySelectorAll('.opened .chart').length") == 0
    page.execute_script("document.querySelector('[data-open]').click()")
    page.execute_script("document.querySelectorAll('.opened .chart').forEach((box) => box.scrollIntoView())")
    time.sleep(0.5)
    captions = ask(page, "[...document.querySelectorAll('.opened figcaption')].map((c) => c.firstChild.textContent)")
    assert captions == ["How large the differences are", "Where they sit", "Difference against magnitude"]
    assert ask(page, "document.querySelectorAll('.opened .chart svg').length") == 3
    assert ask(page, "document.querySelectorAll('.worst tbody tr').length") == 8


def test_the_filters_leave_what_they_say(page):
    def names():
        return ask(page, "[...document.querySelectorAll('.row .name .id')].map((n) => n.textContent)")

    def choose(selector: str, value: str, event: str = "change") -> None:
        page.execute_script(
            "const it = document.querySelector(arguments[0]); it.value = arguments[1]; it.dispatchEvent(new Event(arguments[2]))",
            selector, value, event,
        )  # fmt: skip

    assert len(names()) == 8  # what diverged, to begin with
    page.execute_script("document.querySelector('.chip input[value=aligned]').click()")
    assert len(names()) == 60
    choose("input[type=search]", "BLOCK.7 gradient", "input")
    assert names() == [f"encoder.{n}.block.7.weight" for n in (2, 0, 1)]
    choose("input[type=search]", "", "input")
    choose("select[aria-label='all kinds']", "activation")
    assert len(names()) == 30
    choose("select[aria-label='all stages']", "1")
    assert names() == []
    assert ask(page, "document.querySelector('.count').textContent") == "0 of 60 tensors"


def test_the_trees_unfold_together_and_list_a_modules_tensors(page):
    trees = "document.querySelectorAll('[role=tree]')"
    assert ask(page, f"{trees}.length") == 2
    page.execute_script(f"{trees}[0].querySelector('[aria-label^=\"0, ModuleList\"] > .node').click()")
    opened = [ask(page, f"{trees}[{n}].querySelector('[aria-label^=\"0, ModuleList\"]').ariaExpanded") for n in (0, 1)]
    assert opened == ["true", "true"]
    page.execute_script(f"{trees}[1].querySelector('[aria-label^=\"block\"] > .node').click()")
    page.execute_script(f"{trees}[1].querySelector('[aria-label^=\"3, paddle.Linear\"] > .node').click()")
    shown = ask(page, "[...document.querySelectorAll('.row .name .id')].map((n) => n.textContent)")
    assert shown == ["encoder.0.block.3", "encoder.0.block.3.weight"]
    assert ask(page, "document.querySelectorAll('.node.mate').length") == 1


def test_the_tree_by_keyboard(page):
    page.execute_script("document.querySelector('[role=tree] [tabindex=\"0\"]').focus()")
    assert focused(page).startswith("(root), Net, diverged, 1 root divergence")
    press(page, "ArrowDown")
    assert focused(page).startswith("encoder, ModuleList")
    press(page, "ArrowLeft")  # folds it
    assert ask(page, "document.activeElement.ariaExpanded") == "false"
    press(page, "ArrowRight", "ArrowRight")  # unfolds it, and goes to its first child
    assert focused(page).startswith("0, ModuleList")
    press(page, "ArrowLeft")
    assert focused(page).startswith("encoder")
    press(page, "End")
    last = focused(page)
    press(page, "Home", "ArrowUp")
    assert focused(page).startswith("(root)")
    assert last != focused(page)
    press(page, "Enter")
    assert ask(page, "document.activeElement.ariaSelected") == "true"
    # One stop for the Tab key in each tree.
    stops = "(tree) => tree.querySelectorAll('[tabindex=\"0\"]').length"
    assert ask(page, f"[...document.querySelectorAll('[role=tree]')].map({stops})") == [1, 1]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_stays_within_its_width(browser, address, width, scheme):
    resize(browser, width, 900, scheme)
    browser.get(address)
    browser.execute_script("document.querySelector('[data-open]').click()")
    browser.execute_script("document.querySelectorAll('.chart').forEach((box) => box.draw())")
    assert ask(browser, "document.documentElement.scrollWidth") <= width
    lines = "(cell) => Math.round(cell.clientHeight / parseFloat(getComputedStyle(cell).lineHeight))"
    assert set(ask(browser, f"[...document.querySelectorAll('.scroll td')].map({lines})")) == {1}  # no figure is broken
    height = ask(browser, "document.documentElement.scrollHeight")
    resize(browser, width, height, scheme)
    time.sleep(0.3)
    screenshot(browser, ARTEFACTS / f"report-{width}-{scheme}.png")
    assert browser.get_log("browser") == []


def test_long_names_wrap(browser, tmp_path):
    file = tmp_path / "long.html"
    file.write_bytes(to_html(synthetic_report(12, 4, lambda name: name + ".a_long_name_of_a_module" * 6)))
    resize(browser, 400, 900)
    browser.get(file.as_uri())
    browser.execute_script("document.querySelectorAll('[data-open], .node').forEach((one) => one.click())")
    assert ask(browser, "document.documentElement.scrollWidth") == 400


def test_what_diverged_is_printed_with_its_charts(page):
    pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    (ARTEFACTS / "report.pdf").parent.mkdir(parents=True, exist_ok=True)
    (ARTEFACTS / "report.pdf").write_bytes(pdf)
    assert ask(page, "document.querySelectorAll('.opened').length") == 8
    drawn = ask(page, "[...document.querySelectorAll('.chart')].filter((box) => box.querySelector('svg')).length")
    assert drawn == ask(page, "document.querySelectorAll('.chart').length") > 8


def test_hostile_names_run_nothing(browser, tmp_path):
    file = tmp_path / "hostile.html"
    file.write_bytes(to_html(synthetic_report(12, 4, hostile_names)))
    browser.get(file.as_uri())
    browser.execute_script("document.querySelectorAll('[data-open], .node').forEach((one) => one.click())")
    browser.execute_script("document.querySelectorAll('.chart').forEach((box) => box.draw())")
    # A tooltip is where a charting library would take a name for markup.
    browser.execute_script(
        "const box = document.querySelector('.chart'); box.scrollIntoView();"
        "echarts.getInstanceByDom(box).dispatchAction({type: 'showTip', seriesIndex: 0, dataIndex: 2})"
    )
    time.sleep(0.3)
    assert "</script>" in ask(browser, "document.querySelector('.tip').textContent")
    assert ask(browser, "[window.hacked ?? null, document.images.length, document.scripts.length]") == [None, 0, 3]
    assert browser.get_log("browser") == []


def test_2000_tensors_stay_usable(browser, tmp_path):
    file = tmp_path / "large.html"
    file.write_bytes(to_html(synthetic_report(2000, 400, elements=(8, 8))))
    resize(browser, 1280, 900)
    browser.get(file.as_uri())
    # How long that takes is for benchmarks/bench_html.py. A part of the rows is drawn, and the rest on request.
    assert ask(browser, "document.querySelectorAll('.row').length") == 60
    page_rows = "document.querySelector('.more').click(), document.querySelectorAll('.row').length"
    assert ask(browser, page_rows) == 260
    assert browser.get_log("browser") == []
