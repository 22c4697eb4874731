"""Findings: the right cause with its proof, on the right side, with what it does to training and where to look."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from alignment import AlignmentError, Options, explain
from alignment.check import run_check
from alignment.cli import run
from alignment.explain import explain_checked
from alignment.faults import FAULTS as PLANTABLE
from alignment.frameworks import get_framework
from alignment.repro import write_repros
from alignment.views.json import SCHEMA, to_json
from mutants.fastformer_faults import FASTFORMER_FAULTS
from mutants.gallery import GALLERY_MUTANTS
from mutants.matrix import planted

FAULTS = {fault.name: fault for fault in FASTFORMER_FAULTS}


def findings(twin, options):
    return explain(twin, options).twins[0].findings


def test_an_aligned_twin_has_nothing_to_explain(small) -> None:
    result = explain("fastformer-text-classifier", small("fastformer-text-classifier")).twins[0]
    assert (result.verdict, result.findings, result.effect) == ("aligned", (), None)


def test_two_faults_at_once_are_two_findings(small) -> None:
    one, two = findings(
        "fastformer-classifier", small("fastformer-classifier", faults=("layernorm-eps", "stale-bias-gradient"))
    )
    assert (one.cause, two.cause) == ("layernorm-eps", "stale-bias-gradient")
    assert len(one.roots) == 5
    assert two.roots == ("gradient dense_linear.bias",)
    assert one.after < 1e-14 < one.before
    assert any("fastformer_paddle/fastformer_classifier.py" in site for site in one.sites)


def test_a_made_up_fault_stays_unexplained_with_its_evidence(small) -> None:
    (finding,) = findings("fastformer-classifier", small("fastformer-classifier", faults=(FAULTS["square-added"],)))
    assert finding.cause is None
    assert finding.proof == ""
    assert finding.summary.startswith("unexplained")
    assert finding.evidence
    assert finding.sites


def test_at_least_25_distinct_causes_are_planted_in_the_gallery() -> None:
    """And each has to be named and proved, below."""
    assert len({mutant.cause for mutant in GALLERY_MUTANTS}) >= 25


@pytest.mark.parametrize("mutant", GALLERY_MUTANTS, ids=lambda m: f"{m.twin}-{m.name}")
def test_the_gallerys_mutants_are_explained(mutant) -> None:
    outcome = planted(mutant.name, mutant.twin)
    assert not outcome.error
    assert outcome.detected
    assert outcome.first_stage == mutant.stage
    assert outcome.root, outcome.roots
    assert outcome.side
    assert outcome.cause, outcome.named
    assert outcome.proof


@pytest.mark.parametrize(
    ("twin", "fault"),
    [
        ("fast-transformer", "linear-not-transposed"),
        ("fast-transformer", "mha-packing"),
        ("fastformer-classifier", "mask-inverted"),
        ("fast-transformer-classifier", "scale-missing"),
        ("fastformer-classifier", "residual-missing"),
        ("fast-transformer, rotary", "gelu-form-once"),
        ("fastformer-text-classifier", "padding-row"),
        ("fastformer-text-classifier", "double-softmax"),
        ("fastformer-classifier", "graph-cut"),
        ("fastformer-classifier", "weight-gradient-transposed"),
        ("fast-transformer", "tie-lost"),
    ],
)
def test_faults_of_the_fastformer_twins_are_explained(twin, fault) -> None:
    outcome = planted(fault, twin)
    assert not outcome.error
    assert (outcome.detected, outcome.first_stage) == (True, outcome.stage)
    assert outcome.root, outcome.roots
    assert outcome.cause, outcome.named
    assert outcome.proof


def test_a_true_zero_gradient_is_aligned_and_a_constant_of_1e_9_there_is_found(small) -> None:
    name = "fastformer_model.encoders.0.attention.self.key_att.bias"
    right = run_check("fastformer-classifier", small("fastformer-classifier")).report.twins[0]
    gradient = next(t for s in right.stages for t in s.tensors if (t.record, t.name) == ("gradient", name))
    assert gradient.verdict == "aligned"
    assert "true zero" in gradient.reason
    wrong = explain(
        "fastformer-classifier", small("fastformer-classifier", faults=(FAULTS["bias-gradient-constant-1e-9"],))
    )
    assert [(t.record, t.name) for t in wrong.twins[0].roots] == [("gradient", name)]
    assert [t.name for s in wrong.twins[0].stages for t in s.tensors if t.verdict == "diverged"] == [name]


# ----------------------------------------------------------------------------------------------------- effect on training


def test_a_wrong_update_leaves_the_envelope_after_the_first_step(small) -> None:
    effect = (
        explain("fast-transformer-classifier", small("fast-transformer-classifier", faults=("stale-bias-gradient",)))
        .twins[0]
        .effect
    )
    gap = [abs(a - b) for a, b in zip(effect.reference, effect.candidate, strict=True)]
    assert gap[0] <= 10 * effect.envelope[0]
    assert gap[1] > 100 * effect.envelope[1]
    assert "from the loss after step 1 on" in effect.summary
    assert "not what is printed" in effect.summary


def test_what_does_not_reach_training_is_said_not_to(small) -> None:
    effect = (
        explain(
            "fastformer-classifier", small("fastformer-classifier", faults=(FAULTS["bias-gradient-constant-1e-9"],))
        )
        .twins[0]
        .effect
    )
    assert "does not reach training" in effect.summary


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_training_leaves_the_weights_as_they_were(small, framework) -> None:
    from alignment.experiment import prepare
    from alignment.twins import get_twin

    experiment = prepare(get_twin("fastformer-classifier"), small("fastformer-classifier"))
    side = "reference" if framework == "torch" else "candidate"
    adapter, model = get_framework(framework), experiment.build(side)
    before = adapter.read_state(model)
    losses = adapter.train(model, experiment.batches[:2], loss="model", learning_rate=1e-2)
    assert len(losses) == 2
    after = adapter.read_state(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


# ------------------------------------------------------------------------------------------------------ the command line


def test_a_report_is_explained_again_from_its_file(small_arguments, tmp_path, capsys) -> None:
    arguments = small_arguments("fastformer-text-classifier")
    saved, explained = tmp_path / "report.json", tmp_path / "explained.json"
    assert run(["check", *arguments, "--inject", "stale-bias-gradient", "--json", str(saved), "--quiet"]) == 1
    assert run(["explain", str(saved), "--json", str(explained)]) == 1
    shown = capsys.readouterr().out
    assert "finding: stale-bias-gradient" in shown
    assert "effect on training" in shown
    document = json.loads(explained.read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    (finding,) = document["twins"][0]["findings"]
    assert finding["roots"] == ["gradient fc.bias"]
    first, again = (json.loads(path.read_text())["twins"][0]["stages"] for path in (saved, explained))
    assert first == again


def test_aligned_is_status_0(small_arguments) -> None:
    assert run(["explain", *small_arguments("fastformer-text-classifier"), "--quiet"]) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't read the report"),
        ("{", "no report of"),
        ("[]", "no report of"),
        ('{"twins": [{"verdict": "diverged"}]}', "no report of"),
        ('{"twins": [{"verdict": "aligned"}]}', "nothing to explain"),
        (
            '{"twins": [{"twin": "x", "verdict": "diverged", "seed": 0, "faults": [], "options": {"twin": "x", "steps": [9]}}]}',
            "steps are numbers",
        ),
    ],
)
def test_a_bad_report_is_named(tmp_path, capsys, content, said) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    assert run(["explain", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_bad_names_are_named(capsys) -> None:
    for arguments in (["explain", "nonsense"], ["explain", "no.such:thing"], ["explain", "json:loads"]):
        assert run(arguments) == 2
    assert run(["explain", "--inject", "no.such:thing"]) == 2
    shown = capsys.readouterr().err
    assert "unknown twin 'nonsense'" in shown
    assert "json:loads is a function, not an alignment Twin" in shown


# ---------------------------------------------------------------------------------------------------------------- repro


def run_script(script, *folders) -> tuple[int, str, str]:
    path = os.pathsep.join(map(str, (*folders, Path(__file__).resolve().parents[2])))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    return done.returncode, done.stdout, done.stderr


def figures(shown: str) -> list[float]:
    """Reference now and recorded, candidate now and recorded, candidate and reference now."""
    return [float(line.rpartition(" ")[2]) for line in shown.splitlines() if "relative L2" in line]


def recorded(script) -> float:
    """How far the candidate was from the reference in the check."""
    with np.load(script.with_suffix(".npz")) as arrays:
        ours, theirs = arrays["reference"], arrays["candidate"]
        return float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))


@pytest.mark.parametrize(
    ("twin", "faults", "stem"),
    [
        ("mutants.gallery:token_net__gelu_form", (), "activation_act"),
        ("mutants.gallery:attention_net__scale_missing", (), "input_softmax"),
        ("mutants.gallery:tied_net__graph_cut", (), None),
        ("fastformer-text-classifier", ("stale-bias-gradient",), "gradient_fc_bias"),
    ],
)
def test_a_repro_shows_its_root_alone(small, tmp_path, twin, faults, stem) -> None:
    given = Options(batch_size=3, strict=True) if ":" in twin else small(twin, faults=faults)
    written = write_repros(run_check(twin, given), tmp_path)
    if stem is None:
        assert not written  # the candidate has no such tensor: there is nothing to run
        return
    (script,) = written
    assert script.stem == stem
    status, shown, error = run_script(script)
    assert status == 1, error
    ours, theirs, apart = figures(shown)
    assert max(ours, theirs) < 1e-9  # a script doesn't round eps to float32, as a check does
    # The fill of a mask makes a relative difference small.
    assert apart == pytest.approx(recorded(script), rel=1e-5)
    assert apart > 1e-10
    assert "import alignment" not in script.read_text().partition("if PLANTED")[0]


def test_a_fault_given_as_an_object_is_planted_where_a_module_holds_it(small, tmp_path, monkeypatch) -> None:
    (tmp_path / "my_faults.py").write_text(
        "from alignment.faults import FAULTS, Fault\n\n"
        "def plant(framework, model, twin):\n    return FAULTS['gelu-form'].plant(framework, model, twin)\n\n"
        "MINE = Fault('mine', 'GELU by its tanh approximation', stage=3, plant=plant)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    fault = importlib.import_module("my_faults").MINE
    script, *_ = write_repros(run_check("fast-transformer", small("fast-transformer", faults=(fault,))), tmp_path)
    assert "PLANTED = ['my_faults:MINE']" in script.read_text()
    status, shown, error = run_script(script, tmp_path)
    assert status == 1, error
    ours, theirs, apart = figures(shown)
    assert max(ours, theirs) < 1e-9
    assert apart == pytest.approx(recorded(script), rel=1e-6)


def test_a_fault_that_no_name_leads_to_is_said_to_be_missing(small, tmp_path) -> None:
    script, *_ = write_repros(
        run_check("fast-transformer", small("fast-transformer", faults=(replace(PLANTABLE["gelu-form"]),))), tmp_path
    )
    status, shown, error = run_script(script)
    assert (status, shown) == (2, "")
    assert "can't plant gelu-form: " in error
    assert "package.module:attribute" in error
    assert "Traceback" not in error


def test_a_repro_of_a_mended_candidate_agrees(small, tmp_path) -> None:
    """Status 0 once the two agree: here because the planted fault is taken out of the script."""
    checked = run_check("fastformer-text-classifier", small("fastformer-text-classifier", faults=("mask-inverted",)))
    scripts = write_repros(checked, tmp_path)
    script = next(path for path in scripts if "softmax" in path.stem)
    script.write_text(script.read_text().replace("PLANTED = ['mask-inverted']", "PLANTED = []"))
    status, shown, error = run_script(script)
    assert status == 0, shown + error


def test_a_check_that_ran_can_be_explained_later(small) -> None:
    checked = run_check("fast-transformer", small("fast-transformer", faults=("gelu-form",), steps=(3,)))
    assert not checked.report.twins[0].findings
    explained = explain_checked(replace(checked))
    assert explained.twins[0].findings[0].cause == "gelu-form"
    assert json.loads(to_json(explained))["twins"][0]["findings"]


def test_options_that_make_no_sense_are_refused(small) -> None:
    with pytest.raises(AlignmentError):
        explain("fast-transformer", small("fast-transformer", settings={"heads": 0}))
