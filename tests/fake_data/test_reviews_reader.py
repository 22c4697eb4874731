"""The reader of review files: the published formats, whatever the lines hold, in bounded memory."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_data import DataError
from fake_data.amazon import BadLine, ReviewReader, encode_reviews
from fake_data.amazon import _lines as lines

GOOD = b'{"reviewText": "fine", "overall": 4.0}'


def read(path: Path, **options: object) -> tuple[list[str], list[int], ReviewReader]:
    reader = ReviewReader(path, **options)
    texts: list[str] = []
    labels: list[int] = []
    for block in reader.blocks():
        texts += block.texts
        labels += block.labels
    return texts, labels, reader


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def bad(tmp_path: Path, line: bytes) -> str:
    """What is wrong with a line between two good ones."""
    path = write(tmp_path / "reviews", GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    texts, labels, reader = read(path)
    assert (texts, labels) == (["fine", "fine"], [3, 3])
    assert reader.bad == 1
    assert reader.bad_lines[0].number == 2
    with pytest.raises(DataError, match=r"reviews, line 2: "):
        read(path, strict=True)
    return reader.bad_lines[0].why


texts_of_all_kinds = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
reviews = st.fixed_dictionaries(
    {
        "reviewText": texts_of_all_kinds,
        "overall": st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, 1, 5]),
        "helpful": st.lists(st.integers(0, 2**60), max_size=2),
        "summary": texts_of_all_kinds,
    }
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(reviews, st.sampled_from(["json", "ascii", "literal"])), min_size=1, max_size=12),
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n"]),
    compressed=st.booleans(),
    bom=st.booleans(),
    last=st.booleans(),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_both_formats_are_read_as_json_and_ast_read_them(tmp_path_factory, rows, end, compressed, bom, last, sizes):
    forms = {"json": lambda r: json.dumps(r, ensure_ascii=False), "ascii": json.dumps, "literal": repr}
    content = end.join(forms[form](review) for review, form in rows) + (end if last else "")
    content = ("\ufeff" if bom else "") + content
    data = gzip.compress(content.encode()) if compressed else content.encode()
    path = write(tmp_path_factory.mktemp("r") / "reviews.txt", data)
    with pytest.MonkeyPatch.context() as patch:
        # Tiny reads: every line is met in pieces.
        patch.setattr(lines, "READ", sizes[0])
        patch.setattr(lines, "BLOCK", sizes[1])
        texts, labels, reader = read(path, strict=True)
    assert texts == [review["reviewText"] for review, _ in rows]
    assert labels == [int(review["overall"]) - 1 for review, _ in rows]
    assert (reader.read, reader.bad) == (len(rows), 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=50), st.just(GOOD)), max_size=8))
def test_no_bytes_make_it_fail_otherwise_than_by_saying_so(tmp_path_factory, rows):
    path = write(tmp_path_factory.mktemp("r") / "reviews", b"\n".join(rows))
    try:
        texts, _, reader = read(path)
    except DataError:
        # Nothing in it, a piece of gzip, or no line that is a review.
        assert GOOD not in rows or rows[0][:2] == b"\x1f\x8b"
        return
    assert len(texts) >= rows.count(GOOD)
    assert reader.read == len(texts) > 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"nonsense", "not a dict"),
        (b"{nonsense", "neither JSON nor"),
        (b'["reviewText", "overall"]', "not a dict"),
        (b"17", "not a dict"),
        (b'{"overall": 4.0}', 'no "reviewText"'),
        (b'{"reviewText": "a"}', 'no "overall"'),
        (b'{"reviewText": null, "overall": 4.0}', "no text"),
        (b'{"reviewText": "a", "overall": "4.0"}', "no number"),
        (b'{"reviewText": "a", "overall": true}', "no number"),
        (b'{"reviewText": "a", "overall": [4.0]}', "no number"),
        (b'{"reviewText": "a", "overall": 0.0}', "is 0,"),
        (b'{"reviewText": "a", "overall": 6}', "is 6,"),
        (b'{"reviewText": "a", "overall": 3.5}', "is 3.5,"),
        (b'{"reviewText": "a", "overall": 1e999}', '"overall"|neither'),
        (b"{'reviewText': 'a', 'overall': 1e999}", "inf"),
        (b"{'reviewText': 'a', 'overall': " + b"9" * 4000 + b"}", "far out"),
        (b"{'reviewText': 'a', 'overall': " + b"9" * 5000 + b"}", "neither JSON nor"),
        (b"{'reviewText': 'a', 'overall': 4.0", "neither JSON nor"),
        (b"{'reviewText': '\\ud800', 'overall': 4.0}", "surrogate"),
        (b'{"reviewText": "\\ud800", "overall": 4.0}', "surrogate"),
        (b'{"reviewText": "\xff", "overall": 4.0}', "not UTF-8"),
        (b'{"reviewText": "a\0", "overall": 4.0}', "neither JSON nor"),
        (b"\0\0\0", "not a dict"),
        (b"{'reviewText': __import__('os').getcwd(), 'overall': 4.0}", "neither JSON nor"),
        (b"{'reviewText': 'a' * 10, 'overall': 4.0}", "neither JSON nor"),
        (b"{'reviewText': b'a', 'overall': 4.0}", "no text"),
        (b"{'a': [], []: 1}", "neither JSON nor"),
        (b"[" * 500_000, "not a dict"),
        (b'{"a": ' + b"[" * 500_000, "neither JSON nor"),
        (b'{"a":' * 100_000, "neither JSON nor"),
        (b"{'a': " + b"-" * 500_000 + b"1}", "neither JSON nor"),
        (b"{'a': " + b"1+" * 200_000 + b"1}", "neither JSON nor"),
        (b"{'reviewText': '" + b"a" * (1 << 20) + b"', 'overall': 4.0}", "longer than 1 MiB"),
        (b'{"reviewText": "' + b"a" * (1 << 20) + b'", "overall": 4.0}', "longer than 1 MiB"),
    ],
    ids=lambda value: str(value[:40]),
)
def test_a_bad_line_is_counted_with_its_number(tmp_path: Path, line: bytes, says: str):
    assert re.search(says, bad(tmp_path, line))


def test_a_literal_with_odd_escapes_warns_nobody(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    texts, _, _ = read(write(tmp_path / "r", b"{'reviewText': 'a\\d', 'overall': 4.0}"))
    assert texts == ["a\\d"]
    assert not recwarn.list


def test_only_the_first_bad_lines_are_kept(tmp_path: Path):
    _, _, reader = read(write(tmp_path / "r", b"x\n" * 500 + GOOD))
    assert reader.bad == 500
    assert reader.bad_lines == tuple(BadLine(number, "not a dict") for number in range(1, 21))


def test_numbers_count_across_blocks_and_blank_lines(tmp_path: Path):
    content = b"\n".join([GOOD, b"", GOOD] * 20_000 + [b"x", GOOD, b"y"])
    texts, _, reader = read(write(tmp_path / "r", gzip.compress(content)))
    assert len(texts) == 40_001
    assert [line.number for line in reader.bad_lines] == [60_001, 60_003]


def test_dicts_are_read_like_lines():
    reader = ReviewReader([{"reviewText": "a", "overall": 5}, {"overall": 5}, "x", None])  # type: ignore[list-item]
    assert [block.texts for block in reader.blocks()] == [["a"]]
    assert [line.number for line in reader.bad_lines] == [2, 3, 4]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        pytest.param(gzip.compress(b"", mtime=0), "is empty", id="packed and empty"),
        (b"\n \n", "only blank lines"),
        (b"x\ny\n", "holds no review: line 1: not a dict"),
        (b"\xef\xbb\xbf", "only blank lines"),
    ],
)
def test_a_file_without_reviews_says_so(tmp_path: Path, content: bytes, says: str):
    path = write(tmp_path / "reviews.gz", content)
    with pytest.raises(DataError, match=rf"reviews\.gz.*{says}"):
        read(path)


def test_no_file_and_no_reviews_say_so(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a directory"):
        read(tmp_path)
    with pytest.raises(DataError, match="the reviews is empty"):
        encode_reviews([])


def test_compression_is_told_by_content_not_name(tmp_path: Path):
    assert read(write(tmp_path / "plain.gz", GOOD))[0] == ["fine"]
    assert read(write(tmp_path / "packed.json", gzip.compress(GOOD)))[0] == ["fine"]


def test_members_of_gzip_follow_one_another(tmp_path: Path):
    parts = [GOOD + b"\n", b"", GOOD[:10], GOOD[10:] + b"\n"]
    content = b"".join(gzip.compress(part) for part in parts)
    for padding in (b"", b"\0" * 700):
        assert read(write(tmp_path / "r", content + padding))[0] == ["fine", "fine"]
    with pytest.raises(DataError, match="damaged"):
        read(write(tmp_path / "r", content + b"rubbish"))


@pytest.mark.parametrize("cut", [5, 12, 1000, -1, -8, -9])
def test_a_cut_file_is_refused_unless_allowed(tmp_path: Path, cut: int):
    rows = [json.dumps({"reviewText": f"review {number}", "overall": 5.0}) for number in range(5000)]
    whole = gzip.compress("\n".join(rows).encode())
    path = write(tmp_path / "cut.json.gz", whole[:cut])
    with pytest.raises(DataError, match=r"cut\.json\.gz: .*ends too early after [\d,]+ reviews"):
        read(path)
    if cut in (5, 12):
        with pytest.raises(DataError, match="holds no review: its gzip data ends too early"):
            read(path, allow_truncated=True)
        return
    texts, _, reader = read(path, allow_truncated=True)
    assert "ends too early" in reader.truncated
    assert texts == [f"review {number}" for number in range(len(texts))]
    assert len(texts) >= {1000: 1, -1: 4999, -8: 4999, -9: 4999}[cut]
    assert reader.bad == 0
    encoded = encode_reviews(path, allow_truncated=True, length=4)
    assert "ends too early" in encoded.notes[0]


def test_a_damaged_byte_is_found(tmp_path: Path):
    whole = bytearray(gzip.compress(b"\n".join([GOOD] * 5000)))
    whole[-6] ^= 1  # of the checksum
    with pytest.raises(DataError, match="damaged"):
        read(write(tmp_path / "r", bytes(whole)))


def test_reading_is_lazy(tmp_path: Path):
    rows = b"\n".join([GOOD] * 300_000)
    path = write(tmp_path / "r", gzip.compress(rows)[:-50])  # cut far behind what is wanted
    seen: list[tuple[int, int]] = []
    plain = write(tmp_path / "p", rows)
    encoded = encode_reviews(plain, max_reviews=10, length=4, progress=lambda done, total: seen.append((done, total)))
    assert encoded.ids.shape == (10, 4)
    assert seen == [(lines.READ, len(rows))]
    assert encode_reviews(path, max_reviews=1000, length=4).ids.shape == (1000, 4)


def test_progress_ends_at_the_size_of_the_file(tmp_path: Path):
    path = write(tmp_path / "r", gzip.compress(b"\n".join([GOOD] * 1000)))
    seen: list[tuple[int, int]] = []
    read(path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def test_a_bomb_does_not_fill_memory(tmp_path: Path):
    """One line of 256 MiB in a file of 256 KiB: refused as a line, within a dozen megabytes or two."""
    path = tmp_path / "bomb.gz"
    packer = zlib.compressobj(9, wbits=31)
    with path.open("wb") as file:
        file.write(packer.compress(GOOD + b"\n"))
        for _ in range(128):
            file.write(packer.compress(bytes(1 << 21)))
        file.write(packer.flush())
    code = (
        "import sys, psutil; from fake_data.amazon import ReviewReader\n"
        "before = psutil.Process().memory_info().rss\n"
        "reader = ReviewReader(sys.argv[1], progress=lambda d, t: peaks.append(psutil.Process().memory_info().rss))\n"
        "peaks = [before]\n"
        "n = sum(len(b.texts) for b in reader.blocks())\n"
        "print(n, reader.bad, (max(peaks) - before) >> 20)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    good, bad_count, megabytes = map(int, done.stdout.split())
    assert (good, bad_count) == (1, 1)
    assert megabytes < 40
