"""Activations whose axes the candidate has in another order: the sequence before the batch, or channels last.

A layer of one framework may take an order that the other's does not know, so a right port transposes on the way in and out.
What is between is then compared in the reference's order. No order is taken on trust: the values have to agree in it, and
what a model returns, its loss and the gradients of its parameters are compared as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from alignment.compare import norm_of
from alignment.trace import GRADIENT_OF, Kind, Record, Trace

# Record -> the axes of the candidate's value, in the reference's order (as `numpy.transpose` takes them).
Orders = dict[tuple[Kind, str], tuple[int, ...]]

# By number of axes: the first two exchanged; channels last to first, and first to last.
_KNOWN: dict[int, tuple[tuple[int, ...], ...]] = {
    3: ((1, 0, 2), (0, 2, 1)),
    4: ((1, 0, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1)),
    5: ((1, 0, 2, 3, 4), (0, 4, 1, 2, 3), (0, 2, 3, 4, 1)),
}
# Where shapes don't tell: relative L2 distances. What is nearer than ALIKE is in the right order; else another is right in
# which values are NEAR, in spite of a fault before, and by BETTER nearer than as they are.
ALIKE, NEAR, BETTER = 1e-6, 0.1, 0.2


def learn(reference: Trace, candidate: Trace) -> Orders:
    """The orders of axes that differ between two runs of the same batch, modules called alike; gradients go with values."""
    found: Orders = {}
    for record in candidate.records:
        if record.kind not in GRADIENT_OF:
            continue
        order = _order(reference.get(record.kind, record.name), record.value)
        if order is not None:
            found[record.kind, record.name] = found[GRADIENT_OF[record.kind], record.name] = order
    return found


def _order(ours: NDArray | None, theirs: NDArray | None) -> tuple[int, ...] | None:
    if ours is None or theirs is None or ours.ndim != theirs.ndim or ours.ndim not in _KNOWN or not ours.size:
        return None
    fitting = [order for order in _KNOWN[ours.ndim] if theirs.transpose(order).shape == ours.shape]
    if ours.shape != theirs.shape and len(fitting) == 1:
        return fitting[0]
    if ours.dtype.kind != "f":
        return None
    now = _apart(ours, theirs) if ours.shape == theirs.shape else math.inf
    limit = min(NEAR, BETTER * now) if now > ALIKE else 0.0
    return next((order for order in fitting if _apart(ours, theirs.transpose(order)) < limit), None)


def _apart(ours: NDArray, theirs: NDArray) -> float:
    """Relative L2 distance; NaN where it has none."""
    with np.errstate(all="ignore"):
        norm = norm_of(ours)
        return norm_of(ours - theirs) / norm if norm else math.nan


def arranged(record: Record, orders: Mapping[tuple[Kind, str], tuple[int, ...]]) -> Record:
    """A record of the candidate in the reference's order."""
    order = orders.get((record.kind, record.name))
    if order is None or record.value is None or record.value.ndim != len(order):
        return record
    return replace(record, value=record.value.transpose(order))


def as_candidate(record: Record, orders: Mapping[tuple[Kind, str], tuple[int, ...]]) -> Record:
    """A record of the reference in the candidate's order, by the reference's name."""
    order = orders.get((record.kind, record.name))
    if order is None or record.value is None or record.value.ndim != len(order):
        return record
    return replace(record, value=record.value.transpose(np.argsort(order)))


def arrange(trace: Trace, orders: Orders) -> Trace:
    """A trace of the candidate in the reference's order."""
    return replace(trace, records=tuple(arranged(record, orders) for record in trace.records)) if orders else trace


def note(orders: Orders) -> str | None:
    """What a reader should know of it."""
    names = [name for kind, name in orders if kind == "activation"]
    if not names:
        return None
    shown = ", ".join(_said(orders, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"compared in the reference's order of axes, which the candidate has otherwise: {shown}"


def _said(orders: Orders, names: Iterable[str]) -> Iterable[str]:
    return (f"{name} ({', '.join(map(str, orders['activation', name]))})" for name in names)
