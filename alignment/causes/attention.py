"""Attention within one piece of code: scores, masks and softmax that no module computes, and so nothing records.

A `Formula` is one way to make the result of queries, keys and values. One gives what the reference has, another that
differs from it in one thing gives what the candidate has: that one thing is the cause.

Source of the formula: Vaswani et al., arXiv 1706.03762, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np

from alignment.causes.functions import softmax
from alignment.causes.masks import spreads
from alignment.causes.suspect import Array, Suspect, Tensor
from alignment.causes.values import ORDINARY, Finding, causes, close, comparable, exact, role, words

RECORDS = ("input", "activation", "logits")
# Tensors that are tried as queries, keys and values, nearest first.
MOST_TENSORS = 5
# Queries times keys; of more nothing is tried.
MOST_SCORES = 1_000_000
# Queries of one element of the batch by which a formula is ruled out.
MOST_ROWS = 4
ALL = slice(None)
NOTHING = "nothing"
CAUSAL = "later positions"
QUERIES = " over the queries"
# (by number what is put to, or added to, the scores of masked positions), as libraries do it.
PUT, ADDED = "put", "added"
FILLS = (
    *((PUT, fill) for fill in (-1e9, -np.inf, -1e4, -3.4028234663852886e38, -1.7976931348623157e308)),
    *((ADDED, fill) for fill in (-1e4, -1e9, -3.4028234663852886e38)),
)
# And as they should not: the mask as 1 or 0 added to scores, or multiplied with them, or with their softmax.
MISTAKEN = ("1 where real", "1 where masked", "product", "after")


@dataclass(frozen=True)
class Formula:
    """One way to compute attention.

    q, k, v: which of the given tensors. heads, scale: scores are divided by the root of a head's width ("head") or of the
    whole ("width"), or not ("none"). mask: by name. filled: how masked positions are marked, and by what number; one of
    FILLS, or of MISTAKEN. over: axis of the softmax, "keys" or "queries". split: are heads "apart" (reshaped, then
    transposed), or reshaped "alone"?
    """

    q: int
    k: int
    v: int
    heads: int
    scale: str = "head"
    mask: str = NOTHING
    filled: tuple[str, float] = FILLS[0]
    over: str = "keys"
    split: str = "apart"


@dataclass(frozen=True)
class Given:
    """What attention is computed of: tensors b n (h d), masks b n m by name, True where positions count."""

    tensors: tuple[Tensor, ...]
    masks: dict[str, Array]


def attention(given: Given, formula: Formula, batch: slice = ALL, queries: Array | slice = ALL) -> Array:
    """b n (h d) of a formula, or some elements of the batch and some queries of it."""
    tensors = (given.tensors[index].value[batch] for index in (formula.q, formula.k, formula.v))
    q, k, v = (_split(x, formula.heads, formula.split) for x in tensors)
    q = q[:, :, queries]
    width = {"head": q.shape[-1], "width": q.shape[-1] * formula.heads, "none": 1}[formula.scale]
    with np.errstate(all="ignore"):
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(width)
        if formula.mask == NOTHING:
            weights = softmax(scores, -1 if formula.over == "keys" else -2)
        else:
            weights = _masked(scores, given.masks[formula.mask][batch, None, queries], formula)
        context = weights @ v
    b, h, n, d = context.shape
    return np.asarray(context.transpose(0, 2, 1, 3).reshape(b, n, h * d))


def _split(x: Array, heads: int, how: str) -> Array:
    b, n, width = x.shape
    if how == "alone":
        return x.reshape(b, heads, n, width // heads)
    return x.reshape(b, n, heads, width // heads).transpose(0, 2, 1, 3)


def _masked(scores: Array, keep: Array, formula: Formula) -> Array:
    """The softmax of masked scores, or what stands for it."""
    how, fill = formula.filled
    axis = -1 if formula.over == "keys" else -2
    if how == "after":
        return softmax(scores, axis) * keep
    if how == PUT:
        marked = np.where(keep, scores, fill)
    elif how == ADDED:
        marked = scores + np.where(keep, 0.0, fill)
    elif how == "product":
        marked = scores * keep
    else:
        marked = scores + (keep if how == "1 where real" else ~keep)
    return softmax(marked, axis)


# ------------------------------------------------------------------------------------------------------------ the search


def _attention(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if not comparable(suspect) or exact(suspect) or candidate is None or reference.ndim != 3:
        return
    if not np.isfinite(reference).all() or close(candidate, reference, suspect.scene.dtype):
        return
    given = _given(suspect)
    if given is None:
        return
    right = next(_right(given, reference, suspect.scene.dtype), None)
    if right is None:
        return
    for name, change, wrong in _changes(given, right):
        value = attention(given, wrong)
        if close(value, candidate, suspect.scene.dtype):
            one = attention(given, right)
            corrected = np.where(np.isfinite(candidate), candidate - value + one, one)
            yield name, f"{change}, in {words(suspect)}", corrected
            return


def _given(suspect: Suspect) -> Given | None:
    """The tensors that may be queries, keys and values of the reference's result; None where there are too few."""
    b, n, width = suspect.reference.shape
    tensors: list[Tensor] = []
    for tensor in suspect.sources:
        value = tensor.value
        if not tensor.name.startswith("the output of ") or value.dtype.kind != "f" or value.ndim != 3:
            continue
        if value.shape == (b, n, 3 * width):
            thirds = zip(("first", "second", "last"), np.split(value, 3, axis=-1), strict=True)
            tensors += [Tensor(f"the {which} third of {tensor.name}", third) for which, third in thirds]
        elif value.shape[0] == b and value.shape[2] == width:
            tensors.append(tensor)
    tensors = tensors[-MOST_TENSORS:]
    m = max((t.value.shape[1] for t in tensors if t.value.shape[1] != n), default=n)
    tensors = [t for t in tensors if t.value.shape[1] in (n, m)]
    if len(tensors) < 3 or n * m > MOST_SCORES:
        return None
    return Given(tuple(tensors), _masks(suspect, (b, n, m)))


def _masks(suspect: Suspect, shape: tuple[int, int, int]) -> dict[str, Array]:
    """Every mask there is over queries and keys, over the keys first; each value once."""
    found: dict[str, Array] = {}
    seen: list[bytes] = []
    b, n, m = shape
    for tensor in (*suspect.masks(), *_additive(suspect)):
        # The axes of `spreads` come in order: those of batch and keys last.
        for spread in reversed(list(spreads(tensor.value, (b, n, m)))):
            queries = tensor.value.size == b * n and bool((spread == spread[:, :, :1]).all())
            name = tensor.name + (QUERIES if queries else "")
            if not spread.all() and spread.tobytes() not in seen and name not in found:
                seen.append(spread.tobytes())
                found[name] = spread
    if n == m and n > 1:
        found |= {f"{name} and {CAUSAL}": mask & np.tri(n, dtype=bool) for name, mask in found.items()}
        found[CAUSAL] = np.broadcast_to(np.tri(n, dtype=bool), shape)
    return found


def _additive(suspect: Suspect) -> Iterator[Tensor]:
    """Masks that are added: zeros, and numbers far below all scores."""
    for tensor in suspect.sources:
        value = tensor.value
        if value.dtype.kind == "f" and value.size and ((value == 0) | (value <= -ORDINARY)).all() and value.any():
            yield Tensor(tensor.name, value == 0)


def _right(given: Given, wanted: Array, dtype: str) -> Iterator[Formula]:
    """Formulas that give the reference's value; looked for in a few rows of one element of the batch first."""
    n, width = wanted.shape[1:]
    last, rows = slice(-1, None), np.unique(np.linspace(0, n - 1, MOST_ROWS).astype(int))
    few = wanted[last, rows]
    for q, k, v in _roles(given):
        keys = given.tensors[k].value.shape
        if given.tensors[q].value.shape[1] != n or given.tensors[v].value.shape != keys:
            continue
        masks = [NOTHING, *(name for name, mask in given.masks.items() if mask.shape[2] == keys[1])]
        for heads in (h for h in range(1, width + 1) if width % h == 0):
            for mask, scale in product(masks, ("head", "none", "width")):
                for filled in FILLS if mask != NOTHING else FILLS[:1]:
                    formula = Formula(q, k, v, heads, scale, mask, filled)
                    near = close(attention(given, formula, last, rows), few, dtype)
                    if near and close(attention(given, formula), wanted, dtype):
                        yield formula


def _roles(given: Given) -> Iterable[tuple[int, int, int]]:
    """Which is which: by their names first, else in the order in which they were computed."""
    known = [role(tensor) for tensor in given.tensors]
    orders = list(permutations(range(len(known)), 3))
    return sorted(orders, key=lambda order: (known[order[0]] != "query") + (known[order[1]] != "key"))


# --------------------------------------------------------------------------------------------------- what may be wrong


def _changes(given: Given, right: Formula) -> Iterator[tuple[str, str, Formula]]:
    """(cause, correction in words, formula) for formulas that differ in one thing."""
    yield from _other_masks(given, right)
    yield from _other_fills(right)
    for scale, said in (("none", "not divided"), ("width", "divided by the root of the whole width"), ("head", "")):
        if scale != right.scale:
            wanted = {"head": "dividing scores by the root of a head's width", "none": "leaving scores undivided"}
            change = wanted.get(right.scale, "dividing scores by the root of the whole width")
            name = "scale-missing" if scale == "none" else "scale-wrong"
            yield name, f"{change}{f', where they are {said}' if said else ''}", replace(right, scale=scale)
    yield from _other_tensors(given, right)
    yield "softmax-axis", "taking the softmax over keys and not over queries", replace(right, over="queries")
    change = "splitting heads by a transposition and not by reshaping alone"
    yield "sdpa-layout", change, replace(right, split="alone")
    width = given.tensors[right.q].value.shape[-1]
    for heads in range(1, width + 1):
        if width % heads == 0 and heads != right.heads:
            yield "head-count", f"splitting into {right.heads} heads and not {heads}", replace(right, heads=heads)


def _other_masks(given: Given, right: Formula) -> Iterator[tuple[str, str, Formula]]:
    said = f"masking by {right.mask}"
    if right.mask != NOTHING:
        keep = given.masks[right.mask]
        turned = f"{said}, where it is inverted"
        yield from _with_mask(given, right, "mask-inverted", turned, "inverted", ~keep)
        padding, _, both = right.mask.rpartition(f" and {CAUSAL}")
        if not both and padding in given.masks:  # inverted in one of two
            inverted = ~given.masks[padding] & np.tri(keep.shape[2], dtype=bool)
            yield from _with_mask(given, right, "mask-inverted", turned, "inverted in part", inverted)
        if CAUSAL in right.mask:
            for step in (1, -1, 2):
                change = f"{said}, where the candidate's begin {abs(step)} {'later' if step > 0 else 'earlier'}"
                other = np.broadcast_to(np.tri(keep.shape[1], k=step, dtype=bool), keep.shape)
                shifted = other if right.mask == CAUSAL else other & given.masks[padding]
                yield from _with_mask(given, right, "causal-mask", change, f"shifted by {step}", shifted)
    for mask in (NOTHING, *given.masks):
        if mask == right.mask:
            continue
        for filled in (right.filled, *(one for one in FILLS if one != right.filled)):
            change = f"{said}, where the candidate masks by {mask}"
            yield _mask_name(right.mask, mask), change, replace(right, mask=mask, filled=filled)


def _with_mask(
    given: Given, right: Formula, name: str, change: str, label: str, mask: Array
) -> Iterator[tuple[str, str, Formula]]:
    given.masks[label] = mask
    for filled in (right.filled, *(one for one in FILLS if one != right.filled)):
        yield name, change, replace(right, mask=label, filled=filled)
    del given.masks[label]


def _mask_name(right: str, wrong: str) -> str:
    if right.replace(QUERIES, "") == wrong.replace(QUERIES, ""):
        return "mask-axis"
    if (CAUSAL in right) != (CAUSAL in wrong):
        return "causal-mask"
    if wrong == NOTHING or (right not in (NOTHING, CAUSAL) and wrong == CAUSAL):
        return "mask-ignored"
    return "mask-unwanted" if right in (NOTHING, CAUSAL) else "mask-exchanged"


def _other_fills(right: Formula) -> Iterator[tuple[str, str, Formula]]:
    if right.mask == NOTHING:
        return
    said = f"masking scores by {right.mask} before the softmax"
    for how, name, words_ in (
        ("1 where real", "mask-added-as-0/1", "1 is added to the scores of real positions"),
        ("1 where masked", "mask-added-as-0/1", "1 is added to the scores of masked positions"),
        ("product", "mask-multiplied", "scores are multiplied by it"),
        ("after", "mask-after-softmax", "weights are multiplied by it after the softmax"),
    ):
        yield name, f"{said}, where {words_}", replace(right, filled=(how, 1.0))
    for filled in FILLS:
        if filled != right.filled:
            change = f"{said} with {_said(right.filled)} and not {_said(filled)}"
            yield "mask-magnitude", change, replace(right, filled=filled)


def _said(filled: tuple[str, float]) -> str:
    how, fill = filled
    number = "−∞" if fill == -np.inf else f"{fill:.4g}".replace("-", "−", 1)
    return f"{number} {how}"


def _other_tensors(given: Given, right: Formula) -> Iterator[tuple[str, str, Formula]]:
    names = [tensor.name for tensor in given.tensors]
    packed = "third of" in names[right.q]
    for q, k, v in permutations(range(len(names)), 3):
        one = (q, k, v)
        if one == (right.q, right.k, right.v):
            continue
        swapped = (q, k, v) == (right.k, right.q, right.v)
        name = "mha-packing" if packed else "query-key-swapped" if swapped else "swapped-tensor"
        yield name, _roles_in_words(names, right, one), replace(right, q=q, k=k, v=v)
    change = f"taking {names[right.v]} for values and not the keys"
    yield "value-is-key", change, replace(right, v=right.k)


def _roles_in_words(names: list[str], right: Formula, wrong: tuple[int, int, int]) -> str:
    parts = zip(("queries", "keys", "values"), (right.q, right.k, right.v), wrong, strict=True)
    changed = [f"{names[one]} for {what} and not {names[two]}" for what, one, two in parts if one != two]
    return "taking " + ", ".join(changed)


CAUSES = causes(
    _attention,
    (
        ("mask-inverted", "attention masks real positions and not padding", "invert the mask (~mask)"),
        ("mask-ignored", "attention does not mask padding", "mask the scores"),
        (
            "mask-added-as-0/1",
            "attention adds the mask to the scores as 0 and 1",
            "add (1 − mask) times a large number",
        ),
        (
            "mask-multiplied",
            "scores are multiplied by the mask: a score of 0 is no mask",
            "put a large negative number there",
        ),
        (
            "mask-after-softmax",
            "weights are masked after the softmax, and no longer sum to 1",
            "mask the scores before it",
        ),
        ("mask-axis", "the mask is laid over the other axis of the scores", "mask keys: mask[:, None, None, :]"),
        (
            "causal-mask",
            "later positions are masked on one side only, or from another position on",
            "mask above the diagonal (triu with diagonal=1)",
        ),
        ("mask-unwanted", "attention masks what the reference does not mask", "leave the mask out"),
        ("mask-exchanged", "attention masks by another mask", "use the reference's"),
        (
            "mask-magnitude",
            "masked positions get another number: where nothing is real, the results differ",
            "use the reference's number, and add it where the reference adds it",
        ),
        ("scale-missing", "scores are not divided by the root of the head's width", "divide them"),
        ("scale-wrong", "scores are divided by another number", "divide them by the root of the head's width"),
        (
            "mha-packing",
            "queries, keys and values are taken from other thirds of the packed projection",
            "take them in the order query, key, value",
        ),
        ("query-key-swapped", "queries and keys are exchanged", "exchange them back"),
        ("value-is-key", "the keys stand where the values should", "use the values"),
        ("swapped-tensor", "attention takes another tensor of the same shape", "take the reference's"),
        ("softmax-axis", "the softmax of the scores runs over queries", "set axis=-1"),
        ("sdpa-layout", "heads are split by reshaping where a transposition is needed", "reshape, then transpose"),
        ("head-count", "features are split into another number of heads", "pass the reference's number of heads"),
    ),
    RECORDS,
)
