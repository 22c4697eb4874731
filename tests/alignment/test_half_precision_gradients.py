"""Gradients that pass through half precision are seen, though a gradient's own float32 error has a wider allowance."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch

from alignment import Options, Side, Twin, check

# Channels of every layer, and rows (or pixels) of the batch that a gradient sums up.
WIDTH, ROWS = 8, 128


class Halved(paddle.autograd.PyLayer):
    """Itself; the gradient is rounded to half precision on the way back, in float32 runs."""

    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = dtype
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if gradient.dtype != paddle.float32:
            return gradient
        if ctx.dtype == "float16":
            return paddle.to_tensor(gradient.numpy().astype(np.float16).astype(np.float32))
        return gradient.astype(ctx.dtype).astype("float32")


def narrowed(bits):
    """A gradient hook that keeps so many bits of the significand, in float32 runs: 10 are float16's and TF32's."""

    def hook(gradient):
        if gradient.dtype != paddle.float32:
            return gradient
        mantissa, exponent = np.frexp(gradient.numpy())
        kept = np.ldexp(np.round(np.ldexp(mantissa, bits + 1)), exponent - bits - 1)
        return paddle.to_tensor(kept.astype(np.float32))

    return hook


LAYERS = {
    "linear": (lambda: torch.nn.Linear(WIDTH, WIDTH), lambda: paddle.nn.Linear(WIDTH, WIDTH)),
    "embedding": (lambda: torch.nn.Embedding(5, WIDTH), lambda: paddle.nn.Embedding(5, WIDTH)),
    "layer norm": (lambda: torch.nn.LayerNorm(WIDTH), lambda: paddle.nn.LayerNorm(WIDTH)),
    "convolution": (
        lambda: torch.nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        lambda: paddle.nn.Conv2D(WIDTH, WIDTH, 3, padding=1),
    ),
    "group norm": (lambda: torch.nn.GroupNorm(2, WIDTH), lambda: paddle.nn.GroupNorm(2, WIDTH)),
    "batch norm": (lambda: torch.nn.BatchNorm2d(WIDTH), lambda: paddle.nn.BatchNorm2D(WIDTH)),
}
PICTURES = ("convolution", "group norm", "batch norm")


class TorchNet(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer = kind, LAYERS[kind][0]()
        self.head = torch.nn.Conv2d(WIDTH, 3, 1) if kind in PICTURES else torch.nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x)))


class PaddleNet(paddle.nn.Layer):
    def __init__(self, kind, dtype="", bits=0):
        super().__init__()
        self.kind, self.dtype, self.layer = kind, dtype, LAYERS[kind][1]()
        self.head = paddle.nn.Conv2D(WIDTH, 3, 1) if kind in PICTURES else paddle.nn.Linear(WIDTH, 3)
        if bits:
            self.layer.weight.register_hook(narrowed(bits))

    def forward(self, x):
        x = self.layer(x)
        return self.head(paddle.tanh(Halved.apply(x, self.dtype) if self.dtype else x))


def batch(kind, rows=ROWS):
    generator = np.random.default_rng(0)
    if kind == "embedding":
        return generator.integers(0, 5, (rows,))
    shape = (rows // 64, WIDTH, 8, 8) if kind in PICTURES else (rows, WIDTH)
    return generator.standard_normal(shape).astype(np.float32)


def gradients(kind, rows=ROWS, **fault):
    """Name -> row, of the gradients of the layer's parameters."""
    twin = Twin(
        "net",
        "",
        Side("torch", TorchNet),
        Side("paddle", PaddleNet, fault),
        {"kind": kind},
        [batch(kind, rows)],
        loss="outputs",
    )
    tensors = [t for stage in check(twin, Options(steps=(1, 5))).twins[0].stages for t in stage.tensors]
    return {t.name: t for t in tensors if t.record == "gradient" and t.name.startswith("layer.")}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_way_back_through_half_precision_is_seen(kind, dtype) -> None:
    found = gradients(kind, dtype=dtype)
    assert found
    for row in found.values():
        assert (row.verdict, row.decided_by) == ("diverged", "precision"), row.reason


@pytest.mark.parametrize("kind", LAYERS)
def test_a_weights_gradient_with_the_digits_of_float16_is_seen(kind) -> None:
    row = gradients(kind, bits=10)["layer.weight"]
    assert (row.verdict, row.decided_by) == ("diverged", "precision"), row.reason


@pytest.mark.parametrize("kind", LAYERS)
def test_float32_is_good_enough(kind) -> None:
    assert {row.verdict for row in gradients(kind).values()} == {"aligned"}
