"""Faults that can be planted on the candidate, to see that they are found and to measure how well.

A fault changes the weights the candidate is given, or the candidate itself through its framework's adapter; the reference
is never touched. Each says the first stage that can see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.frameworks import Framework
from alignment.twins import Twin, import_attribute
from checkpoints.structure import Slot

Tensors = dict[str, NDArray]


@dataclass(frozen=True)
class Fault:
    """One way a port goes wrong.

    stage:   number of the first stage that can see it.
    weights: (candidate's tensors, its slots) -> the tensors with the fault, or None where the fault has nothing to hit.
    plant:   (adapter, candidate, twin) -> what was hit; empty where the fault has nothing to hit.
    """

    name: str
    summary: str
    stage: int
    weights: Callable[[Tensors, tuple[Slot, ...]], Tensors | None] | None = None
    plant: Callable[[Framework, Any, Twin], list[str]] | None = None


def get_fault(name: str) -> Fault:
    """The fault of a name, or the Fault that ``"package.module:attribute"`` names.

    Raises:
        AlignmentError: there is none; the message lists those there are.
    """
    if ":" in name:
        return import_attribute(name, Fault)
    if name not in FAULTS:
        raise AlignmentError(f"unknown fault {name!r}; faults that can be planted: {', '.join(FAULTS)}")
    return FAULTS[name]


def _transpose_square_weight(tensors: Tensors, slots: tuple[Slot, ...]) -> Tensors | None:
    for slot in slots:
        square = len(slot.shape) == 2 and slot.shape[0] == slot.shape[1]
        if slot.kind == "Linear" and slot.local == "weight" and square and slot.shape[0] > 1:
            return {**tensors, slot.name: np.ascontiguousarray(tensors[slot.name].T)}
    return None


def _layernorm_eps(framework: Framework, model: Any, _twin: Twin) -> list[str]:
    # Compared loosely: in the float64 run an eps is the float32 number next to the one written down.
    large = any(eps > 1e-6 for eps in framework.get_option(model, "LayerNorm", "eps").values())
    return framework.set_option(model, "LayerNorm", "eps", 1e-12 if large else 1e-5)


def _gelu_tanh(framework: Framework, model: Any, _twin: Twin) -> list[str]:
    return framework.set_option(model, "GELU", "approximate", "tanh")


def _dropout_on(framework: Framework, model: Any, _twin: Twin) -> list[str]:
    if not any(rate > 0 for rate in framework.get_option(model, "Dropout", "p").values()):
        return []
    return framework.set_option(model, "Dropout", "training", True)


def _loss_sum(framework: Framework, model: Any, _twin: Twin) -> list[str]:
    return framework.set_option(model, "CrossEntropyLoss", "reduction", "sum")


def _mask_inverted(framework: Framework, model: Any, twin: Twin) -> list[str]:
    if twin.mask_input is None:
        return []
    path, position = twin.mask_input
    framework.replace_input(model, path, position, lambda mask: (mask == 0).astype(mask.dtype))
    return [path]


def _stale_bias_gradient(framework: Framework, model: Any, _twin: Twin) -> list[str]:
    """Every entry of the last Linear's bias gets the gradient of the mean with respect to one term of it."""
    biases = [s.name for s in framework.slots(model) if s.kind == "Linear" and s.local == "bias"]
    terms = 1

    def count_terms(given: NDArray) -> NDArray:
        nonlocal terms
        terms = given[..., 0].size
        return given

    framework.replace_input(model, biases[-1].rpartition(".")[0], 0, count_terms)
    framework.replace_gradient(model, biases[-1], lambda gradient: np.full_like(gradient, 1.0 / terms))
    return biases[-1:]


FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            "stale-bias-gradient",
            "the last layer's bias gets 1/batch in every entry as its gradient",
            stage=5,
            plant=_stale_bias_gradient,
        ),
        Fault(
            "linear-not-transposed",
            "the first square Linear weight is loaded untransposed",
            stage=2,
            weights=_transpose_square_weight,
        ),
        Fault("layernorm-eps", "LayerNorm eps 1e-5 for 1e-12 (or 1e-12 for 1e-5)", stage=3, plant=_layernorm_eps),
        Fault("mask-inverted", "real tokens are masked, padding is not", stage=3, plant=_mask_inverted),
        Fault("dropout-on", "dropout stays on in evaluation mode", stage=3, plant=_dropout_on),
        Fault("gelu-form", "GELU by its tanh approximation", stage=3, plant=_gelu_tanh),
        Fault("loss-reduction", "the loss sums over the batch where it should take the mean", stage=4, plant=_loss_sum),
    )
}
