"""What the HTML report costs: keeping the details in a check, drawing the page, its size, and how fast a browser shows it.

Checks with and without details take turns, and the fastest round of each counts. Pages are of made-up reports. The browser
is the Chromium of this machine with its driver, by selenium; without these that part is left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alignment import Options, check
from alignment.views.html import to_html
from alignment.views.json import to_json
from tests.alignment.synthetic import synthetic_report

TWIN = "fast-transformer-classifier"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args()
    details(given.rounds, given.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        pages(Path(folder), given.rounds)


def details(rounds: int, batch_size: int) -> None:
    """Processor time of a check, which other work on the machine moves less than the clock's."""
    options = Options(batch_size=batch_size, threads=1)
    check(TWIN, options)  # imports and caches
    best = {False: float("inf"), True: float("inf")}
    for _ in range(rounds):
        for asked in best:
            start = time.process_time()
            report = check(TWIN, replace(options, details=asked))
            best[asked] = min(best[asked], time.process_time() - start)
            size = len(to_json(report)) / 1e3
            print(f"check of {TWIN}, details {asked!s:5}: {time.process_time() - start:6.2f} s, JSON {size:.0f} kB")
    print(f"details cost {best[True] / best[False] - 1:.1%} of a check")


def pages(folder: Path, rounds: int) -> None:
    for tensors, diverged in ((500, 20), (500, 500), (2000, 400)):
        report = synthetic_report(tensors, diverged)
        start = time.perf_counter()
        page = to_html(report)
        print(
            f"{tensors} tensors, {diverged} diverged: drawn in {time.perf_counter() - start:.2f} s, {len(page) / 1e6:.2f} MB"
        )
        file = folder / f"{tensors}-{diverged}.html"
        file.write_bytes(page)
        browse(file, folder / "profile", rounds)


def browse(file: Path, profile: Path, rounds: int) -> None:
    try:
        import selenium  # noqa: F401

        from tests.alignment.chromium import CHROMIUM, DRIVER, chromium
    except ImportError:
        print("  no selenium: not opened in a browser")
        return
    if not (CHROMIUM and DRIVER):
        print("  no Chromium with a driver: not opened in a browser")
        return
    with chromium(profile) as browser:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            browser.get(file.as_uri())
            browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            times.append(time.perf_counter() - start)
        print(f"  on the screen after {', '.join(f'{seconds:.2f}' for seconds in times)} s")


if __name__ == "__main__":
    main()
