"""A large batch runs once in float32, and the probe is small; what differs at full size alone is found as well."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from alignment import check, explain, fullsize
from alignment.experiment import prepare
from alignment.frameworks import get_framework
from alignment.fullsize import FULL_SIZE, Shares, make_probe
from alignment.twins import TWINS, get_twin


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch) -> None:
    monkeypatch.setattr(fullsize, "LARGE_RUN", 1.0)
    monkeypatch.setattr(fullsize, "PROBE_LENGTH", 4)
    monkeypatch.setattr(fullsize, "PROBE_VOCABULARY", 12)


def bad(report) -> set[tuple[str, str, str | None]]:
    return {(t.record, t.name, t.batch) for s in report.twins[0].stages for t in s.tensors if t.verdict != "aligned"}


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_right_ports_are_aligned(small, name, seed) -> None:
    report = check(name, small(name, steps=(3, 4, 5), seed=seed))
    assert not bad(report)
    twin = report.twins[0]
    assert twin.batches == ("probe", FULL_SIZE)
    assert any("large batch" in note for note in twin.notes)
    logits = next(t for t in twin.stages[0].tensors if t.name == "logits")
    assert logits.comparisons == 3  # the probe with two sets of weights, and the batch


def test_the_probe_is_small_and_has_every_kind_of_row(small) -> None:
    experiment = prepare(get_twin("fastformer-classifier"), small("fastformer-classifier"))
    probe = make_probe(experiment)
    ids = probe.batches[0].inputs["input_ids"]
    assert ids.shape[1] == 4
    assert (ids == 0).all(1).any()  # wholly padded
    assert (ids != 0).all(1).any()  # full
    assert any(len(set(row)) == 1 and row[0] for row in ids)  # one token throughout
    assert ids.max() < 12
    assert probe.weights["init"]["word_embedding.weight"].shape == (12, 16)
    for name, value in probe.weights["random"].items():
        whole = experiment.weights["random"][name]
        assert np.array_equal(value, whole[tuple(slice(0, n) for n in value.shape)])


def test_small_runs_are_their_own_probe(small, monkeypatch) -> None:
    monkeypatch.setattr(fullsize, "LARGE_RUN", 1e9)
    experiment = prepare(get_twin("fast-transformer"), small("fast-transformer"))
    assert make_probe(experiment) is experiment


@pytest.mark.parametrize("fault", ["gelu-form", "stale-bias-gradient", "loss-reduction", "linear-not-transposed"])
def test_faults_are_found_and_explained(small, fault) -> None:
    report = explain("fastformer-classifier", small("fastformer-classifier", faults=(fault,)))
    assert report.verdict == "diverged"
    assert [finding.cause for finding in report.twins[0].findings] == [fault]


def patched(monkeypatch, change) -> None:
    adapter = get_framework("paddle")
    build = adapter.build

    def build_and_change(*arguments, **keywords):
        model = build(*arguments, **keywords)
        change(model)
        return model

    monkeypatch.setattr(adapter, "build", build_and_change)


def test_what_differs_at_full_length_alone_is_found(small, monkeypatch) -> None:
    """Positions from 4 on are wrong by a little: no probe of four tokens sees it."""

    def change(model) -> None:
        def shift(_layer, _inputs, output):
            if output.shape[0] <= 4:
                return output
            wrong = np.zeros(output.shape, dtype=np.float32)
            wrong[5] = 0.01
            return output + paddle.to_tensor(wrong).astype(output.dtype)

        model.abs_pos_emb.register_forward_post_hook(shift)

    patched(monkeypatch, change)
    report = check("fast-transformer", small("fast-transformer", steps=(3,)))
    found = bad(report)
    assert ("activation", "abs_pos_emb", FULL_SIZE) in found
    assert {batch for _, _, batch in found} == {FULL_SIZE}
    assert [root.name for root in report.twins[0].roots] == ["abs_pos_emb"]


@pytest.mark.parametrize(("value", "verdict"), [(np.nan, "diverged"), (np.inf, "diverged")])
def test_values_that_are_no_numbers_are_never_aligned(small, monkeypatch, value, verdict) -> None:
    def change(model) -> None:
        model.criterion.register_forward_post_hook(lambda _layer, _inputs, loss: loss * value)

    patched(monkeypatch, change)
    report = check("fastformer-classifier", small("fastformer-classifier", steps=(4,)))
    assert report.verdict == verdict


def test_a_sink_is_given_what_would_be_kept(small) -> None:
    experiment = prepare(get_twin("fastformer-classifier"), small("fastformer-classifier"))
    batch = experiment.batches[0]
    for side, model in (("reference", experiment.reference_model), ("candidate", experiment.candidate_model)):
        whole = experiment.run(side, model, batch, backward=True)
        seen: dict[tuple[str, str], np.ndarray] = {}
        kept = experiment.run(
            side, model, batch, True, sink=lambda r, seen=seen: seen.update({(r.kind, r.name): r.value.copy()})
        )
        assert not kept.records
        assert {name for kind, name in seen if kind == "gradient"} == set(whole.names("gradient"))
        for (kind, name), value in seen.items():
            assert np.array_equal(value, whole.get(kind, name)), name


@pytest.mark.parametrize("where", [0, 17, 1000, 4095, 4099])
def test_a_sketch_sees_a_change_of_any_one_element(monkeypatch, where) -> None:
    monkeypatch.setattr(fullsize, "SKETCH_FROM", 1)
    value = np.random.default_rng(0).standard_normal((41, 100)).astype(np.float32)
    expected = lambda size: (1e-7 * size, 3e-7 * size)  # noqa: E731
    assert fullsize._compare(fullsize.sketch(value), value + np.float32(1e-7), expected, 1.0).verdict == "aligned"
    changed = value.copy()
    changed.ravel()[where] += 1e-3
    found = fullsize._compare(fullsize.sketch(value), changed, expected, 1.0)
    assert found.verdict == "diverged"
    position = int(np.ravel_multi_index(found.worst_index, value.shape))
    assert abs(position - where) < fullsize.NEIGHBOURS
    changed.ravel()[where] = np.nan
    assert fullsize._compare(fullsize.sketch(value), changed, expected, 1.0).verdict == "diverged"
    assert fullsize._compare(fullsize.sketch(changed), changed, expected, 1.0).verdict == "inconclusive"
    assert fullsize._compare(fullsize.sketch(value), changed[:, :99], expected, 1.0).verdict == "diverged"
    assert fullsize._compare(None, value, expected, 1.0).verdict == "diverged"
    empty = value[:0]
    assert fullsize._compare(fullsize.sketch(empty), empty, expected, 1.0).verdict == "inconclusive"


def test_the_error_to_expect_goes_with_the_size_and_never_below_the_probes() -> None:
    shares = Shares()
    shares.known["activation", "a"] = (1e-7, 3e-7, 1.0)
    assert shares.error("activation", "a", 10.0) == pytest.approx((1e-6, 3e-6), rel=0.3)
    assert shares.error("activation", "a", 1e-9) == (1e-7, 3e-7)
    assert shares.error("activation", "unknown", 1.0) == pytest.approx((1.2e-7, 1.2e-7), rel=0.01)
