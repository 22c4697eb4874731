"""Twins: a reference and a candidate that should compute the same thing, with what is needed to try them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from alignment.errors import AlignmentError
from alignment.frameworks import FRAMEWORKS, Loss, Target
from alignment.mapping import ModelMapping
from checkpoints import NameMap
from fake_data import Field, Ids, InputSpec, Labels, Mask

Settings = Mapping[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Side:
    """One side of a twin.

    framework: ``"torch"`` or ``"paddle"``.
    target:    ``"package.module:Class"``, a class or function that builds the model, or the model itself, which is copied.
    settings:  constructor keywords of this side alone, besides those both sides get.
    loss:      this side's loss, where the twin's is a function: ``loss(what the model returned, targets)``, or its name.
    """

    framework: str
    target: Target
    settings: Mapping[str, Any] = field(default_factory=dict)
    loss: Loss = None

    @property
    def name(self) -> str:
        """What the side is called in reports."""
        if isinstance(self.target, str):
            return self.target
        return str(getattr(self.target, "__qualname__", type(self.target).__qualname__))

    @property
    def built(self) -> bool:
        """Is there a target that builds models, so that an initializer can be tried? A ready model can only be copied."""
        return isinstance(self.target, (str, type)) or not hasattr(self.target, "state_dict")


@dataclass(frozen=True)
class Twin:
    """Two models and how to run them.

    settings:    constructor keywords with the sizes a check uses by default (small: a check takes seconds).
    inputs:      what the models are given, or settings -> it. Either an `InputSpec`, which declares inputs in the order of
                 forward's arguments, the field ``targets`` going to the loss; or the inputs of one batch: an array, a
                 tuple of positional arguments, a dict of keywords, nested in any way, of arrays or tensors; or a list, a
                 data loader or any other iterable of such batches. Where the loss needs targets, a batch is a pair
                 (inputs, targets).
    loss:        ``"model"`` when forward(…, targets) returns (loss, logits); ``"criterion"`` when the loss is the mean
                 cross entropy of the logits forward returns; ``"outputs"``: all that forward returns, summed up with fixed
                 weights; ``"function"``: each side's own `Side.loss`.
    mode:        ``"eval"`` or ``"train"``: in which the models run.
    dropout:     ``"frozen"``: dropout layers let everything pass, in either mode; ``"seeded"``: the models run in training
                 mode, and dropout layers of the frameworks' own apply the same masks on both sides, drawn by NumPy.
    vocabulary:  the setting that holds the vocabulary's size; None: the model takes no reviews.
    padding:     settings -> the id of padding.
    mask_input:  (module path, position of the argument) where the mask enters, for planting mask faults.
    data:        where inputs come from when nothing else is asked for.
    names:       how the reference's tensors are called in the candidate, where the two differ.
    mapping:     what else there is to say where parts or names differ; a mapping given to a check goes in its place.
    """

    name: str
    summary: str
    reference: Side
    candidate: Side
    settings: dict[str, Any]
    inputs: Any
    loss: Literal["model", "criterion", "outputs", "function"] = "model"
    mode: Literal["eval", "train"] = "eval"
    dropout: Literal["frozen", "seeded"] = "frozen"
    vocabulary: str | None = None
    padding: Callable[[Settings], int] = lambda _settings: 0
    mask_input: tuple[str, int] | None = None
    data: Literal["fake", "synthetic"] = "fake"
    names: NameMap = field(default_factory=NameMap)
    mapping: ModelMapping = field(default_factory=ModelMapping)


def get_twin(name: str) -> Twin:
    """The built-in twin of a name, or the Twin that ``"package.module:attribute"`` names.

    Raises:
        AlignmentError: there is none; the message lists those there are.
    """
    if ":" in name:
        return import_attribute(name, Twin)
    if name not in TWINS:
        raise AlignmentError(
            f"unknown twin {name!r}; built in: {', '.join(TWINS)}; one of your own is named package.module:attribute"
        )
    return TWINS[name]


def twin_of(
    reference: Any,
    candidate: Any,
    inputs: Any,
    loss: Any = None,
    mode: Literal["eval", "train"] = "eval",
    dropout: Literal["frozen", "seeded"] = "frozen",
) -> Twin:
    """A Twin of two models, or of what builds them; the arguments are those of `alignment.check`.

    Raises:
        AlignmentError: one is missing, or of no known framework.
    """
    if reference is None or candidate is None or inputs is None:
        missing = [n for n, v in (("reference", reference), ("candidate", candidate), ("inputs", inputs)) if v is None]
        raise AlignmentError(f"two models and what they are given are needed; missing: {', '.join(missing)}")
    if mode not in ("eval", "train"):
        raise AlignmentError(f"mode is 'eval' or 'train', not {mode!r}")
    functions: tuple[Any, Any] = (None, None)
    if isinstance(loss, (tuple, list)) and len(loss) == 2:
        functions, loss = (loss[0], loss[1]), "function"
    elif loss is not None and loss not in ("model", "criterion", "outputs"):
        raise AlignmentError(
            "loss is 'criterion', 'model', 'outputs', or a pair of functions (reference's, candidate's)"
        )
    sides = [
        Side(framework_of(model, name), model, loss=function)
        for name, model, function in zip(("reference", "candidate"), (reference, candidate), functions, strict=True)
    ]
    name = sides[0].name.rpartition(".")[2]
    return Twin(name, "two models", sides[0], sides[1], {}, inputs, loss=loss or "outputs", mode=mode, dropout=dropout)


def framework_of(model: Any, side: str) -> str:
    """The framework of a model, or of a class of models.

    Raises:
        AlignmentError: it can't be told.
    """
    kind = model if isinstance(model, type) else type(model)
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        if package in FRAMEWORKS and base.__name__ in ("Module", "Layer"):
            return package
    raise AlignmentError(
        f"the {side} is a {kind.__name__}: neither a torch.nn.Module nor a paddle.nn.Layer, nor a class of one; for a "
        "function that builds one, make a Twin whose Side names its framework"
    )


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
