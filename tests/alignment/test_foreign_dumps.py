"""Dumps of reprod_log and PaDiff: read without trusting them, and judged as one precision allows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints
from alignment import AlignmentError
from alignment.cli import run
from alignment.experiment import prepare
from alignment.foreign import compare_dumps, judge32
from alignment.reprod import write_reprod_logs
from alignment.twins import get_twin
from checkpoints import CheckpointError

RANDOM = np.random.default_rng(0)
TENSORS = {"logits": RANDOM.standard_normal((3, 5)).astype(np.float32), "layer.norm": RANDOM.standard_normal(7)}


def save(path: Path, tensors) -> Path:
    np.save(path, tensors, allow_pickle=True)
    return path


def results(report) -> dict[tuple[str, str], str]:
    (twin,) = report.twins
    return {(t.record, t.name): t.verdict for stage in twin.stages for t in stage.tensors}


# ------------------------------------------------------------------------------------------------------------ reprod_log


@pytest.mark.parametrize("stem", ["structure", "init", "forward", "loss", "bp_align"])
def test_what_a_check_writes_is_read_and_compared(small, tmp_path, stem) -> None:
    pytest.importorskip("reprod_log")
    experiment = prepare(get_twin("fastformer-text-classifier"), small("fastformer-text-classifier"))
    write_reprod_logs(experiment, tmp_path)
    files = [tmp_path / f"{stem}_{side}.npy" for side in ("torch", "paddle")]
    held = checkpoints.read_boxed(files[0]).tensors
    trusted = np.load(files[0], allow_pickle=True).tolist()
    assert set(held) == set(trusted)
    assert all(np.array_equal(held[name], trusted[name]) for name in held)
    found = results(compare_dumps(*files))
    assert set(found.values()) <= {"aligned", "inconclusive"}
    # Float32 runs of two frameworks are hardly ever equal; shapes, converted weights and a loss of few digits may be.
    assert ("inconclusive" in found.values()) == (stem in ("forward", "bp_align"))
    report = compare_dumps(*files, tolerance=1e-4)
    names = {"structure": 1, "init": 2, "forward": 3, "loss": 4, "bp_align": 5}
    assert [stage.step for stage in report.twins[0].stages] == [names[stem]]
    # An optimizer's step is of the sign of a gradient, be it rounding noise.
    rest = {key: found for key, found in results(report).items() if key[0] != "update"}
    assert set(rest.values()) == {"aligned"}


def test_the_packages_own_files(tmp_path) -> None:
    reprod_log = pytest.importorskip("reprod_log")
    logger = reprod_log.ReprodLogger()
    for name, value in TENSORS.items():
        logger.add(name, value)
    logger.save(str(tmp_path / "forward_torch.npy"))
    assert set(checkpoints.read_boxed(tmp_path / "forward_torch.npy").tensors) == set(TENSORS)


def test_differences_on_the_command_line(tmp_path, capsys) -> None:
    one = save(tmp_path / "forward_torch.npy", TENSORS)
    near = {name: value * np.float32(1 + 1e-6) for name, value in TENSORS.items()}
    two = save(tmp_path / "forward_paddle.npy", near)
    three = save(tmp_path / "forward_wrong.npy", near | {"logits": near["logits"] * 2})
    report = tmp_path / "report.json"
    assert run(["compare", str(one), str(one)]) == 0
    assert run(["compare", str(one), str(two)]) == 2
    assert "there is no float64 run to tell" in " ".join(capsys.readouterr().out.split())
    assert run(["compare", str(one), str(two), "--tolerance", "1e-5", "--json", str(report)]) == 0
    assert "tolerance: 1e-05" in orjson.loads(report.read_bytes())["twins"][0]["notes"][0]
    assert run(["compare", str(one), str(two), "--tolerance", "1e-7"]) == 2
    assert run(["compare", str(one), str(three), "--tolerance", "1e-5"]) == 1
    assert run(["compare", str(one), str(two), "--step", "3"]) == 2
    jsonschema = pytest.importorskip("jsonschema")
    from alignment.views.json import SCHEMA

    jsonschema.validate(orjson.loads(report.read_bytes()), orjson.loads(SCHEMA.read_bytes()))


def test_a_tensor_that_one_side_lacks(tmp_path) -> None:
    one = save(tmp_path / "forward_a.npy", TENSORS)
    two = save(tmp_path / "forward_b.npy", {"logits": TENSORS["logits"], "more": np.ones(2)})
    found = results(compare_dumps(one, two, tolerance=1.0))
    assert found == {
        ("logits", "logits"): "aligned",
        ("activation", "layer.norm"): "diverged",
        ("activation", "more"): "diverged",
    }


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [
        Evil(),
        {"a": Evil()},
        {"a": np.array([Evil()], dtype=object)},
        {"a": [1, 2]},
        {1: np.ones(2)},
        {},
        [np.ones(2)],
        {"a": {"b": 1}},
    ],
)
def test_a_file_that_would_run_something_is_refused(tmp_path, capsys, content) -> None:
    path = tmp_path / "forward.npy"
    np.save(path, np.array(content, dtype=object) if not isinstance(content, list) else content, allow_pickle=True)
    other = save(tmp_path / "forward_b.npy", TENSORS)
    assert run(["compare", str(path), str(other)]) == 2
    said = capsys.readouterr()
    assert "executed" not in said.out
    assert "Traceback" not in said.err
    assert str(path) in said.err


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_files_end_in_a_sentence(tmp_path_factory, data) -> None:
    path = save(tmp_path_factory.getbasetemp() / "forward_damaged.npy", TENSORS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.unlink()
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        assert checkpoints.read_boxed(path).tensors
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017 (either is right)


# ------------------------------------------------------------------------------------------------------------------ rule


@pytest.mark.parametrize(
    ("change", "tolerance", "verdict"),
    [
        (0.0, None, "aligned"),
        (1e-7, None, "inconclusive"),
        (1e-4, None, "inconclusive"),
        (1e-2, None, "diverged"),
        (1e-7, 1e-6, "aligned"),
        (1e-5, 1e-6, "inconclusive"),
        (1e-2, 1e-6, "diverged"),
        (1e-2, 0.1, "aligned"),
        (np.nan, 1.0, "diverged"),
        (np.inf, 1.0, "diverged"),
    ],
)
def test_the_rule(change, tolerance, verdict) -> None:
    value = np.linspace(-1, 1, 9, dtype=np.float32)
    other = value.copy()
    other[-1] += np.float32(change)
    assert judge32(value, other, 1.0, tolerance).verdict == verdict


def test_what_is_zero_but_for_rounding() -> None:
    one, two = np.full(4, 1e-9, np.float32), np.full(4, -3e-9, np.float32)
    assert judge32(one, two, 1.0, 1e-5).verdict == "aligned"
    assert judge32(one, two, 1.0, None).verdict == "inconclusive"
    assert judge32(one, two, 1e-8, 1e-5).verdict == "diverged"


# ---------------------------------------------------------------------------------------------------------------- PaDiff


def padiff(folder: Path, framework: str, scale: float = 1.0) -> Path:
    """A dump as padiff/tools/dump.py writes it: of a Linear and a function, under a model that hands on what they give."""
    layer = "torch.nn.Module" if framework == "torch" else "paddle.nn.Layer"
    folder.mkdir(parents=True)
    number = 0

    def put(inner: str, value: np.ndarray) -> str:
        nonlocal number
        (folder / inner).mkdir(exist_ok=True)
        np.save(folder / inner / f"{inner}_{number}.npy", value)
        number += 1
        return f"/somewhere/else/padiff_dump/model/{inner}/{inner}_{number - 1}.npy"

    def node(name: str, route: str, children=()) -> dict:
        value = np.full((2, 3), len(name), np.float32)
        return {
            "name": name, "route": route, "type": "net",
            "fwd_outputs": [{"path": put("tensors", value), "shape": "[2, 3]", "dtype": "float32"}],
            "bwd_grads": [{"path": put("tensors", value * scale), "shape": "[2, 3]", "dtype": "float32"}],
            "metas": {"fwd_step": 0, "bwd_step": 0, "net_id": 1}, "children": list(children), "stack": layer,
        }  # fmt: skip

    function = "torch.nn.functional.relu()"
    tree = node("Model()", "Net", [node("Linear(3, 3)", "Net.fc"), node(function, ""), node("Linear(3, 3)", "Net.fc")])
    report = {"model_name": "Net", "framework": framework, "file_path": "report.json", "layer_map": {}, "tree": [tree]}
    (folder / "report.json").write_text(json.dumps(report))
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored = weight if framework == "torch" else weight.T
    linear = {
        "name": "Linear", "route": "Net.fc", "repr": "Linear()", "available": True, "children": [],
        "weights": {"weight": put("weights", stored), "bias": put("weights", weight[:, 0])},
        "grads": {"weight": put("grads", stored * 2), "bias": None},
    }  # fmt: skip
    root = {
        "name": "Net",
        "route": "Net",
        "repr": "Net()",
        "available": True,
        "weights": {},
        "grads": {},
        "children": [linear],
    }
    params = {"model_name": "Net", "framework": framework, "file_path": "params.json", "tree": root}
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def test_padiff_folders(tmp_path) -> None:
    ours, theirs = padiff(tmp_path / "torch", "torch"), padiff(tmp_path / "paddle", "paddle")
    report = compare_dumps(ours, theirs)
    found = results(report)
    assert report.verdict == "aligned"
    assert {("parameter", "fc.weight"), ("gradient", "fc.weight"), ("gradient", "fc.bias")} <= set(found)
    assert {
        ("activation", "fc"),
        ("activation", "fc#2"),
        ("activation", "(1)"),
        ("activation gradient", "(root)"),
    } <= set(found)
    assert [stage.step for stage in report.twins[0].stages] == [2, 3, 5]
    wrong = padiff(tmp_path / "wrong", "paddle", scale=3.0)
    report = compare_dumps(ours, wrong)
    assert {t.record for stage in report.twins[0].stages for t in stage.tensors if t.verdict == "diverged"} == {
        "activation gradient"
    }


@pytest.mark.parametrize("name", ["../../secret.npy", "/etc/passwd", "x.npy.txt", "", "..", "C:\\x\\y.txt"])
def test_a_padiff_path_leads_nowhere_else(tmp_path, name) -> None:
    np.save(tmp_path / "secret.npy", np.ones(2))
    ours = padiff(tmp_path / "torch", "torch")
    told = json.loads((ours / "report.json").read_text())
    told["tree"][0]["fwd_outputs"][0]["path"] = name
    (ours / "report.json").write_text(json.dumps(told))
    with pytest.raises(AlignmentError, match=r"refused|no such file|can't be read|No such file"):
        compare_dumps(ours, ours)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "is no JSON"),
        ("{}", "lacks a 'framework'"),
        ('{"framework": "torch", "model_name": "N", "tree": [3]}', "its tree is none"),
        ('{"framework": "torch", "model_name": "N", "tree": []}', "name no tensors"),
        ('{"framework": "torch", "model_name": "N", "tree": [{"children": 3}]}', "are no list"),
        ('{"framework": "torch", "model_name": "N", "tree": [{"fwd_outputs": [{"path": 3}]}]}', "not text"),
    ],
)
def test_padiff_files_that_say_nothing(tmp_path, text, said) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(AlignmentError, match=said):
        compare_dumps(tmp_path, tmp_path)


def test_folders_and_files_that_are_no_dumps(tmp_path) -> None:
    with pytest.raises(AlignmentError, match="is no dump folder of PaDiff"):
        compare_dumps(tmp_path, tmp_path)
    with pytest.raises(AlignmentError, match="there is no such file"):
        compare_dumps(tmp_path / "a.txt", tmp_path / "b.txt")
    one = save(tmp_path / "forward.npy", TENSORS)
    np.save(tmp_path / "plain.npy", np.ones(3))
    with pytest.raises(AlignmentError, match="where a dictionary of arrays is due"):
        compare_dumps(one, tmp_path / "plain.npy")
    with pytest.raises(AlignmentError, match="compare dumps of one tool"):
        compare_dumps(one, padiff(tmp_path / "torch", "torch"))
