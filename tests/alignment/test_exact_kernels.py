"""What Paddle's float64 kernels hold in float32 is computed to the last digit in the float64 run."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch

from alignment import Options, Side, Twin, check
from alignment.frameworks import get_framework

F, T = paddle.nn.functional, torch.nn.functional
X = np.random.default_rng(0).standard_normal((2, 3, 7, 9))


def both(theirs, ours, x):
    """Largest difference of the values, and of the gradients, in float64."""
    adapter = get_framework("paddle")
    one, two = paddle.to_tensor(x, stop_gradient=False), torch.tensor(x, requires_grad=True)
    with adapter.to_the_last_digit("float64"):
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


Y, Z = np.random.default_rng(2).standard_normal((2, 4, 8))
LABELS = np.array([1, 7, 0, 3])
MEAN, VARIANCE = np.array([0.3, -0.2, 0.1]), np.array([1.0, 0.5, 2.0])
WEIGHT, BIAS = np.array([0.5, 1.5, -1.0]), np.array([0.1, 0.2, 0.3])


def normed_by_paddle(x, variance=VARIANCE, eps=1e-3):
    given = (paddle.to_tensor(one) for one in (MEAN, variance, WEIGHT, BIAS))
    return F.batch_norm(x, *given, epsilon=eps)


def normed_by_torch(x, variance=VARIANCE, eps=1e-3):
    given = (torch.tensor(one) for one in (MEAN, variance, WEIGHT, BIAS))
    return T.batch_norm(x, *given, eps=eps)


# name: (Paddle's, torch's, x): what Paddle is told as a number, and holds as float32.
TOLD = {
    "elu": (lambda x: F.elu(x, 0.3), lambda x: T.elu(x, 0.3), Y),
    "celu": (lambda x: F.celu(x, 0.3), lambda x: T.celu(x, 0.3), Y),
    "hardtanh": (lambda x: F.hardtanh(x, max=0.7), lambda x: T.hardtanh(x, -1.0, 0.7), Y),
    "hardtanh at its bounds": (lambda x: F.hardtanh(x, 0.0, 6.0), lambda x: T.hardtanh(x, 0.0, 6.0), Y.clip(0.0, 1.0)),
    "softshrink": (lambda x: F.softshrink(x, 0.3), lambda x: T.softshrink(x, 0.3), Y),
    "threshold": (lambda x: F.thresholded_relu(x, 0.3, value=0.1), lambda x: T.threshold(x, 0.3, 0.1), Y),
    "rrelu": (lambda x: F.rrelu(x, 0.1, 0.3, training=False), lambda x: T.rrelu(x, 0.1, 0.3, training=False), Y),
    "stanh": (lambda x: paddle.stanh(x), lambda x: 1.7159 * torch.tanh(0.67 * x), Y),
    "layer norm": (lambda x: F.layer_norm(x, [8]), lambda x: T.layer_norm(x, (8,)), 0.01 * Y),
    "layer norm, 1e-6": (
        lambda x: F.layer_norm(x, 8, epsilon=1e-6),
        lambda x: T.layer_norm(x, (8,), eps=1e-6),
        0.001 * Y,
    ),
    "batch norm": (normed_by_paddle, normed_by_torch, X),
    "batch norm, small": (
        lambda x: normed_by_paddle(x, 1e-4 * VARIANCE, 1e-5),
        lambda x: normed_by_torch(x, 1e-4 * VARIANCE, 1e-5),
        0.01 * X,
    ),
    "instance norm": (lambda x: F.instance_norm(x), lambda x: T.instance_norm(x), 0.01 * X),
    "group norm": (
        lambda x: F.group_norm(x, 3, weight=paddle.to_tensor(WEIGHT), bias=paddle.to_tensor(BIAS)),
        lambda x: T.group_norm(x, 3, torch.tensor(WEIGHT), torch.tensor(BIAS)),
        0.01 * X,
    ),
    "norm": (lambda x: x.norm(p=2, axis=-1), lambda x: x.norm(p=2, dim=-1), 0.001 * Y),
    "norm of all": (lambda x: paddle.norm(x), lambda x: torch.norm(x), 0.001 * Y),
    "norm of a zero": (lambda x: paddle.linalg.norm(x, axis=0), lambda x: torch.linalg.norm(x, dim=0), Y * (Y[0] > 0)),
    "norm, 1": (lambda x: paddle.norm(x, 1, axis=-1), lambda x: torch.norm(x, 1, dim=-1), 0.001 * Y),
    "norm, 3": (lambda x: paddle.norm(x, 3, axis=-1), lambda x: torch.norm(x, 3, dim=-1), Y),
    "vector norm": (
        lambda x: paddle.linalg.vector_norm(x, 3.0, axis=1),
        lambda x: torch.linalg.vector_norm(x, 3, dim=1),
        Y,
    ),
    "distance": (lambda x: paddle.dist(x, paddle.to_tensor(Z)), lambda x: torch.dist(x, torch.tensor(Z)), Y),
    "normalize": (lambda x: F.normalize(x, axis=-1), lambda x: T.normalize(x, dim=-1), 0.001 * Y),
    "normalize, 3": (lambda x: F.normalize(x, p=3), lambda x: T.normalize(x, p=3), Y),
    "normalize what is small": (lambda x: F.normalize(x, epsilon=0.1), lambda x: T.normalize(x, eps=0.1), 0.01 * Y),
    "Huber": (
        lambda x: F.smooth_l1_loss(x, paddle.to_tensor(Z), delta=0.3),
        lambda x: T.huber_loss(x, torch.tensor(Z), delta=0.3),
        Y,
    ),
    "smooth L1": (
        lambda x: F.smooth_l1_loss(x, paddle.to_tensor(Z), reduction="sum", delta=0.3, is_huber=False),
        lambda x: T.smooth_l1_loss(x, torch.tensor(Z), reduction="sum", beta=0.3),
        Y,
    ),
    "label smoothing": (
        lambda x: F.cross_entropy(x, paddle.to_tensor(LABELS), label_smoothing=0.1),
        lambda x: T.cross_entropy(x, torch.tensor(LABELS), label_smoothing=0.1),
        Y,
    ),
    "power": (lambda x: x**0.3 + paddle.pow(x, -0.7), lambda x: x**0.3 + torch.pow(x, -0.7), 0.1 + np.abs(Y)),
    "where": (lambda x: paddle.where(x > 0, x, 0.1), lambda x: torch.where(x > 0, x, 0.1), Y),
    "a sum and a product": (
        lambda x: paddle.addmm(x, paddle.to_tensor(Z), paddle.to_tensor(Z.T @ Z), beta=0.3, alpha=0.7),
        lambda x: torch.addmm(x, torch.tensor(Z), torch.tensor(Z.T @ Z), beta=0.3, alpha=0.7),
        Y,
    ),
    "interpolation by 1.5": (
        lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
        lambda x: T.interpolate(x, scale_factor=1.5, mode="bilinear"),
        X,
    ),
    "interpolation by 1.5, corners aligned": (
        lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic", align_corners=True),
        lambda x: T.interpolate(x, scale_factor=1.5, mode="bicubic", align_corners=True),
        X,
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_numbers_that_a_kernel_is_told_keep_their_last_digits(name) -> None:
    theirs, ours, x = TOLD[name]
    largest = max(1.0, 1.0 / np.abs(x).max())  # a norm's gradient goes by one over what is normed
    values, gradients = both(theirs, ours, x)
    assert values < 1e-14 * largest
    assert gradients < 1e-14 * largest


@pytest.mark.parametrize(
    ("theirs", "ours", "x"),
    [
        (lambda x: F.lp_pool2d(x, 2.0, 3), lambda x: T.lp_pool2d(x, 2.0, 3), np.abs(X)),
        (lambda x: paddle.renorm(x, 2.0, 0, 0.7), lambda x: torch.renorm(x, 2.0, 0, 0.7), Y),
        (lambda x: paddle.trapezoid(x, dx=0.1), lambda x: torch.trapezoid(x, dx=0.1), Y),
        (
            lambda x: F.multi_margin_loss(x, paddle.to_tensor(LABELS), margin=1.3),
            lambda x: T.multi_margin_loss(x, torch.tensor(LABELS), margin=1.3),
            Y,
        ),
        (lambda x: paddle.digamma(x), lambda x: torch.digamma(x), 1 + np.abs(Y)),  # here it is torch's gradient
    ],
    ids=["lp_pool2d", "renorm", "trapezoid", "multi_margin_loss", "digamma"],
)
def test_known_limits(theirs, ours, x) -> None:
    # docs/method.md names these: what is no longer off can be taken from its list.
    assert max(both(theirs, ours, x)) > 1e-11


def test_group_norm_without_a_weight_has_a_wrong_gradient_in_paddle() -> None:
    """A true divergence, in float32 and float64 alike: values agree and gradients do not. docs/own-twins.md names it."""
    values, gradients = both(lambda x: F.group_norm(x, 3), lambda x: T.group_norm(x, 3), X)
    assert values < 1e-14
    assert gradients > 0.01


def test_what_is_given_by_another_name_or_to_a_tensor_of_another_dtype_is_left_to_paddle() -> None:
    adapter = get_framework("paddle")
    with adapter.to_the_last_digit("float64"):
        x = paddle.to_tensor(Y)
        assert len(paddle.where(x > 0)) == 2  # the places where it holds, along each axis
        assert (paddle.to_tensor([4.0], "float32") ** 0.3).dtype == paddle.float32
        assert paddle.norm(x, float("inf")).item() == np.abs(Y).max()
        assert F.hardtanh(x, min=-0.5, max=0.5).numpy().max() == 0.5
        with pytest.raises(TypeError):
            F.elu(x, no_such_option=1.0)


class TorchOps(torch.nn.Module):
    """What is small, under epsilons that are not float32's, powers and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.celu, self.eps = torch.nn.Linear(8, 8), torch.nn.CELU(0.3), 1e-6
        self.tanh, self.shrink = torch.nn.Hardtanh(-0.3, 0.7), torch.nn.Softshrink(0.1)

    def forward(self, x):
        x = 0.003 * self.fc(x)
        x = x * (x.pow(2).mean(-1, keepdim=True) + self.eps) ** -0.5
        x = T.normalize(self.shrink(self.tanh(x)) + 0.001 * self.celu(x), dim=-1)
        return T.layer_norm(0.003 * x.abs() ** 0.3, (8,), eps=1e-5)


class PaddleOps(paddle.nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.celu, self.eps = paddle.nn.Linear(8, 8), paddle.nn.CELU(0.3), 1e-6
        self.tanh, self.shrink = paddle.nn.Hardtanh(-0.3, 0.7), paddle.nn.Softshrink(0.1)

    def forward(self, x):
        x = 0.003 * self.fc(x)
        x = x * (x.pow(2).mean(-1, keepdim=True) + self.eps) ** -0.5
        x = F.normalize(self.shrink(self.tanh(x)) + 0.001 * self.celu(x), axis=-1)
        return F.layer_norm(0.003 * x.abs() ** 0.3, [8], epsilon=1e-5)


def test_a_right_port_that_uses_them_is_aligned() -> None:
    batch = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)
    twin = Twin("ops", "", Side("torch", TorchOps), Side("paddle", PaddleOps), {}, [batch], loss="outputs")
    report = check(twin, Options(steps=(1, 3, 4, 5)))
    assert report.verdict == "aligned", [t.reason for s in report.twins[0].stages for t in s.tensors]
