"""The main job on the real twins: right ones are aligned, each planted fault is found where it is."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

import checkpoints
from alignment import AlignmentError, Options, Side, check
from alignment.experiment import prepare
from alignment.faults import FAULTS
from alignment.frameworks import get_framework
from alignment.stages import run_stages
from alignment.twins import TWINS, get_twin, parse_settings
from alignment.views.json import SCHEMA, to_json
from fake_data import DataError
from mutants.fastformer_faults import EXPECTED

NOT_APPLICABLE = {
    ("fast-transformer", "dropout-on"),
    ("fastformer-text-classifier", "layernorm-eps"),
    ("fastformer-text-classifier", "gelu-form"),
}


@pytest.mark.parametrize("settings", [{}, {"heads": 3, "dim_head": 4}, {"absolute_pos_emb": False}])
@pytest.mark.parametrize("seed", [0, 1])
def test_fast_transformer_is_aligned(small, settings, seed) -> None:
    report = check("fast-transformer", small("fast-transformer", settings=settings, seed=seed))
    assert_aligned(report)


@pytest.mark.parametrize("name", [name for name in TWINS if name != "fast-transformer"])
def test_every_twin_is_aligned(small, name) -> None:
    report = check(name, small(name))
    assert_aligned(report)
    jsonschema.validate(json.loads(to_json(report)), json.loads(SCHEMA.read_text()))


def assert_aligned(report) -> None:
    bad = [(t.record, t.name, t.reason) for s in report.twins[0].stages for t in s.tensors if t.verdict != "aligned"]
    assert not bad
    assert report.verdict == "aligned"
    assert [stage.step for stage in report.twins[0].stages] == [1, 2, 3, 4, 5]
    assert all(stage.tensors for stage in report.twins[0].stages)


@pytest.mark.parametrize(("name", "fault"), [(n, f) for n in TWINS for f in FAULTS if (n, f) not in NOT_APPLICABLE])
def test_a_planted_fault_is_first_seen_by_its_stage(small, name, fault) -> None:
    report = check(name, small(name, faults=(fault,)))
    stages = report.twins[0].stages
    assert report.verdict == "diverged"
    assert next(stage.step for stage in stages if stage.verdict == "diverged") == FAULTS[fault].stage
    roots = report.twins[0].roots
    assert roots
    assert all(root.verdict == "diverged" and EXPECTED[fault](name, root.record, root.name) for root in roots)


def test_the_stale_bias_gradient_is_flagged_on_exactly_the_tensor_it_hits(small) -> None:
    report = check("fast-transformer-classifier", small("fast-transformer-classifier", faults=("stale-bias-gradient",)))
    bad = [(t.record, t.name) for s in report.twins[0].stages for t in s.tensors if t.verdict != "aligned"]
    assert bad == [("gradient", "dense_linear.bias")]


@pytest.mark.parametrize(("name", "fault"), sorted(NOT_APPLICABLE))
def test_a_fault_with_nothing_to_hit_is_refused(small, name, fault) -> None:
    with pytest.raises(AlignmentError, match="nothing to hit"):
        check(name, small(name, faults=(fault,)))


def test_two_checks_give_the_same_report(small) -> None:
    one, two = (check("fastformer-text-classifier", small("fastformer-text-classifier")).twins[0] for _ in range(2))
    assert replace(one, seconds=0) == replace(two, seconds=0)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_one_step_alone(small, step) -> None:
    report = check("fast-transformer", small("fast-transformer", steps=(step,)))
    assert [stage.step for stage in report.twins[0].stages] == [step]
    assert report.verdict == "aligned"


def test_all_batches_are_tried_with_given_and_random_weights(small) -> None:
    twin = check("fast-transformer", small("fast-transformer", steps=(3,))).twins[0]
    assert set(twin.weights) == {"init", "random"}
    hard = {"full-length", "length-1", "padded-row", "same-token", "boundary-ids", "longest"}
    assert hard < set(twin.batches)
    logits = next(t for t in twin.stages[0].tensors if t.record == "logits")
    assert logits.comparisons == len(twin.weights) * len(twin.batches)


def test_a_candidate_of_other_sizes_is_diverged_in_structure_and_inconclusive_after(small, monkeypatch) -> None:
    paddle = get_framework("paddle")
    build = paddle.build

    def wider(target, settings, *rest, **more):
        return build(target, settings | {"ff_mult": 3}, *rest, **more)

    monkeypatch.setattr(paddle, "build", wider)
    report = check("fast-transformer", small("fast-transformer"))
    stages = report.twins[0].stages
    assert [stage.verdict for stage in stages] == ["diverged", *["inconclusive"] * 4]
    bad = {t.name for t in stages[0].tensors if t.verdict == "diverged"}
    assert bad == {f"layers.{i}.1.fn.{name}" for i in (0, 1) for name in ("0.weight", "0.bias", "2.weight")}


def test_a_candidate_of_another_class_lists_what_is_left_over(small) -> None:
    twin = replace(get_twin("fastformer-classifier"), candidate=Side("paddle", "alignment_test_models:Other"))
    import sys
    import types

    from fastformer_paddle import FastTransformerClassifier

    module = types.ModuleType("alignment_test_models")
    module.Other = lambda **_: FastTransformerClassifier(  # type: ignore[attr-defined]
        num_classes=5, num_tokens=40, dim=16, depth=1, max_seq_len=12, heads=2, dim_head=8, absolute_pos_emb=True
    )
    sys.modules["alignment_test_models"] = module
    try:
        report = check(twin, small("fastformer-classifier"))
    finally:
        del sys.modules["alignment_test_models"]
    structure = report.twins[0].stages[0]
    missing = {t.name for t in structure.tensors if t.verdict == "diverged" and t.candidate_name is None}
    extra = {t.name for t in structure.tensors if t.verdict == "diverged" and t.reference_name is None}
    assert "word_embedding.weight" in missing
    assert "fastformer_model.token_emb.weight" in extra


def test_other_initialisers_are_seen(small, monkeypatch) -> None:
    # Paddle's own defaults in place of torch's: Xavier weights and zero biases, the fault every hand port starts with.
    paddle = get_framework("paddle")
    build = paddle.build

    def with_own_defaults(*arguments, **options):
        model = build(*arguments, **options)
        state = paddle.read_state(model)
        own = {s.name: np.zeros_like(state[s.name]) for s in paddle.slots(model) if s.local == "bias"}
        paddle.load_state(model, state | own)
        return model

    monkeypatch.setattr(paddle, "build", with_own_defaults)
    stage = check("fast-transformer", small("fast-transformer", steps=(2,))).twins[0].stages[0]
    bad = {(t.record, t.name) for t in stage.tensors if t.verdict == "diverged"}
    assert ("initializer", "layers.0.0.fn.to_r.bias") in bad
    assert all(record == "initializer" and name.endswith(".bias") for record, name in bad)


def test_a_checkpoint_is_read_as_weights(small, tmp_path) -> None:
    options = small("fast-transformer", steps=(2, 3))
    experiment = prepare(get_twin("fast-transformer"), options)
    state = experiment.weights["random"]
    checkpoints.write(tmp_path / "w.safetensors", state)
    checkpoints.write(tmp_path / "w.pdparams", checkpoints.convert(state, experiment.layout))
    for name in ("w.safetensors", "w.pdparams"):
        given = prepare(get_twin("fast-transformer"), replace(options, weights=str(tmp_path / name)))
        assert list(given.weights) == [name, "random"]
        assert all(np.array_equal(given.weights[name][key], value) for key, value in state.items())
    with pytest.raises(AlignmentError, match="token_emb"):
        prepare(get_twin("fast-transformer"), small("fast-transformer", weights=str(tmp_path / "w.safetensors"),
                                                    settings={"num_tokens": 31}))  # fmt: skip


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("fast_transformer_pooled_rich", "fast-transformer-classifier"),  # its logits are more than 64 apart
        ("fast_transformer_rotary_rich", "fast-transformer"),
        ("fastformer_official_rich", "fastformer-classifier"),
        ("fastformer_single_rich", "fastformer-text-classifier"),
    ],
)
def test_the_originals_weights_are_aligned(reference_dir, tmp_path, file, name) -> None:
    recorded = checkpoints.read(reference_dir / f"{file}.safetensors")
    weights = {key.removeprefix("weight."): value for key, value in recorded.items() if key.startswith("weight.")}
    checkpoints.write(tmp_path / "w.safetensors", weights)
    options = Options(steps=(3, 4, 5), weights=str(tmp_path / "w.safetensors"), data="fake", batch_size=3, length=8)
    report = check(name, options)
    assert report.verdict == "aligned"


def test_recording_changes_nothing(small) -> None:
    experiment = prepare(get_twin("fast-transformer"), small("fast-transformer"))
    batch = experiment.batches[0]
    import paddle
    import torch

    with torch.no_grad():
        bare = experiment.reference_model(*map(torch.from_numpy, batch.inputs.values())).numpy()
    with paddle.no_grad():
        bare_too = experiment.candidate_model(*map(paddle.to_tensor, batch.inputs.values())).numpy()
    for framework, model, value in (
        (experiment.reference, experiment.reference_model, bare),
        (experiment.candidate, experiment.candidate_model, bare_too),
    ):
        state = framework.read_state(model)
        trace = framework.run(model, batch, loss="criterion", backward=True, learning_rate=1e-3)
        assert np.array_equal(trace.get("logits", "logits"), value)
        after = framework.read_state(model)
        assert all(np.array_equal(state[name], after[name]) for name in state), "the optimizer step must be undone"


def test_losing_a_comparison_is_inconclusive_not_aligned(small) -> None:
    experiment = prepare(get_twin("fast-transformer"), small("fast-transformer", steps=(3,)))
    assert run_stages(replace(experiment, batches=()), lambda: None)[0].verdict == "inconclusive"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_record_that_one_run_lacks_is_not_aligned(small, monkeypatch, dtype) -> None:
    paddle = get_framework("paddle")
    run = paddle.run

    def forget(*arguments, **options):
        trace = run(*arguments, **options)
        lost = "layers.0.0.norm" if trace.dtype == dtype else ""
        return replace(trace, records=tuple(record for record in trace.records if record.name != lost))

    monkeypatch.setattr(paddle, "run", forget)
    report = check("fast-transformer", small("fast-transformer", steps=(3,)))
    assert diverged(report, 3) == {"layers.0.0.norm"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"nonsense": 1}}, "nonsense"),
        ({"settings": {"heads": 0}}, "heads"),
        ({"settings": {"num_tokens": 1}}, "num_tokens"),
        ({"data": "no/such/file.json.gz"}, "no/such/file.json.gz"),
        ({"weights": "no/such/file.pth"}, "no/such/file.pth"),
        ({"faults": ("nonsense",)}, "stale-bias-gradient"),
        ({"length": 4000}, "4000"),
    ],
)
def test_bad_input_is_named(small, changes, said) -> None:
    with pytest.raises((AlignmentError, checkpoints.CheckpointError, DataError), match=said):
        check("fast-transformer", small("fast-transformer", **changes))


@pytest.mark.parametrize("field", [{"steps": ()}, {"steps": (6,)}, {"batch_size": 0}, {"length": 0}, {"seed": -1}])
def test_options_are_checked(field) -> None:
    with pytest.raises(AlignmentError):
        Options(**field)


def test_settings_are_parsed_by_the_type_of_their_default() -> None:
    twin = get_twin("fast-transformer")
    assert parse_settings(twin, ["absolute_pos_emb=false", "dim=32"])["absolute_pos_emb"] is False
    for wrong in ("dim", "dim=x", "absolute_pos_emb=maybe", "nonsense=1"):
        with pytest.raises(AlignmentError):
            parse_settings(twin, [wrong])
    with pytest.raises(AlignmentError, match="fast-transformer"):
        get_twin("nonsense")


def test_json_has_no_infinity(small) -> None:
    report = check("fast-transformer", small("fast-transformer", steps=(2,), faults=("linear-not-transposed",)))
    document = json.loads(to_json(report), parse_constant=lambda name: pytest.fail(name))
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert any(math.isinf(t.strain) for t in report.twins[0].stages[0].tensors)


# ------------------------------------------------------------------------------- faults that only a patched candidate shows


def patched(monkeypatch, change):
    """Every Paddle model the adapter builds is changed by `change(model)`."""
    paddle = get_framework("paddle")
    build = paddle.build

    def build_and_change(*arguments, **options):
        model = build(*arguments, **options)
        change(model)
        return model

    monkeypatch.setattr(paddle, "build", build_and_change)


def diverged(report, step: int) -> set[str]:
    stage = next(stage for stage in report.twins[0].stages if stage.step == step)
    return {tensor.name for tensor in stage.tensors if tensor.verdict == "diverged"}


def test_a_buffer_the_candidate_computes_wrongly_is_seen_though_loading_would_hide_it(small, monkeypatch) -> None:
    def scale(model) -> None:
        for name, buffer in model.named_buffers():
            if name.endswith("freqs"):
                buffer.set_value(buffer * 3.0)

    patched(monkeypatch, scale)
    report = check("fast-transformer", small("fast-transformer", settings={"absolute_pos_emb": False}))
    assert diverged(report, 2) == {f"layers.{i}.0.fn.pos_emb.freqs" for i in (0, 1)}


def test_another_dropout_rate_is_seen(small, monkeypatch) -> None:
    paddle = get_framework("paddle")
    patched(monkeypatch, lambda model: paddle.set_option(model, "Dropout", "p", 0.9))
    report = check("fastformer-text-classifier", small("fastformer-text-classifier", steps=(1,)))
    assert diverged(report, 1) == {"dropout"}


def test_a_prediction_without_targets_that_differs_is_seen(small, monkeypatch) -> None:
    def soften(model) -> None:
        forward = model.forward
        model.forward = lambda ids, targets=None: forward(ids, targets) if targets is not None else forward(ids) * 2

    patched(monkeypatch, soften)
    report = check("fast-transformer-classifier", small("fast-transformer-classifier", steps=(3,)))
    assert diverged(report, 3) == {"logits without targets"}


def test_a_cut_gradient_is_seen(small, monkeypatch) -> None:
    def cut(model) -> None:
        layer = model.fastformer_model.pooler.att_fc1
        forward = layer.forward
        layer.forward = lambda x: forward(x).detach()

    patched(monkeypatch, cut)
    report = check("fast-transformer-classifier", small("fast-transformer-classifier", steps=(3, 5)))
    assert not diverged(report, 3)
    assert {"fastformer_model.pooler.att_fc1.weight", "fastformer_model.pooler.att_fc1.bias"} <= diverged(report, 5)


def test_one_wrong_element_of_one_gradient_is_seen(small, monkeypatch) -> None:
    paddle = get_framework("paddle")

    def wrong(gradient: np.ndarray) -> np.ndarray:
        changed = gradient.copy()
        changed[2, 1] *= 1 + 1e-6
        return changed

    patched(monkeypatch, lambda model: paddle.replace_gradient(model, "query.weight", wrong))
    report = check("fastformer-text-classifier", small("fastformer-text-classifier", steps=(5,)))
    assert diverged(report, 5) == {"query.weight"}
    tensor = next(t for t in report.twins[0].stages[0].tensors if t.verdict == "diverged")
    assert tensor.worst_index == (1, 2), "in the reference's layout"
    assert tensor.root


@pytest.mark.parametrize("output", ["cut", "flat"])
def test_logits_of_another_shape_diverge_and_the_report_is_whole(small, monkeypatch, output) -> None:
    def reshape(model) -> None:
        forward = model.forward
        model.forward = lambda x, mask: forward(x, mask)[:, :-1] if output == "cut" else forward(x, mask)[None]

    patched(monkeypatch, reshape)
    report = check("fast-transformer", small("fast-transformer", steps=(1, 3)))
    assert report.verdict == "diverged"
    assert report.twins[0].stages[0].verdict == "aligned"


def test_nan_logits_on_both_sides_are_not_aligned(small, tmp_path) -> None:
    experiment = prepare(get_twin("fastformer-text-classifier"), small("fastformer-text-classifier", steps=(3,)))
    state = dict(experiment.weights["random"])
    state["fc.bias"] = np.full_like(state["fc.bias"], np.nan)
    checkpoints.write(tmp_path / "nan.safetensors", state)
    options = small("fastformer-text-classifier", steps=(3,), weights=str(tmp_path / "nan.safetensors"))
    assert check("fastformer-text-classifier", options).verdict != "aligned"


@pytest.mark.parametrize("error", [SystemExit(0), RuntimeError("out of order"), ImportError("no module")])
def test_a_candidate_that_stops_or_breaks_is_named_and_never_passes(small, monkeypatch, error) -> None:
    def broken(model) -> None:
        def forward(*_: object) -> None:
            raise error

        model.forward = forward

    patched(monkeypatch, broken)
    with pytest.raises(AlignmentError, match="the candidate"):
        check("fast-transformer", small("fast-transformer", steps=(3,)))


def test_parameters_frozen_on_both_sides_are_aligned(small, monkeypatch) -> None:
    def freeze(model) -> None:
        model.fc.bias.stop_gradient = True

    torch = get_framework("torch")
    build = torch.build

    def frozen(*arguments, **options):
        model = build(*arguments, **options)
        model.fc.bias.requires_grad_(False)
        return model

    patched(monkeypatch, freeze)
    monkeypatch.setattr(torch, "build", frozen)
    report = check("fastformer-text-classifier", small("fastformer-text-classifier"))
    assert report.verdict == "aligned"


def test_unused_parameters_are_named(small) -> None:
    options = small("fastformer-classifier", steps=(5,), settings={"pooler_count": 2})
    stage = check("fastformer-classifier", options).twins[0].stages[0]
    assert stage.verdict == "aligned"
    (note,) = stage.notes
    assert "fastformer_model.poolers.1.att_fc1.weight" in note
    assert "poolers.0" not in note


def test_no_gradient_against_zeros_is_named(small, monkeypatch) -> None:
    paddle = get_framework("paddle")
    run = paddle.run

    def zeros(*arguments, **options):
        trace = run(*arguments, **options)
        shapes = {name: parameter.shape for name, parameter in arguments[0].named_parameters()}
        records = [
            replace(r, value=np.zeros(shapes[r.name], trace.dtype)) if r.kind == "gradient" and r.value is None else r
            for r in trace.records
        ]
        return replace(trace, records=tuple(records))

    monkeypatch.setattr(paddle, "run", zeros)
    options = small("fastformer-classifier", steps=(5,), settings={"pooler_count": 2})
    stage = check("fastformer-classifier", options).twins[0].stages[0]
    tensor = next(
        t for t in stage.tensors if t.name == "fastformer_model.poolers.1.att_fc1.weight" and t.record == "gradient"
    )
    assert "zeros on the other" in tensor.reason
    assert tensor.name in stage.notes[0]


def test_saturated_weights_are_no_false_alarm(small, tmp_path) -> None:
    experiment = prepare(get_twin("fast-transformer-classifier"), small("fast-transformer-classifier"))
    state = {name: value * np.float32(30) for name, value in experiment.weights["random"].items()}
    checkpoints.write(tmp_path / "large.safetensors", state)
    options = small("fast-transformer-classifier", steps=(3, 4, 5), weights=str(tmp_path / "large.safetensors"))
    bad = [t.reason for s in check("fast-transformer-classifier", options).twins[0].stages for t in s.tensors
           if t.verdict != "aligned"]  # fmt: skip
    assert not bad
