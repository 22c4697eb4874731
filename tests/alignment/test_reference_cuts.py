"""A way back that the reference alone cuts, and criteria that mean something else: named, with a proof."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch

from alignment import Options, Side, Twin, explain
from alignment.frameworks import get_framework
from fake_data import Floats, InputSpec, Labels

X = [np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)]


class TorchNet(torch.nn.Module):
    """Two ways through a net; `cut` says where the graph ends on the way back."""

    def __init__(self, cut: str = "") -> None:
        super().__init__()
        self.first, self.second, self.head = torch.nn.Linear(6, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)
        self.cut = cut

    def forward(self, x):
        x = torch.tanh(self.first(x))
        if self.cut == "before":
            x = x.detach()
        side = torch.relu(self.second(x))
        return self.head(x + (side.detach() if self.cut == "one way" else side))


class PaddleNet(paddle.nn.Layer):
    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.head = paddle.nn.Linear(6, 8), paddle.nn.Linear(8, 8), paddle.nn.Linear(8, 3)
        self.wrong = wrong

    def forward(self, x):
        x = paddle.tanh(self.first(x)) * (1.001 if self.wrong else 1.0)
        return self.head(x + paddle.nn.functional.relu(self.second(x)))


def findings(cut: str, wrong: bool = False):
    twin = Twin(
        "net",
        "",
        Side("torch", TorchNet, {"cut": cut}),
        Side("paddle", PaddleNet, {"wrong": wrong}),
        {},
        X,
        loss="outputs",
    )
    return explain(twin, Options(steps=(1, 3, 4, 5))).twins[0].findings


@pytest.mark.parametrize(("cut", "root"), [("before", "gradient first.bias"), ("one way", "gradient second.bias")])
def test_a_detach_that_was_not_ported_is_named_and_proved(cut, root) -> None:
    (finding,) = findings(cut)
    assert finding.cause == "detach-missing"
    assert finding.roots[0] in (root, root.replace("bias", "weight"))
    assert finding.after < 1e-8 < 0.1 < finding.before
    assert "differentiating the reference's own loss" in finding.proof
    assert findings("") == ()


def test_a_wrong_gradient_of_the_candidate_is_not_called_a_detach_of_the_reference() -> None:
    assert all(finding.cause != "detach-missing" for finding in findings("", wrong=True))


def test_a_cut_is_found_beside_another_fault() -> None:
    found = {finding.cause for finding in findings("one way", wrong=True)}
    assert {"detach-missing", "scaled"} <= found


class TorchClassifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(x)


class PaddleClassifier(paddle.nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.fc = paddle.nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(x)


RIGHT = get_framework("paddle").cross_entropy


def divided_by_all(logits, targets, *, reduction="mean", ignore_index=None):
    if reduction == "mean" and ignore_index is not None:
        return RIGHT(logits, targets, reduction="sum", ignore_index=ignore_index) / targets.size
    return RIGHT(logits, targets, reduction=reduction, ignore_index=ignore_index)


def of_probabilities(logits, targets, **options):
    e = np.exp(logits)
    return RIGHT(e / e.sum(-1, keepdims=True), targets, **options)


def summed(logits, targets, *, reduction="mean", **options):
    return RIGHT(logits, targets, reduction="sum" if reduction == "mean" else reduction, **options)


def never_ignoring(logits, targets, *, reduction="mean", ignore_index=None):
    return RIGHT(logits, targets, reduction=reduction)


@pytest.mark.parametrize(
    ("wrong", "cause", "count"),
    [
        (divided_by_all, "ce-ignore-index", 1),
        (of_probabilities, "double-softmax", 6),
        (summed, "loss-reduction", 2),
        (never_ignoring, "ce-ignore-index", 3),
    ],
)
def test_a_criterion_that_means_something_else_is_named_and_proved(monkeypatch, wrong, cause, count) -> None:
    monkeypatch.setattr(get_framework("paddle"), "cross_entropy", wrong)
    spec = InputSpec({"x": Floats(("B", 6)), "targets": Labels(4, ("B",))}, max_length=1)
    sides = Side("torch", TorchClassifier), Side("paddle", PaddleClassifier)
    twin = Twin("classifier", "", *sides, {}, lambda _settings: spec, loss="criterion")
    (finding,) = explain(twin, Options(steps=(1, 3, 4, 5), batch_size=7)).twins[0].findings
    assert finding.cause == cause
    assert len(finding.roots) == count
    assert finding.after < 1e-12 < 1e-3 < finding.before
