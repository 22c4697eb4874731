"""A made-up report of any size, for the views: its figures are made from arrays, as a check's are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from alignment.compare import Pair, Tolerance, compare, measure
from alignment.details import detail_of
from alignment.report import Effect, Finding, Module, Report, StageResult, TwinResult
from alignment.stages import bounded, result_of

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def plain_names(name: str) -> str:
    return name


def hostile_names(name: str) -> str:
    """Names that are markup, or would end the page's data, in every place where a page has names."""
    return f'{name}"{HOSTILE}<!--\u2028&amp;'


def synthetic_report(
    tensors: int, diverged: int, called: Callable[[str], str] = plain_names, elements: tuple[int, int] = (40, 48)
) -> Report:
    """A report of `tensors` tensors of which the last `diverged` ones of the forward pass diverge, the first of them a root."""
    generator = np.random.default_rng(0)
    forward, backward = [], []
    layers = max(1, tensors // 2)
    paths = [f"encoder.{layer // 10}.block.{layer % 10}" for layer in range(layers)]
    for number in range(tensors):
        wrong = tensors - number <= diverged
        layer = number % layers
        truth = generator.standard_normal(elements)
        one = truth.astype(np.float32)
        other = np.where(generator.random(elements) < 0.5, np.nextafter(one, np.float32(9)), one)
        there = truth + 1e-3 * generator.random(elements) if wrong else truth + 1e-17
        pair = Pair(one, other if not wrong else there.astype(np.float32), truth, there)
        comparison = compare(pair)
        record, name = ("activation", paths[layer]) if number < layers else ("gradient", f"{paths[layer]}.weight")
        row = result_of(record, called(name), called(name), comparison, "init", "reviews-1")
        root = wrong and number == tensors - diverged
        row = replace(row, root=root, detail=detail_of(pair, measure(pair, Tolerance())))
        (forward if record == "activation" else backward).append(row)
    stages = tuple(
        StageResult(step, name, tuple(rows), (called("a note"),))
        for step, name, rows in ((3, "forward", forward), (5, "backward", backward))
        if rows
    )
    trees = [_tree(paths, called, side) for side in ("Linear", "paddle.Linear")]
    roots = tuple(f"{row.record} {row.name}" for row in (*forward, *backward) if row.root)
    found = Finding(
        roots,
        called("step 3 forward: differs"),
        called("a-cause"),
        called("what is wrong"),
        called("change this"),
        "candidate",
        called("it breaks an identity"),
        proof=called("with the correction: relative L2 0.1 → 3e-16"),
        before=0.1,
        after=3e-16,
        evidence=(called("y = xWᵀ + b"),),
        sites=(called("model.py:12 (makes it)"),),
    )
    losses = tuple(2.0 - 0.1 * step for step in range(5))
    twin = TwinResult(
        called("synthetic"),
        called("torch net:Net"),
        called("paddle net:Net"),
        bounded(stages),
        {called("dim"): called("16")},
        ("init",),
        ("reviews-1",),
        called("made up"),
        0,
        notes=(called("a note"),),
        seconds=1.5,
        findings=(found,) if roots else (),
        effect=Effect(1e-3, losses, tuple(loss + 1e-3 for loss in losses), (1e-7,) * 5, called("they part")),
        reference_tree=trees[0],
        candidate_tree=trees[1],
    )
    return Report((twin,), {"alignment": "0", called("torch"): called("2")})


def _tree(paths: list[str], called: Callable[[str], str], kind: str) -> tuple[Module, ...]:
    inner = dict.fromkeys(prefix for path in paths for prefix in _prefixes(path))
    known = {"": "Net", **dict.fromkeys(inner, "ModuleList"), **dict.fromkeys(paths, kind)}
    return tuple(
        Module(called(path) if path in paths else path, called(what), False, called(path) if path in paths else path)
        for path, what in sorted(known.items())
    )


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]
