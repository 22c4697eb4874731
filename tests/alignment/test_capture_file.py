"""Captures as files: written, read back, distrusted, and explained where neither framework nor model is at hand."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

import checkpoints
from alignment import AlignmentError, Options, explain_traces, get_twin, run_check, save_traces
from alignment.capture_file import HEADER, read_capture, read_detailed, write_capture
from alignment.check import Checked
from alignment.cli import run
from alignment.experiment import SIDES, prepare
from alignment.localise import Scene
from alignment.saved_pair import SavedPair
from alignment.trace import Record
from alignment.twins import TWINS
from alignment.views.json import to_json


def scene_of(small, name: str, *faults: str, weights: str = "random") -> Checked:
    """A check whose one scene is the first batch, without the time that a check takes."""
    experiment = prepare(get_twin(name), small(name, faults=faults))
    return Checked(None, experiment, (Scene(experiment, weights, experiment.batches[0]),))  # type: ignore[arg-type]


def explained(small, folder: Path, name: str, *faults: str):
    return explain_traces(*save_traces(scene_of(small, name, *faults), folder)).twins[0]


@pytest.fixture
def pair(small, tmp_path) -> tuple[Path, Path]:
    return save_traces(scene_of(small, "fastformer-text-classifier"), tmp_path)


def edited(path: Path, change) -> Path:
    """The file with its header and tensors changed by a function."""
    file = checkpoints.read_checkpoint(path)
    header, tensors = orjson.loads(file.metadata[HEADER]), dict(file.tensors)
    change(header, tensors)
    checkpoints.write(path, tensors, {HEADER: json.dumps(header)})
    return path


# ------------------------------------------------------------------------------------------------------------ round trip


def test_what_is_written_is_read_back(small, tmp_path) -> None:
    checked = scene_of(small, "fast-transformer", "gelu-form")
    (scene,) = checked.scenes
    files = save_traces(checked, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["reference.safetensors", "candidate.safetensors"]
    for side, file in zip(SIDES, files, strict=True):
        saved = read_detailed(file)
        live = scene.reference64 if side == "reference" else scene.candidate64
        framework, model = checked.experiment.side(side)[0], scene.model(side, "float64")
        assert [(r.kind, r.name) for r in saved.trace.records] == [(r.kind, r.name) for r in live.records]
        for one, two in zip(saved.trace.records, live.records, strict=True):
            assert (one.value is None) == (two.value is None)
            if one.value is not None and two.value is not None:
                assert one.value.dtype == two.value.dtype
                np.testing.assert_array_equal(one.value, two.value)
        assert (saved.trace.framework, saved.trace.dtype) == (framework.name, "float64")
        assert dict(saved.trace.sites) == dict(live.sites)
        assert saved.about.modules == framework.modules(model)
        assert saved.slots == framework.slots(checked.experiment.build(side))
        assert saved.about.layers["layers.0.1.fn.1"] == framework.options(model, "layers.0.1.fn.1")
        assert saved.batch.name == scene.batch.name
        assert list(saved.batch.inputs) == list(scene.batch.inputs)
        np.testing.assert_array_equal(saved.batch.targets, scene.batch.targets)
    assert read_detailed(files[1]).about.layers["layers.0.1.fn.1"]["approximate"] == "tanh"
    again = tmp_path / "again.safetensors"
    whole = read_capture(files[1])
    write_capture(again, whole.about, whole.weights, whole.batches, whole.runs)
    assert again.read_bytes() == files[1].read_bytes()


def test_the_candidate_keeps_its_own_layout_and_weights(small, tmp_path) -> None:
    files = save_traces(scene_of(small, "fast-transformer", "linear-not-transposed"), tmp_path)
    ours, theirs = (read_detailed(file) for file in files)
    shapes = [saved.state["layers.0.0.fn.to_qkv.weight"].shape for saved in (ours, theirs)]
    assert shapes[0] == shapes[1][::-1]
    # Planted: handed over as it is, where its transpose was due.
    name = "layers.0.0.fn.to_r.weight"
    np.testing.assert_array_equal(ours.state[name], theirs.state[name])


def test_without_a_scene_it_is_the_first_batch_with_random_weights(small, tmp_path) -> None:
    checked = replace(scene_of(small, "fastformer-text-classifier"), scenes=())
    saved = read_detailed(save_traces(checked, tmp_path)[0])
    assert (saved.weights, saved.batch.name) == ("random", checked.experiment.batches[0].name)


# ------------------------------------------------------------------------------------------------------------- findings

FFN = "activation fastformer_model.layers.0.1.fn.1"


@pytest.mark.parametrize(
    ("faults", "cause", "root"),
    [
        (("gelu-form",), "gelu-form", FFN),
        (("layernorm-eps",), "layernorm-eps", "activation fastformer_model.layers.0.0.norm"),
        (
            ("linear-not-transposed",),
            "linear-not-transposed",
            "parameter fastformer_model.layers.0.0.fn.to_r.weight",
        ),
        (("stale-bias-gradient",), "stale-bias-gradient", "gradient dense_linear.bias"),
        (("mask-inverted",), "mask-inverted", "input fastformer_model[1]"),
        (("loss-reduction",), "loss-reduction", "loss loss"),
        # Two at once: every gradient is wrong because of the first, and the second can't be seen for it.
        (("gelu-form", "stale-bias-gradient"), "gelu-form", FFN),
    ],
)
def test_faults_are_found_without_the_models(small, tmp_path, faults, cause, root) -> None:
    twin = explained(small, tmp_path, "fast-transformer-classifier", *faults)
    (finding,) = twin.findings
    assert (finding.cause, finding.roots, finding.side) == (cause, (root,), "candidate")
    assert finding.before > 1e-6 > 1e-11 > finding.after
    assert twin.verdict == "diverged"
    assert not twin.faults  # found, not told


def test_the_side_is_told_by_identities_and_no_finite_difference(small, tmp_path) -> None:
    (finding,) = explained(small, tmp_path, "fast-transformer-classifier", "stale-bias-gradient").findings
    assert "breaks ∂b = Σ∂y" in finding.side_reason
    assert finding.evidence
    assert not any("(L(w + hv)" in law for law in finding.evidence)


def test_only_the_gradient_that_is_wrong_diverges(small, tmp_path) -> None:
    twin = explained(small, tmp_path, "fast-transformer-classifier", "stale-bias-gradient")
    wrong = [tensor for stage in twin.stages for tensor in stage.tensors if tensor.verdict != "aligned"]
    assert [(tensor.record, tensor.name, tensor.root) for tensor in wrong] == [("gradient", "dense_linear.bias", True)]
    assert (
        "float64 alone: 10000 × 2.2e-16 × the tensor's size, and 16 × 2.2e-16 × the largest gradient" in wrong[0].reason
    )


@pytest.mark.parametrize("name", TWINS)
def test_an_aligned_pair(small, tmp_path, name) -> None:
    checked = scene_of(small, name)
    for weights in checked.experiment.weights:
        for batch in checked.experiment.batches[:4]:
            scene = Scene(checked.experiment, weights, batch)
            report = explain_traces(*save_traces(replace(checked, scenes=(scene,)), tmp_path))
            assert report.verdict == "aligned"
            assert not report.twins[0].findings
            assert [stage.step for stage in report.twins[0].stages] == [2, 3, 4, 5]
            assert all(stage.tensors for stage in report.twins[0].stages)


def test_the_smallest_difference_that_is_none_of_rounding(pair) -> None:
    """Each kind of record is really compared: one entry moved a little makes a root or an heir of it."""
    ours, theirs = (read_detailed(file) for file in pair)
    clean = SavedPair(ours, theirs)
    assert not clean.differing
    changed = 0
    for position, record in enumerate(theirs.trace.records):
        if record.value is None or record.value.dtype != np.float64 or not np.abs(record.value).max() > 1e-3:
            continue
        value = record.value.copy()
        value.flat[np.abs(value).argmax()] *= 1 + 1e-6
        records = list(theirs.trace.records)
        records[position] = Record(record.kind, record.name, value)
        wrong = SavedPair(ours, replace(theirs, trace=replace(theirs.trace, records=tuple(records))))
        assert {key for key, found in wrong.comparisons.items() if found.verdict == "diverged"}, record.name
        if record.kind != "input":
            assert wrong.differing
            assert wrong.roots or record.kind == "gradient", (record.kind, record.name)
        changed += 1
    assert changed > 50


def test_what_a_module_is_given_matters_only_where_something_is_made_of_it(pair) -> None:
    ours, theirs = (read_detailed(file) for file in pair)
    filled = [
        replace(record, value=record.value + 1.0) if (record.kind, record.name) == ("input", "softmax") else record
        for record in theirs.trace.records
    ]
    quiet = SavedPair(ours, replace(theirs, trace=replace(theirs.trace, records=tuple(filled))))
    assert quiet.comparisons["input", "softmax"].verdict == "diverged"
    assert not quiet.differing


def test_a_tie_that_is_lost_is_explained_by_its_gradient(tmp_path) -> None:
    experiment = prepare(get_twin("mutants.gallery:tied_net__tie_lost"), Options(batch_size=3))
    scene = Scene(experiment, "random", experiment.batches[0])
    twin = explain_traces(*save_traces(Checked(None, experiment, (scene,)), tmp_path)).twins[0]  # type: ignore[arg-type]
    (finding,) = twin.findings
    assert (finding.cause, finding.roots) == ("tie-lost", ("gradient embedding.weight",))
    rows = {(t.record, t.name): t for stage in twin.stages for t in stage.tensors}
    assert rows["parameter", "output.weight"].verdict == "diverged"
    assert "tied to embedding.weight on the reference side, to nothing" in rows["parameter", "output.weight"].reason


@pytest.mark.parametrize("wrong", [False, True])
def test_names_that_differ(renamed_twin, tmp_path, wrong) -> None:
    files = save_traces(run_check(renamed_twin(wrong), Options(batch_size=3, length=5, steps=(3, 4, 5))), tmp_path)
    assert "gelu" in read_detailed(files[1]).trace.names("activation")  # in its own words
    result = explain_traces(*files).twins[0]
    assert result.verdict == ("diverged" if wrong else "aligned")
    assert [(f.cause, f.roots) for f in result.findings] == ([("gelu-form", ("activation act",))] if wrong else [])
    called = {(t.record, t.reference_name): t.candidate_name for stage in result.stages for t in stage.tensors}
    assert called["activation", "act"] == "gelu"
    assert called["parameter", "up.weight"] == "first.weight"


# ------------------------------------------------------------------------------------------------- what can't be compared


def test_two_different_models_are_never_aligned(small, tmp_path) -> None:
    one = save_traces(scene_of(small, "fastformer-text-classifier"), tmp_path / "one")
    two = save_traces(scene_of(small, "fast-transformer"), tmp_path / "two")
    with pytest.raises(AlignmentError, match="not of the same batch"):
        explain_traces(one[0], two[1])


def test_weights_that_do_not_correspond(pair) -> None:
    def rename(header, tensors) -> None:
        tensors["weight/0/other"] = tensors.pop(f"weight/0/{header['slots'][0]['name']}")
        header["slots"][0] |= {"name": "other", "local": "other"}

    with pytest.raises(AlignmentError, match=r"not of models whose weights correspond(.|\n)*other"):
        explain_traces(pair[0], edited(pair[1], rename))


def test_a_module_that_one_side_lacks_diverges(pair) -> None:
    def leave_out(header, tensors) -> None:
        run = header["runs"][0]
        run["records"] = [r for r in run["records"] if (r["kind"], r["name"]) != ("activation", "query")]
        del tensors["0/activation/query"]

    for side in (0, 1):
        kept = pair[side].read_bytes()
        report = explain_traces(*(edited(f, leave_out) if i == side else f for i, f in enumerate(pair)))
        assert report.verdict == "diverged"
        rows = {(t.record, t.name): t for stage in report.twins[0].stages for t in stage.tensors}
        assert f"missing on the {SIDES[side]} side" in rows["activation", "query"].reason
        pair[side].write_bytes(kept)


def test_a_trace_without_gradients_leaves_the_backward_pass_open(pair) -> None:
    def leave_out(header, tensors) -> None:
        run = header["runs"][0]
        gone = [r for r in run["records"] if "gradient" in r["kind"]]
        run["records"] = [r for r in run["records"] if r not in gone]
        for record in gone:
            tensors.pop(f"0/{record['kind']}/{record['name']}", None)

    edited(pair[1], leave_out)
    report = explain_traces(*pair)
    assert report.verdict == "inconclusive"
    assert report.twins[0].stages[-1].verdict == "inconclusive"
    edited(pair[0], leave_out)
    report = explain_traces(*pair)
    assert [stage.step for stage in report.twins[0].stages] == [2, 3, 4]
    assert any("backward: neither" in note for note in report.twins[0].notes)


def test_another_batch(pair) -> None:
    def other(_header, tensors) -> None:
        tensors["targets/0"] = (tensors["targets/0"] + 1) % 3

    with pytest.raises(AlignmentError, match="not of the same batch: they differ in the targets"):
        explain_traces(pair[0], edited(pair[1], other))


def test_nan_on_both_sides_is_no_agreement(pair) -> None:
    def fill(_header, tensors) -> None:
        tensors["0/activation/query"] = np.full_like(tensors["0/activation/query"], np.nan)

    assert explain_traces(*(edited(file, fill) for file in pair)).verdict == "inconclusive"


# ------------------------------------------------------------------------------------------------------- hostile files


def set_to(key, value):
    def change(header, _tensors) -> None:
        header[key] = value

    return change


def drop_tensor(_header, tensors) -> None:
    del tensors["0/activation/query"]


def add_tensor(_header, tensors) -> None:
    tensors["stray"] = np.zeros(2)


def narrow(_header, tensors) -> None:
    tensors["0/activation/query"] = tensors["0/activation/query"].astype(np.float32)


def reshape(_header, tensors) -> None:
    name = next(name for name in tensors if name.startswith("weight/") and tensors[name].ndim > 1)
    tensors[name] = tensors[name].ravel()


def first(key, **values):
    def change(header, _tensors) -> None:
        header[key][0] |= values

    return change


def in_run(**values):
    def change(header, _tensors) -> None:
        header["runs"][0] |= values

    return change


def in_record(**values):
    def change(header, _tensors) -> None:
        header["runs"][0]["records"][0] |= values

    return change


def record_twice(header, _tensors) -> None:
    header["runs"][0]["records"].append(header["runs"][0]["records"][0])


def twice(key):
    def change(header, _tensors) -> None:
        header[key].append(header[key][0])

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_to("schema_version", 1), "schema version 1 is not known"),
        (set_to("schema_version", True), "schema version True is not known"),
        (in_run(dtype="float32"), "a detail run in float32"),
        (in_run(purpose="fun"), "purpose 'fun'"),
        (in_run(records=[]), "no records"),
        (in_run(records={}), "lacks a 'records'"),
        (in_run(largest_gradient=-1.0), "largest_gradient in its header is no finite number"),
        (in_run(largest_gradient=None), "lacks a 'largest_gradient'"),
        (in_run(noise=-1), "noise -1"),
        (in_run(weights="other"), "of weights 'other'"),
        (in_run(batch="other"), "batch 'other'"),
        (set_to("runs", []), "no runs"),
        (set_to("runs", [{}] * 10_001), "10001 runs"),
        (set_to("side", "left"), "side 'left'"),
        (set_to("level", "most"), "level 'most'"),
        (set_to("weights", ["random", "random"]), "two sets of weights"),
        (set_to("budget", -3), "budget -3"),
        (set_to("loss", "mine"), "loss 'mine'"),
        (set_to("twin", "a\x1b[2J"), "can't be printed"),
        (set_to("padding", "0"), "lacks a 'padding'"),
        (set_to("counterparts", {"a": {"name": "b", "operation": "rotate"}}), "operation 'rotate'"),
        (set_to("modules", []), "begin with the model itself"),
        (drop_tensor, "'0/activation/query' that its header lists is missing"),
        (add_tensor, "'stray' is not in its header"),
        (narrow, "is float32, where its header says float64"),
        (reshape, "has shape"),
        (in_record(kind="secret"), "no kind of record"),
        (in_record(dtype="complex64"), "which no record is"),
        (in_record(left_out="boredom"), "no known reason"),
        (in_record(left_out="budget"), "is not in its header"),
        (in_record(figures={}), "lacks a 'dtype'"),
        (first("slots", shape=[1] * 65), "no list of sizes"),
        (first("slots", shape=[2**70]), "no list of sizes"),
        (first("slots", shape=[True]), "no list of sizes"),
        (first("slots", shape=[-1]), "no list of sizes"),
        (first("slots", within=None), "lacks a 'within'"),
        (first("slots", within=[["LSTM"]]), "no list of pairs"),
        (first("slots", within=[["LSTM", 3]]), "can't be printed"),
        (first("slots", role="king"), "neither a parameter nor a buffer"),
        (first("slots", tied_to="nobody"), "tied to one"),
        (first("modules", options={"eps": [1]}), "neither a number nor a text"),
        (twice("runs"), "that its header lists is missing"),
        (record_twice, "listed twice"),
        (twice("slots"), "listed twice"),
        (twice("batches"), "that its header lists is missing"),
        (twice("modules"), "each stand once"),
    ],
)
def test_headers_are_not_believed(pair, change, said) -> None:
    file = edited(pair[1], change)
    with pytest.raises(AlignmentError) as caught:
        read_detailed(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


def with_metadata(path: Path, metadata: dict[str, str]) -> None:
    checkpoints.write(path, {"x": np.zeros(2)}, metadata)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "not JSON"),
        (" " * 80_000_001, "at most 80,000,000 are read"),
    ],
)
def test_a_header_that_is_none(tmp_path, text, said) -> None:
    file = tmp_path / "trace.safetensors"
    with_metadata(file, {HEADER: text})
    with pytest.raises(AlignmentError, match=said):
        read_detailed(file)


def test_files_that_are_no_traces(tmp_path, pair) -> None:
    file = tmp_path / "trace.safetensors"
    with_metadata(file, {})
    with pytest.raises(AlignmentError, match="is no capture"):
        read_detailed(file)
    for content in (b"", b"abc", struct.pack("<Q", 2**62), struct.pack("<Q", 3) + b"abc", pickle.dumps({"a": 1}) * 9):
        file.write_bytes(content)
        with pytest.raises(AlignmentError, match=str(file)):
            read_detailed(file)
    whole = pair[0].read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 2000, 9):
        file.write_bytes(whole[:size])
        with pytest.raises(AlignmentError, match=str(file)):
            read_detailed(file)
    with pytest.raises(AlignmentError, match="No such file"):
        read_detailed(tmp_path / "none.safetensors")
    with pytest.raises(AlignmentError, match=r"is a \.safetensors file"):
        read_detailed(tmp_path / "trace.pth")


def test_options_and_shapes_that_no_layer_has_end_in_a_sentence(small, tmp_path, capsys) -> None:
    files = save_traces(scene_of(small, "fastformer-text-classifier", "mask-inverted"), tmp_path)

    def odd(header, tensors) -> None:
        softmax = next(module for module in header["modules"] if module["path"] == "softmax")
        softmax["options"]["dim"] = 99
        tensors["0/activation/softmax"] = tensors["0/activation/softmax"] * 2

    for file in files:
        edited(file, odd)
    edited(
        files[1], lambda _header, tensors: tensors.update({"0/activation/softmax": tensors["0/activation/softmax"] * 2})
    )
    edited(
        files[1],
        lambda _header, tensors: tensors.update(
            {"0/input/softmax": read_detailed(files[0]).trace.get("input", "softmax")}
        ),
    )
    assert run(["explain", *map(str, files)]) == 2
    said = capsys.readouterr().err
    assert "does not fit together" in said
    assert "Traceback" not in said


# ---------------------------------------------------------------------------------------------------------- command line


def test_written_and_explained_on_the_command_line(small_arguments, tmp_path, capsys) -> None:
    folder, report = tmp_path / "traces", tmp_path / "report.json"
    planted = ["--inject", "gelu-form", "--traces", str(folder), "--quiet"]
    assert run(["explain", *small_arguments("fast-transformer-classifier"), *planted]) == 1
    files = [str(folder / f"{side}.safetensors") for side in SIDES]
    capsys.readouterr()
    assert run(["explain", *files, "--json", str(report)]) == 1
    said = capsys.readouterr().out
    assert "finding: gelu-form" in said
    assert "where    fastformer_paddle/fast_transformer.py" in said
    told = orjson.loads(report.read_bytes())
    assert told["twins"][0]["options"] == {}
    assert told["twins"][0]["effect"] is None
    assert {"torch", "paddle", "numpy"} <= set(told["versions"])
    assert run(["explain", str(report)]) == 2  # there is no twin in it to be run again
    assert "two captures" in capsys.readouterr().err


def test_the_report_follows_the_schema(small, tmp_path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from alignment.views.json import SCHEMA

    report = explain_traces(*save_traces(scene_of(small, "fast-transformer", "gelu-form"), tmp_path))
    jsonschema.validate(orjson.loads(to_json(report)), orjson.loads(SCHEMA.read_bytes()))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("R",), "name the candidate's, too"),
        (("R", "report.json"), "report.json: two arguments must both be captures"),
        (("fast-transformer", "C"), "fast-transformer: two arguments must both be captures"),
        (("R", "C", "--seed", "3"), "--seed means nothing for captures"),
        (("R", "C", "--inject", "gelu-form"), "--inject means nothing"),
        (("R", "C", "--traces", "there"), "--traces means nothing"),
        (("R", "none.safetensors"), "No such file"),
    ],
)
def test_arguments_that_do_not_go_together(pair, tmp_path, capsys, arguments, said) -> None:
    named = {"R": str(pair[0]), "C": str(pair[1])}
    assert run(["explain", *(named.get(argument, argument) for argument in arguments)]) == 2
    assert said in capsys.readouterr().err


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "paddle", "fastformer_torch", "fastformer_paddle"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
sys.modules["torch"] = sys.modules["paddle"] = None
from alignment.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(("faults", "status"), [((), 0), (("stale-bias-gradient",), 1), (("mask-inverted",), 1)])
def test_neither_framework_is_needed(small, tmp_path, faults, status) -> None:
    files = save_traces(scene_of(small, "fast-transformer-classifier", *faults), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, "explain", *map(str, files)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert not done.stderr
    assert all(f"finding: {fault}" in done.stdout for fault in faults)
