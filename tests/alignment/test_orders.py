"""Right ports whose activations have other axes: the sequence before the batch, channels last."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
import torch

from alignment import Options, Report, capture_candidate, capture_reference, check, compare_captures, explain
from alignment.orders import NEAR, learn
from alignment.trace import Record, Trace

RNG = np.random.default_rng(0)
WORDS = RNG.standard_normal((3, 5, 8)).astype(np.float32)
SQUARE = RNG.standard_normal((4, 4, 8)).astype(np.float32)
PICTURES = RNG.standard_normal((2, 3, 6, 5)).astype(np.float32)
SQUARE_PICTURES = RNG.standard_normal((2, 3, 3, 3)).astype(np.float32)


class First(torch.nn.Module):
    """Takes b n d, and works on n b d as torch's layers do if they are not told otherwise."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.norm = torch.nn.LayerNorm(8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(x.transpose(0, 1))
        y = self.inner(x, x, x) if isinstance(self.inner, torch.nn.MultiheadAttention) else self.inner(x)
        y = y[0] if isinstance(y, tuple) else y
        return self.head(y).transpose(0, 1)


class Second(paddle.nn.Layer):
    """Takes b n d, and stays with it."""

    def __init__(self, inner: paddle.nn.Layer, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.inner = inner
        self.norm = paddle.nn.LayerNorm(8, epsilon)
        self.head = paddle.nn.Linear(8, 3)

    def forward(self, x):
        y = self.inner(self.norm(x))
        return self.head(y[0] if isinstance(y, tuple) else y)


class Turned(paddle.nn.Layer):
    """A piece of a right port that takes n b d, and turns it for a layer that takes b n d alone; or takes it for that."""

    def __init__(self, inner: paddle.nn.Layer, right: bool = True, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.inner, self.right = inner, right
        self.norm = paddle.nn.LayerNorm(8, epsilon)
        self.head = paddle.nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(x.transpose([1, 0, 2]))
        y = self.inner(x.transpose([1, 0, 2]) if self.right else x)
        y = y[0] if isinstance(y, tuple) else y
        y = y.transpose([1, 0, 2]) if self.right else y
        return self.head(y).transpose([1, 0, 2])


LAYERS = {
    "LSTM": (lambda: torch.nn.LSTM(8, 8), lambda: paddle.nn.LSTM(8, 8)),
    "GRU": (lambda: torch.nn.GRU(8, 8), lambda: paddle.nn.GRU(8, 8)),
    "attention": (lambda: torch.nn.MultiheadAttention(8, 2), lambda: paddle.nn.MultiHeadAttention(8, 2)),
    "encoder": (
        lambda: torch.nn.TransformerEncoderLayer(8, 2, 16),
        lambda: paddle.nn.TransformerEncoderLayer(8, 2, 16),
    ),
}


def bad(report: Report) -> list[str]:
    rows = [(s.step, t) for s in report.twins[0].stages for t in s.tensors if t.verdict != "aligned"]
    return [f"{step} {t.record} {t.name}: {t.reason}" for step, t in rows]


@pytest.mark.parametrize("inputs", [WORDS, SQUARE], ids=["oblong", "square"])
@pytest.mark.parametrize("port", [Second, Turned])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_that_take_the_sequence_first_have_ports_that_don_t(layer: str, port: Any, inputs: Any) -> None:
    one, two = LAYERS[layer]
    report = check(reference=First(one()), candidate=port(two()), inputs=inputs, options=Options(steps=(1, 3, 4, 5)))
    assert report.verdict == "aligned", bad(report)
    assert any(
        "the reference's order of axes" in note and "(1, 0, 2)" in note for note in report.twins[0].stages[1].notes
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_faults_are_found_between_other_axes(layer: str) -> None:
    one, two = LAYERS[layer]
    report = explain(reference=First(one()), candidate=Second(two(), 1e-3), inputs=WORDS)
    assert {(t.record, t.name) for t in report.twins[0].roots} == {("activation", "norm")}, bad(report)
    assert [finding.cause for finding in report.twins[0].findings] == ["layernorm-eps"]


@pytest.mark.parametrize("inputs", [WORDS, SQUARE], ids=["oblong", "square"])
def test_a_layer_that_takes_the_sequence_for_the_batch_is_the_root(inputs: Any) -> None:
    for layer in ("LSTM", "attention"):
        one, two = LAYERS[layer]
        report = check(reference=First(one()), candidate=Turned(two(), right=False), inputs=inputs)
        roots = {t.name.partition("[")[0].partition("#")[0] for t in report.twins[0].roots}
        assert roots == {"inner"}, (layer, roots, bad(report))


def test_captures_with_other_axes(tmp_path: Any) -> None:
    one, two = LAYERS["attention"]
    files = tmp_path / "reference.safetensors", tmp_path / "candidate.safetensors"
    capture_reference(First(one()), files[0], inputs=WORDS)
    for candidate, roots in ((Second(two()), set()), (Second(two(), 1e-3), {("activation", "norm")})):
        capture_candidate(files[0], files[1], candidate)
        report = compare_captures(*files)
        assert report.verdict == ("diverged" if roots else "aligned"), bad(report)
        assert {(t.record, t.name) for t in report.twins[0].roots} == roots
        files[1].unlink()


class Pictures(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(3)
        self.relu = torch.nn.ReLU()

    def forward(self, x):
        return self.relu(self.norm(self.conv(x))).mean((2, 3))


class ChannelsLast(paddle.nn.Layer):
    def __init__(self, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 3, 3, padding=1, data_format="NHWC")
        self.norm = paddle.nn.BatchNorm2D(3, epsilon=epsilon, data_format="NHWC")
        self.relu = paddle.nn.ReLU()

    def forward(self, x):
        return self.relu(self.norm(self.conv(x.transpose([0, 2, 3, 1])))).mean([1, 2])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("inputs", [PICTURES, SQUARE_PICTURES], ids=["oblong", "square"])
def test_a_port_with_channels_last(inputs: Any, mode: Any) -> None:
    report = check(reference=Pictures(), candidate=ChannelsLast(), inputs=inputs, mode=mode)
    assert report.verdict == "aligned", bad(report)
    report = check(reference=Pictures(), candidate=ChannelsLast(1e-3), inputs=inputs, mode=mode)
    assert {(t.record, t.name) for t in report.twins[0].roots} == {("activation", "norm")}, bad(report)


def test_orders_are_learned_from_shapes_and_values_and_not_from_chance() -> None:
    def orders(ours: Any, theirs: Any) -> Any:
        traces = (Trace("", "float64", (Record("activation", "x", value),)) for value in (ours, theirs))
        return learn(*traces).get(("activation gradient", "x"))

    x = RNG.standard_normal((4, 4, 4))
    assert orders(x, x) is None
    assert orders(x, x.transpose(1, 0, 2)) == (1, 0, 2)
    assert orders(x, x.transpose(0, 2, 1) * (1 + NEAR / 2)) == (0, 2, 1)
    assert orders(x, x.transpose(2, 0, 1)) is None  # nothing that layers do
    assert orders(x, RNG.standard_normal((4, 4, 4))) is None
    assert orders(x, np.full_like(x, np.nan)) is None
    assert orders(np.ones((4, 4, 4)), 2 * np.ones((4, 4, 4))) is None
    assert orders(x[:3], 2 * x[:3].transpose(1, 0, 2)) == (1, 0, 2)  # judged in that order, and wrong
    assert orders(x[:3], x[:2]) is None
    assert orders(x[0], x[0].T) is None
