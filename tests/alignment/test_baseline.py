"""Baselines: what a file says, what a damaged one is told, and what is called less precise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from alignment import AlignmentError, Report, StageResult, TensorResult, TwinResult, check
from alignment.baseline import FACTOR, Baseline, apply_baseline, baseline_of
from alignment.cli import run
from alignment.report import Module


def tensor(name: str = "fc", ratio: float | None = 1.2, rel_l2: float = 2e-16, **fields) -> TensorResult:
    """An aligned activation of 10,000 elements whose figures say that its float32 error is `ratio` times the reference's."""
    usual = {"shape": (100, 100), "reason": "fine", "decided_by": "semantics", "dtype": "float64"}
    figures = {"error_ratio": ratio, "rel_l2": rel_l2, "strain": (ratio or 0.0) / 10, "seen": 1e-16, "allowed": 1e-12}
    return TensorResult("activation", name, name, verdict="aligned", **(usual | figures | fields))


def report(*tensors: TensorResult, **fields) -> Report:
    stage = StageResult(3, "forward", tensors)
    usual = {"settings": {"dim": 8}, "weights": ("init",), "batches": ("one",), "data": "fake data", "seed": 0}
    twin = TwinResult("bag", "torch A", "paddle B", (stage,), **(usual | {"options": {"batch_size": 3}} | fields))
    return Report((twin,), {"torch": "2.13.0", "paddle": "3.3.1"})


def held(now: Report, *was: TensorResult, **fields) -> Report:
    return apply_baseline(now, baseline_of(report(*(was or (tensor(),)), **fields)))


def row(result: Report, name: str = "fc") -> TensorResult:
    return next(one for one in result.twins[0].stages[0].tensors if one.name == name)


def test_the_file_says_what_was_written_and_can_be_reviewed(tmp_path) -> None:
    odd = 'a."b"\\\x7f é[0]'
    one = baseline_of(report(tensor("fc", 1.26, 2.34e-16), tensor(odd, None, 0.0), tensor("gone", 1.0, math.inf)))
    file = tmp_path / "baseline.toml"
    one.write(file)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert "[twins.bag.forward.activation]" in lines
    assert "fc = { error_ratio = 1.3, rel_l2 = 2.3e-16 }" in lines
    assert not [line for line in lines if line.startswith("gone")]
    read = Baseline.read(file)
    figures = read.twins["bag"].stages["forward"]["activation"]
    assert (figures["fc"].error_ratio, figures["fc"].rel_l2) == (1.3, 2.3e-16)
    assert (figures[odd].error_ratio, figures[odd].rel_l2) == (None, 0.0)
    assert (read.factor, read.twins["bag"].conditions["settings.dim"]) == (FACTOR, "8")
    read.write(tmp_path / "again.toml")
    assert (tmp_path / "again.toml").read_bytes() == file.read_bytes()


def test_an_error_several_times_what_it_was_is_diverged_and_says_so() -> None:
    fine = held(report(tensor(ratio=4.0 * 1.2)))
    assert fine.verdict == "aligned"
    worse = held(report(tensor(ratio=5.0), tensor("other")), tensor(), tensor("other"))
    assert (worse.verdict, row(worse).decided_by, row(worse, "other").verdict) == ("diverged", "baseline", "aligned")
    assert "float32 error 5 times the reference's, in the baseline 1.2 times; allowed 4.8" in row(worse).reason
    assert row(worse).strain == pytest.approx(5 / (4.8 * 1.01), rel=1e-3)


def test_better_than_the_reference_is_no_promise_and_one_number_may_be_lucky() -> None:
    assert held(report(tensor(ratio=3.9)), tensor(ratio=0.1)).verdict == "aligned"
    assert held(report(tensor(ratio=4.2)), tensor(ratio=0.1)).verdict == "diverged"
    assert held(report(tensor(ratio=7.9, shape=())), tensor(ratio=0.1, shape=())).verdict == "aligned"
    assert held(report(tensor(ratio=8.1, shape=())), tensor(ratio=0.1, shape=())).verdict == "diverged"


def test_what_is_always_allowed_is_no_error() -> None:
    """A scalar whose reference rounds well by luck has a ratio of 80 and a strain of 0.3."""
    assert held(report(tensor(ratio=80.0, strain=0.3))).verdict == "aligned"
    assert held(report(tensor(ratio=80.0, strain=0.6))).verdict == "diverged"


def test_a_float64_difference_that_nears_its_limit_is_less_precise() -> None:
    assert held(report(tensor(rel_l2=1e-13, seen=2e-13))).verdict == "diverged"
    assert held(report(tensor(rel_l2=1e-13, seen=2e-14))).verdict == "aligned"  # far from what rounding explains
    assert held(report(tensor(rel_l2=1e-15, seen=2e-13))).verdict == "aligned"  # five times what it was
    same_bits = tensor(ratio=None, rel_l2=0.0)
    assert held(report(tensor(rel_l2=1e-13, seen=2e-13)), same_bits).verdict == "diverged"


def test_a_tensor_that_is_not_compared_any_more_fails_and_a_new_one_is_told() -> None:
    result = held(report(tensor(), tensor("new")), tensor(), tensor("old"))
    assert (result.verdict, row(result, "old").verdict) == ("inconclusive", "inconclusive")
    assert "not compared any more" in row(result, "old").reason
    assert result.twins[0].stages[0].notes == ("not in the baseline: new; `align baseline` adds them",)
    assert held(report(tensor(), tensor("new"))).verdict == "aligned"


def test_a_missing_twin_and_other_conditions_fail() -> None:
    result = apply_baseline(report(tensor()), Baseline())
    assert (result.verdict, result.problems) == (
        "inconclusive",
        ("bag is not in the baseline: `align baseline` adds it",),
    )
    result = held(report(tensor()), settings={"dim": 16}, options={"batch_size": 4})
    assert result.verdict == "inconclusive"
    assert "was made with batch_size 4 (now 3); settings.dim 16 (now 8)" in result.problems[0]
    assert held(report(tensor()), seed=5).verdict == "aligned"


def test_other_versions_are_named_beside_what_moved() -> None:
    later = replace(report(tensor(ratio=9.0)), versions={"torch": "2.13.0", "paddle": "3.4.0"})
    assert held(later).twins[0].notes == (
        "held to the baseline: 1 of 1 tensors less precise than it says",
        "the baseline was made with paddle 3.3.1, this is 3.4.0",
    )
    unmoved = replace(report(tensor()), versions=later.versions)
    assert held(unmoved).twins[0].notes == ("held to the baseline: none of 1 tensors less precise than it says",)


def test_what_diverges_by_itself_is_not_said_to_be_as_precise_as_it_was() -> None:
    result = held(report(tensor(), replace(tensor("other"), verdict="diverged")), tensor(), tensor("other"))
    assert result.twins[0].notes == ("held to the baseline: none of 1 tensors less precise than it says",)


def test_what_became_less_precise_has_the_line_that_makes_its_module() -> None:
    tree = (Module("", "Bag", True, site="port.py:3"), Module("fc", "Linear", False, site="port.py:7"))
    result = held(report(tensor(ratio=9.0), tensor("other"), candidate_tree=tree), tensor(), tensor("other"))
    assert (row(result).site, row(result, "other").site) == ("port.py:7", None)
    unknown = replace(tensor(ratio=9.0), candidate_name="elsewhere")
    assert (
        held(report(unknown, candidate_tree=tree), replace(unknown, error_ratio=1.0)).twins[0].tensors[0].site is None
    )


def test_a_twin_that_never_ran_is_not_told_of_other_conditions() -> None:
    crashed = report(batches=(), weights=(), data="", settings={}, options={})
    assert (held(crashed).verdict, held(crashed).problems) == ("inconclusive", ())


def test_nothing_is_written_of_what_is_not_aligned() -> None:
    with pytest.raises(AlignmentError, match="is diverged: there is no precision to hold on to"):
        baseline_of(report(replace(tensor(), verdict="diverged")))
    with pytest.raises(AlignmentError, match="a fault was planted"):
        baseline_of(report(tensor(), faults=("gelu-form",)))


GOOD = "version = 1\n[twins.bag.forward.activation]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "fc = { rel_l2 = ", "damaged"),
        ("", "no baseline of version 1: version = None"),
        (GOOD.replace("1", "2", 1), "no baseline of version 1: version = 2"),
        (GOOD + "fc = { error_ratio = 1 }", "fc: must have rel_l2"),
        (GOOD + "fc = { rel_l2 = 0, more = 1 }", "fc: must have rel_l2"),
        (GOOD + "fc = { rel_l2 = nan }", "rel_l2 must be a finite number from 0 on, not NaN"),
        (GOOD + "fc = { rel_l2 = 0, error_ratio = inf }", "error_ratio must be a finite number"),
        (GOOD + "fc = { rel_l2 = -1 }", "rel_l2 must be a finite number"),
        (GOOD + 'fc = { rel_l2 = "0" }', "rel_l2 must be a finite number"),
        (GOOD + f"fc = {{ rel_l2 = 1{'0' * 400} }}", "rel_l2 must be a finite number"),
        (f"factor = 1{'0' * 400}\n" + GOOD, "factor must be a number from 1 on"),
        (GOOD + "fc = true", "fc must be a table"),
        (GOOD.replace("forward", "sideways"), "unknown stage sideways"),
        ("factor = 0.5\n" + GOOD, "factor must be a number from 1 on, not 0.5"),
        ("factor = true\n" + GOOD, "factor must be a number from 1 on, not True"),
        ("version = 1\n", "[twins] must be a table"),
        ("version = 1\n[twins.bag.conditions]\ndim = 3", "every value must be a text"),
    ],
)
def test_a_damaged_file_is_told(tmp_path, text, said) -> None:
    file = tmp_path / "baseline.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(AlignmentError) as error:
        Baseline.read(file)
    assert str(error.value).startswith(str(file))
    assert said in str(error.value)


def test_no_file_and_no_text_are_told(tmp_path) -> None:
    with pytest.raises(AlignmentError, match="there is no such baseline; `align baseline` writes one"):
        Baseline.read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AlignmentError, match="damaged"):
        Baseline.read(tmp_path / "binary.toml")
    with pytest.raises(AlignmentError, match="can't read"):
        Baseline.read(tmp_path)


def test_right_ports_keep_to_their_baseline_under_other_seeds(small) -> None:
    twin = "fastformer-text-classifier"
    first = baseline_of(check(twin, small(twin, steps=(3, 4, 5))))
    for seed in (1, 2):
        result = apply_baseline(check(twin, small(twin, steps=(3, 4, 5), seed=seed)), first)
        bad = [one.reason for stage in result.twins[0].stages for one in stage.tensors if one.verdict != "aligned"]
        assert (result.verdict, bad) == ("aligned", [])


def test_the_command_writes_a_file_that_the_check_reads(tmp_path, monkeypatch, capsys, small_arguments) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*small_arguments("fastformer-text-classifier"), "--step", "3", "--quiet"]
    assert run(["check", *arguments, "--baseline", "b.toml"]) == 2
    assert "there is no such baseline" in capsys.readouterr().err
    assert run(["baseline", *arguments, "-o", "b.toml"]) == 0
    other = [*small_arguments("fast-transformer"), "--step", "3", "--quiet"]
    assert run(["baseline", *other, "-o", "b.toml"]) == 0
    assert set(Baseline.read("b.toml").twins) == {"fastformer-text-classifier", "fast-transformer"}
    assert run(["check", *arguments, "--baseline", "b.toml"]) == 0
    assert run(["check", *arguments, "--baseline", "b.toml", "--isolate"]) == 0
    capsys.readouterr()
    assert run(["check", *arguments, "--baseline", "b.toml", "--batch-size", "2"]) == 2
    before = (tmp_path / "b.toml").read_bytes()
    assert run(["baseline", *other, "--inject", "gelu-form", "-o", "b.toml"]) == 1
    assert "not written" in capsys.readouterr().err
    assert (tmp_path / "b.toml").read_bytes() == before


def test_the_file_and_its_options_may_stand_in_the_configuration(
    tmp_path, monkeypatch, capsys, small_arguments
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alignment.toml").write_text('baseline = "b.toml"\nstep = [1]\nquiet = true\n')
    arguments = small_arguments("fastformer-text-classifier")
    assert run(["baseline", *arguments]) == 0
    assert run(["check", *arguments]) == 0
    assert "options from alignment.toml: baseline, step, quiet" in capsys.readouterr().err
