"""Roots: each piece of the candidate is judged on the reference's own values, so that several faults are found in one run."""

from __future__ import annotations

import numpy as np
import pytest

from alignment import Options, StageResult, TensorResult, check, get_twin
from alignment.experiment import prepare
from alignment.localise import Scene, with_uses_of_logits
from alignment.trace import GRADIENT_OF
from alignment.twins import TWINS
from mutants.gallery import GALLERY


def roots(report) -> set[tuple[str, str]]:
    return {(root.record, root.name) for root in report.twins[0].roots}


@pytest.mark.parametrize("name", [*TWINS, *(f"mutants.gallery:{name.replace('-', '_')}" for name in GALLERY)])
def test_nothing_fails_in_a_forced_run_of_a_right_port(small, name) -> None:
    options = small(name) if name in TWINS else Options(batch_size=3)
    experiment = prepare(get_twin(name), options)
    for batch in experiment.batches[:2]:
        scene = Scene(experiment, "random", batch)
        forced = scene.forced()
        assert not scene.failing(forced)
        assert not scene.roots
        kinds = {record.kind for record in forced.records}
        assert {*GRADIENT_OF, *GRADIENT_OF.values(), "gradient", "loss"} <= kinds


def test_two_independent_faults_are_both_roots(small) -> None:
    options = small("fastformer-classifier", faults=("gelu-form", "stale-bias-gradient"))
    report = check("fastformer-classifier", options)
    gelu = {("activation", f"fastformer_model.encoders.{i}.intermediate.gelu") for i in (0, 1)}
    assert roots(report) == {*gelu, ("gradient", "dense_linear.bias")}


def test_a_fault_downstream_of_another_is_found_beside_it(small) -> None:
    faults = ("mask-inverted", "gelu-form", "loss-reduction")
    report = check("fast-transformer-classifier", small("fast-transformer-classifier", faults=faults))
    gelu = {("activation", f"fastformer_model.layers.{i}.1.fn.1") for i in (0, 1)}
    assert roots(report) == {("input", "fastformer_model[1]"), *gelu, ("loss", "loss")}
    inherited = [t for stage in report.twins[0].stages for t in stage.tensors if t.verdict == "diverged" and not t.root]
    assert len(inherited) > 50


def test_wrong_weights_are_the_root_and_not_the_layers_that_use_them(small) -> None:
    report = check("fast-transformer", small("fast-transformer", faults=("linear-not-transposed",)))
    assert roots(report) == {("parameter", "layers.0.0.fn.to_r.weight")}


def test_wrong_weights_and_wrong_code_are_told_apart(small) -> None:
    report = check("fast-transformer", small("fast-transformer", faults=("linear-not-transposed", "layernorm-eps")))
    found = roots(report)
    assert ("parameter", "layers.0.0.fn.to_r.weight") in found
    assert ("activation", "to_logits.0") in found
    assert all(record == "parameter" or name.endswith(("norm", "to_logits.0")) for record, name in found)


@pytest.mark.parametrize("fault", ["stale-bias-gradient", "gelu-form"])
def test_a_criterion_that_means_something_else_is_a_root_beside_another(small, monkeypatch, fault) -> None:
    """Its logits agree, or differ by the other fault: it is judged on the reference's."""
    from alignment.frameworks import paddle as adapter

    right = adapter.cross_entropy

    def divided_by_all(logits, targets, *, reduction="mean", ignore_index=None):
        if reduction == "mean" and ignore_index is not None:
            return right(logits, targets, reduction="sum", ignore_index=ignore_index) / targets.size
        return right(logits, targets, reduction=reduction, ignore_index=ignore_index)

    monkeypatch.setattr(adapter, "cross_entropy", divided_by_all)
    report = check("fastformer-classifier", small("fastformer-classifier", faults=(fault,)))
    found = roots(report)
    assert ("loss", "cross_entropy[mean, ignore_index]") in found
    assert [name for record, name in found if record == "loss"] == ["cross_entropy[mean, ignore_index]"]
    assert len(found) > 1
    planted = {"stale-bias-gradient": "gradient", "gelu-form": "activation"}[fault]
    assert {record for record, _ in found} == {"loss", planted}


@pytest.mark.parametrize("logits", ["aligned", "diverged"])
def test_a_metric_is_a_root_where_the_logits_agree(logits) -> None:
    def row(record: str, name: str, verdict: str, root: bool = False) -> TensorResult:
        return TensorResult(record, name, name, (), verdict, "", root=root)  # type: ignore[arg-type]

    stages = (
        StageResult(3, "forward", (row("logits", "logits", logits),)),
        StageResult(4, "loss", (row("loss", "loss", "diverged"), row("metric", "accuracy", "diverged"))),
        StageResult(5, "backward", (row("gradient", "fc.bias", "diverged", root=True),)),
    )
    marked = [t.name for stage in with_uses_of_logits(stages, ()) for t in stage.tensors if t.root]
    assert marked == (["accuracy", "fc.bias"] if logits == "aligned" else ["fc.bias"])


@pytest.mark.parametrize("wrong", [False, True])
def test_modules_of_other_names_correspond(renamed_twin, wrong) -> None:
    report = check(renamed_twin(wrong), Options(batch_size=3, length=5, steps=(1, 3, 4, 5)))
    assert report.verdict == ("diverged" if wrong else "aligned")
    assert roots(report) == ({("activation", "act")} if wrong else set())
    forward = {tensor.reference_name: tensor.candidate_name for tensor in report.twins[0].stages[1].tensors}
    assert forward["act"] == "gelu"
    assert forward["up"] == "first"


def test_a_mask_that_both_sides_fill_with_other_numbers_is_no_root(small) -> None:
    """−1e4 for −max: what the softmax is given differs, and nothing that is made of it."""
    experiment = prepare(get_twin("fast-transformer"), small("fast-transformer"))
    scene = Scene(experiment, "random", next(b for b in experiment.batches if b.name == "random-1"))
    name = "layers.0.0.fn.softmax"
    filled = scene.reference64.get("input", name).copy()
    fill = np.abs(filled) > 1e30
    assert fill.any()
    filled[fill] = -1e4
    trace = scene.forced(given={("input", name): filled})
    assert ("activation", name) not in scene.failing(trace)


def test_a_candidate_that_cannot_be_run_piece_by_piece_still_has_a_root(small, monkeypatch) -> None:
    from alignment.errors import AlignmentError

    def refuse(self, *_arguments, **_options):
        raise AlignmentError("no")

    monkeypatch.setattr(Scene, "forced", refuse)
    report = check("fast-transformer", small("fast-transformer", faults=("gelu-form",), steps=(3, 4)))
    assert roots(report) == {("activation", "layers.0.1.fn.1")}
    assert any("could not be separated: no" in note for stage in report.twins[0].stages for note in stage.notes)
