"""Attention that a user's own code computes in one piece: what is wrong in it is named, in arrays and in running models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import paddle
import pytest
import torch

from alignment import Options, Side, Twin, explain, explain_traces
from alignment.capture import save_traces
from alignment.causes.attention import CAUSES
from alignment.causes.suspect import Suspect, Tensor
from alignment.check import run_check
from fake_data import Ids, InputSpec, Labels, Mask

from .fakes import drawn, fake, proved

B, N, H, D = 3, 6, 2, 4
Q, K, V, OTHER = (drawn(B, N, H * D, seed=seed) for seed in range(4))
REAL = np.arange(N) < np.array([[6], [4], [2]])
EMPTY = np.arange(N) < np.array([[6], [4], [0]])
LOWER = np.tri(N, dtype=bool)[None, None]
NAMES = tuple(f"the output of owner.{name}" for name in ("query", "key", "value"))


def weights(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        e = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def heads(x: np.ndarray, count: int = H) -> np.ndarray:
    return np.stack(np.split(x, count, axis=-1), axis=1)


def joined(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:, head] for head in range(x.shape[1])], axis=-1)


def scores(q: np.ndarray = Q, k: np.ndarray = K, count: int = H, scale: float = D**-0.5) -> np.ndarray:
    return np.einsum("bhnd,bhmd->bhnm", heads(q, count), heads(k, count)) * scale


def attended(scores: np.ndarray, v: np.ndarray = V, axis: int = -1, after: Any = 1.0) -> np.ndarray:
    return joined(np.einsum("bhnm,bhmd->bhnd", weights(scores, axis) * after, heads(v, scores.shape[1])))


def keys(mask: np.ndarray) -> np.ndarray:
    return mask[:, None, None, :]


def put(x: np.ndarray, keep: np.ndarray, fill: float = -1e9) -> np.ndarray:
    return np.where(keep, x, fill)


def raw(x: np.ndarray) -> np.ndarray:
    return joined(x.reshape(B, H, N, D))


def suspect(reference: np.ndarray, candidate: np.ndarray, *tensors: np.ndarray, mask: np.ndarray = REAL) -> Suspect:
    around: dict[str, Any] = {"masks": lambda: iter([Tensor("mask", mask)])}
    given = tensors or (Q, K, V)
    names = NAMES if len(given) == 3 else tuple(f"the output of owner.{i}" for i in range(len(given)))
    return fake(reference, candidate, *given, record="input", name="owner.out", names=names, **around)


S = scores()
MASKED, PLAIN = attended(put(S, keys(REAL))), attended(S)
CAUSAL = attended(put(S, LOWER))
BOTH = attended(put(S, LOWER & keys(REAL), -np.inf))
PACKED = np.concatenate([Q, K, V], axis=-1)
ADDED = np.where(REAL, 0.0, -1e9)[:, None, None, :]

FAULTS: dict[str, tuple[str, Suspect]] = {
    "inverted": ("mask-inverted", suspect(MASKED, attended(put(S, ~keys(REAL))))),
    "inverted, with another number": ("mask-inverted", suspect(MASKED, attended(put(S, ~keys(REAL), -np.inf)))),
    "inverted beside a causal one": (
        "mask-inverted",
        suspect(attended(put(S, LOWER & keys(REAL))), attended(put(S, LOWER & ~keys(REAL)))),
    ),
    "causal, turned round": ("mask-inverted", suspect(CAUSAL, attended(put(S, ~LOWER)))),
    "ignored": ("mask-ignored", suspect(MASKED, PLAIN)),
    "ignored beside a causal one": ("mask-ignored", suspect(BOTH, CAUSAL)),
    "1 added to real ones": ("mask-added-as-0/1", suspect(MASKED, attended(S + keys(REAL)))),
    "1 added to padding": ("mask-added-as-0/1", suspect(MASKED, attended(S + ~keys(REAL)))),
    "multiplied": ("mask-multiplied", suspect(MASKED, attended(S * keys(REAL)))),
    "after the softmax": ("mask-after-softmax", suspect(MASKED, attended(S, after=keys(REAL)))),
    "over the queries": ("mask-axis", suspect(MASKED, attended(put(S, REAL[:, None, :, None])))),
    "causal one missing": ("causal-mask", suspect(BOTH, MASKED)),
    "causal one at all": ("causal-mask", suspect(CAUSAL, PLAIN)),
    "causal one, though none is wanted": ("causal-mask", suspect(PLAIN, CAUSAL)),
    "causal, one too far": ("causal-mask", suspect(CAUSAL, attended(put(S, np.tri(N, k=1, dtype=bool))))),
    "causal, one short": ("causal-mask", suspect(CAUSAL, attended(put(S, np.tri(N, k=-1, dtype=bool))))),
    "masked though it should not be": ("mask-unwanted", suspect(PLAIN, MASKED)),
    "another number, nothing real": (
        "mask-magnitude",
        suspect(attended(put(S, keys(EMPTY))), attended(S + np.where(keys(EMPTY), 0.0, -1e4)), mask=EMPTY),
    ),
    "infinity, nothing real": (
        "mask-magnitude",
        suspect(attended(put(S, keys(EMPTY))), attended(put(S, keys(EMPTY), -np.inf)), mask=EMPTY),
    ),
    "not scaled": ("scale-missing", suspect(MASKED, attended(put(scores(scale=1.0), keys(REAL))))),
    "by the whole width": ("scale-wrong", suspect(PLAIN, attended(scores(scale=(H * D) ** -0.5)))),
    "queries for keys": ("query-key-swapped", suspect(PLAIN, attended(scores(K, Q)))),
    "keys for values": ("value-is-key", suspect(PLAIN, attended(S, K))),
    "other thirds": ("mha-packing", suspect(PLAIN, attended(scores(K, V), Q), PACKED)),
    "another tensor": ("swapped-tensor", suspect(PLAIN, attended(scores(Q, OTHER)), Q, K, V, OTHER)),
    "softmax over queries": ("softmax-axis", suspect(PLAIN, attended(S, axis=-2))),
    "heads reshaped": ("sdpa-layout", suspect(PLAIN, attended(scores(raw(Q), raw(K)), raw(V)))),
    "four heads": ("head-count", suspect(PLAIN, attended(scores(count=4, scale=2**-0.5)))),
}


@pytest.mark.parametrize("case", FAULTS)
def test_named_and_proved(case: str) -> None:
    name, one = FAULTS[case]
    assert proved(one, CAUSES) == [name]


def test_an_additive_mask_is_read_from_what_the_code_is_given() -> None:
    given = (ADDED, Q, K, V)
    names = ("input 1 of owner", *NAMES)
    one = fake(MASKED, PLAIN, *given, record="input", name="owner.out", names=names, masks=lambda: iter(()))
    assert proved(one, CAUSES) == ["mask-ignored"]


def test_keys_of_another_length_are_attended_to() -> None:
    k, v, real = drawn(B, 4, H * D, seed=8), drawn(B, 4, H * D, seed=9), np.arange(4) < np.array([[4], [3], [1]])
    x = scores(Q, k)
    one = suspect(attended(put(x, keys(real)), v), attended(put(x, ~keys(real)), v), Q, k, v, mask=real)
    assert proved(one, CAUSES) == ["mask-inverted"]


NEAR_MISSES: dict[str, Suspect] = {
    "the same": suspect(MASKED, MASKED),
    "inverted, and something else": suspect(MASKED, attended(put(S, ~keys(REAL))) + 1e-6 * Q),
    "inverted for one query": suspect(
        MASKED, np.concatenate([attended(put(S, ~keys(REAL)))[:, :1], MASKED[:, 1:]], axis=1)
    ),
    "a mask nobody knows": suspect(MASKED, attended(put(S, keys(np.arange(N)[None] != 1)))),
    "values of another kind": suspect(attended(S, V**2), attended(put(S, keys(REAL)), V**2)),
    "too few tensors": suspect(PLAIN, MASKED, Q, K),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_not_proved(case: str) -> None:
    assert not proved(NEAR_MISSES[case], CAUSES)


# --------------------------------------------------------------------------------------------------------- running models


class TorchAttention(torch.nn.Module):
    """b n d, b n -> b n d; the mask is True at real positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (torch.nn.Linear(16, 16) for _ in range(4))

    def forward(self, x, mask):
        b, n, d = x.shape
        q, k, v = (f(x).reshape(b, n, 4, 4).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask[:, None, None, :], -1e9)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))


class TorchNet(torch.nn.Module):
    def __init__(self, keyword: bool) -> None:
        super().__init__()
        self.words, self.attention = torch.nn.Embedding(30, 16), TorchAttention()
        self.head, self.keyword = torch.nn.Linear(16, 3), keyword

    def forward(self, ids, mask):
        x = self.words(ids)
        x = self.attention(x, mask=mask) if self.keyword else self.attention(x, mask)
        return self.head(x[:, 0])


class PaddleAttention(paddle.nn.Layer):
    """The same, with a fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.query, self.key, self.value, self.out = (paddle.nn.Linear(16, 16) for _ in range(4))

    def forward(self, x, mask):
        b, n, d = x.shape
        q, k, v = (f(x).reshape([b, n, 4, 4]) for f in (self.query, self.key, self.value))
        keep = mask[:, None, None, :]
        if self.fault == "mask-inverted":
            keep = ~keep
        if self.fault == "mask-axis":
            keep = mask[:, None, :, None]
        scores = q.transpose([0, 2, 1, 3]) @ k.transpose([0, 2, 3, 1])
        scores = scores / (1.0 if self.fault == "scale-missing" else math.sqrt(4))
        if self.fault == "causal-mask":
            keep = keep.logical_and(paddle.tril(paddle.ones([n, n])).astype("bool"))
        if self.fault == "mask-added-as-0/1":
            scores = scores + keep.astype(scores.dtype)
        elif self.fault not in ("mask-ignored", "mask-after-softmax"):
            scores = paddle.where(keep, scores, paddle.full_like(scores, -1e9))
        weights = paddle.nn.functional.softmax(scores)
        if self.fault == "mask-after-softmax":
            weights = weights * keep.astype(weights.dtype)
        return self.out((weights @ v.transpose([0, 2, 1, 3])).transpose([0, 2, 1, 3]).reshape([b, n, d]))


class PaddleNet(paddle.nn.Layer):
    def __init__(self, keyword: bool, fault: str = "") -> None:
        super().__init__()
        self.words, self.attention = paddle.nn.Embedding(30, 16), PaddleAttention(fault)
        self.head, self.keyword = paddle.nn.Linear(16, 3), keyword

    def forward(self, ids, mask):
        x = self.words(ids)
        x = self.attention(x, mask=mask) if self.keyword else self.attention(x, mask)
        return self.head(x[:, 0])


def sentences(_settings: Any) -> InputSpec:
    fields = {
        "ids": Ids(0, 30, ("B", "N"), padding=0),
        "mask": Mask(("B", "N"), of="ids"),
        "targets": Labels(3, ("B",)),
    }
    return InputSpec(fields, max_length=8)


def explained(fault: str, keyword: bool = False, net: Any = (TorchNet, PaddleNet)) -> Any:
    """The one finding of a planted fault."""
    torch_side, paddle_side = Side("torch", net[0]), Side("paddle", net[1], {"fault": fault} if fault else {})
    twin = Twin("net", "", torch_side, paddle_side, {"keyword": keyword}, sentences, loss="criterion")
    result = explain(twin, Options(steps=(1, 3, 4, 5), batch_size=3)).twins[0]
    return result.findings


@pytest.mark.parametrize(
    "fault",
    ["mask-ignored", "mask-added-as-0/1", "mask-after-softmax", "mask-axis", "causal-mask", "scale-missing"],
)
def test_faults_of_a_models_own_attention_are_explained(fault: str) -> None:
    (finding,) = explained(fault)
    assert (finding.cause, finding.roots) == (fault, ("input attention.out",))
    assert finding.after < 1e-14 < 1e-3 < finding.before


@pytest.mark.parametrize("keyword", [False, True])
def test_an_inverted_mask_is_proved_by_running_the_candidate_with_it_the_other_way_round(keyword: bool) -> None:
    (finding,) = explained("mask-inverted", keyword)
    assert finding.cause == "mask-inverted"
    assert finding.proof.startswith("inverting input `mask` of attention: relative L2 ")
    assert finding.after < 1e-14 < 1e-3 < finding.before


def test_a_right_port_of_such_a_model_has_nothing_to_explain() -> None:
    assert explained("") == ()


def test_an_inverted_mask_is_named_from_captures_too(tmp_path) -> None:
    sides = Side("torch", TorchNet), Side("paddle", PaddleNet, {"fault": "mask-inverted"})
    twin = Twin("net", "", *sides, {"keyword": False}, sentences, loss="criterion")
    checked = run_check(twin, Options(steps=(1, 3, 4, 5), batch_size=3))
    paths = save_traces(checked, tmp_path)
    findings = explain_traces(*paths).twins[0].findings
    (finding,) = [finding for finding in findings if finding.roots == ("input attention.out",)]
    assert finding.cause == "mask-inverted"
    assert finding.proof.startswith("masking by ")


class TorchPool(torch.nn.Module):
    """The mask is the model's own input, and no attention's: a mean over real positions."""

    def __init__(self, keyword: bool) -> None:
        super().__init__()
        self.words, self.head = torch.nn.Embedding(30, 16), torch.nn.Linear(16, 3)

    def forward(self, ids, mask):
        x = torch.tanh(self.words(ids)) * mask[..., None]
        return self.head(x.sum(1) / (1 + mask.sum(1, keepdim=True)))


class PaddlePool(paddle.nn.Layer):
    def __init__(self, keyword: bool, fault: str = "") -> None:
        super().__init__()
        self.words, self.head = paddle.nn.Embedding(30, 16), paddle.nn.Linear(16, 3)

    def forward(self, ids, mask):
        keep = (~mask).astype(self.head.weight.dtype)
        x = paddle.tanh(self.words(ids)) * keep[..., None]
        return self.head(x.sum(1) / (1 + keep.sum(1, keepdim=True)))


def test_a_mask_that_the_model_itself_is_given_is_inverted_in_the_batch() -> None:
    (finding,) = explained("mask-inverted", net=(TorchPool, PaddlePool))
    assert finding.cause == "mask-inverted"
    assert finding.proof.startswith("inverting mask, an input of the model: ")
    assert finding.after < 1e-14 < 1e-3 < finding.before
