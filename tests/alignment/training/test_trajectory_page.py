"""The page of a training in a headless Chromium: its charts are drawn, and it stays within its width."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from alignment.report import Track, Trajectory
from alignment.views.html import to_html

from ..chromium import ARTEFACTS, chromium, resize, screenshot
from ..synthetic import HOSTILE, hostile_names, synthetic_report

pytestmark = pytest.mark.slow


def made_up(name: str = "encoder.fc.weight") -> Trajectory:
    """A training of 40 steps that leaves its envelope; one loss is no number."""
    steps = np.arange(1, 41)
    loss, spread = 1.6 * np.exp(-steps / 30), 1e-7 * 1.2**steps
    apart = np.where(steps < 20, spread, 40 * spread)
    lost = loss + apart
    lost[-1] = np.nan
    tracks = tuple(
        Track(f"{name}.{n}", None if n else 20, 0.3 if n else 4.0, 20, tuple(apart / (n + 1)), tuple(10 * spread))
        for n in range(8)
    )
    return Trajectory(
        "float32", "adam 0.001", 40, 4, tuple(loss), tuple(lost), tuple(spread), tuple(10 * spread),
        tuple(1e-3 / steps), tuple(1e-3 / steps), tuple(map(int, steps)), tuple(apart), tuple(spread), tuple(10 * spread),
        tuple(1e-6 * steps), tuple(2e-6 * steps), tracks, "right, all 40 steps", f"{name}.0, at step 20", 38,
    )  # fmt: skip


def page_of(folder, **options):
    report = synthetic_report(12, 4, **options)
    name = options["called"]("encoder") if "called" in options else "encoder.fc.weight"
    twin = replace(report.twins[0], trajectories=(made_up(name), replace(made_up(name), dtype="float64")), effect=None)
    file = folder / "report.html"
    file.write_bytes(to_html(replace(report, twins=(twin,))))
    return file.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", [1280, 400])
def test_every_chart_is_drawn_and_fits(browser, tmp_path, width):
    resize(browser, width, 900)
    browser.get(page_of(tmp_path))
    browser.execute_script("document.querySelectorAll('[data-part^=trajectory] .chart').forEach((box) => box.draw())")
    boxes = "[...document.querySelectorAll('[data-part=trajectory-0] .chart')]"
    counts = browser.execute_script(f"return {boxes}.map((box) => box.querySelectorAll('svg path').length)")
    assert len(counts) == 6
    assert min(counts) > 2
    captions = browser.execute_script(
        "return [...document.querySelectorAll('[data-part=trajectory-0] figcaption')].map((c) => c.firstChild.textContent)"
    )
    assert captions == [
        "Loss", "How far the weights part", "How far the losses part", "Each step by itself", "Learning rate",
        "Which tensors leave",
    ]  # fmt: skip
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    resize(browser, width, browser.execute_script("return document.documentElement.scrollHeight"))
    time.sleep(0.5)
    screenshot(browser, ARTEFACTS / f"trajectory-{width}.png")
    assert browser.get_log("browser") == []


def test_names_of_tensors_run_nothing(browser, tmp_path):
    browser.get(page_of(tmp_path, called=hostile_names))
    browser.execute_script("document.querySelectorAll('.chart').forEach((box) => box.draw())")
    assert browser.execute_script("return window.hacked") is None
    assert HOSTILE in browser.execute_script("return document.querySelector('[data-part=trajectory-0]').textContent")
    assert browser.get_log("browser") == []
