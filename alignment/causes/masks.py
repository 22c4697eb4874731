"""Masks: inverted, ignored, added as 0 and 1, or with another number at the padded positions.

Which positions are real is read from the masks and ids that the code can see; the correction masks the candidate's own
scores as the reference masks its.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from itertools import combinations, permutations

import numpy as np

from alignment.causes.functions import attention_scores
from alignment.causes.suspect import Array, Cause, Suspect, Trial
from alignment.causes.values import ORDINARY, Finding, causes, close, comparable, exact, pool, words

RECORDS = ("input", "activation")
# Numbers that stand for "never" where scores are masked.
FILLS = (-1e4, -1e9, -1e5, -1e6, -1e8, -1e30, -3.4028234663852886e38, -1.7976931348623157e308)


def _inverted_mask(suspect: Suspect) -> Iterator[Finding]:
    """The mask itself: real where it is padding, and padding where it is real."""
    candidate, reference = suspect.candidate, suspect.reference
    if not comparable(suspect) or candidate is None:
        return
    values = np.unique(reference)
    if len(values) > 2 or not set(np.unique(candidate)) <= {0.0, 1.0} or not set(values) <= {0.0, 1.0}:
        return
    if exact(suspect) or len(values) == 2:
        yield "mask-inverted", f"inverting {words(suspect)}", 1.0 - candidate


def _inverted_input(suspect: Suspect) -> Iterator[Trial]:
    """What the code is given says which positions are real: the candidate is run again with that the other way round."""
    if suspect.candidate is None or suspect.candidate.shape != suspect.reference.shape:
        return
    for name, value in suspect.given.items():
        if value.size and np.isin(value, (0, 1)).all():
            corrected = suspect.again(inputs={name: (1 - value).astype(value.dtype)})
            if corrected is not None:
                yield from suspect.trial(f"inverting {_argument(suspect, name)}", corrected)


def _argument(suspect: Suspect, name: str) -> str:
    """An argument of the owner's forward, by the candidate's name for it where its place leads to one."""
    if not suspect.owner:
        return f"{name}, an input of the model"
    place = name.partition("[")[2].rstrip("]") or "0"
    experiment = suspect.scene.experiment
    module = experiment.candidate.module(suspect.scene.model("candidate"), experiment.paths[suspect.owner])
    known = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if place.isdigit() and int(place) < len(known):
        place = known[int(place)]
    return f"input `{place}` of {suspect.owner}"


def spreads(mask: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """A mask over the positions of a tensor, in every way its axes can be the tensor's, in order."""
    mask = mask.reshape([size for size in mask.shape if size > 1])
    for axes in combinations(range(len(shape)), mask.ndim):
        if tuple(shape[axis] for axis in axes) == mask.shape:
            wide = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
            yield np.broadcast_to(mask.reshape(wide), shape)


def real(suspect: Suspect) -> Iterator[Array]:
    """Which elements are at real positions, by each mask there is: where the reference's scores at the others are huge.

    A tensor of real positions only, or of padding only, says nothing about which mask is meant.
    """
    seen: list[bytes] = []
    for tensor in suspect.masks():
        for sign in (False, True):
            for spread in spreads(tensor.value ^ sign, suspect.reference.shape):
                if spread.all() or spread.tobytes() in seen:
                    continue
                seen.append(spread.tobytes())
                huge = suspect.reference <= -ORDINARY
                if huge[~spread].all() and not huge[spread].any():
                    yield spread


def bases(suspect: Suspect, where: Array, wanted: Array) -> Iterator[Array]:
    """Scores before masking that are the wanted ones in some places.

    Either an earlier tensor, its axes in any order, times one number fitted there; or queries times keys.
    """
    shape = suspect.reference.shape
    sizes = [size for size in shape if size > 1]
    for tensor in pool(suspect):
        squeezed = tensor.value.reshape([size for size in tensor.value.shape if size > 1])
        if sorted(squeezed.shape) != sorted(sizes) or squeezed.ndim > 4:
            continue
        for order in permutations(range(squeezed.ndim)):
            moved = squeezed.transpose(order)
            if list(moved.shape) != sizes:
                continue
            moved = moved.reshape(shape)
            one, two = moved[where], wanted[where]
            square = float(one @ one)
            # A fit through one element is none.
            c = float(one @ two) / square if square and one.size > 1 else 0.0
            if c and np.abs(c * one - two).max() <= 1e-9 * max(1.0, float(np.abs(two).max())):
                yield c * moved
    for _, scores in attention_scores(suspect):
        if close(scores[where], wanted[where], suspect.scene.dtype):
            yield scores


def _masked(suspect: Suspect) -> Iterator[Finding]:
    """Scores that should be masked. The candidate's, without its own mask, are masked as the reference's are."""
    candidate, reference = suspect.candidate, suspect.reference
    if not comparable(suspect) or exact(suspect) or candidate is None or np.isnan(candidate).any():
        return
    for keep in real(suspect):
        for fill, adds in _fills(reference, keep):
            for name, change, corrected in _corrections(suspect, candidate, keep, fill, adds):
                if close(corrected, reference, suspect.scene.dtype):
                    how = f"{change}, in {words(suspect)}: {_word(fill)} {'added' if adds else 'put'} where padding is"
                    yield name, how, corrected
                    return


def _fills(reference: Array, keep: Array) -> Iterator[tuple[float, bool]]:
    """What the reference puts at masked positions, or adds there."""
    huge = reference[~keep]
    if np.ptp(huge / np.abs(huge).max()) == 0.0:
        yield float(huge[0]), False
    if np.abs(huge).max() < 1e300:
        middle = float(np.median(huge))
        yield min(FILLS, key=lambda fill: abs(math.log(fill / middle))), True


def _apply(base: Array, keep: Array, fill: float, adds: bool) -> Array:
    return np.where(keep, base, base + fill if adds else fill)


def _corrections(suspect: Suspect, candidate: Array, keep: Array, fill: float, adds: bool) -> Iterator[Finding]:
    reference = suspect.reference
    ordinary = np.abs(candidate) < ORDINARY
    if ordinary.all():
        yield "mask-ignored", "masking", _apply(candidate, keep, fill, adds)
        for mask, where in ((keep, "real"), (~keep, "padding")):
            change = f"taking back the 1 that is added at {where} positions, and masking"
            yield "mask-added-as-0/1", change, _apply(candidate - mask, keep, fill, adds)
        return
    lowest = float(candidate[~ordinary].max())
    if (ordinary == keep).all() and close(candidate[keep], reference[keep]):
        # The same positions are masked, with another number.
        if not adds:
            yield (
                "mask-magnitude",
                f"masking by {_word(fill)} and not {_word(lowest)}",
                _apply(candidate, keep, fill, adds),
            )
            return
        yield from (
            ("mask-magnitude", f"masking by {_word(fill)} and not {_word(lowest)}", _apply(base, keep, fill, adds))
            for base in _restored(suspect, candidate, keep, fill)
        )
    if (ordinary == ~keep).all():
        if adds:
            base = np.where(keep, candidate - fill, candidate)
            yield "mask-inverted", "masking padding and not real positions", _apply(base, keep, fill, adds)
        for base in bases(suspect, keep, reference):
            if close(base[~keep], candidate[~keep], suspect.scene.dtype):
                yield "mask-inverted", "masking padding and not real positions", _apply(base, keep, fill, adds)


def _restored(suspect: Suspect, candidate: Array, keep: Array, fill: float) -> Iterator[Array]:
    """The candidate's scores with what its own mask hides put back."""
    for lowest in sorted({float(candidate[~keep].max()), *FILLS}):
        if np.isfinite(lowest) and np.ptp(candidate[~keep]) > 0.0:
            yield np.where(keep, candidate, candidate - lowest)
    for where, offset in ((keep, 0.0), (~keep, fill)):
        for base in bases(suspect, where, suspect.reference - offset):
            yield np.where(keep, candidate, base)


def _word(value: float) -> str:
    if value == -math.inf:
        return "−∞"
    for dtype in (np.float32, np.float64):
        if value == -float(np.finfo(dtype).max):
            return f"−max of {np.dtype(dtype).name}"
    return f"{value:.6g}".replace("-", "−")


CAUSES: tuple[Cause, ...] = (
    Cause(
        "mask-inverted",
        "the code takes True for False in a mask that it is given",
        "invert the mask (~mask) there",
        ("input", "activation", "logits"),
        _inverted_input,
    ),
    *causes(
        _inverted_mask,
        (("mask-inverted", "the mask is True where the reference's is False", "invert the mask (~mask)"),),
        RECORDS,
    ),
    *causes(
        _masked,
        (
            ("mask-ignored", "scores of padded positions are not masked", "mask them"),
            ("mask-added-as-0/1", "the mask is added to the scores as 0 and 1", "add (1 − mask) times a large number"),
            ("mask-inverted", "real positions are masked and padding is not", "invert the mask (~mask)"),
            (
                "mask-magnitude",
                "padded positions get another number: where nothing is real, the results differ",
                "use the reference's number, and add it where the reference adds it",
            ),
        ),
        RECORDS,
    ),
)
