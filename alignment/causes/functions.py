"""Another function in the user's own code: the reference computes one formula of a tensor, the candidate another.

A pair of formulas is put to both sides: what the reference has must be the right one of some tensor its code can see, and
what the candidate has the wrong one of the same tensor. And functions of the candidate's framework are exchanged for what
the reference's framework means by their names, and the candidate is run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from weakref import WeakKeyDictionary

import numpy as np

from alignment.causes.suspect import Array, Cause, Suspect, Tensor, Trial
from alignment.causes.values import ORDINARY, Finding, causes, close, comparable, exact, parts, pool, role, tried
from alignment.frameworks import Meaning, exchanged
from alignment.localise import Scene
from alignment.trace import Trace

# Tensors that are tried as the argument of a formula, nearest first.
MOST_SOURCES = 16
EPSILONS = (1e-8, 0.0, 1e-12, 1e-10, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)

_erf = np.vectorize(math.erf, otypes=[np.float64])


# ------------------------------------------------------------------------------------------------------------- pointwise

POINTWISE: Mapping[str, Callable[[Array], Array]] = {
    "GELU": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "GELU by tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "GELU by sigmoid": lambda x: x / (1 + np.exp(-1.702 * x)),
    "ReLU": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard sigmoid": lambda x: np.clip(x / 6 + 0.5, 0.0, 1.0),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "leaky ReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "ReLU6": lambda x: np.clip(x, 0.0, 6.0),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "softplus": lambda x: np.logaddexp(x, 0.0),
    "exp": np.exp,
    "nothing": lambda x: x,
}


def _pointwise(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if not _floats(suspect) or candidate is None or (np.abs(reference) >= ORDINARY).any():
        return
    for x in _sources(suspect, reference.shape):
        right = _first(POINTWISE, x.value, reference)
        wrong = None if right is None else _first(POINTWISE, x.value, candidate)
        if right is None or wrong is None or right == wrong:
            continue
        change = f"computing {right} of {x.name}, where the candidate computes {wrong}"
        corrected = candidate - POINTWISE[wrong](x.value) + POINTWISE[right](x.value)
        yield _pointwise_name(right, wrong), change, corrected
        return


def _first(functions: Mapping[str, Callable[[Array], Array]], x: Array, wanted: Array) -> str | None:
    return next((name for name, function in functions.items() if close(function(x), wanted)), None)


def _pointwise_name(right: str, wrong: str) -> str:
    if right.startswith("GELU") and wrong.startswith("GELU"):
        return "gelu-form"
    if wrong == "nothing":
        return "tanh-missing" if right == "tanh" else "activation-missing"
    return "activation-relu-for-gelu" if (right, wrong) == ("GELU", "ReLU") else "activation-exchanged"


# --------------------------------------------------------------------------------------------------------------- softmax


def softmax(x: Array, axis: int) -> Array:
    """exp(x) over its sum along an axis."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def _softmax(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if not _floats(suspect) or candidate is None or reference.min() < 0.0 or reference.max() > 1.0:
        return
    for x in _sources(suspect, reference.shape):
        axes = [i for i in range(x.value.ndim) if close(softmax(x.value, i), reference)]
        for axis in axes[:1]:
            right = softmax(x.value, axis)
            for other in range(x.value.ndim):
                wrong = softmax(x.value, other)
                if other != axis and close(wrong, candidate):
                    change = f"taking the softmax of {x.name} over axis {axis} and not {other}"
                    yield "softmax-axis", change, candidate - wrong + right
                    return
            t = _temperature(x.value, candidate, axis)
            if t is not None:
                change = f"taking the softmax of {x.name} and not of {t:.6g} times it"
                yield "softmax-temperature", change, candidate - softmax(t * x.value, axis) + right
                return
            # The largest is not subtracted, or the exponentials are not divided by their sum.
            e = np.exp(x.value)
            if close(e, candidate):
                yield "softmax-missing", f"dividing the exponentials of {x.name} by their sum", candidate - e + right
            if close(x.value, candidate):
                yield "softmax-missing", f"taking the softmax of {x.name}", candidate - x.value + right


def _temperature(x: Array, candidate: Array, axis: int) -> float | None:
    """The t for which the candidate is softmax(t · x)."""
    if not np.isfinite(candidate).all() or (candidate < 0).any():
        return None
    usable = (candidate > 1e-200) & (np.abs(x) < ORDINARY)
    logs = np.where(usable, np.log(np.where(usable, candidate, 1.0)), 0.0)
    n = np.maximum(usable.sum(axis=axis, keepdims=True), 1)
    one = np.where(usable, x - np.where(usable, x, 0.0).sum(axis=axis, keepdims=True) / n, 0.0)
    two = np.where(usable, logs - logs.sum(axis=axis, keepdims=True) / n, 0.0)
    square = float((one * one).sum())
    if not square:
        return None
    t = float((one * two).sum()) / square
    return t if abs(t - 1) > 1e-9 and close(softmax(t * x, axis), candidate) else None


# --------------------------------------------------------------------------------------------------------- normalisation


def _normalised(x: Array, eps: float, centre: bool = True, unbiased: bool = False, axis: int = -1) -> Array:
    centred = x - x.mean(axis=axis, keepdims=True) if centre else x
    count = x.shape[axis] - (1 if unbiased else 0)
    return np.asarray(centred / np.sqrt((centred**2).sum(axis=axis, keepdims=True) / max(count, 1) + eps))


def _layernorm(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if not _floats(suspect) or candidate is None or suspect.kind not in ("LayerNorm", ""):
        return
    if reference.ndim < 2 or reference.shape[-1] < 2:
        return
    known = suspect.options("reference").get("eps") if suspect.kind else None
    epsilons = EPSILONS if known is None else (float(known), *EPSILONS)
    # A run in float64 adds the float32 number next to the one that was written down.
    own = None if suspect.scene.live or not suspect.kind else suspect.options("candidate").get("eps")
    others = EPSILONS if own is None else (float(own), *EPSILONS)
    size = reference.shape[-1]
    vectors = {local: w for local, w in suspect.weights.items() if w.shape == (size,)}
    weight = next((w for local, w in vectors.items() if local in ("weight", "gamma", "scale")), np.ones(size))
    bias = next((w for local, w in vectors.items() if local in ("bias", "beta", "shift")), np.zeros(size))
    for x in _sources(suspect, reference.shape):
        for eps in epsilons:
            right = _normalised(x.value, eps) * weight + bias
            if not close(right, reference):
                continue
            for name, words, wrong in _other_norms(x.value, eps, weight, bias, others):
                if close(wrong, candidate):
                    yield name, f"{words} in the normalisation of {x.name}", candidate - wrong + right
                    return


def _other_norms(
    x: Array, eps: float, weight: Array, bias: Array, epsilons: Iterable[float]
) -> Iterator[tuple[str, str, Array]]:
    n = x.shape[-1]
    yield (
        "layernorm-unbiased-variance",
        f"dividing the squares by {n} and not {n - 1}",
        _normalised(x, eps, unbiased=True) * weight + bias,
    )
    yield "layernorm-no-affine", "applying weight and bias", _normalised(x, eps)
    yield "layernorm-no-affine", "adding the bias", _normalised(x, eps) * weight
    yield "layernorm-no-affine", "multiplying by the weight", _normalised(x, eps) + bias
    for other in epsilons:
        if other != eps:
            words = f"adding {eps:.6g} to the variance and not {other:.6g}"
            yield "layernorm-eps", words, _normalised(x, other) * weight + bias
    deviation = np.sqrt(((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True))
    outside = (x - x.mean(-1, keepdims=True)) / (deviation + eps) * weight + bias
    yield "layernorm-eps", "adding epsilon under the root and not outside", outside
    yield "layernorm-not-centred", "subtracting the mean", _normalised(x, eps, centre=False) * weight + bias
    for axis in range(x.ndim - 1):
        if x.shape[axis] > 1:
            wrong = _normalised(x, eps, axis=axis) * weight + bias
            yield "layernorm-axis", f"taking the last axis and not axis {axis}", wrong
    yield "layernorm-missing", "normalising", x


def _batchnorm(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference, w = suspect.candidate, suspect.reference, suspect.weights
    if not _floats(suspect) or candidate is None or not {"running_mean", "running_var"} <= w.keys():
        return
    channels = (1, -1, *(1,) * (reference.ndim - 2))
    mean, variance = w["running_mean"].reshape(channels), w["running_var"].reshape(channels)
    weight = w.get("weight", np.ones(mean.size)).reshape(channels)
    bias = w.get("bias", np.zeros(mean.size)).reshape(channels)
    eps = float(suspect.options("reference").get("eps", 1e-5))
    for x in _sources(suspect, reference.shape):
        right = (x.value - mean) / np.sqrt(variance + eps) * weight + bias
        if not close(right, reference):
            continue
        others = tuple(axis for axis in range(reference.ndim) if axis != 1)
        here, spread = x.value.mean(axis=others, keepdims=True), x.value.var(axis=others, keepdims=True)
        for name, words, m, v in (
            ("bn-buffers-lost", "0 and 1", np.zeros_like(mean), np.ones_like(variance)),
            ("bn-buffers-lost", "0 and the right variance", np.zeros_like(mean), variance),
            ("bn-buffers-lost", "the right mean and 1", mean, np.ones_like(variance)),
            ("bn-batch-statistics", "the batch's own", here, spread),
        ):
            wrong = (x.value - m) / np.sqrt(v + eps) * weight + bias
            if close(wrong, candidate):
                change = f"normalising {x.name} by the running mean and variance, where the candidate uses {words}"
                yield name, change, candidate - wrong + right
                return


def _weight_norm(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference, w = suspect.candidate, suspect.reference, suspect.weights
    g, v = w.get("weight_g"), w.get("weight_v")
    if not _floats(suspect) or candidate is None or g is None or v is None or v.ndim != 2:
        return
    bias = w.get("bias", np.zeros(v.shape[0]))
    for x in pool(suspect):
        if x.value.shape[-1:] != (v.shape[1],) or (*x.value.shape[:-1], v.shape[0]) != reference.shape:
            continue
        found = {}
        for axis, size in enumerate(v.shape):
            if g.size == size:
                norm = np.sqrt((v**2).sum(axis=1 - axis, keepdims=True))
                found[axis] = x.value @ (g.reshape(norm.shape) * v / norm).T + bias
        for right, one in found.items():
            for wrong, two in found.items():
                if right != wrong and close(one, reference) and close(two, candidate):
                    change = f"norming the weight along axis {right} of {list(v.shape)} and not {wrong}"
                    yield "weight-norm-axis", change, candidate - two + one
                    return


# ---------------------------------------------------------------------------------------------------------------- pooling


@dataclass(frozen=True)
class _Pooling:
    masked: str
    epsilon: float
    mask: Array | None


def _pooled(scores: Array, x: Array, how: _Pooling) -> Array:
    e = np.exp(scores) if how.mask is None else np.exp(scores) * how.mask
    weights = e / (e.sum(axis=1, keepdims=True) + how.epsilon)
    return np.einsum("bn,bnd->bd", weights, x)


def _pooling(suspect: Suspect) -> Iterator[Finding]:
    """Σ exp(score)·x over Σ exp(score) + epsilon, with or without a mask."""
    candidate, reference = suspect.candidate, suspect.reference
    if not _floats(suspect) or candidate is None or reference.ndim not in (2, 3):
        return
    b, d = reference.shape[0], reference.shape[-1]
    if reference.size != b * d:
        return
    near = list(islice(pool(suspect), 3 * MOST_SOURCES))
    for x in (t for t in near if t.value.ndim == 3 and t.value.shape[0] == b and t.value.shape[2] == d):
        n = x.value.shape[1]
        for s in (t for t in near if t.value.size == b * n and t.value.shape[:2] == (b, n)):
            scores = s.value.reshape(b, n)
            ways = list(_ways_to_pool(suspect, (b, n)))
            right = _matching(scores, x.value, ways, reference.reshape(b, d))
            wrong = None if right is None else _matching(scores, x.value, ways, candidate.reshape(b, d))
            if right is None or wrong is None or right == wrong:
                continue
            yield _pooling_finding(s, x, right, wrong, candidate)
            return


def _ways_to_pool(suspect: Suspect, shape: tuple[int, int]) -> Iterator[_Pooling]:
    masks = [tensor.value for tensor in suspect.masks() if tensor.value.size == math.prod(shape)]
    for epsilon in EPSILONS:
        yield _Pooling("", epsilon, None)
        for mask in masks[-1:]:
            yield _Pooling("by the mask", epsilon, mask.reshape(shape))
            yield _Pooling("by the inverted mask", epsilon, ~mask.reshape(shape))


def _matching(scores: Array, x: Array, ways: list[_Pooling], wanted: Array) -> _Pooling | None:
    """The way that comes nearest, if it comes near enough: epsilons differ by little."""
    left = [(_gap(_pooled(scores, x, way), wanted), i) for i, way in enumerate(ways)]
    best, i = min(left)
    return ways[i] if best < 1e-13 else None


def _gap(one: Array, two: Array) -> float:
    odd = ~(np.isfinite(one) & np.isfinite(two))
    if odd.any() and not np.array_equal(one[odd], two[odd], equal_nan=True):
        return math.inf
    size = float(np.abs(two[~odd]).max(initial=0.0))
    gap = float(np.abs(one - two)[~odd].max(initial=0.0))
    return gap / size if size else (math.inf if gap else 0.0)


def _pooling_finding(s: Tensor, x: Tensor, right: _Pooling, wrong: _Pooling, candidate: Array) -> Finding:
    scores = s.value.reshape(x.value.shape[:2])
    one, two = (_pooled(scores, x.value, way).reshape(candidate.shape) for way in (right, wrong))
    corrected = np.where(np.isfinite(candidate), candidate - two + one, one)
    if right.masked == wrong.masked:
        change = f"dividing the weights by their sum plus {right.epsilon:g} and not {wrong.epsilon:g}"
        return "pooling-epsilon", f"{change} (scores: {s.name})", corrected
    name = {"": "mask-ignored", "by the inverted mask": "mask-inverted"}.get(wrong.masked, "pooler-masked")
    change = (
        f"weighing {x.name} by {s.name}, masked {right.masked or 'by nothing'} and not {wrong.masked or 'by nothing'}"
    )
    return name, change, corrected


# -------------------------------------------------------------------------------------------------------------- attention


def heads_apart(x: Array, heads: int) -> Array:
    """b n (h d) -> b h n d."""
    b, n, width = x.shape
    return x.reshape(b, n, heads, width // heads).transpose(0, 2, 1, 3)


def _projections(suspect: Suspect) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Queries, keys and values, b n (h d): the thirds of a packed projection, or the outputs of layers called so."""
    for tensor in islice(pool(suspect), 3 * MOST_SOURCES):
        value = tensor.value
        if value.ndim == 3 and value.shape[-1] % 3 == 0:
            names = ("first", "second", "last")
            thirds = np.split(value, 3, axis=-1)
            q, k, v = (Tensor(f"the {n} third of {tensor.name}", t) for n, t in zip(names, thirds, strict=True))
            yield q, k, v
    near = [t for t in islice(pool(suspect), 3 * MOST_SOURCES) if t.value.ndim == 3]
    for q in near:
        for k in near:
            if q is not k and q.value.shape == k.value.shape and "output" in q.name and "output" in k.name:
                yield q, k, None


def _scores(q: Array, k: Array, scale: float) -> Array:
    return np.asarray(q @ k.swapaxes(-1, -2) * scale)


def attention_scores(suspect: Suspect) -> Iterator[tuple[tuple[Tensor, Tensor], Array]]:
    """Queries times keys over the root of the head's width, b h n n, as far as they can be told from earlier tensors."""
    shape = suspect.reference.shape
    if len(shape) != 4:
        return
    b, h, n, m = shape
    for q, k, _ in _projections(suspect):
        if n == m and q.value.shape[:2] == (b, n) and q.value.shape[2] % h == 0:
            scale = (q.value.shape[2] // h) ** -0.5
            yield (q, k), _scores(heads_apart(q.value, h), heads_apart(k.value, h), scale)


def _attention_scores(suspect: Suspect) -> Iterator[Finding]:
    candidate, reference = suspect.candidate, suspect.reference
    if not comparable(suspect) or exact(suspect) or candidate is None:
        return
    keep = (np.abs(reference) < ORDINARY) & (np.abs(candidate) < ORDINARY)
    if not keep.any():
        return
    for (q, k), right in attention_scores(suspect):
        if not close(right[keep], reference[keep]):
            continue
        b, h, n, _ = reference.shape
        one, two = heads_apart(q.value, h), heads_apart(k.value, h)
        scale = one.shape[-1] ** -0.5
        raw_q, raw_k = (t.value.reshape(b, h, n, -1) for t in (q, k))
        packed = "third of" in q.name
        for name, words, wrong in (
            ("mha-packing" if packed else "query-key-swapped", "their places exchanged", _scores(two, one, scale)),
            ("sdpa-layout", "heads split by a transposition and not by reshaping alone", _scores(raw_q, raw_k, scale)),
            ("scale-missing", "divided by the root of the head's width", _scores(one, two, 1.0)),
        ):
            if close(wrong[keep], candidate[keep]):
                change = f"multiplying {q.name} with {k.name}, {words}"
                yield name, change, np.where(keep, candidate - wrong + right, candidate)
                return


def _attention_context(suspect: Suspect) -> Iterator[Finding]:
    """Weights b h n n times values, heads joined: b n (h d)."""
    candidate, reference = suspect.candidate, suspect.reference
    if not _floats(suspect) or candidate is None or reference.ndim != 3:
        return
    b, n, width = reference.shape
    near = list(islice(pool(suspect), 3 * MOST_SOURCES))
    weights = [t for t in near if t.value.ndim == 4 and t.value.shape[0] == b and t.value.shape[2:] == (n, n)]
    values = list(islice(parts(near, (b, n, width)), 3 * MOST_SOURCES))
    for w in weights:
        h = w.value.shape[1]
        if width % h:
            continue
        for v in values:
            right = _joined(w.value @ heads_apart(v.value, h))
            if not close(right, reference):
                continue
            raw = v.value.reshape(b, h, n, -1)
            whole = w.value @ heads_apart(v.value, h)
            for wrong in (
                _joined(w.value @ raw),
                whole.reshape(reference.shape),
                (w.value @ raw).reshape(reference.shape),
            ):
                if close(wrong, candidate):
                    change = f"splitting the heads of {v.name} by a transposition and not by reshaping alone"
                    yield "sdpa-layout", change, candidate - wrong + right
                    return
            for other in values:
                wrong = _joined(w.value @ heads_apart(other.value, h))
                if close(wrong, candidate):
                    yield "mha-packing", f"taking {v.name} for values and not {other.name}", candidate - wrong + right
                    return


def _joined(x: Array) -> Array:
    b, h, n, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, h * d)


def pool_heads(weights: Array, x: Array) -> Array:
    """Each head sums the positions of its own features with its own weights: b h n, b n (h d) -> b 1 (h d)."""
    b, h, n = weights.shape
    return np.einsum("bhn,bnhd->bhd", weights, x.reshape(b, n, h, -1)).reshape(b, 1, -1)


def _pool_interleaved(weights: Array, x: Array) -> Array:
    b, h, n = weights.shape
    return np.einsum("bhn,bndh->bdh", weights, x.reshape(b, n, -1, h)).reshape(b, 1, -1)


POOLS: tuple[tuple[str, str, Callable[[Array, Array], Array]], ...] = (
    ("", "", pool_heads),
    ("head-order", "each head's own weights", lambda w, x: pool_heads(w[:, ::-1], x)),
    ("sdpa-layout", "features split as (heads, width) and not (width, heads)", _pool_interleaved),
    ("mean-for-sum", "weights that sum to 1", lambda w, x: pool_heads(w, x) / w.shape[2]),
)


def _additive_attention(suspect: Suspect) -> Iterator[Finding]:
    """Features times a weighted sum over positions of others, head by head."""
    candidate, reference = suspect.candidate, suspect.reference
    if not _floats(suspect) or candidate is None or reference.ndim not in (3, 4):
        return
    b, n, width = *reference.shape[:2], math.prod(reference.shape[2:])
    wanted, given = reference.reshape(b, n, width), candidate.reshape(b, n, width)
    near = list(islice(pool(suspect), 3 * MOST_SOURCES))
    features = list(islice(parts(near, (b, n, width)), MOST_SOURCES))
    for w in near:
        if w.value.ndim != 3 or w.value.shape[::2] != (b, n) or width % w.value.shape[1] or not _sums_to_one(w.value):
            continue
        right = next(_products(wanted, w.value, POOLS[:1], features, features), None)
        if right is None:
            continue
        # The reference's own first: a sum of products can be told in several ways.
        summed = [
            right.x,
            *(x for x in features if x is not right.x),
            *(Tensor(t.name, t.value.reshape(b, n, width)) for t in _own(suspect, b * n * width)),
        ]
        wrong = next(_products(given, w.value, POOLS, summed, features), None)
        if wrong is None:
            continue
        change = f"multiplying {right.y.name} with {right.x.name} summed by {w.name}"
        if wrong.words:
            change += f", {wrong.words}"
        elif (wrong.y.name, wrong.x.name) != (right.y.name, right.x.name):
            change += f", where the candidate multiplies {wrong.y.name} with {wrong.x.name}"
        yield _attention_name(right, wrong), change, (given - wrong.value + right.value).reshape(reference.shape)
        return


@dataclass(frozen=True)
class _Product:
    """y times the sum of x over positions."""

    name: str
    words: str
    x: Tensor
    y: Tensor
    value: Array


def _products(
    wanted: Array,
    weights: Array,
    pools: Iterable[tuple[str, str, Callable[[Array, Array], Array]]],
    xs: list[Tensor],
    ys: list[Tensor],
) -> Iterator[_Product]:
    """The products that are the wanted tensor; looked for in one element of the batch first."""
    for name, what, pooling in pools:
        for x in xs:
            first = pooling(weights[-1:], x.value[-1:])
            for y in ys:
                if close(y.value[-1:] * first, wanted[-1:]):
                    value = y.value * pooling(weights, x.value)
                    if close(value, wanted):
                        yield _Product(name, what, x, y, value)


def _own(suspect: Suspect, size: int) -> Iterator[Tensor]:
    """What the candidate itself has for tensors that went wrong before: its code goes on with them."""
    for root in suspect.scene.roots:
        if (root.kind, root.name) == (suspect.record, suspect.name):
            return
        value = root.candidate
        if root.owner == suspect.owner and value is not None and value.size == size and value.dtype.kind == "f":
            yield Tensor(f"its own value of what is given to {root.name}", value.astype(np.float64))


def _attention_name(right: _Product, wrong: _Product) -> str:
    if wrong.name:
        return wrong.name
    if wrong.y is right.y and {role(wrong.x), role(right.x)} == {"query", "key"}:
        return "query-key-swapped"
    other = wrong.x.name.startswith("its own")
    if (other or wrong.x.name == right.y.name) and (other or wrong.y.name == right.x.name) and wrong.y is not right.y:
        return "query-key-swapped"
    return "value-is-key" if wrong.x is right.x and role(wrong.y) == "key" else "swapped-tensor"


def _sums_to_one(weights: Array) -> bool:
    return bool((weights >= 0).all() and np.abs(weights.sum(axis=-1) - 1).max() < 1e-6)


# ---------------------------------------------------------------------------------------------------------------- rotary


def _rotary(suspect: Suspect) -> Iterator[Finding]:
    """Cosines and sines of position times frequency."""
    candidate, reference = suspect.candidate, suspect.reference
    freqs = next((w for local, w in suspect.weights.items() if local in ("freqs", "inv_freq") and w.ndim == 1), None)
    if not _floats(suspect) or candidate is None or freqs is None:
        return
    for n in reference.shape:
        if n * freqs.size != reference.size:
            continue
        for function, words in ((np.cos, "cosine"), (np.sin, "sine")):
            right = function(np.outer(np.arange(n), freqs)).reshape(reference.shape)
            if not close(right, reference):
                continue
            for name, what, angles, sign in (
                ("rotary-sign", "turning the other way", np.outer(np.arange(n), freqs), -1.0),
                ("position-off-by-one", "counting positions from 0 and not 1", np.outer(np.arange(n) + 1, freqs), 1.0),
                *(
                    (
                        "rotary-frequency-base",
                        f"frequencies of base 10000 and not {base:g}",
                        np.outer(np.arange(n), freqs ** (math.log(base) / math.log(10000))),
                        1.0,
                    )
                    for base in (1000.0, 100.0, 500000.0, 1e6, 100000.0)
                ),
            ):
                wrong = sign * function(angles).reshape(reference.shape)
                if close(wrong, candidate):
                    yield name, f"{what}, in the {words} of position times frequency", candidate - wrong + right
                    return
        return


# ------------------------------------------------------------------------------------------- the framework's own functions


_RUNS: WeakKeyDictionary[Scene, dict[int, tuple[Trace | None, list[str]]]] = WeakKeyDictionary()


def _meant(cause: str, suspect: Suspect) -> Iterator[Trial]:
    scene = suspect.scene
    if suspect.candidate is None:
        return
    known = _RUNS.setdefault(scene, {})
    for index, meaning in enumerate(scene.experiment.candidate.meanings):
        if meaning.cause != cause:
            continue
        if index not in known:
            known[index] = _exchanged_run(scene, meaning)
        trace, calls = known[index]
        value = None if trace is None else scene.value(trace, suspect.root.kind, suspect.name)
        if value is not None and not np.array_equal(value, suspect.candidate, equal_nan=True):
            yield from tried(suspect, f"{meaning.change} ({calls[0]})", value.astype(np.float64))


def _exchanged_run(scene: Scene, meaning: Meaning) -> tuple[Trace | None, list[str]]:
    """A forced run with the other meaning, and the functions of that name that were called; None where none was."""
    try:
        with exchanged(meaning) as calls:
            trace = scene.forced()
    except Exception:
        # Code that can't do with the other meaning has not been explained by it.
        return None, []
    return (trace if calls else None), calls


# ---------------------------------------------------------------------------------------------------------------- helpers


def _floats(suspect: Suspect) -> bool:
    return comparable(suspect) and not exact(suspect) and suspect.reference.size > 1


def _sources(suspect: Suspect, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Tensors of a shape that a formula may be of, nearest first."""
    yield from islice(parts(pool(suspect), shape), MOST_SOURCES)


_MEANT = (
    ("split-meaning", "split(n) gives n parts, where parts of size n are meant", "use paddle.compat.split"),
    ("median-even", "the median of an even count is a mean of two values", 'use mode="min", or paddle.compat.median'),
    ("scatter-overwrite", "scatter(overwrite=False) zeroes rows before it adds to them", "use index_add"),
    ("padding-row", "the embedding gives zeros for padding_idx", "drop padding_idx="),
    ("dropout-on", "a functional dropout is active in evaluation mode", "pass training=self.training"),
    (
        "gelu-form",
        "GELU in its other form (erf, or its tanh approximation)",
        "set approximate= as the reference has it",
    ),
    (
        "align-corners",
        "a sampling function aligns corners on one side only",
        "set align_corners= as the reference has it",
    ),
    (
        "avgpool-padding",
        "average pooling counts padding on one side only",
        "set exclusive= to the opposite of count_include_pad",
    ),
)

CAUSES: tuple[Cause, ...] = (
    *causes(
        _pointwise,
        (
            ("gelu-form", "GELU in another form", "set approximate= as the reference has it"),
            ("tanh-missing", "the tanh is left out", "apply it"),
            ("activation-relu-for-gelu", "ReLU stands where GELU should", "use GELU"),
            ("activation-missing", "an activation function is left out", "apply it"),
            ("activation-exchanged", "another activation function", "use the reference's"),
        ),
    ),
    *causes(
        _softmax,
        (
            ("softmax-axis", "the softmax runs over another axis", "set axis= to the reference's"),
            ("softmax-temperature", "the softmax's input is multiplied by a number", "leave the factor out"),
            ("softmax-missing", "the softmax is left out, or only its exponentials are taken", "apply it"),
        ),
    ),
    *causes(
        _layernorm,
        (
            ("layernorm-eps", "another epsilon is added to the variance", "pass epsilon= of the reference"),
            ("layernorm-unbiased-variance", "the squares are divided by D − 1", "divide by D (unbiased=False)"),
            ("layernorm-no-affine", "weight or bias is not applied", "apply both"),
            ("layernorm-not-centred", "the mean is not subtracted", "subtract it"),
            ("layernorm-axis", "another axis is normalised", "normalise the last axis"),
            ("layernorm-missing", "the normalisation is left out", "apply it"),
        ),
    ),
    *causes(
        _batchnorm,
        (
            (
                "bn-buffers-lost",
                "running mean and variance are not those that were loaded",
                "map running_mean and running_var to _mean and _variance",
            ),
            ("bn-batch-statistics", "batch norm uses the batch's own statistics", "call eval()"),
        ),
    ),
    *causes(
        _weight_norm,
        (
            (
                "weight-norm-axis",
                "weight_norm norms the weight along the other axis",
                "pass dim=1 for a Linear of Paddle",
            ),
        ),
    ),
    *causes(
        _pooling,
        (
            ("pooling-epsilon", "another epsilon beside the sum of weights", "use the reference's"),
            ("mask-ignored", "padding takes part in the pooling", "multiply the weights by the mask"),
            ("mask-inverted", "padding is pooled, and real positions are not", "invert the mask"),
            (
                "pooler-masked",
                "padding is left out of the pooling, where it takes part in the reference",
                "pool without the mask",
            ),
        ),
    ),
    *causes(
        _attention_scores,
        (
            (
                "mha-packing",
                "queries, keys and values are taken from other thirds of the packed projection",
                "take them in the order query, key, value",
            ),
            ("query-key-swapped", "queries and keys are exchanged", "exchange them back"),
            (
                "sdpa-layout",
                "heads are split by reshaping where a transposition is needed",
                "reshape to [B, L, H, D], then transpose",
            ),
            ("scale-missing", "scores are not divided by the root of the head's width", "divide them"),
        ),
    ),
    *causes(
        _attention_context,
        (
            (
                "sdpa-layout",
                "heads are split or joined by reshaping where a transposition is needed",
                "transpose, then reshape",
            ),
            (
                "mha-packing",
                "the values are taken from another third of the packed projection",
                "take them in the order query, key, value",
            ),
        ),
    ),
    *causes(
        _additive_attention,
        (
            ("head-order", "each head's weights sum the features of another head", "bring the heads in order"),
            (
                "sdpa-layout",
                "features are split as (width, heads) where they are (heads, width)",
                "split them as (heads, width)",
            ),
            ("query-key-swapped", "queries and keys are exchanged", "exchange them back"),
            ("value-is-key", "the keys stand where the values should", "use the values"),
            ("mean-for-sum", "a mean over positions stands where a sum should", "sum"),
            ("swapped-tensor", "another tensor of the same shape is used", "use the reference's"),
        ),
    ),
    *causes(
        _rotary,
        (
            ("rotary-sign", "rotary positions turn the other way", "change the sign of the sine"),
            ("rotary-frequency-base", "rotary frequencies have another base", "use the reference's base"),
            ("position-off-by-one", "positions are counted from another number", "count positions from 0"),
        ),
    ),
    *(
        Cause(name, what, remedy, ("input", "activation", "logits"), partial(_meant, name))
        for name, what, remedy in _MEANT
    ),
)
