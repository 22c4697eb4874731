"""Tensors of the state dict that are not the reference's: stored in another order, not loaded, scaled, or rounded.

Weights are copies, so a correction is right only where it gives the reference's tensor bit for bit. The rules stand in
order of how particular they are, and each gives way to those before it that are proved: thirds of a packed projection in
another order could also be called many heads in another order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import permutations

import numpy as np

from alignment.causes.suspect import Array, Cause, Trial, WeightSuspect, relative

# Distinct values a tensor must have before its order means anything: zeros and ones agree with themselves in any order.
DISTINCT = 4
# A correction that explains less than half of the difference is not worth telling.
WORTH_TELLING = 0.5
MOST_HEADS = 64
# Names of projections that hold queries, keys and values (or two of them) one after another.
PACKED = re.compile(r"qkv|q_k_v|in_proj|kv|c_attn|query_key_value", re.IGNORECASE)
RECURRENT = ("LSTM", "GRU")

Rule = Callable[[WeightSuspect], Iterable[Trial]]


def _orders(suspect: WeightSuspect) -> bool:
    """May the tensor be the reference's in another order? Not without enough distinct values, nor with another norm."""
    if suspect.reference.shape != suspect.candidate.shape or suspect.reference.ndim == 0:
        return False
    norms = [float(np.linalg.norm(value.ravel())) for value in (suspect.reference, suspect.candidate)]
    if not np.isfinite(norms).all() or abs(norms[0] - norms[1]) > 0.2 * norms[0]:
        return False
    return _varies(suspect.reference)


def _varies(value: Array) -> bool:
    # A few thousand values mostly tell as well as all of them.
    return any(np.unique(some).size >= DISTINCT for some in (value.ravel()[:4096], value))


def _drawn(value: Array) -> bool:
    """Are these numbers that nobody writes down? Then a few of them are as good as many: no two tensors share them."""
    distinct = np.unique(value)
    return distinct.size > 1 and not np.any(distinct * 1000 == np.round(distinct * 1000))


def _telling(trials: Iterable[Trial]) -> Iterator[Trial]:
    yield from (trial for trial in trials if trial.proved or trial.after < WORTH_TELLING * trial.before)


# ------------------------------------------------------------------------------------------------------- order of axes


def _transposed(of: Callable[[str], bool], suspect: WeightSuspect) -> Iterator[Trial]:
    square = suspect.reference.ndim == 2 and suspect.reference.shape[0] == suspect.reference.shape[1]
    if square and of(suspect.kind) and _orders(suspect):
        yield from _telling(suspect.trial(f"transposing {suspect.name}", suspect.candidate.T))


def _reshaped(suspect: WeightSuspect) -> Iterator[Trial]:
    """An oblong matrix is turned by reshaping it: each row runs on into the next."""
    shape = suspect.reference.shape
    if len(shape) == 2 and shape[0] != shape[1] and 1 not in shape and _orders(suspect):
        change = f"transposing {suspect.name} where it was reshaped to the shape of its transpose"
        yield from _telling(suspect.trial(change, suspect.candidate.T.reshape(shape)))


def _conv_transposed(suspect: WeightSuspect) -> Iterator[Trial]:
    if not suspect.kind.startswith("Conv") or suspect.reference.ndim < 3 or not _orders(suspect):
        return
    axes = range(suspect.reference.ndim)
    for one, two in ((one, two) for one in axes for two in axes if one < two):
        if 1 < suspect.reference.shape[one] == suspect.reference.shape[two]:
            change = f"exchanging axes {one} and {two} of {suspect.name}"
            yield from _telling(suspect.trial(change, suspect.candidate.swapaxes(one, two)))


def _conv_flipped(suspect: WeightSuspect) -> Iterator[Trial]:
    if suspect.kind.startswith("Conv") and suspect.reference.ndim > 2 and _orders(suspect):
        axes = tuple(range(2, suspect.reference.ndim))
        change = f"turning the kernels of {suspect.name} round"
        yield from _telling(suspect.trial(change, np.flip(suspect.candidate, axes)))


# ----------------------------------------------------------------------------------------------------- order of blocks


def _permuted(value: Array, axis: int, count: int, order: Iterable[int]) -> Array:
    """`count` equal blocks of an axis in another order."""
    blocks = np.split(value, count, axis=axis)
    return np.concatenate([blocks[index] for index in order], axis=axis)


def _few_blocks(suspect: WeightSuspect, counts: Iterable[int], what: str) -> Iterator[Trial]:
    """A handful of blocks of rows: every order is tried."""
    for count in counts:
        if suspect.reference.shape[0] % count or suspect.reference.shape[0] < 2 * count:
            continue
        for order in list(permutations(range(count)))[1:]:
            blocks = ", ".join(str(index + 1) for index in order)
            change = f"putting the {count} {what} of {suspect.name} in the order {blocks}"
            trials = list(_telling(suspect.trial(change, _permuted(suspect.candidate, 0, count, order))))
            yield from trials
            if any(trial.proved for trial in trials):
                return


def _gates(suspect: WeightSuspect) -> Iterator[Trial]:
    if suspect.kind.startswith(RECURRENT) and _orders(suspect):
        yield from _few_blocks(suspect, (4,) if suspect.kind.startswith("LSTM") else (3,), "gates")


def _packing(suspect: WeightSuspect) -> Iterator[Trial]:
    """Thirds (or halves, or quarters) of a packed projection, by its shape [n·d, d] or by its name."""
    if suspect.kind.startswith((*RECURRENT, "RNN", "Embedding", "Conv")) or not _orders(suspect):
        return
    path = suspect.name.rpartition(".")[0]
    weight = suspect.reference if suspect.reference.ndim > 1 else suspect.others.get(f"{path}.weight")
    if weight is None or weight.ndim != 2:
        weight = suspect.others.get(suspect.name.replace("bias", "weight"), suspect.reference)
    rows = suspect.reference.shape[0]
    named = PACKED.search(suspect.name) is not None
    counts = [n for n in (2, 3, 4) if rows % n == 0 and (named or (weight.ndim == 2 and rows == n * weight.shape[1]))]
    yield from _few_blocks(suspect, counts, "parts")


def _interleaved(suspect: WeightSuspect) -> Iterator[Trial]:
    """An axis of a · b · c that is read as b · a · c: heads before thirds, or channels after positions."""
    if suspect.kind.startswith("Embedding") or not _orders(suspect):
        return
    for axis in range(min(suspect.reference.ndim, 2)):
        ours, theirs = _slices(suspect, axis, 4)
        before = relative(theirs, ours)
        size = len(ours)
        factors = [(a, b) for a in _divisors(size)[1:] for b in _divisors(size // a)[1:]]
        for a, b in factors:
            order = np.arange(size).reshape(b, a, -1).swapaxes(0, 1).ravel()
            if np.array_equal(order, np.arange(size)) or relative(theirs[order], ours) > WORTH_TELLING * before:
                continue
            change = (
                f"reading axis {axis} of {suspect.name} as ({b}, {a}, {size // (a * b)}) and exchanging the first two"
            )
            yield from _telling(suspect.trial(change, suspect.candidate.take(order, axis)))


def _slices(suspect: WeightSuspect, axis: int, count: int) -> list[Array]:
    """An axis of both tensors at a few places of the others: cheap, and a wrong order doesn't get past it."""
    values = (np.moveaxis(value, axis, 0) for value in (suspect.reference, suspect.candidate))
    return [value.reshape(len(value), -1)[:, :count] for value in values]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _heads(suspect: WeightSuspect) -> Iterator[Trial]:
    """Blocks of rows or columns in another order: the order that brings each next to its likeness."""
    from scipy.optimize import linear_sum_assignment

    if suspect.kind.startswith(("Embedding", "Conv")) or suspect.kind.endswith("Norm") or not _orders(suspect):
        return
    for axis in range(min(suspect.reference.ndim, 2)):
        size = suspect.reference.shape[axis]
        for count in (n for n in _divisors(size) if 1 < n <= min(MOST_HEADS, size // 2)):
            ours, theirs = (v.reshape(count, -1) for v in _slices(suspect, axis, 64))
            apart = (ours**2).sum(1)[:, None] + (theirs**2).sum(1)[None] - 2 * ours @ theirs.T
            order = [int(index) for index in linear_sum_assignment(apart)[1]]
            moved = theirs[order]
            if order == sorted(order) or relative(moved, ours) > WORTH_TELLING * relative(theirs, ours):
                continue
            blocks = ", ".join(str(index + 1) for index in order)
            change = f"putting {count} blocks of axis {axis} of {suspect.name} in the order {blocks}"
            trials = list(_telling(suspect.trial(change, _permuted(suspect.candidate, axis, count, order))))
            yield from trials
            if any(trial.proved for trial in trials):
                return


# ------------------------------------------------------------------------------------------------- not the right values


def _loaded(suspect: WeightSuspect, evidence: str) -> Iterator[Trial]:
    """To load the reference's values is right by itself: the proof is the evidence, that was checked bit for bit."""
    yield Trial(f"loading {suspect.name} ({evidence})", relative(suspect.candidate, suspect.reference), 0.0, True)


def _is_own(suspect: WeightSuspect) -> bool:
    differs = not np.array_equal(suspect.candidate, suspect.reference)
    return differs and suspect.own is not None and np.array_equal(suspect.candidate, suspect.own)


def _bn_buffers_lost(suspect: WeightSuspect) -> Iterator[Trial]:
    if suspect.record == "buffer" and "BatchNorm" in suspect.kind and _is_own(suspect):
        yield from _loaded(suspect, "the candidate's equals its own initial value bit for bit")


def _bias_not_loaded(suspect: WeightSuspect) -> Iterator[Trial]:
    if "bias" in suspect.local and suspect.reference.any() and not suspect.candidate.any():
        yield from _loaded(suspect, "the candidate's is zero throughout")


def _not_loaded(suspect: WeightSuspect) -> Iterator[Trial]:
    if _is_own(suspect):
        yield from _loaded(suspect, "the candidate's equals its own initial value bit for bit")


def _stale(suspect: WeightSuspect) -> Iterator[Trial]:
    if np.array_equal(suspect.candidate, suspect.reference) or not (
        _varies(suspect.candidate) or _drawn(suspect.candidate)
    ):
        return
    for name, value in suspect.others.items():
        if name != suspect.name and value.shape == suspect.candidate.shape and np.array_equal(value, suspect.candidate):
            yield from _loaded(suspect, f"the candidate's equals the reference's {name} bit for bit")
            return


# --------------------------------------------------------------------------------------------------- changed by a factor


def _sign(suspect: WeightSuspect) -> Iterator[Trial]:
    if suspect.reference.shape == suspect.candidate.shape and _varies(suspect.reference):
        yield from _telling(suspect.trial(f"changing the sign of {suspect.name}", -suspect.candidate))


def _scaled(suspect: WeightSuspect) -> Iterator[Trial]:
    """One factor: proved where some number, multiplied and rounded, gives every element.

    Each element allows the factors that round to it; a common factor is one that all of them allow.
    """
    ours, theirs = suspect.reference.ravel(), suspect.candidate.ravel()
    if ours.shape != theirs.shape or not _varies(ours) or not np.isfinite(theirs).all():
        return
    norm = float(ours @ ours)
    factor = float(ours @ theirs) / norm if norm else 0.0
    if factor == 0.0 or abs(abs(factor) - 1.0) < 2.0**-20:
        return
    before, left = relative(theirs, ours), relative(theirs, factor * ours)
    if not left < WORTH_TELLING * before:
        return
    some = ours != 0.0
    single = np.array_equal(theirs.astype(np.float32), theirs)
    half = 0.5 * np.spacing(np.abs(theirs[some]).astype(np.float32 if single else np.float64)).astype(np.float64)
    ends = np.sort(np.stack([(theirs[some] - half) / ours[some], (theirs[some] + half) / ours[some]]), axis=0)
    low, high = float(ends[0].max()), float(ends[1].min())
    # Quotients of float64 are rounded, too.
    common = low <= high + 4 * np.spacing(abs(high)) and not theirs[~some].any()
    factor = 0.5 * (low + high) if common else factor
    change = f"dividing {suspect.name} by {factor:.6g}"
    yield Trial(change, before, relative(theirs / factor, ours), common)


def _bfloat16(value: Array, truncate: bool = False) -> Array:
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32).astype(np.uint64)
    if not truncate:
        bits = bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))
    return (bits & np.uint64(0xFFFF0000)).astype(np.uint32).view(np.float32).astype(np.float64)


def _float16(value: Array) -> Array:
    with np.errstate(over="ignore"):
        return value.astype(np.float16).astype(np.float64)


PRECISIONS: tuple[tuple[str, Callable[[Array], Array]], ...] = (
    ("float16", _float16),
    ("bfloat16", _bfloat16),
    ("bfloat16, cut off", partial(_bfloat16, truncate=True)),
)


def _precision(suspect: WeightSuspect) -> Iterator[Trial]:
    """The reference's values rounded to half precision are the candidate's, bit for bit."""
    before = relative(suspect.candidate, suspect.reference) if suspect.candidate.any() else 1.0
    if suspect.reference.shape != suspect.candidate.shape or not 0.0 < before < 2.0**-6:
        return
    # Values near 1 round to 1, but a tensor of ones may come from elsewhere.
    if not _varies(suspect.candidate):
        return
    for name, rounded in PRECISIONS:
        value = rounded(suspect.reference)
        if not np.isfinite(value).all() or np.array_equal(value, suspect.reference):
            continue
        after = relative(suspect.candidate, value)
        change = f"rounding the reference's {suspect.name} to {name} as well"
        yield from _telling([Trial(change, before, after, after == 0.0)])


# -------------------------------------------------------------------------------------------------------------- causes


def _is(*kinds: str) -> Callable[[str], bool]:
    return lambda given: given.removeprefix("compat.") in kinds


# The matrices of attention are projections, which Paddle keeps in Linear layers.
LINEAR = _is("Linear", "MultiheadAttention")


# (name, what is wrong, what to change, rule), the most particular first.
RULES: tuple[tuple[str, str, str, Rule], ...] = (
    (
        "bn-buffers-lost",
        "a running statistic of a BatchNorm is the initial one: the checkpoint's was not loaded",
        "rename running_mean and running_var to _mean and _variance",
        _bn_buffers_lost,
    ),
    (
        "bias-not-loaded",
        "a bias is zero throughout: it was not loaded",
        "load it, and look at the names that set_state_dict returns",
        _bias_not_loaded,
    ),
    (
        "weight-not-loaded",
        "a tensor holds what the candidate's initialiser gave it: it was not loaded",
        "load it, and look at the names that set_state_dict returns",
        _not_loaded,
    ),
    (
        "stale-layer",
        "a tensor holds the values of another one",
        "correct the name that the conversion reads it from",
        _stale,
    ),
    (
        "precision-lost",
        "a tensor went through half precision",
        "convert the checkpoint in its own dtype",
        _precision,
    ),
    ("sign-flipped", "a tensor has the opposite sign", "take the sign out of the conversion", _sign),
    ("scaled-weight", "a tensor is a multiple of the reference's", "take the factor out of the conversion", _scaled),
    (
        "linear-not-transposed",
        "a square Linear weight is loaded untransposed",
        "transpose it: Paddle stores [in, out], torch [out, in]",
        partial(_transposed, LINEAR),
    ),
    (
        "embedding-transposed",
        "a square Embedding weight is transposed",
        "leave it as it is: both frameworks store [number, width]",
        partial(_transposed, _is("Embedding")),
    ),
    (
        "weight-transposed",
        "a square matrix is transposed",
        "transpose it, or leave the transpose out",
        partial(_transposed, lambda kind: not (LINEAR(kind) or _is("Embedding")(kind))),
    ),
    (
        "weight-reshaped",
        "a matrix is brought to the shape of its transpose by a reshape",
        "transpose where it is reshaped",
        _reshaped,
    ),
    (
        "conv-transposed",
        "two axes of a convolution's kernels are exchanged",
        "leave the kernel as it is: both frameworks store [out, in, ...], and [in, out, ...] for transposed convolution",
        _conv_transposed,
    ),
    (
        "conv-flipped",
        "a convolution's kernels are turned round",
        "leave them as they are: both frameworks correlate",
        _conv_flipped,
    ),
    (
        "gates-reordered",
        "the gates of a recurrent layer are stored in another order",
        "store them as torch does: i, f, g, o (LSTM), r, z, n (GRU)",
        _gates,
    ),
    (
        "mha-packing",
        "the parts of a packed projection are stored in another order",
        "store queries, keys and values in the reference's order",
        _packing,
    ),
    (
        "interleaved",
        "an axis made of several is laid out with two of them exchanged",
        "bring the parts into the reference's order: reshape, exchange the two axes, reshape back",
        _interleaved,
    ),
    (
        "head-order",
        "equal blocks of rows or columns (heads) are stored in another order",
        "store the heads in the reference's order",
        _heads,
    ),
)


def _unless_known(place: int, suspect: WeightSuspect) -> Iterator[Trial]:
    """The trials of a rule, unless one before it is proved."""
    trials = list(RULES[place][3](suspect))
    known = trials and any(trial.proved for *_, rule in RULES[:place] for trial in rule(suspect))
    yield from () if known else trials


CAUSES: tuple[Cause, ...] = tuple(
    Cause(name, summary, remedy, ("parameter", "buffer"), partial(_unless_known, place))
    for place, (name, summary, remedy, _) in enumerate(RULES)
)
