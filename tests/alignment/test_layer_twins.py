"""Whole twins of layers that the two frameworks store otherwise: recurrent layers, attention, transformers."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import torch

from alignment import (
    Keep,
    Options,
    Side,
    Twin,
    capture_candidate,
    capture_reference,
    compare_captures,
    explain,
    explain_traces,
    save_traces,
)
from alignment.check import run_check
from alignment.faults import Fault
from alignment.repro import write_repros
from fake_data import Ids, InputSpec, Labels

HERE = "alignment_test_layer_twins"


class TorchLSTMNet(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, width)
        self.lstm = torch.nn.LSTM(width, width, 2, bidirectional=True, batch_first=True)
        self.head = torch.nn.Linear(2 * width, 4)

    def forward(self, ids: Any) -> Any:
        steps, _ = self.lstm(self.table(ids))
        return self.head(steps.mean(1))


class PaddleLSTMNet(paddle.nn.Layer):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = paddle.nn.Embedding(20, width)
        self.lstm = paddle.nn.LSTM(width, width, 2, direction="bidirect")
        self.head = paddle.nn.Linear(2 * width, 4)

    def forward(self, ids: Any) -> Any:
        steps, _ = self.lstm(self.table(ids))
        return self.head(steps.mean(1))


class TorchAttentionNet(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, width)
        self.attention = torch.nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, 4)

    def forward(self, ids: Any) -> Any:
        x = self.table(ids)
        given, _ = self.attention(x, x, x)
        return self.head(self.norm(x + given).mean(1))


class PaddleAttentionNet(paddle.nn.Layer):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.table = paddle.nn.Embedding(20, width)
        self.attention = paddle.nn.MultiHeadAttention(width, heads)
        self.norm = paddle.nn.LayerNorm(width)
        self.head = paddle.nn.Linear(width, 4)

    def forward(self, ids: Any) -> Any:
        x = self.table(ids)
        return self.head(self.norm(x + self.attention(x, x, x)).mean(1))


class TorchTransformerNet(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, width)
        layer = torch.nn.TransformerEncoderLayer(width, 2, 12, 0.1, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = torch.nn.TransformerDecoderLayer(width, 2, 12, 0.1, batch_first=True)
        self.head = torch.nn.Linear(width, 4)

    def forward(self, ids: Any) -> Any:
        x = self.table(ids)
        return self.head(self.decoder(x, self.encoder(x)).mean(1))


class PaddleTransformerNet(paddle.nn.Layer):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = paddle.nn.Embedding(20, width)
        self.encoder = paddle.nn.TransformerEncoder(paddle.nn.TransformerEncoderLayer(width, 2, 12, 0.1), 2)
        self.decoder = paddle.nn.TransformerDecoderLayer(width, 2, 12, 0.1)
        self.head = paddle.nn.Linear(width, 4)

    def forward(self, ids: Any) -> Any:
        x = self.table(ids)
        return self.head(self.decoder(x, self.encoder(x)).mean(1))


class TorchConvTransposeNet(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, width)
        self.up = torch.nn.ConvTranspose1d(width, width, 2)
        self.rnn = torch.nn.RNN(width, width, batch_first=True)
        self.cell = torch.nn.GRUCell(width, width, bias=False)
        self.head = torch.nn.Linear(width, 4)

    def forward(self, ids: Any) -> Any:
        x = self.up(self.table(ids).transpose(1, 2)).transpose(1, 2)
        steps, last = self.rnn(x)
        return self.head(self.cell(steps.mean(1), last[0]))


class PaddleCell(paddle.nn.GRUCell):
    """Gives torch's h, where Paddle's own gives (h, h)."""

    def forward(self, x: Any, state: Any = None) -> Any:
        return super().forward(x, state)[1]


class PaddleConvTransposeNet(paddle.nn.Layer):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = paddle.nn.Embedding(20, width)
        self.up = paddle.nn.Conv1DTranspose(width, width, 2)
        self.rnn = paddle.nn.SimpleRNN(width, width)
        self.cell = PaddleCell(width, width, bias_ih_attr=False, bias_hh_attr=False)
        self.head = paddle.nn.Linear(width, 4)

    def forward(self, ids: Any) -> Any:
        x = self.up(self.table(ids).transpose([0, 2, 1])).transpose([0, 2, 1])
        steps, last = self.rnn(x)
        return self.head(self.cell(steps.mean(1), last[0]))


@pytest.fixture
def twin_of(monkeypatch):
    """twin_of(name): the twin of the two classes above; backwards: Paddle's is the reference."""
    module = types.ModuleType(HERE)
    module.__dict__.update(globals())
    monkeypatch.setitem(sys.modules, HERE, module)

    def make(name: str, backwards: bool = False, **settings: Any) -> Twin:
        sides = Side("torch", f"{HERE}:Torch{name}"), Side("paddle", f"{HERE}:Paddle{name}", settings)
        spec = InputSpec({"ids": Ids(0, 20, ("B", "N")), "targets": Labels(4, ("B",))}, max_length=6)
        reference, candidate = sides[::-1] if backwards else sides
        return Twin(name, "", reference, candidate, {"width": 8}, lambda _: spec, loss="criterion")

    return make


def options(*faults: Fault, steps: tuple[int, ...] = (1, 2, 3, 4, 5)) -> Options:
    return Options(steps=steps, batch_size=3, length=5, faults=faults, threads=1)


def roots(checked: Any) -> set[tuple[str, str]]:
    return {(root.record, root.name) for root in checked.report.twins[0].roots}


def right_but_for_initializers(checked: Any) -> bool:
    """The two frameworks draw their own initial weights differently, which is no matter of how they are stored."""
    rows = [t for stage in checked.report.twins[0].stages for t in stage.tensors if t.verdict != "aligned"]
    return all(row.record == "initializer" for row in rows)


def twice(parameter: str) -> Fault:
    def plant(framework: Any, model: Any, _twin: Twin) -> list[str]:
        framework.replace_gradient(model, parameter, lambda gradient: 2 * gradient)
        return [parameter]

    return Fault("twice", "", 5, plant=plant)


WRONG_THIRD, WRONG_GATES = twice("attention.v_proj.weight"), twice("lstm.weight_hh_l1")

NETS = ("LSTMNet", "AttentionNet", "TransformerNet", "ConvTransposeNet")


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_a_right_port_is_aligned(twin_of, name, backwards) -> None:
    checked = run_check(twin_of(name, backwards), options(steps=(1, 3, 4, 5)))
    assert checked.report.verdict == "aligned", roots(checked)
    weights = run_check(twin_of(name, backwards), options(steps=(2,)))
    assert right_but_for_initializers(weights), roots(weights)


def weights(name: str, change: Any) -> Fault:
    return Fault(name, "", 2, weights=lambda state, _slots: {**state, name: np.ascontiguousarray(change(state[name]))})


def gates(value: np.ndarray) -> np.ndarray:
    """i, f, g, o as i, f, o, g."""
    return np.concatenate([np.split(value, 4)[index] for index in (0, 1, 3, 2)])


WRONG_WEIGHTS = {
    "attention.k_proj.weight": ("AttentionNet", np.transpose, "attention.in_proj_weight[k]"),
    "attention.v_proj.bias": ("AttentionNet", lambda b: 2 * b + 1, "attention.in_proj_bias[v]"),
    "lstm.weight_ih_l0": ("LSTMNet", gates, "lstm.weight_ih_l0"),
    "lstm.bias_hh_l1_reverse": ("LSTMNet", gates, "lstm.bias_hh_l1_reverse"),
    "decoder.cross_attn.q_proj.weight": (
        "TransformerNet", np.transpose, "decoder.multihead_attn.in_proj_weight[q]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG_WEIGHTS))
def test_wrong_weights_are_found_in_the_right_tensor(twin_of, name) -> None:
    net, change, found = WRONG_WEIGHTS[name]
    checked = run_check(twin_of(net), options(weights(name, change), steps=(1, 2, 3)))
    assert {root for root in roots(checked) if root[0] != "initializer"} == {("parameter", found)}
    row = next(t for t in checked.report.twins[0].stages[1].tensors if (t.record, t.name) == ("parameter", found))
    assert row.candidate_name == name


@pytest.mark.parametrize(
    ("name", "cause"),
    [("attention.k_proj.weight", "linear-not-transposed"), ("lstm.weight_ih_l0", "gates-reordered")],
)
def test_wrong_weights_are_explained(twin_of, name, cause) -> None:
    net, change, found = WRONG_WEIGHTS[name]
    report = explain(twin_of(net), options(weights(name, change), steps=(1, 2, 3)))
    finding = next(f for f in report.twins[0].findings if f"parameter {found}" in f.roots)
    assert finding.cause == cause


@pytest.mark.parametrize(
    ("net", "backwards", "parameter", "found"),
    [
        ("AttentionNet", False, "attention.v_proj.weight", "attention.in_proj_weight[v]"),
        ("AttentionNet", False, "attention.out_proj.bias", "attention.out_proj.bias"),
        ("LSTMNet", False, "lstm.weight_hh_l1", "lstm.weight_hh_l1"),
        ("LSTMNet", True, "lstm.weight_hh_l1", "lstm.weight_hh_l1"),
    ],
)
def test_a_wrong_gradient_is_found_in_the_right_tensor(twin_of, net, backwards, parameter, found) -> None:
    checked = run_check(twin_of(net, backwards), options(twice(parameter), steps=(1, 3, 4, 5)))
    assert roots(checked) == {("gradient", found)}
    diverged = [t for stage in checked.report.twins[0].stages for t in stage.tensors if t.verdict == "diverged"]
    assert [(t.record, t.name) for t in diverged] == [("gradient", found)]


def test_a_part_of_the_candidates_packed_tensor_is_judged_by_itself(twin_of) -> None:
    """The same the other way round: the candidate's gradient of a packed projection is wrong in its second third."""

    def plant(framework: Any, model: Any, _twin: Twin) -> list[str]:
        factor = np.repeat([1.0, 2.0, 1.0], 8)[:, None].astype(np.float32)
        framework.replace_gradient(model, "attention.in_proj_weight", lambda gradient: factor * gradient)
        return ["attention.in_proj_weight"]

    checked = run_check(twin_of("AttentionNet", True), options(Fault("k", "", 5, plant=plant), steps=(1, 3, 4, 5)))
    assert roots(checked) == {("gradient", "attention.k_proj.weight")}


@pytest.mark.parametrize(
    ("backwards", "parameter", "found"),
    [
        (False, "attention.v_proj.weight", "attention.in_proj_weight[v]"),
        (True, "attention.in_proj_weight", "attention.v_proj.weight"),
    ],
)
def test_a_gradient_that_is_zero_is_proved_by_moving_that_part_alone(twin_of, backwards, parameter, found) -> None:
    def plant(framework: Any, model: Any, _twin: Twin) -> list[str]:
        # All of a third, or the last third of the whole.
        framework.replace_gradient(model, parameter, lambda g: np.where(np.arange(len(g))[:, None] < len(g) - 8, g, 0))
        return [parameter]

    report = explain(twin_of("AttentionNet", backwards), options(Fault("none", "", 5, plant=plant), steps=(3, 5)))
    (finding,) = report.twins[0].findings
    assert (finding.roots, finding.cause) == ((f"gradient {found}",), "gradient-zero")
    assert finding.side == "candidate"
    assert any("⟨∂w, v⟩" in law and "the candidate breaks it" in law for law in finding.evidence)


def test_wrong_code_is_found_in_the_layer_that_is_compared_as_a_whole(twin_of) -> None:
    checked = run_check(twin_of("AttentionNet", heads=4), options(steps=(1, 3)))
    assert roots(checked) == {("activation", "attention")}


def test_names_that_one_framework_adds_are_counted_and_no_difference(twin_of) -> None:
    for backwards in (False, True):
        stage = run_check(twin_of("LSTMNet", backwards), options(steps=(1,))).report.twins[0].stages[0]
        assert stage.verdict == "aligned"
        assert any("16 tied names" in note for note in stage.notes)
        assert not any(t.name.startswith("lstm.") for t in stage.tensors if t.record == "module")


def test_a_tie_that_one_side_lacks_is_still_a_difference(twin_of, monkeypatch) -> None:
    class Untied(TorchLSTMNet):
        pass

    class Tied(TorchLSTMNet):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.lstm.weight_hh_l1 = self.lstm.weight_hh_l0

    monkeypatch.setattr(sys.modules[HERE], "TorchLSTMNet", Tied)
    checked = run_check(twin_of("LSTMNet"), options(steps=(1,)))
    assert roots(checked) == {("parameter", "lstm.weight_hh_l1")}
    monkeypatch.setattr(sys.modules[HERE], "TorchLSTMNet", Untied)
    assert run_check(twin_of("LSTMNet"), options(steps=(1,))).report.verdict == "aligned"


@pytest.mark.parametrize(
    ("net", "backwards", "parameter", "found"),
    [
        ("AttentionNet", False, "attention.v_proj.weight", "attention.in_proj_weight[v]"),
        ("AttentionNet", True, "attention.in_proj_bias", "attention.v_proj.bias"),
        ("LSTMNet", False, "lstm.weight_hh_l1", "lstm.weight_hh_l1"),
    ],
)
def test_saved_traces_tell_the_right_tensor(twin_of, tmp_path, net, backwards, parameter, found) -> None:
    def plant(framework: Any, model: Any, _twin: Twin) -> list[str]:
        # The last third alone, where there are three.
        framework.replace_gradient(
            model, parameter, lambda g: np.concatenate([g[: 2 * len(g) // 3], 2 * g[2 * len(g) // 3 :]])
        )
        return [parameter]

    checked = run_check(twin_of(net, backwards), options(Fault("third", "", 5, plant=plant), steps=(3, 5)))
    result = explain_traces(*save_traces(checked, tmp_path)).twins[0]
    assert {(root.record, root.name) for root in result.roots} == {("gradient", found)}
    assert all(stage.verdict == "aligned" for stage in result.stages if stage.step < 5)


def test_saved_traces_of_a_right_port_are_aligned(twin_of, tmp_path) -> None:
    for net in NETS:
        checked = run_check(twin_of(net), options(steps=(3, 5)))
        report = explain_traces(*save_traces(checked, tmp_path / net))
        assert report.verdict == "aligned", {(r.record, r.name) for r in report.twins[0].roots}


def test_wrong_weights_in_saved_traces_are_explained(twin_of, tmp_path) -> None:
    fault = weights("attention.k_proj.weight", np.transpose)
    checked = run_check(twin_of("AttentionNet"), options(fault, steps=(2, 3)))
    (finding, *_) = explain_traces(*save_traces(checked, tmp_path)).twins[0].findings
    assert (finding.roots, finding.cause) == (
        ("parameter attention.in_proj_weight[k]",),
        "linear-not-transposed",
    )


@pytest.mark.parametrize(
    ("net", "fault", "part"),
    [("AttentionNet", "WRONG_THIRD", (2, 3)), ("LSTMNet", "WRONG_GATES", None)],
)
def test_a_repro_shows_the_part_alone(twin_of, tmp_path, net, fault, part) -> None:
    setattr(sys.modules[HERE], "twin", twin_of(net))  # noqa: B010 (a module has no such attribute to a type checker)
    given = replace(options(steps=(3, 5)), faults=(f"{HERE}:{fault}",))
    (script,) = write_repros(run_check(f"{HERE}:twin", given), tmp_path)
    text = script.read_text()
    assert f'run(REFERENCE, reference, "reference"), {part})' in text
    assert 'run(CANDIDATE, candidate, "candidate"), None)' in text
    for source, status in ((text, 1), (text.replace("PLANTED = [", "PLANTED = [] and ["), 0)):
        with pytest.raises(SystemExit) as ended:
            exec(compile(source, str(script), "exec"), {"__name__": "__main__", "__file__": str(script)})
        assert ended.value.code == status


def test_reprod_log_files_have_equal_keys(twin_of, tmp_path) -> None:
    reprod_log = pytest.importorskip("reprod_log")
    for backwards in (False, True):
        for net in ("AttentionNet", "LSTMNet"):
            folder = tmp_path / f"{net} {backwards}"
            folder.mkdir()
            run_check(twin_of(net, backwards), options(steps=(1, 2, 3, 5)), reprod_log=folder)
            for stem in ("structure", "init", "forward", "bp_align"):
                load = reprod_log.ReprodDiffHelper().load_info
                one, two = (load(str(folder / f"{stem}_{side}.npy")) for side in ("torch", "paddle"))
                assert set(one) == set(two)
                # Where a gradient is rounding noise alone, so is the sign of Adam's step.
                for key in (key for key in one if not key.endswith(".update")):
                    np.testing.assert_allclose(two[key], one[key], rtol=0, atol=1e-5, err_msg=key)


def test_a_large_batch_is_compared_part_by_part(twin_of, monkeypatch) -> None:
    from alignment import fullsize

    monkeypatch.setattr(fullsize, "LARGE_RUN", 1.0)
    for backwards in (False, True):
        for net in ("AttentionNet", "LSTMNet"):
            checked = run_check(twin_of(net, backwards), replace(options(steps=(3, 5)), batch_size=4))
            assert any("probe" in note for note in checked.report.twins[0].notes)
            assert checked.report.verdict == "aligned", roots(checked)


def captures(folder: Path, twin: Twin, *faults: Fault, keep: Keep | None = None, train_steps: int = 0) -> list[Path]:
    files = [folder / "reference.safetensors", folder / "candidate.safetensors"]
    capture_reference(twin, files[0], options(), keep, train_steps)
    capture_candidate(files[0], files[1], twin, faults)
    return files


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_captures_give_the_report_of_a_check(twin_of, tmp_path, name, backwards) -> None:
    steps = (1, 3, 4, 5)
    live = run_check(twin_of(name, backwards), options(steps=steps)).report.twins[0]
    (apart,) = compare_captures(*captures(tmp_path, twin_of(name, backwards)), steps).twins
    assert apart.verdict == "aligned"
    assert apart.stages == live.stages


@pytest.mark.parametrize("backwards", [False, True])
def test_captures_tell_the_right_part(twin_of, tmp_path, backwards) -> None:
    steps = (1, 3, 4, 5)
    parameter, found = "attention.v_proj.weight", "attention.in_proj_weight[v]"

    def plant(framework: Any, model: Any, _twin: Twin) -> list[str]:
        name = "attention.in_proj_bias" if backwards else parameter
        framework.replace_gradient(
            model, name, lambda g: np.concatenate([g[: 2 * len(g) // 3], 2 * g[2 * len(g) // 3 :]])
        )
        return [name]

    fault = Fault("third", "", 5, plant=plant)
    files = captures(tmp_path, twin_of("AttentionNet", backwards), fault, train_steps=2)
    (twin,) = compare_captures(*files, steps).twins
    changes = {t.name: t.verdict for stage in twin.stages for t in stage.tensors if t.record == "update"}
    part = "attention.q_proj.weight" if backwards else "attention.in_proj_weight[q]"
    assert changes[part] == changes[f"{part} (training)"] == "aligned"
    assert {(root.record, root.name) for root in twin.roots} == {
        ("gradient", "attention.v_proj.bias" if backwards else found)
    }


@pytest.mark.parametrize("backwards", [False, True])
def test_figures_of_a_whole_say_nothing_of_its_parts(twin_of, tmp_path, backwards) -> None:
    files = captures(
        tmp_path, twin_of("AttentionNet", backwards), twice("head.weight"), keep=Keep("statistics"), train_steps=1
    )
    (twin,) = compare_captures(*files).twins
    rows = {(t.record, t.name): t for stage in twin.stages for t in stage.tensors}
    parts = ("attention.q_proj.weight",) if backwards else ("attention.in_proj_weight[q]", "attention.in_proj_weight")
    assert not any(("gradient", part) in rows for part in parts)
    assert any("records were not captured (--level statistics)" in note for note in twin.notes)
    assert rows["gradient", "head.weight"].verdict == "diverged"
    assert rows["gradient", "head.bias"].verdict != "diverged"


def test_a_part_goes_by_the_pattern_of_its_whole(twin_of, tmp_path) -> None:
    keep = Keep(only=("attention.in_proj_weight", "logits"))
    (twin,) = compare_captures(*captures(tmp_path, twin_of("AttentionNet"), keep=keep)).twins
    rows = {
        t.name: t.verdict for stage in twin.stages if stage.step == 5 for t in stage.tensors if t.record == "gradient"
    }
    assert rows == {f"attention.in_proj_weight[{part}]": "aligned" for part in "qkv"} | {"logits": "aligned"}
