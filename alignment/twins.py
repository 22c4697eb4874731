"""Twins: a reference and a candidate that should compute the same thing, with what is needed to try them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from alignment.errors import AlignmentError
from checkpoints import NameMap
from fake_data import Field, Ids, InputSpec, Labels, Mask

Settings = Mapping[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Side:
    """One side of a twin. framework: ``"torch"`` or ``"paddle"``; target: ``"package.module:Class"``.

    settings: constructor keywords of this side alone, besides those both sides get.
    """

    framework: str
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Twin:
    """Two models and how to run them.

    settings:    constructor keywords with the sizes a check uses by default (small: a check takes seconds).
    inputs:      settings -> declared inputs, in the order of forward's arguments; the field ``targets`` goes to the loss.
    loss:        ``"model"`` when forward(…, targets) returns (loss, logits); ``"criterion"`` when the loss is the mean
                 cross entropy of the logits forward returns.
    vocabulary:  the setting that holds the vocabulary's size; None: the model takes no reviews.
    padding:     settings -> the id of padding.
    mask_input:  (module path, position of the argument) where the mask enters, for planting mask faults.
    data:        where inputs come from when nothing else is asked for.
    names:       how the reference's tensors are called in the candidate, where the two differ.
    """

    name: str
    summary: str
    reference: Side
    candidate: Side
    settings: dict[str, Any]
    inputs: Callable[[Settings], InputSpec]
    loss: Literal["model", "criterion"] = "model"
    vocabulary: str | None = None
    padding: Callable[[Settings], int] = lambda _settings: 0
    mask_input: tuple[str, int] | None = None
    data: Literal["fake", "synthetic"] = "fake"
    names: NameMap = field(default_factory=NameMap)


def get_twin(name: str) -> Twin:
    """The built-in twin of a name, or the Twin that ``"package.module:attribute"`` names.

    Raises:
        AlignmentError: there is none; the message lists those there are.
    """
    if ":" in name:
        return import_attribute(name, Twin)
    if name not in TWINS:
        raise AlignmentError(f"unknown twin {name!r}; built in: {', '.join(TWINS)}")
    return TWINS[name]


def import_attribute(name: str, kind: type[Value]) -> Value:
    """The value that ``"package.module:attribute"`` names, looked for in the working directory, too.

    Raises:
        AlignmentError: it can't be imported, or is of another kind.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does: a user's twin lies beside the user's models
        sys.path.insert(0, here)
    try:
        value = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise AlignmentError(f"{name} can't be imported: {type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        raise AlignmentError(f"{name} is a {type(value).__name__}, not an alignment {kind.__name__}")
    return value


def parse_settings(twin: Twin, assignments: Iterable[str]) -> dict[str, Any]:
    """The twin's settings with ``NAME=VALUE`` assignments applied, each value of the type of its default.

    Raises:
        AlignmentError: not of that form, an unknown name, or a value of another type.
    """
    settings = dict(twin.settings)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals:
            raise AlignmentError(f"--set takes NAME=VALUE, not {assignment!r}")
        if name not in settings:
            raise AlignmentError(f"{twin.name} has no setting {name!r}; it has: {', '.join(settings)}")
        settings[name] = _parse(name, text.strip(), type(settings[name]))
    return settings


def _parse(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise AlignmentError(f"--set {name}={text}: {wanted} is needed") from None


def _classifier_inputs(vocabulary: str, length: str) -> Callable[[Settings], InputSpec]:
    def inputs(settings: Settings) -> InputSpec:
        fields: dict[str, Field] = {
            "input_ids": Ids(0, settings[vocabulary], ("B", "N"), padding=0),
            "targets": Labels(settings["num_classes"], ("B",)),
        }
        return InputSpec(fields, max_length=settings[length])

    return inputs


def _token_inputs(settings: Settings) -> InputSpec:
    # The mask is an argument of its own, and id 0 an ordinary token: padding only says which rows the mask covers.
    fields: dict[str, Field] = {
        "x": Ids(0, settings["num_tokens"], ("B", "N"), padding=0),
        "mask": Mask(("B", "N"), of="x"),
        "targets": Labels(settings["num_tokens"], ("B", "N")),
    }
    return InputSpec(fields, max_length=settings["max_seq_len"])


def _title_inputs(settings: Settings) -> InputSpec:
    last = settings["vocab_size"] - 1
    fields: dict[str, Field] = {
        "input_ids": Ids(0, settings["vocab_size"], ("B", "N"), padding=last),
        "mask": Mask(("B", "N"), of="input_ids"),
        "targets": Labels(settings["num_classes"], ("B",)),
    }
    # The model has no positions and so no longest length; 32 is what its published settings use.
    return InputSpec(fields, max_length=32)


def _first(_settings: Settings) -> int:
    return 0


def _last(settings: Settings) -> int:
    return int(settings["vocab_size"]) - 1


def _pair(name: str) -> tuple[Side, Side]:
    return Side("torch", f"fastformer_torch:{name}"), Side("paddle", f"fastformer_paddle:{name}")


TWINS = {
    twin.name: twin
    for twin in (
        Twin(
            "fast-transformer-classifier",
            "the pooled 5-class model of the Amazon task",
            *_pair("FastTransformerClassifier"),
            settings={
                "num_classes": 5,
                "num_tokens": 2000,
                "dim": 64,
                "depth": 2,
                "max_seq_len": 128,
                "heads": 4,
                "dim_head": 16,
                "ff_mult": 4,
                "absolute_pos_emb": True,
                "dropout": 0.2,
            },
            inputs=_classifier_inputs("num_tokens", "max_seq_len"),
            vocabulary="num_tokens",
            padding=_first,
            loss="model",
            mask_input=("fastformer_model", 1),
            data="synthetic",
        ),
        Twin(
            "fastformer-classifier",
            "the authors' published model",
            *_pair("FastformerClassifier"),
            settings={
                "vocab_size": 2000,
                "num_classes": 5,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 128,
                "dropout": 0.2,
                "layer_norm_eps": 1e-12,
                "initializer_range": 0.02,
                "pooler_count": 1,
            },
            inputs=_classifier_inputs("vocab_size", "max_position_embeddings"),
            vocabulary="vocab_size",
            padding=_first,
            loss="model",
            mask_input=("fastformer_model", 1),
            data="synthetic",
        ),
        Twin(
            "fast-transformer",
            "the community model with token logits; --set absolute_pos_emb=false for rotary positions",
            *_pair("FastTransformer"),
            settings={
                "num_tokens": 200,
                "dim": 64,
                "depth": 2,
                "max_seq_len": 64,
                "heads": 4,
                "dim_head": 16,
                "ff_mult": 4,
                "absolute_pos_emb": True,
            },
            inputs=_token_inputs,
            vocabulary="num_tokens",
            padding=_first,
            loss="criterion",
            mask_input=("", 1),
            data="fake",
        ),
        Twin(
            "fastformer-text-classifier",
            "one layer, for short news titles",
            *_pair("FastformerTextClassifier"),
            settings={
                "vocab_size": 2000,
                "num_classes": 10,
                "embed": 60,
                "num_attention_heads": 4,
                "dropout": 0.2,
                "initializer_range": 0.02,
            },
            inputs=_title_inputs,
            vocabulary="vocab_size",
            padding=_last,
            loss="model",
            mask_input=("", 1),
            data="fake",
        ),
    )
}

DEFAULT_TWIN = "fast-transformer-classifier"
