"""A streaming reader of the published review files: JSON lines, or Python dict literals, gzip or plain."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from fake_data.amazon._lines import LONGEST_LINE, Progress, TruncatedError, line_blocks
from fake_data.errors import DataError

# What `overall` may be -> label. 1 and 1.0 are one key.
LABELS = {1.0: 0, 2.0: 1, 3.0: 2, 4.0: 3, 5.0: 4}
KEPT_BAD_LINES = 20
ROWS_A_BLOCK = 4096


class BadLine(NamedTuple):
    """A line that holds no review: its 1-based number and what is wrong with it."""

    number: int
    why: str


class Reviews(NamedTuple):
    """Some reviews: the texts, and labels 0 to 4 for 1 to 5 stars."""

    texts: list[str]
    labels: list[int]


class _BadError(Exception):
    """Why a line holds no review."""


@dataclass
class ReviewReader:
    """Reads reviews in blocks, from a file or from dicts, and counts what it met.

    `source` is a path, or any iterable of dicts with `reviewText` and `overall`. A bad line (not parseable, not UTF-8,
    no dict, no text, no rating of 1 to 5 whole stars, above a MiB) is counted in `bad` and the first twenty are kept
    in `bad_lines`; blank lines are passed over. Iterating raises DataError

    - when the file is missing, empty, a directory, or holds no review at all,
    - when gzip data is cut or damaged, unless `allow_truncated`: then what came before is kept and `truncated` has why,
    - at the first bad line with `strict`.
    """

    source: str | Path | Iterable[Mapping[str, Any]]
    strict: bool = False
    allow_truncated: bool = False
    progress: Progress | None = None
    read: int = 0
    bad: int = 0
    bad_lines: tuple[BadLine, ...] = ()
    truncated: str = ""

    @property
    def name(self) -> str:
        """The file's path, or "the reviews" when they came from memory."""
        return str(self.source) if isinstance(self.source, (str, Path)) else "the reviews"

    def blocks(self) -> Iterator[Reviews]:
        """The reviews, some thousands at most at a time."""
        self.read, self.bad, self.bad_lines, self.truncated = 0, 0, (), ""
        number = 1
        try:
            for rows in self._rows():
                texts, labels = self._parse(rows, number)
                number += len(rows)
                self.read += len(texts)
                yield Reviews(texts, labels)
        except TruncatedError as error:
            self.truncated = f"{error} after {self.read:,} reviews"
            if not self.allow_truncated:
                raise DataError(
                    f"{self.name}: {self.truncated}. Fetch the file again, or allow a truncated file to keep these."
                ) from None
        if number == 1 and not self.truncated:
            raise DataError(f"{self.name} is empty")
        if self.read == 0:
            first = (
                f"line {self.bad_lines[0].number}: {self.bad_lines[0].why}" if self.bad_lines else "only blank lines"
            )
            raise DataError(f"{self.name} holds no review: {self.truncated or first}")

    def _rows(self) -> Iterator[list[Any]]:
        if isinstance(self.source, (str, Path)):
            yield from line_blocks(Path(self.source), self.progress)
            return
        rows = []
        for row in self.source:
            rows.append(row)
            if len(rows) == ROWS_A_BLOCK:
                yield rows
                rows = []
        if rows:
            yield rows

    def _parse(self, rows: list[Any], number: int) -> Reviews:
        if (reviews := _all_good(rows)) is not None:
            return reviews
        texts: list[str] = []
        labels: list[int] = []
        for row in rows:
            try:
                text, label = _review(row)
            except _BadError as error:
                self._refuse(BadLine(number, str(error)))
            else:
                if label is not None:
                    texts.append(text)
                    labels.append(label)
            number += 1
        return Reviews(texts, labels)

    def _refuse(self, line: BadLine) -> None:
        if self.strict:
            raise DataError(f"{self.name}, line {line.number}: {line.why}")
        self.bad += 1
        if len(self.bad_lines) < KEPT_BAD_LINES:
            self.bad_lines += (line,)


def _all_good(rows: list[Any]) -> Reviews | None:
    """What JSON lines without a flaw hold; None where any needs a closer look."""
    try:
        if max(map(len, rows)) > LONGEST_LINE:
            return None
        dicts = [orjson.loads(row) for row in rows]
        texts = [row["reviewText"] for row in dicts]
        stars = [row["overall"] for row in dicts]
        labels = [LABELS[number] for number in stars]
    except (ValueError, TypeError, KeyError):
        return None
    right = set(map(type, texts)) == {str} and set(map(type, stars)) <= {float, int}
    return Reviews(texts, labels) if right else None


def _review(row: Any) -> tuple[str, int | None]:
    """Text and label of a line or dict; label None for a blank line. Raises _BadError."""
    if isinstance(row, bytes):
        if len(row) > LONGEST_LINE:
            raise _BadError(f"longer than {LONGEST_LINE >> 20} MiB")
        row = row.strip()  # of CR, too
        if not row:
            return "", None
        try:
            row = orjson.loads(row)
        except orjson.JSONDecodeError:
            row = _literal(row)
    if not isinstance(row, Mapping):
        raise _BadError("not a dict")
    for key in ("reviewText", "overall"):
        if key not in row:
            raise _BadError(f'no "{key}"')
    text, stars = row["reviewText"], row["overall"]
    if not isinstance(text, str):
        raise _BadError('"reviewText" is no text')
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _BadError('"reviewText" holds half a surrogate pair') from None
    if isinstance(stars, bool) or not isinstance(stars, (int, float)):
        raise _BadError('"overall" is no number')
    if stars not in LABELS:
        shown = f"{stars:g}" if isinstance(stars, float) or abs(stars) < 1000 else "far out"
        raise _BadError(f'"overall" is {shown}, not 1 to 5 whole stars')
    return text, LABELS[stars]


def _literal(line: bytes) -> Any:
    """The value of a Python dict literal. Raises _BadError."""
    if not line.startswith(b"{"):
        raise _BadError("not a dict")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise _BadError(f"not UTF-8 (byte {error.start + 1})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise _BadError("neither JSON nor a Python dict literal") from None
