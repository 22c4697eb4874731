"""Explaining what runs wrote down: figures of a metric, and the order in which the data came. No model is run.

from alignment import Scored, explain_metric, explain_order

for finding in explain_metric("accuracy", Scored(0.71, labels, targets), Scored(0.1083, their_labels, targets[:, None])):
    print(finding.cause, finding.proof, finding.remedy)
for finding in explain_order(torch_batches, paddle_batches, dataset=range(1000), seed=0):
    print(finding.cause, finding.proof, finding.remedy)
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignment.causes import DataSuspect, MetricSuspect, Scored, diagnose
from alignment.causes.data import Samples, out_of_place
from alignment.causes.metrics import LABELLED, METRICS, agree, ordinary
from alignment.errors import AlignmentError
from alignment.experiment import SIDES
from alignment.explain import finding_of
from alignment.report import Finding

BY_DEFINITION = "the reference is the truth by definition"


def explain_metric(name: str, reference: Scored, candidate: Scored) -> tuple[Finding, ...]:
    """Say why two runs report different figures of one metric.

    Args:
        name: ``"accuracy"``, ``"macro_f1"``, ``"macro_f1_of_means"`` (see `alignment.metrics`), ``"mse"`` or ``"mae"``.
        reference, candidate: each side's figure, and what it was made of: predictions and targets of N rows in the shapes
            that the code compares, labels or logits [..., C] for metrics of classes; the rows of each batch where it went
            batch by batch.

    Returns:
        One finding, or none where the figures agree within 1e-6, relatively.

    Raises:
        AlignmentError: no such metric, or a side's predictions, targets and batches do not belong together.
    """
    if name not in METRICS:
        raise AlignmentError(f"unknown metric {name!r}; metrics that can be explained: {', '.join(METRICS)}")
    ours, theirs = _scored(name, "reference", reference), _scored(name, "candidate", candidate)
    if agree(ours.figure, theirs.figure):
        return ()
    due = [ordinary(name, side) for side in (ours, theirs)]
    own = [agree(one, side.figure) for one, side in zip(due, (ours, theirs), strict=True)]
    evidence = [
        f"the {side}'s figure is {'' if right else 'not '}that of its own predictions, row by row, "
        f"all rows at once: {one:.7g}; it was given predictions {list(scored.predictions.shape)} and targets "
        f"{list(scored.targets.shape)}" + (f" in {len(scored.batches)} batches" if scored.batch_sizes else "")
        for side, scored, one, right in zip(SIDES, (ours, theirs), due, own, strict=True)
    ]
    if ours.predictions.size == theirs.predictions.size:
        differing = int((ours.predictions.ravel() != theirs.predictions.ravel()).sum())
        evidence.append(f"{differing} of {ours.predictions.size} predictions differ")
    side, reason = "candidate", BY_DEFINITION
    if own == [False, True]:
        side, reason = "reference", "its figure is not that of its own predictions, and the candidate's is"
    elif own == [True, False]:
        reason = "its figure is not that of its own predictions, and the reference's is"
    symptom = f"{name} is {ours.figure:.7g} on the reference side and {theirs.figure:.7g} on the candidate's"
    found = diagnose(MetricSuspect(name, ours, theirs))
    return (finding_of(found, (f"metric {name}",), symptom, side, reason, tuple(evidence)),)


def _scored(name: str, side: str, given: Scored) -> Scored:
    """The same with arrays, and labels where there were logits."""
    predictions, targets = np.asarray(given.predictions), np.asarray(given.targets)
    if name in LABELLED and predictions.dtype.kind == "f" and predictions.ndim > 1 and predictions.shape[-1] > 1:
        predictions = np.argmax(predictions, axis=-1)
    elif name in LABELLED and predictions.dtype.kind == "f" and not (predictions == np.round(predictions)).all():
        raise AlignmentError(
            f"the {side}'s predictions {list(predictions.shape)} are neither labels nor logits of two classes or more: "
            "give the labels that the metric was made of"
        )
    if not targets.ndim or not targets.size or predictions.shape[:1] != targets.shape[:1]:
        raise AlignmentError(
            f"the {side}'s predictions {list(predictions.shape)} and targets {list(targets.shape)} have not the same rows: "
            "both need their N rows on the first axis"
        )
    if predictions.size != targets.size:
        raise AlignmentError(
            f"the {side}'s predictions {list(predictions.shape)} and targets {list(targets.shape)} are not one to one: "
            "each prediction needs a target"
        )
    sizes = tuple(int(size) for size in given.batch_sizes)
    if sizes and (sum(sizes) != len(targets) or min(sizes) < 1):
        raise AlignmentError(
            f"the {side}'s batches have {sum(sizes)} rows, its targets {len(targets)}: give the rows of each batch, in order"
        )
    return replace(given, figure=float(given.figure), predictions=predictions, targets=targets, batch_sizes=sizes)


def explain_order(
    reference: Iterable[ArrayLike],
    candidate: Iterable[ArrayLike],
    *,
    dataset: Sequence[Hashable] | NDArray,
    seed: int | None = None,
) -> tuple[Finding, ...]:
    """Say why two runs saw other batches, or the same samples in another order.

    Args:
        reference, candidate: the batches of each side, in order, of one epoch: for each the names of its samples [B] (their
            places in the data set, or hashes), or the samples themselves [B, ...], which are hashed here.
        dataset: all samples as they are stored, in the same form: ``range(n)`` where samples are named by their places.
        seed: what the run was seeded with: a number that NumPy takes, 0 to 2**32 - 1.

    Returns:
        One finding for the batches if their sizes differ, and one for the order if that differs as far as both go.

    Raises:
        AlignmentError: a batch is no array of samples, or the seed is none of NumPy's.
    """
    refuse_seed(seed)
    ours, theirs = tuple(map(_names, reference)), tuple(map(_names, candidate))
    stored: Sequence[Hashable] = dataset if isinstance(dataset, range) else _names(dataset)
    findings = []
    batches = DataSuspect("batches", ours, theirs, stored, seed)
    one, two = batches.sizes
    if one != two:
        symptom = (
            f"the reference has {len(one)} batches of {sum(one)} samples in all, the candidate {len(two)} of {sum(two)}; the "
            f"last ones have {one[-1] if one else 0} and {two[-1] if two else 0}"
        )
        found = diagnose(batches)
        findings.append(
            finding_of(found, ("data batches",), symptom, "candidate", BY_DEFINITION, (_of_dataset(batches),))
        )
    order = replace(batches, record="order")
    wrong = out_of_place(order.reference, order.candidate)
    if wrong:
        pairs = enumerate(zip(order.reference, order.candidate, strict=False))
        place, (first, other) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
        symptom = (
            f"{wrong} of {min(len(order.reference), len(order.candidate))} places hold another sample; the first is {place}: "
            f"the reference has {first}, the candidate {other}"
        )
        found = diagnose(order)
        evidence = (_of_dataset(order), *_of_generator(order))
        findings.append(finding_of(found, ("data order",), symptom, "candidate", BY_DEFINITION, evidence))
    return tuple(findings)


def refuse_seed(seed: int | None) -> None:
    """Raise AlignmentError for a seed that NumPy's generator does not take."""
    if seed is not None and not 0 <= seed < 2**32:
        raise AlignmentError(f"seed {seed}: NumPy's generator takes 0 to {2**32 - 1}")


def _of_dataset(suspect: DataSuspect) -> str:
    ours, theirs, stored = set(suspect.reference), set(suspect.candidate), set(suspect.dataset)
    return (
        f"of the {len(suspect.dataset)} samples of the data set the reference has {len(ours & stored)}, the candidate "
        f"{len(theirs & stored)}; {len(ours - theirs)} come on the reference side alone, {len(theirs - ours)} on the candidate's"
    )


def _of_generator(suspect: DataSuspect) -> Iterable[str]:
    for side, draw, number in zip(SIDES, suspect.draws, suspect.by_number, strict=True):
        if suspect.seed is not None:
            yield f"NumPy's global generator: the {side}'s order is {draw or f'none that it draws after seed {suspect.seed}'}"
        elif number is not None:
            yield (
                f"NumPy's generator: the {side}'s order is its first draw after seed {number}, or that of epoch {number} of a "
                "distributed sampler; say what was seeded, and it can be told"
            )


def _names(samples: ArrayLike | Sequence[Hashable]) -> Samples:
    """One name for each sample of a batch."""
    try:
        array = np.asarray(samples)
    except ValueError as error:
        raise AlignmentError(f"a batch is no array of samples: {error}") from error
    if not array.ndim or array.dtype.kind == "O":
        raise AlignmentError(
            f"a batch is no array of samples but {type(samples).__name__}: give the names of its samples [B], "
            "or the samples [B, ...]"
        )
    if array.ndim == 1:
        return tuple(array.tolist())
    wide = array.astype(
        {"f": np.float64, "i": np.int64, "u": np.int64, "b": np.int64}.get(array.dtype.kind, array.dtype)
    )
    return tuple(hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()[:16] for row in wide)
