"""A checkpoint file that is open but not read: names, shapes and dtypes at once, values tensor by tensor."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np


@dataclass(frozen=True)
class Stored:
    """One tensor of an open file.

    dtype: little-endian, as `checkpoints.read` gives it.
    read:  the values, an array of this shape and dtype: a read-only view of the file where the file stores it plainly
           (then it takes no memory but the kernel's own copy of the file), perhaps strided. CheckpointError where its
           checksum is wrong.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = field(repr=False)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


@dataclass(frozen=True)
class OpenCheckpoint:
    """What a file holds, unread.

    path:     as it was given.
    identity: of each file read, its path, size, time of change and inode, so that a change in between can be told.
    """

    tensors: dict[str, Stored]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    path: Path = Path()
    identity: tuple[tuple[str, int, int, int], ...] = ()
    maps: tuple[mmap.mmap, ...] = field(default=(), repr=False)

    def release(self) -> None:
        """Let go of the pages read so far: they stay in the kernel's cache and no longer count as this process's."""
        for mapped in self.maps:
            forget(mapped)

    def stand_ins(self) -> dict[str, np.ndarray]:
        """Arrays of the tensors' shapes and dtypes without their values or memory, for what looks at nothing else."""
        return {name: np.broadcast_to(np.zeros((), held.dtype), held.shape) for name, held in self.tensors.items()}


def map_file(file: BinaryIO) -> mmap.mmap:
    """The file's bytes without a copy; the map goes when the last view of it does."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def forget(mapped: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def identify(file: BinaryIO) -> tuple[str, int, int, int]:
    about = os.fstat(file.fileno())
    return os.path.realpath(file.name), about.st_size, about.st_mtime_ns, about.st_ino
