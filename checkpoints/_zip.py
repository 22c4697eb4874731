"""Members of a zip archive where they lie in the file, and an archive whose every byte's place is known beforehand.

The directory is parsed by the standard library. What it says is compared with the members' own headers and the bytes that
are there. Source of the layout: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from checkpoints.errors import CheckpointError

_LOCAL = "<4s5H3I2H"
_CENTRAL = "<4s6H3I5H2I"
_END64 = "<4sQ2H2I4Q4sIQI"
_END = "<4s4H2IH"
_STEP = 1 << 24
_LIMIT = 0xFFFFFFFF
_EPOCH = (1 << 5) | 1  # 1 January 1980, the same for everybody


def bytes_at(data: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of a member as the archive stores them; CheckpointError where its own header says otherwise."""
    at = info.header_offset
    if at < 0 or at + 30 > len(data) or bytes(data[at : at + 4]) != b"PK\x03\x04":
        raise CheckpointError(f"{info.filename!r} is not where the archive's directory says; is the file truncated?")
    flags, name_length, extra_length = struct.unpack_from("<6xH18x2H", data, at)
    name = bytes(data[at + 30 : at + 30 + name_length])
    if name.decode("utf-8" if flags & 0x800 else "cp437") != info.orig_filename:
        raise CheckpointError(f"{info.filename!r} has another name in its own header")
    start = at + 30 + name_length + extra_length
    if start + info.compress_size > len(data):
        raise CheckpointError(f"{info.filename!r} ends too early; is the file truncated?")
    return data[start : start + info.compress_size]


def check_sum(content: memoryview, info: zipfile.ZipInfo) -> None:
    """CheckpointError unless `content` has the checksum that the directory says."""
    if crc(content) != info.CRC:
        raise CheckpointError(f"damaged: Bad CRC-32 for {info.filename!r}")


def climbs(name: str) -> bool:
    """Whether a member of this name would lie outside the folder an archive is unpacked in."""
    return name.startswith("/") or ".." in name.replace("\\", "/").split("/")


def crc(content: memoryview, value: int = 0) -> int:
    for start in range(0, len(content), _STEP):
        value = zlib.crc32(content[start : start + _STEP], value)
    return value


# ---- writing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One member to be: `prefix`, then the bytes of the tensor called `tensor` (none where that is None).

    alignment: its content starts at a multiple of this.
    """

    filename: str
    prefix: bytes
    tensor: str | None = None
    tensor_bytes: int = 0
    alignment: int = 1

    @property
    def size(self) -> int:
        return len(self.prefix) + self.tensor_bytes


@dataclass(frozen=True)
class Archive:
    """Where all members of an archive lie, before any of them is there."""

    members: tuple[Member, ...]
    headers: tuple[int, ...]
    starts: tuple[int, ...]
    size: int

    def tensor_offsets(self) -> dict[str, int]:
        return {
            member.tensor: start + len(member.prefix)
            for member, start in zip(self.members, self.starts, strict=True)
            if member.tensor is not None
        }

    def pieces(self, checksums: Mapping[str, int]) -> list[tuple[int, bytes]]:
        """All bytes but the tensors', each with its place. checksums: of each tensor's member, prefix and all."""
        result: list[tuple[int, bytes]] = []
        directory = b""
        for member, at, start in zip(self.members, self.headers, self.starts, strict=True):
            value = crc(memoryview(member.prefix)) if member.tensor is None else checksums[member.tensor]
            result.append((at, _local(member, value, start - at)))
            result.append((start, member.prefix))
            directory += _central(member, value, at)
        begin = self.starts[-1] + self.members[-1].size if self.members else 0
        return [*result, (begin, directory + _end(len(self.members), len(directory), begin))]


def lay_out(members: Sequence[Member]) -> Archive:
    """The places of `members`, one after another, uncompressed."""
    at = 0
    headers, starts, directory = [], [], 0
    for member in members:
        header = 30 + len(member.filename.encode()) + 4 + (20 if _large(member) else 0)
        start = at + header + -(at + header) % member.alignment
        headers.append(at)
        starts.append(start)
        directory += len(_central(member, 0, at))
        at = start + member.size
    return Archive(
        tuple(members), tuple(headers), tuple(starts), at + directory + len(_end(len(members), directory, at))
    )


def _large(member: Member) -> bool:
    return member.size >= _LIMIT


def _local(member: Member, checksum: int, length: int) -> bytes:
    name = member.filename.encode()
    size = _LIMIT if _large(member) else member.size
    extra = struct.pack("<2H2Q", 1, 16, member.size, member.size) if _large(member) else b""
    padding = length - 30 - len(name) - len(extra) - 4
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    fields = (*_version(member), 0, 0, _EPOCH, checksum, size, size, len(name), len(extra))
    return struct.pack(_LOCAL, b"PK\x03\x04", *fields) + name + extra


def _central(member: Member, checksum: int, at: int) -> bytes:
    name = member.filename.encode()
    wide = [member.size] * 2 * _large(member) + [at] * (at >= _LIMIT)
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size = _LIMIT if _large(member) else member.size
    needed, flags = (45 if wide else 20), _version(member)[1]
    fields = (45, needed, flags, 0, 0, _EPOCH, checksum, size, size, len(name), len(extra), 0, 0, 0, 0, min(at, _LIMIT))
    return struct.pack(_CENTRAL, b"PK\x01\x02", *fields) + name + extra


def _end(count: int, length: int, at: int) -> bytes:
    short = struct.pack(
        _END, b"PK\x05\x06", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), min(length, _LIMIT), min(at, _LIMIT), 0
    )
    if count < 0xFFFF and max(length, at) < _LIMIT:
        return short
    fields = (b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, at, b"PK\x06\x07", 0, at + length, 1)
    return struct.pack(_END64, *fields) + short


def _version(member: Member) -> tuple[int, int]:
    """The version needed to extract, and the flags: names outside ASCII are UTF-8."""
    return (45 if _large(member) else 20), (0 if member.filename.isascii() else 0x800)
