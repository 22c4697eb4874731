"""Checkpoint files: read and written without any framework, by suffix, tensors only.

.safetensors (and its ``.safetensors.index.json`` of several shards), torch's .pth, .pt and .bin, paddle's .pdparams,
and NumPy's .npz. Nothing a file says is executed or believed: see docs/checkpoints.md for what is refused.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from checkpoints import _pickle, _torch_file, _zip
from checkpoints._dtypes import DTYPES, RAW16, name_of
from checkpoints._pickle import MAX_EXPANSION, SMALL
from checkpoints.errors import CheckpointError, printable
from checkpoints.places import INDEX_SUFFIX, SAFE_DTYPES, by_suffix
from checkpoints.stored import OpenCheckpoint, Stored, identify, map_file

# The framework whose own format a suffix is; .safetensors and .npz are anybody's.
FRAMEWORK_OF = {".pth": "torch", ".pt": "torch", ".bin": "torch", ".pdparams": "paddle"}

# The safetensors format's own limit for its header.
MAX_HEADER = 100_000_000


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
    return _loaded(open_checkpoint(path, entry))


def _loaded(opened: OpenCheckpoint) -> Checkpoint:
    tensors: dict[str, np.ndarray] = {}
    for name, stored in opened.tensors.items():
        tensors[name] = _own(stored.read())
        opened.release()
    return Checkpoint(tensors, opened.metadata, opened.notes)


def map_checkpoint(path: str | Path) -> Checkpoint:
    """`read_checkpoint` of a .safetensors file whose tensors stay in the file until they are looked at: read-only views.

    They may be unaligned, which NumPy takes. The file is held open while a view lives.
    """
    opened = _open(Path(path), None, {".safetensors": _read_safetensors})
    return Checkpoint({name: stored.read() for name, stored in opened.tensors.items()}, opened.metadata)


def open_checkpoint(path: str | Path, entry: str | None = None) -> OpenCheckpoint:
    """Open a file without reading its tensors: what it holds, every size checked, and the values when asked for.

    The file is mapped into memory. Values that are not stored plainly take memory when they are read: a compressed .npz,
    big-endian numbers, and a .pdparams of pickle protocol 2, which has its arrays as text. Raises as `read` does.
    """
    return _open(Path(path), entry, _READERS)


def _open(path: Path, entry: str | None, readers: Mapping[str, _Reader]) -> OpenCheckpoint:
    reader = by_suffix(path, readers)
    with _named(path):
        if path.is_dir():
            raise CheckpointError("is a directory; give the file in it that holds the weights")
        if path.exists() and not path.is_file():
            raise CheckpointError("is not an ordinary file")
        with path.open("rb") as file:
            identity = identify(file)
            if not identity[1]:
                raise CheckpointError("is empty")
            opened: OpenCheckpoint = reader(path, file, entry)
    tensors = {name: replace(stored, read=_reading(path, stored)) for name, stored in opened.tensors.items()}
    return replace(opened, tensors=tensors, path=path, identity=(identity, *opened.identity))


def _reading(path: Path, stored: Stored) -> Callable[[], np.ndarray]:
    def read_one() -> np.ndarray:
        with _named(path):
            return stored.read()

    return read_one


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever goes wrong is a CheckpointError that names `path`."""
    try:
        yield
    except CheckpointError as error:
        message = str(error)
        if message.startswith(f"{path}:"):
            raise
        raise CheckpointError(f"{path}: {message}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: does not fit into memory") from error
    except Exception as error:  # the parsers of the standard library and NumPy raise a dozen kinds on damaged input
        raise CheckpointError(f"{path}: damaged, or not a {path.suffix} file: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]


# ---- safetensors ---------------------------------------------------------------------------------------------------
# Eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors without gaps:
# https://huggingface.co/docs/safetensors


def _read_safetensors(path: Path, file: BinaryIO, entry: str | None) -> OpenCheckpoint:
    _no_entry(entry)
    mapped = map_file(file)
    data = memoryview(mapped)
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
        if info["dtype"] not in SAFE_DTYPES:
            raise CheckpointError(f"{name}: dtype {str(info['dtype'])[:20]!r} is not supported")
        sizes = _pickle.are_sizes(info["shape"]) and _pickle.are_sizes(info["data_offsets"])
        if len(info["data_offsets"]) != 2 or not sizes:
            raise CheckpointError(f"{name}: shape and data_offsets must be sizes")
    tensors: dict[str, Stored] = {}
    end = 0
    for name, info in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        dtype = DTYPES[SAFE_DTYPES[info["dtype"]]]
        begin, stop = info["data_offsets"]
        if begin != end or stop - begin != math.prod(info["shape"]) * dtype.itemsize or stop > size - 8 - length:
            raise CheckpointError(
                f"{name}: its bytes are not where its shape and the file allow; is the file truncated?"
            )
        raw = data[8 + length + begin : 8 + length + stop]
        tensors[name] = Stored(tuple(info["shape"]), dtype, _viewing(raw, dtype, tuple(info["shape"])))
        end = stop
    if end != size - 8 - length:
        raise CheckpointError(f"{size - 8 - length - end} bytes at its end belong to no tensor")
    return OpenCheckpoint({name: tensors[name] for name in header}, metadata, maps=(mapped,))


def _viewing(raw: memoryview, dtype: np.dtype, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: np.frombuffer(raw, dtype).reshape(shape)


def _read_sharded(path: Path, file: BinaryIO, entry: str | None) -> OpenCheckpoint:
    _no_entry(entry)
    if path.stat().st_size > MAX_HEADER:
        raise CheckpointError(f"refused: an index of more than {MAX_HEADER} bytes")
    index = json.loads(file.read().decode("utf-8"), object_pairs_hook=_no_doubles)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise CheckpointError('has no "weight_map" from tensor names to files')
    listed: dict[str, set[str]] = {}
    for name, shard in where.items():
        listed.setdefault(shard, set()).add(name)
    parts: list[OpenCheckpoint] = []
    for shard in sorted(listed):
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"refused: {shard[:200]!r} is not the name of a .safetensors file beside it")
        part = open_checkpoint(path.parent / shard)
        if set(part.tensors) != listed[shard]:
            odd = sorted(set(part.tensors) ^ listed[shard])
            raise CheckpointError(f"{shard} does not hold what the index says: {', '.join(odd[:5])}")
        parts.append(part)
    tensors = {name: stored for part in parts for name, stored in part.tensors.items()}
    notes: list[str] = []
    about = index.get("metadata")
    announced = about.get("total_size") if isinstance(about, dict) else None
    held = sum(stored.nbytes for stored in tensors.values())
    if announced is not None and announced != held:
        # Published indices count tied tensors twice, or other dtypes; the shards' own headers are what is checked.
        notes.append(printable(f"the index announces {str(announced)[:40]} bytes of tensors; its shards hold {held}"))
    return OpenCheckpoint(
        {name: tensors[name] for name in where},
        notes=tuple(notes),
        identity=tuple(identity for part in parts for identity in part.identity),
        maps=tuple(mapped for part in parts for mapped in part.maps),
    )


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CheckpointError("a name stands twice in its header")
    return result


def _no_entry(entry: str | None) -> None:
    if entry is not None:
        raise CheckpointError(f"holds one flat state dict, so there is no entry {entry!r} to take")


# ---- .pth, .pt, .bin, .pdparams ------------------------------------------------------------------------------------


def _read_torch(path: Path, file: BinaryIO, entry: str | None) -> OpenCheckpoint:
    mapped = map_file(file)
    data = memoryview(mapped)
    content, check = _torch_file.read(data, file)
    return replace(_state_dict(content, entry, len(data), check), maps=(mapped,))


# Read off paddle 3.3.1 (paddle/framework/io.py, io_utils.py): a pickle of a dict of NumPy arrays, or of (name, array)
# pairs; beside them a table of parameter names, and arrays over a gigabyte in slices where the protocol was 2 or 3.
_NAME_TABLE = "StructuredToParameterName@@"
_SLICES = "UnpackBigParamInfor@@"


def _read_paddle(path: Path, file: BinaryIO, entry: str | None) -> OpenCheckpoint:
    mapped = map_file(file)
    data = memoryview(mapped)
    if data[:4] == _torch_file.ZIP_MAGIC:
        raise CheckpointError("is a zip archive, as torch writes; paddle writes a pickle: is the suffix right?")
    content, _ = _pickle.load(data, 0, _pickle.NUMPY_WORDS)
    return replace(_state_dict(content, entry, len(data)), maps=(mapped,))


def _state_dict(
    content: Any, entry: str | None, file_size: int, check: Callable[[np.ndarray], None] | None = None
) -> OpenCheckpoint:
    """The one mapping of tensors in what a pickle held: the top itself, or one entry of it.

    check: raises where the bytes of an array have a wrong checksum.
    """
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
    return OpenCheckpoint({name: _held(array, check) for name, array in tensors.items()}, notes=tuple(notes))


def _held(array: np.ndarray, check: Callable[[np.ndarray], None] | None) -> Stored:
    def read_one() -> np.ndarray:
        if check is not None:
            check(array)
        return array.astype(_little(array), copy=False)

    return Stored(array.shape, _little(array), read_one)


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


def read_tree(path: str | Path) -> Any:
    """All that a .pth, .pt, .bin, .pdparams or .pdopt holds: dictionaries, lists, plain values, and arrays in place of tensors.

    The arrays are copies. It goes through the machine that makes arrays and plain values, and nothing else; CheckpointError
    where the file asks for more, or is damaged.
    """
    path = Path(path)
    by_suffix(path, _TREES)
    with _named(path), path.open("rb") as file:
        if not identify(file)[1]:
            raise CheckpointError("is empty")
        data = memoryview(map_file(file))
        if _TREES[path.suffix] == "torch":
            content, check = _torch_file.read(data, file)
        else:
            if data[:4] == _torch_file.ZIP_MAGIC:
                raise CheckpointError("is a zip archive, as torch writes; paddle writes a pickle: is the suffix right?")
            content, check = _pickle.load(data, 0, _pickle.NUMPY_WORDS)[0], None
        room = [max(MAX_EXPANSION * len(data), SMALL)]
        return _copied(content, check, room, 0)


_TREES = {".pth": "torch", ".pt": "torch", ".bin": "torch", ".pdparams": "paddle", ".pdopt": "paddle"}
MAX_DEPTH = 20


def _copied(value: Any, check: Callable[[np.ndarray], None] | None, room: list[int], depth: int) -> Any:
    """The same with arrays of its own. room: bytes that arrays may still take."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"refused: what it holds is nested more than {MAX_DEPTH} deep")
    array = _array(value)
    if array is not None:
        room[0] -= array.nbytes
        if room[0] < 0:
            raise CheckpointError(f"refused: its tensors take more than {MAX_EXPANSION} times the file's size")
        if check is not None:
            check(array)
        return np.array(array, _little(array), order="C")
    if type(value) is dict:
        joined = _joined(value) if _SLICES in value else value
        return {key: _copied(part, check, room, depth + 1) for key, part in joined.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(part, check, room, depth + 1) for part in value)
    return value


# ---- npy -----------------------------------------------------------------------------------------------------------


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file; CheckpointError where it holds Python objects, or is damaged."""
    return _loaded(_open(Path(path), None, {".npy": _read_array})).tensors["array"]


def read_boxed(path: str | Path) -> Checkpoint:
    """The arrays of a .npy file that np.save made of a dictionary, by name, as the reprod_log package writes it.

    Such a file is a pickle; it goes through the machine that makes arrays and plain values, and nothing else.
    """
    return _loaded(_open(Path(path), None, {".npy": _read_box}))


def _read_array(path: Path, file: BinaryIO, _: str | None) -> OpenCheckpoint:
    shape, fortran, dtype = _npy_header(file)
    if dtype.hasobject:
        raise CheckpointError("refused: an array of Python objects")
    if name_of(dtype.newbyteorder("<")) not in DTYPES:
        raise CheckpointError(f"refused: dtype {dtype}, which no checkpoint holds")
    held = path.stat().st_size - file.tell()
    if not _pickle.are_sizes(shape) or math.prod(shape) * dtype.itemsize != held:
        raise CheckpointError(f"shape {list(shape)[:8]} does not fit the {held} bytes that are there")
    flat = np.frombuffer(file.read(), dtype)
    return OpenCheckpoint({"array": _held(flat.reshape(shape, order="F" if fortran else "C"), None)})


def _read_box(path: Path, file: BinaryIO, _: str | None) -> OpenCheckpoint:
    shape, _fortran, dtype = _npy_header(file)
    if dtype != np.dtype(object) or shape != ():
        raise CheckpointError("holds an array, where a dictionary of arrays is due")
    mapped = map_file(file)
    data = memoryview(mapped)
    content, _end = _pickle.load(data, file.tell(), _pickle.BOX_WORDS)
    held = content.content if isinstance(content, _pickle.Array) else content
    return replace(_state_dict(held, None, len(data)), maps=(mapped,))


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise CheckpointError(f"version {version} of the .npy format is not supported")
    shape, fortran, dtype = readers[version](file)
    return shape, fortran, dtype


# ---- npz -----------------------------------------------------------------------------------------------------------


def _read_npz(path: Path, file: BinaryIO, entry: str | None) -> OpenCheckpoint:
    _no_entry(entry)
    mapped = map_file(file)
    data = memoryview(mapped)
    tensors: dict[str, Stored] = {}
    with zipfile.ZipFile(file) as archive:
        # Compressed weights never shrink this much; a file that claims it is a bomb.
        if sum(info.file_size for info in archive.infolist()) > max(MAX_EXPANSION * len(data), SMALL):
            raise CheckpointError(f"refused: it would grow more than {MAX_EXPANSION}-fold when unpacked")
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in tensors:
                raise CheckpointError(f"{name!r} stands twice in the archive")
            if name == info.filename or _zip.climbs(name):
                raise CheckpointError(f"refused: {info.filename!r} is not the name of an array")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CheckpointError(f"refused: {name} is compressed in a way that NumPy never uses")
            if info.flag_bits & 1:
                raise CheckpointError(f"refused: {name} is encrypted")
            tensors[name] = _member(name, info, _zip.bytes_at(data, info))
    return OpenCheckpoint(tensors, maps=(mapped,))


def _member(name: str, info: zipfile.ZipInfo, packed: memoryview) -> Stored:
    """One array of an .npz, by its header."""

    def unpack(limit: int) -> memoryview:
        if info.compress_type == zipfile.ZIP_STORED:
            return packed[:limit]
        return memoryview(zlib.decompressobj(-15).decompress(packed, limit) if limit else b"")

    stream = io.BytesIO(unpack(min(info.file_size, _NPY_HEADER)))
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
    start = stream.tell()
    count = math.prod(shape) * dtype.itemsize
    if not _pickle.are_sizes(shape) or count != info.file_size - start:
        raise CheckpointError(f"{name}: {count} bytes are announced, {info.file_size - start} are there")

    def read_one() -> np.ndarray:
        content = unpack(info.file_size)
        if len(content) != info.file_size:
            raise CheckpointError(f"{name}: {info.file_size} bytes are announced, {len(content)} are there")
        _zip.check_sum(content, info)
        flat = np.frombuffer(content[start:], dtype)
        array = flat.reshape(shape, order="F" if fortran else "C")
        return array.astype(_little(array), copy=False)

    return Stored(tuple(shape), dtype.newbyteorder("<"), read_one)


# NumPy refuses longer headers itself (10,000 characters).
_NPY_HEADER = 1 << 15


_Reader = Callable[[Path, BinaryIO, "str | None"], OpenCheckpoint]
_READERS: dict[str, _Reader] = {
    ".safetensors": _read_safetensors,
    INDEX_SUFFIX: _read_sharded,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".pdparams": _read_paddle,
    ".npz": _read_npz,
}
