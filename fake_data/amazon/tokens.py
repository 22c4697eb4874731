"""Words and punctuation to ids, ids to words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

TOKEN = re.compile(r"\w+|[^\w\s]+")
PADDING = "<padding>"
UNKNOWN = "<unknown>"


def tokenize(text: str, lower: bool = True) -> list[str]:
    """Maximal runs of word characters, and of other characters that are no space, lower-cased first by default."""
    return TOKEN.findall(text.lower() if lower else text)


class Indexer:
    """Gives each distinct token the next id from 1 on, by first appearance."""

    def __init__(self, lower: bool = True) -> None:
        self.lower = lower
        self.ids: dict[str, int] = {}

    def index(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all tokens one text after the other, int32 [tokens], and how many each text has, int64 [texts]."""
        flat: list[int] = []
        counts = np.empty(len(texts), dtype=np.int64)
        ids = self.ids
        for row, text in enumerate(texts):
            tokens = tokenize(text, self.lower)
            counts[row] = len(tokens)
            flat.extend([ids.setdefault(token, len(ids) + 1) for token in tokens])
        return np.array(flat, dtype=np.int32), counts

    def tokens(self) -> tuple[str, ...]:
        """All tokens met; the first has id 1."""
        return tuple(self.ids)
