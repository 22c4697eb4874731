"""Large runs: float64 and random weights on a small probe, and the batch that was asked for once in float32.

What two models compute does not depend on how many rows they are given, so the semantics question is asked on a few rows
and tokens with a small vocabulary. The batch itself runs once on each side, as in training; what rounding may do there is
measured on the probe. So a check of a large batch takes as long as running both sides once, a tenth more, and the probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from alignment.compare import EPS32, Comparison, Tolerance, sequential
from alignment.correspondence import rename
from alignment.experiment import Case, Experiment, matrix_elements, plan_layout
from alignment.inputs import declared_spec, make_batches
from alignment.orders import arranged
from alignment.scope import with_reason
from alignment.trace import Record
from checkpoints import Move, undo
from fake_data import Batch

# Multiplications of a forward pass from which the probe is made smaller than the batch; seconds on one core.
LARGE_RUN = 4e9
PROBE_ROWS = 2
PROBE_LENGTH = 8
PROBE_VOCABULARY = 512
# Elements compared at a time: what a core's cache holds of both sides.
BLOCK = 1 << 16
# Tensors of so many elements are kept as sketches: every STRIDE-th element, and sums of NEIGHBOURS.
SKETCH_FROM = 1 << 20
STRIDE, NEIGHBOURS = 16, 64

FULL_SIZE = "full-size"


def make_probe(experiment: Experiment) -> Experiment:
    """The experiment itself where its runs are small; else the same with few rows and tokens, and the words cut to a few."""
    tokens = max(next(iter(batch.inputs.values())).size for batch in experiment.batches)
    slots = experiment.reference.slots(experiment.reference_model)
    own = any(batch.structure is not None for batch in experiment.batches)  # those can't be made smaller
    if tokens * matrix_elements(slots) < LARGE_RUN or experiment.layout is None or own:
        return experiment
    twin, options, settings = experiment.twin, experiment.options, dict(experiment.settings)
    if twin.vocabulary is not None:
        settings[twin.vocabulary] = min(settings[twin.vocabulary], PROBE_VOCABULARY)
    longest = declared_spec(twin, settings).max_length
    batches = make_batches(
        twin,
        settings,
        fixed=True,
        data="fake",
        seed=options.seed,
        batch_size=min(options.batch_size, PROBE_ROWS),
        length=min(options.length or longest, longest, PROBE_LENGTH),
    ).batches
    small = replace(experiment, settings=settings)
    models = {side: small.build(side) for side in ("reference", "candidate")}
    shapes = {slot.name: slot.shape for slot in experiment.reference.slots(models["reference"])}
    weights = {
        name: {full: value[tuple(slice(0, n) for n in shapes[full])] for full, value in state.items()}
        for name, state in experiment.weights.items()
    }
    return replace(
        small,
        reference_model=models["reference"],
        candidate_model=models["candidate"],
        layout=plan_layout(small, models["reference"], models["candidate"]),
        weights=weights,
        batches=(_mixed(batches),),
        threads=1,
        brief=True,
        models={},
        notes=(*experiment.notes, _note(experiment)),
    )


def _mixed(batches: tuple[Batch, ...]) -> Batch:
    """One batch of rows of every kind: ordinary, padded and wholly padded, full, of one token, of boundary ids."""
    first = batches[0]
    shapes = [value.shape[1:] for value in first.inputs.values()]
    alike = [batch for batch in batches if [value.shape[1:] for value in batch.inputs.values()] == shapes]
    # Two rows of the first and of the one with a padded row, one of each other.
    rows = {batch.name: slice(0, 2 if batch is first or batch.name == "padded-row" else 1) for batch in alike}
    inputs = {name: np.concatenate([b.inputs[name][rows[b.name]] for b in alike]) for name in first.inputs}
    targets = None
    if first.targets is not None:
        targets = np.concatenate([b.targets[rows[b.name]] for b in alike if b.targets is not None])
    return Batch("probe", inputs, targets)


def _note(experiment: Experiment) -> str:
    shape = list(next(iter(experiment.batches[0].inputs.values())).shape)
    return f"large batch: float64 and random weights on a probe of a few rows; the batch of {shape} once in float32"


class Shares:
    """How large the reference's float32 error is on the probe: (RMS, largest) of each tensor, and the tensor's own RMS."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], tuple[float, float, float]] = {}
        self.tokens = 1

    def observe(self, case: Case) -> None:
        """Learn from one case of the probe; those with random weights tell nothing about the given ones."""
        if case.weights == "random" and self.known:
            return
        self.tokens = next(iter(case.batch.inputs.values())).size
        for record in case.reference32.records:
            truth = case.reference64.get(record.kind, record.name)
            if record.value is None or truth is None or record.value.dtype.kind != "f":
                continue
            runs = [record.value, *(trace.get(record.kind, record.name) for trace in case.noise)]
            size = math.sqrt(float(np.mean(np.square(record.value, dtype=np.float64))))
            errors = [np.abs(run.astype(np.float64) - truth) for run in runs if run is not None]
            rms = max(math.sqrt(float(np.mean(np.square(error)))) for error in errors)
            self.known[record.kind, record.name] = rms, max(float(error.max()) for error in errors), size

    def error(self, kind: str, name: str, size: float) -> tuple[float, float]:
        """The (RMS, largest) error to expect in a tensor of another size: in proportion, and no less than on the probe.

        What is zero but for rounding has no size to be in proportion to.
        """
        rms, largest, own = self.known.get((kind, name), (0.0, 0.0, 0.0))
        larger = max(1.0, size / own) if own else 1.0
        return max(rms * larger, EPS32 * size), max(largest * larger, EPS32 * size)


def judge_full_size(experiment: Experiment, shares: Shares, backward: bool) -> list[tuple[str, str, str, Comparison]]:
    """Run both sides once on the first batch in float32 and compare every record as it comes.

    Returns (record, reference's name, candidate's name, comparison) of each.
    """
    assert experiment.layout is not None
    state = next(iter(experiment.weights.values()))
    batch = experiment.batches[0]
    model, held = experiment.plain_reference(), experiment.model("candidate", "float32")
    candidate = held.module
    if held.user != FULL_SIZE:
        experiment.reference.load_state(model, state)
        experiment.candidate.load_state(candidate, experiment.candidate_state(state))
        held.user = FULL_SIZE
    known: dict[tuple[str, str], Sketch] = {}

    def learn(record: Record) -> None:
        if record.value is not None and record.value.dtype.kind == "f":
            known[record.kind, record.name] = sketch(record.value)

    experiment.run("reference", model, batch, backward, brief=True, sink=learn)
    moves: dict[str, list[Move]] = {}
    for move in experiment.layout.moves:
        moves.setdefault(move.target, []).append(move)
    called = experiment.called
    tokens = next(iter(batch.inputs.values())).size
    found: list[tuple[str, str, str, Comparison]] = []

    def compare(record: Record) -> None:
        for move in moves.get(record.name, [None]) if record.kind == "gradient" else [None]:
            compare_moved(record, move)

    def compare_moved(record: Record, move: Move | None) -> None:
        label = move.label if move else rename(record.name, called) if record.kind == "activation" else record.name
        theirs = arranged(replace(record, name=label), experiment.orders).value
        if theirs is not None and theirs.dtype.kind != "f":
            return  # integers are compared on the probe; where the reference has numbers, what is left below says so
        ours = known.pop((record.kind, label), None)
        if move is not None and theirs is not None and theirs.shape == move.shape_to:
            theirs = undo(theirs, move)
        if ours is None and theirs is None:
            return
        # Longer sums round more: activations over the tokens of a row, gradients over all of them, some one by one.
        growth = math.sqrt(max(1.0, tokens / shares.tokens)) * (
            sequential(tokens) if record.kind == "gradient" else 1.0
        )
        expected = partial(shares.error, record.kind, label)
        own = experiment.scope.own(label, record.name)
        comparison = _compare(ours, theirs, expected, growth)
        if own is not None:
            mine = _compare(ours, theirs, expected, growth, own.tolerance)
            comparison = with_reason(mine, comparison, own)
        found.append((record.kind, label, record.name, comparison))

    experiment.run("candidate", candidate, batch, backward, brief=True, sink=compare)
    found += [(kind, label, label, _missing("candidate")) for kind, label in known]
    return found


@dataclass(frozen=True)
class Sketch:
    """What is kept of a tensor until the other side has it: all of a small one; of a large one every 16th element, and the
    sum of every 64 neighbours, in which no element can change unseen. values and sums are float32, flat.
    """

    shape: tuple[int, ...]
    values: NDArray
    sums: NDArray | None


def sketch(value: NDArray) -> Sketch:
    """The sketch of a tensor; owns its memory."""
    flat = np.ascontiguousarray(value).ravel()
    if flat.size < SKETCH_FROM:
        return Sketch(value.shape, flat.copy(), None)
    whole = flat.size // NEIGHBOURS * NEIGHBOURS
    # No BLAS product here or below: its threads, waiting for the next, would take the cores from the models.
    sums = np.einsum("ij->i", flat[:whole].reshape(-1, NEIGHBOURS))
    return Sketch(value.shape, flat[::STRIDE].copy(), np.append(sums, flat[whole:].sum(dtype=flat.dtype)))


def _missing(side: str) -> Comparison:
    return Comparison("diverged", "metadata", f"missing on the {side} side", strain=math.inf)


def _compare(
    ours: Sketch | None,
    value: NDArray | None,
    expected: Callable[[float], tuple[float, float]],
    growth: float,
    tolerance: Tolerance | None = None,
) -> Comparison:
    if ours is None or value is None:
        return _missing("reference" if ours is None else "candidate")
    if ours.shape != value.shape:
        reason = f"shape: reference {list(ours.shape)}, candidate {list(value.shape)}"
        return Comparison("diverged", "metadata", reason, ours.shape, strain=math.inf)
    if not value.size:
        return Comparison("inconclusive", "metadata", "empty: nothing was compared", ours.shape)
    theirs = sketch(value)
    size, rms, largest, where = _figures(ours.values, theirs.values)
    ratio = (tolerance or Tolerance()).precision_ratio * growth
    allowed, allowed_largest = (ratio * error for error in expected(size))
    allowed_largest = max(allowed_largest, 4 * ratio * EPS32 * float(np.abs(ours.values[where])))
    seen = [("RMS", rms, allowed), ("largest", largest, allowed_largest)]
    position, apart = where * (1 if ours.sums is None else STRIDE), 0.0
    if ours.sums is not None and theirs.sums is not None:
        # Independent roundings of 64 numbers add up to 8 times one of them; a sum rounds by its own size besides.
        total, apart, largest_sum, block = _figures(ours.sums, theirs.sums)
        seen.append(
            ("largest sum of 64 neighbours", largest_sum, NEIGHBOURS**0.5 * allowed_largest + ratio * EPS32 * total)
        )
        position = block * NEIGHBOURS if largest_sum > seen[-1][2] else position
    if not all(math.isfinite(figure) for figure in (size, apart, *(figure for _, figure, _ in seen))):
        same = np.array_equal(np.isfinite(ours.values), np.isfinite(theirs.values)) and (
            ours.sums is None or theirs.sums is None or np.array_equal(np.isfinite(ours.sums), np.isfinite(theirs.sums))
        )
        reason = "NaN or infinite values " + ("at the same places: no evidence" if same else "on one side only")
        return Comparison(
            "inconclusive" if same else "diverged", "metadata", reason, ours.shape, "float32", strain=math.inf
        )
    strains = [figure / limit if limit else (math.inf if figure else 0.0) for _, figure, limit in seen]
    worst = int(np.argmax(strains))
    what, figure, limit = seen[worst]
    aligned = strains[worst] <= 1.0
    reason = (
        f"the whole batch in float32 differs by {figure:.2g} ({what}), rounding as on the probe explains {limit:.2g}"
    )
    return Comparison(
        "aligned" if aligned else "diverged",
        "precision",
        reason,
        ours.shape,
        "float32",
        largest,
        rms / size if size else (0.0 if rms == 0.0 else math.inf),
        None,
        tuple(int(i) for i in np.unravel_index(min(position, value.size - 1), ours.shape)),
        figure,
        limit,
        strains[worst],
    )


def _figures(one: NDArray, two: NDArray) -> tuple[float, float, float, int]:
    """RMS of the first, RMS and largest of the difference and where, in one pass, block by block."""
    squares = difference = largest = 0.0
    where = 0
    buffer = np.empty(min(BLOCK, one.size), dtype=one.dtype)
    for start in range(0, one.size, BLOCK):
        a, b = one[start : start + BLOCK], two[start : start + BLOCK]
        d = buffer[: len(a)]
        squares += float(np.einsum("i,i->", a, a))
        np.subtract(a, b, out=d)
        difference += float(np.einsum("i,i->", d, d))
        np.abs(d, out=d)
        position = int(d.argmax())
        if d[position] > largest:
            largest, where = float(d[position]), start + position
    count = max(1, one.size)
    return math.sqrt(squares / count), math.sqrt(difference / count), largest, where
