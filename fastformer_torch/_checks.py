"""Argument checks. The texts are the same, letter for letter, in both packages: one port, one message."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_sizes(**sizes: Any) -> None:
    """Every size is a whole number of at least 1."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """The number lies in [0, below); NaN lies nowhere."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < below:
        raise ValueError(f"{name} must be a number in [0, {below}), not {value!r}")


def check_multiple(name: str, value: int, of: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"{name} must be a multiple of {of}, but {value} is no multiple of {divisor}")


def check_embeddings(embeddings: object, shape: list[int], largest: float) -> np.ndarray:
    """Pretrained vectors as an array whose every value the model's dtype can hold."""
    try:
        array = np.asarray(embeddings)
    except (TypeError, ValueError):  # ragged, or of a dtype that NumPy lacks
        array = np.empty(0, dtype=object)
    if array.dtype.kind != "f" or list(array.shape) != shape:
        given = f"{array.dtype} of shape {list(array.shape)}"
        raise ValueError(f"embeddings must be a floating-point array of shape {shape} [vocab_size, embed], not {given}")
    wrong = np.sum(~(np.abs(array.astype(np.float64)) <= largest))  # a NaN is not <= anything
    if wrong:
        raise ValueError(f"embeddings must be finite and at most {largest:.4g} in size; {wrong} values are not")
    return np.ascontiguousarray(array, np.float64 if array.dtype.itemsize > 4 else np.float32)


def tracing() -> bool:
    """A compiler looks at shapes and values that are not there yet: nothing can be checked."""
    return torch.compiler.is_compiling()


def check_ids(name: str, ids: Any, values: tuple[str, int], limit: tuple[str, int] | None, ranges: bool | None) -> None:
    """Token ids: int64 [batch, length] with 1 <= length <= limit, every id below the number of values."""
    if tracing():
        return
    check_tensor(name, ids, "int64", "[batch, length]", 2)
    length = ids.shape[1]
    if limit is not None and not 1 <= length <= limit[1]:
        raise ValueError(f"{name} has length {length}; allowed are 1 to {limit[1]} ({limit[0]})")
    if length < 1:
        raise ValueError(f"{name} has length 0; allowed is 1 or more")
    check_range(name, ids, values, ranges)


def check_mask(mask: Any, ids: Tensor) -> None:
    """A mask says True for a real token and has the shape of the ids."""
    if tracing():
        return
    check_tensor("mask", mask, "bool", "[batch, length]", 2)
    if list(mask.shape) != list(ids.shape):
        raise ValueError(f"mask has shape {list(mask.shape)}; allowed is that of the ids, {list(ids.shape)}")


def check_pooled(embeddings: Tensor, mask: Tensor, limit: int) -> None:
    """What `fastformer_model` is given: embeddings [batch, length, dim] with 1 <= length <= limit, and their mask."""
    if tracing():
        return
    if not 1 <= embeddings.shape[1] <= limit:
        given = f"embeddings has length {embeddings.shape[1]}"
        raise ValueError(f"{given}; allowed are 1 to {limit} (max_position_embeddings)")
    if list(mask.shape) != list(embeddings.shape[:2]):
        raise ValueError(
            f"mask has shape {list(mask.shape)}; allowed is that of the embeddings, {list(embeddings.shape[:2])}"
        )


def check_targets(targets: Any, ids: Tensor, classes: int, ranges: bool | None) -> None:
    """Targets: int64 [batch], at least one (the mean of no losses is undefined), every one in 0 .. classes - 1."""
    if tracing():
        return
    check_tensor("targets", targets, "int64", "[batch]", 1)
    if targets.shape[0] != ids.shape[0]:
        raise ValueError(f"targets has length {targets.shape[0]}; allowed is that of the batch, {ids.shape[0]}")
    if not targets.shape[0]:
        raise ValueError("targets has length 0; allowed is 1 or more, for a mean needs a loss")
    check_range("targets", targets, ("num_classes", classes), ranges)


def check_tensor(name: str, value: Any, dtype: str, shape: str, rank: int) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, {dtype} {shape}, not {type(value).__name__}")
    given = str(value.dtype).split(".")[-1]
    if given != dtype or len(value.shape) != rank:
        raise ValueError(f"{name} must be {dtype} {shape}, not {given} of shape {list(value.shape)}")


def check_range(name: str, value: Tensor, values: tuple[str, int], ranges: bool | None) -> None:
    """Reading a value makes the host wait for an accelerator, so None checks only what lies in the host's memory."""
    if ranges is False or (ranges is None and value.device.type != "cpu") or 0 in value.shape:
        return
    of, count = values
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= count:
        raise ValueError(f"{name} holds {low if low < 0 else high}; allowed are 0 to {count - 1} ({of} = {count})")
