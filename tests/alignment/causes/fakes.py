"""Suspects of arrays alone, for the tests of causes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from alignment.causes.suspect import Suspect, Tensor
from alignment.causes.values import CAUSES
from alignment.compare import Pair, compare
from alignment.localise import Root

KINDS = {"softmax": "Softmax", "positions": "Embedding", "table": "Embedding"}


class FakeScene(SimpleNamespace):
    """What of a scene is asked for."""

    live = True

    __hash__ = object.__hash__


def fake(
    reference: np.ndarray,
    candidate: np.ndarray,
    *sources: np.ndarray,
    record: str = "activation",
    name: str = "layer",
    names: tuple[str, ...] = (),
    **around: Any,
) -> Suspect:
    """A suspect of arrays alone: what is around it is given, nothing is run."""
    most = np.finfo(np.float32).max
    narrow = np.clip(reference, -most, most).astype(np.float32) if reference.dtype.kind == "f" else reference

    def judge(_kind: str, _name: str, value: np.ndarray) -> Any:
        return compare(Pair(narrow, narrow, reference, value))

    side = SimpleNamespace(
        name="numpy",
        modules=lambda _model: [SimpleNamespace(path=path, kind=kind) for path, kind in KINDS.items()],
        meanings=(),
        get_option=lambda _model, _kind, _option: {"dropout": 0.2},
    )
    scene = FakeScene(
        dtype="float64",
        judge=judge,
        model=lambda _side: None,
        roots=(),
        experiment=SimpleNamespace(reference=side, candidate=side, reference_model=None),
        reference64=SimpleNamespace(records=()),
        reference32=SimpleNamespace(get=lambda _kind, _name: narrow),
    )
    root: Any = Root(record, name, "owner", None, reference, candidate)  # type: ignore[arg-type]
    suspect = Suspect(root, scene)  # type: ignore[arg-type]
    labels = names or tuple(f"input {i} of owner" for i in range(len(sources)))
    tensors = tuple(Tensor(label, value) for label, value in zip(labels, sources, strict=True))
    vars(suspect).update({"kind": "", "weights": {}, "inputs": list(sources), "sources": tensors} | around)
    return suspect


def proved(suspect: Suspect, causes: Any = CAUSES) -> list[str]:
    """Names of what is proved, in order, each once."""
    found = [cause.name for cause in causes if suspect.record in cause.records and _is_proved(cause, suspect)]
    return list(dict.fromkeys(found))


def _is_proved(cause: Any, suspect: Suspect) -> bool:
    return any(trial.proved for trial in cause.test(suspect))


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)
