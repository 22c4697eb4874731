"""A port whose parts have other names: matched where nothing else fits, mapped where a person must say, never guessed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment import (
    AlignmentError,
    Options,
    capture_candidate,
    capture_reference,
    check,
    compare_captures,
    explain,
    explain_traces,
    run_check,
    save_traces,
)
from alignment.capture_file import read_capture
from alignment.cli import run
from alignment.experiment import prepare
from alignment.frameworks import ModuleInfo
from alignment.mapping import LayoutRule, ModelMapping, OwnTolerance, covers
from alignment.matching import Tree
from alignment.report import Report
from alignment.scope import Scope, spell_out
from alignment.views.json import SCHEMA, to_json
from checkpoints import Rename

from .siteless import siteless

ROOT = Path(__file__).resolve().parents[2]
MODELS = '''
import paddle
import torch
from torch import nn
from alignment import Side, Twin
from fake_data import Ids, InputSpec, Labels


class Reference(nn.Module):
    """extra: a layer that is never used."""

    def __init__(self, square=False, extra=False):
        super().__init__()
        width = 6 if square else 8
        self.emb = nn.Embedding(10, 6)
        self.up = nn.Linear(6, width)
        self.act = nn.GELU()
        self.down = nn.Linear(width, 6)
        self.head = nn.Linear(6, 3)
        if extra:
            self.spare = nn.Linear(7, 7)

    def forward(self, ids):
        return self.head(self.down(self.act(self.up(self.emb(ids)))).mean(1))


class Port(paddle.nn.Layer):
    def __init__(self, square=False, fault="", extra=False, scale=1.0):
        super().__init__()
        width = 6 if square else 8
        self.table = paddle.nn.Embedding(10, 6)
        self.first = paddle.nn.Linear(6, width)
        self.gelu = paddle.nn.GELU(approximate=fault == "gelu")
        self.second = paddle.nn.Linear(width, 6)
        self.out = paddle.nn.Linear(6, 3)
        self.scale = scale
        if extra:
            self.aux = paddle.nn.Linear(5, 5)

    def forward(self, ids):
        return self.out(self.second(self.gelu(self.first(self.table(ids)))).mean(1)) * self.scale


class Wrapped(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.net = Port()

    def forward(self, ids):
        return self.net(ids)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.act = nn.GELU()

    def forward(self, x):
        return self.act(self.fc(x))


class BlockPort(paddle.nn.Layer):
    """The same, computed inside on rows of one sequence after the other."""

    def __init__(self, shift):
        super().__init__()
        self.fc = paddle.nn.Linear(6, 8)
        self.act = paddle.nn.GELU()
        self.shift = shift

    def forward(self, x):
        rows = self.act(self.fc(x.reshape([-1, 6])))
        return rows.reshape([x.shape[0], x.shape[1], 8]) + self.shift


class Blocked(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, 6)
        self.block = Block()
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.block(self.emb(ids)).mean(1))


class BlockedPort(paddle.nn.Layer):
    def __init__(self, shift=0.0):
        super().__init__()
        self.emb = paddle.nn.Embedding(10, 6)
        self.block = BlockPort(shift)
        self.head = paddle.nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.block(self.emb(ids)).mean(1))


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, 6)
        self.fc = nn.Linear(6, 6)

    def forward(self, ids):
        return self.fc(self.emb(ids).mean(1))


class OwnLinear(paddle.nn.Layer):
    """A linear layer that keeps its weight as the reference does."""

    def __init__(self):
        super().__init__()
        self.kernel = self.create_parameter([6, 6])
        self.offset = self.create_parameter([6], is_bias=True)

    def forward(self, x):
        return x @ self.kernel.T + self.offset


class LinearPort(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.emb = paddle.nn.Embedding(10, 6)
        self.fc = OwnLinear()

    def forward(self, ids):
        return self.fc(self.emb(ids).mean(1))


def inputs(settings):
    return InputSpec({"ids": Ids(0, 10, ("B", "N")), "targets": Labels(3, ("B",))}, max_length=8)


def twin(reference, candidate, **settings):
    ours = {key: value for key, value in settings.items() if key in ("square",)}
    theirs = {key: value for key, value in settings.items() if key not in ("square", "spare")}
    return Twin(
        "port",
        "a port of other names",
        Side("torch", f"mapping_ports:{reference}", {"extra": True} if "spare" in settings else {}),
        Side("paddle", f"mapping_ports:{candidate}", theirs),
        ours,
        inputs,
        loss="criterion",
    )


port = twin("Reference", "Port")
square = twin("Reference", "Port", square=True)
'''
QUICK = Options(batch_size=3, length=5, steps=(1, 3, 4, 5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the models, as a user's would be."""
    found = tmp_path_factory.mktemp("models")
    (found / "mapping_ports.py").write_text(MODELS)
    return found


@pytest.fixture
def ports(folder, monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(folder))
    import mapping_ports

    yield mapping_ports.twin
    sys.modules.pop("mapping_ports", None)


def stages(report: Report) -> dict[str, Any]:
    return {stage.name: stage for stage in report.twins[0].stages}


def roots(report: Report) -> set[tuple[str, str]]:
    return {(root.record, root.name) for root in report.twins[0].roots}


def notes(report: Report, stage: str) -> str:
    return "\n".join(stages(report)[stage].notes)


# ------------------------------------------------------------------------------------------------------ no configuration


def test_other_names_in_the_same_order_need_no_configuration_and_the_report_says_how(ports) -> None:
    report = check(ports("Reference", "Port"), QUICK)
    assert report.verdict == "aligned"
    assert "tensors matched: 7 by order (emb → table by order" in notes(report, "structure")
    forward = {row.reference_name: row.candidate_name for row in stages(report)["forward"].tensors}
    assert forward["act"] == "gelu"
    assert forward["down"] == "second"


def test_a_fault_of_such_a_port_is_found_and_explained(ports) -> None:
    report = explain(ports("Reference", "Port", fault="gelu"), QUICK)
    assert roots(report) == {("activation", "act")}
    assert [finding.cause for finding in report.twins[0].findings] == ["gelu-form"]


def test_a_wrapper_around_the_model_is_passed_over_and_noted(ports) -> None:
    report = check(ports("Reference", "Wrapped"), QUICK)
    assert report.verdict == "aligned"
    assert "only wrapping another: 1 of" in notes(report, "forward")
    assert "(net)" in notes(report, "forward")


def test_names_that_correspond_are_no_matter_of_matching(ports) -> None:
    report = check(ports("Blocked", "BlockedPort"), replace(QUICK, steps=(1,)))
    assert "matched" not in notes(report, "structure")


def test_what_could_be_either_is_an_error_that_names_both(ports) -> None:
    with pytest.raises(AlignmentError) as caught:
        check(ports("Reference", "Port", square=True), QUICK)
    message = str(caught.value)
    assert re.search(r"up, down \(Linear \[6, 6\], \[6\]\): each may be any of first, second", message)
    assert "align map TWIN -o mapping.toml" in message


def test_what_fits_nothing_is_a_divergence_and_no_ambiguity(ports) -> None:
    report = check(ports("Reference", "Port", square=True, extra=True), QUICK)
    assert report.verdict == "diverged"
    assert "align map TWIN" in notes(report, "structure")


# --------------------------------------------------------------------------------------------------------------- mapping


def test_a_mapping_decides_what_is_ambiguous_and_a_wrong_one_diverges(ports) -> None:
    twin = ports("Reference", "Port", square=True)
    right = check(twin, replace(QUICK, mapping=ModelMapping(modules={"up": "first"})))
    assert right.verdict == "aligned"
    assert "2 by mapping" in notes(right, "structure")
    wrong = check(twin, replace(QUICK, mapping=ModelMapping(modules={"up": "second", "down": "first"})))
    assert stages(wrong)["structure"].verdict == "aligned"
    assert stages(wrong)["forward"].verdict == "diverged"


def test_a_twin_may_carry_its_mapping_and_rules_rename(ports) -> None:
    rules = (("emb", "table"), ("up", "first"), ("down", "second"), ("head", "out"))
    renames = tuple(Rename(rf"{one}\.(.*)", rf"{two}.\1") for one, two in rules)
    twin = replace(ports("Reference", "Port", square=True), mapping=ModelMapping(renames))
    assert check(twin, replace(QUICK, steps=(1, 3))).verdict == "aligned"


def test_pairs_of_single_tensors_and_their_layout(ports) -> None:
    """A square matrix that a class of the user's keeps the other way round: nothing but a person can know it."""
    pairs = {"fc.weight": "fc.kernel", "fc.bias": "fc.offset"}
    twin = ports("Linear", "LinearPort")
    assert check(twin, QUICK).verdict == "diverged"
    verdicts = {}
    for operation in ("copy", "transpose"):
        mapping = ModelMapping(tensors=pairs, layouts=(LayoutRule("fc", operation),))  # type: ignore[arg-type]
        verdicts[operation] = check(twin, replace(QUICK, mapping=mapping))
    assert verdicts["copy"].verdict == "aligned"
    assert stages(verdicts["transpose"])["forward"].verdict == "diverged"


def test_a_tensor_without_counterpart_is_ignored_by_name_and_keeps_its_values(ports) -> None:
    twin = ports("Reference", "Port", extra=True, spare=True)
    assert check(twin, QUICK).verdict == "diverged"
    options = replace(QUICK, steps=(1, 2, 3, 4, 5), mapping=ModelMapping(ignore=("spare", "aux")))
    report = check(twin, options)
    assert {name: stage.verdict for name, stage in stages(report).items() if name != "initialization"} == dict.fromkeys(
        ("structure", "forward", "loss", "backward"), "aligned"
    )
    assert "ignored by the mapping: 6 of" in notes(report, "structure")
    for name in ("spare", "aux", "spare.weight", "aux.weight"):
        assert name in notes(report, "structure")
    experiment = prepare(twin, options)
    given = experiment.candidate_state(experiment.weights["random"])
    own = experiment.candidate.read_state(experiment.candidate_model)
    assert np.array_equal(given["aux.weight"], own["aux.weight"])
    assert "aux.weight" not in {move.target for move in experiment.layout.moves}


def test_a_port_of_other_names_is_explained_from_saved_traces(ports, tmp_path) -> None:
    twin = ports("Reference", "Port", extra=True, fault="gelu")
    checked = run_check(twin, replace(QUICK, mapping=ModelMapping(ignore=("aux",))))
    files = save_traces(checked, tmp_path)
    assert ("activation", "act") in roots(explain_traces(*files))
    assert all(read_capture(file).about.options["mapping"] == {"ignore": ["aux"]} for file in files)


@pytest.mark.parametrize("port", ["Port", "Wrapped"])
def test_captures_of_other_names_are_matched_as_in_a_check(ports, tmp_path, port) -> None:
    twin, steps = ports("Reference", port), (1, 3, 4, 5)
    live = check(twin, replace(QUICK, steps=steps))
    files = tmp_path / "reference.safetensors", tmp_path / "candidate.safetensors"
    capture_reference(twin, files[0], QUICK)
    capture_candidate(files[0], files[1], twin)
    apart = compare_captures(*files, steps)
    assert apart.verdict == "aligned"
    assert apart.twins[0].stages == live.twins[0].stages
    only = compare_captures(*files, (3,)).twins[0]
    assert any("tensors matched: " in note for note in only.notes)


def test_ignoring_a_module_does_not_hide_what_it_does_to_others(ports) -> None:
    twin = ports("Reference", "Port", fault="gelu")
    report = check(twin, replace(QUICK, mapping=ModelMapping(ignore=("act",))))
    assert report.verdict == "diverged"
    assert "act" not in {row.name for row in stages(report)["forward"].tensors}
    assert ("activation", "act") not in roots(report)


def test_where_everything_is_ignored_nothing_is_aligned(ports) -> None:
    report = check(ports("Reference", "Port"), replace(QUICK, mapping=ModelMapping(ignore=(".*",))))
    assert report.verdict == "inconclusive"
    assert stages(report)["structure"].verdict == "inconclusive"
    assert "leaves out" in stages(report)["structure"].tensors[0].reason


def test_the_logits_and_the_loss_cannot_be_ignored(ports) -> None:
    report = check(ports("Reference", "Port", scale=1.5), replace(QUICK, mapping=ModelMapping(ignore=(".*",))))
    assert report.verdict == "diverged"
    assert {row.name for row in stages(report)["forward"].tensors} == {"logits"}


def test_a_module_compared_at_its_boundary_may_differ_inside(ports) -> None:
    twin = ports("Blocked", "BlockedPort")
    assert check(twin, QUICK).verdict == "diverged"
    bounded = replace(QUICK, mapping=ModelMapping(boundary=("block",)))
    report = check(twin, bounded)
    assert report.verdict == "aligned"
    compared = {row.name for row in stages(report)["forward"].tensors}
    assert "block" in compared
    assert not {"block.fc", "block.act"} & compared
    assert "inside a boundary: 2 of" in notes(report, "structure")
    assert "block.fc.weight" in {row.name for row in stages(report)["backward"].tensors}
    wrong = check(ports("Blocked", "BlockedPort", shift=0.125), bounded)
    assert roots(wrong) == {("activation", "block")}


def test_a_tolerance_of_its_own_decides_only_where_it_is_said_and_shows(ports) -> None:
    twin, options = ports("Reference", "Port", scale=1 + 1e-9), replace(QUICK, steps=(3,))
    assert check(twin, options).verdict == "diverged"
    own = OwnTolerance("logits|", "the port scales its output", semantics_margin=1e12)
    report = check(twin, replace(options, mapping=ModelMapping(tolerances=(own,))))
    assert report.verdict == "aligned"
    rows = {row.name: row for row in stages(report)["forward"].tensors}
    decided = "aligned by a tolerance of its own (the port scales its output), diverged by the usual one"
    assert rows["logits"].reason.startswith(decided)
    assert "tolerance of its own" not in rows["head"].reason
    assert "a tolerance of their own (the port scales its output)" in notes(report, "forward")
    elsewhere = replace(own, pattern="head")
    assert check(twin, replace(options, mapping=ModelMapping(tolerances=(elsewhere,)))).verdict == "diverged"


def test_a_stricter_tolerance_of_its_own_diverges_and_is_no_root_of_another_kind(ports) -> None:
    own = OwnTolerance("up", "bits matter here", semantics_margin=1e-9, precision_ratio=1e-9, floor_ulps=1e-9)
    twin = ports("Reference", "Port")
    report = check(twin, replace(QUICK, steps=(3,), mapping=ModelMapping(tolerances=(own,))))
    diverged = {row.name: row.reason for row in stages(report)["forward"].tensors if row.verdict == "diverged"}
    assert set(diverged) <= {"up"}
    for reason in diverged.values():
        assert "diverged by a tolerance of its own (bits matter here), aligned by the usual one" in reason


def test_a_large_batch_is_judged_with_the_same_mapping(ports, monkeypatch) -> None:
    monkeypatch.setattr("alignment.fullsize.LARGE_RUN", 0)
    mapping = ModelMapping(
        modules={"up": "first"},
        ignore=("aux",),
        tolerances=(OwnTolerance("logits|", "scaled", precision_ratio=1e9, semantics_margin=1e15),),
    )
    twin = ports("Reference", "Port", square=True, extra=True, scale=1 + 1e-3)
    options = replace(QUICK, steps=(1, 3), mapping=mapping)
    report = check(twin, options)
    assert "full-size" in report.twins[0].batches
    assert report.verdict == "aligned"
    assert check(twin, replace(options, mapping=replace(mapping, tolerances=()))).verdict == "diverged"


# ----------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        (ModelMapping(modules={"upp": "first"}), "modules: the reference has no module 'upp'"),
        (ModelMapping(modules={"up": "frist"}), "modules: the candidate has no module 'frist'"),
        (ModelMapping(tensors={"up.weight": "first.kernel"}), "tensors: the candidate has no tensor 'first.kernel'"),
        (ModelMapping(ignore=("dropuot",)), "ignore: 'dropuot' matches no module or tensor"),
        (ModelMapping(boundary=("up.weight",)), "boundary: 'up.weight' matches no module"),
        (ModelMapping(layouts=(LayoutRule("first", "copy"),)), "layout: 'first' matches no tensor of the reference"),
        (ModelMapping((Rename("first", "up"),)), "rename: 'first' matches no tensor of the reference"),
        (
            ModelMapping(tolerances=(OwnTolerance("nothing", "why", floor_ulps=1),)),
            "tolerance: 'nothing' matches no module or tensor",
        ),
    ],
)
def test_an_entry_that_means_nothing_is_an_error(ports, mapping, said) -> None:
    with pytest.raises(AlignmentError, match=re.escape(said)):
        check(ports("Reference", "Port"), replace(QUICK, mapping=mapping))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ignored = []", "unknown key 'ignored'; known: rename, modules"),
        ("ignore = 'act'", "ignore must be a list of patterns"),
        ("ignore = [1]", "ignore must be a list of patterns"),
        ("ignore = ['(']", "'(' is no regular expression"),
        ("boundary = ['[']", "boundary: '[' is no regular expression"),
        ("modules = []", "modules must be a table of names"),
        ("[modules]\na.b = 'c'", "put a name with dots in quotes"),
        ("[modules]\na = 'x'\nb = 'x'", "modules: 'x' stands for more than one"),
        ("[tensors]\na = 1", "'a' must be given one name"),
        ("[rename]\npattern = 'a'", "rename must be a list of tables"),
        ("[[rename]]\npattern = 'a'", "rename 1: replace is missing"),
        ("[[rename]]\npattern = 'a'\nreplace = '\\1'", "invalid group reference"),
        ("[[rename]]\npattern = 'a'\nreplace = 'b'\noperation = 'flip'", "operation 'flip' is none of copy"),
        ("[[layout]]\npattern = 'a'\noperation = 'turn'", "operation 'turn' is none of copy"),
        ("[[layout]]\npattern = 'a'\noperation = 'copy'\nfor = 'b'", "layout 1: unknown key 'for'"),
        ("[[tolerance]]\npattern = 'a'\nprecision_ratio = 2.0", "tolerance 1: reason is missing"),
        ("[[tolerance]]\npattern = 'a'\nreason = ' '\nfloor_ulps = 2.0", "give the reason"),
        ("[[tolerance]]\npattern = 'a'\nreason = 'b'", "give semantics_margin, precision_ratio or floor_ulps"),
        ("[[tolerance]]\npattern = 'a'\nreason = 'b'\nprecision_ratio = nan", "finite positive number, not nan"),
        ("[[tolerance]]\npattern = 'a'\nreason = 'b'\nsemantics_margin = inf", "finite positive number, not inf"),
        ("[[tolerance]]\npattern = 'a'\nreason = 'b'\nfloor_ulps = -1", "finite positive number, not -1.0"),
        ("[[tolerance]]\npattern = 'a'\nreason = 'b'\nfloor_ulps = 0", "finite positive number, not 0.0"),
        (f"[[tolerance]]\npattern = 'a'\nreason = 'b'\nfloor_ulps = 1{'0' * 400}", "finite positive number, not inf"),
        ("[[tolerance]]\npattern = 'a'\nreason = 'b'\nprecision_ratio = true", "must be a number, not True"),
        ("[[tolerance]]\npattern = 'a'\nreason = 'b'\nprecision_ratio = '9'", "must be a number, not '9'"),
        ("ignore = ['a'", "not a mapping"),
        ("a = " + "[" * 5000, "not a mapping"),
    ],
)
def test_a_hostile_or_mistaken_file_is_refused_by_name(tmp_path, text, said) -> None:
    file = tmp_path / "mapping.toml"
    file.write_text(text)
    with pytest.raises(AlignmentError, match=re.escape(said)) as caught:
        ModelMapping.read(file)
    assert str(caught.value).startswith(f"{file}: not a mapping: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1, 2]", "the mapping must be a table"),
        (b'{"ignore": ["a"], "ignore": []}', "a key stands twice"),
        (b"[" * 100_000, "not a mapping"),
        (b"\xff\xfe", "not a mapping"),
        (b'{"tolerance": [{"pattern": "a", "reason": "b", "floor_ulps": NaN}]}', "finite positive number, not nan"),
    ],
)
def test_a_hostile_json_file_is_refused(tmp_path, content, said) -> None:
    file = tmp_path / "mapping.json"
    file.write_bytes(content)
    with pytest.raises(AlignmentError, match=re.escape(said)):
        ModelMapping.read(file)


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path) -> None:
    with pytest.raises(AlignmentError, match="can't read the mapping: No such file"):
        ModelMapping.read(tmp_path / "none.toml")
    with pytest.raises(AlignmentError, match="can't read the mapping: Is a directory"):
        ModelMapping.read(tmp_path)
    (tmp_path / "mapping.yaml").write_text("")
    with pytest.raises(AlignmentError, match=r"is a \.toml or \.json file"):
        ModelMapping.read(tmp_path / "mapping.yaml")
    with pytest.raises(AlignmentError, match=r"is a \.toml or \.json file"):
        ModelMapping().write(tmp_path / "mapping.yaml")


NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
PATTERNS = NAMES.map(re.escape)
FIGURE = st.one_of(st.none(), st.floats(1e-300, 1e300))
TOLERANCES = st.builds(
    OwnTolerance, PATTERNS, NAMES.map(lambda text: f"because {text}"), st.floats(1e-9, 1e9), FIGURE, FIGURE
)
MAPPINGS = st.builds(
    ModelMapping,
    st.lists(st.builds(Rename, PATTERNS, NAMES.filter(lambda text: "\\" not in text)), max_size=2).map(tuple),
    st.dictionaries(NAMES, NAMES, max_size=3).filter(lambda pairs: len(set(pairs.values())) == len(pairs)),
    st.dictionaries(NAMES, NAMES, max_size=3).filter(lambda pairs: len(set(pairs.values())) == len(pairs)),
    st.lists(st.builds(LayoutRule, PATTERNS, st.sampled_from(("copy", "transpose"))), max_size=2).map(tuple),
    st.lists(PATTERNS, max_size=3).map(tuple),
    st.lists(PATTERNS, max_size=3).map(tuple),
    st.lists(TOLERANCES, max_size=2).map(tuple),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(MAPPINGS, st.sampled_from((".toml", ".json")))
def test_what_is_written_is_read_again(tmp_path, mapping, suffix) -> None:
    file = tmp_path / f"mapping{suffix}"
    mapping.write(file)
    assert ModelMapping.read(file) == mapping


def test_a_pattern_stands_for_all_that_is_inside_what_it_matches() -> None:
    assert covers(r"block", "block.fc.weight")
    assert covers(r"layers\.\d+", "layers.3.fc")
    assert not covers(r"block", "blocks.fc")
    assert not covers(r"fc", "block.fc")


# -------------------------------------------------------------------------------------------------------------- captures

SQUARE = ModelMapping(modules={"up": "first"})
RULES = (("emb", "table"), ("up", "first"), ("down", "second"), ("head", "out"))
SCALED = ModelMapping(tolerances=(OwnTolerance("logits|", "the port scales its output", semantics_margin=1e12),))


def captured(folder: Path, twin: Any, mapping: ModelMapping | None = None, **more: Any) -> tuple[Path, Path]:
    files = folder / "reference.safetensors", folder / "candidate.safetensors"
    capture_reference(replace(twin, mapping=ModelMapping()), files[0], QUICK, **more)
    capture_candidate(files[0], files[1], twin, mapping=mapping)
    return files


@pytest.mark.parametrize(
    ("models", "settings_", "mapping"),
    [
        (("Reference", "Port"), {"square": True}, SQUARE),
        (
            ("Reference", "Port"),
            {"square": True},
            ModelMapping(tuple(Rename(rf"{one}\.(.*)", rf"{two}.\1") for one, two in RULES)),
        ),
        (
            ("Linear", "LinearPort"),
            {},
            ModelMapping(
                tensors={"fc.weight": "fc.kernel", "fc.bias": "fc.offset"}, layouts=(LayoutRule("fc", "copy"),)
            ),
        ),
        (("Reference", "Port"), {"extra": True, "spare": True}, ModelMapping(ignore=("spare.*", "aux"))),
        (("Reference", "Port"), {"fault": "gelu"}, ModelMapping(ignore=("act",))),
        (("Blocked", "BlockedPort"), {}, ModelMapping(boundary=("b.ock",))),
        (("Blocked", "BlockedPort"), {"shift": 0.125}, ModelMapping(boundary=("block",))),
        (("Reference", "Port"), {"scale": 1 + 1e-9}, SCALED),
    ],
    ids=["modules", "renames", "tensors", "kept", "ignored", "boundary", "boundary-wrong", "tolerance"],
)
def test_captures_go_by_a_mapping_as_a_check_does(ports, tmp_path, models, settings_, mapping) -> None:
    twin, steps = ports(*models, **settings_), (1, 2, 3, 4, 5)
    live = check(twin, replace(QUICK, steps=steps, mapping=mapping))
    files = captured(tmp_path, twin, mapping, initializers=True)
    ours, theirs = stages(compare_captures(*files)), stages(live)
    for name, stage in theirs.items():
        # What a module is given is listed as a root alone, of the case in which it was found.
        kept = (tuple(row for row in one.tensors if row.record != "input") for one in (ours[name], stage))
        assert next(kept) == siteless(next(kept)), name
        assert ours[name].notes == stage.notes
    # The twin's own mapping is taken where none is given.
    capture_candidate(files[0], files[1], replace(twin, mapping=mapping))
    assert (
        compare_captures(*files, (3, 5)).twins[0].stages
        == compare_captures(*files, (3, 5), mapping=mapping).twins[0].stages
    )


def test_what_is_compared_may_be_said_anew_and_weights_stay(ports, tmp_path) -> None:
    twin = ports("Blocked", "BlockedPort")
    files = captured(tmp_path, twin)
    assert compare_captures(*files).verdict == "diverged"
    (tmp_path / "mapping.toml").write_text('boundary = ["block"]\n')
    assert run(["compare", *map(str, files), "--mapping", str(tmp_path / "mapping.toml"), "--step", "3"]) == 0
    square = ports("Reference", "Port", square=True)
    files = captured(tmp_path, square, SQUARE)
    with pytest.raises(AlignmentError, match="capture the candidate again, with --mapping"):
        compare_captures(*files, mapping=ModelMapping(modules={"up": "second", "down": "first"}))
    with pytest.raises(AlignmentError, match="the mapping does not fit these models"):
        compare_captures(*files, mapping=replace(SQUARE, ignore=("dropuot",)))


def test_roots_and_causes_of_captures_go_by_the_mapping(ports, tmp_path) -> None:
    twin = ports("Blocked", "BlockedPort", shift=0.125)
    report = explain_traces(*captured(tmp_path, twin, ModelMapping(boundary=("block",))))
    assert roots(report) == {("activation", "block")}
    twin = ports("Reference", "Port", fault="gelu", scale=1 + 1e-9)
    files = captured(tmp_path, twin, replace(SCALED, ignore=("act", "down", "head")))
    assert ("activation", "act") not in roots(explain_traces(*files)) | roots(compare_captures(*files, (3,)))


def test_training_steps_go_by_the_mapping(ports, tmp_path) -> None:
    twin = ports("Reference", "Port", scale=1.5)
    allowed = OwnTolerance(".*", "the port scales its output", precision_ratio=1e9)
    report = compare_captures(*captured(tmp_path, twin, ModelMapping(ignore=("up",)), train_steps=2), (4, 5))
    verdicts = {row.name: row.verdict for stage in stages(report).values() for row in stage.tensors}
    assert verdicts["loss (training)"] == "diverged"
    assert "down.weight (training)" in verdicts
    assert not [name for name in verdicts if name.startswith("up.")]
    mapping = ModelMapping(ignore=("up",), tolerances=(allowed,))
    files = tmp_path / "reference.safetensors", tmp_path / "candidate.safetensors"
    report = compare_captures(*files, (4,), mapping=mapping)
    assert {row.name: row.verdict for row in stages(report)["loss"].tensors}["loss (training)"] == "aligned"


def test_what_travels_are_names_that_mean_what_the_patterns_did() -> None:
    paths = ("", "layers", "layers.0", "layers.0.fc", "layers.1", "layers.1.fc", "head")
    tree = Tree("torch", tuple(ModuleInfo(path, "Linear", False) for path in paths), ())
    own = OwnTolerance(r"layers\.\d|output.*|", "two\nlines", floor_ulps=2.0)
    mapping = ModelMapping(ignore=(r"layers\..*", "head"), boundary=(r"layers\.1",), tolerances=(own,))
    said = spell_out(Scope(mapping), tree, tree, ("output[best]", "layers.0.fc#2[1]"))
    assert (said.ignore, said.boundary) == (("head", "layers.0", "layers.1"), ("layers.1",))
    assert said.tolerances[0][0] == ("", "layers.0", "layers.1", "output")
    assert said.tolerances[0][1].reason == "two lines"
    told, before = said.scope({}), Scope(mapping)
    for name in (*paths, "(root)", "layers.0.fc.weight", "layers.1.fc#2[0]", "head.bias", "output[best]", "loss"):
        assert told.ignores(name) == before.ignores(name), name
        assert told.tolerance(name) == before.tolerance(name), name


def test_a_mapping_is_proposed_beside_a_capture(folder, tmp_path, ports, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["--batch-size", "3", "--length", "5"]
    assert run(["capture", "mapping_ports:square", "--side", "torch", *sizes, "-o", "r.safetensors"]) == 0
    candidate = ["capture", "--side", "paddle", "--from", "r.safetensors", "-o", "c.safetensors"]
    assert run(candidate) == 2
    said = capsys.readouterr().err
    assert "each may be any of" in said
    assert "give align map its file with --from" in said
    beside = ["map", "mapping_ports:square", "-o", "mapping.toml"]
    assert run([*beside, "--from", "r.safetensors"]) == 2
    written = Path("mapping.toml").read_text()
    assert run([*beside, "--force"]) == 2
    assert written == Path("mapping.toml").read_text()
    Path("mapping.toml").write_text(written.replace('# "up" = "first"', '"up" = "first"'))
    assert run([*candidate, "--mapping", "mapping.toml"]) == 0
    assert run(["compare", "r.safetensors", "c.safetensors", "--step", "1", "--step", "3"]) == 0
    assert "by mapping" in capsys.readouterr().out
    driven = ["check", "mapping_ports:square", "--candidate-python", sys.executable, "--mapping", "mapping.toml"]
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{folder}")
    assert run([*driven, *sizes, "--step", "1", "--step", "3"]) == 0
    reference = [
        "capture",
        "mapping_ports:square",
        "--side",
        "torch",
        "--mapping",
        "mapping.toml",
        "-o",
        "x.safetensors",
    ]
    assert run(reference) == 2
    assert "--mapping goes with the candidate's capture" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- command line


ARGUMENTS = ["--batch-size", "3", "--length", "5", "--step", "1", "--step", "3"]


def test_a_proposal_is_written_edited_and_checked(folder, tmp_path, ports, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["check", "mapping_ports:square", *ARGUMENTS]) == 2
    assert "align map TWIN -o mapping.toml" in capsys.readouterr().err
    assert run(["map", "mapping_ports:square", "-o", "mapping.toml"]) == 2
    assert capsys.readouterr().out == "mapping.toml: tensors matched: 3 by order; 2 ambiguous: edit the file\n"
    text = Path("mapping.toml").read_text()
    assert '"emb" = "table"  # by order' in text
    assert '# "up" = "first"\n# "up" = "second"' in text
    # As it is written, it leaves open what is ambiguous.
    assert run(["check", "mapping_ports:square", "--mapping", "mapping.toml", *ARGUMENTS]) == 2
    edited = text.replace('# "up" = "first"', '"up" = "first"').replace('# "down" = "second"', '"down" = "second"')
    Path("mapping.toml").write_text(edited)
    capsys.readouterr()
    assert run(["check", "mapping_ports:square", "--mapping", "mapping.toml", *ARGUMENTS]) == 0
    assert "7 by mapping" in capsys.readouterr().out
    assert run(["map", "mapping_ports:square", "-o", "mapping.toml"]) == 2
    assert "exists" in capsys.readouterr().err
    assert Path("mapping.toml").read_text() == edited


def test_a_proposal_without_questions_is_a_mapping_as_it_is(folder, tmp_path, ports, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["map", "mapping_ports:port", "-o", "mapping.toml"]) == 0
    mapping = ModelMapping.read("mapping.toml")
    assert mapping.modules["act"] == "gelu"
    assert mapping.tensors["head.bias"] == "out.bias"
    assert run(["check", "mapping_ports:port", "--mapping", "mapping.toml", *ARGUMENTS]) == 0
    report = tmp_path / "report.json"
    arguments = ["check", "mapping_ports:port", "--mapping", "mapping.toml", "--json", str(report), *ARGUMENTS]
    assert run(arguments) == 0
    told = json.loads(report.read_text())["twins"][0]["options"]
    assert told["mapping_file"] == "mapping.toml"
    assert told["mapping"] == mapping.to_dict()


def test_a_report_holds_the_mapping_however_it_was_given_and_is_explained_with_it(
    folder, tmp_path, ports, capsys, monkeypatch
) -> None:
    """Once the file is gone, or the twin's own mapping another one, the report alone tells what was compared with what."""
    everything = ModelMapping(
        (Rename(r"emb\.(.*)", r"table.\1"),),
        {"up": "first"},
        {"head.bias": "out.bias"},
        (LayoutRule("head", "transpose"),),
        ("down",),
        ("act",),
        (OwnTolerance("logits", "half the digits", semantics_margin=1e3),),
    )
    twin = replace(ports("Reference", "Port", square=True, fault="gelu"), mapping=everything)
    for report in (
        check(twin, QUICK),
        check(replace(twin, mapping=ModelMapping()), replace(QUICK, mapping=everything)),
    ):
        jsonschema.validate(told := json.loads(to_json(report)), json.loads(SCHEMA.read_text()))
        assert told["twins"][0]["options"]["mapping_file"] is None
        assert ModelMapping.from_dict(told["twins"][0]["options"]["mapping"]) == everything
    told["twins"][0]["options"]["mapping"]["ignored"] = ["down"]
    with pytest.raises(jsonschema.ValidationError, match="ignored"):
        jsonschema.validate(told, json.loads(SCHEMA.read_text()))

    # Without its mapping this twin is ambiguous, so that what runs again from the report goes by it.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mapping_ports.square", ports("Reference", "Port", square=True, fault="gelu"))
    ModelMapping(modules={"up": "first", "down": "second"}).write("mapping.json")
    asked = ["check", "mapping_ports:square", "--json", "report.json", *ARGUMENTS]
    assert run([*asked, "--mapping", "mapping.json"]) == 1
    Path("mapping.json").unlink()
    assert run(["explain", "report.json"]) == 1
    assert "gelu-form" in capsys.readouterr().out
    told = json.loads(Path("report.json").read_text())
    told["twins"][0]["options"]["mapping"] = {"modules": "up"}
    Path("report.json").write_text(json.dumps(told))
    assert run(["explain", "report.json"]) == 2
    assert "report.json: not a mapping: modules must be a table of names" in capsys.readouterr().err


def test_nothing_is_told_of_a_mapping_that_is_not_there(ports) -> None:
    twin = ports("Reference", "Port")
    for options, expected in ((QUICK, None), (replace(QUICK, mapping=ModelMapping()), {})):
        assert check(twin, replace(options, steps=(1,))).twins[0].options["mapping"] == expected


def test_the_command_line_in_a_process_of_its_own(folder, tmp_path) -> None:
    (tmp_path / "mapping.toml").write_text(
        textwrap.dedent(
            """
            [modules]
            "up" = "second"
            "down" = "first"
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "COLUMNS": "120"}
    command = [
        sys.executable,
        "-m",
        "alignment",
        "check",
        "mapping_ports:square",
        "--mapping",
        "mapping.toml",
        *ARGUMENTS,
    ]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert "tensors matched: 4 by mapping, 3 by order" in result.stdout
    (tmp_path / "mapping.toml").write_text("ignore = [")
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "mapping.toml: not a mapping" in result.stderr
    assert "Traceback" not in result.stderr


def test_all_twins_have_no_mapping_in_common(tmp_path, capsys) -> None:
    (tmp_path / "mapping.toml").write_text("")
    assert run(["check", "--all", "--mapping", str(tmp_path / "mapping.toml")]) == 2
    assert "--mapping goes with one twin" in capsys.readouterr().err
