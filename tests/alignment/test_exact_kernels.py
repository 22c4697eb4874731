"""What Paddle's float64 kernels hold in float32 is computed to the last digit in the float64 run."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch

from alignment.frameworks import get_framework

F, T = paddle.nn.functional, torch.nn.functional
X = np.random.default_rng(0).standard_normal((2, 3, 7, 9))


def both(theirs, ours, x):
    """Largest difference of the values, and of the gradients, in float64."""
    adapter = get_framework("paddle")
    one, two = paddle.to_tensor(x, stop_gradient=False), torch.tensor(x, requires_grad=True)
    with adapter._to_the_last_digit("float64"):
        a = theirs(one)
    b = ours(two)
    weights = np.random.default_rng(1).standard_normal(tuple(b.shape))
    (a * paddle.to_tensor(weights)).sum().backward()
    (b * torch.tensor(weights)).sum().backward()
    return np.abs(a.numpy() - b.detach().numpy()).max(), np.abs(one.grad.numpy() - two.grad.numpy()).max()


@pytest.mark.parametrize(
    ("theirs", "ours", "x"),
    [
        (lambda x: F.avg_pool2d(x, 3, 2, 1), lambda x: T.avg_pool2d(x, 3, 2, 1, count_include_pad=False), X),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, exclusive=False), lambda x: T.avg_pool2d(x, 3, 2, 1), X),
        (lambda x: F.avg_pool2d(x, (3, 2), exclusive=False), lambda x: T.avg_pool2d(x, (3, 2)), X),
        (lambda x: F.avg_pool2d(x, 3, ceil_mode=True), lambda x: T.avg_pool2d(x, 3, ceil_mode=True), X),
        (lambda x: F.avg_pool1d(x, 3, exclusive=False), lambda x: T.avg_pool1d(x, 3), X[0]),
        (lambda x: F.avg_pool3d(x, 3, exclusive=False), lambda x: T.avg_pool3d(x, 3), X[None]),
        (lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: T.adaptive_avg_pool2d(x, 1), X),
        (lambda x: F.adaptive_avg_pool2d(x, (3, 4)), lambda x: T.adaptive_avg_pool2d(x, (3, 4)), X),
        (lambda x: F.adaptive_avg_pool1d(x, 4), lambda x: T.adaptive_avg_pool1d(x, 4), X[0]),
        (lambda x: F.hardsigmoid(x), lambda x: T.hardsigmoid(x), 3 * X),
        (lambda x: F.selu(x), lambda x: T.selu(x), X),
        *(
            (
                lambda x, m=mode, a=align, s=size: F.interpolate(x, size=s, mode=m, align_corners=a),
                lambda x, m=mode, a=align, s=size: T.interpolate(x, size=s, mode=m, align_corners=a),
                X,
            )
            for mode in ("bilinear", "bicubic")
            for align in (False, True)
            for size in ((10, 13), (4, 5))
        ),
        (
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
            lambda x: T.interpolate(x, scale_factor=2, mode="bilinear"),
            X,
        ),
        (
            lambda x: F.interpolate(x, size=[11], mode="linear", data_format="NCW"),
            lambda x: T.interpolate(x, size=11, mode="linear"),
            X[0],
        ),
    ],
)
def test_values_and_gradients_agree_to_the_last_digits(theirs, ours, x) -> None:
    values, gradients = both(theirs, ours, x)
    assert values < 1e-14
    assert gradients < 1e-14


def test_outside_a_float64_run_paddle_has_its_own_kernels() -> None:
    x = paddle.to_tensor(X, stop_gradient=False)
    own = F.avg_pool2d(x, 3, 2, 1, exclusive=False)
    own.sum().backward()
    exact = torch.tensor(X, requires_grad=True)
    T.avg_pool2d(exact, 3, 2, 1).sum().backward()
    # If this no longer holds, Paddle's kernel has become exact and its stand-in can go.
    assert np.abs(x.grad.numpy() - exact.grad.numpy()).max() > 1e-10
