"""Formulas that differ are named by the pair that explains both sides, and near misses are not proved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alignment.causes.functions import CAUSES, POINTWISE, pool_heads, softmax
from alignment.causes.suspect import Suspect, Tensor
from alignment.frameworks import get_framework

from .fakes import drawn, fake, proved

X, Y, Z = drawn(3, 6, 8), drawn(3, 6, 8, seed=1), drawn(3, 6, 8, seed=2)
WEIGHT, BIAS = drawn(8, seed=3), drawn(8, seed=4)
NORM: dict[str, Any] = {"weights": {"weight": WEIGHT, "bias": BIAS}}
CENTRED = X - X.mean(-1, keepdims=True)
ALPHA = softmax(drawn(3, 2, 6, seed=5), -1)
ROLES = ("the output of query", "the output of key", "the output of softmax")
PACKED = drawn(3, 6, 24, seed=6)
Q, K, V = np.split(PACKED, 3, axis=-1)
SCORES = drawn(3, 6, 1, seed=7)
REAL = np.arange(6) < np.array([[6], [4], [2]])
POOLING: dict[str, Any] = {"masks": lambda: iter([Tensor("mask", REAL)])}
PADDED = X * REAL[..., None]
WEIGHED = np.exp(SCORES[..., 0]) * REAL / ((np.exp(SCORES[..., 0]) * REAL).sum(1, keepdims=True) + 1e-8)
FREQS = 10000.0 ** -(np.arange(4) / 4)
ANGLES = np.outer(np.arange(6), FREQS)
BASE_1000 = np.outer(np.arange(6), FREQS**0.75)
IMAGE = drawn(2, 3, 4, 4)
MEAN, VARIANCE = np.array([0.5, -0.5, 0.0]), np.array([0.5, 1.0, 2.0])
STATISTICS: dict[str, Any] = {"weights": {"running_mean": MEAN, "running_var": VARIANCE}, "options": lambda _side: {}}
G, W = np.abs(drawn(8, seed=8)), drawn(8, 8, seed=9)


def norm(eps: float = 1e-5, count: int = 8, affine: bool = True) -> np.ndarray:
    x = CENTRED / np.sqrt((CENTRED**2).sum(-1, keepdims=True) / count + eps)
    return x * WEIGHT + BIAS if affine else x


def heads(x: np.ndarray) -> np.ndarray:
    return x.reshape(3, 6, 2, 4).transpose(0, 2, 1, 3)


def scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return heads(q) @ heads(k).swapaxes(2, 3) / 2


def pooled(mask: np.ndarray | None = None, epsilon: float = 1e-8) -> np.ndarray:
    e = np.exp(SCORES[..., 0]) if mask is None else np.exp(SCORES[..., 0]) * mask
    return np.einsum("bn,bnd->bd", e / (e.sum(1, keepdims=True) + epsilon), X)


def images(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    mean, variance = mean.reshape(1, 3, 1, 1), variance.reshape(1, 3, 1, 1)
    return (IMAGE - mean) / np.sqrt(variance + 1e-5)


def weighed(axis: int) -> np.ndarray:
    g = G[:, None] if axis == 0 else G[None, :]
    return X @ (g * W / np.sqrt((W**2).sum(1 - axis, keepdims=True))).T


def attended(right: np.ndarray, wrong: np.ndarray) -> Suspect:
    return fake(right, wrong, X, Y, ALPHA, record="input", names=ROLES)


NORMED: dict[str, Any] = {"weights": {"weight_g": G, "weight_v": W}}
F = POINTWISE
FAULTS: dict[str, tuple[str, Suspect]] = {
    "gelu": ("gelu-form", fake(F["GELU"](X), F["GELU by tanh"](X), Y, X)),
    "relu": ("activation-relu-for-gelu", fake(F["GELU"](X), F["ReLU"](X), X)),
    "no tanh": ("tanh-missing", fake(np.tanh(X), X, X)),
    "no relu": ("activation-missing", fake(F["ReLU"](X), X, X)),
    "silu": ("activation-exchanged", fake(F["GELU"](X), F["SiLU"](X), X)),
    "softmax over heads": ("softmax-axis", fake(softmax(X, -1), softmax(X, 1), X)),
    "half the scores": ("softmax-temperature", fake(softmax(X, -1), softmax(X / 2, -1), X)),
    "exponentials": ("softmax-missing", fake(softmax(X, -1), np.exp(X), X)),
    "epsilon": ("layernorm-eps", fake(norm(), norm(1e-12), X, **NORM)),
    "D - 1": ("layernorm-unbiased-variance", fake(norm(), norm(count=7), X, **NORM)),
    "no affine": ("layernorm-no-affine", fake(norm(), norm(affine=False), X, **NORM)),
    "statistics": ("bn-buffers-lost", fake(images(MEAN, VARIANCE), images(0 * MEAN, VARIANCE**0), IMAGE, **STATISTICS)),
    "weight norm": ("weight-norm-axis", fake(weighed(0), weighed(1), X, **NORMED)),
    "pooled with padding": ("mask-ignored", fake(pooled(REAL), pooled(), X, SCORES, **POOLING)),
    "pooled without padding": ("pooler-masked", fake(pooled(), pooled(REAL), X, SCORES, **POOLING)),
    "padding pooled": ("mask-inverted", fake(pooled(REAL), pooled(~REAL), X, SCORES, **POOLING)),
    "nothing but padding that is zero is pooled": (
        "mask-inverted",
        fake(np.einsum("bn,bnd->bd", WEIGHED, PADDED), np.zeros((3, 8)), PADDED, SCORES, **POOLING),
    ),
    "pooling epsilon": ("pooling-epsilon", fake(pooled(REAL), pooled(REAL, 0.0), X, SCORES, **POOLING)),
    "thirds": ("mha-packing", fake(scores(Q, K), scores(K, Q), PACKED)),
    "unscaled": ("scale-missing", fake(scores(Q, K), 2 * scores(Q, K), PACKED)),
    "heads of weights": ("head-order", attended(Y * pool_heads(ALPHA, X), Y * pool_heads(ALPHA[:, ::-1], X))),
    "key for value": ("value-is-key", attended(X * pool_heads(ALPHA, X), Y * pool_heads(ALPHA, X))),
    "query for key": ("query-key-swapped", attended(Y * pool_heads(ALPHA, X), X * pool_heads(ALPHA, Y))),
    "rotary sign": ("rotary-sign", fake(np.sin(ANGLES), -np.sin(ANGLES), weights={"freqs": FREQS})),
    "rotary base": ("rotary-frequency-base", fake(np.cos(ANGLES), np.cos(BASE_1000), weights={"freqs": FREQS})),
    "rotary positions": (
        "position-off-by-one",
        fake(np.cos(ANGLES), np.cos(ANGLES + FREQS), weights={"freqs": FREQS}),
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_named_and_proved(case: str) -> None:
    name, suspect = FAULTS[case]
    assert proved(suspect, CAUSES) == [name]


NOISE = 1e-6 * Z
NEAR_MISSES: dict[str, Suspect] = {
    "another slope": fake(F["GELU"](X), np.where(X > 0, X, 0.02 * X), X),
    "relu of something else": fake(F["GELU"](X), F["ReLU"](Y), X),
    "relu, and a little more": fake(F["GELU"](X), F["ReLU"](X) + NOISE, X),
    "softmax over another axis of something else": fake(softmax(X, -1), softmax(Y, 1), X),
    "softmax of noisy scores": fake(softmax(X, -1), softmax(X / 2 + NOISE, -1), X),
    "an epsilon in one row": fake(norm(), np.where((np.arange(6) == 0)[:, None], norm(1e-3), norm()), X, **NORM),
    "pooled by part of the mask": fake(pooled(REAL), pooled(REAL & (np.arange(6) != 1)), X, SCORES, **POOLING),
    "heads in another order, nearly": attended(Y * pool_heads(ALPHA, X), Y * pool_heads(ALPHA[:, ::-1], X) + NOISE),
    "scores scaled by another number": fake(scores(Q, K), 1.5 * scores(Q, K), PACKED),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_a_near_miss_is_not_proved(case: str) -> None:
    assert proved(NEAR_MISSES[case], CAUSES) == []


def test_functions_with_the_references_meaning() -> None:
    """The candidate is run again with the function exchanged, and the function is put back."""
    paddle = pytest.importorskip("paddle")
    x = paddle.to_tensor(X)
    split = paddle.split
    suspect = fake(np.concatenate(np.split(X, 2, -1)[::-1], -1), np.concatenate(np.split(X, 4, -1)[::-1], -1))
    # split(4) is meant as parts of the size 4, and gives 4 parts.
    suspect.scene.experiment.candidate.meanings = get_framework("paddle").meanings  # type: ignore[misc]

    def forced() -> Any:
        return SimpleNamespace(found=paddle.concat(paddle.split(x, 4, -1)[::-1], -1).numpy())

    suspect.scene.forced = forced  # type: ignore[assignment,method-assign]
    suspect.scene.value = lambda trace, _kind, _name: trace.found  # type: ignore[method-assign]
    assert proved(suspect, CAUSES) == ["split-meaning"]
    assert paddle.split is split
    assert {meaning.cause for meaning in get_framework("paddle").meanings} <= {cause.name for cause in CAUSES}
