"""The measured truth: every fault planted on every twin where it applies, and as many right configurations, judged and counted.

    python -m mutants.matrix --write         all of it; writes docs/mutants.json and the tables of docs/mutants.md
    python -m mutants.matrix --only gelu     faults and twins whose names contain a word; with --write the others stay as they are

Each planted fault is explained as `align explain` does, with small sizes, and the same runs are judged by the tools at hand:
reprod_log's mean difference below 1e-6, and the default tolerances of numpy.allclose and torch.testing.assert_close, on
every tensor that is recorded, in float32. They are asked with the reference's own initial weights, as is usual, and with
randomised ones.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GLOG_minloglevel", "2")

DOCS = Path(__file__).resolve().parent.parent / "docs"
CLEAN_RUNS = 400
TOOLS = ("reprod_log", "numpy.allclose", "torch.assert_close")

FAST = {"dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 12, "ff_mult": 2, "num_tokens": 40}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fast-transformer-classifier": ("fast-transformer-classifier", FAST),
    "fast-transformer-classifier, rotary": ("fast-transformer-classifier", FAST | {"absolute_pos_emb": False}),
    "fastformer-classifier": (
        "fastformer-classifier",
        {
            "vocab_size": 40,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 12,
        },
    ),
    "fast-transformer": ("fast-transformer", FAST),
    "fast-transformer, rotary": ("fast-transformer", FAST | {"absolute_pos_emb": False}),
    "fastformer-text-classifier": (
        "fastformer-text-classifier",
        {"vocab_size": 40, "embed": 16, "num_attention_heads": 2},
    ),
}


# Paddle's own initialisers have biases of 0, which has a name of its own.
COMPANIONS = {"linear-init": ("bias-init",), "conv-init": ("bias-init",)}


@dataclass(frozen=True)
class Outcome:
    """What became of one planted fault. root, side, cause: right? cause_known: is there a name for it to be called by?

    tools: tool and weights -> did it see anything. error: why there is no outcome.
    """

    fault: str
    twin: str
    applies: bool = True
    stage: int = 0
    detected: bool = False
    first_stage: int = 0
    root: bool = False
    side: bool = False
    cause_known: bool = True
    cause: bool = False
    proof: bool = False
    named: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    proofs: tuple[str, ...] = ()
    tools: dict[str, bool] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Clean:
    """One right configuration: the verdict, and which tools raised an alarm."""

    twin: str
    settings: dict[str, Any]
    batch_size: int
    length: int | None
    seed: int
    verdict: str
    alarms: tuple[str, ...] = ()
    tools: dict[str, bool] = field(default_factory=dict)
    error: str = ""


# ----------------------------------------------------------------------------------------------------------- one fault


def planted(fault_name: str, variant: str) -> Outcome:
    """Plant one fault on one twin and see what is made of it."""
    from alignment import AlignmentError, Options, get_twin
    from alignment.check import run_check
    from alignment.explain import explain_checked

    start = time.perf_counter()
    try:
        fault, expected, cause = _fault(fault_name, variant)
        name, settings = VARIANTS.get(variant, (variant, {}))
        if variant in VARIANTS:
            twin, faults, stage = get_twin(name), (fault,), fault.stage
            options = Options(settings=settings, data="fake", batch_size=3, length=8, faults=faults, strict=True)
        else:
            twin, stage = get_twin(f"mutants.gallery:{re.sub(r'[^a-zA-Z0-9]', '_', variant)}__"
                                   f"{re.sub(r'[^a-zA-Z0-9]', '_', fault_name)}"), fault.stage  # fmt: skip
            options = Options(batch_size=5 if variant == "recurrent-net" else 3, strict=True)
        checked = run_check(twin, options)
        result = explain_checked(checked).twins[0]
        tools = _tools(checked.experiment)
    except AlignmentError as error:
        if "nothing to hit" in str(error):
            return Outcome(fault_name, variant, applies=False)
        return Outcome(fault_name, variant, error=str(error))
    except Exception:
        return Outcome(fault_name, variant, error=traceback.format_exc(limit=-3))
    named = tuple(finding.cause or "unexplained" for finding in result.findings)
    return Outcome(
        fault_name,
        variant,
        stage=stage,
        detected=result.verdict == "diverged",
        first_stage=next((s.step for s in result.stages if s.verdict == "diverged"), 0),
        root=bool(result.roots) and all(expected(name, t.record, t.name) for t in result.roots),
        side=bool(result.findings) and all(finding.side == "candidate" for finding in result.findings),
        cause_known=bool(cause),
        cause=bool(named)
        and {cause or "unexplained"} <= set(named) <= {cause or "unexplained", *COMPANIONS.get(cause, ())},
        proof=any(finding.cause == cause and bool(finding.proof) for finding in result.findings),
        named=named,
        roots=tuple(f"{t.record} {t.name}" for t in result.roots),
        proofs=tuple(finding.proof for finding in result.findings if finding.proof)[:1],
        tools=tools,
        seconds=time.perf_counter() - start,
    )


def _fault(name: str, variant: str) -> tuple[Any, Any, str]:
    """The fault (or the gallery's mutant), where its root belongs, and the cause to be named."""
    from alignment.correspondence import path_of
    from alignment.faults import FAULTS
    from mutants.fastformer_faults import CAUSES, EXPECTED, FASTFORMER_FAULTS
    from mutants.gallery import GALLERY_MUTANTS

    if variant not in VARIANTS:
        mutant = next(m for m in GALLERY_MUTANTS if (m.name, m.twin) == (name, variant))

        def there(_twin: str, record: str, tensor: str) -> bool:
            return record == mutant.record and bool(re.fullmatch(mutant.tensor, path_of(tensor)))

        return mutant, there, mutant.cause
    own = {fault.name: fault for fault in FASTFORMER_FAULTS}
    return (own.get(name) or FAULTS[name]), EXPECTED[name], CAUSES[name]


def _tools(experiment: Any) -> dict[str, bool]:
    """Which of the tools at hand sees a difference in the first batch, in float32, with either set of weights."""
    import numpy as np
    import torch

    from checkpoints import undo

    seen = {}
    once = replace(experiment, batches=experiment.batches[:1])
    try:
        cases = list(once.cases(True, lambda: None))
    except Exception:  # what can't be run is seen by anyone
        return {f"{tool}, {weights}": True for tool in TOOLS for weights in ("given", "random")}
    moves = {move.label: move for move in experiment.layout.moves}
    for case in cases:
        pairs = []
        for record in case.reference32.records:
            move = moves.get(record.name) if record.kind == "gradient" else None
            other = case.candidate32.get(record.kind, move.target if move else record.name)
            if record.value is None or record.kind == "update":
                continue
            if other is not None and move is not None and other.shape == move.shape_to:
                other = undo(other, move)
            pairs.append((record.value, other))
        whole = [(a, b) for a, b in pairs if b is not None and a.shape == b.shape]
        lacking = len(whole) < len(pairs)
        weights = "random" if case.weights == "random" else "given"
        apart = any(not np.abs(a.astype(np.float64) - b).mean() < 1e-6 for a, b in whole)
        seen[f"reprod_log, {weights}"] = lacking or apart
        seen[f"numpy.allclose, {weights}"] = lacking or any(not np.allclose(b, a) for a, b in whole)
        close = [_close(torch.from_numpy(a), torch.from_numpy(b)) for a, b in whole]
        seen[f"torch.assert_close, {weights}"] = lacking or not all(close)
    return seen


def _close(a: Any, b: Any) -> bool:
    import torch

    try:
        torch.testing.assert_close(b, a)
    except AssertionError:
        return False
    return True


# --------------------------------------------------------------------------------------------------- right configurations


def clean(number: int) -> Clean:
    """One right configuration, its sizes, heads, lengths, masks and seed drawn by `number`."""
    from alignment import Options, get_twin
    from alignment.check import run_check
    from mutants.gallery import GALLERY

    name, settings, batch_size, length, seed = _configuration(number, list(GALLERY))
    gallery = name in GALLERY
    try:
        twin = GALLERY[name] if gallery else get_twin(name)
        options = Options(settings=settings, data="fake", batch_size=batch_size, length=length, seed=seed, strict=True)
        checked = run_check(twin, options)
        result = checked.report.twins[0]
        tools = _tools(checked.experiment)
    except Exception:
        return Clean(name, settings, batch_size, length, seed, "error", error=traceback.format_exc(limit=-3))
    bad = [t for stage in result.stages for t in stage.tensors if t.verdict != "aligned"]
    alarms = tuple(f"{t.record} {t.name}: {t.reason}" for t in bad[:3])
    return Clean(name, settings, batch_size, length, seed, result.verdict, alarms, tools)


def _configuration(number: int, gallery: list[str]) -> tuple[str, dict[str, Any], int, int | None, int]:
    draw = random.Random(number)
    batch_size, seed = draw.choice([1, 2, 3, 5, 8]), draw.randrange(10**6)
    if number % 5 == 0:  # the gallery has one size; two rows at least, or batch norm has nothing to normalise
        return gallery[number // 5 % len(gallery)], {}, max(2, batch_size), None, seed
    vocabulary, width = draw.choice([20, 100, 500]), draw.choice([8, 16, 24, 32, 48, 96])
    heads, depth, longest = draw.choice([1, 2, 4]), draw.choice([1, 2, 4]), draw.choice([16, 40, 128])
    fast = {
        "num_tokens": vocabulary,
        "dim": width,
        "heads": heads,
        "dim_head": draw.choice([4, 8, 16]),
        "depth": depth,
        "max_seq_len": longest,
        "ff_mult": draw.choice([1, 4]),
        "absolute_pos_emb": draw.random() < 0.5,
    }
    name, settings = draw.choice(
        [
            ("fast-transformer-classifier", fast),
            ("fast-transformer", fast),
            (
                "fastformer-classifier",
                {
                    "vocab_size": vocabulary,
                    "hidden_size": width,
                    "num_attention_heads": heads,
                    "num_hidden_layers": depth,
                    "intermediate_size": draw.choice([16, 64]),
                    "max_position_embeddings": longest,
                    "pooler_count": draw.choice([1, 2]),
                },
            ),
            (
                "fastformer-text-classifier",
                {"vocab_size": vocabulary, "embed": width, "num_attention_heads": heads},
            ),
        ]
    )
    return name, settings, batch_size, draw.choice([2, 8, 16]), seed


# ----------------------------------------------------------------------------------------------------------- everything


def pairs(word: str = "") -> list[tuple[str, str]]:
    """(fault, twin) of everything that may be planted and has `word` in its name."""
    from alignment.faults import FAULTS
    from mutants.fastformer_faults import CAUSES, FASTFORMER_FAULTS
    from mutants.gallery import GALLERY_MUTANTS

    names = [name for name in FAULTS if name in CAUSES]
    names += [fault.name for fault in FASTFORMER_FAULTS if fault.name not in names]
    found = [(name, variant) for name in names for variant in VARIANTS]
    found += [(mutant.name, mutant.twin) for mutant in GALLERY_MUTANTS]
    return [pair for pair in found if word in " ".join(pair)]


def run(todo: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """Results of (function, arguments…) as they come, with a progress bar."""
    from rich.progress import track

    todo = list(todo)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(function, *arguments) for function, *arguments in todo]
        for future in track(as_completed(futures), total=len(futures), description="planting"):
            yield future.result()


def summary(outcomes: list[Outcome], cleans: list[Clean]) -> dict[str, Any]:
    """The figures of the whole matrix."""
    applying = [o for o in outcomes if o.applies]
    known = [o for o in applying if o.cause_known]
    unknown = [o for o in applying if not o.cause_known]

    def share(values: Iterable[bool]) -> list[int]:
        listed = list(values)
        return [sum(listed), len(listed)]

    return {
        "planted": len(applying),
        "faults": len({o.fault for o in applying}),
        "detected": share(o.detected for o in applying),
        "at the earliest stage": share(o.first_stage == o.stage for o in applying),
        "root right": share(o.root for o in applying),
        "side right": share(o.side for o in applying),
        "cause named right": share(o.cause for o in known),
        "proof given": share(o.proof for o in known),
        "left unexplained where no cause is known": share(o.cause for o in unknown),
        "clean runs": len(cleans),
        "false alarms": share(c.verdict != "aligned" for c in cleans),
        "tools": {
            f"{tool}, {weights} weights": {
                "detected": share(o.tools.get(f"{tool}, {weights}", False) for o in applying),
                "false alarms": share(c.tools.get(f"{tool}, {weights}", False) for c in cleans),
            }
            for tool in TOOLS
            for weights in ("given", "random")
        },
    }


def tables(outcomes: list[Outcome], cleans: list[Clean]) -> str:
    """The figures and a line for each fault, as Markdown."""
    figures = summary(outcomes, cleans)
    lines = ["| figure | this toolkit |", "|---|---|"]
    shown = ("detected", "at the earliest stage", "root right", "side right", "cause named right", "proof given")
    shown += ("left unexplained where no cause is known", "false alarms")
    lines += [f"| {name} | {_share(figures[name])} |" for name in shown]
    lines += ["", "| tool | weights | detected | false alarms |", "|---|---|---|---|"]
    lines.append(f"| alignment | both | {_share(figures['detected'])} | {_share(figures['false alarms'])} |")
    for name, tool in figures["tools"].items():
        label, weights = name.removesuffix(" weights").split(", ")
        lines.append(f"| {label} | {weights} | {_share(tool['detected'])} | {_share(tool['false alarms'])} |")
    lines += [
        "",
        "| fault | planted | detected | stage | root | side | cause | proof | " + " | ".join(TOOLS) + " |",
        "|---|---|---|---|---|---|---|---|" + "---|" * len(TOOLS),
    ]
    by_fault: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.applies:
            by_fault[outcome.fault].append(outcome)
    for fault, group in sorted(by_fault.items(), key=lambda item: (item[1][0].stage, item[0])):
        cells = [
            sum(o.detected for o in group),
            sum(o.first_stage == o.stage for o in group),
            sum(o.root for o in group),
            sum(o.side for o in group),
            sum(o.cause for o in group) if group[0].cause_known else "–",
            sum(o.proof for o in group) if group[0].cause_known else "–",
        ]
        others = [
            " / ".join(
                str(sum(o.tools.get(f"{tool}, {weights}", False) for o in group)) for weights in ("given", "random")
            )
            for tool in TOOLS
        ]
        lines.append(f"| {fault} | {len(group)} | " + " | ".join(map(str, (*cells, *others))) + " |")
    return "\n".join(lines)


def _share(pair: list[int]) -> str:
    return f"{pair[0]} of {pair[1]}" + (f" ({pair[0] / pair[1]:.1%})" if pair[1] else "")


def missed(outcomes: list[Outcome], cleans: list[Clean]) -> Iterator[str]:
    """A line for each thing that did not come out as it should."""
    for o in outcomes:
        if o.error:
            yield f"{o.fault} on {o.twin}: could not be judged: {o.error.splitlines()[-1]}"
        elif o.applies and not (o.detected and o.first_stage == o.stage and o.root and o.side and o.cause):
            what = [
                name
                for name, right in (
                    ("detected", o.detected),
                    (f"stage {o.first_stage} for {o.stage}", o.first_stage == o.stage),
                    ("root", o.root),
                    ("side", o.side),
                    ("cause", o.cause),
                )
                if not right
            ]
            roots, named = ", ".join(o.roots[:4]), ", ".join(o.named[:4])
            yield f"{o.fault} on {o.twin}: not {', '.join(what)}; roots {roots}; named {named}"
    for c in cleans:
        if c.verdict != "aligned":
            sizes = f"{c.settings} batch {c.batch_size} length {c.length} seed {c.seed}"
            yield f"false alarm: {c.twin} {sizes}: {c.alarms or c.error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="only faults and twins with this in their name")
    parser.add_argument(
        "--clean", type=int, default=None, metavar="N", help=f"right configurations [default: {CLEAN_RUNS}]"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--write", action="store_true", help="write docs/mutants.json and the tables of docs/mutants.md"
    )
    given = parser.parse_args()
    count = given.clean if given.clean is not None else 0 if given.only else CLEAN_RUNS
    start = time.perf_counter()
    outcomes: list[Outcome] = []
    cleans: list[Clean] = []
    todo = [(planted, *pair) for pair in pairs(given.only)] + [(clean, number) for number in range(count)]
    for result in run(todo, given.workers):
        (outcomes if isinstance(result, Outcome) else cleans).append(result)
    if given.write and given.only:
        outcomes, cleans = _with_known(outcomes, cleans)
    order = {pair: index for index, pair in enumerate(pairs())}
    outcomes.sort(key=lambda o: order[o.fault, o.twin])
    cleans.sort(key=lambda c: (c.twin, c.seed))
    text = tables(outcomes, cleans)
    print(text)
    wrong = list(missed(outcomes, cleans))
    print(f"\nnot as it should be: {len(wrong)}")
    for line in wrong:
        print("-", line)
    print(f"{time.perf_counter() - start:.0f} s")
    if given.write:
        _write(text, wrong, outcomes, cleans)
    return 1 if any(o.error for o in outcomes) or any(c.verdict != "aligned" for c in cleans) else 0


def _with_known(outcomes: list[Outcome], cleans: list[Clean]) -> tuple[list[Outcome], list[Clean]]:
    """What was judged now, and of docs/mutants.json what was not."""
    known = json.loads((DOCS / "mutants.json").read_text())
    now = {(one.fault, one.twin) for one in outcomes}
    kept = [Outcome(**row) for row in known["planted"] if (row["fault"], row["twin"]) not in now]
    return [*outcomes, *kept], cleans or [Clean(**row) for row in known["clean"]]


def _write(text: str, wrong: list[str], outcomes: list[Outcome], cleans: list[Clean]) -> None:
    listed = "\n".join(f"- {line}" for line in wrong) or "Nothing."
    page = DOCS / "mutants.md"
    body = page.read_text()
    for name, part in (("tables", text), ("missed", listed)):
        marks = f"<!-- {name}: written by make mutants -->", f"<!-- end of {name} -->"
        head, _, rest = body.partition(marks[0])
        body = f"{head}{marks[0]}\n\n{part}\n\n{marks[1]}{rest.partition(marks[1])[2]}"
    page.write_text(body)
    left_out = ("seconds", "error", "applies")
    rows = [{k: v for k, v in asdict(one).items() if k not in left_out} for one in outcomes if one.applies]
    document = {"summary": summary(outcomes, cleans), "planted": rows, "clean": [asdict(one) for one in cleans]}
    # A line for each entry, so that two runs can be compared.
    lines = json.dumps(document, separators=(",", ":")).replace("},{", "},\n{")
    (DOCS / "mutants.json").write_text(lines + "\n")


if __name__ == "__main__":
    sys.exit(main())
