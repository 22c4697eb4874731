"""How far the precision of a right port varies: what a baseline's factor must bear.

Every twin is checked under several seeds, and with one and two threads. The ratio of a tensor's error ratio in one run to that
in another, counted from 1, is what `alignment.baseline` compares with its factor; printed are its quantiles and its largest,
for tensors and for single numbers, and the largest share of what rounding explains that a float64 difference used.
"""

from __future__ import annotations

import argparse
import math
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alignment import Options, TensorResult, check
from alignment.baseline import EXACT, FACTOR, SEMANTICS_SHARE, figures_of
from alignment.twins import TWINS

Runs = list[dict[tuple[str, str], TensorResult]]


def run(twin: str, **options: Any) -> dict[tuple[str, str], TensorResult]:
    (result,) = check(twin, Options(steps=(3, 4, 5), data="fake", **options)).twins
    assert result.verdict == "aligned", twin
    rows = [row for stage in result.stages for row in stage.tensors if row.record not in EXACT]
    return {(row.record, row.name): row for row in rows}


def growth(runs: Runs, alone: bool) -> list[float]:
    """Ratios between any two runs, of single numbers (`alone`) or of tensors."""
    found = []
    for key in runs[0]:
        rows = [rows[key] for rows in runs if key in rows]
        if (math.prod(rows[0].shape or ()) == 1) != alone:
            continue
        ratios = [figures.error_ratio or 0.0 for row in rows if (figures := figures_of(row)) is not None]
        found += [after / max(before, 1.0) for before, after in permutations(ratios, 2)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=3)
    given = parser.parse_args()
    tensors, numbers, shares = [], [], [0.0]
    for twin in (*TWINS, *(f"examples.port.twins:{name}" for name in ("encoder", "conv_net", "tagger"))):
        runs = [run(twin, seed=seed, batch_size=given.batch_size, threads=1) for seed in range(given.seeds)]
        runs.append(run(twin, seed=0, batch_size=given.batch_size, threads=2))
        tensors += growth(runs, alone=False)
        numbers += growth(runs, alone=True)
        rows = [row for rows in runs for row in rows.values() if row.dtype == "float64"]
        shares += [row.seen / row.allowed for row in rows if row.seen and row.allowed]
        print(f"{twin}: {len(runs)} runs", flush=True)
    for what, found, most in (("tensors", tensors, FACTOR), ("single numbers", numbers, 2 * FACTOR)):
        half, many, largest = np.quantile(found, (0.5, 0.99, 1.0))
        print(
            f"{what}: {len(found)} pairs, median {half:.2f}, 99 % {many:.2f}, largest {largest:.2f}; allowed {most:g}"
        )
    print(f"float64 differences: at most {max(shares):.3f} of what rounding explains; judged above {SEMANTICS_SHARE:g}")


if __name__ == "__main__":
    main()
