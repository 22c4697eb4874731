"""Checkpoint files as they will be: where each tensor goes is known from shapes and dtypes, before any value is.

So a file is written tensor by tensor, in any order, and continued where it was left. `write` does it for arrays in
memory, `checkpoints.stream` for tensors of another file.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import _torch_file, _zip
from checkpoints._dtypes import DTYPES, RAW16, Spec, bytes_of, name_of
from checkpoints._files import write_aside
from checkpoints.errors import CheckpointError

INDEX_SUFFIX = ".safetensors.index.json"
SHARD_SIZE = 5 * 10**9  # what published checkpoints have

SAFE_DTYPES = {
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
_SAFE_NAMES = {name: code for code, name in SAFE_DTYPES.items()}

Pieces = list[tuple[int, bytes]]


@dataclass(frozen=True)
class Places:
    """One file to be.

    size:    of the whole file.
    offsets: where the bytes of each tensor begin; they follow one another without gaps, row-major.
    pieces:  everything else, each with its place, given the checksum of each tensor (of nothing where `seeds` is None).
    seeds:   for formats with checksums, the CRC-32 that each tensor's continues; else None.
    """

    size: int
    offsets: Mapping[str, int]
    pieces: Callable[[Mapping[str, int]], Pieces]
    seeds: Mapping[str, int] | None = None


def write(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    shard_size: int | None = None,
) -> None:
    """Write `tensors` in the format of `path`'s suffix; the file is there whole or not at all, even after Ctrl-C.

    Each name is written, also where several share one tensor. Only .safetensors carries metadata. A path that ends in
    ``.safetensors.index.json`` is written as shards of at most `shard_size` bytes of tensors (default 5 GB), and a tensor
    larger than that has a shard of its own. CheckpointError where the format can't say a dtype, a name is empty, or the
    folder can't be written to.
    """
    path = Path(path)
    check_destination(path)
    packed: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if not isinstance(array, np.ndarray):
            raise CheckpointError(f"{path}: {name!r} is not a name with a NumPy array")
        if name_of(array.dtype) not in DTYPES:
            raise CheckpointError(f"{path}: {name} has dtype {array.dtype}, which no checkpoint holds")
        packed[name] = np.asarray(array, DTYPES[name_of(array.dtype)], order="C")
    specs = {name: Spec(name_of(array.dtype), array.shape) for name, array in packed.items()}
    files = shards(path, specs, shard_size)
    for file_path, names in files.items():
        _write_one(file_path, place(file_path, {name: specs[name] for name in names}, metadata), packed)
    if is_index(path):
        with write_aside(path) as file:
            file.write(index_of(files, specs))


def _write_one(path: Path, places: Places, tensors: Mapping[str, np.ndarray]) -> None:
    checksums = {name: _zip.crc(bytes_of(tensors[name]), seed) for name, seed in (places.seeds or {}).items()}
    parts: list[tuple[int, bytes | memoryview]] = [*places.pieces(checksums)]
    parts += [(at, bytes_of(tensors[name])) for name, at in places.offsets.items()]
    with write_aside(path) as file:
        # In order and without seeking, so that a pipe will do.
        for _, part in sorted(parts, key=lambda part: (part[0], len(part[1]))):
            file.write(part)


def check_destination(path: str | Path) -> None:
    """CheckpointError unless `write` could begin: a suffix it knows, in a folder that exists and can be written to."""
    path = Path(path)
    by_suffix(path, _PLACERS)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path}: the folder {path.parent} can't be written to")


def place(path: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str] | None = None) -> Places:
    """Where everything goes in a file of `path`'s format; CheckpointError where the format can't hold it."""
    placer = by_suffix(path, _PLACERS)
    if metadata and path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: only .safetensors carries metadata")
    for name in specs:
        if not isinstance(name, str) or not name:
            raise CheckpointError(f"{path}: {name!r} is not a name with a NumPy array")
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise CheckpointError(f"{path}: the name {name!r} is not valid text")
    try:
        result: Places = placer(specs, dict(metadata or {}))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return result


def by_suffix(path: Path, table: Mapping[str, Any]) -> Any:
    suffix = INDEX_SUFFIX if is_index(path) else path.suffix
    if suffix not in table:
        raise CheckpointError(f"{path}: the suffix must be one of {', '.join(table)}")
    return table[suffix]


# ---- shards --------------------------------------------------------------------------------------------------------


def is_index(path: Path) -> bool:
    """Whether `path` names the index of several .safetensors files."""
    return path.name.endswith(INDEX_SUFFIX)


def parse_size(text: str) -> int:
    """``"500MB"``, ``"5GB"``, ``"2GiB"`` or a number of bytes; CheckpointError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(|B|[KMGT]i?B)", text.strip(), re.IGNORECASE)
    power = " KMGT".index(match[2][0].upper()) if match and match[2] and match[2].upper() != "B" else 0
    size = int(float(match[1]) * (1024 if match and "i" in match[2].lower() else 1000) ** power) if match else 0
    if size < 1:
        raise CheckpointError(f"{text!r} is no size; give one such as 500MB, 5GB or 2GiB")
    return size


def shards(path: Path, specs: Mapping[str, Spec], shard_size: int | None) -> dict[Path, list[str]]:
    """The files that `path` stands for, and the tensors of each in order: itself, or the shards of an index."""
    if not is_index(path):
        if shard_size is not None:
            raise CheckpointError(f"{path}: only an index has shards; name it MODEL{INDEX_SUFFIX}")
        return {path: list(specs)}
    groups: list[list[str]] = [[]]
    held = 0
    for name, spec in specs.items():
        if groups[-1] and held + spec.nbytes > (shard_size or SHARD_SIZE):
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += spec.nbytes
    stem = path.name.removesuffix(INDEX_SUFFIX)
    count = len(groups)
    return {
        path.with_name(f"{stem}-{number:05}-of-{count:05}.safetensors"): names
        for number, names in enumerate(groups, start=1)
    }


def existing_shards(path: Path) -> list[Path]:
    """Files beside the index `path` that are called as its shards are; none where `path` is no index."""
    if not is_index(path) or not path.parent.is_dir():
        return []
    pattern = re.compile(re.escape(path.name.removesuffix(INDEX_SUFFIX)) + r"-\d{5}-of-\d{5}\.safetensors")
    return sorted(other for other in path.parent.iterdir() if pattern.fullmatch(other.name))


def index_of(files: Mapping[Path, list[str]], specs: Mapping[str, Spec]) -> bytes:
    """The index of shards: which file holds each tensor."""
    total = sum(spec.nbytes for spec in specs.values())
    where = {name: path.name for path, names in files.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()


# ---- the formats ---------------------------------------------------------------------------------------------------


def _safetensors(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> Places:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    # Wide types first, as the format asks for alignment.
    for name in sorted(specs, key=lambda name: (-DTYPES[specs[name].dtype].itemsize, name)):
        spec = specs[name]
        if spec.dtype not in _SAFE_NAMES or name == "__metadata__":
            raise CheckpointError(f"{name}: safetensors can't hold {spec.dtype} under this name")
        stop = begin + spec.nbytes
        header[name] = {"dtype": _SAFE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, stop]}
        begin = stop
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    offsets = {name: start + info["data_offsets"][0] for name, info in header.items() if name != "__metadata__"}
    return Places(start + begin, offsets, lambda _: [(0, struct.pack("<Q", len(text)) + text)])


def _torch(specs: Mapping[str, Spec], _: Mapping[str, str]) -> Places:
    return _zipped(_torch_file.lay_out(specs))


def _zipped(archive: _zip.Archive) -> Places:
    seeds = {
        member.tensor: _zip.crc(memoryview(member.prefix)) for member in archive.members if member.tensor is not None
    }
    return Places(archive.size, archive.tensor_offsets(), archive.pieces, seeds)


_NOT_IN_PADDLE = {
    "uint16": "paddle reads it as bfloat16",
    "uint32": "paddle has no such type",
    "uint64": "paddle has no such type",
    "float8_e4m3fn": "a pickle of NumPy arrays has no such type",
    "float8_e5m2": "a pickle of NumPy arrays has no such type",
}


def _paddle(specs: Mapping[str, Spec], _: Mapping[str, str]) -> Places:
    """A pickle of protocol 4, as `pickle.dump` writes a dict of arrays, but for frames and memos, which are optional.

    Source of the opcodes and of an array's state: CPython's pickletools, NumPy's ``ndarray.__reduce__``.
    """
    pieces: Pieces = []
    offsets: dict[str, int] = {}
    piece, at = b"\x80\x04}(", 0
    for name, spec in specs.items():
        if spec.dtype in _NOT_IN_PADDLE:
            raise CheckpointError(f"{name}: a .pdparams can't hold {spec.dtype} ({_NOT_IN_PADDLE[spec.dtype]})")
        stored = RAW16[0] if spec.dtype == "bfloat16" else DTYPES[spec.dtype]
        # _reconstruct(ndarray, (0,), b"b"), then the state (1, shape, dtype, Fortran order, bytes).
        piece += _text(name) + b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
        piece += b"(K\x01(" + b"".join(map(_torch_file.int_opcode, spec.shape)) + b"t" + _dtype(stored)
        piece += b"\x89\x8e" + struct.pack("<Q", spec.nbytes)
        pieces.append((at, piece))
        offsets[name] = at + len(piece)
        at += len(piece) + spec.nbytes
        piece = b"tb"
    pieces.append((at, piece + b"u."))
    return Places(at + len(piece) + 2, offsets, lambda _: pieces)


def _dtype(dtype: np.dtype) -> bytes:
    """dtype(code, False, True) with the state (3, byte order, None, None, None, -1, -1, 0)."""
    order = "|" if dtype.itemsize == 1 else "<"
    made = b"cnumpy\ndtype\n" + _text(dtype.str[1:]) + b"\x89\x88\x87R"
    return made + b"(K\x03" + _text(order) + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _npz(specs: Mapping[str, Spec], _: Mapping[str, str]) -> Places:
    members = []
    for name, spec in specs.items():
        if spec.dtype.startswith("float8"):
            raise CheckpointError(f"{name}: an .npz can't hold {spec.dtype}")
        if "\0" in name or "\\" in name or _zip.climbs(name) or len(name.encode()) > 60_000:
            raise CheckpointError(f"{name}: an .npz can't hold a tensor of this name")
        stored = RAW16[1] if spec.dtype == "bfloat16" else DTYPES[spec.dtype]
        header = io.BytesIO()
        about = {"descr": np.lib.format.dtype_to_descr(stored), "fortran_order": False, "shape": spec.shape}
        np.lib.format.write_array_header_1_0(header, about)
        members.append(_zip.Member(name + ".npy", header.getvalue(), name, spec.nbytes))
    return _zipped(_zip.lay_out(members))


_Placer = Callable[[Mapping[str, Spec], Mapping[str, str]], Places]
_PLACERS: dict[str, _Placer] = {
    ".safetensors": _safetensors,
    INDEX_SUFFIX: _safetensors,
    ".pth": _torch,
    ".pt": _torch,
    ".bin": _torch,
    ".pdparams": _paddle,
    ".npz": _npz,
}
