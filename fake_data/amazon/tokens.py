"""Words and punctuation to ids.

Text that is pure ASCII, and that is nearly all of it, is split and looked up by whole arrays: one table says what kind
each byte is, a token is where the kind stays the same, and a token of up to eight bytes is a 64-bit number looked up in
a direct-mapped table. The table only remembers; what it does not know is asked from the dict that holds the truth, so
the result is exactly that of the plain route.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

TOKEN = re.compile(r"\w+|[^\w\s]+")
PADDING = "<padding>"
UNKNOWN = "<unknown>"

SPACE, WORD, MARK = 0, 1, 2
KINDS = bytes(
    SPACE if chr(code).isspace() else WORD if re.match(r"\w", chr(code)) else MARK for code in range(128)
) + bytes(128)
# What is left of eight bytes when a token has 0 to 8, or more.
KEEP = np.array([(1 << 8 * size) - 1 for size in range(9)] + [0], dtype=np.uint64)
MIXER = np.uint64(0x9E3779B97F4A7C15)
FREE = (1 << 64) - 1  # no ASCII text has these bytes
LARGEST_TABLE = 1 << 22
FIRST_PIECE, LARGEST_PIECE = 1 << 13, 1 << 17  # characters
SMALLEST_RUN = 1 << 12  # characters of ASCII between other texts that are worth an array


def tokenize(text: str, lower: bool = True) -> list[str]:
    """Maximal runs of word characters, and of other characters that are no space, lower-cased first by default."""
    return TOKEN.findall(text.lower() if lower else text)


class _Ids(dict[str, int]):
    """Word -> id; a new word gets the next id, the first 1."""

    def __missing__(self, word: str) -> int:
        self[word] = id_ = len(self) + 1
        return id_


class Indexer:
    """Gives each distinct token the next id from 1 on, by first appearance."""

    def __init__(self, lower: bool = True) -> None:
        self._lower = lower
        self._ids = _Ids()
        self._piece = FIRST_PIECE
        self._make_table(1 << 16)

    def index(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all tokens one text after the other, int32 [tokens], and how many each text has, int64 [texts]."""
        flat, counts = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
        for piece in self._pieces(texts):
            for plain, run in _runs(piece):
                ids, count = (self._index_plain if plain else self._index_any)(run)
                flat.append(ids)
                counts.append(count)
        return np.concatenate(flat), np.concatenate(counts)

    def words(self) -> tuple[str, ...]:
        """All words met; the first has id 1."""
        return tuple(self._ids)

    def _pieces(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        """The texts in pieces that grow: at first every word is new, and new words are learned one by one."""
        start, held = 0, 0
        for index, text in enumerate(texts):
            held += len(text)
            if held >= self._piece:
                yield texts[start : index + 1]
                start, held = index + 1, 0
                self._piece = min(2 * self._piece, LARGEST_PIECE)
        if start < len(texts):
            yield texts[start:]

    def _index_any(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens = [tokenize(text, self._lower) for text in texts]
        flat = [id_ for row in tokens for id_ in map(self._ids.__getitem__, row)]
        return np.array(flat, dtype=np.int32), np.array([len(row) for row in tokens], dtype=np.int64)

    def _index_plain(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As _index_any, for ASCII without NUL."""
        text = "\n".join(["", *texts, ""])
        if self._lower:
            text = text.lower()
        content = text.encode()
        starts, sizes = _tokens(content)
        keys = _keys(content, starts, sizes)
        slots = self._slots(keys)
        ids = self._table_ids[slots]
        unknown = np.flatnonzero(self._table_keys[slots] != keys)
        spans = zip(starts[unknown].tolist(), (starts + sizes)[unknown].tolist(), strict=True)
        ids[unknown] = list(map(self._ids.__getitem__, [text[start:end] for start, end in spans]))
        self._learn(ids[unknown], keys[unknown])
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
        return ids, np.diff(np.searchsorted(starts, ends), prepend=0)

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        return ((keys * MIXER) >> self._shift).view(np.int64)

    def _learn(self, ids: np.ndarray, keys: np.ndarray) -> None:
        """Remember these words where their slot is free: early words are the frequent ones, so they stay."""
        if len(self._ids) * 4 > len(self._table_ids) and len(self._table_ids) < LARGEST_TABLE:
            taken = np.flatnonzero(self._table_ids)
            ids = np.concatenate([self._table_ids[taken], ids])
            keys = np.concatenate([self._table_keys[taken], keys])
            self._make_table(4 * len(self._table_ids))
        slots = self._slots(keys)
        free = np.flatnonzero((self._table_ids[slots] == 0) & (keys != 0))[::-1]  # of two for one, the first is kept
        self._table_ids[slots[free]], self._table_keys[slots[free]] = ids[free], keys[free]

    def _make_table(self, size: int) -> None:
        self._shift = np.uint64(64 - (size.bit_length() - 1))
        self._table_ids = np.zeros(size, dtype=np.int32)
        self._table_keys = np.full(size, FREE, dtype=np.uint64)


def _runs(texts: Sequence[str]) -> Iterator[tuple[bool, Sequence[str]]]:
    """The texts in runs, and whether a run is to be indexed by arrays: it is plain, and long enough to be worth it."""
    if _is_plain("".join(texts)):
        yield True, texts
        return
    for plain, group in groupby(texts, _is_plain):
        run = list(group)
        yield plain and sum(map(len, run)) >= SMALLEST_RUN, run


def _is_plain(text: str) -> bool:
    """Whether bytes are characters, and NUL can stand for "no byte"."""
    return text.isascii() and "\0" not in text


def _tokens(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where each token starts and how long it is, int64 [tokens] both; the content begins and ends with a space."""
    kinds = np.frombuffer(content.translate(KINDS), dtype=np.uint8)
    edge = kinds[1:] != kinds[:-1]
    real = kinds != SPACE
    starts = np.flatnonzero(edge & real[1:])
    ends = np.flatnonzero(edge & real[:-1])
    ends -= starts
    return starts + 1, ends


def _keys(content: bytes, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The bytes of each token as a number, uint64 [tokens]; 0 for those of more than eight bytes."""
    eights = np.ndarray((len(content) + 1,), dtype="<u8", buffer=content + bytes(8), strides=(1,))
    return eights[starts].astype(np.uint64, copy=False) & KEEP[np.minimum(sizes, 9)]
