"""`compare_checkpoints` and `align diff`: formats, layouts in both directions, verdicts, exit status, what is printed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from alignment import AlignmentError
from alignment.checkpoint_diff import compare_checkpoints
from alignment.cli import run
from checkpoints import CheckpointError, Extra, Layout, Move, convert, write

RNG = np.random.default_rng(0)
TENSORS = {
    "fc.weight": RNG.standard_normal((20, 30)).astype(np.float32),
    "fc.bias": RNG.standard_normal(20).astype(np.float32),
    "norm.running_mean": RNG.standard_normal(7).astype(np.float32),
    "norm.num_batches_tracked": np.array(5, np.int64),
}
LAYOUT = Layout(
    "torch",
    "paddle",
    (
        Move("fc.weight", "fc.weight", "transpose", (20, 30), (30, 20), "float32"),
        Move("fc.bias", "fc.bias", "copy", (20,), (20,), "float32"),
        Move("norm.running_mean", "norm._mean", "copy", (7,), (7,), "float32"),
    ),
    dropped=(Extra("norm.num_batches_tracked", (), "int64", "counts steps", restored=True),),
)
SUFFIXES = [".safetensors", ".safetensors.index.json", ".pth", ".pdparams", ".npz"]


@pytest.mark.parametrize("ours", SUFFIXES)
@pytest.mark.parametrize("theirs", SUFFIXES)
def test_every_format_against_every_other(tmp_path: Path, ours: str, theirs: str) -> None:
    a, b = tmp_path / f"a{ours}", tmp_path / f"b{theirs}"
    write(a, TENSORS)
    write(b, TENSORS)
    assert compare_checkpoints(a, b).verdict == "equal"
    other = {name: array.copy() for name, array in TENSORS.items()}
    other["fc.weight"][3, 4] += 0.5
    write(b, other)
    found = compare_checkpoints(a, b)
    assert found.verdict == "diverged"
    assert [tensor.name for tensor in found.tensors if tensor.verdict != "equal"] == ["fc.weight"]
    statistics = next(tensor.statistics for tensor in found.tensors if tensor.name == "fc.weight")
    assert statistics is not None
    assert (statistics.worst, statistics.differing) == ((3, 4), 1)
    assert statistics.max_abs == pytest.approx(0.5, rel=1e-6)
    assert compare_checkpoints(a, b, atol=0.6).verdict == "within"
    assert compare_checkpoints(a, b, atol=0.4, rtol=1e-9).verdict == "diverged"


def test_a_layout_is_followed_in_either_direction(tmp_path: Path) -> None:
    a, b = tmp_path / "a.pth", tmp_path / "b.pdparams"
    write(a, TENSORS)
    converted = convert(TENSORS, LAYOUT)
    write(b, converted)
    for reference, candidate in ((a, b), (b, a)):
        found = compare_checkpoints(reference, candidate, LAYOUT)
        assert found.verdict == "equal"
        assert [tensor.name for tensor in found.tensors][:2] == ["fc.weight", "fc.bias"]
        assert found.left_out == ("norm.num_batches_tracked: counts steps",)
    converted["fc.weight"][4, 3] += 0.5
    write(b, converted)
    for reference, candidate, worst in ((a, b, (3, 4)), (b, a, (4, 3))):
        statistics = compare_checkpoints(reference, candidate, LAYOUT).tensors[0].statistics
        assert statistics is not None
        assert statistics.worst == worst
    # A weight that was copied where it must be transposed.
    square = {"fc.weight": TENSORS["fc.weight"][:, :20].copy()}
    layout = Layout("torch", "paddle", (Move("fc.weight", "fc.weight", "transpose", (20, 20), (20, 20), "float32"),))
    write(a, square)
    write(b, square)
    assert compare_checkpoints(a, b).verdict == "equal"
    assert compare_checkpoints(a, b, layout).verdict == "diverged"


def test_what_is_missing_extra_or_of_another_shape_diverges(tmp_path: Path) -> None:
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    write(a, TENSORS)
    other = {"extra": np.ones(2), **TENSORS, "fc.bias": np.ones((20, 1), np.float32)}
    del other["fc.weight"]
    write(b, other)
    found = compare_checkpoints(a, b, atol=1e9)
    assert found.verdict == "diverged"
    assert {tensor.label: tensor.problem for tensor in found.tensors if tensor.problem} == {
        "fc.weight": "only in the reference",
        "fc.bias": "shapes [20] and [20, 1]",
        "extra": "only in the candidate",
    }
    lacking = {name: array for name, array in convert(TENSORS, LAYOUT).items() if name != "norm._mean"}
    write(b, lacking | {"odd": np.ones(1), "fc.weight": np.ones((2, 2), np.float32)})
    found = compare_checkpoints(a, b, LAYOUT, atol=1e9)
    assert {tensor.label: tensor.problem for tensor in found.tensors if tensor.problem} == {
        "fc.weight": "the candidate's shape is [2, 2], the layout expects [30, 20]",
        "norm.running_mean": "only in the reference",
        "odd": "only in the candidate",
    }
    write(a, {})
    write(b, {})
    with pytest.raises(AlignmentError, match="hold no tensors to compare"):
        compare_checkpoints(a, b)


def test_a_nan_on_one_side_is_within_no_tolerance(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write(a, {"w": np.zeros(9)})
    write(b, {"w": np.array([0.0] * 8 + [np.nan])})
    assert compare_checkpoints(a, b, atol=1e300, rtol=1e300).verdict == "diverged"
    assert compare_checkpoints(b, b).verdict == "equal"


def test_sixteen_raw_bits_are_bfloat16_only_where_somebody_says_so(tmp_path: Path) -> None:
    brain = np.arange(9).astype(ml_dtypes.bfloat16)
    near = brain.copy()
    near[4] += 0.25
    write(tmp_path / "a.pth", {"w": brain})
    write(tmp_path / "a.pdparams", {"w": brain})
    write(tmp_path / "b.pdparams", {"w": near})
    write(tmp_path / "b.npz", {"w": near})
    assert compare_checkpoints(tmp_path / "a.pth", tmp_path / "a.pdparams").verdict == "equal"
    for other in ("b.pdparams", "b.npz"):
        found = compare_checkpoints(tmp_path / "a.pth", tmp_path / other, ulps=True).tensors[0].statistics
        assert found is not None
        assert found.ulps is not None
        assert (found.max_abs, found.ulps.max) == (0.25, 8)
        with pytest.raises(AlignmentError, match="w: differs, and sixteen raw bits may be bfloat16 or integers"):
            compare_checkpoints(tmp_path / "a.pdparams", tmp_path / other)
        assert (
            compare_checkpoints(tmp_path / "a.pdparams", tmp_path / other, bfloat16=True, atol=0.25).verdict == "within"
        )


def test_files_are_compared_in_little_memory(tmp_path: Path) -> None:
    array = RNG.standard_normal((4000, 1000)).astype(np.float32)
    write(tmp_path / "a.pth", {"w": array, "v": array})
    moves = tuple(Move(n, n, "transpose", array.shape, array.shape[::-1], "float32") for n in "wv")
    layout = Layout("torch", "paddle", moves)
    write(tmp_path / "b.pdparams", convert({"w": array, "v": array}, layout))
    tracemalloc.start()
    assert compare_checkpoints(tmp_path / "a.pth", tmp_path / "b.pdparams", layout, threads=2).verdict == "equal"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes  # two blocks of each thread's, whatever the tensor's size


def test_the_command_says_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, report = tmp_path / "a.pth", tmp_path / "b.pdparams", tmp_path / "diff.json"
    write(a, TENSORS | {"[red]odd\x1b": np.ones(2)})
    other = {name: array.copy() for name, array in TENSORS.items()} | {"[red]odd\x1b": np.ones(2)}
    write(b, other)
    assert run(["diff", str(a), str(b)]) == 0
    assert "equal bits: 5 tensors, 5 with equal bits" in capsys.readouterr().out
    assert run(["diff", str(a), str(b), "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]" in out
    other["fc.bias"][7] = np.nan
    other["fc.weight"] *= np.float32(1 + 1e-6)
    write(b, other)
    assert run(["diff", str(a), str(b), "--json", str(report), "--ulps"]) == 1
    out = capsys.readouterr().out
    assert "diverged: 5 tensors, 3 with equal bits, 2 diverged" in out
    assert "diverged  fc.bias  [20] float32\n          1 of 20 differ; max |Δ| inf" in out
    assert f"first such at [7]: {TENSORS['fc.bias'][7]:.9g} / nan" in out
    data = json.loads(report.read_text())
    assert (data["schema"], data["verdict"]) == ("alignment.diff/1", "diverged")
    bias = next(tensor for tensor in data["tensors"] if tensor["name"] == "fc.bias")
    assert (bias["statistics"]["max_abs"], bias["statistics"]["worst"]) == ("inf", [7])
    weight = next(tensor for tensor in data["tensors"] if tensor["name"] == "fc.weight")
    assert 1 <= weight["statistics"]["ulps"]["p50"] <= 16
    other["fc.bias"] = TENSORS["fc.bias"]
    write(b, other)
    assert run(["diff", str(a), str(b), "--rtol", "1e-4"]) == 0
    assert "within the tolerance: 5 tensors, 4 with equal bits, 1 within the tolerance (atol 0, rtol 0.0001)" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert run(["diff", str(a), str(b), "--rtol", "1e-9"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout", "x.json", "--twin", "fast-transformer"], "already says"),
        (["--set", "a=1"], "--set goes with --twin"),
        (["--layout", "absent.json"], "can't read the layout"),
        (["--atol", "nan"], "atol must be"),
        (["--json", "no/where.json"], "can't write there"),
        (["--entry", "ema"], "ema"),
    ],
)
def test_misuse_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write(tmp_path / "a.pth", TENSORS)
    assert run(["diff", str(tmp_path / "a.pth"), str(tmp_path / "a.pth"), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    with pytest.raises(CheckpointError, match="No such file"):
        compare_checkpoints(tmp_path / "a.pth", tmp_path / "b.pth")


def test_a_twin_gives_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("paddle")
    from alignment.frameworks import get_framework
    from alignment.twins import TWINS

    twin = TWINS["fastformer-text-classifier"]
    sizes: dict[str, Any] = {"vocab_size": 9, "num_classes": 3, "embed": 8, "num_attention_heads": 2}
    torch = get_framework("torch")
    state = torch.read_state(torch.build(twin.reference.target, twin.settings | sizes, 3))
    write(tmp_path / "a.pth", state)
    name = ["--twin", twin.name]
    layout = tmp_path / "layout.json"
    assert (
        run(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pdparams"), *name, "--save-layout", str(layout)])
        == 0
    )
    for pair in (("a.pth", "b.pdparams"), ("b.pdparams", "a.pth")):
        for how in (name, ["--layout", str(layout)]):
            assert run(["diff", *(str(tmp_path / file) for file in pair), *how]) == 0, (pair, how)
    assert run(["diff", str(tmp_path / "a.pth"), str(tmp_path / "b.pdparams")]) == 1
    capsys.readouterr()
