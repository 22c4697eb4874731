"""How fast a review file becomes arrays: the package against the plain route, side by side, and in how much memory.

    python benchmarks/bench_reviews.py [FILE] [--repeat N] [--times N]

Without FILE synthetic reviews in the published format are used. The plain route is what one would write first: eval (or
json) a line, re.findall, a dict. Both must give the same ids, labels and vocabulary.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fake_data.amazon import encode_reviews, tokenise_reviews, write_synthetic

LENGTH = 512
PUBLISHED = 1_689_188  # reviews in the published file
Result = tuple[np.ndarray, np.ndarray, list[str]]


def plain_eval(path: Path) -> Result:
    """The historical way: every line through eval, which is unsafe on a file one did not write."""
    return _plain(path, lambda line: eval(line, {"true": True, "false": False, "null": None}))


def plain_json(path: Path) -> Result:
    """The same with json.loads."""
    return _plain(path, json.loads)


def _plain(path: Path, parse: Callable[[str], dict]) -> Result:
    ids: dict[str, int] = {}
    rows, labels = [], []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            review = parse(line)
            row = []
            for token in re.findall(r"\w+|[^\w\s]+", review["reviewText"].lower()):
                if token not in ids:
                    ids[token] = len(ids) + 1
                row.append(ids[token])
            rows.append(row[:LENGTH])
            labels.append(int(review["overall"]) - 1)
    data = np.zeros((len(rows), LENGTH), dtype=np.int32)
    for index, row in enumerate(rows):
        data[index, : len(row)] = row
    return data, np.array(labels), ["<padding>", *ids]


def package(path: Path) -> Result:
    """What the package does."""
    reviews = encode_reviews(path, length=LENGTH)
    return reviews.ids, reviews.labels, list(reviews.vocabulary.words)


def fastest(routes: dict[str, Callable[[Path], Result]], path: Path, repeat: int) -> dict[str, float]:
    """Seconds of each route: the least of `repeat` runs, the routes in turn."""
    seconds = dict.fromkeys(routes, float("inf"))
    for _ in range(repeat):
        for name, route in routes.items():
            start = time.perf_counter()
            route(path)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def repeated(path: Path, times: int, out: Path) -> None:
    """The same reviews `times` over: gzip members may follow one another."""
    content = path.read_bytes()
    with out.open("wb") as file:
        for _ in range(times):
            file.write(content)


def peak_megabytes() -> float:
    """The most memory this process has had resident."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says of a child includes its parent's memory at the fork
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 ** (2 if sys.platform == "darwin" else 1)


def measure_memory(path: Path) -> None:
    """What a child process does: keep every token of the file, as the command does before it selects."""
    start = time.perf_counter()
    reviews = tokenise_reviews(path)
    seconds = time.perf_counter() - start
    tokens = sum(len(part.flat) for part in reviews.parts)
    print(json.dumps({"reviews": len(reviews.labels), "tokens": tokens, "seconds": seconds, "peak": peak_megabytes()}))


def child(path: Path) -> dict[str, float]:
    """measure_memory in a process of its own, so that its peak is its own."""
    done = subprocess.run([sys.executable, __file__, str(path), "--child"], check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="a file of reviews, gzip")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each route; the least time counts")
    parser.add_argument("--times", type=int, default=10, help="how often the file is repeated for the memory figure")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure_memory(options.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path is None:
            path = Path(folder) / "reviews.json.gz"
            write_synthetic(path, 18_000, seed=0)
        plain, ours = plain_json(path), package(path)
        if not (np.array_equal(plain[0], ours[0]) and np.array_equal(plain[1], ours[1]) and plain[2] == ours[2]):
            sys.exit("the package and the plain route differ")
        count = len(ours[1])
        print(f"{options.file or 'synthetic reviews'}: {count:,} reviews, {len(ours[2]):,} ids, results identical")
        seconds = fastest({"eval": plain_eval, "json": plain_json, "package": package}, path, options.repeat)
        for name, value in seconds.items():
            print(f"  {name:8} {value:7.3f} s   {value / seconds['package']:5.1f} x the package's time")
        long = Path(folder) / "repeated.json.gz"
        repeated(path, options.times, long)
        once, many = child(path), child(long)
        each = (many["peak"] - once["peak"]) / (many["reviews"] - once["reviews"])
        for run in (once, many):
            print(
                f"  {run['reviews']:>9,} reviews, {run['tokens']:>11,} tokens kept: {run['seconds']:6.2f} s, "
                f"peak {run['peak']:6.0f} MB"
            )
        left = PUBLISHED - many["reviews"]
        print(
            f"  {PUBLISHED:>9,} reviews (extrapolated): {many['seconds'] * PUBLISHED / many['reviews']:.0f} s, "
            f"peak {many['peak'] + left * each:.0f} MB and what new words take"
        )


if __name__ == "__main__":
    main()
