"""Checkpoint files: read and written without any framework, by suffix, tensors only.

.safetensors (and its ``.safetensors.index.json`` of several shards), torch's .pth, .pt and .bin, paddle's .pdparams,
and NumPy's .npz. Nothing a file says is executed or believed: see docs/checkpoints.md for what is refused.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from checkpoints import _pickle, _torch_file
from checkpoints._dtypes import DTYPES, RAW16, bytes_of, name_of
from checkpoints._files import write_aside
from checkpoints._pickle import MAX_EXPANSION, SMALL
from checkpoints.errors import CheckpointError, printable

# The framework whose own format a suffix is; .safetensors and .npz are anybody's.
FRAMEWORK_OF = {".pth": "torch", ".pt": "torch", ".bin": "torch", ".pdparams": "paddle"}

INDEX_SUFFIX = ".safetensors.index.json"

# The safetensors format's own limit for its header.
MAX_HEADER = 100_000_000

_SAFE_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
_SAFE_NAMES = {name: code for code, name in _SAFE_DTYPES.items()}


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by name, the text metadata it carries, and notes on what was left out and why."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read(path: str | Path, entry: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint file, by name: C-contiguous arrays in the file's own dtypes, bit for bit.

    bfloat16 and float8 are ml_dtypes' types. A .pdparams keeps bfloat16 as uint16 and an .npz as two raw bytes (V2);
    they come back as that, since the file can't tell: see `checkpoints.convert`. `entry` names the state dict to take
    where a file nests several. CheckpointError names the file and what is wrong with it.
    """
    return read_checkpoint(path, entry).tensors


def read_checkpoint(path: str | Path, entry: str | None = None) -> Checkpoint:
    """`read`, with the file's metadata and notes on what was left out (``epoch`` and the like)."""
    return _read(Path(path), entry, _READERS)


def map_checkpoint(path: str | Path) -> Checkpoint:
    """`read_checkpoint` of a .safetensors file whose tensors stay in the file until they are looked at: read-only views.

    They may be unaligned, which NumPy takes. The file is held open while a view lives.
    """
    return _read(Path(path), None, {".safetensors": _map_safetensors})


def _read(path: Path, entry: str | None, readers: Mapping[str, _Reader]) -> Checkpoint:
    reader = _by_suffix(path, readers)
    try:
        if path.is_dir():
            raise CheckpointError("is a directory; give the file in it that holds the weights")
        if path.exists() and not path.is_file():
            raise CheckpointError("is not an ordinary file")
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise CheckpointError("is empty")
            return reader(path, file, entry)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(f"{path}:") else f"{path}: {message}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: does not fit into memory") from error
    except Exception as error:  # the parsers of the standard library and NumPy raise a dozen kinds on damaged input
        raise CheckpointError(f"{path}: damaged, or not a {path.suffix} file: {_one_line(error)}") from error


def write(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` in the format of `path`'s suffix; the file is there whole or not at all, even after Ctrl-C.

    Each name is written, also where several share one tensor. Only .safetensors carries metadata. CheckpointError where
    the format can't say a dtype, a name is empty, or the folder can't be written to.
    """
    path = Path(path)
    check_destination(path)
    writer = _by_suffix(path, _WRITERS)
    if metadata and path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: only .safetensors carries metadata")
    packed: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if not isinstance(name, str) or not name or not isinstance(array, np.ndarray):
            raise CheckpointError(f"{path}: {name!r} is not a name with a NumPy array")
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise CheckpointError(f"{path}: the name {name!r} is not valid text")
        if name_of(array.dtype) not in DTYPES:
            raise CheckpointError(f"{path}: {name} has dtype {array.dtype}, which no checkpoint holds")
        packed[name] = np.asarray(array, DTYPES[name_of(array.dtype)], order="C")
    try:
        with write_aside(path) as file:
            writer(file, packed, dict(metadata or {}))
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(f"{path}:") else f"{path}: {message}") from error


def check_destination(path: str | Path) -> None:
    """CheckpointError unless `write` could begin: a suffix it knows, in a folder that exists and can be written to."""
    path = Path(path)
    _by_suffix(path, _WRITERS)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path}: the folder {path.parent} can't be written to")


def _by_suffix(path: Path, table: Mapping[str, Any]) -> Any:
    suffix = INDEX_SUFFIX if path.name.endswith(INDEX_SUFFIX) else path.suffix
    if suffix not in table:
        raise CheckpointError(f"{path}: the suffix must be one of {', '.join(table)}")
    return table[suffix]


def _one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def _mapped(file: BinaryIO) -> memoryview:
    """The file's bytes without a copy; the map goes when the last view of it does."""
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


# ---- safetensors ---------------------------------------------------------------------------------------------------
# Eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors without gaps:
# https://huggingface.co/docs/safetensors


def _read_safetensors(path: Path, file: BinaryIO, entry: str | None) -> Checkpoint:
    mapped = _map_safetensors(path, file, entry)
    return Checkpoint({name: np.array(view) for name, view in mapped.tensors.items()}, mapped.metadata)


def _map_safetensors(path: Path, file: BinaryIO, entry: str | None) -> Checkpoint:
    _no_entry(entry)
    data = _mapped(file)
    size = len(data)
    if size < 8:
        raise CheckpointError("ends before its header; is the file truncated?")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_HEADER, size - 8):
        raise CheckpointError(f"announces a header of {length} bytes in a file of {size}; truncated, or no safetensors")
    header = json.loads(str(data[8 : 8 + length], "utf-8"), object_pairs_hook=_no_doubles)
    if not isinstance(header, dict):
        raise CheckpointError("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("its metadata is not text")
    for name, info in header.items():
        if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"{name}: must have dtype, shape and data_offsets")
        if info["dtype"] not in _SAFE_DTYPES:
            raise CheckpointError(f"{name}: dtype {str(info['dtype'])[:20]!r} is not supported")
        sizes = _pickle.are_sizes(info["shape"]) and _pickle.are_sizes(info["data_offsets"])
        if len(info["data_offsets"]) != 2 or not sizes:
            raise CheckpointError(f"{name}: shape and data_offsets must be sizes")
    tensors: dict[str, np.ndarray] = {}
    end = 0
    for name, info in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        dtype = DTYPES[_SAFE_DTYPES[info["dtype"]]]
        begin, stop = info["data_offsets"]
        if begin != end or stop - begin != math.prod(info["shape"]) * dtype.itemsize or stop > size - 8 - length:
            raise CheckpointError(
                f"{name}: its bytes are not where its shape and the file allow; is the file truncated?"
            )
        tensors[name] = np.frombuffer(data[8 + length + begin : 8 + length + stop], dtype).reshape(info["shape"])
        end = stop
    if end != size - 8 - length:
        raise CheckpointError(f"{size - 8 - length - end} bytes at its end belong to no tensor")
    return Checkpoint({name: tensors[name] for name in header}, metadata)


def _read_sharded(path: Path, file: BinaryIO, entry: str | None) -> Checkpoint:
    _no_entry(entry)
    index = json.loads(file.read(MAX_HEADER).decode("utf-8"), object_pairs_hook=_no_doubles)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise CheckpointError('has no "weight_map" from tensor names to files')
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"refused: {shard!r} is not the name of a .safetensors file beside it")
        held = read(path.parent / shard)
        listed = {name for name, file_name in where.items() if file_name == shard}
        if set(held) != listed:
            odd = sorted(set(held) ^ listed)
            raise CheckpointError(f"{shard} does not hold what the index says: {', '.join(odd[:5])}")
        tensors |= held
    return Checkpoint({name: tensors[name] for name in where})


def _write_safetensors(file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    # Wide types first, as the format asks for alignment.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in names:
        array = tensors[name]
        dtype = name_of(array.dtype)
        if dtype not in _SAFE_NAMES or name == "__metadata__":
            raise CheckpointError(f"{name}: safetensors can't hold {dtype} under this name")
        stop = begin + array.nbytes
        header[name] = {"dtype": _SAFE_NAMES[dtype], "shape": list(array.shape), "data_offsets": [begin, stop]}
        begin = stop
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        file.write(bytes_of(tensors[name]))


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CheckpointError("a name stands twice in its header")
    return result


def _no_entry(entry: str | None) -> None:
    if entry is not None:
        raise CheckpointError(f"holds one flat state dict, so there is no entry {entry!r} to take")


# ---- .pth, .pt, .bin, .pdparams ------------------------------------------------------------------------------------


def _read_torch(path: Path, file: BinaryIO, entry: str | None) -> Checkpoint:
    data = _mapped(file)
    return _state_dict(_torch_file.read(data, file), entry, len(data))


def _write_torch(file: BinaryIO, tensors: Mapping[str, np.ndarray], _: Mapping[str, str]) -> None:
    _torch_file.write(file, tensors)


# Read off paddle 3.3.1 (paddle/framework/io.py, io_utils.py): a pickle of a dict of NumPy arrays, or of (name, array)
# pairs; beside them a table of parameter names, and arrays over a gigabyte in slices where the protocol was 2 or 3.
_NAME_TABLE = "StructuredToParameterName@@"
_SLICES = "UnpackBigParamInfor@@"


def _read_paddle(path: Path, file: BinaryIO, entry: str | None) -> Checkpoint:
    data = _mapped(file)
    if data[:4] == _torch_file.ZIP_MAGIC:
        raise CheckpointError("is a zip archive, as torch writes; paddle writes a pickle: is the suffix right?")
    content, _ = _pickle.load(data, 0, _pickle.NUMPY_WORDS)
    return _state_dict(content, entry, len(data))


def _write_paddle(file: BinaryIO, tensors: Mapping[str, np.ndarray], _: Mapping[str, str]) -> None:
    stored: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        dtype = name_of(array.dtype)
        if dtype in _NOT_IN_PADDLE:
            raise CheckpointError(f"{name}: a .pdparams can't hold {dtype} ({_NOT_IN_PADDLE[dtype]})")
        stored[name] = array.view(np.uint16) if dtype == "bfloat16" else array
    pickle.dump(stored, file, protocol=4)


_NOT_IN_PADDLE = {
    "uint16": "paddle reads it as bfloat16",
    "uint32": "paddle has no such type",
    "uint64": "paddle has no such type",
    "float8_e4m3fn": "a pickle of NumPy arrays has no such type",
    "float8_e5m2": "a pickle of NumPy arrays has no such type",
}


def _state_dict(content: Any, entry: str | None, file_size: int) -> Checkpoint:
    """The one mapping of tensors in what a pickle held: the top itself, or one entry of it."""
    if type(content) is not dict:
        raise CheckpointError(f"holds a {type(content).__name__}, not a state dict (names to tensors)")
    notes: list[str] = []
    if entry is not None:
        if entry not in content or not _has_tensors(content[entry]):
            raise CheckpointError(f"has no state dict under {entry!r}; its entries are {_keys(content)}")
        content = content[entry]
    elif not _has_tensors(content):
        nested = [key for key, value in content.items() if _has_tensors(value)]
        if len(nested) != 1:
            what = "holds several state dicts: name one entry" if nested else "holds no tensors"
            raise CheckpointError(f"{what}; its entries are {_keys(content)}")
        rest = _keys(content, nested[0])
        notes.append(printable(f"the state dict is the entry {str(nested[0])!r}; left out: {rest}"))
        content = content[nested[0]]
    elif any(_has_tensors(value) for value in content.values()):
        raise CheckpointError(f"holds tensors and state dicts side by side: name one entry; they are {_keys(content)}")
    # Tensors may share bytes of the file, as tied and expanded ones do; a file in which thousands do so is a bomb.
    arrays = [array for value in content.values() if (array := _array(value)) is not None]
    if sum(array.nbytes for array in arrays) > max(MAX_EXPANSION * file_size, SMALL):
        raise CheckpointError(f"refused: its tensors take more than {MAX_EXPANSION} times the file's size")
    tensors: dict[str, np.ndarray] = {}
    for key, value in _joined(content).items():
        array = _array(value)
        if array is None:
            if key != _NAME_TABLE:
                notes.append(printable(f"left out: {str(key)[:200]} ({type(value).__name__}, no tensor)"))
        elif not isinstance(key, str) or not key:
            raise CheckpointError(f"a tensor's name is {str(key)[:200]!r}, not text")
        else:
            tensors[key] = array
    return Checkpoint({name: _own(array) for name, array in tensors.items()}, {}, tuple(notes))


def _own(array: np.ndarray) -> np.ndarray:
    """`array`, or where it is a view of the file, strided or big-endian, a row-major copy of the same values."""
    return array if array.flags.c_contiguous and array.flags.writeable else np.array(array, _little(array), order="C")


def _little(array: np.ndarray) -> np.dtype:
    return array.dtype.newbyteorder("<")


def _joined(content: dict[Any, Any]) -> dict[Any, Any]:
    """`content` with paddle's slices of large arrays put together again."""
    slices = content.get(_SLICES)
    if slices is None:
        return content
    rest = {key: value for key, value in content.items() if key != _SLICES}
    for key, info in slices.items():
        parts = [_array(rest.pop(part)) for part in info["slices"]]
        rest[key] = np.concatenate([part for part in parts if part is not None]).reshape(info["OriginShape"])
    return rest


def _array(value: Any) -> np.ndarray | None:
    if type(value) is tuple and len(value) == 2 and isinstance(value[0], str):  # paddle's (name, array)
        value = value[1]
    if isinstance(value, _pickle.Array):
        if value.value is None:
            raise CheckpointError("an array that was never given its contents")
        return value.value
    return value if isinstance(value, np.ndarray) else None


def _has_tensors(value: Any) -> bool:
    return type(value) is dict and any(_array(item) is not None for item in value.values())


def _keys(content: dict[Any, Any], without: Any = None) -> str:
    listed = [f"{str(key)[:80]} ({type(value).__name__})" for key, value in content.items() if key != without]
    return ", ".join(listed[:20] + ["…"] * (len(listed) > 20)) or "none"


# ---- npy -----------------------------------------------------------------------------------------------------------


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file; CheckpointError where it holds Python objects, or is damaged."""
    return _read(Path(path), None, {".npy": _read_array}).tensors["array"]


def read_boxed(path: str | Path) -> Checkpoint:
    """The arrays of a .npy file that np.save made of a dictionary, by name, as the reprod_log package writes it.

    Such a file is a pickle; it goes through the machine that makes arrays and plain values, and nothing else.
    """
    return _read(Path(path), None, {".npy": _read_box})


def _read_array(path: Path, file: BinaryIO, _: str | None) -> Checkpoint:
    shape, fortran, dtype = _npy_header(file)
    if dtype.hasobject:
        raise CheckpointError("refused: an array of Python objects")
    if name_of(dtype.newbyteorder("<")) not in DTYPES:
        raise CheckpointError(f"refused: dtype {dtype}, which no checkpoint holds")
    held = path.stat().st_size - file.tell()
    if not _pickle.are_sizes(shape) or math.prod(shape) * dtype.itemsize != held:
        raise CheckpointError(f"shape {list(shape)[:8]} does not fit the {held} bytes that are there")
    flat = np.frombuffer(file.read(), dtype)
    return Checkpoint({"array": _own(flat.reshape(shape, order="F" if fortran else "C"))})


def _read_box(path: Path, file: BinaryIO, _: str | None) -> Checkpoint:
    shape, _fortran, dtype = _npy_header(file)
    if dtype != np.dtype(object) or shape != ():
        raise CheckpointError("holds an array, where a dictionary of arrays is due")
    data = _mapped(file)
    content, _end = _pickle.load(data, file.tell(), _pickle.BOX_WORDS)
    return _state_dict(content.content if isinstance(content, _pickle.Array) else content, None, len(data))


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise CheckpointError(f"version {version} of the .npy format is not supported")
    shape, fortran, dtype = readers[version](file)
    return shape, fortran, dtype


# ---- npz -----------------------------------------------------------------------------------------------------------


def _read_npz(path: Path, file: BinaryIO, entry: str | None) -> Checkpoint:
    _no_entry(entry)
    size = path.stat().st_size
    tensors: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(file) as archive:
        # Compressed weights never shrink this much; a file that claims it is a bomb.
        if sum(info.file_size for info in archive.infolist()) > max(MAX_EXPANSION * size, SMALL):
            raise CheckpointError(f"refused: it would grow more than {MAX_EXPANSION}-fold when unpacked")
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in tensors:
                raise CheckpointError(f"{name!r} stands twice in the archive")
            if name == info.filename or _climbs(name):
                raise CheckpointError(f"refused: {info.filename!r} is not the name of an array")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CheckpointError(f"refused: {name} is compressed in a way that NumPy never uses")
            with archive.open(info) as stream:
                version = np.lib.format.read_magic(stream)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }.get(version)
                if read_header is None:
                    raise CheckpointError(f"{name}: version {version} of the .npy format is not supported")
                shape, fortran, dtype = read_header(stream)
                if dtype.hasobject:
                    raise CheckpointError(f"refused: {name} is an array of Python objects")
                if name_of(dtype) not in DTYPES and dtype != RAW16[1]:
                    raise CheckpointError(f"refused: {name} has dtype {dtype}, which no checkpoint holds")
                count = math.prod(shape) * dtype.itemsize
                if any(n < 0 for n in shape) or count != info.file_size - stream.tell():
                    raise CheckpointError(
                        f"{name}: {count} bytes are announced, {info.file_size - stream.tell()} are there"
                    )
                flat = np.frombuffer(stream.read(), dtype)
                tensors[name] = _own(flat.reshape(shape, order="F" if fortran else "C"))
    return Checkpoint(tensors)


def _climbs(name: str) -> bool:
    return name.startswith("/") or ".." in name.replace("\\", "/").split("/")


def _write_npz(file: BinaryIO, tensors: Mapping[str, np.ndarray], _: Mapping[str, str]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in tensors.items():
            dtype = name_of(array.dtype)
            if dtype.startswith("float8"):
                raise CheckpointError(f"{name}: an .npz can't hold {dtype}")
            stored = array.view(RAW16[1]) if dtype == "bfloat16" else array
            info = zipfile.ZipInfo(name + ".npy", (1980, 1, 1, 0, 0, 0))
            if info.filename != name + ".npy" or _climbs(name):
                raise CheckpointError(f"{name}: an .npz can't hold a tensor of this name")
            with archive.open(info, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, stored, allow_pickle=False)


_Reader = Callable[[Path, BinaryIO, "str | None"], Checkpoint]
_READERS: dict[str, _Reader] = {
    ".safetensors": _read_safetensors,
    INDEX_SUFFIX: _read_sharded,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".pdparams": _read_paddle,
    ".npz": _read_npz,
}
_Writer = Callable[[BinaryIO, Mapping[str, np.ndarray], Mapping[str, str]], None]
_WRITERS: dict[str, _Writer] = {
    ".safetensors": _write_safetensors,
    ".pth": _write_torch,
    ".pt": _write_torch,
    ".bin": _write_torch,
    ".pdparams": _write_paddle,
    ".npz": _write_npz,
}
