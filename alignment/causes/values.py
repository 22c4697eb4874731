"""Relations between values: the candidate's tensor is the reference's, scaled, in another order, with a summand less, …

Each is searched for in the numbers, and the correction is what undoes it. Only tensors that a piece of code can reach take
part: what it is given, its weights, and what was computed before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations, permutations, product
from weakref import WeakKeyDictionary

import numpy as np

from alignment.causes.suspect import Array, Cause, Suspect, Tensor, Trial, relative
from alignment.correspondence import path_of

RECORDS = ("input", "activation", "logits")
Finding = tuple[str, str, Array]
"""Name of a cause, a correction in words, and the tensor with it."""

# Elements beyond are masked scores (−10,000 or more): next to them the others would count as rounding.
ORDINARY = 1e3
# Most elements of a tensor for which its columns are compared with each other.
MOST_COLUMNS = 512


# ------------------------------------------------------------------------------------------------------------- what helps


def exact(suspect: Suspect) -> bool:
    """Integers and booleans have no rounding."""
    reference = suspect.root.reference
    return reference is not None and reference.dtype.kind != "f"


def comparable(suspect: Suspect) -> bool:
    """Are there two tensors of one shape, with something in them?"""
    candidate = suspect.candidate
    return candidate is not None and candidate.shape == suspect.reference.shape and candidate.size > 0


def distance(candidate: Array, reference: Array) -> float:
    """Relative L2, also of values whose squares are infinite."""
    if candidate.size == 0:
        return 0.0
    with np.errstate(all="ignore"):
        size = float(np.abs(reference).max())
        if not np.isfinite(candidate).all():
            return math.inf
        return relative(candidate / size, reference / size) if size else relative(candidate, reference)


def close(one: Array, two: Array, dtype: str = "float64") -> bool:
    """Equal but for rounding, both where values are ordinary and where they are masked; NaN is equal to NaN."""
    if one.shape != two.shape:
        return False
    odd = ~(np.isfinite(one) & np.isfinite(two))
    if odd.any() and not np.array_equal(one[odd], two[odd], equal_nan=True):
        return False
    limit = 1e-10 if dtype == "float64" else 1e-5
    for part in (~odd & (np.abs(two) < ORDINARY), ~odd & (np.abs(two) >= ORDINARY)):
        # Beside a mask of −10,000 a score keeps fewer digits.
        rounding = 1e-9 if odd.any() or (np.abs(two) >= ORDINARY).any() else limit
        if part.any() and not distance(one[part], two[part]) <= max(limit, rounding):
            return False
    return True


def tried(suspect: Suspect, change: str, corrected: Array) -> Iterator[Trial]:
    """The trial of a corrected value, in which ordinary elements beside huge ones have to be right as well."""
    reference, candidate = suspect.reference, suspect.candidate
    if candidate is None or corrected.shape != reference.shape:
        return
    same_shape = candidate.shape == reference.shape
    before, after = math.inf, distance(corrected, reference)
    if same_shape:
        counts = ~_aside(candidate, reference)
        before, after = distance(candidate[counts], reference[counts]), distance(corrected[counts], reference[counts])
    if exact(suspect):
        yield Trial(change, before, after, after == 0.0)
        return
    with np.errstate(all="ignore"):
        trials = list(suspect.trial(change, corrected))
    for trial in trials:
        proved = trial.proved and not after > 0.01 * before
        ordinary = np.abs(reference) < ORDINARY
        if not ordinary.all():
            # Among scores of −10,000 and more, the rest is judged by itself.
            limit = 1e-9 if suspect.scene.dtype == "float64" else 1e-4
            left = distance(corrected[ordinary], reference[ordinary])
            was = distance(candidate[ordinary], reference[ordinary]) if same_shape else math.inf
            proved = proved and left <= limit and not left > max(0.01 * was, 1e-11)
        yield replace(trial, before=before, after=after, proved=proved)


def _aside(candidate: Array, reference: Array) -> Array:
    """Elements that both sides mask by about the same number: they would drown the others."""
    with np.errstate(all="ignore"):
        huge = (np.abs(reference) >= ORDINARY) & (np.abs(candidate) >= ORDINARY)
        aside = huge & (np.abs(candidate - reference) <= 0.01 * np.abs(reference))
    return np.zeros_like(aside) if aside.all() else aside


_FOUND: WeakKeyDictionary[Suspect, dict[object, list[Finding]]] = WeakKeyDictionary()


def named(search: Callable[[Suspect], Iterable[Finding]], name: str, suspect: Suspect) -> Iterator[Trial]:
    """Trials of what a search finds under one name; each search runs once for a suspect."""
    known = _FOUND.setdefault(suspect, {})
    if search not in known:
        with np.errstate(all="ignore"):
            known[search] = list(search(suspect))
    for found, change, corrected in known[search]:
        if found == name:
            yield from tried(suspect, change, corrected)


def causes(
    search: Callable[[Suspect], Iterable[Finding]],
    table: Iterable[tuple[str, str, str]],
    records: tuple[str, ...] = RECORDS,
) -> tuple[Cause, ...]:
    """A cause for each name that a search gives: (name, what is wrong, what to change)."""
    return tuple(Cause(name, what, remedy, records, partial(named, search, name)) for name, what, remedy in table)


def words(suspect: Suspect) -> str:
    """The tensor in words."""
    return f"what {suspect.name} is given" if suspect.record == "input" else f"the output of {suspect.name}"


_POOLS: WeakKeyDictionary[Suspect, list[Tensor]] = WeakKeyDictionary()


def pool(suspect: Suspect) -> list[Tensor]:
    """Tensors that may have gone into this one, nearest first: what its code can see, then all that was computed before."""
    if suspect not in _POOLS:
        _POOLS[suspect] = _pool(suspect)
    return _POOLS[suspect]


def _pool(suspect: Suspect) -> list[Tensor]:
    before: list[Tensor] = []
    for record in suspect.scene.reference64.records:
        if (record.kind, record.name) == (suspect.record, suspect.name):
            break
        if record.kind in ("activation", "input") and record.value is not None:
            of = "the output of" if record.kind == "activation" else "what is given to"
            before.append(Tensor(f"{of} {record.name}", np.asarray(record.value)))
    found = (*reversed(suspect.sources), *reversed(before))
    return [Tensor(t.name, t.value.astype(np.float64)) for t in found if t.value.dtype.kind == "f"]


def parts(tensors: Iterable[Tensor], shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Tensors in a shape: as they are, reshaped, and the thirds of a packed projection. Each value once."""
    seen: list[Array] = []
    size = math.prod(shape)
    for tensor in tensors:
        value = tensor.value
        pieces = [(tensor.name, value)]
        if value.ndim and value.size == 3 * size and value.shape[-1] % 3 == 0:
            names = ("the first", "the second", "the last")
            thirds = np.split(value, 3, axis=-1)
            pieces = [(f"{name} third of {tensor.name}", third) for name, third in zip(names, thirds, strict=True)]
        for name, piece in pieces:
            if piece.size == size and not any(np.array_equal(piece.ravel(), known) for known in seen):
                seen.append(piece.ravel())
                yield Tensor(name, piece.reshape(shape))


def kind_of(suspect: Suspect, path: str) -> str:
    """Layer kind of a module of the reference, by torch's name."""
    experiment = suspect.scene.experiment
    modules = {module.path: module.kind for module in experiment.reference.modules(experiment.reference_model)}
    return modules.get(path_of(path), "")


# ------------------------------------------------------------------------------------------------------------ one factor


def _factor(candidate: Array, reference: Array) -> float | None:
    """The c of candidate = c · reference."""
    square = float(reference.ravel() @ reference.ravel())
    if not np.isfinite(square) or square == 0.0 or np.count_nonzero(reference) < 2:
        return None
    c = float(candidate.ravel() @ reference.ravel()) / square
    if not np.isfinite(c) or abs(c) < 1e-12 or abs(c - 1.0) < 1e-12:
        return None
    return c if distance(candidate, c * reference) < 1e-3 * min(1.0, abs(c - 1.0)) else None


def _scaled(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if not comparable(suspect) or exact(suspect) or candidate is None or not np.isfinite(candidate).all():
        return
    masked = (np.abs(reference) >= ORDINARY) & (np.abs(candidate) >= ORDINARY)
    if masked.all():
        return
    c = _factor(candidate[~masked], reference[~masked])
    if c is None:
        return
    name, factor = _name_of(suspect, c)
    change = f"dividing {words(suspect)} by {factor}"
    yield name, change, np.where(masked, candidate, candidate / c)
    if masked.any() and np.abs(reference).max() < 1e300:
        # The mask was added to the scores, not scaled with them.
        added = np.round(np.median(reference[masked]), -3)
        yield name, change, np.where(masked, (candidate - added) / c + added, candidate / c)


def _name_of(suspect: Suspect, c: float) -> tuple[str, str]:
    shape = suspect.reference.shape
    if suspect.record == "input" and kind_of(suspect, suspect.name) == "Softmax":
        widths = {s.value.shape[-1] // n for s in suspect.sources for n in (1, 3) if s.value.ndim}
        square = round(c * c)
        if _is(c, math.sqrt(square)) and square > 1 and any(w % square == 0 and w // square in shape for w in widths):
            return "scale-missing", f"√{square}, the root of a head's width"
        square = round(1 / (c * c))
        if _is(c, math.sqrt(1 / max(square, 1))) and square in shape[1:-1]:
            return "scale-wrong", f"1/√{square}: the root of the whole width stands where that of a head's should"
        if c > 0:
            return "scale-wrong", f"{c:.6g}"
    if _is(c, -1.0):
        return "sign-flipped", "−1"
    for path, rate in _dropouts(suspect).items():
        if rate > 0 and abs(c - (1 - rate)) < 1e-7:
            return "dropout-mode", f"{c:.6g}, 1 − p of {path}"
    counts = {size: f"the length of axis {axis}" for axis, size in reversed(list(enumerate(shape))) if size > 1}
    for size, length in counts.items():
        if _is(c, size) or _is(c, 1 / size):
            return "scaled", f"{c:.6g} ({'' if c > 1 else '1 over '}{length})"
    return "scaled", f"{c:.9g}"


def _dropouts(suspect: Suspect) -> dict[str, float]:
    experiment = suspect.scene.experiment
    return dict(experiment.reference.get_option(suspect.scene.model("reference"), "Dropout", "p"))


def _is(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= 1e-8 * abs(wanted)


# ----------------------------------------------------------------------------------------------------------------- order


def _ordered(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if candidate is None or candidate.size != reference.size or reference.size < 2:
        return
    if exact(suspect) and _counts(reference):
        return
    # The same numbers in another order.
    one, two = np.sort(candidate.ravel()), np.sort(reference.ravel())
    if not close(one, two):
        return
    for name, change, corrected in _rearranged(candidate, reference):
        if close(corrected, reference):
            if name == "sdpa-layout" and _flattens(suspect):
                name = "flatten-order"
            yield name, f"{change}, in {words(suspect)}", corrected
            return


def _sliced(suspect: Suspect) -> Iterator[Finding]:
    """One slice of a tensor along another axis: steps of time taken for rows of the batch."""
    candidate, reference = suspect.candidate, suspect.reference
    if candidate is None or candidate.shape != reference.shape or reference.ndim < 1:
        return
    for source in suspect.sources:
        if source.value.ndim != reference.ndim + 1 or source.value.dtype.kind != "f":
            continue
        for one, two in permutations(range(2), 2):
            if source.value.shape[one] != source.value.shape[two]:
                continue
            ours = (take for take in np.moveaxis(source.value, one, 0) if close(take, reference))
            theirs = (take for take in np.moveaxis(source.value, two, 0) if close(take, candidate))
            right, wrong = next(ours, None), next(theirs, None)
            if right is not None and wrong is not None:
                yield "batch-first", f"slicing {source.name} along axis {one} and not {two}", candidate - wrong + right
                return


def _flattens(suspect: Suspect) -> bool:
    """Is it a picture's channels and positions in one row?"""
    shape = suspect.reference.shape
    return len(shape) == 2 and any(
        t.value.ndim > 3 and t.value.shape[0] == shape[0] and math.prod(t.value.shape[1:]) == shape[1]
        for t in pool(suspect)
    )


def _rearranged(x: Array, reference: Array) -> Iterator[Finding]:
    shape = reference.shape
    for order in permutations(range(x.ndim)) if 1 < x.ndim <= 5 else ():
        if order != tuple(range(x.ndim)) and tuple(x.shape[i] for i in order) == shape:
            name = "batch-first" if order == (1, 0, *range(2, x.ndim)) else "axes-swapped"
            yield name, f"exchanging the axes to {list(order)}", x.transpose(order)
    if x.shape != shape:
        return
    for axis in range(x.ndim):
        if shape[axis] > 1:
            yield "reversed", f"reversing axis {axis}", np.flip(x, axis)
            for step in (1, -1):
                yield "shifted", f"moving axis {axis} by {step}, around the end", np.roll(x, step, axis)
    for i, j in combinations(range(x.ndim), 2):
        swapped = list(shape)
        swapped[i], swapped[j] = shape[j], shape[i]
        what = f"reading axes {i} and {j} in the order they were laid out"
        yield "sdpa-layout", what, x.reshape(swapped).swapaxes(i, j)
    last = shape[-1]
    for heads in (n for n in range(2, last) if last % n == 0):
        inner = (heads, last // heads)
        yield (
            "sdpa-layout",
            f"reading the last axis as {inner[1]} × {heads}",
            x.reshape((*shape[:-1], *inner)).swapaxes(-1, -2).reshape(shape),
        )
        if x.ndim > 2:
            laid = x.reshape((*shape[:-2], heads, shape[-2], last // heads))
            yield "sdpa-layout", f"joining {heads} heads behind their positions", laid.swapaxes(-2, -3).reshape(shape)
    known = _columns(x, reference)
    if known is None:
        return
    columns, width = known
    name, what = ("head-order", f"{len(columns) // width} blocks") if width > 1 else ("features-permuted", "columns")
    yield name, f"putting the {what} of the last axis in order", x[..., columns]


def _columns(x: Array, reference: Array) -> tuple[list[int], int] | None:
    """The order in which columns of the last axis stand, and the width of the blocks that stay together."""
    rows, wanted = x.reshape(-1, x.shape[-1]), reference.reshape(-1, x.shape[-1])
    n = rows.shape[1]
    if not 1 < n <= MOST_COLUMNS or rows.shape[0] < 2:
        return None
    order = [int(np.abs(rows - wanted[:, i : i + 1]).max(axis=0).argmin()) for i in range(n)]
    if sorted(order) != list(range(n)):
        return None
    width = max(w for w in range(1, n) if n % w == 0 and _in_blocks(order, w))
    return order, width


def _in_blocks(order: list[int], width: int) -> bool:
    return all(
        order[i] % width == 0 and order[i + width - 1] == order[i] + width - 1 for i in range(0, len(order), width)
    )


# ------------------------------------------------------------------------------------------------------------- positions


def _counts(reference: Array) -> bool:
    """Is it 0, 1, 2, …?"""
    n = reference.shape[-1] if reference.ndim else 0
    return n > 1 and np.array_equal(reference, np.broadcast_to(np.arange(n), reference.shape))


def _positions(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if not comparable(suspect) or candidate is None:
        return
    if exact(suspect):
        n = reference.shape[-1] if reference.ndim else 0
        if _counts(reference):
            for step in (1, -1):
                change = f"counting the positions given to {suspect.name} from 0 and not from {step}"
                yield "position-off-by-one", change, (candidate - step) % n
        return
    if suspect.kind != "Embedding" or "weight" not in suspect.weights or not suspect.inputs:
        return
    rows, ids = suspect.weights["weight"], suspect.inputs[0]
    if ids.dtype.kind not in "iu" or not close(rows[ids], reference):
        return
    for step in (1, -1):
        wrong = rows[(ids + step) % len(rows)]
        if close(wrong, candidate):
            yield (
                "position-off-by-one",
                f"looking up row n where {suspect.owner} looks up row n {'+' if step > 0 else '−'} 1",
                candidate - wrong + rows[ids],
            )


# -------------------------------------------------------------------------------------------------------------- summands


def _summands(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if not comparable(suspect) or exact(suspect) or candidate is None or not np.isfinite(candidate).all():
        return
    difference = reference - candidate
    if (np.abs(reference) >= ORDINARY).any() or np.ptp(difference) == 0.0:
        return
    # Of a multiple of the reference, zero too, nobody can say that a summand makes the difference.
    factor = _factor(candidate, reference)
    if not candidate.any() or (factor is not None and close(candidate, factor * reference)):
        return
    shape = reference.shape
    for tensor in pool(suspect):
        value = tensor.value
        if value.ndim > len(shape) or value.size < 2 or not value.any():
            continue
        for spread in _spread(value, shape):
            for sign, name in ((1, _summand(suspect, tensor)), (-1, "extra-summand")):
                if close(sign * spread, difference):
                    verb = "adding" if sign > 0 else "subtracting"
                    yield name, f"{verb} {tensor.name} in {words(suspect)}", candidate + sign * spread
                    return
    whole = list(parts(pool(suspect), shape))
    for tensor in whole:
        for sign, name in ((1, "residual-missing"), (-1, "extra-summand")):
            if close(sign * tensor.value, difference):
                verb = "adding" if sign > 0 else "subtracting"
                yield name, f"{verb} {tensor.name} in {words(suspect)}", candidate + sign * tensor.value
                return
        rows = _rows_lost(tensor.value, candidate, reference)
        if rows is not None:
            change = f"adding to the rows of {tensor.name}, and not to zeros, in {words(suspect)}"
            yield "scatter-overwrite", change, candidate + np.where(rows[..., None], tensor.value, 0.0)
            return
    for right, wrong in permutations(whole, 2):
        if close(right.value - wrong.value, difference):
            yield (
                _exchanged(right, wrong),
                f"adding {right.name} where {wrong.name} is added",
                candidate - wrong.value + right.value,
            )
            return


def _summand(suspect: Suspect, tensor: Tensor) -> str:
    if tensor.value.ndim < suspect.reference.ndim and tensor.name.startswith("the output of "):
        path = tensor.name.removeprefix("the output of ")
        return "positions-missing" if kind_of(suspect, path) == "Embedding" else "residual-missing"
    if tensor.name == f"{suspect.owner}.bias":
        return "bias-missing"
    if tensor.value.ndim < suspect.reference.ndim or tensor.value.size < suspect.reference.size:
        # A parameter that reaches other places: what was changed in place is seen under its other names, too.
        others = [root for root in suspect.scene.roots if root.owner == suspect.owner and root.name != suspect.name]
        own = any(tensor.name == f"{suspect.owner}.{local}" for local in suspect.weights)
        return "inplace-alias" if own and not others else "residual-missing"
    return "residual-missing"


def _rows_lost(source: Array, candidate: Array, reference: Array) -> Array | None:
    """Rows in which the candidate lacks the source; None unless it has all others."""
    if reference.ndim < 2:
        return None
    lost = (np.abs(reference - candidate) > 1e-9 * np.abs(reference).max()).any(axis=-1)
    if not lost.any() or lost.all():
        return None
    return lost if close((reference - candidate)[lost], source[lost]) else None


def _spread(value: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """A tensor of fewer axes or elements over a shape, by the rules of broadcasting."""
    if value.size == math.prod(shape):
        return
    try:
        yield np.broadcast_to(value, shape)
    except ValueError:
        return


def _exchanged(right: Tensor, wrong: Tensor) -> str:
    names = {role(right), role(wrong)}
    return "query-key-swapped" if names == {"query", "key"} else "swapped-tensor"


def role(tensor: Tensor) -> str:
    """Whether it is known as a query or a key."""
    last = tensor.name.rpartition(".")[2].rpartition(" ")[2].partition("#")[0].lower()
    if tensor.name.startswith(("the first third of", "the second third of")) and ("qkv" in last or "in_proj" in last):
        return "query" if tensor.name.startswith("the first") else "key"
    for role in ("query", "key"):
        if last in (role, role[0], f"{role}s", f"{role[0]}_proj", f"to_{role[0]}", f"{role}_proj"):
            return role
    return ""


def _swapped(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if not comparable(suspect) or exact(suspect) or candidate is None or reference.size < 2:
        return
    whole = list(parts(pool(suspect), reference.shape))
    if reference.ndim == 4:
        # Heads are apart: features lie by position.
        b, n, h, d = reference.shape
        whole += [Tensor(t.name, t.value.reshape(b, n, h, d)) for t in parts(pool(suspect), (b, n, h * d))]
    rights = [tensor for tensor in whole if close(tensor.value, reference)]
    wrongs = [tensor for tensor in whole if close(tensor.value, candidate)]
    for right, wrong in product(rights[:1], wrongs[:1]):
        yield (
            _exchanged(right, wrong),
            f"giving {right.name} where {wrong.name} is given",
            candidate - wrong.value + right.value,
        )


# ------------------------------------------------------------------------------------------------- offsets, digits, rows


def _offset(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if not comparable(suspect) or exact(suspect) or candidate is None or reference.size < 3:
        return
    difference = candidate - reference
    offset = float(np.median(difference))
    if offset and np.isfinite(offset) and np.ptp(reference) and np.abs(difference - offset).max() < 1e-3 * abs(offset):
        yield "constant-offset", f"subtracting {offset:.6g} from {words(suspect)}", candidate - offset


def _narrow(suspect: Suspect) -> Iterator[Trial]:
    """float64 values that hold float32 digits only: what is compared is what float32 can show."""
    candidate, reference = suspect.candidate, suspect.reference
    if (
        not suspect.scene.live
        or not comparable(suspect)
        or exact(suspect)
        or suspect.scene.dtype != "float64"
        or candidate is None
    ):
        return
    with np.errstate(all="ignore"):
        whole = np.array_equal(candidate, candidate.astype(np.float32)) and candidate.size >= 8
    if not whole or np.array_equal(reference, reference.astype(np.float32)):
        return
    narrow = suspect.scene.reference32.get(suspect.record, suspect.name)
    before = distance(candidate, reference)
    if narrow is None or not 1e-10 < before < 1e-5:
        return
    # The reference's own float32 run has the rounding of all that went before; a few units of the last place are due.
    rounding = np.maximum(np.abs(narrow - reference).max(), 4 * np.finfo(np.float32).eps * np.abs(reference).max())
    left = np.maximum(np.abs(candidate - reference) - rounding, 0.0)
    after = distance(reference + left, reference)
    yield Trial(
        f"comparing {words(suspect)} by the digits of float32, which are all it holds", before, after, after == 0.0
    )


def _padding_row(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    rows = suspect.weights.get("weight")
    if (
        not comparable(suspect)
        or candidate is None
        or rows is None
        or suspect.kind != "Embedding"
        or not suspect.inputs
    ):
        return
    ids = suspect.inputs[0]
    if ids.dtype.kind not in "iu" or (*ids.shape, rows.shape[1]) != reference.shape:
        return
    zero = (candidate == 0.0).all(axis=-1) & (reference != 0.0).any(axis=-1)
    found = np.unique(ids[zero])
    if len(found) == 1 and (zero == (ids == found[0])).all():
        change = f"putting back row {int(found[0])} of {suspect.owner}.weight, where {suspect.owner} gives zeros"
        yield "padding-row", change, np.where(zero[..., None], rows[found[0]], candidate)


def _padded(suspect: Suspect) -> Iterator[Finding]:
    """One picture in two frames of zeros."""
    candidate, reference = suspect.candidate, suspect.reference
    if not comparable(suspect) or exact(suspect) or candidate is None or reference.ndim < 3:
        return
    axes = tuple(range(2, reference.ndim))
    wrong, right = ([_frame(x, axis) for axis in axes] for x in (candidate, reference))
    if wrong == right or sorted(sum(wrong, ())) != sorted(sum(right, ())):
        return
    cut = [slice(low, size - high) for (low, high), size in zip(wrong, reference.shape[2:], strict=True)]
    if any(not 0 <= high < size - low for (low, high), size in zip(wrong, reference.shape[2:], strict=True)):
        return
    index: tuple[slice, ...] = (slice(None), slice(None), *cut)
    corrected = np.pad(candidate[index], [(0, 0), (0, 0), *right])
    change = f"padding {words(suspect)} by {right}, where the candidate pads by {wrong}"
    yield "pad-order", change, corrected


def _frame(x: Array, axis: int) -> tuple[int, int]:
    filled = np.flatnonzero((x != 0.0).any(axis=tuple(i for i in range(x.ndim) if i != axis)))
    return (int(filled[0]), x.shape[axis] - 1 - int(filled[-1])) if len(filled) else (0, 0)


CAUSES: tuple[Cause, ...] = (
    *causes(
        _padding_row,
        (
            (
                "padding-row",
                "the embedding gives zeros for one id, where the reference gives the row that is stored",
                "drop padding_idx=, or make the stored row zero on both sides",
            ),
        ),
    ),
    *causes(
        _positions,
        (("position-off-by-one", "positions are counted from another number", "count positions from 0"),),
    ),
    Cause(
        "precision-lost",
        "float64 values pass through float32",
        "keep the dtype: no astype('float32'), no float32 constants or buffers",
        RECORDS,
        _narrow,
    ),
    *causes(_padded, (("pad-order", "the numbers of padding go to other sides", "give them in the other's order"),)),
    *causes(
        _ordered,
        (
            ("flatten-order", "channels and positions are flattened in another order", "transpose before flattening"),
            ("sdpa-layout", "a tensor is read in a layout it does not have", "transpose where it is only reshaped"),
            ("batch-first", "the first two axes are exchanged", "set batch_first/time_major, or transpose"),
            ("axes-swapped", "axes are exchanged", "transpose them back"),
            ("head-order", "blocks of features (heads) stand in another order", "bring the heads in order"),
            ("features-permuted", "features stand in another order", "bring them in order"),
            ("reversed", "an axis runs backwards", "flip it"),
            ("shifted", "everything stands one further along an axis", "count from the same position"),
        ),
    ),
    *causes(
        _sliced,
        (("batch-first", "the first two axes are exchanged", "set batch_first/time_major, or transpose"),),
    ),
    *causes(
        _swapped,
        (
            ("query-key-swapped", "queries and keys are exchanged", "exchange them back"),
            ("swapped-tensor", "another tensor of the same shape is handed on", "hand on the reference's"),
        ),
    ),
    *causes(
        _summands,
        (
            ("query-key-swapped", "queries and keys are exchanged", "exchange them back"),
            ("positions-missing", "positions are not added", "look the positions up, and add them"),
            ("bias-missing", "the bias is not added", "add the bias"),
            (
                "inplace-alias",
                "a change in place is seen under another name in the reference only",
                "write the sum to both names, or use add_",
            ),
            ("scatter-overwrite", "rows are zeroed before something is added to them", "use index_add, not scatter"),
            ("residual-missing", "a summand is missing", "add it"),
            ("extra-summand", "a tensor is added that the reference does not add", "leave it out"),
            ("swapped-tensor", "another tensor of the same shape is added", "add the reference's"),
        ),
    ),
    *causes(
        _scaled,
        (
            ("scale-missing", "scores are not divided by the root of the head's width", "divide them"),
            ("scale-wrong", "scores are scaled by another number", "scale them by the head's width to the −1/2"),
            ("dropout-mode", "values are multiplied by 1 − p in evaluation mode", 'use mode="upscale_in_train"'),
            ("sign-flipped", "the sign is changed", "change it back"),
            ("scaled", "everything is multiplied by one number", "find the factor"),
        ),
    ),
    *causes(_offset, (("constant-offset", "one number is added to everything", "leave it out"),)),
)
