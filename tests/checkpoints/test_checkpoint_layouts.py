"""The layout tables against live layers: after conversion, both frameworks compute the same from the same input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.frameworks import get_framework
from checkpoints import CheckpointError, Layout, Slot, convert, convert_proved, plan, reverse
from checkpoints.layouts import KINDS, TABLES

torch = pytest.importorskip("torch")
paddle = pytest.importorskip("paddle")
T, P = torch.nn, paddle.nn

# What each pair is, its inputs' shapes, and how many tensors are transposed. Square where squareness could hide an error.
PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any], list[tuple[int, ...]], int]] = {
    "Linear": (lambda: T.Linear(4, 4), lambda: P.Linear(4, 4), [(3, 4)], 1),
    "Linear without bias": (lambda: T.Linear(3, 5, bias=False), lambda: P.Linear(3, 5, bias_attr=False), [(2, 3)], 1),
    "compat Linear": (lambda: T.Linear(4, 4), lambda: paddle.compat.nn.Linear(4, 4), [(3, 4)], 0),
    "LayerNorm": (lambda: T.LayerNorm(4), lambda: P.LayerNorm(4), [(3, 4)], 0),
    "LayerNorm of two axes": (lambda: T.LayerNorm([3, 4]), lambda: P.LayerNorm([3, 4]), [(2, 3, 4)], 0),
    "GroupNorm": (lambda: T.GroupNorm(2, 4), lambda: P.GroupNorm(2, 4), [(2, 4, 3)], 0),
    "BatchNorm1d": (lambda: T.BatchNorm1d(4), lambda: P.BatchNorm1D(4), [(3, 4)], 0),
    "BatchNorm2d": (lambda: T.BatchNorm2d(4), lambda: P.BatchNorm2D(4), [(2, 4, 3, 3)], 0),
    "BatchNorm3d": (lambda: T.BatchNorm3d(4), lambda: P.BatchNorm3D(4), [(2, 4, 3, 3, 2)], 0),
    "InstanceNorm1d": (lambda: T.InstanceNorm1d(4, affine=True), lambda: P.InstanceNorm1D(4), [(2, 4, 5)], 0),
    "InstanceNorm2d": (lambda: T.InstanceNorm2d(4, affine=True), lambda: P.InstanceNorm2D(4), [(2, 4, 3, 3)], 0),
    "InstanceNorm3d": (lambda: T.InstanceNorm3d(4, affine=True), lambda: P.InstanceNorm3D(4), [(2, 4, 2, 3, 3)], 0),
    "Conv1d": (lambda: T.Conv1d(4, 4, 4), lambda: P.Conv1D(4, 4, 4), [(2, 4, 7)], 0),
    "Conv2d": (lambda: T.Conv2d(4, 6, 3, groups=2), lambda: P.Conv2D(4, 6, 3, groups=2), [(2, 4, 5, 5)], 0),
    "Conv3d": (lambda: T.Conv3d(2, 2, 2), lambda: P.Conv3D(2, 2, 2), [(1, 2, 3, 3, 3)], 0),
    "ConvTranspose1d": (lambda: T.ConvTranspose1d(3, 3, 3), lambda: P.Conv1DTranspose(3, 3, 3), [(2, 3, 5)], 0),
    "ConvTranspose2d": (lambda: T.ConvTranspose2d(4, 2, 3), lambda: P.Conv2DTranspose(4, 2, 3), [(2, 4, 3, 3)], 0),
    "ConvTranspose3d": (lambda: T.ConvTranspose3d(2, 2, 2), lambda: P.Conv3DTranspose(2, 2, 2), [(1, 2, 3, 3, 3)], 0),
    "PReLU": (lambda: T.PReLU(4), lambda: P.PReLU(4), [(3, 4)], 0),
    "Bilinear": (lambda: T.Bilinear(3, 4, 5), lambda: P.Bilinear(3, 4, 5), [(2, 3), (2, 4)], 0),
}


@pytest.mark.parametrize("name", list(PAIRS))
def test_converted_layers_compute_the_same(name: str) -> None:
    make_torch, make_paddle, shapes, transposed = PAIRS[name]
    rng = np.random.default_rng(1)
    torch_side, paddle_side = get_framework("torch"), get_framework("paddle")
    reference, candidate = T.Sequential(make_torch()).eval(), P.Sequential(make_paddle())
    candidate.eval()
    state = {key: random_like(array, rng) for key, array in torch_side.read_state(reference).items()}
    torch_side.load_state(reference, state)

    layout = plan(torch_side.slots(reference), paddle_side.slots(candidate), "torch", "paddle")
    converted, proof = convert_proved(state, layout)
    assert proof.transposed == transposed
    paddle_side.load_state(candidate, converted)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    expected = reference[0](*map(torch.from_numpy, inputs)).detach().numpy()
    found = candidate[0](*map(paddle.to_tensor, inputs)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    back = convert(paddle_side.read_state(candidate), reverse(layout))
    assert set(back) == set(state)
    for key, array in state.items():
        wanted = np.zeros_like(array) if key.endswith("num_batches_tracked") else array
        assert (back[key].dtype, back[key].tobytes()) == (wanted.dtype, wanted.tobytes()), key
    planned_back = plan(paddle_side.slots(candidate), torch_side.slots(reference), "paddle", "torch")
    assert {*planned_back.moves} == {*reverse(layout).moves}
    assert (planned_back.filled, planned_back.dropped) == (layout.dropped, layout.filled)


def random_like(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.dtype.kind == "i":
        return np.full_like(array, 7)
    return (0.5 + rng.random(array.shape)).astype(array.dtype)


def test_an_embedding_is_copied() -> None:
    torch_side, paddle_side = get_framework("torch"), get_framework("paddle")
    reference, candidate = T.Sequential(T.Embedding(4, 4)), P.Sequential(P.Embedding(4, 4))
    layout = plan(torch_side.slots(reference), paddle_side.slots(candidate), "torch", "paddle")
    assert [move.operation for move in layout.moves] == ["copy"]


def test_a_counter_of_steps_is_dropped_with_a_reason_and_filled_on_the_way_back() -> None:
    torch_side, paddle_side = get_framework("torch"), get_framework("paddle")
    reference, candidate = T.Sequential(T.BatchNorm1d(2)), P.Sequential(P.BatchNorm1D(2))
    layout = plan(torch_side.slots(reference), paddle_side.slots(candidate), "torch", "paddle")
    assert [extra.name for extra in layout.dropped] == ["0.num_batches_tracked"]
    assert "no counterpart" in layout.dropped[0].reason
    assert {move.source: move.target for move in layout.moves}["0.running_var"] == "0._variance"
    back = convert(paddle_side.read_state(candidate), reverse(layout))
    assert (back["0.num_batches_tracked"].dtype, back["0.num_batches_tracked"].tolist()) == (np.int64, 0)


def test_a_subclass_is_stored_as_its_base() -> None:
    class OwnLinear(P.Linear):  # type: ignore[name-defined, misc]
        pass

    reference, candidate = T.Sequential(T.Linear(3, 3)), P.Sequential(OwnLinear(3, 3))
    slots = get_framework("paddle").slots(candidate)
    layout = plan(get_framework("torch").slots(reference), slots, "torch", "paddle")
    assert [move.operation for move in layout.moves] == ["transpose", "copy"]


def test_every_kind_names_a_class_of_its_framework() -> None:
    assert set(KINDS) == {"torch", "paddle"}
    assert all(hasattr(T, kind) for kind in KINDS["torch"])
    for kind in KINDS["paddle"]:
        assert hasattr(paddle.compat.nn if kind.startswith("compat.") else P, kind.removeprefix("compat.")), kind
    # What one framework has, the other must be able to take.
    canonical = {framework: {layer.kind for layer in table.values()} for framework, table in TABLES.items()}
    assert canonical["torch"] == canonical["paddle"]


# ---- any kinds, shapes and bits ---------------------------------------------------------------------------------------

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
    "int64": np.dtype(np.int64),
}
BY_CANONICAL = {
    framework: {
        kind: sorted(name for name, layer in table.items() if layer.kind == kind)
        for kind in sorted({layer.kind for layer in table.values()})
    }
    for framework, table in TABLES.items()
}
sizes = st.integers(1, 4)


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[Slot], list[Slot], dict[str, np.ndarray]]:
    """Slots of both sides of a random model, and random bits for torch's."""
    torch_slots: list[Slot] = []
    paddle_slots: list[Slot] = []
    tensors: dict[str, np.ndarray] = {}
    for index in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from([*BY_CANONICAL["torch"], "Own"]))
        kinds = [draw(st.sampled_from(BY_CANONICAL[side].get(kind, ["Own"]))) for side in ("torch", "paddle")]
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        vector = (draw(sizes),)
        locals_ = {
            "Linear": {"weight": (draw(sizes), draw(sizes)), "bias": vector},
            "Bilinear": {"weight": (draw(sizes), draw(sizes), draw(sizes)), "bias": vector},
            "LayerNorm": {"weight": (draw(sizes), draw(sizes)), "bias": vector},
            "BatchNorm": {"weight": vector, "bias": vector, "running_mean": vector, "running_var": vector},
            "Own": {"attention": (draw(sizes), draw(sizes), draw(sizes))},
        }.get(kind, {"weight": vector, "bias": vector} if "Norm" in kind else {"weight": (draw(sizes), draw(sizes))})
        for local, shape in locals_.items():
            layer = TABLES["paddle"].get(kinds[1])
            here = {name: own for own, name in layer.names.items()}.get(local, local) if layer else local
            operation = layer.operations.get(here, "copy") if layer else "copy"
            stored = shape[::-1] if operation == "transpose" else shape
            if operation == "reshape":
                stored = (int(np.prod(shape)),) if kind == "LayerNorm" else (1, *shape)
            torch_slots.append(Slot(f"{index}.{local}", kinds[0], local, shape, dtype))
            paddle_slots.append(Slot(f"{index}.{here}", kinds[1], here, stored, dtype))
            raw = draw(st.binary(min_size=(n := int(np.prod(shape)) * DTYPES[dtype].itemsize), max_size=n))
            tensors[f"{index}.{local}"] = np.frombuffer(raw, DTYPES[dtype]).reshape(shape)
    order = draw(st.permutations(paddle_slots))
    return torch_slots, list(order), tensors


@settings(max_examples=150, deadline=None)
@given(layers())
def test_there_and_back_is_bit_identical(model: tuple[list[Slot], list[Slot], dict[str, np.ndarray]]) -> None:
    torch_slots, paddle_slots, tensors = model
    layout = plan(torch_slots, paddle_slots, "torch", "paddle")
    converted, proof = convert_proved(tensors, layout)
    assert {name: array.shape for name, array in converted.items()} == {s.name: s.shape for s in paddle_slots}
    assert proof.moved == len(tensors)
    assert proof.round_trip
    for back in (reverse(layout), plan(paddle_slots, torch_slots, "paddle", "torch")):
        returned = convert(converted, back)
        assert {name: (a.shape, a.dtype, a.tobytes()) for name, a in returned.items()} == {
            name: (a.shape, a.dtype, a.tobytes()) for name, a in tensors.items()
        }
    by_source = {move.source: move for move in layout.moves}
    for slot in torch_slots:
        move = by_source[slot.name]
        moved, array = converted[move.target], tensors[slot.name]
        expected = array.T if move.operation == "transpose" else array.reshape(move.shape_to)
        assert moved.tobytes() == expected.tobytes()
        paddle_kind = next(s.kind for s in paddle_slots if s.name == move.target)
        assert (move.operation == "transpose") == (paddle_kind == "Linear" and slot.local == "weight")


@settings(max_examples=60, deadline=None)
@given(layers(), st.data())
def test_a_missing_extra_or_reshaped_tensor_is_never_let_through(
    model: tuple[list[Slot], list[Slot], dict[str, np.ndarray]], data: st.DataObject
) -> None:
    torch_slots, paddle_slots, tensors = model
    layout: Layout = plan(torch_slots, paddle_slots, "torch", "paddle")
    name = data.draw(st.sampled_from(sorted(tensors)))
    array = tensors[name]
    for spoiled in (
        {key: value for key, value in tensors.items() if key != name},
        tensors | {"extra": array},
        tensors | {name: array[None]},
        tensors | {name: np.zeros(array.shape, np.int8)},
    ):
        with pytest.raises(CheckpointError, match="1 problem\n"):
            convert(spoiled, layout)
    for slots in (torch_slots[1:], [*torch_slots, Slot("extra", "Own", "extra", (1,), "float32")]):
        with pytest.raises(CheckpointError, match="1 problem\n"):
            plan(slots, paddle_slots, "torch", "paddle")
