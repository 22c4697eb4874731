"""Hostile and damaged files: refused by name, nothing executed, nothing written, nothing allocated on their word."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.cli import run
from checkpoints import CheckpointError, read, write

Save = Callable[[Path, bytes], None]


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Path]:
    """A file that appears when any attack gets to run."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "the file's code was executed"


class Attack:
    """Pickles into a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def zip_of(pickled: bytes, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def as_torch(path: Path, pickled: bytes) -> Path:
    path = path.with_suffix(".pth")
    path.write_bytes(zip_of(pickled))
    return path


def as_older_torch(path: Path, pickled: bytes) -> Path:
    path = path.with_suffix(".pt")
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    path.write_bytes(head + pickled + pickle.dumps([], 2))
    return path


def as_paddle(path: Path, pickled: bytes) -> Path:
    path = path.with_suffix(".pdparams")
    path.write_bytes(pickled)
    return path


CARRIERS = [as_torch, as_older_torch, as_paddle]


def shell(sentinel: Path) -> str:
    return f"touch {sentinel}"


def by_opcodes(name: str, sentinel: Path) -> bytes:
    """Hand-made pickles that reach os.system without the usual REDUCE of a GLOBAL."""
    command = text(shell(sentinel))
    return {
        "global": b"\x80\x02cos\nsystem\n(" + command + b"tR.",
        "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93(" + command + b"tR.",
        "inst": b"(" + command + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + command + b"o.",
        "newobj": b"\x80\x02cos\nsystem\n(" + command + b"t\x81.",
        "dotted": b"\x80\x04" + text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\ntR.",
        "import": b"\x80\x02cbuiltins\n__import__\n(" + text("os") + b"tR.",
        "eval": b"\x80\x02cbuiltins\neval\n(" + text(f"__import__('os').system({shell(sentinel)!r})") + b"tR.",
        "old builtins": b"\x80\x02c__builtin__\neval\n(" + text("1") + b"tR.",
        "load from bytes": b"\x80\x02ctorch.storage\n_load_from_bytes\n(" + command + b"tR.",
        "numpy exec": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(" + command + b"}tR.",
        "build": b"\x80\x02ccollections\nOrderedDict\n)R(" + text("__class__") + b"cos\nsystem\ntb.",
        "build global": b"\x80\x02ccollections\nOrderedDict\n}" + text("x") + b"K\x01sb.",
        "call a string": b"\x80\x02" + text("os.system") + b"(" + command + b"tR.",
        "call a call": b"\x80\x02ccollections\nOrderedDict\n)R)R.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent text": b"P" + shell(sentinel).encode() + b"\n.",
        "persistent": b"\x80\x02" + command + b"Q.",
        "persistent tuple": b"\x80\x02(" + text("module") + b"ccollections\nOrderedDict\ntQ.",
        "codec": b"\x80\x02c_codecs\nencode\n(" + text("x") + text("zlib_codec") + b"tR.",
        "ndarray call": b"\x80\x02cnumpy\nndarray\n(K\x01tR.",
        "default factory": b"\x80\x02ccollections\ndefaultdict\n(cos\nsystem\ntR.",
        "default global": b"\x80\x02ccollections\ndefaultdict\n(" + command + b"tR.",
        "default items": b"\x80\x02ccollections\ndefaultdict\n(c__builtin__\nlist\n}tR.",
        "list": b"\x80\x02c__builtin__\nlist\n)R.",
        "bytes": b"\x80\x02c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR.",
        "counter": b"\x80\x02ccollections\nCounter\n(" + command + b"tR.",
        "text array": pickle.dumps({"w": np.array(["a"])}, 2),
    }[name]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (os.system, "posix.system"),
        (exec, "builtins.exec"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (open, "io.open"),
        (pickle.loads, "_pickle.loads"),
        (np.load, "numpy.load"),
        (collections.deque, "collections.deque"),
    ],
)
def test_a_global_that_is_no_tensor_is_named_and_not_run(
    tmp_path: Path, sentinel: Path, carrier: Save, call: Callable[..., Any], named: str
) -> None:
    for protocol in (2, 4):
        content = {"w": np.ones(2), "x": Attack(call, shell(sentinel))}
        path = carrier(tmp_path / "a", pickle.dumps(content, protocol, fix_imports=False))
        with pytest.raises(CheckpointError, match=rf"{path.name}: refused: the file asks for {named}"):
            read(path)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    "name",
    [
        "global", "stack global", "inst", "obj", "newobj", "dotted", "getattr", "import", "eval", "old builtins",
        "load from bytes", "numpy exec", "build", "build global", "call a string", "call a call", "extension",
        "persistent text", "persistent", "persistent tuple", "codec", "ndarray call",
        "default factory", "default global", "default items", "list", "bytes", "counter", "text array",
    ],
)  # fmt: skip
def test_pickle_tricks_are_refused(tmp_path: Path, sentinel: Path, carrier: Save, name: str) -> None:
    path = carrier(tmp_path / "a", by_opcodes(name, sentinel))
    with pytest.raises(CheckpointError, match=rf"{path.name}: .*(refused|reference)"):
        read(path)


def test_the_attacks_would_work_on_plain_pickle(tmp_path: Path) -> None:
    for name in ("global", "stack global", "inst", "obj", "eval"):
        proof = tmp_path / name.replace(" ", "_")
        pickle.loads(by_opcodes(name, proof))
        assert proof.exists(), name


def test_the_command_line_leaves_no_output(tmp_path: Path, sentinel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = as_torch(tmp_path / "a", pickle.dumps(Attack(os.system, shell(sentinel)), 2, fix_imports=False))
    out = tmp_path / "out.pdparams"
    assert run(["convert", str(path), str(out), "--twin", "fast-transformer"]) == 2
    assert "refused: the file asks for posix.system" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.pth"]


@pytest.mark.parametrize("array", [np.array([Attack(os.system, "true")]), np.zeros(2, [("a", "O")])])
def test_object_arrays_are_refused(tmp_path: Path, sentinel: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", fine=np.ones(1), odd=array, allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"a\.npz: refused: odd is an array of Python objects"):
        read(tmp_path / "a.npz")
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"odd": array}, 4, fix_imports=False))
    with pytest.raises(CheckpointError, match=r"a\.pdparams: refused: "):
        read(tmp_path / "a.pdparams")


@pytest.mark.parametrize("dtype", ["V8", "S4", "U3", "M8[s]", [("a", "f4")]])
def test_arrays_of_other_things_than_numbers_are_refused(tmp_path: Path, dtype: Any) -> None:
    array = np.zeros(2, dtype)
    np.savez(tmp_path / "a.npz", a=array)
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"a": array}, 4))
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match="refused"):
            read(path)


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".pdparams", ".npz"])
def test_a_truncated_file_is_an_error_wherever_it_ends(tmp_path: Path, suffix: str) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / f"a{suffix}"
    tensors = {f"layer.{i}.weight": np.arange(50, dtype=np.float32) + i for i in range(5)}
    if suffix == ".pt":
        content = {name: torch.from_numpy(array) for name, array in tensors.items()}
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        write(path, tensors)
    whole = path.read_bytes()
    lengths = {len(whole) * eighth // 8 for eighth in range(8)} | {1, 3, 7, 9, len(whole) - 1}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"a\{suffix}: "):
            read(path)
    path.write_bytes(whole)
    assert {name: array.tobytes() for name, array in read(path).items()} == {
        name: array.tobytes() for name, array in tensors.items()
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".pdparams", ".npz"])
def test_a_garbled_file_is_an_error_or_still_tensors(tmp_path: Path, suffix: str) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / f"a{suffix}"
    tensors = {f"w{i}": np.arange(3, dtype=np.float32) for i in range(3)}
    if suffix == ".pt":
        content = {name: torch.from_numpy(array) for name, array in tensors.items()}
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        write(path, tensors)
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        garbled = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            garbled[at] = rng.integers(0, 256)
        path.write_bytes(garbled)
        try:
            found = read(path)
        except CheckpointError:
            refused += 1
        else:
            assert all(isinstance(array, np.ndarray) for array in found.values())
    assert refused > 20


def test_a_changed_byte_in_a_zip_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a.pth", {"w": np.full(64, 3.25, np.float32)})
    data = bytearray((tmp_path / "a.pth").read_bytes())
    at = data.index(np.full(64, 3.25, np.float32).tobytes())
    data[at + 7] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="Bad CRC-32"):
        read(tmp_path / "a.pth")


# ---- bombs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fails when a test makes Python or NumPy hold more than 64 MiB at once."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26, f"{peak} bytes were allocated"


def array_pickle(shape: tuple[int, ...], raw: bytes, dtype: str = "f4") -> bytes:
    class Fake:
        def __reduce__(self) -> Any:
            build = np.ones(1).__reduce__()
            return build[0], build[1], (1, shape, np.dtype(dtype), False, raw)

    return pickle.dumps({"w": Fake()}, 4)


BOMBS = {
    "long bytes": b"\x80\x04}X\x01\x00\x00\x00wB\xff\xff\xff\x7f....",
    "longer bytes": b"\x80\x04}X\x01\x00\x00\x00w\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "long text": b"\x80\x04X\xff\xff\xff\xff.",
    "byte array": b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",
    "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff}.",
    "memo": b"\x80\x04}r\xff\xff\xff\x7fj\xfe\xff\xff\x7f.",
    "long integer": b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
    "longer integer": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "negative length": b"\x80\x02T\xff\xff\xff\xff.",
    "shape": array_pickle((2**40,), b"1234"),
    "many axes": array_pickle((1,) * 100, b"1234"),
    "negative shape": array_pickle((-1, -1), b"1234"),
    "too few bytes": array_pickle((3,), b"1234"),
    "empty": b"\x80\x02.",
    "two": b"\x80\x02}}.",
    "no mark": b"\x80\x02}u.",
    "get": b"\x80\x02h\x05.",
    "same key": pickle.dumps({"w": 1}, 2)[:-1] + b"X\x01\x00\x00\x00wK\x02s.",
    "tuple key": pickle.dumps({("w",): np.ones(2)}, 4),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", list(BOMBS))
@pytest.mark.usefixtures("little_memory")
def test_pickle_bombs_do_not_go_off(tmp_path: Path, carrier: Save, name: str) -> None:
    path = carrier(tmp_path / "a", BOMBS[name])
    with pytest.raises(CheckpointError, match=path.name):
        read(path)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("end", [b".", b"K\x01s."], ids=["value", "key"])
def test_a_tuple_in_a_tuple_a_hundred_thousand_deep_is_refused(tmp_path: Path, carrier: Save, end: bytes) -> None:
    path = carrier(tmp_path / "a", b"\x80\x02" + b"}" * (len(end) > 1) + b")" + b"\x85" * 100_000 + end)
    message = "refused: a dictionary key of type tuple" if len(end) > 1 else "holds a tuple, not a state dict"
    with pytest.raises(CheckpointError, match=rf"{path.name}: {message}"):
        read(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("long bytes", "ends too early: 2147483647 bytes are announced, 4 are left"),
        ("longer bytes", "ends too early: 9223372036854775807 bytes are announced"),
        ("long integer", "holds a int, not a state dict"),
        ("longer integer", "refused: pickle opcode LONG4"),
        ("shape", r"an array of shape \[1099511627776\] and dtype float32 does not fit its bytes"),
        ("same key", "the key 'w' stands twice"),
        ("tuple key", "refused: a dictionary key of type tuple"),
    ],
)
def test_a_bomb_is_told_by_what_is_wrong_with_it(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(as_paddle(tmp_path / "a", BOMBS[name]))


def test_an_endless_pickle_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoints._pickle.MAX_OPCODES", 1000)
    with pytest.raises(CheckpointError, match="more than 1000 opcodes"):
        read(as_paddle(tmp_path / "a", b"\x80\x02" + b"}0" * 1000 + b"}."))


@pytest.mark.usefixtures("little_memory")
def test_one_array_under_thousands_of_names_is_stopped(tmp_path: Path) -> None:
    one = np.zeros(1 << 20, np.uint8)
    path = as_paddle(tmp_path / "a", pickle.dumps({f"w{i}": one for i in range(5000)}, 4))
    with pytest.raises(CheckpointError, match="more than 100 times the file's size"):
        read(path)


def storage(kind: str, key: str, count: int) -> bytes:
    return (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + integer(count) + b"tQ"
    )


def integer(value: int) -> bytes:
    raw = value.to_bytes(10, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tensor(reference: bytes, offset: int, size: list[int], stride: list[int], metadata: bytes = b"") -> bytes:
    axes = [b"(" + b"".join(map(integer, values)) + b"t" for values in (size, stride)]
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + integer(offset) + b"".join(axes)
    return b"\x80\x02}" + text("w") + rebuilt + b"\x89ccollections\nOrderedDict\n)R" + metadata + b"tRs."


@pytest.mark.parametrize("metadata", [b"}" + text("future") + b"\x88s", b"}" + text("conj") + b"K\x01s", b"K\x01"])
def test_tensor_metadata_of_unknown_meaning_is_refused(tmp_path: Path, metadata: bytes) -> None:
    members = {"a/data/0": bytes(16)}
    one = storage("FloatStorage", "0", 4)
    (tmp_path / "a.pth").write_bytes(zip_of(tensor(one, 0, [4], [1], b"}" + text("neg") + b"\x89s"), **members))
    assert read(tmp_path / "a.pth")["w"].shape == (4,)
    (tmp_path / "a.pth").write_bytes(zip_of(tensor(one, 0, [4], [1], metadata), **members))
    with pytest.raises(CheckpointError, match=r"a\.pth: .*metadata"):
        read(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("kind", "count", "offset", "size", "stride", "message"),
    [
        ("FloatStorage", 4, 0, [5], [1], "reaches beyond its storage"),
        ("FloatStorage", 4, 1, [4], [1], "reaches beyond its storage"),
        ("FloatStorage", 4, 0, [2, 2], [3, 1], "reaches beyond its storage"),
        ("FloatStorage", 4, 0, [2**40], [0], "refused: a tensor of size .* made of a storage of 4 elements"),
        ("FloatStorage", 4, -1, [2], [1], "none"),
        ("FloatStorage", 4, 0, [2], [-1], "none"),
        ("FloatStorage", 4, 0, [-2], [1], "none"),
        ("FloatStorage", 4, 0, [2, 2], [1], "none"),
        ("FloatStorage", 4, 2**62, [1], [1], "reaches beyond its storage"),
        ("FloatStorage", 5, 0, [4], [1], "16 bytes, 20 are announced"),
        ("FloatStorage", 2**61, 0, [4], [1], "are announced"),
        ("DoubleStorage", 4, 0, [4], [1], "16 bytes, 32 are announced"),
        ("FloatStorage", -4, 0, [4], [1], "without type, key and size"),
        ("QInt8Storage", 4, 0, [4], [1], "refused: the file asks for torch.QInt8Storage"),
        ("float32", 4, 0, [4], [1], "torch.float32 is no storage"),
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_tensors_stay_within_their_storage(
    tmp_path: Path, kind: str, count: int, offset: int, size: list[int], stride: list[int], message: str
) -> None:
    members = {"a/data/0": np.arange(4, dtype=np.float32).tobytes()}
    fine = tensor(storage("FloatStorage", "0", 4), 0, [2, 2], [1, 2])
    (tmp_path / "a.pth").write_bytes(zip_of(fine, **members))
    assert read(tmp_path / "a.pth")["w"].tolist() == [[0, 2], [1, 3]]
    (tmp_path / "a.pth").write_bytes(zip_of(tensor(storage(kind, "0", count), offset, size, stride), **members))
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "a.pth")


# Multiplied, a hundred thousand such sizes are a number of six million bits, reached in hours.
HUGE = [[2**62] * 100_000, [1] * 65, [2**63]]


@pytest.mark.parametrize("shape", HUGE, ids=["many", "axes", "size"])
def test_huge_shapes_are_refused_before_they_are_multiplied(tmp_path: Path, shape: list[int]) -> None:
    started = time.process_time()
    one = storage("FloatStorage", "0", 4)
    (tmp_path / "a.pth").write_bytes(zip_of(tensor(one, 0, shape, [0] * len(shape)), **{"a/data/0": bytes(16)}))
    with pytest.raises(CheckpointError, match="size, stride, offset or dtype is none"):
        read(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="an array without a dtype and a shape"):
        read(as_paddle(tmp_path / "a", array_pickle(tuple(shape), bytes(4))))
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CheckpointError, match="shape and data_offsets must be sizes"):
        read(tmp_path / "a.safetensors")
    assert time.process_time() - started < 5


def from_type(function: bytes, kind: bytes, state: bytes) -> bytes:
    """A tensor with attributes, as torch's Buffer is stored."""
    plain = tensor(storage("FloatStorage", "0", 4), 0, [4], [1])
    arguments = plain[plain.index(b"_v2\n(") + 4 : plain.index(b"Rs.", -4)]
    start = b"\x80\x02}" + text("w") + b"ctorch._tensor\n_rebuild_from_type_v2\n("
    return start + function + kind + arguments + state + b"tRs."


@pytest.mark.parametrize(
    ("function", "kind", "state", "message"),
    [
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nTensor\n", b"}", None),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nTensor\n", b"K\x01", "no dictionary"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nTensor\n", b"}" + text("data") + b"K\x01s", "replace its"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n", b"}", "a class other than torch.Tensor"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nTensor\n", b"}", "no known function"),
        (b"ccollections\nOrderedDict\n", b"ctorch\nTensor\n", b"}", "no known function"),
        (b"cos\nsystem\n", b"ctorch\nTensor\n", b"}", "asks for os.system"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cmine\nTensor\n", b"}", "asks for mine.Tensor"),
    ],
)
def test_a_tensor_with_attributes_is_a_plain_tensor(
    tmp_path: Path, function: bytes, kind: bytes, state: bytes, message: str | None
) -> None:
    (tmp_path / "a.pth").write_bytes(zip_of(from_type(function, kind, state), **{"a/data/0": bytes(16)}))
    if message is None:
        assert read(tmp_path / "a.pth")["w"].tolist() == [0] * 4
        return
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "a.pth")


@pytest.mark.usefixtures("little_memory")
def test_many_expanded_tensors_are_stopped(tmp_path: Path) -> None:
    one = tensor(storage("FloatStorage", "0", 4), 0, [2**23], [0]).removeprefix(b"\x80\x02}").removesuffix(b"s.")
    content = b"\x80\x02}(" + b"".join(one.replace(text("w"), text(f"w{index:02}"), 1) for index in range(20)) + b"u."
    (tmp_path / "a.pth").write_bytes(zip_of(content, **{"a/data/0": bytes(16)}))
    with pytest.raises(CheckpointError, match="more than 100 times the file's size"):
        read(tmp_path / "a.pth")
    slices = {"slices": [f"w{index}" for index in range(200)], "OriginShape": (200 << 20,)}
    big = np.zeros(1 << 20, np.uint8)
    named = {f"w{index}": big for index in range(200)} | {"UnpackBigParamInfor@@": {"all": slices}}
    with pytest.raises(CheckpointError, match="more than 100 times the file's size"):
        read(as_paddle(tmp_path / "a", pickle.dumps(named, 4)))


def test_a_storage_key_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"1234")
    for key in ("../../secret", str(tmp_path / "secret"), ""):
        (tmp_path / "a.pth").write_bytes(zip_of(tensor(storage("FloatStorage", key, 1), 0, [1], [1])))
        with pytest.raises(CheckpointError, match="is not in the file"):
            read(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    good = {"a/data/0": b"\0" * 16}
    pickled = tensor(storage("FloatStorage", "0", 4), 0, [4], [1])
    path.write_bytes(zip_of(pickled, **good, **{"../../escape": b"x"}))
    with pytest.raises(CheckpointError, match=r"refused: '../../escape' in the archive points outside it"):
        read(path)
    path.write_bytes(zip_of(pickled, **good, **{"/etc/escape": b"x"}))
    with pytest.raises(CheckpointError, match="points outside it"):
        read(path)
    path.write_bytes(zip_of(pickled, **good, **{"b/data.pkl": pickled}))
    with pytest.raises(CheckpointError, match=r"no single NAME/data\.pkl"):
        read(path)

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for _ in range(2):
            archive.writestr("a/data.pkl", pickled)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="stands twice"):
        read(path)

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", b"\0" * (1 << 22))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="is compressed"):
        read(path)

    data = bytearray(zip_of(pickled, **good))
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"a/data/0"))
    data[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)  # both sizes in the directory
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"refused: the archive announces \d+ bytes in a file of"):
        read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.usefixtures("little_memory")
def test_npz_bombs_do_not_go_off(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"

    def npz(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in members:
                archive.writestr(name, content)

    def npy(header: str, content: bytes = b"") -> bytes:
        head = header.encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content

    def header(descr: str, shape: str) -> str:
        return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}"

    npz(("a.npy", npy(header("<f4", "(2,)"), b"\0" * 8)))
    assert read(path)["a"].tolist() == [0, 0]
    for bad in (
        npy(header("<f4", "(1000000000000,)"), b"\0" * 8),
        npy(header("<f4", "(-2,)"), b"\0" * 8),
        npy(header("<f4", "(3,)"), b"\0" * 8),
        npy(header("|O", "(1,)"), b"\0" * 8),
        npy("(" * 110),
        npy("__import__('os').system('true')"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
        b"\x93NUMPY\x09\x00",
        b"nothing",
    ):
        npz(("a.npy", bad))
        with pytest.raises(CheckpointError, match=r"a\.npz: "):
            read(path)
    for names in (("../a.npy",), ("/a.npy",), ("a.txt",), ("a.npy", "a.npy")):
        npz(*((name, npy(header("<f4", "(2,)"), b"\0" * 8)) for name in names))
        with pytest.raises(CheckpointError, match=r"refused|stands twice"):
            read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as stream:
        stream.write(npy(header("|u1", f"({1 << 27},)")))
        for _ in range(128):
            stream.write(bytes(1 << 20))
    with pytest.raises(CheckpointError, match="grow more than 100-fold"):
        read(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', None),
        (b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', "not where its shape"),
        (b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}}', "not where its shape"),
        (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "not where its shape"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "not where its shape"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "belong to no tensor"),
        (b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', "must be sizes"),
        (b'{"a":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}}', "must be sizes"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', "not where its shape"),
        (b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}', "'F99' is not supported"),
        (b'{"a":{"dtype":"F32","shape":[2]}}', "must have dtype"),
        (b'{"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}}', "damaged"),
        (b'{"a":7}', "must have dtype"),
        (b"[]", "no JSON object"),
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 50_000, "damaged"),
        (b'{"__metadata__":{"a":1}}', "not text"),
        (
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            "stands twice",
        ),
        (
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            "not where its shape",
        ),
    ],
)
def test_safetensors_headers_are_not_believed(tmp_path: Path, header: bytes, message: str | None) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    if message is None:
        assert read(path)["a"].tolist() == [0, 0]
        return
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: .*{message}"):
        read(path)


@pytest.mark.parametrize("length", [2**63, 10**9, 200])
def test_a_safetensors_header_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 50)
    with pytest.raises(CheckpointError, match=rf"announces a header of {length} bytes in a file of 60"):
        read(tmp_path / "a.safetensors")


def test_names_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"\x1b[2Jgone\x07": np.ones(1)})
    (tmp_path / "a.pth").write_bytes(zip_of(pickle.dumps({"\x1b]0;x": 3, "y": {}}, 2)))
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / "a.pth")
    assert "\x1b" not in str(caught.value)
    assert r"\x1b]0;x" in str(caught.value)
