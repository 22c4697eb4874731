"""Every fault of a weight is named by its own numbers, alone, and a near miss of it is not proved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alignment.causes.suspect import WeightSuspect
from alignment.causes.weights import CAUSES


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def suspect(reference: np.ndarray, candidate: np.ndarray, **more: Any) -> WeightSuspect:
    given = {
        "record": "parameter",
        "name": "layer.weight",
        "kind": "Linear",
        "local": "weight",
        "own": None,
        "others": {},
    }
    given |= more
    own = given.pop("own")
    others = {name: value.astype(np.float64) for name, value in given.pop("others").items()}
    own = None if own is None else own.astype(np.float64)
    values = reference.astype(np.float64), candidate.astype(np.float64)
    return WeightSuspect(**given, reference=values[0], candidate=values[1], own=own, others=others)


def proved(what: WeightSuspect) -> list[str]:
    return [cause.name for cause in CAUSES if any(trial.proved for trial in cause.test(what))]


def blocks(value: np.ndarray, axis: int, *order: int) -> np.ndarray:
    parts = np.split(value, len(order), axis)
    return np.concatenate([parts[i] for i in order], axis)


def bf16(value: np.ndarray) -> np.ndarray:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return value.astype(ml_dtypes.bfloat16).astype(np.float32)


SQUARE, QKV, CONV, WIDE = drawn(12, 12), drawn(24, 8), drawn(6, 6, 3, 3), drawn(8, 12)
OTHER = drawn(12, 12, seed=1)

FAULTS: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]] = {
    "linear-not-transposed": (SQUARE, SQUARE.T, {}),
    "embedding-transposed": (SQUARE, SQUARE.T, {"kind": "Embedding"}),
    "weight-transposed": (SQUARE, SQUARE.T, {"kind": "Attention"}),
    "weight-reshaped": (WIDE, WIDE.reshape(12, 8).T, {}),
    "conv-transposed": (CONV, CONV.swapaxes(0, 1), {"kind": "Conv2d"}),
    "conv-flipped": (CONV, CONV[:, :, ::-1, ::-1], {"kind": "Conv2d"}),
    "gates-reordered": (drawn(32, 6), blocks(drawn(32, 6), 0, 0, 2, 1, 3), {"kind": "LSTMCell", "local": "weight_ih"}),
    "mha-packing": (QKV, blocks(QKV, 0, 1, 2, 0), {}),
    "interleaved": (QKV, QKV.reshape(3, 4, 2, 8).swapaxes(0, 1).reshape(24, 8), {}),
    "head-order": (SQUARE, blocks(SQUARE, 1, 2, 0, 1, 3), {}),
    "sign-flipped": (SQUARE, -SQUARE, {}),
    "scaled-weight": (SQUARE, SQUARE * np.float32(1.001), {}),
    "precision-lost": (SQUARE, SQUARE.astype(np.float16).astype(np.float32), {}),
    "weight-not-loaded": (SQUARE, OTHER, {"own": OTHER}),
    "bias-not-loaded": (drawn(5), np.zeros(5), {"local": "bias", "own": np.zeros(5)}),
    "bn-buffers-lost": (drawn(5), np.zeros(5), {"record": "buffer", "kind": "BatchNorm2d", "own": np.zeros(5)}),
    "stale-layer": (SQUARE, OTHER, {"others": {"layer.weight": SQUARE, "first.weight": OTHER}}),
}


def test_every_cause_is_tried_here() -> None:
    assert set(FAULTS) == {cause.name for cause in CAUSES}


@pytest.mark.parametrize("name", FAULTS)
def test_named_alone(name: str) -> None:
    reference, candidate, more = FAULTS[name]
    assert proved(suspect(reference, candidate, **more)) == [name]


@pytest.mark.parametrize("name", FAULTS)
def test_one_element_off_is_not_proved(name: str) -> None:
    reference, candidate, more = FAULTS[name]
    candidate = np.array(candidate, np.float32)
    candidate.flat[3] = np.nextafter(candidate.flat[3], np.float32(9)) * np.float32(1.01) + np.float32(1e-3)
    assert proved(suspect(reference, candidate, **more)) == []


@pytest.mark.parametrize("name", [n for n in FAULTS if not n.endswith(("loaded", "lost", "layer", "weight"))])
def test_noise_is_told_but_not_proved(name: str) -> None:
    reference, candidate, more = FAULTS[name]
    what = suspect(reference, candidate + 1e-3 * drawn(*candidate.shape, seed=5), **more)
    trials = [trial for cause in CAUSES if cause.name == name for trial in cause.test(what)]
    assert trials
    assert not any(trial.proved for trial in trials)
    assert 0.0 < trials[0].after < 0.01 < trials[0].before


def test_unrelated_values_have_no_cause() -> None:
    what = suspect(SQUARE, OTHER, own=drawn(12, 12, seed=2), others={"a": drawn(12, 12, seed=3)})
    assert [cause.name for cause in CAUSES if [*cause.test(what)]] == []


@pytest.mark.parametrize("factor", [0.5, -3.0, 1 / 3, 8**-0.5])
def test_the_factor_is_told(factor: float) -> None:
    what = suspect(SQUARE, SQUARE * np.float32(factor))
    (scaled,) = (cause for cause in CAUSES if cause.name == "scaled-weight")
    (trial,) = scaled.test(what)
    assert trial.proved
    assert float(trial.change.rpartition(" ")[2]) == pytest.approx(factor, rel=1e-5)
    assert trial.after < 1e-7


def test_a_factor_with_one_element_one_ulp_further_off_is_not_proved() -> None:
    candidate = SQUARE * np.float32(1.001)
    candidate[4, 4] = np.nextafter(np.nextafter(candidate[4, 4], np.float32(9)), np.float32(9))
    assert proved(suspect(SQUARE, candidate)) == []


def test_a_factor_that_is_not_of_one_sign_or_of_zeros_is_not_proved() -> None:
    reference = SQUARE.copy()
    reference[0, 0] = 0.0
    candidate = reference * np.float32(2)
    assert proved(suspect(reference, candidate)) == ["scaled-weight"]
    candidate[0, 0] = 1e-9
    assert proved(suspect(reference, candidate)) == []


def test_bfloat16_rounded_and_cut_off() -> None:
    assert proved(suspect(SQUARE, bf16(SQUARE))) == ["precision-lost"]
    cut = (SQUARE.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert proved(suspect(SQUARE, cut)) == ["precision-lost"]


def test_half_precision_of_another_kind_is_not_taken_for_it() -> None:
    steps = np.round(SQUARE * 512) / 512
    assert proved(suspect(SQUARE, steps)) == []


def test_ones_are_not_a_rounded_tensor_that_is_nearly_one() -> None:
    assert proved(suspect(1 + 1e-4 * drawn(12), np.ones(12))) == []


def test_two_heads_exchanged_in_a_square_weight_are_heads_and_not_a_packed_projection() -> None:
    assert proved(suspect(SQUARE, blocks(SQUARE, 0, 1, 0))) == ["head-order"]


def test_the_bias_of_a_packed_projection() -> None:
    bias = drawn(24)
    others = {"layer.weight": QKV}
    what = suspect(bias, blocks(bias, 0, 2, 0, 1), name="layer.bias", local="bias", others=others)
    assert proved(what) == ["mha-packing"]


def test_zeros_and_ones_in_another_order_prove_nothing() -> None:
    ones = np.eye(12, dtype=np.float32)
    assert proved(suspect(ones, blocks(ones, 0, 1, 0, 2))) == []


def test_a_constant_of_another_layer_is_not_that_layer() -> None:
    what = suspect(drawn(12), np.ones(12), others={"norm.weight": np.ones(12)})
    assert proved(what) == []


def test_a_weight_that_is_nearly_its_initial_one_was_loaded() -> None:
    own = OTHER.copy()
    own[0, 0] = np.nextafter(own[0, 0], np.float32(9))
    assert proved(suspect(SQUARE, OTHER, own=own)) == []


def test_a_running_statistic_of_another_layer_is_only_a_weight() -> None:
    what = suspect(drawn(5), np.zeros(5), record="buffer", kind="Rotary", local="angles", own=np.zeros(5))
    assert proved(what) == ["weight-not-loaded"]


@pytest.mark.parametrize(("name", "words"), [("mha-packing", "3 parts"), ("head-order", "4 blocks of axis 1")])
def test_the_order_that_is_told_is_the_one_that_puts_it_right(name: str, words: str) -> None:
    reference, candidate, more = FAULTS[name]
    (cause,) = (cause for cause in CAUSES if cause.name == name)
    trial = next(trial for trial in cause.test(suspect(reference, candidate, **more)) if trial.proved)
    assert words in trial.change
    order = [int(number) - 1 for number in trial.change.rpartition("the order ")[2].split(", ")]
    np.testing.assert_array_equal(blocks(candidate, 1 if "axis 1" in words else 0, *order), reference)
