"""Batches: within their declared bounds, the same everywhere, and hard where they should be."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_data import Batch, DataError, Floats, Ids, InputSpec, Labels, Mask, adversarial_batches, make_batch
from fake_data._raw import Raw

SPEC = InputSpec(
    {
        "input_ids": Ids(0, 50, ("B", "N"), padding=0),
        "mask": Mask(("B", "N"), of="input_ids"),
        "features": Floats(("B", "N", 3), scale=2.0),
        "targets": Labels(5, ("B",)),
    },
    max_length=16,
)
NAMES = ("full-length", "length-1", "padded-row", "same-token", "boundary-ids", "longest")


def digest(batches: list[Batch]) -> str:
    out = hashlib.sha256()
    for batch in batches:
        for name, array in {**batch.inputs, "targets": batch.targets}.items():
            if array is not None:
                out.update(f"{batch.name} {name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return out.hexdigest()


def all_batches(seed: int = 7) -> list[Batch]:
    sizes = {"seed": seed, "batch_size": 4, "length": 9}
    return [make_batch(SPEC, **sizes), *adversarial_batches(SPEC, **sizes)]


def test_batches_never_change():
    assert digest(all_batches()) == "4d2f2e796773a96e228de07e1815def6144402b843771cc4a3dd0d6d9601bc23"


def test_raw_values_never_change():
    raw = Raw(1, "a")
    assert raw.words(2).tolist() == [13853987865391198103, 9928304815487026993]
    assert raw.integers(-3, 10, (8,)).tolist() == [-1, -1, 7, -1, 1, 9, -2, 0]
    assert [value.hex() for value in raw.normals((3,)).tolist()] == [
        "-0x1.ab06b4edeb040p-1",
        "-0x1.3baa6148ac840p-1",
        "-0x1.963baecd61040p-2",
    ]
    assert raw.shuffled(8).tolist() == [1, 4, 6, 3, 7, 2, 5, 0]


def test_another_process_with_another_hash_seed_makes_the_same():
    code = "import test_fake_batches as t; print(t.digest(t.all_batches()))"
    here = os.path.dirname(__file__)  # noqa: PTH120
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": here}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == digest(all_batches())


def test_seed_and_name_matter_and_nothing_else_is_remembered():
    sizes = {"batch_size": 4, "length": 9}
    first = make_batch(SPEC, seed=1, **sizes)
    assert digest([first]) == digest([make_batch(SPEC, seed=1, **sizes)])
    for other in (make_batch(SPEC, seed=2, **sizes), make_batch(SPEC, seed=1, name="other", **sizes)):
        assert not np.array_equal(first.inputs["input_ids"], other.inputs["input_ids"])
        assert not np.array_equal(first.inputs["features"], other.inputs["features"])


def test_another_field_leaves_the_others_as_they_are():
    fewer = InputSpec({name: SPEC.fields[name] for name in ("input_ids", "targets")}, max_length=16)
    sizes = {"seed": 3, "batch_size": 4, "length": 9}
    assert np.array_equal(make_batch(fewer, **sizes).inputs["input_ids"], make_batch(SPEC, **sizes).inputs["input_ids"])


def test_importing_needs_no_framework():
    code = (
        "import sys, fake_data, fake_data.amazon; "
        "bad = {'torch', 'paddle', 'alignment'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@st.composite
def specs(draw: st.DrawFn) -> InputSpec:
    low = draw(st.integers(-5, 5))
    high = low + draw(st.integers(2, 40))
    padding = draw(st.one_of(st.none(), st.integers(low - 2, high + 1)))
    shape = draw(st.sampled_from([("B", "N"), ("N", "B"), ("B", "N", 2)]))
    fields: dict = {"ids": Ids(low, high, shape, padding=padding)}
    if draw(st.booleans()):
        fields["mask"] = Mask(shape, of="ids" if padding is not None else None)
    fields["targets"] = Labels(draw(st.integers(1, 9)), draw(st.sampled_from([("B",), ("B", "N")])))
    return InputSpec(fields, max_length=draw(st.integers(1, 20)))


@settings(max_examples=60, deadline=None)
@given(specs(), st.integers(0, 2**70), st.integers(1, 6), st.data())
def test_every_batch_keeps_its_declaration(spec: InputSpec, seed: int, batch_size: int, data: st.DataObject):
    length = data.draw(st.integers(1, spec.max_length))
    sizes = {"seed": seed, "batch_size": batch_size, "length": length}
    random = make_batch(spec, **sizes)
    hard = {batch.name: batch for batch in adversarial_batches(spec, **sizes)}
    ids, labels = spec.fields["ids"], spec.fields["targets"]
    padded = ids.padding is not None or "mask" in spec.fields
    assert list(hard) == [name for name in NAMES if padded or name != "padded-row"]
    for batch in (random, *hard.values()):
        assert list(batch.inputs) == [name for name in spec.fields if name != "targets"]
        values = batch.inputs["ids"]
        assert values.dtype == np.int64
        assert batch.targets.dtype == np.int64
        assert ((batch.targets >= 0) & (batch.targets < labels.classes)).all()
        real = values != ids.padding if ids.padding is not None else np.ones(values.shape, dtype=bool)
        assert ((values[real] >= ids.low) & (values[real] < ids.high)).all()
        if "mask" in batch.inputs:
            mask = batch.inputs["mask"]
            assert mask.dtype == bool
            if ids.padding is not None:
                assert np.array_equal(mask, real)
            real = mask
        if padded:
            # b n …: padding only behind the last real token, and whole positions at once
            rows = np.moveaxis(real, (ids.shape.index("B"), ids.shape.index("N")), (0, 1))
            rows = rows.reshape(*rows.shape[:2], -1)
            assert (rows == rows[:, :, :1]).all()
            rows = rows[:, :, 0]
            assert (np.diff(rows.astype(int), axis=1) <= 0).all()
            lengths = rows.sum(axis=1)
            if batch.name in ("full-length", "same-token", "boundary-ids", "length-1"):
                assert rows.all()
            elif batch.name == "padded-row":
                assert lengths[1] == 0
                assert (np.delete(lengths, 1) > 0).all()
            else:
                assert (lengths > 0).all()
                if len(lengths) > 1:
                    assert lengths[0] == rows.shape[1]
                    assert rows.shape[1] == 1 or (lengths[1:] < rows.shape[1]).all()
    token_axis = ids.shape.index("N")
    assert random.inputs["ids"].shape[token_axis] == length
    assert hard["length-1"].inputs["ids"].shape[token_axis] == 1
    assert hard["longest"].inputs["ids"].shape[token_axis] == spec.max_length
    assert hard["longest"].inputs["ids"].shape[ids.shape.index("B")] <= 2
    if ids.padding is not None:
        assert (np.take(hard["longest"].inputs["ids"], 0, axis=ids.shape.index("B")) != ids.padding).all()
    assert len(np.unique(hard["same-token"].inputs["ids"])) == 1


def test_boundary_ids_take_turns():
    spec = InputSpec({"x": Ids(0, 100, ("B", "N"), padding=50)}, max_length=8)
    boundary = adversarial_batches(spec, seed=0, batch_size=2, length=8)[-2]
    assert boundary.name == "boundary-ids"
    assert boundary.inputs["x"].tolist() == [[0, 99, 49, 51, 0, 99, 49, 51]] * 2
    first = InputSpec({"x": Ids(0, 10, ("B", "N"), padding=0)}, max_length=8)
    assert adversarial_batches(first, seed=0, batch_size=1, length=4)[-2].inputs["x"].tolist() == [[1, 9, 1, 9]]
    last = InputSpec({"x": Ids(0, 10, ("B", "N"), padding=9)}, max_length=8)
    assert adversarial_batches(last, seed=0, batch_size=1, length=4)[-2].inputs["x"].tolist() == [[0, 8, 0, 8]]


def test_a_spec_without_ids_or_length_has_few_hard_batches():
    floats = InputSpec({"x": Floats(("B", 4))}, max_length=1)
    assert adversarial_batches(floats, seed=0, batch_size=2, length=1) == ()
    sequence = InputSpec({"x": Floats(("B", "N"))}, max_length=3)
    names = [batch.name for batch in adversarial_batches(sequence, seed=0, batch_size=2, length=2)]
    assert names == ["full-length", "length-1", "longest"]


def test_every_id_is_met_about_as_often():
    ids = make_batch(SPEC, seed=0, batch_size=4000, length=16).inputs["input_ids"]
    counts = np.bincount(ids[ids != 0], minlength=50)
    assert counts[0] == 0
    assert counts[1:].min() > 0.85 * counts[1:].mean()
    assert counts[1:].max() < 1.15 * counts[1:].mean()


def test_floats_are_standard_normal():
    values = Raw(0).normals((200_000,))
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values**4).mean() - 2.9) < 0.05
    assert (np.abs(values) < 1).mean() == pytest.approx(0.6827, abs=0.01)
    batch = make_batch(InputSpec({"x": Floats(("B", 3), "float16", 4.0)}, 1), seed=0, batch_size=5000, length=1)
    assert batch.inputs["x"].dtype == np.float16
    assert float(batch.inputs["x"].astype(np.float64).std()) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Ids(3, 3, ("B", "N")), "must hold"),
        (lambda: Ids(3, 4, ("B", "N"), padding=3), "only id"),
        (lambda: Ids(0, 4, ("B",), padding=0), '"N" once'),
        (lambda: Ids(0, 4, ("B", "X")), '"X"'),
        (lambda: Ids(0, 4, ("B", 0)), "at least 1"),
        (lambda: Mask(("N",)), '"B"'),
        (lambda: Labels(0, ("B",)), "classes"),
        (lambda: Floats(("B",), dtype="int8"), "dtype"),
        (lambda: InputSpec({"targets": Labels(2, ("B",))}, 4), "besides"),
        (lambda: InputSpec({"x": Floats(("B",))}, 0), "max_length"),
        (lambda: InputSpec({"m": Mask(("B", "N"), of="x")}, 4), '"x"'),
        (lambda: InputSpec({"x": Ids(0, 4, ("B", "N")), "m": Mask(("B", "N"), of="x")}, 4), "padding"),
        (lambda: InputSpec({"x": Ids(0, 4, ("N", "B"), 0), "m": Mask(("B", "N"), of="x")}, 4), "shape"),
        (lambda: make_batch(SPEC, seed=0, batch_size=0, length=1), "batch_size"),
        (lambda: make_batch(SPEC, seed=0, batch_size=1, length=17), "1 to 16"),
        (lambda: adversarial_batches(SPEC, seed=0, batch_size=1, length=0), "1 to 16"),
    ],
)
def test_what_contradicts_itself_is_refused(make, says: str):
    with pytest.raises(DataError, match=says):
        make()
