"""Conversion from file to file, one tensor at a time: any size in little memory, proved, and continued after a kill.

The destination's every byte has its place before the first is written (`checkpoints.places`), so each tensor is read
through a memory map, moved piece by piece, written to its place, read back and compared. The file grows beside the
destination under a name made of what is converted; a process that dies leaves it there, and the next one with the same
source and layout finds it. It trusts nothing in it: what proves equal to the source is kept, the rest is written.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from checkpoints import _zip
from checkpoints._dtypes import DTYPES, RAW16, Spec
from checkpoints._files import write_aside
from checkpoints._tiles import equal_bits, workers, write_at
from checkpoints.convert import (
    Proof,
    aliases,
    apply_view,
    check_source,
    holders,
    lost,
    part_of,
    proof_of,
    undo_view,
)
from checkpoints.errors import CheckpointError
from checkpoints.layout_file import Layout, Move
from checkpoints.places import Places, check_destination, index_of, is_index, place, shards
from checkpoints.stored import OpenCheckpoint, Stored, forget

_RELEASE = 1 << 26  # pages read and written stay with this process up to so many bytes


class Progress(Protocol):
    """Told what goes on, and how many bytes of all are done."""

    def __call__(self, what: str, done: int | None = None, total: int | None = None) -> None: ...


@dataclass(frozen=True)
class Streamed:
    """The proof of a conversion, and how many of its tensors an interrupted run had written already."""

    proof: Proof
    kept: int


def stream(
    source: OpenCheckpoint,
    destination: str | Path,
    layout: Layout,
    *,
    shard_size: int | None = None,
    progress: Progress | None = None,
    accept: Callable[[Mapping[str, np.ndarray]], None] | None = None,
) -> Streamed:
    """Write `source`, moved by `layout`, to the file `destination` (or the shards of an index), tensor by tensor.

    Same checks, same proof and same bytes as `convert_proved` and `write`, in less memory than twice the largest tensor
    and 100 MB. After a kill or a power cut the same call goes on where the other stopped; any other failure, Ctrl-C
    included, leaves no file.

    accept: called with the new tensors (read-only views of the new file) before the file takes its name; may raise.

    Raises:
        CheckpointError: what `convert_proved` and `write` say; the disk is too full; another process writes this file.
    """
    destination = Path(destination)
    check_destination(destination)
    destination = destination.resolve()
    if destination.exists() and not destination.is_file():
        raise CheckpointError(f"{destination}: is not an ordinary file")
    with _about(source):
        check_source(source.stand_ins(), layout)
    origin: dict[str, list[tuple[Stored, Move]]] = {}
    for move, holder in holders(layout, source.tensors):
        origin.setdefault(move.target, []).append((source.tensors[holder], move))
    for name, given in origin.items():
        if len(given) != (given[0][1].part_to.count if given[0][1].part_to else 1):
            raise CheckpointError(f"{source.path}: {name}: not all of its parts are filled")
    specs = {move.target: Spec(move.dtype, move.shape_to) for move in layout.moves}
    for name, first in aliases(layout.target_ties, specs).items():
        origin[name], specs[name] = origin[first], specs[first]
    specs |= {extra.name: Spec(extra.dtype, extra.shape) for extra in layout.filled}
    files = shards(destination, specs, shard_size)
    for path in files:
        if str(path) in {place[0] for place in source.identity}:
            raise CheckpointError(f"{path}: is the source itself; choose another name")
    work = _Work(source, origin, sum(spec.nbytes for spec in specs.values()), progress)
    with ExitStack() as stack:
        work.pool = stack.enter_context(ThreadPoolExecutor(workers()))
        with _about(source):
            work.check_values(layout)
        made = []
        for path, names in files.items():
            held = {name: specs[name] for name in names}
            made.append(stack.enter_context(_under_way(path, held, place(path, held), _key(source, layout))))
        for file in made:
            work.fill(file)
        arrays = {name: array for file in made for name, array in file.arrays().items()}
        for group in layout.target_ties:
            for name in group[1:]:
                if not work.equal(arrays[group[0]], arrays[name]):
                    raise CheckpointError(
                        f"{source.path}: {name} would differ from {group[0]}, yet the target ties them"
                    )
        if accept is not None:
            accept({name: arrays[name] for name in specs})
        for file in made:
            os.fsync(file.descriptor)
        for file in made:
            file.aside.replace(file.path)
    if is_index(destination):
        with write_aside(destination) as index:
            index.write(index_of(files, specs))
    return Streamed(proof_of(layout, work.total), work.kept)


@dataclass(frozen=True)
class _File:
    """One file of the destination while it grows. found: it was there already, left by a process that died."""

    path: Path
    aside: Path
    descriptor: int
    specs: Mapping[str, Spec]
    places: Places
    mapped: mmap.mmap
    found: bool

    def arrays(self) -> dict[str, np.ndarray]:
        """Its tensors, as read-only views of the file."""
        data = memoryview(self.mapped)
        return {
            name: np.frombuffer(data[at : at + self.specs[name].nbytes], DTYPES[self.specs[name].dtype]).reshape(
                self.specs[name].shape
            )
            for name, at in self.places.offsets.items()
        }


class _Work:
    """What is under way: the threads, what has been done, and how many pages this process holds."""

    pool: ThreadPoolExecutor

    def __init__(
        self,
        source: OpenCheckpoint,
        origin: Mapping[str, list[tuple[Stored, Move]]],
        total: int,
        progress: Progress | None,
    ) -> None:
        self.source = source
        self.origin = origin
        self.total = total
        self.progress = progress
        self.kept = 0
        self.done = 0
        self.held = 0
        self.maps: list[mmap.mmap] = []

    def fill(self, file: _File) -> None:
        """Write what does not prove to be there already, prove it, then all bytes that belong to no tensor."""
        self.maps.append(file.mapped)
        checksums: dict[str, int] = {}
        for name, array in sorted(file.arrays().items(), key=lambda item: file.places.offsets[item[0]]):
            if self.progress is not None:
                self.progress(f"converting {name}", self.done, self.total)
            given = self._given(name, file.specs[name])
            if file.found and self._proved(array, given):
                self.kept += 1
            else:
                self._write(file, name, given)
                if not self._proved(array, given):
                    raise CheckpointError(f"{file.path}: {name}: there and back is not bit-identical")
            if file.places.seeds is not None:
                raw = memoryview(file.mapped)[file.places.offsets[name] :][: array.nbytes]
                checksums[name] = _zip.crc(raw, file.places.seeds[name])
            self.done += array.nbytes
            del given
            self._release()
        for at, piece in file.places.pieces(checksums):
            os.pwrite(file.descriptor, piece, at)

    def check_values(self, layout: Layout) -> None:
        """CheckpointError where the source has different values under names that its model ties, or what must be zero."""
        for extra in layout.dropped:
            if extra.zero and extra.name in self.source.tensors and self.source.tensors[extra.name].read().any():
                raise CheckpointError(lost(extra.name))
        for group in layout.source_ties:
            held = [name for name in group if name in self.source.tensors]
            for name in held[1:]:
                first, other = self.source.tensors[held[0]].read(), self.source.tensors[name].read()
                if not self.equal(first, other):
                    raise CheckpointError(
                        f"{name}: differs from {held[0]}, yet the model ties them: which of the two is meant can't be known"
                    )

    def equal(self, a: np.ndarray, b: np.ndarray) -> bool:
        return equal_bits(self.pool, a, b, self._count)

    def _write(self, file: _File, name: str, given: list[tuple[np.ndarray, Move | None]]) -> None:
        at = file.places.offsets[name]
        for array, move in sorted(given, key=lambda one: one[1].part_to.index if one[1] and one[1].part_to else 0):
            moved = array if move is None else apply_view(array, move)
            write_at(self.pool, file.descriptor, at, moved, self._count)
            at += moved.nbytes

    def _given(self, name: str, spec: Spec) -> list[tuple[np.ndarray, Move | None]]:
        """The source's arrays for one of the target's tensors, and their moves; zeros, and none, where nothing gives it."""
        if name not in self.origin:
            return [(np.zeros(spec.shape, DTYPES[spec.dtype]), None)]
        given: list[tuple[np.ndarray, Move | None]] = []
        for stored, move in self.origin[name]:
            array = stored.read()
            raw = move.dtype == "bfloat16" and array.dtype in RAW16
            given.append((array.view(DTYPES["bfloat16"]) if raw else array, move))
        return given

    def _proved(self, array: np.ndarray, given: list[tuple[np.ndarray, Move | None]]) -> bool:
        """Whether the written tensor, its moves undone, is the source's bit for bit."""
        return all(
            self.equal(held, array) if move is None else self.equal(part_of(held, move), undo_view(array, move))
            for held, move in given
        )

    def _count(self, count: int) -> None:
        self.held += count
        if self.held > _RELEASE:
            self._release()

    def _release(self) -> None:
        self.held = 0
        self.source.release()
        for mapped in self.maps:
            forget(mapped)


@contextmanager
def _about(source: OpenCheckpoint) -> Iterator[None]:
    """Errors name the source."""
    try:
        yield
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(
            message if message.startswith(f"{source.path}:") else f"{source.path}: {message}"
        ) from error


def _key(source: OpenCheckpoint, layout: Layout) -> str:
    """What is converted and how, in 32 characters: another source, or a changed one, has another key."""
    return hashlib.blake2b(repr((source.identity, layout)).encode(), digest_size=16).hexdigest()


@contextmanager
def _under_way(path: Path, specs: Mapping[str, Spec], places: Places, key: str) -> Iterator[_File]:
    """The file beside `path` that is to become it; gone when the block does not end well."""
    aside = path.with_name(f".{path.name}.{key}.part")
    try:
        _remove_stale(path, aside)
        found = aside.exists()
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            # Who held the lock until now may have renamed the file since we opened it.
            if not _lock(descriptor) or not aside.exists() or aside.stat().st_ino != os.fstat(descriptor).st_ino:
                raise CheckpointError(f"{path}: another process is writing it")
            try:
                about = os.fstat(descriptor)
                missing = places.size - about.st_blocks * 512
                if missing > (free := shutil.disk_usage(path.parent).free):
                    raise CheckpointError(f"{path}: needs {missing:,} more bytes, and the disk has {free:,} left")
                os.ftruncate(descriptor, places.size)
                mapped = mmap.mmap(descriptor, places.size, access=mmap.ACCESS_READ)
                found = found and about.st_size == places.size
                yield _File(path, aside, descriptor, specs, places, mapped, found)
            except BaseException:
                with suppress(OSError):
                    aside.unlink()
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path}: can't write: {error.strerror or error}") from error


def _remove_stale(path: Path, ours: Path) -> None:
    """Remove what dead processes left of conversions to `path` from another source or by another layout."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.part")
    for other in path.parent.iterdir():
        if other == ours or not pattern.fullmatch(other.name):
            continue
        descriptor = os.open(other, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            if _lock(descriptor):
                other.unlink()
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Take the file for this process alone, until it is closed; False where another one has it."""
    import fcntl  # of Unix alone: the rest of the room does without

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
