"""Any bytes at all: a reader gives tensors or one CheckpointError, in memory that the file's size bounds."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from checkpoints import CheckpointError, open_checkpoint, write

TENSORS = {
    "layer.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "layer.bias": np.ones(4, np.float64),
    "brain": np.ones((2, 2), ml_dtypes.bfloat16),
    "flag": np.array(True),
    "empty": np.empty((0, 2), np.int64),
}
LITTLE = 1 << 25
fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def made(folder: Path, suffix: str) -> bytes:
    path = folder / f"good{suffix}"
    if suffix == ".compressed.npz":
        np.savez_compressed(path, **{name: array for name, array in TENSORS.items() if name != "brain"})
    elif suffix == ".legacy.pt":
        torch = pytest.importorskip("torch")
        tensors = {n: torch.from_numpy(a) for n, a in TENSORS.items() if n != "brain"}
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    elif suffix == ".torch.pth":
        torch = pytest.importorskip("torch")
        torch.save({"epoch": 1, "model": {"w": torch.arange(6.0).reshape(2, 3).t()}}, path)
    elif suffix == ".two.pdparams":
        path.write_bytes(pickle.dumps({name: array for name, array in TENSORS.items() if name != "brain"}, 2))
    else:
        write(path, TENSORS)
    return path.read_bytes()


def take(path: Path, content: bytes) -> int:
    """Read a file of `content` whole; the number of tensors. Anything but a CheckpointError fails the test."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        opened = open_checkpoint(path)
        for stored in opened.tensors.values():
            array = stored.read()
            assert (array.shape, array.dtype) == (stored.shape, stored.dtype)
            if array.nbytes < 1 << 20:
                assert len(array.tobytes()) == stored.nbytes
        return len(opened.tensors)
    except CheckpointError as error:
        assert str(error).startswith(f"{path}:")  # noqa: PT017
        return -1
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < LITTLE, f"{peak} bytes for a file of {len(content)}"


@st.composite
def changes(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few cuts, flips, repetitions and numbers written over numbers."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "cut", "end", "repeat", "number", "insert"]),
                st.floats(0, 1, exclude_max=True),
                st.integers(0, 255),
                st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**40]),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def change(content: bytes) -> bytes:
        data = bytearray(content)
        for kind, where, byte, number in steps:
            at = int(where * max(1, len(data)))
            if kind == "flip" and data:
                data[at % len(data)] ^= byte or 1
            elif kind == "cut":
                del data[at : at + byte]
            elif kind == "end":
                del data[at:]
            elif kind == "repeat":
                data[at:at] = data[max(0, at - byte) : at]
            elif kind == "number":
                data[at : at + 8] = struct.pack("<Q", number)
            else:
                data[at:at] = bytes([byte])
        return bytes(data)

    return change


@pytest.mark.parametrize(
    "suffix",
    [".safetensors", ".pth", ".torch.pth", ".legacy.pt", ".pdparams", ".two.pdparams", ".npz", ".compressed.npz"],
)
def test_changed_files(tmp_path: Path, suffix: str) -> None:
    good = made(tmp_path, suffix)
    path = tmp_path / f"bad{suffix}"
    assert take(path, good) > 0
    refused = 0

    @fuzz
    @given(changes())
    def check(change: Callable[[bytes], bytes]) -> None:
        nonlocal refused
        refused += take(path, change(good)) < 0

    check()
    assert refused > 20


@pytest.mark.parametrize("suffix", [".safetensors", ".safetensors.index.json", ".pth", ".pt", ".pdparams", ".npz"])
@fuzz
@given(st.binary(max_size=300))
@example(b"PK\x03\x04")
@example(b"PK\x05\x06" + bytes(18))
@example(b"\x80\x02}q\x00.")
@example(struct.pack("<Q", 2) + b"{}")
@example(b"[" * 300)
def test_any_bytes(tmp_path: Path, suffix: str, content: bytes) -> None:
    take(tmp_path / f"a{suffix}", content)


SIZES = st.one_of(st.integers(-1, 20), st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30, 0.5, None, True, "3"]))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "F99", 3, None]),
        "shape": st.one_of(st.lists(SIZES, max_size=3), st.sampled_from([None, 3, {}, [1] * 65])),
        "data_offsets": st.one_of(st.lists(SIZES, min_size=2, max_size=2), st.lists(SIZES, max_size=3)),
    }
)


@fuzz
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "__metadata__", ""]), ENTRIES | st.none() | st.integers()), max_size=4
    ),
    st.integers(-3, 3),
    st.integers(0, 24),
)
@example([("a", {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]})] * 2, 0, 4)  # a name twice
@example(
    [
        ("a", {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}),
        ("b", {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}),
    ],
    0,
    6,
)  # overlapping
@example([("a", {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]})], 0, 8)  # beyond the file
def test_safetensors_headers(tmp_path: Path, entries: list[tuple[str, Any]], lie: int, size: int) -> None:
    header = "{" + ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries) + "}"
    content = struct.pack("<Q", max(0, len(header) + lie)) + header.encode() + bytes(size)
    found = take(tmp_path / "a.safetensors", content)
    names = [name for name, _ in entries if name != "__metadata__"]
    if found >= 0:
        assert found == len(names) == len(set(names))
        parsed = json.loads(header)
        assert sum(parsed[name]["data_offsets"][1] - parsed[name]["data_offsets"][0] for name in names) == size


@fuzz
@given(st.lists(st.integers(0, 2), max_size=3), st.sampled_from([0, 3, 4, 8, 12, 24]))
def test_a_safetensors_that_is_right_is_read(tmp_path: Path, shape: list[int], extra: int) -> None:
    count = int(np.prod(shape)) * 4
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, count]}}) + " " * extra
    assert take(tmp_path / "a.safetensors", struct.pack("<Q", len(header)) + header.encode() + bytes(count)) == 1
    assert take(tmp_path / "a.safetensors", struct.pack("<Q", len(header)) + header.encode() + bytes(count + 1)) == -1


@fuzz
@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.sampled_from(["a.safetensors", "../a.safetensors", "/etc/passwd", "", "\0", "x"]),
        lambda inner: st.dictionaries(st.sampled_from(["weight_map", "metadata", "a", "b"]), inner) | st.lists(inner),
        max_leaves=8,
    )
)
@example({"weight_map": {"a": "../a.safetensors"}})
@example({"weight_map": {"a": "x\0.safetensors"}})
@example({"weight_map": {"a": "a.safetensors"}, "metadata": {"total_size": {}}})
def test_indices(tmp_path: Path, index: Any) -> None:
    folder = tmp_path / "inside"
    folder.mkdir(exist_ok=True)
    for place in (tmp_path, folder):
        write(place / "a.safetensors", {"a": np.ones(3)})
    found = take(folder / "m.safetensors.index.json", json.dumps(index).encode())
    assert found <= 0 or index["weight_map"] == {"a": "a.safetensors"}


OPCODES = [
    b"}", b"]", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"u", b"s", b"e", b"a", b"R", b"b", b"Q", b"0", b"1", b"N",
    b"K\x02", b"J\xff\xff\xff\x7f", b"X\x01\x00\x00\x00w", b"\x8c\x07storage", b"C\x04abcd", b"q\x00", b"h\x00", b"\x94",
    b"\x80\x02", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy._core.multiarray\n_reconstruct\n", b"\x88", b"\x89",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"\x8c\x02f4",
    b"cnumpy._core.multiarray\nscalar\n", b"c_codecs\nencode\n", b"\x8c\x06latin1", b"cbuiltins\ntuple\n",
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".pdparams", ".pth"])
@fuzz
@given(st.lists(st.sampled_from(OPCODES), max_size=40))
def test_pickles_of_known_opcodes_in_any_order(tmp_path: Path, suffix: str, opcodes: list[bytes]) -> None:
    content = b"\x80\x02" + b"".join(opcodes) + b"."
    if suffix == ".pth":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a/data.pkl", content)
            archive.writestr("a/data/0", b"1234")
        content = buffer.getvalue()
    take(tmp_path / f"a{suffix}", content)
