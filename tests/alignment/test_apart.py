"""Sides captured apart and compared: the same report as a check, whatever is kept, and never aligned on what is not there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from alignment import (
    AlignmentError,
    Keep,
    Options,
    Side,
    capture_candidate,
    capture_reference,
    check,
    compare_captures,
    explain_traces,
    get_twin,
)
from alignment.apart import judge_step
from alignment.capture_file import HEADER, read_capture
from alignment.cli import run
from alignment.mapping import ModelMapping
from alignment.report import Report, TensorResult
from alignment.twins import TWINS
from alignment.views.json import SCHEMA, to_json

from .siteless import siteless

ROOT = Path(__file__).parents[2]
TINY = {"vocab_size": 40, "embed": 16, "num_attention_heads": 2}
TEXT = "fastformer-text-classifier"
QUICK = Options(settings=TINY, data="fake", batch_size=3, length=8)


def pair(folder: Path, twin, options=QUICK, keep=None, train_steps=0, **candidate) -> tuple[Path, Path]:
    files = folder / "reference.safetensors", folder / "candidate.safetensors"
    capture_reference(twin, files[0], options, keep, train_steps)
    capture_candidate(files[0], files[1], None if isinstance(twin, str) else twin, **candidate)
    return files


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, Path]:
    """A right port, with all that can be kept."""
    return pair(tmp_path_factory.mktemp("plain"), TEXT, train_steps=3)


def rows(report: Report, steps=(1, 2, 3, 4, 5)) -> dict[tuple[str, str], TensorResult]:
    (twin,) = report.twins
    return {(t.record, t.name): t for stage in twin.stages if stage.step in steps for t in stage.tensors}


# ------------------------------------------------------------------------------------------------------ the same report


@pytest.mark.parametrize("name", TWINS)
def test_the_report_is_that_of_a_check(small, tmp_path, name) -> None:
    options = replace(small(name), steps=(1, 3, 4, 5))
    live, apart = check(name, options), compare_captures(*pair(tmp_path, name, options), steps=(1, 3, 4, 5))
    assert live.verdict == apart.verdict == "aligned"
    assert rows(apart) == rows(live)
    assert apart.twins[0].stages == live.twins[0].stages
    assert apart.versions == live.versions


def test_running_statistics_are_judged_as_in_a_check(tmp_path) -> None:
    name = "examples.port.twins:conv_net"
    options = Options(batch_size=3, steps=(3, 4, 5))
    live, apart = check(name, options), compare_captures(*pair(tmp_path, name, options), steps=(3, 4, 5))
    assert apart.twins[0].stages == live.twins[0].stages
    assert "divided by N" in rows(apart)["update", "norm1.running_var"].reason
    files = pair(tmp_path, name, options, Keep(only=("*running_var", "fc.*")))
    assert not [row for row in rows(compare_captures(*files)).values() if row.verdict == "diverged"]


@pytest.mark.parametrize("fault", ["gelu-form", "stale-bias-gradient", "mask-inverted", "loss-reduction"])
def test_a_fault_has_the_same_figures_and_its_root(small, tmp_path, fault) -> None:
    name = "fast-transformer-classifier"
    options = replace(small(name, faults=(fault,)), steps=(3, 4, 5))
    live = check(name, options)
    files = pair(tmp_path, name, replace(options, faults=()), faults=(fault,))
    apart = compare_captures(*files, steps=(3, 4, 5))
    ours, theirs = rows(live), rows(apart)
    for key, row in ours.items():
        if key in theirs and row.record != "input":
            assert replace(theirs[key], root=False) == replace(row, root=False, site=None), key
    # Nothing is run again, so that of one fault in every layer the first is the root.
    assert live.twins[0].roots[0].name == apart.twins[0].roots[0].name
    assert {(t.record, t.name) for t in apart.twins[0].roots} <= {(t.record, t.name) for t in live.twins[0].roots}
    assert apart.twins[0].faults == (fault,)
    assert explain_traces(*files).twins[0].findings[0].cause == fault


def test_wrong_weights_are_a_root_of_step_2(tmp_path) -> None:
    report = compare_captures(*pair(tmp_path, TEXT, faults=("linear-not-transposed",)))
    (root,) = report.twins[0].roots
    assert root.record == "parameter"
    assert "equal bits are due" in root.reason


def test_a_candidate_that_cannot_take_the_weights_is_captured_all_the_same(tmp_path) -> None:
    twin = get_twin(TEXT)
    other = replace(twin, candidate=replace(twin.candidate, settings={"embed": 20}))
    reference, candidate = tmp_path / "r.safetensors", tmp_path / "c.safetensors"
    capture_reference(twin, reference, QUICK, initializers=True)
    written = capture_candidate(reference, candidate, other)
    assert "can't be given the reference's weights" in written.notes[0]
    apart, live = compare_captures(reference, candidate), check(other, replace(QUICK, steps=(1,)))
    assert apart.twins[0].stages[0].tensors == siteless(live.twins[0].stages[0].tensors)
    assert apart.verdict == "diverged"
    assert {stage.verdict for stage in apart.twins[0].stages[1:]} == {"inconclusive"}


def test_the_report_follows_the_schema(plain) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(orjson.loads(to_json(compare_captures(*plain))), orjson.loads(SCHEMA.read_bytes()))


# -------------------------------------------------------------------------------------------------------- what is kept


def test_boundaries(tmp_path, plain) -> None:
    name = "fast-transformer"
    options = Options(settings={"num_tokens": 30, "dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 12, "depth": 1},
                      data="fake", batch_size=3, length=8)  # fmt: skip
    files = pair(tmp_path, name, options, Keep("boundaries"))
    held = read_capture(files[0]).run("random", "random-1", "float64")
    assert not [record.name for record in held.trace.records if record.kind == "activation" and "." in record.name]
    assert {"logits", "loss", "gradient"} <= {record.kind for record in held.trace.records}
    assert ("activation", "layers.0.0.fn.to_out") in held.left_out
    report = compare_captures(*files)
    whole = rows(compare_captures(*pair(tmp_path, name, options)), steps=(3, 4, 5))
    found = rows(report, steps=(3, 4, 5))
    assert report.verdict == "aligned"
    assert ("gradient", "layers.0.0.fn.to_qkv.weight") in found
    # What is kept is judged as if all were: among others by the largest gradient of all.
    assert all(replace(whole[key], root=False) == row for key, row in found.items())
    assert any("were not captured (--level boundaries)" in note for note in report.twins[0].notes)
    assert files[0].stat().st_size > 2000


def test_only_what_is_asked_for_is_kept_and_spoken_of(tmp_path, plain) -> None:
    files = pair(tmp_path, TEXT, keep=Keep(only=("softmax*", "fc.*")))
    names = {record.name for run in read_capture(files[1]).runs for record in run.trace.records}
    assert names == {"softmax", "softmax#2", "fc.weight", "fc.bias"}
    report = compare_captures(*files)
    whole = rows(compare_captures(*plain))
    found = rows(report, steps=(3, 4, 5))
    assert {row.name for row in found.values()} == names
    assert all(row == whole[key] for key, row in found.items())
    assert report.verdict == "aligned"
    assert any("step 4 loss: not captured" in note for note in report.twins[0].notes)
    wrong = tmp_path / "wrong.safetensors"
    capture_candidate(files[0], wrong, faults=("mask-inverted",))
    assert compare_captures(files[0], wrong).verdict == "diverged"


def test_patterns_are_of_the_references_names(tmp_path) -> None:
    files = pair(tmp_path, "mutants.gallery:conv_net", Options(batch_size=3), Keep(only=("*running_mean",)))
    assert {r.name for run in read_capture(files[1]).runs for r in run.trace.records} & {
        "bn._mean",
        "bn1._mean",
        "norm._mean",
    }


def test_a_pattern_that_matches_nothing_decides_nothing(tmp_path) -> None:
    files = pair(tmp_path, TEXT, keep=Keep(only=("nothing",)))
    report = compare_captures(*files, steps=(1, 3))
    assert [stage.step for stage in report.twins[0].stages] == [1]
    with pytest.raises(AlignmentError, match="nothing that was captured"):
        compare_captures(*files, steps=(3, 4, 5))


def test_a_budget_is_kept_and_what_it_costs_is_inconclusive(tmp_path, plain) -> None:
    budget = int(plain[0].stat().st_size * 0.6)
    reference, candidate = tmp_path / "r.safetensors", tmp_path / "c.safetensors"
    written = capture_reference(TEXT, reference, QUICK, Keep(budget=budget))
    assert 0.8 * budget < reference.stat().st_size == written.bytes <= budget
    held = read_capture(reference)
    assert held.left_out == written.left_out
    # The detailed run is written whole or not at all.
    assert not [run for run in held.runs if run.purpose == "detail"]
    assert 0 < sum(len(run.left_out) for run in held.runs) < written.left_out["budget"]
    assert "for want of room" in written.describe()
    capture_candidate(reference, candidate)
    report = compare_captures(reference, candidate)
    assert report.verdict == "inconclusive"
    assert f"left out {written.left_out['budget']} records for want of room" in report.twins[0].notes[1]
    short = [row for row in rows(report).values() if "within the budget" in row.reason]
    assert short
    assert {row.verdict for row in short} == {"inconclusive"}
    assert {row.verdict for row in rows(report, (3, 4, 5)).values()} == {"aligned", "inconclusive"}
    # What is there still speaks.
    capture_candidate(reference, candidate, faults=("mask-inverted",), budget=budget)
    assert candidate.stat().st_size <= budget
    assert compare_captures(reference, candidate).verdict == "diverged"


def test_every_budget_is_kept_or_refused(tmp_path, plain) -> None:
    whole, smallest = plain[0].stat().st_size, None
    for share in (0.02, 0.1, 0.13, 0.15, 0.2, 0.3, 0.5, 0.8, 0.9):
        file = tmp_path / f"{share}.safetensors"
        try:
            capture_reference(TEXT, file, replace(QUICK, batch_size=2), Keep(budget=int(share * whole)), train_steps=2)
        except AlignmentError as error:
            assert "is too small" in str(error)  # noqa: PT017 (either is right)
            assert not file.exists()
            assert smallest is None
        else:
            assert file.stat().st_size <= int(share * whole)
            assert share < 0.2 or file.stat().st_size > 0.9 * min(int(share * whole), whole // 2)
            smallest = smallest or share
    assert smallest is not None
    assert smallest > 0.02


def test_statistics_refute_and_do_not_prove(tmp_path) -> None:
    files = pair(tmp_path, TEXT, keep=Keep("statistics"))
    capture = read_capture(files[0])
    assert not [r for run in capture.runs for r in run.trace.records if r.value is not None]
    report = compare_captures(*files)
    found = rows(report, (3, 4, 5))
    assert report.verdict == "inconclusive"
    assert found["activation", "query"].verdict == "inconclusive"
    assert "other values can have them" in found["activation", "query"].reason
    assert found["loss", "loss"].verdict == "aligned"  # one element is its own sum
    assert {row.verdict for row in found.values()} == {"aligned", "inconclusive"}
    capture_candidate(files[0], files[1], faults=("mask-inverted",))
    wrong = rows(compare_captures(*files), (3, 4, 5))
    assert wrong["activation", "softmax"].verdict == "diverged"
    assert "alone shows that float64 differs" in wrong["activation", "softmax"].reason


def test_statistics_prove_equality_by_the_bits(tmp_path) -> None:
    twin = get_twin(TEXT)
    same = replace(twin, candidate=Side("torch", twin.reference.target))
    report = compare_captures(*pair(tmp_path, same, keep=Keep("statistics")))
    assert report.verdict == "aligned"
    assert "the same bits" in rows(report)["activation", "query"].reason


# ------------------------------------------------------------------------------------------------------------- training


def test_training_steps_of_a_right_port(plain) -> None:
    found = rows(compare_captures(*plain))
    loss, update = found["loss", "loss (training)"], found["update", "fc.weight (training)"]
    assert (loss.verdict, update.verdict) == ("aligned", "aligned")
    assert compare_captures(*plain).verdict == "aligned"
    assert loss.comparisons == update.comparisons == 3
    run_ = read_capture(plain[0]).run("init", "random-1", "float32", purpose="train")
    assert {"1/loss", "2/loss", "3/loss"} == {r.name for r in run_.trace.records if r.kind == "loss"}
    change = run_.trace.get("update", "1/fc.bias")
    np.testing.assert_allclose(np.abs(change), 1e-3, rtol=1e-3)  # Adam's first step


def test_training_steps_of_a_port_whose_bias_does_not_train(small, tmp_path) -> None:
    name = "fast-transformer-classifier"
    files = pair(tmp_path, name, small(name), Keep(only=("nothing",)), 3, faults=("stale-bias-gradient",))
    found = {row.name: row for row in rows(compare_captures(*files), (4, 5)).values()}
    assert found["dense_linear.bias (training)"].verdict == "diverged"
    assert found["loss (training)"].verdict == "diverged"
    assert "elements, of 5, go another way" in found["dense_linear.bias (training)"].reason


@pytest.mark.parametrize(
    ("candidate", "verdict"),
    [
        (np.full(1000, 1e-3), "aligned"),
        (np.full(1000, 1.00002e-3), "aligned"),
        (np.full(1000, 1.1e-3), "diverged"),
        (np.where(np.arange(1000) < 9, -1e-3, 1e-3), "aligned"),
        (np.where(np.arange(1000) < 90, -1e-3, 1e-3), "diverged"),
        (np.zeros(1000), "diverged"),
        (np.full(1000, np.nan), "inconclusive"),
        (np.full(999, 1e-3), "diverged"),
        (None, "diverged"),
    ],
)
def test_how_a_step_is_judged(candidate, verdict) -> None:
    reference = np.full(1000, 1e-3)
    moved = [reference + 3e-9, reference - 2e-9]
    assert judge_step("update", reference, candidate, moved, 0.1, 1e-3, 1).verdict == verdict
    assert judge_step("update", reference, reference, [], 0.1, 1e-3, 1).verdict == "inconclusive"


# --------------------------------------------------------------------------------------------------- what is not compared


def test_files_that_do_not_belong_together(tmp_path, plain) -> None:
    other = pair(tmp_path, TEXT, replace(QUICK, seed=1))
    with pytest.raises(AlignmentError, match="was not captured from this reference's capture"):
        compare_captures(plain[0], other[1])
    with pytest.raises(AlignmentError, match="the candidate and the reference"):
        compare_captures(plain[1], plain[0])
    with pytest.raises(AlignmentError, match="is a candidate's capture"):
        capture_candidate(plain[1], tmp_path / "new.safetensors")
    with pytest.raises(AlignmentError, match="not of fast-transformer"):
        capture_candidate(plain[0], tmp_path / "new.safetensors", "fast-transformer")
    with pytest.raises(AlignmentError, match="planted on the candidate"):
        capture_reference(TEXT, tmp_path / "new.safetensors", replace(QUICK, faults=("gelu-form",)))
    with pytest.raises(AlignmentError, match=r"a capture is a \.safetensors file"):
        capture_reference(TEXT, tmp_path / "new.pth", QUICK)
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("capture", TEXT, "--side", "paddle", "-o", "OUT"), "name that with --from"),
        (("capture", TEXT, "--side", "candidate", "-o", "OUT"), "name that with --from"),
        (("capture", TEXT, "--side", "left", "-o", "OUT"), "does not tell which side"),
        (("capture", TEXT, "--side", "torch", "--from", "R", "-o", "OUT"), "--from goes with the candidate"),
        (("capture", "--side", "paddle", "--from", "R", "--seed", "3", "-o", "OUT"), "--seed is taken from"),
        (("capture", "--side", "paddle", "--from", "R", "--level", "all", "-o", "OUT"), "--level is taken from"),
        (("capture", TEXT, "--side", "torch", "--budget", "many", "-o", "OUT"), "is no size"),
        (("capture", TEXT, "--side", "torch", "--json", "x.json", "-o", "OUT"), "goes with `align compare`"),
        (("capture", TEXT, "--side", "torch", "-o", "nowhere/x.safetensors"), "there is no folder nowhere"),
        (("compare", "R", "none.safetensors"), "No such file"),
        (("compare", "R", "other.npy"), "a capture is compared with a capture"),
        (("compare", "R", "C", "--tolerance", "0.1"), "--tolerance goes with dumps"),
        (("check", TEXT, "--reference-python", "no-such-python"), "no such program"),
        (("check", TEXT, "--reference-python", "python", "--isolate"), "--isolate goes with a check in one"),
        (
            ("check", TEXT, "--candidate-python", "python", "--mapping", "none.toml"),
            "none.toml: can't read the mapping",
        ),
        (("capture", "--side", "paddle", "--from", "R", "--strict", "-o", "OUT"), "--strict is taken from"),
        (("capture", "--side", "paddle", "--from", "R", "--initializers", "-o", "OUT"), "--initializers is taken from"),
        (("capture", TEXT, "--side", "torch", "--weights", "x.pdparams", "-o", "OUT"), "`align convert`"),
        (("capture", TEXT, "--side", "torch", "--mapping", "m.toml", "-o", "OUT"), "goes with the candidate's capture"),
        (("compare", "R", "C", "--mapping", "none.toml"), "none.toml: can't read the mapping"),
        (("compare", "a.npy", "b.npy", "--mapping", "m.toml"), "--mapping goes with captures"),
        (("compare", "a.npy", "b.npy", "--strict"), "--strict goes with captures"),
        (("map", TEXT, "--from", "R", "--set", "embed=8", "-o", "NEW"), "--set is taken from"),
        (("map", TEXT, "--from", "C", "-o", "NEW"), "is a candidate's capture"),
        (("map", "fast-transformer", "--from", "R", "-o", "NEW"), "not of fast-transformer"),
        (("check", TEXT, "--timeout", "5"), "--timeout goes with --isolate, or with --reference-python"),
    ],
)
def test_arguments_that_do_not_go_together(plain, tmp_path, capsys, arguments, said) -> None:
    named = {
        "R": str(plain[0]),
        "C": str(plain[1]),
        "OUT": str(tmp_path / "x.safetensors"),
        "NEW": str(tmp_path / "n.toml"),
    }
    assert run([named.get(argument, argument) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "x.safetensors").exists()


# -------------------------------------------------------------------------------------------- an environment for each side

BLOCKED = """
import sys

blocked = sys.argv[1].split(",")

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
sys.modules.update(dict.fromkeys(blocked))
from alignment.cli import run
sys.exit(run(sys.argv[2:]))
"""
TORCH, PADDLE = "torch,fastformer_torch", "paddle,fastformer_paddle"


def without(blocked: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`align` where some packages can't be imported."""
    command = [sys.executable, "-c", BLOCKED, blocked, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("fault", "status"), [(None, 0), ("mask-inverted", 1)])
def test_three_environments(small_arguments, tmp_path, fault, status) -> None:
    reference, candidate, report = (tmp_path / name for name in ("r.safetensors", "c.safetensors", "report.json"))
    done = without(PADDLE, "capture", *small_arguments(TEXT), "--side", "torch", "-o", reference)
    assert done.returncode == 0, done.stderr
    assert f"{reference}: " in done.stdout
    planted = ["--inject", fault] if fault else []
    done = without(TORCH, "capture", "--side", "paddle", "--from", reference, *planted, "-o", candidate)
    assert done.returncode == 0, done.stderr
    done = without(f"{TORCH},{PADDLE}", "compare", reference, candidate, "--json", report)
    assert done.returncode == status, done.stderr
    assert not done.stderr
    told = orjson.loads(report.read_bytes())["twins"][0]
    assert [stage["step"] for stage in told["stages"]] == [1, 2, 3, 4, 5]
    assert told["options"] == {}
    done = without(f"{TORCH},{PADDLE}", "explain", reference, candidate)
    assert done.returncode == status, done.stderr
    assert fault is None or "finding: " in done.stdout


def test_a_mapping_goes_with_the_candidate(plain, tmp_path) -> None:
    with pytest.raises(AlignmentError, match="a mapping goes with the candidate"):
        capture_reference(TEXT, tmp_path / "r.safetensors", replace(QUICK, mapping=ModelMapping(ignore=("fc",))))
    files = plain[0], tmp_path / "c.safetensors"
    capture_candidate(*files, mapping=ModelMapping(ignore=("fc",)))
    report = compare_captures(*files)
    assert report.verdict == "aligned"
    assert "ignored by the mapping: " in " ".join(report.twins[0].stages[2].notes)
    assert not [name for _, name in rows(report) if name.startswith("fc")]


def test_the_blocker_blocks(tmp_path) -> None:
    done = without(TORCH, "capture", TEXT, "--side", "torch", "-o", tmp_path / "x.safetensors")
    assert done.returncode == 2
    assert "torch is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def python_that(folder: Path, code: str) -> str:
    """An interpreter that does something else."""
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\n{code}\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(("fault", "status"), [(None, 0), ("mask-inverted", 1)])
def test_one_command_drives_two_interpreters(small_arguments, tmp_path, capsys, fault, status) -> None:
    report = tmp_path / "report.json"
    arguments = ["check", *small_arguments(TEXT), "--reference-python", sys.executable, "--json", str(report)]
    assert run([*arguments, "--step", "3", *(["--inject", fault] if fault else [])]) == status
    (twin,) = orjson.loads(report.read_bytes())["twins"]
    assert [stage["step"] for stage in twin["stages"]] == [3]
    assert twin["faults"] == ([fault] if fault else [])
    assert twin["notes"][0].startswith("captured apart")


def test_two_interpreters_compare_what_one_does(small_arguments, tmp_path) -> None:
    """Initialisers and strictness, too."""
    reports = []
    for number, apart in enumerate(((), ("--candidate-python", sys.executable))):
        report = tmp_path / f"{number}.json"
        run(["check", *small_arguments(TEXT), "--step", "2", "--strict", "--json", str(report), *apart])
        reports.append(orjson.loads(report.read_bytes())["twins"][0]["stages"])
    assert reports[0] == reports[1]
    assert [tensor for tensor in reports[0][0]["tensors"] if tensor["record"] == "initializer"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('half a word'); raise SystemExit(3)", ("exit status 3", "half a word")),
        ("import os; print('dying', flush=True); os.kill(os.getpid(), 6)", ("SIGABRT", "dying")),
        ("import time; print('waiting', flush=True); time.sleep(60)", ("no answer after", "waiting")),
        ("", ("exit status 0, but it wrote no capture", "(nothing)")),
    ],
)
def test_a_side_that_crashes_or_hangs(small_arguments, tmp_path, capsys, code, said) -> None:
    odd = python_that(tmp_path, code)
    assert run(["check", *small_arguments(TEXT), "--reference-python", odd, "--timeout", "3"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert all(words in printed for words in said)


def test_the_header_says_what_ran(plain) -> None:
    about = read_capture(plain[1]).about
    assert (about.side, about.framework, about.device, about.twin) == ("candidate", "paddle", "cpu", TEXT)
    assert about.of == read_capture(plain[0]).identity
    assert about.versions["paddle"]
    assert HEADER == "alignment_capture"
