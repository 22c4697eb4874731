"""Small settings, so that a whole check of real twins takes about a second."""

from __future__ import annotations

from typing import Any

import pytest

from alignment import Options

SMALL: dict[str, dict[str, Any]] = {
    "fast-transformer-classifier": {"dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 12, "ff_mult": 2},
    "fastformer-classifier": {
        "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 12,
    },
    "fast-transformer": {"num_tokens": 30, "dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 12, "ff_mult": 2},
    "fastformer-text-classifier": {"vocab_size": 40, "embed": 16, "num_attention_heads": 2},
}  # fmt: skip
VOCABULARY = {"fast-transformer-classifier": {"num_tokens": 40}, "fastformer-classifier": {"vocab_size": 40}}


@pytest.fixture
def small():
    """small(twin, **options): options of a quick check of that twin, on fake data."""

    def make(twin: str, **options: Any) -> Options:
        settings = SMALL[twin] | VOCABULARY.get(twin, {}) | options.pop("settings", {})
        return Options(**{"settings": settings, "data": "fake", "batch_size": 3, "length": 8} | options)

    return make


@pytest.fixture
def small_arguments():
    """small_arguments(twin): the same for the command line."""

    def make(twin: str) -> list[str]:
        settings = SMALL[twin] | VOCABULARY.get(twin, {})
        assignments = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        return [twin, *assignments, "--data", "fake", "--batch-size", "3", "--length", "8"]

    return make
