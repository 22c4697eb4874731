"""Torch's checkpoint files (.pth, .pt, .bin) without torch: the zip format and the one before it, tensors only.

The zip holds ``NAME/data.pkl`` and one uncompressed member ``NAME/data/KEY`` for each storage; the older format is five
pickles in a row followed by the storages. Read off torch 2.13 (torch/serialization.py) and the files it writes.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from checkpoints import _pickle, _zip
from checkpoints._dtypes import DTYPES, Spec
from checkpoints.errors import CheckpointError

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ALIGNMENT = 64  # torch maps storages straight from the file where they start at a multiple of this

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_STORAGE_OF = {dtype: storage for storage, dtype in STORAGES.items()}


class _Storage:
    """Bytes that tensors are views of; `dtype` None where each tensor brings its own."""

    __slots__ = ("dtype", "raw")

    def __init__(self, raw: np.ndarray, dtype: np.dtype | None) -> None:
        self.raw = raw
        self.dtype = dtype


Check = Callable[[np.ndarray], None]


def read(data: memoryview, file: BinaryIO) -> tuple[Any, Check | None]:
    """The object a torch file holds, its tensors read-only views of the file; and what checks an array's checksum.

    CheckpointError, or one of zipfile's and struct's errors, where the file is not what it should be.
    """
    return _read_zip(data, file) if data[:4] == ZIP_MAGIC else (_read_legacy(data), None)


# ---- the zip format ------------------------------------------------------------------------------------------------


def _read_zip(data: memoryview, file: BinaryIO) -> tuple[Any, Check]:
    with zipfile.ZipFile(file) as archive:
        members = checked_members(archive, len(data))
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError("a zip archive, but not one that torch.save wrote (no single NAME/data.pkl)")
    prefix = pickles[0].removesuffix("data.pkl")
    order = bytes(_whole(data, members[prefix + "byteorder"])) if prefix + "byteorder" in members else b""
    if order not in (b"", b"little", b"big"):
        raise CheckpointError("a torch archive of unknown byte order")
    storages: dict[str, np.ndarray] = {}
    checked: set[str] = set()

    def persistent(reference: Any) -> _Storage:
        dtype, key, count = _storage_reference(reference, 5)
        name = f"{prefix}data/{key}"
        if name not in members:
            raise CheckpointError(f"the storage {key!r} is not in the file")
        width = dtype.itemsize if dtype else 1
        if count * width != members[name].file_size:
            raise CheckpointError(
                f"the storage {key!r} has {members[name].file_size} bytes, {count * width} are announced"
            )
        if name not in storages:
            if order == b"big":
                if dtype is None:
                    raise CheckpointError("a big-endian storage without a dtype")
                raw = np.frombuffer(_whole(data, members[name]), np.uint8)
                storages[name] = raw.reshape(-1, dtype.itemsize)[:, ::-1].reshape(-1).copy()
            else:
                storages[name] = np.frombuffer(_zip.bytes_at(data, members[name]), np.uint8)
        return _Storage(storages[name], dtype)

    content = _pickle.load(_whole(data, members[pickles[0]]), 0, _WORDS, persistent)[0]

    def check(array: np.ndarray) -> None:
        """Compare the checksum of the storage that `array` is a view of, once."""
        at = _address(array)
        for name, raw in storages.items() if array.size else ():
            if name not in checked and raw.size and _address(raw) <= at < _address(raw) + raw.size:
                _zip.check_sum(_zip.bytes_at(data, members[name]), members[name])
                checked.add(name)

    return content, check


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _whole(data: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of a member, its checksum compared."""
    content = _zip.bytes_at(data, info)
    _zip.check_sum(content, info)
    return content


def checked_members(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip whose members are not compressed, by name; CheckpointError where the directory is a lie."""
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        if info.filename in members:
            raise CheckpointError(f"{info.filename!r} stands twice in the archive")
        if _zip.climbs(info.filename):
            raise CheckpointError(f"refused: {info.filename!r} in the archive points outside it")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise CheckpointError(f"refused: {info.filename!r} is compressed, which torch.save never does")
        if info.flag_bits & 1:
            raise CheckpointError(f"refused: {info.filename!r} is encrypted")
        total += info.file_size
        members[info.filename] = info
    if total > file_size:
        raise CheckpointError(f"refused: the archive announces {total} bytes in a file of {file_size}")
    return members


# ---- the older format ----------------------------------------------------------------------------------------------


def _read_legacy(data: memoryview) -> Any:
    at = 0
    for index, expected in enumerate((LEGACY_MAGIC, 1001, None)):
        value, at = _pickle.load(data, at, {})
        if expected is not None and value != expected:
            raise CheckpointError("not a file that torch.save wrote")
        if index == 2 and not (isinstance(value, dict) and value.get("little_endian") is True):
            raise CheckpointError("a torch file of the older format from a big-endian machine is not supported")
    sizes: dict[str, tuple[np.dtype, int]] = {}
    found: dict[str, np.ndarray] = {}
    announced = 0

    def persistent(reference: Any) -> _Storage:
        nonlocal announced
        dtype, key, count = _storage_reference(reference, 6)
        if dtype is None or reference[5] is not None:
            raise CheckpointError("a torch file of the older format with a view of a storage is not supported")
        size = count * dtype.itemsize
        if key not in sizes:
            announced += size
            if announced > len(data):
                raise CheckpointError(f"the storages announce {announced} bytes in a file of {len(data)}")
            sizes[key] = (dtype, size)
        if sizes[key][0] != dtype:
            raise CheckpointError(f"the storage {key!r} has two dtypes")
        if sizes[key][1] != size:
            raise CheckpointError(f"the storage {key!r} has two sizes")
        # Zeros that nobody touches take no memory.
        return _Storage(found[key] if found else np.zeros(size, np.uint8), dtype)

    # Where the storages lie is written behind the object, so it is gone through twice: for its end, then for its tensors.
    begin = at
    _, at = _pickle.load(data, begin, _WORDS, persistent)
    keys, at = _pickle.load(data, at, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(sizes):
        raise CheckpointError("the file's list of storages is not the one its tensors use")
    for key in keys:
        dtype, size = sizes[key]
        if at + 8 + size > len(data) or struct.unpack_from("<q", data, at)[0] * dtype.itemsize != size:
            raise CheckpointError(f"the storage {key!r} is not whole; is the file truncated?")
        found[key] = np.frombuffer(data[at + 8 : at + 8 + size], np.uint8)
        at += 8 + size
    return _pickle.load(data, begin, _WORDS, persistent)[0]


# ---- what both share -----------------------------------------------------------------------------------------------


def _storage_reference(reference: Any, length: int) -> tuple[np.dtype | None, str, int]:
    if type(reference) is not tuple or len(reference) != length or reference[0] != "storage":
        raise CheckpointError("refused: a reference to what is no storage")
    _, kind, key, _, count = reference[:5]
    if not isinstance(kind, _pickle.Word) or type(key) is not str or not _pickle.are_sizes((count,)):
        raise CheckpointError("a reference to a storage without type, key and size")
    storage = kind.name.rpartition(".")[2]
    if storage == "UntypedStorage":
        return None, key, count
    if storage not in STORAGES:
        raise CheckpointError(f"refused: {kind.name} is no storage")
    return DTYPES[STORAGES[storage]], key, count


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: np.dtype | None = None) -> np.ndarray:
    if not isinstance(storage, _Storage) or type(size) is not tuple or type(stride) is not tuple:
        raise CheckpointError("a tensor without storage, size and stride")
    kind = dtype or storage.dtype
    if kind is None or len(size) != len(stride) or not all(map(_pickle.are_sizes, ((offset,), size, stride))):
        raise CheckpointError("a tensor whose size, stride, offset or dtype is none")
    count = 1
    for n in size:
        count *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    held = storage.raw.size // kind.itemsize
    if count and last >= held:
        raise CheckpointError(f"a tensor of size {list(size)} reaches beyond its storage of {held} elements")
    # An expanded tensor shows elements several times (stride 0); who copies it pays for them.
    if count > held and count * kind.itemsize > max(_pickle.MAX_EXPANSION * storage.raw.size, _pickle.SMALL):
        raise CheckpointError(f"refused: a tensor of size {list(size)} made of a storage of {held} elements")
    if not count:
        return np.empty(size, kind)
    flat = storage.raw[: held * kind.itemsize].view(kind)[offset:]
    return np.lib.stride_tricks.as_strided(flat, size, [step * kind.itemsize for step in stride])


def _rebuild_v2(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any = None, __: Any = None, metadata: Any = None
) -> np.ndarray:
    _plain(metadata)
    return _tensor(storage, offset, size, stride)


def _rebuild_v3(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, metadata: Any = None
) -> np.ndarray:
    _plain(metadata)
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, _pickle.Word) else ""
    if name not in DTYPES:
        raise CheckpointError("a tensor of unknown dtype")
    return _tensor(storage, offset, size, stride, DTYPES[name])


def _plain(metadata: Any) -> None:
    """CheckpointError where torch's metadata says that the values are not those of the storage, or what we don't know.

    Lazy conjugation and negation (``tensor.conj()``, ``tensor.conj().imag``) are stored as such a flag.
    """
    if metadata is not None and type(metadata) is not dict:
        raise CheckpointError("a tensor whose metadata is no dictionary")
    for flag, value in (metadata or {}).items():
        if flag not in ("conj", "neg") or type(value) is not bool:
            raise CheckpointError(f"refused: a tensor with the metadata {str(flag)[:80]!r}, whose meaning is unknown")
        if value:
            raise CheckpointError(
                f"a tensor with torch's flag {flag!r} (its storage holds other values than it has): "
                f"save tensor.resolve_{flag}() instead"
            )


def _rebuild_parameter(tensor: Any, *_: Any) -> np.ndarray:
    if not isinstance(tensor, np.ndarray):
        raise CheckpointError("a parameter that is no tensor")
    return tensor


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> np.ndarray:
    """A tensor with attributes (a module's Buffer): the tensor alone."""
    if not isinstance(kind, _pickle.Word) or kind.name != "torch.Tensor":
        raise CheckpointError("refused: a tensor of a class other than torch.Tensor")
    if not isinstance(function, _pickle.Word) or function.name not in _REBUILD or type(arguments) is not tuple:
        raise CheckpointError("refused: a tensor made by what is no known function")
    for part in state if type(state) is tuple else (state,):
        if part is not None and type(part) is not dict:
            raise CheckpointError("a tensor whose attributes are no dictionary")
        if part and not {"data", "real", "imag"}.isdisjoint(part):
            raise CheckpointError("refused: a tensor whose attributes replace its values")
    tensor = _REBUILD[function.name](*arguments)
    if not isinstance(tensor, np.ndarray):
        raise CheckpointError("refused: a tensor made by what makes no tensor")
    return tensor


def _device(kind: Any, index: Any = None) -> str:
    """A device as its name, ``"cuda:0"``: it is of no use here."""
    if not isinstance(kind, str) or len(kind) > 32 or (index is not None and not _pickle.are_sizes((index,))):
        raise CheckpointError("a device that is none")
    return kind if index is None else f"{kind}:{index}"


_REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_v2,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.Size": _pickle.NUMPY_WORDS["builtins.tuple"] or tuple,
}
_WORDS: dict[str, _pickle.Call | None] = (
    _pickle.NUMPY_WORDS
    | _REBUILD
    | {"torch._tensor._rebuild_from_type_v2": _rebuild_from_type, "torch.device": _device, "torch.Tensor": None}
    | {f"torch.{name}": None for name in (*STORAGES, *DTYPES, "UntypedStorage")}
    | {"torch.storage.UntypedStorage": None}
)


# ---- writing -------------------------------------------------------------------------------------------------------


def lay_out(tensors: Mapping[str, Spec]) -> _zip.Archive:
    """Torch's zip format: a plain dict of contiguous tensors, for ``torch.load(…, weights_only=True)``."""
    items = (_text(name) + tensor_opcodes(str(key), spec) for key, (name, spec) in enumerate(tensors.items()))
    return lay_out_pickled(b"\x80\x02}(" + b"".join(items) + b"u.", tensors)


def lay_out_pickled(pickled: bytes, tensors: Mapping[str, Spec]) -> _zip.Archive:
    """The same of any pickle in which the tensors, in their order, are storages "0", "1" …"""
    members = [
        _zip.Member("archive/data.pkl", pickled, alignment=ALIGNMENT),
        _zip.Member("archive/byteorder", b"little", alignment=ALIGNMENT),
    ]
    members += [
        _zip.Member(f"archive/data/{key}", b"", name, spec.nbytes, ALIGNMENT)
        for key, (name, spec) in enumerate(tensors.items())
    ]
    return _zip.lay_out([*members, _zip.Member("archive/version", b"3\n", alignment=ALIGNMENT)])


def tensor_opcodes(key: str, spec: Spec) -> bytes:
    """The call that rebuilds a tensor from its storage."""
    dtype = spec.dtype
    strides = [math.prod(spec.shape[axis + 1 :]) for axis in range(len(spec.shape))]
    if dtype in _STORAGE_OF:
        rebuild, storage, count, last = (
            "_rebuild_tensor_v2",
            f"ctorch\n{_STORAGE_OF[dtype]}\n",
            math.prod(spec.shape),
            b"",
        )
    else:
        rebuild, storage, count = "_rebuild_tensor_v3", "ctorch.storage\nUntypedStorage\n", spec.nbytes
        last = f"ctorch\n{dtype}\n".encode()
    reference = b"(" + _text("storage") + storage.encode() + _text(key) + _text("cpu") + int_opcode(count) + b"tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    arguments = reference + int_opcode(0) + _ints(list(spec.shape)) + _ints(strides) + hooks + last
    return f"ctorch._utils\n{rebuild}\n(".encode() + arguments + b"tR"


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def int_opcode(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _ints(values: list[int]) -> bytes:
    return b"(" + b"".join(map(int_opcode, values)) + b"t"
