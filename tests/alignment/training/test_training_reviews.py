"""The reviews as a task: what each part holds, in the form a twin takes, and a hash that knows them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from alignment.errors import AlignmentError
from alignment.training.reviews import PARTS, ReviewTask, read_task
from alignment.twins import get_twin
from fake_data.amazon import random_split, synthetic_reviews, tokenise_reviews


def task_of(name: str = "fast-transformer-classifier", **options) -> ReviewTask:
    twin = get_twin(name)
    return read_task(twin, {**twin.settings, "num_classes": 5}, **{"reviews": 200, "length": 10, **options})


def test_the_parts_are_those_of_the_split() -> None:
    task = task_of(split="random", split_seed=3)
    tokenised = tokenise_reviews(synthetic_reviews(200, 0))
    split = random_split(200, seed=3)
    for name in PARTS:
        rows = getattr(split, name)
        assert np.array_equal(task.part(name).labels, tokenised.labels[rows])
        assert task.part(name).inputs["input_ids"].shape == (len(rows), 10)
    words = [task.words[number] for number in task.test.inputs["input_ids"][0] if number]
    assert len(words) == 10 or len(words) == tokenised.encode(split.test[:1], length=10).ids.astype(bool).sum()
    assert task.settings["num_tokens"] == len(task.words)


def test_a_balanced_split_has_as_many_of_each() -> None:
    task = task_of(reviews=2000)
    for name in PARTS:
        assert len(set(np.bincount(task.part(name).labels).tolist())) == 1


def test_padding_at_the_end_of_the_vocabulary() -> None:
    first, last = task_of(split="random"), task_of("fastformer-text-classifier", split="random")
    ids, moved = first.train.inputs["input_ids"], last.train.inputs["input_ids"]
    assert np.array_equal(last.train.inputs["mask"], ids != 0)
    assert np.array_equal(moved[ids != 0], ids[ids != 0] - 1)
    assert set(moved[ids == 0].tolist()) == {last.settings["vocab_size"] - 1}
    assert np.array_equal(first.train.labels, last.train.labels)


def test_an_epoch_deals_every_row_once_in_an_order_of_its_own() -> None:
    part = task_of(split="random").train
    seen = [np.concatenate([b.inputs["input_ids"] for b in part.feed(7, seed=5).epoch(epoch)]) for epoch in (0, 1)]
    assert not np.array_equal(seen[0], seen[1])
    for rows in seen:
        assert sorted(map(tuple, rows)) == sorted(map(tuple, part.inputs["input_ids"]))
    stored = np.concatenate([batch.inputs["input_ids"] for batch in part.feed(7).epoch()])
    assert np.array_equal(stored, part.inputs["input_ids"])
    assert len(part.first(3)) == 3


@pytest.mark.parametrize(
    "other", [{"split_seed": 1}, {"length": 9}, {"min_count": 1}, {"max_words": 20}, {"reviews": 210}]
)
def test_the_hash_knows_other_reviews(other) -> None:
    assert task_of(split="random").hash == task_of(split="random").hash != task_of(**{"split": "random", **other}).hash


def test_rare_words_are_one_word() -> None:
    task = task_of(split="random", max_words=20)
    assert len(task.words) == 22
    assert (task.words[0], task.words[-1]) == ("<padding>", "<unknown>")


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(AlignmentError, match="length 129 is more than the 128 tokens"):
        task_of(length=129)
    twin = get_twin("fast-transformer-classifier")
    with pytest.raises(AlignmentError, match="num_classes=4 is too small"):
        read_task(twin, {**twin.settings, "num_classes": 4}, reviews=100)


def test_classes_that_no_review_has_are_noted() -> None:
    twin = get_twin("fastformer-text-classifier")
    said = read_task(twin, {**twin.settings, "num_classes": 10}, reviews=400, length=10).notes
    assert "the model tells 10 classes apart, and reviews have 5: --set num_classes=5" in said
    assert not any("classes" in note for note in task_of("fastformer-text-classifier", reviews=400).notes)


@pytest.mark.slow
def test_what_counting_words_gives(monkeypatch, capsys) -> None:
    pytest.importorskip("sklearn")
    from benchmarks import reviews_baseline

    monkeypatch.setattr(sys, "argv", ["reviews_baseline", "3000"])
    reviews_baseline.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3,000 reviews; train 480, validation 60, test 60"
    assert lines[1].split()[-4:] == ["accuracy", "20.00", "macro-F", "6.67"]
    assert float(lines[2].split("accuracy")[1].split()[0]) > 30
