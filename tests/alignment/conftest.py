"""Small settings, so that a whole check of real twins takes about a second."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from alignment import Options, Side, Twin
from checkpoints import NameMap, Rename
from fake_data import Ids, InputSpec, Labels

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


def original():
    import torch

    class Original(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = torch.nn.Embedding(10, 6)
            self.up = torch.nn.Linear(6, 6)
            self.act = torch.nn.GELU()
            self.head = torch.nn.Linear(6, 3)

        def forward(self, ids):
            return self.head(self.act(self.up(self.emb(ids))).mean(1))

    return Original()


def renamed(wrong: bool):
    import paddle

    class Renamed(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.table = paddle.nn.Embedding(10, 6)
            self.first = paddle.nn.Linear(6, 6)
            self.gelu = paddle.nn.GELU(approximate=wrong)
            self.last = paddle.nn.Linear(6, 3)

        def forward(self, ids):
            return self.last(self.gelu(self.first(self.table(ids))).mean(1))

    return Renamed()


@pytest.fixture
def renamed_twin(monkeypatch):
    """renamed_twin(wrong): a twin of two-layer models whose modules are called otherwise; wrong: GELU in another form."""

    def make(wrong: bool) -> Twin:
        module = types.ModuleType("alignment_test_renamed")
        module.Original, module.Renamed = original, lambda: renamed(wrong)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "alignment_test_renamed", module)
        names = (("emb", "table"), ("up", "first"), ("head", "last"))
        return Twin(
            "renamed",
            "modules of other names",
            Side("torch", "alignment_test_renamed:Original"),
            Side("paddle", "alignment_test_renamed:Renamed"),
            {},
            lambda _: InputSpec({"ids": Ids(0, 10, ("B", "N")), "targets": Labels(3, ("B",))}, max_length=8),
            loss="criterion",
            names=NameMap(tuple(Rename(rf"{one}\.(.*)", rf"{two}.\1") for one, two in names)),
        )

    return make
