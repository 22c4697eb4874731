"""Captures of models a user brings: given themselves, in either mode, with nested inputs and outputs and a loss of one's own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import torch
from paddle import nn as layers
from torch import nn

from alignment import (
    AlignmentError,
    Keep,
    Options,
    Side,
    Twin,
    capture_candidate,
    capture_reference,
    check,
    compare_captures,
    explain_traces,
)
from alignment.capture_file import read_capture
from alignment.cli import run
from alignment.mapping import ModelMapping, OwnTolerance
from alignment.report import Report, TensorResult
from fake_data import Floats, Ids, InputSpec, Labels

from . import own_paddle, own_torch
from .siteless import siteless_stages

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(1).standard_normal((3, 5, 6)).astype(np.float32)
IMAGES = np.random.default_rng(2).standard_normal((4, 3, 6, 6)).astype(np.float32)
MASK = (X[:, :, 0] > 0).astype(np.float32)
MEMORY = {"states": [X[:, 0, :5], X[:, 1, 1:]]}
IDS = np.array([1, 4, 9])
TARGETS = {"wanted": X[:, :, :4], "weight": 0.25}
LOSSES = (own_torch.squared_error, own_paddle.squared_error)


def models(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return getattr(own_torch, name)(), getattr(own_paddle, name)()


def captured(folder: Path, ours: Any, theirs: Any, losses=(None, None), **more: Any) -> tuple[Path, Path]:
    files = folder / "reference.safetensors", folder / "candidate.safetensors"
    capture_reference(ours, files[0], loss=losses[0], **more)
    capture_candidate(files[0], files[1], theirs, loss=losses[1])
    return files


def rows(report: Report, step: int) -> dict[tuple[str, str], TensorResult]:
    return {(t.record, t.name): t for stage in report.twins[0].stages if stage.step == step for t in stage.tensors}


def bad(report: Report) -> dict[str, str]:
    return {t.name: t.reason for s in report.twins[0].stages for t in s.tensors if t.verdict != "aligned"}


class Halved(layers.Bilinear):
    def forward(self, one, two):
        return super().forward(one, two) * 0.5


# ----------------------------------------------------------------------------------------------- models given themselves


@pytest.mark.parametrize(
    ("name", "inputs", "losses", "mode"),
    [
        ("Net", (X, 0.5), (None, None), "eval"),
        ("Net", {"x": X, "mask": MASK}, (None, None), "eval"),
        ("Net", [X, X[:2], X[:1, :1]], ("outputs", "outputs"), "eval"),
        ("Named", X, (None, None), "eval"),
        ("Typed", X, (None, None), "eval"),
        ("Pair", (IDS, MEMORY), (None, None), "eval"),
        ("Block", IMAGES, (None, None), "eval"),
        ("Block", IMAGES, (None, None), "train"),
        ("Net", [(X, TARGETS)], LOSSES, "eval"),
        ("Net", [(X[:, 0], np.arange(3))], ("criterion", "criterion"), "eval"),
    ],
    ids=[
        "arguments",
        "keywords",
        "batches",
        "dict",
        "dataclass",
        "nested",
        "images",
        "train",
        "functions",
        "criterion",
    ],
)
def test_the_report_is_that_of_a_check(tmp_path, name, inputs, losses, mode) -> None:
    ours, theirs = models(name)
    loss = losses if callable(losses[0]) else losses[0]
    options = Options(steps=(1, 3, 4, 5))
    live = check(options=options, reference=ours, candidate=theirs, inputs=inputs, loss=loss, mode=mode)
    files = captured(tmp_path, ours, theirs, losses, inputs=inputs, mode=mode)
    assert compare_captures(*files, steps=(1, 3, 4, 5)).twins[0].stages == siteless_stages(live.twins[0].stages)
    assert live.verdict == "aligned"
    whole = compare_captures(*files)
    assert whole.verdict == "aligned"
    assert "initializers not compared" in whole.twins[0].stages[1].notes[0]


@pytest.mark.parametrize(
    ("name", "inputs", "plant", "root"),
    [
        ("Typed", X, lambda port: setattr(port.norm, "_epsilon", 1e-3), ("activation", "norm")),
        ("Pair", (IDS, MEMORY), lambda port: setattr(port, "mix", Halved(5, 5, 5)), ("activation", "mix")),
        ("Block", IMAGES, lambda port: setattr(port.bn2, "_momentum", 0.8), ("update", "bn2.running_mean")),
    ],
    ids=["dataclass", "nested", "buffers"],
)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_fault_of_a_model_given_itself_is_found(tmp_path, name, inputs, plant, root, mode) -> None:
    ours, theirs = models(name)
    plant(theirs)
    report = compare_captures(*captured(tmp_path, ours, theirs, inputs=inputs, mode=mode))
    assert root in {(one.record, one.name) for one in report.twins[0].roots}
    assert report.verdict == "diverged"


def test_integer_outputs_must_be_equal_and_are_whatever_is_kept(tmp_path) -> None:
    class Odd(own_paddle.Named):
        def forward(self, x):
            found = super().forward(x)
            return {**found, "best": found["best"] + 1}

    torch.manual_seed(0)
    for level in ("all", "boundaries", "statistics"):
        keep = Keep(level)  # type: ignore[arg-type]
        files = captured(tmp_path, own_torch.Named(), own_paddle.Named(), inputs=X, keep=keep)
        found = rows(compare_captures(*files), 3)
        assert found["output", "output[best]"].verdict == found["output", "output[positive]"].verdict == "aligned"
        found = rows(compare_captures(*captured(tmp_path, own_torch.Named(), Odd(), inputs=X, keep=keep)), 3)
        assert found["output", "output[best]"].verdict == "diverged"
        assert found["output", "output[positive]"].verdict == "aligned"


def test_a_loss_of_ones_own_that_differs_is_the_root(tmp_path) -> None:
    ours, theirs = models("Net")

    def wrong(output, targets):
        return own_paddle.squared_error(output, targets) * 1.001

    files = captured(tmp_path, ours, theirs, (LOSSES[0], wrong), inputs=[(X, TARGETS)], train_steps=2)
    report = compare_captures(*files)
    assert [(root.record, root.name) for root in report.twins[0].roots] == [("loss", "loss")]
    assert rows(report, 4)["loss", "loss (training)"].verdict == "diverged"
    assert explain_traces(*files).verdict == "diverged"


def test_functions_and_models_of_a_twin_travel_by_the_twin(tmp_path) -> None:
    ours, theirs = models("Net")
    sides = Side("torch", ours, loss=LOSSES[0]), Side("paddle", theirs, loss="tests.alignment.own_paddle:squared_error")
    twin = Twin("own", "a loss of one's own", *sides, {}, [(X, TARGETS)], loss="function")
    files = tmp_path / "r.safetensors", tmp_path / "c.safetensors"
    capture_reference(twin, files[0])
    capture_candidate(*files, twin)
    assert compare_captures(*files).verdict == "aligned"
    with pytest.raises(AlignmentError, match="run in eval mode, the twin is in train"):
        capture_candidate(*files, replace(twin, mode="train"))
    with pytest.raises(AlignmentError, match="its loss is function, the twin's outputs"):
        capture_candidate(*files, replace(twin, loss="outputs"))


def test_what_cannot_travel_is_said(tmp_path, capsys) -> None:
    ours, theirs = models("Net")
    files = captured(tmp_path, ours, theirs, LOSSES, inputs=[(X, TARGETS)])
    with pytest.raises(
        AlignmentError, match="was given in Python and has no name to get it by: give capture_candidate the"
    ):
        capture_candidate(*files)
    with pytest.raises(AlignmentError, match="a function, which a capture can't hold: give this side's own as loss="):
        capture_candidate(*files, theirs)
    with pytest.raises(AlignmentError, match="the reference's loss is function"):
        capture_candidate(*files, theirs, loss="outputs")
    with pytest.raises(AlignmentError, match="a function, or the name of one; not 'mse'"):
        capture_candidate(*files, theirs, loss="mse")
    with pytest.raises(AlignmentError, match="neither a torch"):
        capture_candidate(*files, object())
    with pytest.raises(AlignmentError, match="needs inputs"):
        capture_reference(ours, files[0])
    with pytest.raises(AlignmentError, match="a twin has its own"):
        capture_reference("fast-transformer", files[0], inputs=X)
    with pytest.raises(AlignmentError, match="can't be drawn again"):
        capture_reference(ours, files[0], inputs=X, initializers=True)
    with pytest.raises(AlignmentError, match="has no parameters, and so there is nothing to train"):
        capture_reference(own_torch.Bare(), files[0], inputs=X, train_steps=1)
    assert run(["capture", "--side", "paddle", "--from", str(files[0]), "-o", str(files[1])]) == 2
    assert "package.module:attribute" in capsys.readouterr().err
    odd = tmp_path / "odd.safetensors"
    with pytest.raises(AlignmentError, match="x0 is uint32, which a capture can't hold"):
        capture_reference(own_torch.Pair(), odd, inputs=(IDS.astype(np.uint32), MEMORY))
    assert not odd.exists()


APART = """
import sys

sys.modules["{absent}"] = None
import numpy as np
from alignment import capture_candidate, capture_reference
from tests.alignment import own_{own} as own

{code}
"""


def test_models_given_themselves_where_the_other_framework_is_not(tmp_path) -> None:
    files = tmp_path / "r.safetensors", tmp_path / "c.safetensors"
    np.save(tmp_path / "images.npy", IMAGES)
    images = f"np.load({str(tmp_path / 'images.npy')!r})"
    codes = {
        "torch": f"capture_reference(own.Block(), {str(files[0])!r}, inputs={images}, mode='train')",
        "paddle": f"capture_candidate({str(files[0])!r}, {str(files[1])!r}, own.Block)",
    }
    for own, absent in (("torch", "paddle"), ("paddle", "torch")):
        code = APART.format(absent=absent, own=own, code=codes[own])
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert compare_captures(*files).verdict == "aligned"


# ------------------------------------------------------------------------------------------ as strictly as a check, or not


def test_strict_captures_are_judged_as_a_strict_check(tmp_path) -> None:
    ours, theirs = models("Block")
    live = check(options=Options(strict=True, steps=(3, 4, 5)), reference=ours, candidate=theirs, inputs=IMAGES)
    lenient = captured(tmp_path, ours, theirs, inputs=IMAGES)
    assert compare_captures(*lenient).verdict == "aligned"
    apart = compare_captures(*lenient, steps=(3, 4, 5), strict=True)
    assert apart.twins[0].stages == siteless_stages(live.twins[0].stages)
    assert set(bad(apart)) == {f"{name}.running_var" for name in ("bn1", "bn2", "down.1")}
    assert run(["compare", *map(str, lenient), "--strict", "--quiet"]) == 1
    strict = captured(tmp_path, ours, theirs, inputs=IMAGES, options=Options(strict=True))
    assert compare_captures(*strict, steps=(3, 4, 5)).twins[0].stages == siteless_stages(live.twins[0].stages)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=0)

    def forward(self, ids):
        return self.embedding(ids)


class PaddedPort(layers.Layer):
    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(7, 4, padding_idx=0)

    def forward(self, ids):
        return self.embedding(ids)


def test_the_padding_row_is_of_the_references_capture(tmp_path) -> None:
    ids = np.arange(6).reshape(2, 3)
    files = captured(tmp_path, Padded(), PaddedPort(), inputs=ids)
    report = compare_captures(*files, strict=True)
    assert report.verdict == "aligned"
    assert any("rows of zeros stayed zero" in note for note in report.twins[0].notes)
    files = captured(tmp_path, Padded(), PaddedPort(), inputs=ids, options=Options(strict=True))
    assert compare_captures(*files).verdict == "diverged"


def test_gradients_of_sums_that_cancel_get_the_second_look(tmp_path, monkeypatch) -> None:
    """By what the reference's capture says of the terms they sum up, in every case."""
    ours, theirs = models("Block")
    own = OwnTolerance(".*", "the second look decides", precision_ratio=1e-6, floor_ulps=1e-6)
    options = Options(steps=(5,), mapping=ModelMapping(tolerances=(own,)))
    live = check(options=options, reference=ours, candidate=theirs, inputs=[IMAGES, IMAGES[1:]])
    files = captured(tmp_path, ours, theirs, inputs=[IMAGES, IMAGES[1:]], keep=Keep("boundaries"))
    held = read_capture(files[0]).run("init", "given-2", "float64")
    assert held is not None
    assert {"conv1", "group", "fc"} <= set(held.summands)
    assert all(terms.summed > 0 and terms.squared > 0 and terms.inputs > 0 for terms in held.summands.values())

    def gradients(report: Report) -> dict[tuple[str, str], TensorResult]:
        return {key: replace(row, root=False) for key, row in rows(report, 5).items() if key[0] == "gradient"}

    def apart() -> dict[tuple[str, str], TensorResult]:
        return gradients(compare_captures(*files, steps=(5,), mapping=options.mapping))

    assert apart() == gradients(live)
    looked = {key for key, row in apart().items() if row.verdict == "aligned"}
    monkeypatch.setattr("alignment.stages.SUMMED_ULPS", 0.0)
    assert looked > {key for key, row in apart().items() if row.verdict == "aligned"}


# --------------------------------------------------------------------------------------------------------- initialisers


def test_initialisers_are_compared_where_they_were_kept(tmp_path) -> None:
    live = check(options=Options(steps=(2,)), reference=own_torch.Net, candidate=own_paddle.Net, inputs=X)
    files = tmp_path / "r.safetensors", tmp_path / "c.safetensors"
    capture_reference(own_torch.Net, files[0], inputs=X, initializers=True)
    capture_candidate(*files, own_paddle.Net)
    report = compare_captures(*files, steps=(2,))
    assert report.twins[0].stages == siteless_stages(live.twins[0].stages)
    assert rows(report, 2)["initializer", "head.weight"].verdict == "diverged"  # Paddle starts from other distributions
    held = read_capture(files[0])
    assert len(held.initial) == held.about.initializers == 32
    assert not np.array_equal(held.initial[0]["head.weight"], held.initial[1]["head.weight"])
    np.testing.assert_array_equal(held.initial[0]["tied.weight"], held.initial[0]["first.weight"])
    capture_candidate(*files, own_paddle.Net())
    note = compare_captures(*files, steps=(2,)).twins[0].stages[0].notes[0]
    assert "the candidate's capture has none (its model was given ready-made)" in note


# ------------------------------------------------------------------------------------------------------------- training


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 16, batch_first=True)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):  # b n d -> b c
        return self.fc(self.lstm(x)[0][:, -1])


class RecurrentPort(layers.Layer):
    def __init__(self):
        super().__init__()
        self.lstm = layers.LSTM(6, 16)
        self.fc = layers.Linear(16, 5)

    def forward(self, x):  # b n d -> b c
        return self.fc(self.lstm(x)[0][:, -1])


class Encoder(nn.Module):
    """The keys' bias has no gradient but rounding, so that Adam takes its steps anywhere."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.fc = nn.Linear(16, 5)

    def forward(self, ids):  # b n -> b c
        return self.fc(self.layer(self.embedding(ids)).mean(1))


class EncoderPort(layers.Layer):
    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(40, 16)
        self.layer = layers.TransformerEncoderLayer(16, 2, 32, 0.0)
        self.fc = layers.Linear(16, 5)

    def forward(self, ids):  # b n -> b c
        return self.fc(self.layer(self.embedding(ids)).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.middle = nn.Linear(16, 16)

    def forward(self, ids):  # b n -> b n v
        return torch.tanh(self.middle(self.embedding(ids))) @ self.embedding.weight.T


class TiedPort(layers.Layer):
    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(40, 16)
        self.middle = layers.Linear(16, 16)

    def forward(self, ids):  # b n -> b n v
        return layers.functional.tanh(self.middle(self.embedding(ids))) @ self.embedding.weight.T


def trained(name: str) -> Twin:
    ours, theirs = {
        "images": (own_torch.Block, own_paddle.Block),
        "sequences": (Recurrent, RecurrentPort),
        "tokens": (Encoder, EncoderPort),
        "next tokens": (Tied, TiedPort),
    }[name]
    fields = {
        "images": {"x": Floats(("B", 3, 6, 6)), "targets": Labels(5, ("B",))},
        "sequences": {"x": Floats(("B", 7, 6)), "targets": Labels(5, ("B",))},
        "tokens": {"ids": Ids(0, 40, ("B", "N")), "targets": Labels(5, ("B",))},
        "next tokens": {"ids": Ids(0, 40, ("B", "N")), "targets": Labels(40, ("B", "N"))},
    }[name]
    spec = InputSpec(fields, max_length=7 if "tokens" in name else 1)
    sides = Side("torch", ours), Side("paddle", theirs)
    return Twin(name, name, *sides, {}, spec, loss="criterion", mode="train" if name == "images" else "eval")


ADAM = paddle.optimizer.Adam
FAULTS = {
    "eps": {"epsilon": 1e-6},
    "weight decay as L2": {"weight_decay": 1e-4},
    "the second moment's decay": {"beta2": 0.99},
    "momentum": {"beta1": 0.89},
}


@pytest.mark.parametrize("name", ["images", "sequences", "tokens", "next tokens"])
def test_training_steps_tell_right_ports_from_optimizers_that_differ(tmp_path, monkeypatch, name) -> None:
    twin, files = trained(name), (tmp_path / "r.safetensors", tmp_path / "c.safetensors")
    capture_reference(twin, files[0], Options(batch_size=4), Keep(only=("nothing",)), train_steps=6)

    def training() -> set[str]:
        capture_candidate(*files, twin)
        found = [row for stage in compare_captures(*files, (4, 5)).twins[0].stages for row in stage.tensors]
        assert {row.name for row in found} >= {"loss (training)"}
        return {row.name for row in found if row.verdict != "aligned"}

    assert not training()
    notes = " ".join(compare_captures(*files, (5,)).twins[0].notes)
    alone = {"images": "down.0.bias", "tokens": "layer.self_attn.in_proj_bias[k]"}
    assert (f"gradients are rounding alone: {alone.get(name)}" in notes) == (name in alone)
    for fault in FAULTS.values():
        monkeypatch.setattr(paddle.optimizer, "Adam", lambda fault=fault, **given: ADAM(**given, **fault))
        assert training(), fault


# ------------------------------------------------------------------------------------------------------- how it was run


def test_dropout_that_was_seeded_is_so_on_both_sides(tmp_path) -> None:
    ours, theirs = models("Net")
    options = Options(dropout="seeded", steps=(3, 4, 5))
    live = check(options=options, reference=ours, candidate=theirs, inputs=X)
    files = captured(tmp_path, ours, theirs, inputs=X, options=options)
    assert read_capture(files[1]).about.dropout == "seeded"
    assert compare_captures(*files, steps=(3, 4, 5)).twins[0].stages == siteless_stages(live.twins[0].stages)
    assert live.verdict == "aligned"
    with pytest.raises(AlignmentError, match="none in bfloat16"):
        capture_reference(ours, files[0], Options(precision="bfloat16"), inputs=X)
