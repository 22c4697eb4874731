"""Wrong arguments: a ValueError that says which, what was given and what is allowed, in the same words on both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import helpers
from .test_models_properties import SMALL

IDS = np.ones((2, 5), np.int64)
MASK = np.ones((2, 5), bool)
TARGETS = np.ones(2, np.int64)
CLASSIFIERS = ("FastformerClassifier", "FastTransformerClassifier", "FastformerTextClassifier")


def message(call: Callable[[str], Any]) -> str:
    """What both frameworks say, which must be the same."""
    texts = []
    for framework in helpers.FRAMEWORKS:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared by the caller)
            call(framework)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    return texts[0]


SETTINGS = [
    (
        "FastformerClassifier",
        {"hidden_size": 13},
        "hidden_size must be a multiple of num_attention_heads, but 13 is no multiple of 3",
    ),
    ("FastformerClassifier", {"vocab_size": 0}, "vocab_size must be an integer of at least 1, not 0"),
    ("FastformerClassifier", {"num_hidden_layers": -2}, "num_hidden_layers must be an integer of at least 1, not -2"),
    ("FastformerClassifier", {"intermediate_size": 2.5}, "intermediate_size must be an integer of at least 1, not 2.5"),
    ("FastformerClassifier", {"pooler_count": True}, "pooler_count must be an integer of at least 1, not True"),
    ("FastformerClassifier", {"dropout": 1.0}, "dropout must be a number in [0, 1), not 1.0"),
    ("FastformerClassifier", {"layer_norm_eps": -1e-5}, "layer_norm_eps must be a number in [0, inf), not -1e-05"),
    (
        "FastformerClassifier",
        {"initializer_range": "0.02"},
        "initializer_range must be a number in [0, inf), not '0.02'",
    ),
    (
        "FastTransformer",
        {"dim_head": 6},
        "dim_head must be a multiple of 4 (rotary positions), but 6 is no multiple of 4",
    ),
    ("FastTransformer", {"depth": 0}, "depth must be an integer of at least 1, not 0"),
    ("FastTransformer", {"max_seq_len": None}, "max_seq_len must be an integer of at least 1, not None"),
    ("FastTransformerClassifier", {"num_classes": 0}, "num_classes must be an integer of at least 1, not 0"),
    ("FastTransformerClassifier", {"dropout": float("nan")}, "dropout must be a number in [0, 1), not nan"),
    (
        "FastformerTextClassifier",
        {"embed": 10},
        "embed must be a multiple of num_attention_heads, but 10 is no multiple of 3",
    ),
    ("FastformerTextClassifier", {"dropout": -0.1}, "dropout must be a number in [0, 1), not -0.1"),
    (
        "FastformerTextClassifier",
        {"embeddings": np.zeros((30, 11))},
        "embeddings must be a floating-point array of shape [30, 12] [vocab_size, embed], not float64 of shape [30, 11]",
    ),
    (
        "FastformerTextClassifier",
        {"embeddings": np.zeros((30, 12), int)},
        "embeddings must be a floating-point array of shape [30, 12] [vocab_size, embed], not int64 of shape [30, 12]",
    ),
    (
        "FastformerTextClassifier",
        {"embeddings": np.where(np.arange(360).reshape(30, 12) < 2, np.nan, 0.0)},
        "embeddings must be finite and at most 3.403e+38 in size; 2 values are not",
    ),
    (
        "FastformerTextClassifier",
        {"embeddings": np.full((30, 12), 1e39)},
        "embeddings must be finite and at most 3.403e+38 in size; 360 values are not",
    ),
]


@pytest.mark.parametrize(("name", "wrong", "expected"), SETTINGS, ids=[f"{n}-{next(iter(w))}" for n, w, _ in SETTINGS])
def test_settings(name: str, wrong: dict[str, Any], expected: str) -> None:
    assert message(lambda framework: helpers.build(framework, name, **(SMALL[name] | wrong))) == expected


@pytest.mark.parametrize("framework", helpers.FRAMEWORKS)
@pytest.mark.parametrize("name", SMALL)
def test_constructors_take_keywords_only(name: str, framework: str) -> None:
    cls = type(helpers.build(framework, name, **SMALL[name]))
    with pytest.raises(TypeError):
        cls(*SMALL[name].values())


def call(name: str, ids: Any, mask: Any = MASK, targets: Any = None) -> Callable[[str], Any]:
    def run(framework: str) -> Any:
        model = helpers.build(framework, name, **SMALL[name])
        made = [
            v if v is None or isinstance(v, (list, str)) else helpers.tensor(framework, v) for v in (ids, mask, targets)
        ]
        if name == "FastTransformer":
            return model(made[0], made[1])
        if name == "FastformerTextClassifier":
            return model(*made)
        return model(made[0], made[2])

    return run


def first(name: str) -> str:
    return "x" if name == "FastTransformer" else "input_ids"


def rows(name: str) -> str:
    return next(iter(set(SMALL[name]) & {"vocab_size", "num_tokens"}))


@pytest.mark.parametrize("name", SMALL)
def test_ids(name: str) -> None:
    ids = first(name)
    assert message(call(name, [[1, 2]])) == f"{ids} must be a tensor, int64 [batch, length], not list"
    assert message(call(name, IDS[0])) == f"{ids} must be int64 [batch, length], not int64 of shape [5]"
    assert (
        message(call(name, IDS.astype(np.float32)))
        == f"{ids} must be int64 [batch, length], not float32 of shape [2, 5]"
    )
    assert (
        message(call(name, IDS.astype(np.int32))) == f"{ids} must be int64 [batch, length], not int32 of shape [2, 5]"
    )
    assert message(call(name, IDS - 2)) == f"{ids} holds -1; allowed are 0 to 29 ({rows(name)} = 30)"
    assert message(call(name, IDS + 29)) == f"{ids} holds 30; allowed are 0 to 29 ({rows(name)} = 30)"


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_lengths(name: str, absolute: bool) -> None:
    empty = np.ones((2, 0), np.int64)
    if name == "FastformerTextClassifier":
        assert message(call(name, empty, empty.astype(bool))) == "input_ids has length 0; allowed is 1 or more"
        return
    kind = {} if name == "FastformerClassifier" else {"absolute_pos_emb": absolute}
    limit = "max_position_embeddings" if name == "FastformerClassifier" else "max_seq_len"
    for length in (0, 17):
        ids = np.ones((1, length), np.int64)
        text = message(
            lambda framework, ids=ids: helpers.build(framework, name, **(SMALL[name] | kind))(
                helpers.tensor(framework, ids)
            )
        )
        assert text == f"{first(name)} has length {length}; allowed are 1 to 16 ({limit})"


@pytest.mark.parametrize("name", ["FastTransformer", "FastformerTextClassifier"])
def test_masks(name: str) -> None:
    shape = "allowed is that of the ids, [2, 5]"
    assert message(call(name, IDS, MASK[:1])) == f"mask has shape [1, 5]; {shape}"
    assert message(call(name, IDS, MASK[:, :1])) == f"mask has shape [2, 1]; {shape}"
    assert message(call(name, IDS, MASK[0])) == "mask must be bool [batch, length], not bool of shape [5]"
    assert message(call(name, IDS, IDS)) == "mask must be bool [batch, length], not int64 of shape [2, 5]"
    if name == "FastformerTextClassifier":
        assert message(call(name, IDS, None)) == "mask must be a tensor, bool [batch, length], not NoneType"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_targets(name: str) -> None:
    assert message(call(name, IDS, MASK, TARGETS + 3)) == "targets holds 4; allowed are 0 to 3 (num_classes = 4)"
    assert message(call(name, IDS, MASK, TARGETS - 101)) == "targets holds -100; allowed are 0 to 3 (num_classes = 4)"
    assert message(call(name, IDS, MASK, TARGETS[:1])) == "targets has length 1; allowed is that of the batch, 2"
    assert (
        message(call(name, IDS, MASK, TARGETS[:, None])) == "targets must be int64 [batch], not int64 of shape [2, 1]"
    )
    assert (
        message(call(name, IDS, MASK, TARGETS.astype(np.float32)))
        == "targets must be int64 [batch], not float32 of shape [2]"
    )
    assert (
        message(call(name, IDS[:0], MASK[:0], TARGETS[:0]))
        == "targets has length 0; allowed is 1 or more, for a mean needs a loss"
    )


def test_pooler_index() -> None:
    def run(framework: str) -> Any:
        model = helpers.build(framework, "FastformerClassifier", **SMALL["FastformerClassifier"])
        ids = helpers.tensor(framework, IDS)
        return model.fastformer_model(model.word_embedding(ids), ids != 0, 1)

    assert message(run) == "pooler_index is 1; allowed are 0 to 0"


@pytest.mark.parametrize("framework", helpers.FRAMEWORKS)
def test_values_are_not_read_when_told_so(framework: str) -> None:
    model = helpers.build(framework, "FastformerClassifier", **SMALL["FastformerClassifier"])
    model.check_ranges = False
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the framework's own complaint)
        model(helpers.tensor(framework, IDS + 1000))
    assert "vocab_size" not in str(caught.value)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 18), min_size=0, max_size=3),
    dtype=st.sampled_from(["int64", "int32", "float32", "bool", "float64"]),
    value=st.integers(-2, 32),
)
def test_any_ids_are_taken_by_both_or_refused_by_both_alike(shape: list[int], dtype: str, value: int) -> None:
    ids = np.full(shape, value, dtype)
    outcomes = []
    for model, framework in zip(MODELS, helpers.FRAMEWORKS, strict=True):
        try:
            outcomes.append(list(model(helpers.tensor(framework, ids)).shape))
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


MODELS = [
    helpers.build(framework, "FastTransformerClassifier", **SMALL["FastTransformerClassifier"])
    for framework in helpers.FRAMEWORKS
]
