"""Tokens and ids: exactly those of the plain route, whatever the text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_data.amazon import tokenize
from fake_data.amazon import tokens as tokens_module
from fake_data.amazon.tokens import Indexer


def plain(texts: list[str], lower: bool) -> tuple[list[int], list[int], list[str]]:
    """Ids, counts and words, one token at a time."""
    ids: dict[str, int] = {}
    flat, counts = [], []
    for text in texts:
        found = re.findall(r"\w+|[^\w\s]+", text.lower() if lower else text)
        counts.append(len(found))
        for token in found:
            if token not in ids:
                ids[token] = len(ids) + 1
            flat.append(ids[token])
    return flat, counts, list(ids)


def check(blocks: list[list[str]], lower: bool = True) -> None:
    indexer = Indexer(lower)
    parts = [indexer.index(block) for block in blocks]
    flat, counts, words = plain([text for block in blocks for text in block], lower)
    assert np.concatenate([part[0] for part in parts]).tolist() == flat
    assert np.concatenate([part[1] for part in parts]).tolist() == counts
    assert list(indexer.words()) == words
    assert all(part[0].dtype == np.int32 and part[1].dtype == np.int64 for part in parts)


any_text = st.text(max_size=80)
ascii_text = st.text(st.characters(max_codepoint=127), max_size=80)
# Few letters, so that words meet again; lengths around eight, where the route changes.
few_letters = st.text(st.sampled_from("abAB_0 .!\t\n\x1c\x1f\x7f"), max_size=60)
few_words = st.lists(
    st.sampled_from(["a", "bb", "Bb", "a2345678", "a23456789", "a234567890123456", "...", "!!!!!!!!!", "!!!!!!!!"])
).map(" ".join)
WORDS = ("a", "bb", "Bb", "a2345678", "a23456789", "a234567890123456", "...", "!!!!!!!!!", "!!!!!!!!")
few_words = st.lists(st.sampled_from(WORDS)).map(" ".join)
texts = st.one_of(any_text, ascii_text, few_letters, few_words)


@given(any_text)
def test_tokenize_is_the_expression(text: str):
    assert tokenize(text) == re.findall(r"\w+|[^\w\s]+", text.lower())
    assert tokenize(text, lower=False) == re.findall(r"\w+|[^\w\s]+", text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(texts, max_size=6), min_size=1, max_size=4), st.booleans(), st.sampled_from([1, 64, 1 << 12]))
def test_ids_are_those_of_the_plain_route(blocks: list[list[str]], lower: bool, smallest_run: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "SMALLEST_RUN", smallest_run)
        patch.setattr(tokens_module, "FIRST_PIECE", 16)
        check(blocks, lower)


@pytest.mark.parametrize("table", [1, 2, 16, 1 << 16])
def test_a_table_that_is_too_small_only_costs_time(monkeypatch: pytest.MonkeyPatch, table: int):
    """With few slots nearly every word meets another's slot; with the growth forbidden it stays so."""
    monkeypatch.setattr(tokens_module, "LARGEST_TABLE", table)
    original = Indexer._make_table
    monkeypatch.setattr(Indexer, "_make_table", lambda self, size: original(self, max(2, min(size, table))))
    words = [f"w{number % 700} {'x' * (number % 13)} {number % 11}!" for number in range(4000)]
    check([words[:1000], words[1000:]])


def test_a_vocabulary_larger_than_the_first_table(monkeypatch: pytest.MonkeyPatch):
    numbers = [
        " ".join(str(number * 7919 % 90_000) for number in range(start, start + 50)) for start in range(0, 120_000, 50)
    ]
    check([numbers[:900], numbers[900:]])


def test_ascii_kinds_are_those_of_the_expression():
    every = [chr(code) for code in range(128)]
    check([[f"a{char}b{char}{char} " * 700 for char in every if char != "\0"], every])


def test_a_nul_is_a_character_like_others():
    check([["! !\0 \0! a\0 a \0 \0\0 " * 400] * 6])


def test_nothing_gives_nothing():
    for block in ([], [""], ["", " ", "\n"]):
        ids, counts = Indexer().index(block)
        assert ids.tolist() == []
        assert counts.tolist() == [0] * len(block)
