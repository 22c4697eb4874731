"""A gallery of small twins made of common layers, and of ports of them that are wrong in ways ports really are.

Any of them can be checked: ``align check mutants.gallery:conv_net``, ``mutants.gallery:conv_net__avgpool_padding``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from alignment.twins import Settings, Side, Twin
from checkpoints import NameMap, Rename
from fake_data import Floats, Ids, InputSpec, Labels, Mask


@dataclass(frozen=True)
class GalleryMutant:
    """A twin of the gallery whose candidate is wrong.

    name:   the fault. twin: which of GALLERY it is planted in. cause: what is to be named as the cause.
    stage:  the first stage that sees it.
    record: what kind of record it shows in first; ``"input"``: in what a parent's forward hands to the child `tensor`.
    tensor: pattern of the module path or the name of the tensor there, in the reference's names.
    """

    name: str
    twin: str
    stage: int
    record: str
    tensor: str
    cause: str


def _twin(
    name: str, model: str, summary: str, settings: dict[str, Any], inputs: Callable[[Settings], InputSpec], **more: Any
) -> Twin:
    reference, candidate = (
        Side("torch", f"mutants.gallery_torch:{model}"),
        Side("paddle", f"mutants.gallery_paddle:{model}"),
    )
    return Twin(name, summary, reference, candidate, settings, inputs, **{"loss": "criterion", **more})


def _images(settings: Settings) -> InputSpec:
    size = settings.get("size", 8)
    return InputSpec(
        {"images": Floats(("B", 3, size, size)), "targets": Labels(settings["num_classes"], ("B",))}, max_length=1
    )


def _masked_tokens(settings: Settings) -> InputSpec:
    return InputSpec(
        {
            "input_ids": Ids(0, settings["vocab_size"], ("B", "N"), padding=0),
            "mask": Mask(("B", "N"), of="input_ids"),
            "targets": Labels(settings["num_classes"], ("B",)),
        },
        max_length=settings["max_length"],
    )


def _tokens(settings: Settings) -> InputSpec:
    return InputSpec(
        {
            "input_ids": Ids(0, settings["vocab_size"], ("B", "N"), padding=0),
            "targets": Labels(settings["num_classes"], ("B",)),
        },
        max_length=12,
    )


def _next_tokens(settings: Settings) -> InputSpec:
    vocabulary = settings["vocab_size"]
    return InputSpec(
        {"input_ids": Ids(0, vocabulary, ("B", "N")), "targets": Labels(vocabulary, ("B", "N"))}, max_length=12
    )


def _sequences(settings: Settings) -> InputSpec:
    # As many positions as classes, so that their axes can be confused in silence.
    classes = settings["num_classes"]
    return InputSpec(
        {"features": Floats(("B", classes, settings["features"])), "targets": Labels(classes, ("B", classes))},
        max_length=1,
    )


def _loss_twin(loss: str, summary: str) -> Twin:
    settings = {"features": 8, "hidden": 16, "num_classes": 5, "loss": loss}
    return _twin(f"loss-{loss}", "LossNet", summary, settings, _sequences, loss="model")


GALLERY: dict[str, Twin] = {
    twin.name: twin
    for twin in (
        _twin(
            "conv-net",
            "ConvNet",
            "convolutions, batch norm, pooling, padding, a fixed spatial transform",
            {"channels": 8, "size": 8, "num_classes": 5},
            _images,
        ),
        _twin(
            "attention-net",
            "AttentionNet",
            "masked multi-head attention from a packed projection",
            {"vocab_size": 50, "max_length": 12, "dim": 16, "heads": 4, "num_classes": 5},
            _masked_tokens,
            mask_input=("", 1),
        ),
        _twin(
            "token-net",
            "TokenNet",
            "an embedding with a padding row, GELU, dropout, index_add, split and median",
            {"vocab_size": 50, "dim": 16, "group": 8, "num_classes": 5, "dropout": 0.1},
            _tokens,
        ),
        _twin(
            "tied-net",
            "TiedNet",
            "token logits by the embedding's own rows",
            {"vocab_size": 50, "dim": 16},
            _next_tokens,
        ),
        _loss_twin("cross-entropy", "the mean cross entropy, computed in forward"),
        _loss_twin("ignore-index", "cross entropy with ignored positions"),
        _loss_twin("label-smoothing", "cross entropy with smoothed labels"),
        _loss_twin("sequence", "cross entropy of logits with the classes on axis 1"),
        _loss_twin("smooth-l1", "smooth L1 with beta 0.5"),
        _loss_twin("soft-labels", "class-weighted cross entropy of soft labels"),
        _twin(
            "recurrent-net",
            "RecurrentNet",
            "an LSTM cell stepped through a sequence",
            {"features": 8, "hidden": 16, "num_classes": 5},
            _sequences,
        ),
        _twin(
            "norm-net",
            "NormNet",
            "instance norm, group norm and a weight-normed layer",
            {"channels": 8, "groups": 2, "num_classes": 5},
            _images,
            names=NameMap(
                (Rename(r"(.*weight_g)", r"\1", "reshape"), Rename(r"(.*weight_v)", r"\1", "transpose")),
            ),
        ),
    )
}


# Causes that go by another name than the fault.
CAUSES = {"grad-scale": "gradient-scaled"}


def _mutants(twin: str, *rows: tuple[str, int, str, str]) -> tuple[GalleryMutant, ...]:
    return tuple(
        GalleryMutant(name, twin, stage, record, tensor, CAUSES.get(name, name)) for name, stage, record, tensor in rows
    )


GALLERY_MUTANTS: tuple[GalleryMutant, ...] = (
    *_mutants(
        "conv-net",
        ("conv-init", 2, "initializer", r"conv[12]\.(weight|bias)"),
        ("linear-init", 2, "initializer", r"head\.(weight|bias)"),
        ("bn-eps", 3, "activation", "bn"),
        ("bn-buffers-lost", 3, "activation", "bn"),
        ("avgpool-padding", 3, "activation", "pool"),
        ("pad-order", 3, "input", "conv2"),
        ("inplace-alias", 3, "input", "relu2"),
        ("align-corners", 3, "input", "head"),
        ("flatten-order", 3, "input", "head"),
        ("bn-momentum", 5, "update", r"bn\.running_(mean|var)"),
        ("bn-biased-variance", 5, "update", r"bn\.running_var"),
    ),
    *_mutants(
        "attention-net",
        ("mha-packing", 3, "input", "softmax"),
        ("sdpa-layout", 3, "input", "softmax|out_proj"),
        ("scale-missing", 3, "input", "softmax"),
        ("mask-ignored", 3, "input", "softmax"),
        ("mask-inverted", 3, "input", "softmax"),
        ("mask-added-as-0/1", 3, "input", "softmax"),
        ("mask-magnitude", 3, "input", "softmax"),
        ("layernorm-eps", 3, "activation", "norm"),
        ("softmax-axis", 3, "activation", "pool_softmax"),
    ),
    *_mutants(
        "token-net",
        ("embedding-init", 2, "initializer", r"embedding\.weight"),
        ("linear-init", 2, "initializer", r"(up|down|head)\.(weight|bias)"),
        ("padding-row", 3, "activation", "embedding"),
        ("layernorm-eps", 3, "activation", "norm"),
        ("scatter-overwrite", 3, "input", "up"),
        ("gelu-form", 3, "activation", "act"),
        ("dropout-on", 3, "activation", "dropout"),
        ("dropout-mode", 3, "activation", "dropout"),
        ("split-meaning", 3, "input", "head"),
        ("median-even", 3, "input", "head"),
    ),
    *_mutants(
        "tied-net",
        ("tie-lost", 1, "parameter", r"output\.weight"),
        ("tie-detached", 5, "gradient", r"embedding\.weight"),
        ("grad-scale", 5, "activation gradient", "embedding"),
        ("graph-cut", 5, "activation gradient", "hidden"),
        ("max-ties", 5, "gradient", "gains"),
    ),
    *_mutants("loss-cross-entropy", ("loss-reduction", 4, "loss", "loss"), ("double-softmax", 4, "loss", "loss")),
    *_mutants("loss-ignore-index", ("ce-ignore-index", 4, "loss", "loss")),
    *_mutants("loss-label-smoothing", ("label-smoothing", 4, "loss", "loss")),
    *_mutants("loss-sequence", ("ce-axis", 4, "loss", "loss")),
    *_mutants("loss-smooth-l1", ("smooth-l1", 4, "loss", "loss")),
    *_mutants("loss-soft-labels", ("soft-label-weight", 4, "loss", "loss")),
    *_mutants("recurrent-net", ("batch-first", 3, "input", "cell|head")),
    *_mutants(
        "norm-net",
        ("instance-norm-affine", 1, "parameter", r"instance_norm\.(scale|bias)"),
        ("kaiming-slope", 2, "initializer", r"conv\.weight"),
        ("weight-norm-axis", 3, "activation", "fc"),
    ),
)


def mutant_twin(mutant: GalleryMutant) -> Twin:
    """The mutant's twin, its candidate built with the fault."""
    twin = GALLERY[mutant.twin]
    candidate = replace(twin.candidate, settings={**twin.candidate.settings, "fault": mutant.name})
    return replace(
        twin, name=f"{twin.name}, {mutant.name}", summary=f"{twin.summary}: {mutant.name}", candidate=candidate
    )


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def __getattr__(name: str) -> Twin:
    """Twins by name, with underscores: ``conv_net``; mutants: ``conv_net__avgpool_padding``."""
    for twin in GALLERY.values():
        if name == _identifier(twin.name):
            return twin
    for mutant in GALLERY_MUTANTS:
        if name == f"{_identifier(mutant.twin)}__{_identifier(mutant.name)}":
            return mutant_twin(mutant)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
