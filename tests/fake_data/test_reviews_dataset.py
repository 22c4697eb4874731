"""Encoded reviews, their vocabulary and splits, the made-up ones, and the real sample where it is at hand."""

from __future__ import annotations

import collections
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_data import DataError
from fake_data.amazon import (
    EncodedReviews,
    balanced_split,
    encode_reviews,
    random_split,
    reader,
    review_batch,
    synthetic_reviews,
    tokenise_reviews,
    write_synthetic,
)


def plain(reviews: list[dict], length: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    ids: dict[str, int] = {}
    data = np.zeros((len(reviews), length), dtype=np.int32)
    for row, review in enumerate(reviews):
        tokens = re.findall(r"\w+|[^\w\s]+", review["reviewText"].lower())
        line = [ids.setdefault(token, len(ids) + 1) for token in tokens][:length]
        data[row, : len(line)] = line
    return data, np.array([int(review["overall"]) - 1 for review in reviews]), ("<padding>", *ids)


def assert_same(reviews: EncodedReviews, expected: tuple[np.ndarray, np.ndarray, tuple[str, ...]]) -> None:
    assert reviews.ids.dtype == np.int32
    assert reviews.labels.dtype == np.int64
    assert np.array_equal(reviews.ids, expected[0])
    assert np.array_equal(reviews.labels, expected[1])
    assert reviews.vocabulary.words == expected[2]
    assert reviews.num_tokens == len(expected[2])


@pytest.mark.parametrize("length", [1, 20, 512])
def test_synthetic_reviews_are_encoded_as_the_plain_route_does(length: int):
    rows = list(synthetic_reviews(700, 1))
    assert_same(encode_reviews(iter(rows), length=length), plain(rows, length))
    assert_same(encode_reviews(rows, length=length, max_reviews=33), plain(rows[:33], length))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("abc é."), max_size=12), min_size=1, max_size=10),
    st.integers(1, 6),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 5)),
    st.sampled_from(["appearance", "frequency"]),
    st.data(),
)
def test_a_selection_has_the_vocabulary_of_just_its_reviews(texts, length, min_count, max_size, order, data):
    rows = [{"reviewText": text, "overall": 1 + index % 5} for index, text in enumerate(texts)]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True, min_size=1))
    options = {"length": length, "min_count": min_count, "max_size": max_size, "order": order}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "ROWS_A_BLOCK", data.draw(st.integers(1, 4)))  # several parts
        found = tokenise_reviews(rows).encode(np.array(chosen), **options)

    tokens = {row: re.findall(r"\w+|[^\w\s]+", texts[row].lower()) for row in sorted(chosen)}
    counts = collections.Counter(token for row in tokens.values() for token in row)  # in order of first appearance
    common = [word for word, count in counts.most_common() if count >= min_count][:max_size]
    kept = common if order == "frequency" else [word for word in counts if word in common]
    limited = len(kept) < len(counts)
    ids = {word: number for number, word in enumerate(kept, start=1)}
    expected = np.zeros((len(chosen), length), dtype=np.int32)
    for index, row in enumerate(chosen):
        line = [ids.get(token, len(kept) + 1) for token in tokens[row]][:length]
        expected[index, : len(line)] = line
    words = ("<padding>", *kept, *(["<unknown>"] if limited else []))
    assert_same(found, (expected, np.array([row % 5 for row in chosen]), words))


def test_reviews_without_words_are_noted():
    rows = [{"reviewText": text, "overall": 5} for text in ("", " \n", "a")]
    reviews = encode_reviews(rows, length=3)
    assert reviews.ids.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert reviews.notes == ("2 reviews have no word: wholly padded rows",)


def test_arguments_out_of_range_are_refused():
    rows = list(synthetic_reviews(3, 0))
    for options in ({"length": 0}, {"min_count": 0}, {"max_size": 0}, {"max_reviews": 0}, {"order": "size"}):
        with pytest.raises(DataError):
            encode_reviews(rows, **options)
    with pytest.raises(DataError, match="rows are out of range"):
        tokenise_reviews(rows).encode(np.array([3]))
    with pytest.raises(DataError, match="count"):
        list(synthetic_reviews(-1, 0))


def test_a_batch_of_reviews():
    reviews = encode_reviews(synthetic_reviews(10, 0), length=40)
    batch = review_batch(reviews, batch_size=3, length=25, start=2, input_name="x", mask_name="mask", name="real")
    assert batch.name == "real"
    assert list(batch.inputs) == ["x", "mask"]
    assert batch.inputs["x"].dtype == np.int64
    assert np.array_equal(batch.inputs["x"], reviews.ids[2:5, :25])
    assert np.array_equal(batch.inputs["mask"], reviews.ids[2:5, :25] != 0)
    assert batch.targets.tolist() == reviews.labels[2:5].tolist()
    assert list(review_batch(reviews, batch_size=1).inputs) == ["input_ids"]
    for options in (
        {"batch_size": 11},
        {"batch_size": 2, "start": 9},
        {"batch_size": 1, "length": 41},
        {"batch_size": 0},
    ):
        with pytest.raises(DataError):
            review_batch(reviews, **options)


def test_synthetic_reviews_never_change():
    lines = "".join(json.dumps(review) + "\n" for review in synthetic_reviews(600, 3))
    assert (
        hashlib.sha256(lines.encode()).hexdigest() == "467baac9135e4db80826669616e3aa2f684814f7a8f4fe95f7d9f9162fa53a4b"
    )
    first = list(synthetic_reviews(300, 3))
    assert first == list(synthetic_reviews(600, 3))[:300]
    assert first != list(synthetic_reviews(300, 4))


def test_synthetic_reviews_have_the_published_form():
    keys = ["reviewerID", "asin", "helpful", "reviewText", "overall", "summary", "unixReviewTime", "reviewTime"]
    rows = list(synthetic_reviews(4000, 0))
    assert all(list(row) == keys for row in rows)
    stars = collections.Counter(row["overall"] for row in rows)
    assert 0.6 < stars[5.0] / len(rows) < 0.7
    assert all(stars[float(star)] > 100 for star in range(1, 6))
    reviews = encode_reviews(rows)
    lengths = (reviews.ids != 0).sum(axis=1)
    assert 45 < np.median(lengths) < 65
    assert lengths.max() == 512
    assert lengths.min() < 20


def test_ratings_can_be_learned_but_not_easily():
    """Naive Bayes over the words, as many reviews of each rating: well above the chance of 0.2."""
    reviews = encode_reviews(synthetic_reviews(6000, 5), max_size=3000)
    fewest = int(np.bincount(reviews.labels).min())
    rows = np.concatenate([np.flatnonzero(reviews.labels == label)[:fewest] for label in range(5)])
    bags = np.stack([np.bincount(reviews.ids[row], minlength=reviews.num_tokens) for row in rows])
    bags[:, 0] = 0
    train = np.arange(len(rows)) % 4 > 0
    labels = reviews.labels[rows]
    weights = np.stack([bags[train & (labels == label)].sum(axis=0) + 1 for label in range(5)])
    scores = bags[~train] @ np.log(weights / weights.sum(axis=1, keepdims=True)).T
    right = (scores.argmax(axis=1) == labels[~train]).mean()
    assert 0.4 < right < 0.8


def test_written_reviews_are_the_same_bytes_each_time(tmp_path: Path):
    done: list[tuple[int, int]] = []
    for name in ("a.json.gz", "b.json.gz", "c.json"):
        write_synthetic(tmp_path / name, 300, 2, progress=lambda *step: done.append(step))
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    assert (tmp_path / "a.json.gz").read_bytes()[3:8] == bytes(5)  # no name, no time
    content = (tmp_path / "c.json").read_bytes()
    assert gzip.decompress((tmp_path / "a.json.gz").read_bytes()) == content
    assert [json.loads(line) for line in content.splitlines()] == list(synthetic_reviews(300, 2))
    assert done[-1] == (300, 300)
    assert_same(encode_reviews(tmp_path / "a.json.gz"), plain(list(synthetic_reviews(300, 2)), 512))


EVERYTHING = "650d6d260fcb0d99daa344a1374aff67be2da66d2554cfaa731026b324cfb43d"


def everything() -> str:
    tokenised = tokenise_reviews(synthetic_reviews(500, 0))
    split = balanced_split(tokenised.labels, seed=1)
    reviews = tokenised.encode(split.rows(), length=64, max_size=500)
    content = reviews.ids.tobytes() + reviews.labels.tobytes() + "\n".join(reviews.vocabulary.words).encode()
    return hashlib.sha256(content + random_split(500, seed=1).rows().tobytes()).hexdigest()


def test_another_process_with_another_hash_seed_gives_the_same():
    assert everything() == EVERYTHING
    code = "import test_reviews_dataset as t; print(t.everything())"
    environment = {**os.environ, "PYTHONHASHSEED": "3", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == EVERYTHING


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(10, 60), min_size=5, max_size=5), st.integers(0, 2**64))
def test_a_balanced_split_is_balanced_and_disjoint(counts: list[int], seed: int):
    labels = np.repeat(np.arange(5), counts)
    split = balanced_split(labels, seed=seed)
    unit = min(counts) // 10
    for rows, share in ((split.train, 8), (split.validation, 1), (split.test, 1)):
        assert np.bincount(labels[rows], minlength=5).tolist() == [share * unit] * 5
    assert len(np.unique(split.rows())) == len(split.rows()) == 50 * unit
    assert f"{8 * unit:,} / {unit:,} / {unit:,}" in split.notes[0]
    assert np.array_equal(split.rows(), balanced_split(labels, seed=seed).rows())


def test_splits_have_the_published_sizes_where_there_are_enough():
    labels = np.arange(60_000) % 5
    split = balanced_split(labels, seed=0)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [40_000, 5_000, 5_000]
    assert split.notes == ()
    assert not np.array_equal(split.train, balanced_split(labels, seed=1).train)
    assert (labels[split.train][:-1] != labels[split.train][1:]).mean() > 0.7  # classes mixed
    split = random_split(60_000, seed=0)
    assert split.parts() == {"train": (0, 40_000), "validation": (40_000, 45_000), "test": (45_000, 50_000)}
    assert split.notes == ()
    assert len(np.unique(split.rows())) == 50_000
    split = random_split(105, seed=0)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [80, 10, 10]
    assert "80 / 10 / 10" in split.notes[0]


def test_too_few_to_split_is_refused():
    with pytest.raises(DataError, match="9 have 3 stars"):
        balanced_split(np.repeat(np.arange(5), [20, 20, 9, 20, 20]), seed=0)
    with pytest.raises(DataError, match="0 have 5 stars"):
        balanced_split(np.repeat(np.arange(4), 20), seed=0)
    with pytest.raises(DataError, match="there are 9"):
        random_split(9, seed=0)


def real(folder: Path, name: str) -> tuple[Path, list[dict]]:
    path = folder / f"reviews_Electronics_{name}.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return path, [json.loads(line) for line in file]


@pytest.mark.parametrize(("name", "count"), [("sample", 18_028), ("other_products", 3_180)])
def test_the_real_sample_is_encoded_as_the_plain_route_does(amazon_dir: Path, name: str, count: int):
    path, rows = real(amazon_dir, name)
    reviews = encode_reviews(path, strict=True)
    assert len(reviews.labels) == count
    assert (reviews.bad, reviews.notes) == (0, ())
    assert_same(reviews, plain(rows, 512))


def test_real_python_literals_are_the_first_reviews_again(amazon_dir: Path):
    literal = encode_reviews(amazon_dir / "reviews_Electronics_python_literal.json.gz", strict=True)
    assert len(literal.labels) == 500
    assert_same(literal, plain(real(amazon_dir, "sample")[1][:500], 512))
    first = encode_reviews(amazon_dir / "reviews_Electronics_sample.json.gz", max_reviews=500)
    assert_same(literal, (first.ids, first.labels, first.vocabulary.words))
