"""Two arrays compared: `compare_arrays` beside reading them once, and beside what people use for it today.

    python benchmarks/bench_compare.py [--millions N] [--repeats N] [--threads N]

Every round times each form in turn, for two seconds or once; the fastest counts. Memory is the peak of a process of its own
for each form, less what that process has with both arrays in memory.

read:               ``a.max(), b.max()``, NumPy's fastest pass, one thread
assert_allclose:    ``np.testing.assert_allclose`` on arrays that are equal within its tolerance
torch assert_close: ``torch.testing.assert_close``, torch's own threads
reprod_log:         the three figures of its `compute_diff`: mean, max and min of ``np.abs(a - b)``
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from alignment.statistics import available_cores, compare_arrays

QUICK = 2.0  # seconds


def arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal float32, and the same with a relative error of some ULP."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal(count, dtype=np.float32)
    b = a.copy()
    b *= np.float32(1 + 2e-7)
    return a, b


def forms(a: np.ndarray, b: np.ndarray, threads: int | None) -> dict[str, Callable[[], object]]:
    """What is timed; torch and reprod_log only where they are installed."""

    def reprod() -> object:
        gap = np.abs(a - b)
        return gap.mean(), gap.max(), gap.min()

    made: dict[str, Callable[[], object]] = {
        "read": lambda: (a.max(), b.max()),
        "compare_arrays": lambda: compare_arrays(a, b, threads=threads),
        "compare_arrays, tolerance": lambda: compare_arrays(a, b, atol=1e-5, rtol=1e-5, threads=threads),
        "compare_arrays, ULP": lambda: compare_arrays(a, b, ulps=True, threads=threads),
        "assert_allclose": lambda: np.testing.assert_allclose(b, a, 1e-5, 1e-5),
        "reprod_log's figures": reprod,
    }
    try:
        import torch
    except ImportError:
        return made
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    return made | {"torch assert_close": lambda: torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5)}


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, or VmHWM at its peak."""
    return int(re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def measure_memory(form: str, count: int, threads: int | None) -> None:
    """What a child process does: the form once; prints the peak beside the arrays."""
    made = forms(*arrays(count), threads)
    small = forms(*arrays(1 << 12), threads)
    small[form]()  # imports and threads are there
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    made[form]()
    print(resident("VmHWM") - before)


def memory_of(form: str, options: argparse.Namespace) -> float:
    arguments = [__file__, "--memory-of", form, "--millions", str(options.millions)]
    arguments += [] if options.threads is None else ["--threads", str(options.threads)]
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=100, help="elements of each array, in millions")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of compare_arrays (default: all cores)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    count = int(options.millions * 1e6)
    if options.memory_of:
        measure_memory(options.memory_of, count, options.threads)
        return
    made = forms(*arrays(count), options.threads)
    seconds = dict.fromkeys(made, float("inf"))
    for _ in range(options.repeats):
        for name, form in made.items():
            begin = start = time.perf_counter()
            while (
                start - begin < QUICK
            ):  # what is quick is timed several times, so that each form has its quiet moments
                form()
                end = time.perf_counter()
                seconds[name], start = min(seconds[name], end - start), end
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{options.millions:g} million float32 elements, {available_cores()} cores, load {load}")
    ours, read = seconds["compare_arrays"], seconds["read"]
    for name, value in seconds.items():
        print(
            f"  {name:26} {value * 1000:8.0f} ms  {value / read:6.1f} x read  {value / ours:6.1f} x compare_arrays  "
            f"{memory_of(name, options):7.0f} MiB beside the arrays"
        )


if __name__ == "__main__":
    main()
