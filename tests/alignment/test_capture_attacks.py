"""Captures that lie: the reader says what is wrong, in a sentence, whatever the file holds."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import checkpoints
from alignment import AlignmentError, compare_captures
from alignment.capture_file import (
    HEADER,
    About,
    Run,
    SavedTrace,
    read_capture,
    read_detailed,
    write_capture,
)
from alignment.figures import figures_of
from alignment.frameworks import ModuleInfo
from alignment.mapping import OwnTolerance
from alignment.scope import Said
from alignment.structures import describe, restore
from alignment.trace import Record, Terms, Trace
from checkpoints import Slot
from checkpoints.names import Renamed
from fake_data import Batch

RANDOM = np.random.default_rng(0)
ABOUT = About(
    side="reference",
    framework="torch",
    target="package:Model",
    slots=(
        Slot("fc.weight", "Linear", "weight", (2, 3), "float32"),
        Slot("fc.bias", "Linear", "bias", (2,), "float32"),
    ),
    modules=(ModuleInfo("", "Model", True), ModuleInfo("fc", "Linear", False)),
    layers={"": {}, "fc": {"eps": 1e-5}},
    loss="criterion",
    mode="train",
    twin="small",
    settings={"size": 3},
    strict=True,
    initializers=1,
    counterparts={"fc.weight": Renamed("head.weight", "transpose", True), "fc.bias": None},
    said=Said(
        ("head.bias",),
        {"fc": "head"},
        ("fc.bias",),
        ("fc",),
        ((("fc", "logits"), OwnTolerance("fc|logits", "why", semantics_margin=2.0)),),
        ("matched",),
    ),
)
WEIGHTS = {"init": {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}}
INITIAL = (WEIGHTS["init"],)
BATCH = Batch("first", {"x": np.ones((4, 3), np.float32)}, np.zeros(4, np.int64))
VALUE = RANDOM.standard_normal((4, 2))


def a_run(purpose: str, dtype: str, **more: Any) -> Run:
    value = VALUE.astype(dtype)
    records = (
        Record("activation", "fc", value),
        Record("logits", "logits", value),
        Record("gradient", "fc.bias", None),
    )
    return Run(purpose, "init", "first", 0, Trace("torch", dtype, records, {"fc": "model.py:3"}), **more)  # type: ignore[arg-type]


RUNS = (
    a_run("case", "float32"),
    a_run(
        "case",
        "float64",
        figures={("loss", "loss"): figures_of(VALUE, (1e-8, 2e-8))},
        order=(("loss", "loss"),),
        summands={"fc": Terms(3.5, 2.0, 1.0)},
    ),
    a_run("detail", "float64", left_out={("logits", "logits"): "budget"}),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "capture.safetensors"
    write_capture(path, ABOUT, WEIGHTS, (BATCH,), RUNS, INITIAL)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("attacks")


def written(folder: Path, content: bytes) -> Path:
    path = folder / "capture.safetensors"
    path.unlink(missing_ok=True)  # the last one may still be mapped
    path.write_bytes(content)
    return path


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(content: bytes, header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + header_of(content)[1]


def test_a_small_capture_is_read_back(folder, whole) -> None:
    capture = read_capture(written(folder, whole))
    assert capture.about == ABOUT
    assert [run.purpose for run in capture.runs] == ["case", "case", "detail"]
    np.testing.assert_array_equal(capture.runs[0].trace.get("activation", "fc"), VALUE.astype(np.float32))
    assert capture.runs[1].figures["loss", "loss"] == figures_of(VALUE, (1e-8, 2e-8))
    assert capture.runs[2].left_out == {("logits", "logits"): "budget"}
    assert ("gradient", "fc.bias") in capture.runs[0].order
    assert capture.runs[1].summands == {"fc": (3.5, 2.0, 1.0)}
    np.testing.assert_array_equal(capture.initial[0]["fc.weight"], np.ones((2, 3)))
    np.testing.assert_array_equal(capture.weights["init"]["fc.weight"], np.ones((2, 3)))
    with pytest.raises(AlignmentError, match="not whole"):
        read_detailed(written(folder, whole))


def test_the_tensors_stay_in_the_file(folder, whole) -> None:
    value = read_capture(written(folder, whole)).runs[0].trace.get("activation", "fc")
    assert not value.flags.writeable
    assert not value.flags.owndata


def test_any_safetensors_reader_reads_it(folder, whole) -> None:
    from safetensors.numpy import load

    tensors = load(whole)
    np.testing.assert_array_equal(tensors["1/activation/fc"], VALUE)
    assert set(checkpoints.read(written(folder, whole))) == set(tensors)


def survives(path: Path) -> None:
    """Read it, or hear what is wrong with it; and compare what was read with itself."""
    try:
        capture = read_capture(path)
    except AlignmentError as error:
        assert str(path) in str(error) and "\x1b" not in str(error)  # noqa: PT017, PT018 (either is right)
        return
    for run in capture.runs:
        for record in run.trace.records:
            assert record.value is None or record.value.nbytes <= path.stat().st_size
        assert isinstance(capture.saved(run), SavedTrace)
    with pytest.raises(AlignmentError):
        compare_captures(path, path)  # no candidate's


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes(folder, whole, data) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    survives(written(folder, bytes(content[:end])))


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2**63, 2**64 - 1, 1e308, -0.5, "", "\x1b[2J", "init", "budget", "float64"]),
    st.lists(st.sampled_from([1, "a", None, {}]), max_size=3),
    st.dictionaries(st.sampled_from(["name", "kind", "path", "dtype"]), st.sampled_from([1, "a", None]), max_size=3),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_headers_that_say_anything(folder, whole, data) -> None:
    outer, _ = header_of(whole)
    told = orjson.loads(outer["__metadata__"][HEADER])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([p for p in places(told) if p]))
        holder = told
        for key in place[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()) and isinstance(holder, dict):
            del holder[place[-1]]
        else:
            holder[place[-1]] = data.draw(ODD)
        if not told:
            break
    outer["__metadata__"][HEADER] = json.dumps(told)
    survives(written(folder, with_header(whole, outer)))


def changed(whole: bytes, change) -> bytes:
    outer, _ = header_of(whole)
    told = orjson.loads(outer["__metadata__"][HEADER])
    change(told, outer)
    outer["__metadata__"][HEADER] = json.dumps(told)
    return with_header(whole, outer)


def figures(**values: Any):
    def change(told: dict[str, Any], _outer: dict[str, Any]) -> None:
        told["runs"][1]["records"][0]["figures"] |= values

    return change


def nan_figure(told: dict[str, Any], _outer: dict[str, Any]) -> None:
    told["runs"][1]["records"][0]["figures"]["norm"] = float("nan")


def lying_shape(_told: dict[str, Any], outer: dict[str, Any]) -> None:
    outer["0/activation/fc"]["shape"] = [4, 3]


def huge_shape(_told: dict[str, Any], outer: dict[str, Any]) -> None:
    outer["0/activation/fc"]["shape"] = [2**40, 2**40]


def at(*path: Any, value: Any):
    def change(told: dict[str, Any], _outer: dict[str, Any]) -> None:
        for key in path[:-1]:
            told = told[key]
        told[path[-1]] = value

    return change


def overlapping(_told: dict[str, Any], outer: dict[str, Any]) -> None:
    outer["0/activation/fc"]["data_offsets"] = outer["0/logits/logits"]["data_offsets"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nan_figure, "header is not JSON"),
        (figures(norm=None, total="1"), "lack a finite 'total'"),
        (figures(norm=-1.0), "contradict each other"),
        (figures(smallest=3.0, largest=-3.0), "contradict each other"),
        (figures(smallest=None), "contradict its shape"),
        (figures(nan=9), "contradict its shape"),
        (figures(nan=-1), "nan -1"),
        (figures(shape=[2, 2**63]), "no list of sizes"),
        (figures(bits="short"), "no hash"),
        (figures(dtype="complex64"), "no dtype"),
        (figures(error=[1.0]), "no pair of figures"),
        (figures(error=[1.0, -1.0]), "no pair of figures"),
        (figures(norm=10**400), "not JSON|lack a finite 'norm'"),
        (lying_shape, "its bytes are not where its shape"),
        (huge_shape, "its bytes are not where its shape"),
        (overlapping, "its bytes are not where its shape"),
        (at("schema_version", value=2), "schema version 2 is not known here; 3 is"),
        (at("mode", value="both"), "mode 'both' is none of eval, train"),
        (at("dropout", value="some"), "dropout .some. is none of frozen, seeded"),
        (at("initializers", value=2), "'initial/1/fc.weight' that its header lists is missing"),
        (at("initializers", value=10**6), "at most 1000 are read"),
        (at("said", "tolerances", 0, "semantics_margin", value=0), "a tolerance of its own is none"),
        (at("said", "tolerances", 0, "semantics_margin", value=10**400), "not JSON|a tolerance of its own is none"),
        (at("said", "tolerances", 0, "reason", value=" "), "give the reason"),
        (at("said", "tolerances", 0, "names", value=["\x1b[2J"]), "can't be printed"),
        (at("said", "ignore", value=["a"] * 10_001), "names more than 10000 modules and tensors"),
        (at("said", "modules", value={"fc": 3}), "can't be printed"),
        (at("counterparts", "fc.weight", "operation", value="rotate"), "operation 'rotate' is none of"),
        (at("runs", 1, "summands", "fc", value=[1.0]), "no three figures"),
        (at("runs", 1, "summands", "fc", value=[1.0, -1.0, 1.0]), "no three figures"),
    ],
)
def test_lies(folder, whole, change, said) -> None:
    with pytest.raises(AlignmentError, match=said):
        read_capture(written(folder, changed(whole, change)))


def test_no_pattern_of_a_file_is_matched(folder, whole) -> None:
    """A name that is a pattern which takes for ever stands for itself."""
    hostile = "(a+)+$"
    path = written(folder, changed(whole, at("said", "ignore", value=[hostile])))
    scope = read_capture(path).about.said.scope({})
    assert not scope.ignores("a" * 40 + "!")
    assert scope.ignores(hostile)


def test_a_name_that_stands_twice(folder, whole) -> None:
    (length,) = struct.unpack_from("<Q", whole)
    text = whole[8 : 8 + length].rstrip()
    doubled = text[:-1] + b"," + text.split(b",", 1)[1][:-1].split(b'"0/activation', 1)[0].rstrip(b",") + b"}"
    name = b',"targets/0":{"dtype":"I64","shape":[4],"data_offsets":[0,32]}}'
    for head in (doubled, text[:-1] + name):
        with pytest.raises(AlignmentError, match=r"stands twice|not JSON|damaged"):
            read_capture(written(folder, struct.pack("<Q", len(head)) + head + header_of(whole)[1]))


def test_a_header_bomb(folder) -> None:
    for text in (b"[" * 200_000, b'{"a":' * 200_000, struct.pack("<Q", 2**60)):
        path = written(folder, struct.pack("<Q", len(text)) + text)
        with pytest.raises(AlignmentError, match=str(path)):
            read_capture(path)


def test_a_write_that_fails_leaves_nothing(tmp_path) -> None:
    path = tmp_path / "capture.safetensors"
    odd = Run(
        "case", "init", "first", 0, Trace("torch", "float32", (Record("loss", "loss", np.zeros(1, np.complex64)),))
    )
    with pytest.raises(AlignmentError, match="complex64, which a capture can't hold"):
        write_capture(path, ABOUT, WEIGHTS, (BATCH,), (*RUNS, odd), INITIAL)
    assert not list(tmp_path.iterdir())


def test_nested_inputs_travel(tmp_path) -> None:
    path = tmp_path / "capture.safetensors"
    arrays, structure = describe((np.ones((4, 3)),), {"past": (np.zeros(2), None), "flag": True})
    write_capture(path, ABOUT, WEIGHTS, (Batch("first", arrays, None, structure),), RUNS, INITIAL)
    (batch,) = read_capture(path).batches
    arguments, keywords, targets = restore(batch.structure, batch.inputs)
    assert (arguments[0].shape, keywords["past"][1], keywords["flag"], targets) == ((4, 3), None, True, None)
    odd = changed(
        path.read_bytes(), lambda told, _: told["batches"][0].update(structure={"arguments": [{"array": "y"}]})
    )
    with pytest.raises(AlignmentError, match="describes no call"):
        read_capture(written(tmp_path, odd))
