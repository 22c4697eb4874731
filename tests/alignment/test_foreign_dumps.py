"""Dumps of reprod_log and PaDiff: read without trusting them, and judged as one precision allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def padiff(folder: Path, framework: str, scale: float = 1.0, first: bool = False, given: float = 1.0) -> Path:
    """A dump as PaDiff's `try_dump` writes it (padiff/tools/dump.py): of a layer called twice and a function between.

    first: as it began (padiff/dump_tools.py at 69998ee): one tree, paths for entries, and no first input or weights.
    """
    folder.mkdir(parents=True)
    numbers: dict[str, int] = {}

    def put(inner: str, prefix: str, value: np.ndarray) -> str:
        (folder / inner).mkdir(exist_ok=True)
        number = numbers[inner] = numbers.get(inner, -1) + 1
        np.save(folder / inner / f"{prefix}_{number}.npy", value)
        return f"/somewhere/else/padiff_dump/model/step_0/rank_0/{inner}/{prefix}_{number}.npy"

    def entry(value: np.ndarray) -> Any:
        path = put("tensors", "tensor", value)
        own = framework == "torch"
        return path if first else {
            "path": path, "shape": "torch.Size([2, 3])" if own else "[2, 3]", "dtype": f"{framework}.float32",
            "place": "cpu" if own else "Place(cpu)", "layout": "torch.strided" if own else "NCHW",
        }  # fmt: skip

    def node(name: str, route: str, step: int, children=()) -> dict:
        value = np.full((2, 3), 1 + len(route) + step, np.float32)
        told = {
            "name": name, "route": route, "type": "net" if route else "api",
            "fwd_outputs": [entry(value)], "bwd_grads": [entry(value * np.float32(scale))],
            "metas": {"fwd_step": 2 * step, "bwd_step": 2 * step + 1, "net_id": step if route else -1},
            "children": list(children),
        }  # fmt: skip
        return told if first else told | {"stack": "   File model.py: 3    forward\n"}

    function = "torch.nn.functional.relu" if framework == "torch" else "paddle.nn.functional.relu"
    # A layer's children stand within it, and its own tensors are written before theirs.
    children = [node("Linear", "Net.fc", 1), node(function, "", 2), node("Linear", "Net.fc", 3)]
    tree = node("Net", "Net", 4, children)
    report = {
        "model_name": "Net", "framework": framework, "file_path": f"{folder}/report.json",
        "layer_map": [] if first else {"route": [], "fullname": []}, "tree": tree if first else [tree],
    }  # fmt: skip
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored = weight if framework == "torch" else weight.T
    if not first:
        (folder / "init_weights").mkdir()
        np.save(folder / "init_weights" / "fc.weight.npy", stored - 1)
        np.save(folder / "init_weights" / "fc.bias.npy", weight[:, 0])
        (folder / "first_input").mkdir()
        np.save(folder / "first_input" / "input_0.npy", np.full((2, 3), given, np.float32))
        np.save(
            folder / "first_input" / "input_1.npy", np.arange(2, dtype="int64" if framework == "torch" else "int32")
        )
        (folder / "first_input" / "input_2.json").write_text('{"type": "bool", "data": "True"}')
        report |= {
            "has_init_weights": True, "init_weights_dir": "init_weights",
            "has_first_input": True, "first_input_dir": "first_input", "first_input_count": 3,
        }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report, indent=4))
    linear = {
        "name": "Linear", "route": "Net.fc", "repr": "Linear(in_features=3, out_features=2, bias=True)", "available": True,
        "weights": {"weight": put("weights", "weights", stored), "bias": put("weights", "weights", weight[:, 0])},
        "grads": {"weight": put("grads", "grads", stored * 2), "bias": None}, "children": [],
    }  # fmt: skip
    root = {
        "name": "Net", "route": "Net", "repr": "Net()", "available": True, "weights": {}, "grads": {}, "children": [linear],
    }  # fmt: skip
    params = {"model_name": "Net", "framework": framework, "file_path": f"{folder}/params.json", "tree": root}
    (folder / "params.json").write_text(json.dumps(params, indent=4))
    return folder


def diverging(report) -> set[tuple[str, str]]:
    return {key for key, verdict in results(report).items() if verdict == "diverged"}


def test_padiff_folders(tmp_path) -> None:
    ours, theirs = padiff(tmp_path / "torch", "torch"), padiff(tmp_path / "paddle", "paddle")
    report = compare_dumps(ours, theirs)
    found = results(report)
    assert report.verdict == "aligned"
    assert set(found) == {
        ("parameter", "fc.weight"),
        ("parameter", "fc.bias"),
        ("parameter", "fc.weight (initial)"),
        ("parameter", "fc.bias (initial)"),
        ("input", "(root)"),
        ("input", "(root)[1]"),
        *((kind, name) for kind in ("activation", "input gradient") for name in ("fc", "(1)", "fc#2", "(root)")),
        ("gradient", "fc.weight"),
        ("gradient", "fc.bias"),
    }
    assert [stage.step for stage in report.twins[0].stages] == [2, 3, 5]
    # What PaDiff calls bwd_grads are the gradients of what a layer was given, in the order of the backward pass.
    backward = [row.name for row in report.twins[0].stages[2].tensors if row.record == "input gradient"]
    assert backward == ["(root)", "fc#2", "(1)", "fc"]
    wrong = padiff(tmp_path / "wrong", "paddle", scale=3.0)
    assert diverging(compare_dumps(ours, wrong)) == {key for key in found if key[0] == "input gradient"}
    report = compare_dumps(ours, padiff(tmp_path / "other", "paddle", given=1.0000001))
    assert diverging(report) == {("input", "(root)")}
    assert [(root.record, root.name) for root in report.twins[0].roots] == [("input", "(root)")]


def test_padiff_folders_as_they_began(tmp_path) -> None:
    ours, theirs = padiff(tmp_path / "torch", "torch", first=True), padiff(tmp_path / "paddle", "paddle", first=True)
    assert compare_dumps(ours, theirs).verdict == "aligned"
    wrong = compare_dumps(ours, padiff(tmp_path / "wrong", "paddle", scale=3.0, first=True))
    assert {record for record, _ in diverging(wrong)} == {"input gradient"}


def test_weights_from_before_the_first_call_are_laid_out_by_what_was_called(tmp_path) -> None:
    folders = [padiff(tmp_path / name, name) for name in ("torch", "paddle")]
    for folder in folders:
        (folder / "params.json").unlink()
    assert results(compare_dumps(*folders))["parameter", "fc.weight (initial)"] == "aligned"
    np.save(folders[1] / "init_weights" / "fc.weight.npy", np.zeros((3, 2), np.float32))
    assert diverging(compare_dumps(*folders)) == {("parameter", "fc.weight (initial)")}


def test_the_folder_above_a_dump_says_where_it_is(tmp_path) -> None:
    inner = padiff(tmp_path / "model" / "step_0" / "rank_0", "torch")
    with pytest.raises(AlignmentError, match=f"name one of those in it: {inner}"):
        compare_dumps(tmp_path / "model", inner)


@pytest.mark.parametrize("name", ["input_x.npy", "input_.npy", "input_1e9.npy", "input_99999999.npy"])
def test_an_input_without_a_place_is_refused(tmp_path, name) -> None:
    folder = padiff(tmp_path / "torch", "torch")
    np.save(folder / "first_input" / name, np.ones(2))
    with pytest.raises(AlignmentError, match="an input's file is input_ and its place"):
        compare_dumps(folder, folder)


def test_arrays_of_objects_are_refused_wherever_they_lie(tmp_path, capsys) -> None:
    for inner, name in (("tensors", "tensor_0"), ("init_weights", "fc.bias"), ("first_input", "input_0")):
        folder = padiff(tmp_path / inner, "torch")
        np.save(folder / inner / f"{name}.npy", np.array([Evil()], dtype=object), allow_pickle=True)
        assert run(["compare", str(folder), str(folder)]) == 2
        said = capsys.readouterr()
        assert "executed" not in said.out
        assert name in said.err


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
