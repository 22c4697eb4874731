"""Does a side compute the same when it is run twice? What draws random numbers can't be compared, only be named.

Asked where something diverged alone: an aligned check costs nothing for it, one that diverged three further detailed runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alignment.compare import EPS32, EPS64, Tolerance
from alignment.correspondence import path_of
from alignment.errors import AlignmentError
from alignment.experiment import SIDES, Experiment
from alignment.localise import Scene, first_is_root, row_of
from alignment.report import StageResult, TensorResult
from alignment.sources import class_site, short_site
from alignment.trace import Kind, Trace, widest

Key = tuple[Kind, str]

_FORWARD = ("input", "activation", "logits", "output", "loss")
# What is computed outside the models, and so stands in no trace.
_OF_LOGITS = ("metric", "loss")


@dataclass(frozen=True)
class Judged:
    """Stages in which what is random is inconclusive, and a note on each side that is."""

    stages: tuple[StageResult, ...]
    notes: tuple[str, ...] = ()


def judge_randomness(experiment: Experiment, stages: tuple[StageResult, ...], scenes: tuple[Scene, ...]) -> Judged:
    """Call inconclusive what diverged and is random, with where that starts.

    In evaluation mode a candidate that is random where the reference is not differs by that, and stays diverged.
    What is wrong besides stays so, too: a piece of code that computes the same twice from the reference's own values.
    The roots of `scenes` that are random are taken out of them.
    """
    if not scenes:
        return Judged(stages)
    try:
        said = {side: found for side in SIDES if (found := _random(scenes[0], side))}
        if not said:
            return Judged(stages)
        starts = {side: _start(scenes[0], side, found) for side, found in said.items()}
        notes = tuple(f"the {side} isn't deterministic in {_mode(experiment)}: {at}" for side, at in starts.items())
        if experiment.mode == "eval" and "reference" not in said:
            return Judged(stages, notes)
        for scene in scenes:
            pieces = _random_pieces(scene)
            scene.roots = tuple(root for root in scene.roots if (root.kind, root.name) not in pieces)
    except AlignmentError as error:  # it ran before; what the stages found stands
        return Judged(stages, (f"whether both sides are deterministic could not be tried: {error}",))
    keys = frozenset(key for found in said.values() for key in found)
    kept = {row_of(root) for scene in scenes for root in scene.roots}
    reason = f"{notes[0]}; what is computed from that can't be compared"
    stages = tuple(
        replace(stage, tensors=tuple(_row(tensor, keys, kept, reason) for tensor in stage.tensors)) for stage in stages
    )
    if not any(tensor.root for stage in stages for tensor in stage.tensors):
        stages = first_is_root(stages)
    return Judged(stages, notes)


def _mode(experiment: Experiment) -> str:
    return "training mode" if experiment.mode == "train" else "evaluation mode"


def _row(tensor: TensorResult, keys: frozenset[Key], kept: set[tuple[str, str]], reason: str) -> TensorResult:
    if tensor.verdict != "diverged" or (tensor.record, tensor.name) in kept or not _depends(tensor, keys):
        return tensor
    return replace(tensor, verdict="inconclusive", reason=reason, root=False, diverging=(), decided_by=None)


def _depends(tensor: TensorResult, keys: frozenset[Key]) -> bool:
    """Is a row of what is random?"""
    names = {tensor.name, tensor.reference_name, tensor.candidate_name}
    if any(kind == tensor.record and name in names for kind, name in keys):
        return True
    if tensor.record == "update":  # of a parameter by its gradient, of a running statistic by what its layer is given
        owner = tensor.name.rpartition(".")[0]
        return any((kind == "gradient" and name in names) or path_of(name) == owner for kind, name in keys)
    return tensor.record in _OF_LOGITS and ("logits", "logits") in keys


def _random(scene: Scene, side: str) -> dict[Key, None]:
    """What differs between two float64 runs of one side, in the order it came to be; in the reference's words."""
    first = scene.reference64 if side == "reference" else scene.run("candidate", "float64")
    return _differing(first, scene.run(side, "float64"))


def _random_pieces(scene: Scene) -> frozenset[Key]:
    """What differs though all it is computed from is the same: of the candidate in two forced runs, of the reference in one."""
    forced = scene.forced_run
    again = _differing(forced, scene.forced())
    return frozenset((*again, *_differing(scene.given, scene.forced(side="reference"))))


def _differing(one: Trace, two: Trace) -> dict[Key, None]:
    """Records of two runs of one model that are apart by more than float64's rounding may be in other orders of summation."""
    eps = EPS64 if one.dtype == "float64" else EPS32
    gradients = widest([record.value for record in one.records if record.kind not in _FORWARD])
    found: dict[Key, None] = {}
    for record in one.records:
        size = widest([record.value]) if record.kind in _FORWARD else gradients
        if not _same(record.value, two.get(record.kind, record.name), Tolerance().semantics_margin * eps * size):
            found[record.kind, record.name] = None
    return found


def _same(one: NDArray | None, two: NDArray | None, allowed: float) -> bool:
    if one is None or two is None or one.shape != two.shape:
        return one is two
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, two))
    return bool(np.allclose(one, two, rtol=0.0, atol=allowed, equal_nan=True))


def _start(scene: Scene, side: str, found: Mapping[Key, None]) -> str:
    """What is random first, and the line of source."""
    kind, name = next(iter(found))
    experiment = scene.experiment
    framework, _ = experiment.side(side)
    model = experiment.model(side, "float64").module
    path = path_of(name) if kind in ("activation", "input") else ""
    own = path if side == "reference" else experiment.paths.get(path, experiment.own_words.get(path, path))
    trace = scene.reference64 if side == "reference" else scene.forced_run
    if kind == "input":
        site = trace.sites.get(name.partition("[")[0])
        return f"two runs of it differ first in what {own or 'the model'} is given" + (
            f" at {short_site(site)}" if site else ""
        )
    cls = type(framework.module(model, own))
    source = class_site(cls)
    what = f"what {own}, a {cls.__name__}, computes" if own else f"what the {cls.__name__} itself computes"
    return f"two runs of it differ first in {what}" + (f" ({source})" if source else "")
