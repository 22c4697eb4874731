"""Saved batches and reviews: come back as they were, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fake_data import (
    Batch,
    DataError,
    Floats,
    Ids,
    InputSpec,
    Labels,
    Mask,
    adversarial_batches,
    load_batches,
    make_batch,
    save_batches,
)
from fake_data.amazon import encode_reviews, load_reviews, random_split, save_reviews, synthetic_reviews
from fake_data.amazon.dataset import tokenise_reviews

SPEC = InputSpec(
    {
        "z_ids": Ids(0, 50, ("B", "N"), padding=0),
        "mask": Mask(("B", "N"), of="z_ids"),
        "a_floats": Floats(("B", 3), "float64"),
        "targets": Labels(5, ("B",)),
    },
    max_length=12,
)


def batches() -> list[Batch]:
    sizes = {"seed": 5, "batch_size": 3, "length": 8}
    return [make_batch(SPEC, **sizes), *adversarial_batches(SPEC, **sizes)]


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_batches_come_back_in_forward_order(tmp_path: Path, form: str):
    manifest = save_batches(tmp_path / "out", batches(), SPEC, 5, form)
    assert (tmp_path / "out" / f"random.{form}").exists()
    for path in (tmp_path / "out", manifest, str(manifest)):
        for old, new in zip(batches(), load_batches(path), strict=True):
            assert old.name == new.name
            assert list(old.inputs) == list(new.inputs) == ["z_ids", "mask", "a_floats"]
            for name, array in old.inputs.items():
                assert array.dtype == new.inputs[name].dtype
                assert np.array_equal(array, new.inputs[name])
            assert np.array_equal(old.targets, new.targets)


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_the_same_batches_give_the_same_bytes(tmp_path: Path, form: str):
    for folder in ("one", "two"):
        save_batches(tmp_path / folder, batches(), SPEC, 5, form)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / f).iterdir()} for f in ("one", "two"))
    assert one == two
    assert len(one) == 8
    assert json.loads(one["manifest.json"])["spec"]["fields"]["mask"] == {
        "kind": "Mask",
        "shape": ["B", "N"],
        "of": "z_ids",
    }


def test_a_cut_or_changed_npz_is_named(tmp_path: Path):
    save_batches(tmp_path, batches(), SPEC, 5, "npz")
    file = tmp_path / "random.npz"
    content = file.read_bytes()
    for spoiled in (content[: len(content) // 2], b"", content[:200] + b"?" + content[201:], content + b" "):
        file.write_bytes(spoiled)
        with pytest.raises(DataError, match=r"random\.npz"):
            load_batches(tmp_path)
    file.write_bytes(content)
    with np.load(file) as archive:
        assert archive["a_floats"].shape[0] == 3


def test_a_batch_without_targets_comes_back_without(tmp_path: Path):
    save_batches(tmp_path, [Batch("one", {"x": np.arange(3)}, None)], SPEC, 0)
    assert load_batches(tmp_path)[0].targets is None


def spoil(folder: Path, how: str) -> None:
    file = folder / "random.safetensors"
    content = file.read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    arrays = {name: array.copy() for name, array in batches()[0].inputs.items()}
    arrays["targets"] = batches()[0].targets
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:-20])
    elif how == "value":
        arrays["a_floats"][0, 0] += 1e-12
        save_file(arrays, file)
    elif how == "dtype":
        save_file({**arrays, "z_ids": arrays["z_ids"].astype(np.int32)}, file)
    elif how == "shape":
        save_file({**arrays, "z_ids": arrays["z_ids"].reshape(-1)}, file)
    elif how == "array":
        save_file({name: array for name, array in arrays.items() if name != "mask"}, file)
    elif how == "header":
        save_file(arrays, file, metadata={"by": "somebody"})
    elif how == "escape":
        manifest["batches"][0]["file"] = "../random.safetensors"
    elif how == "version":
        manifest["version"] = 2
    elif how == "schema":
        manifest["schema"] = "other"
    elif how == "field":
        del manifest["batches"][0]["arrays"]
    if how in ("escape", "version", "schema", "field"):
        (folder / "manifest.json").write_text(json.dumps(manifest))
    if how == "no manifest":
        (folder / "manifest.json").unlink()
    if how == "no json":
        (folder / "manifest.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", r"random\.safetensors does not exist"),
        ("cut", r"random\.safetensors is cut"),
        ("value", r'random\.safetensors: array "a_floats" has sha256'),
        ("dtype", r'array "z_ids" has dtype int32'),
        ("shape", r'array "z_ids" has shape \[24\]'),
        ("array", r'array "mask" is missing'),
        ("header", r"random\.safetensors was changed outside"),
        ("escape", "no plain file name"),
        ("version", "version 2"),
        ("schema", "no manifest"),
        ("field", "not as it was written"),
        ("no manifest", r"manifest\.json does not exist"),
        ("no json", "no JSON"),
    ],
)
def test_what_is_not_as_written_is_refused(tmp_path: Path, how: str, says: str):
    save_batches(tmp_path, batches(), SPEC, 5)
    spoil(tmp_path, how)
    with pytest.raises(DataError, match=says):
        load_batches(tmp_path)


@pytest.mark.parametrize("name", ["", "../out", "a/b", ".hidden", "a b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str):
    with pytest.raises(DataError, match="file name"):
        save_batches(tmp_path, [Batch(name, {"x": np.arange(3)}, None)], SPEC, 0)


def test_two_batches_of_one_name_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="two batches"):
        save_batches(tmp_path, [Batch("a", {"x": np.arange(3)}, None)] * 2, SPEC, 0)


def test_writing_into_a_file_is_refused_and_nothing_is_left(tmp_path: Path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(DataError, match="can't be written"):
        save_batches(tmp_path / "file", batches(), SPEC, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path):
    from fake_data._files import replaced

    (tmp_path / "file").write_text("old")

    def interrupted() -> None:
        with replaced(tmp_path / "file") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_reviews_come_back_whole_and_in_parts(tmp_path: Path):
    tokenised = tokenise_reviews(synthetic_reviews(100, 0))
    split = random_split(100, seed=0)
    reviews = tokenised.encode(split.rows(), length=32)
    save_reviews(tmp_path, reviews, split=split, about={"seed": 0})
    whole = load_reviews(tmp_path)
    assert np.array_equal(whole.ids, reviews.ids)
    assert np.array_equal(whole.labels, reviews.labels)
    assert whole.vocabulary.words == reviews.vocabulary.words
    assert whole.notes == split.notes
    parts = [load_reviews(tmp_path, part) for part in ("train", "validation", "test")]
    assert [len(part.labels) for part in parts] == [80, 10, 10]
    assert np.array_equal(np.concatenate([part.ids for part in parts]), whole.ids)
    assert np.load(tmp_path / "num_tokens.npy") == reviews.num_tokens
    assert np.load(tmp_path / "data.npy").dtype == np.int32
    lines = (tmp_path / "vocabulary.txt").read_text().splitlines()
    assert lines[0] == "<padding>"
    assert lines[reviews.ids[0, 0]] == reviews.vocabulary.words[reviews.ids[0, 0]]
    with pytest.raises(DataError, match="no part"):
        load_reviews(tmp_path, "dev")


@pytest.mark.parametrize("name", ["data.npy", "label.npy", "num_tokens.npy", "vocabulary.txt", "manifest.json"])
def test_a_damaged_file_of_reviews_is_named(tmp_path: Path, name: str):
    save_reviews(tmp_path, encode_reviews(synthetic_reviews(20, 0), length=16))
    assert len(load_reviews(tmp_path).labels) == 20
    content = (tmp_path / name).read_bytes()
    changed = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    for damaged in (content[:-3], content[: len(content) // 3], b"", *([] if name == "manifest.json" else [changed])):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=name):
            load_reviews(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name} does not exist"):
        load_reviews(tmp_path)


def test_a_pickle_is_not_opened(tmp_path: Path):
    save_reviews(tmp_path, encode_reviews(synthetic_reviews(20, 0), length=16))
    np.save(tmp_path / "label.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"label\.npy"):
        load_reviews(tmp_path)
