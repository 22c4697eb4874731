"""Made-up reviews in the published format: what is used when the real file is not at hand.

Lengths, ratings and the steep fall of word frequencies follow real Electronics reviews. Opinion words depend on the
rating, but every rating uses all of them, so that a bag of words tells the classes apart well above chance, and far
from always. The same seed gives the same reviews on every platform, and the first n are the same whatever the count.
"""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fake_data._files import replaced
from fake_data._raw import Raw
from fake_data.amazon._lines import Progress
from fake_data.errors import DataError

WORDS = 30_000
BLOCK = 256
# Of 18,028 real reviews: the words and marks in them at these shares, and how many gave 1 to 5 stars.
LENGTHS = ((0, 1), (10, 17), (50, 23), (100, 25), (250, 32), (500, 56), (750, 118), (900, 233), (950, 346), (990, 703))
LONGEST = (1000, 2823)
STARS = (1341, 827, 1158, 2865, 11837)
# An opinion word is this many times likelier when the rating is its own, one star off, two stars off, …
FAVOUR = (12, 7, 3, 1, 1)
PERMILLE_COMMA, PERMILLE_STOP, PERMILLE_QUOTE = 60, 80, 6

COMMON = (
    "the i and to it a is for of my this that in with on you have but not was as are so they can or be if these one "
    "use very all from at just had an them like up your no when would me more get has will out about only than well "
    "other there do what don't also time which now some I've much any after really even because using am we been "
    "used got by then over back does little new too go need it's want could first off set were into its while two "
    "I'm people how make who way it'll before doesn't here since should him through where can't most take see again "
    "down try each"
)
THINGS = (
    "sound headphones tv phone screen cable keyboard battery price case camera tablet music device unit card router "
    "speaker mouse charger computer quality product laptop usb hdmi power button adapter cord ear buds bass drive "
    "memory software signal box plug port light stand cover remote player radio gps lens mount apple amazon kindle "
    "nook ipad"
)
# For 1 to 5 stars, thirteen each.
OPINIONS = (
    "broke junk waste refund terrible useless returned dead worst garbage horrible awful defective",
    "disappointed cheap poor flimsy unfortunately problem wrong weak trouble loose annoying returning cracked",
    "okay decent average however fair mediocre alright somewhat adequate mixed acceptable middling expected",
    "good nice solid pleased works useful comfortable handy clear nearly satisfied minor reliable",
    "great love excellent perfect amazing best awesome recommend wonderful fantastic happy easily flawless",
)


def synthetic_reviews(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` reviews, dicts with the published keys (reviewerID, asin, helpful, reviewText, overall, summary,
    unixReviewTime, reviewTime). Raises DataError when `count` is negative."""
    if count < 0:
        raise DataError(f"count is {count}, but there can't be fewer than no reviews")
    for block in range(-(-count // BLOCK)):
        yield from _block(seed, block, min(BLOCK, count - block * BLOCK))


def write_synthetic(path: str | Path, count: int, seed: int, *, progress: Progress | None = None) -> None:
    """Write `count` synthetic reviews as JSON lines, compressed when the name ends in .gz.

    The lines are the same everywhere; the compressed bytes carry no time or name, so one zlib always gives the same.
    `progress` is called with the reviews done and `count`. Raises DataError when the file can't be written.
    """
    path = Path(path)
    with replaced(path) as file:
        out = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if path.suffix == ".gz" else file
        for number, review in enumerate(synthetic_reviews(count, seed), start=1):
            out.write(json.dumps(review).encode() + b"\n")
            if progress is not None and (number % BLOCK == 0 or number == count):
                progress(number, count)
        if out is not file:
            out.close()


def _block(seed: int, block: int, count: int) -> Iterator[dict[str, Any]]:
    """Up to BLOCK reviews; all are drawn, so that `count` does not change them."""
    raw = Raw(seed, "reviews", str(block))
    words, tables = _dictionary()
    stars = np.searchsorted(np.cumsum(STARS), raw.integers(0, sum(STARS), (BLOCK,)), side="right")
    lengths = _lengths(raw)
    ids = raw.integers(0, 10**9, (BLOCK, 3)).tolist()
    days = raw.integers(0, 5_500, (BLOCK,)).tolist()
    votes = raw.integers(0, 40, (BLOCK,)).tolist()
    share = raw.integers(0, 1 << 32, (int(lengths.sum()),))
    marks = raw.integers(0, 1000, (int(lengths.sum()),)).tolist()
    start = 0
    for row, (star, length) in enumerate(zip(stars.tolist(), lengths.tolist(), strict=True)):
        if row == count:
            return
        table = tables[star]
        # Which word: the share of the whole weight, in whole numbers.
        picked = np.searchsorted(table, (share[start : start + length] * int(table[-1])) >> 32, side="right")
        text = _text([words[i] for i in picked.tolist()], marks[start : start + length])
        start += length
        day = datetime.date(1999, 6, 1) + datetime.timedelta(days=days[row])
        helpful = max(0, votes[row] - 30)
        yield {
            "reviewerID": f"A{ids[row][0]:09d}{ids[row][1] % 10_000:04d}",
            "asin": f"B{ids[row][2]:09d}",
            "helpful": [helpful // 2, helpful],
            "reviewText": text,
            "overall": float(star + 1),
            "summary": " ".join(text.split()[:4]),
            "unixReviewTime": (day - datetime.date(1970, 1, 1)).days * 86_400,
            "reviewTime": f"{day.month:02d} {day.day}, {day.year}",
        }


def _lengths(raw: Raw) -> np.ndarray:
    """Words of each review, int64 [BLOCK]: the real shares, straight lines between them."""
    at, length = np.array([*LENGTHS, LONGEST], dtype=np.int64).T
    share = raw.integers(0, 1000, (BLOCK,))
    part = raw.integers(0, 1000, (BLOCK,))
    segment = np.searchsorted(at, share, side="right") - 1
    within = (share - at[segment]) * 1000 + part
    tokens = length[segment] + within * (length[segment + 1] - length[segment]) // (
        (at[segment + 1] - at[segment]) * 1000
    )
    return np.maximum(1, tokens * 85 // 100)  # the rest is punctuation


def _text(words: list[str], marks: list[int]) -> str:
    """Words into sentences."""
    pieces = []
    capital = True
    stop = PERMILLE_COMMA + PERMILLE_STOP
    for word, mark in zip(words, marks, strict=True):
        if capital:
            word, capital = word[0].upper() + word[1:], False
        if mark < PERMILLE_COMMA:
            word += ","
        elif mark < stop:
            word += "!" if mark % 16 == 0 else "..." if mark % 16 == 1 else "?" if mark % 16 == 2 else "."
            capital = True
        elif mark < stop + PERMILLE_QUOTE:
            word = f'"{word}"' if mark % 2 else f"({word})"
        pieces.append(word)
    return " ".join(pieces).rstrip(",.?!") + "."


@cache
def _dictionary() -> tuple[list[str], list[np.ndarray]]:
    """The words by falling frequency, and for each rating the running sum of their weights, int64 [words]."""
    opinions = {word: rating for rating, line in enumerate(OPINIONS) for word in line.split()}
    # One opinion word of each rating in turn among the things, so that all ratings have frequent ones.
    mixed = [word for words in zip(*(line.split() for line in OPINIONS), strict=True) for word in words]
    common = COMMON.split()
    head = list(dict.fromkeys([*common[:60], *_alternate(mixed, [*common[60:], *THINGS.split()])]))
    tail = (_made_up(number) for number in range(WORDS))
    words = list(dict.fromkeys([*head, *tail]))[:WORDS]
    rating = np.array([opinions.get(word, -1) for word in words])
    # Zipf's law, and from word 2,000 on twice as steep, as counts of real words are.
    rank = np.arange(len(words), dtype=np.int64) + 3
    zipf = (1 << 36) // (rank * np.maximum(2000, rank))
    tables = []
    for star in range(5):
        favour = np.where(rating < 0, 3, np.array(FAVOUR)[np.abs(rating.clip(0) - star)])
        tables.append(np.cumsum(zipf * favour))
    return words, tables


def _alternate(few: list[str], many: list[str]) -> Iterator[str]:
    """The lists interleaved until both have ended."""
    for index in range(max(len(few), len(many))):
        yield from few[index : index + 1]
        yield from many[index : index + 1]


def _made_up(number: int) -> str:
    """A different word or number for each number below a million."""
    if number % 12 == 0:
        return str(number // 12)
    scattered = number * 7919 % 1_000_000
    parts = (scattered % 100, scattered // 100 % 100, scattered // 10_000)
    return "".join("bcdfghjklmnprstvwxyz"[part // 5] + "aeiou"[part % 5] for part in parts)
