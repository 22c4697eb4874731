"""How often a right training raises an alarm, and how many planted faults of training are found, named and dated.

    python -m mutants.training --right 100 --write

Every configuration is one `alignment.trajectory`: a twin, a seed, sizes of batch, length and model, and a recipe. `--write`
puts the figures into docs/trajectories.md.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment import Clip, Group, Optimizer, Options, Recipe, Report, Schedule, Training, trajectory
from alignment.training.faults import TRAINING_FAULTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "trajectories.md"
BEGIN, END = "<!-- measured: written by python -m mutants.training --write -->", "<!-- end of measured -->"

SIZES: dict[str, dict[str, Any]] = {
    "fast-transformer-classifier": {"dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 24, "ff_mult": 2},
    "fastformer-classifier": {
        "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 24,
    },
    "fast-transformer": {"num_tokens": 30, "dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 24, "ff_mult": 2},
    "fastformer-text-classifier": {"embed": 16, "num_attention_heads": 2},
}  # fmt: skip
VOCABULARY = {
    "fast-transformer-classifier": "num_tokens",
    "fastformer-classifier": "vocab_size",
    "fastformer-text-classifier": "vocab_size",
}
WIDTH = {"dim": 32, "dim_head": 16, "hidden_size": 32, "embed": 32}
RECIPES = {
    "sgd": Recipe(Optimizer("sgd", 0.1)),
    "momentum": Recipe(Optimizer("sgd", 0.05, momentum=0.9, nesterov=True), Schedule("cosine", {"T_max": 20})),
    "adam": Recipe(Optimizer("adam")),
    "adam, clipped": Recipe(Optimizer("adam", 3e-3), Schedule("warmup"), Clip("global norm", 0.1)),
    "adamw": Recipe(Optimizer("adamw", weight_decay=0.01), Schedule("multistep", {"milestones": [5, 8]})),
    "adamw, groups": Recipe(Optimizer("adamw", weight_decay=0.1, amsgrad=True), groups=(Group("*.bias", 2.0, 0.0),)),
}


@dataclass(frozen=True)
class Case:
    """One training to judge."""

    twin: str
    seed: int
    recipe: str
    batch_size: int
    length: int
    steps: int
    wide: bool
    data: str
    dropout: str = "frozen"

    def run(self, recipe: Recipe, *faults: str) -> Report:
        sizes = dict(SIZES[self.twin])
        if self.wide:
            sizes |= {name: WIDTH[name] for name in sizes if name in WIDTH}
        if self.data == "fake" and self.twin in VOCABULARY:
            sizes[VOCABULARY[self.twin]] = 60
        options = Options(
            settings=sizes, data=self.data, seed=self.seed, batch_size=self.batch_size, length=self.length,
            dropout=self.dropout, threads=1,
        )  # fmt: skip
        return trajectory(self.twin, options, Training(self.steps, recipe, envelope=4, probe=8, faults=faults))


def right_cases(count: int) -> Iterator[Case]:
    """Configurations over twins, recipes, seeds and sizes; each of them another."""
    generator = np.random.default_rng(0)
    kinds = list(itertools.product(RECIPES, SIZES))
    for number in range(count):
        seed, (recipe, twin) = number // len(kinds), kinds[number % len(kinds)]
        size, length, steps = (int(generator.choice(values)) for values in ((2, 4, 8, 16), (5, 8, 20), (8, 12, 25)))
        data = "synthetic" if twin in VOCABULARY and generator.random() < 0.5 else "fake"
        dropout = "seeded" if generator.random() < 0.25 else "frozen"
        yield Case(twin, seed, recipe, size, length, steps, bool(generator.random() < 0.5), data, dropout)


def wrong_cases() -> Iterator[tuple[Case, str]]:
    """Every fault on every twin with a recipe that it has something to hit in; SGD's rates are large, Adam's small."""
    for fault, twin in itertools.product(TRAINING_FAULTS, SIZES):
        name = next(name for name, recipe in RECIPES.items() if TRAINING_FAULTS[fault].hits(recipe))
        yield Case(twin, 1, name, 4, 8, 10, False, "fake"), fault


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--right", type=int, default=100, help="right configurations")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/trajectories.md")
    asked = parser.parse_args()
    start, alarms, strains = time.perf_counter(), 0, []
    for number, case in enumerate(right_cases(asked.right), 1):
        twin = case.run(RECIPES[case.recipe]).twins[0]
        alarms += twin.verdict != "aligned"
        strains.append([one.strain for one in twin.trajectories])
        if twin.verdict != "aligned":
            print(f"ALARM {case}: {[(row.record, row.name, row.reason) for row in twin.roots]}", flush=True)
        if number % 10 == 0:
            print(f"{number} right ones, {alarms} alarms, {time.perf_counter() - start:.0f} s", flush=True)
    found: Counter[str] = Counter()
    named: Counter[str] = Counter()
    for case, fault in wrong_cases():
        twin = case.run(RECIPES[case.recipe], fault).twins[0]
        causes = [finding.cause for finding in twin.findings]
        found[fault] += twin.verdict == "diverged"
        named[fault] += causes == [fault]
        if twin.verdict != "diverged" or causes != [fault]:
            print(f"MISSED {fault} {case}: {twin.verdict}, {causes}", flush=True)
    table = lines_of(asked.right, alarms, np.array(strains), found, named)
    print("\n".join(table))
    if asked.write:
        source = PAGE.read_text(encoding="utf-8")
        before, after = source.partition(BEGIN)[0], source.partition(END)[2]
        PAGE.write_text("\n".join([before + BEGIN, "", *table, "", END]) + after, encoding="utf-8")


def lines_of(right: int, alarms: int, strains: Any, found: Counter[str], named: Counter[str]) -> list[str]:
    """The figures as the page has them."""
    twins = len(SIZES)
    lines = [
        f"{right} right trainings ({len(SIZES)} twins, {len(RECIPES)} recipes, seeds, sizes, lengths and numbers of steps), "
        f"each in float32 and in float64: {alarms} false alarms. The largest share of what is allowed that any tensor took: "
        f"{strains[:, 0].max():.0%} in float32, {strains[:, 1].max():.0%} in float64.",
        "",
        "| fault | planted | found | named |",
        "|---|---|---|---|",
    ]
    return lines + [f"| `{fault}` | {twins} | {found[fault]} | {named[fault]} |" for fault in TRAINING_FAULTS]


if __name__ == "__main__":
    main()
