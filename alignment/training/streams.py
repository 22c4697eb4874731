"""What a loader gives, read batch by batch: named arrays whose first axis is the rows, their hashes, and the rows' names.

A loader is anything that gives batches: a `torch.utils.data.DataLoader`, a `paddle.io.DataLoader`, a `Feed`'s epoch, a list. A
batch is an array or a tensor on the host, a `fake_data.Batch`, or tuples, lists and dicts of such, nested in any way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.structures import as_array, leaves
from fake_data import Batch

Entries = dict[str, NDArray]
Loader = Iterable[Any] | Callable[[], Iterable[Any]]
Names = NDArray[np.uint64]

# The name of what a batch holds where that is one array and nothing else.
SINGLE = "batch"


def entries(batch: Any, where: str = "batch") -> Entries:
    """The arrays of a batch by name: the keys of dicts and the positions in tuples and lists, joined by dots.

    Raises:
        AlignmentError: there is none, something in it is no array of numbers, or they have not the same rows.
    """
    if isinstance(batch, Batch):
        found = [*batch.inputs.items(), *([] if batch.targets is None else [("targets", batch.targets)])]
    else:
        found = [(path or SINGLE, leaf) for path, leaf in leaves(batch) if leaf is not None]
    arrays = {name: as_array(value, f"{name} of {where}") for name, value in found}
    rows = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    if len(set(rows.values())) != 1 or None in rows.values():
        said = ", ".join(f"{name} has {'none' if count is None else count}" for name, count in rows.items())
        raise AlignmentError(
            f"{where}: all that a batch holds needs the same rows, on its first axis: {said or 'it holds nothing'}"
        )
    return arrays


def rows_of(batch: Entries) -> int:
    """How many rows it has."""
    return len(next(iter(batch.values())))


def array_hash(array: NDArray) -> str:
    """SHA-256 of ``"dtype[shape]"`` and the array's little-endian bytes in C order, 64 hexadecimal digits."""
    content = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    shape = ",".join(map(str, array.shape))
    return hashlib.sha256(f"{array.dtype.name}[{shape}]".encode() + content.tobytes()).hexdigest()


def batch_hashes(batch: Any) -> dict[str, str]:
    """The hash of each input of a batch: what two runs on two machines can write down and compare.

    See `entries` for the names and the errors, `array_hash` for the algorithm.
    """
    return {name: array_hash(array) for name, array in entries(batch).items()}


def plain(array: NDArray, dtype: np.dtype) -> NDArray:
    """The rows without axes of one element, in the dtype in which both sides are compared."""
    kept = [size for size in array.shape[1:] if size != 1]
    return array.reshape(len(array), *kept).astype(dtype, copy=False)


def common_dtype(one: np.dtype, two: np.dtype) -> np.dtype:
    """In which two dtypes hold the same values: int64, or of floating-point numbers the narrower."""
    floating = [dtype for dtype in (one, two) if dtype.kind == "f"]
    return min(floating, key=lambda dtype: dtype.itemsize) if floating else np.dtype(np.int64)


def row_names(rows: NDArray) -> Names:
    """A name for each row, uint64 [n]: BLAKE2b's first eight bytes, or of one number its bits, mixed; equal for equal bytes."""
    if rows.size == len(rows):
        return _mixed(np.ascontiguousarray(rows).ravel().view(f"u{rows.dtype.itemsize}").astype(np.uint64))
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _mixed(words: Names) -> Names:
    """Other words, each from one alone: splitmix64's last steps (Steele, Lea and Flood, OOPSLA 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Stream:
    """One side's batches as they come.

    side: "reference" or "candidate". sizes: the rows of each batch so far. digest: the hash of all batch hashes so far.
    """

    def __init__(self, side: str, loader: Any, limit: int | None = None) -> None:
        self.side, self.limit = side, limit
        self.sizes: list[int] = []
        self._digest = hashlib.sha256()
        self._over = False
        with _blamed(f"the {side}'s loader"):
            if not hasattr(loader, "__iter__") and callable(loader):
                loader = loader()
            self.loader = loader
            if not isinstance(loader, Iterable) or isinstance(loader, (str, bytes, Mapping)):
                raise AlignmentError(
                    f"the {side} is a {type(loader).__name__}, which gives no batches: a loader, a list of batches, or a "
                    "function that returns one is needed"
                )
            self._batches: Iterator[Any] = iter(loader)
        # A loader draws its order with its first batch: before the other side is made and seeds the same generator.
        self._ahead = self._read()

    def next(self) -> Entries | None:
        """The next batch; None where there is none, or `limit` were given."""
        found, self._ahead = self._ahead, None
        return found or self._read()

    def _read(self) -> Entries | None:
        if self._over or len(self.sizes) == self.limit:
            return None
        where = f"the {self.side}'s batch {len(self.sizes)}"
        with _blamed(where):
            try:
                batch = next(self._batches)
            except StopIteration:
                self._over = True
                return None
            found = entries(batch, where)
        self.sizes.append(rows_of(found))
        for array in found.values():
            self._digest.update(array_hash(array).encode())
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of the hashes of all inputs of all batches, one after the other."""
        return self._digest.hexdigest()

    @property
    def length(self) -> int | None:
        """How many batches there will be, where the loader says it."""
        try:
            return len(self.loader)
        except Exception:  # a loader of an endless data set may raise anything here
            return None

    def stored(self) -> Iterator[Entries] | None:
        """The samples one by one as the loader's data set stores them; None where it has none that can be asked."""
        dataset = getattr(self.loader, "dataset", None)
        try:
            count = len(dataset)  # type: ignore[arg-type]
        except Exception:
            return None
        if not hasattr(dataset, "__getitem__"):
            return None
        return (self._sample(dataset, place) for place in range(count))

    def _sample(self, dataset: Any, place: int) -> Entries:
        where = f"sample {place} of the {self.side}'s data set"
        with _blamed(where):
            return {
                path or SINGLE: as_array(leaf, path)[None] for path, leaf in leaves(dataset[place]) if leaf is not None
            }


class _blamed:  # noqa: N801 - reads as the statement it is
    """What a user's own code raises becomes an error that says whose it is."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, (Exception, SystemExit)) and not isinstance(error, (AlignmentError, StopIteration)):
            raise AlignmentError(f"{self.where} failed: {type(error).__name__}: {error}") from error
