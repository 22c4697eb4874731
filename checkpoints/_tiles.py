"""Arrays of any size and stride in pieces: copied to a file, compared with one, transposed a cache's worth at a time."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

SLAB = 1 << 23  # bytes that one thread has in hand
_WIDTH = 1 << 14  # bytes of a matrix's row in one slab: a slab of its transpose then lies in few pages of memory
_ROWS, _COLUMNS, _PAD = 128, 256, 16

Slices = tuple[slice, ...]
Done = Callable[[int], None]
_OWN = threading.local()


def workers() -> int:
    """Threads that keep memory busy: all cores this process may use, up to eight."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def write_at(pool: ThreadPoolExecutor, descriptor: int, start: int, array: np.ndarray, done: Done) -> None:
    """Write `array` in row-major order at byte `start` of a file; `done` is told the bytes of each piece."""
    array = _flat(array)
    steps = [math.prod(array.shape[axis + 1 :]) * array.itemsize for axis in range(array.ndim)]

    def write_slab(slices: Slices) -> int:
        tile = array[slices]
        at = start + sum(piece.start * step for piece, step in zip(slices, steps, strict=True))
        content = tile if tile.flags.c_contiguous else _dense(tile)
        if tile.ndim > 1 and tile.shape[-1] < array.shape[-1]:  # pieces of rows, each at its own place
            for number, row in enumerate(content.reshape(-1, tile.shape[-1])):
                _pwrite(descriptor, row, at + number * steps[-2])
        else:
            _pwrite(descriptor, content, at)
        return tile.nbytes

    _each(pool, write_slab, _slabs(array.shape, array.itemsize), done)


def equal_bits(pool: ThreadPoolExecutor, a: np.ndarray, b: np.ndarray, done: Done) -> bool:
    """Whether two arrays of one shape have the same bits, whatever their strides."""
    if a.shape != b.shape or a.dtype.itemsize != b.dtype.itemsize:
        return False
    if a.flags.c_contiguous and b.flags.c_contiguous:
        a, b = _flat(a), _flat(b)
    differs = threading.Event()

    def compare_slab(slices: Slices) -> int:
        if differs.is_set():
            return 0
        tiles = (a[slices], b[slices])
        x, y = (tile if tile.flags.c_contiguous else _dense(tile, slot) for slot, tile in enumerate(tiles))
        if not np.array_equal(_bits(x), _bits(y)):
            differs.set()
        return 2 * x.nbytes

    _each(pool, compare_slab, _slabs(a.shape, a.itemsize), done)
    return not differs.is_set()


def _each(pool: ThreadPoolExecutor, work: Callable[[Slices], int], slabs: Iterable[Slices], done: Done) -> None:
    jobs = list(slabs)
    for count in map(work, jobs) if len(jobs) == 1 else pool.map(work, jobs):
        done(count)


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1) if array.flags.c_contiguous else array


def _slabs(shape: tuple[int, ...], itemsize: int) -> Iterator[Slices]:
    """Slices that together cover `shape`, each of about `SLAB` bytes; those of a matrix are not too narrow."""
    if not math.prod(shape):
        return
    if len(shape) == 1:
        step = SLAB // itemsize
        yield from ((slice(at, min(at + step, shape[0])),) for at in range(0, shape[0], step))
    elif len(shape) == 2:
        width = min(shape[1], _WIDTH // itemsize)
        height = SLAB // (width * itemsize)
        for top in range(0, shape[0], height):
            for left in range(0, shape[1], width):
                yield slice(top, min(top + height, shape[0])), slice(left, min(left + width, shape[1]))
    else:
        rest = math.prod(shape[1:]) * itemsize
        step = max(1, SLAB // rest)
        for at in range(0, shape[0], step):
            first = slice(at, min(at + step, shape[0]))
            if rest <= SLAB:
                yield (first, *(slice(0, size) for size in shape[1:]))
            else:
                yield from ((first, *inner) for inner in _slabs(shape[1:], itemsize))


def _dense(tile: np.ndarray, slot: int = 0) -> np.ndarray:
    """`tile` in row-major order, in one of two buffers of this thread's own: good until the next use of this one."""
    if not hasattr(_OWN, "buffers") or _OWN.buffers.shape[1] < SLAB:
        _OWN.buffers = np.empty((2, SLAB), np.uint8)
    out: np.ndarray = _OWN.buffers[slot, : tile.nbytes].view(tile.dtype).reshape(tile.shape)
    if tile.ndim != 2 or abs(tile.strides[0]) >= abs(tile.strides[1]):
        np.copyto(out, tile)
        return out
    # A transposed matrix goes through a small one whose rows are a few elements apart: rows at a large power of two from
    # each other, as weights have them, fall on the same few places of the cache.
    small = np.empty((_COLUMNS, _ROWS + _PAD), tile.dtype)
    for top in range(0, tile.shape[0], _ROWS):
        for left in range(0, tile.shape[1], _COLUMNS):
            part = tile[top : top + _ROWS, left : left + _COLUMNS]
            inner = small[: part.shape[1], : part.shape[0]]
            np.copyto(inner, part.T)
            np.copyto(out[top : top + _ROWS, left : left + _COLUMNS], inner.T)
    return out


def _bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8 if array.itemsize > 8 else f"u{array.itemsize}")


def _pwrite(descriptor: int, content: np.ndarray, at: int) -> None:
    view = content.reshape(-1).view(np.uint8).data
    while view:
        count = os.pwrite(descriptor, view, at)
        view, at = view[count:], at + count
