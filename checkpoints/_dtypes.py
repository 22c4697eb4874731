"""Dtype names, the same word everywhere: ``"float32"``, ``"bfloat16"``, ``"bool"`` …, and what each is in NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

# Little-endian, as every file format here stores them.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(name)
    for name in (
        "float64",
        "float32",
        "float16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
        "complex64",
        "complex128",
    )
} | {name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}

FLOATING = frozenset({"float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"})

# How a format without a word for bfloat16 keeps its sixteen bits: .pdparams as uint16, .npz as two raw bytes.
RAW16 = (np.dtype("uint16"), np.dtype("V2"))


@dataclass(frozen=True)
class Spec:
    """What a tensor is but for its values: the word for its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def name_of(dtype: np.dtype) -> str:
    """The word for a dtype; a dtype outside the table (raw bytes, dates, objects) gives NumPy's own name for it."""
    return dtype.name


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether shape, dtype and every bit agree: NaN payloads and the sign of zero count. In blocks, with no copies."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    x, y = (array.reshape(-1).view(np.uint8) for array in (a, b)) if a.size else (np.empty(0), np.empty(0))
    return all(np.array_equal(x[at : at + _BLOCK], y[at : at + _BLOCK]) for at in range(0, x.size, _BLOCK))


_BLOCK = 1 << 20


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of an array in row-major order; no copy where it is contiguous."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
