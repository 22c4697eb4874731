"""Options of layers that no planted fault of the gallery has: each is named, and proved, in a live pair of models."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
import torch

from alignment import explain

PICTURES = np.random.default_rng(0).standard_normal((2, 4, 9, 9)).astype(np.float32)


@pytest.mark.parametrize(
    ("ours", "theirs", "cause"),
    [
        (
            lambda: torch.nn.GroupNorm(4, 4),
            lambda wrong: paddle.nn.GroupNorm(2 if wrong else 4, 4),
            "groupnorm-groups",
        ),
        (
            lambda: torch.nn.InstanceNorm2d(4, affine=True),
            lambda wrong: paddle.nn.InstanceNorm2D(4, epsilon=1e-3 if wrong else 1e-5),
            "instancenorm-eps",
        ),
        (
            lambda: torch.nn.Conv2d(4, 4, 3, padding=1),
            lambda wrong: paddle.nn.Conv2D(4, 4, 3, stride=2 if wrong else 1, padding=1),
            "conv-stride",
        ),
        (
            lambda: torch.nn.Conv2d(4, 4, 3, dilation=2),
            lambda wrong: paddle.nn.Conv2D(4, 4, 3, dilation=1 if wrong else 2),
            "conv-dilation",
        ),
        (
            lambda: torch.nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1),
            lambda wrong: paddle.nn.Conv2DTranspose(4, 3, 3, stride=2, output_padding=0 if wrong else 1),
            "conv-output-padding",
        ),
    ],
)
def test_an_option_of_a_layer(ours: Any, theirs: Any, cause: str) -> None:
    report = explain(
        reference=torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), ours()),
        candidate=paddle.nn.Sequential(paddle.nn.Conv2D(4, 4, 1), theirs(True)),
        inputs=PICTURES,
    ).twins[0]
    finding = next(finding for finding in report.findings if finding.roots[0] == "activation 1")
    assert finding.cause == cause
    assert finding.proof
    right = explain(
        reference=torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), ours()),
        candidate=paddle.nn.Sequential(paddle.nn.Conv2D(4, 4, 1), theirs(False)),
        inputs=PICTURES,
    ).twins[0]
    assert right.verdict == "aligned"
