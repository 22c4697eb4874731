"""The line of the candidate's source that a root is given: of the port, never of a framework or of this package."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from alignment import Options, check

ROOT = Path(__file__).resolve().parents[2]


def test_a_root_has_the_line_that_makes_it_and_others_have_none(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    report = check("examples.port.twins:conv_net_first", Options(steps=(3,), batch_size=3))
    (stage,) = report.twins[0].stages
    sites = {tensor.name: tensor.site for tensor in stage.tensors if tensor.root}
    lines = (ROOT / "examples/port/first_port.py").read_text(encoding="utf-8").splitlines()
    file, _, line = (sites["pool"] or "").partition(":")
    assert (file, "self.pool = " in lines[int(line) - 1]) == ("examples/port/first_port.py", True)
    assert {tensor.site for tensor in stage.tensors if not tensor.root} == {None}


def test_a_model_of_the_frameworks_own_layers_alone_has_no_line() -> None:
    import paddle
    import torch

    inputs = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    models = torch.nn.Sequential(torch.nn.GELU()), paddle.nn.Sequential(paddle.nn.GELU(approximate=True))
    report = check(reference=models[0], candidate=models[1], inputs=inputs)
    assert report.verdict == "diverged"
    assert [tensor.site for tensor in report.twins[0].roots] == [None] * len(report.twins[0].roots)


def test_what_no_line_is_nearer_to_has_that_of_the_class() -> None:
    """An initialiser is no line of the model's: its class is named."""
    report = check("examples.port.twins:conv_net", Options(steps=(2,), batch_size=2))
    assert report.verdict == "diverged"  # Paddle's own initialisers
    (site,) = {tensor.site for tensor in report.twins[0].roots}
    file, _, line = (site or "").rpartition(":")
    assert Path(file).name == "port.py"
    around = Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
    assert "def forward" in around
