"""What a hypothesis may look at, and how it is put to the test.

A *suspect* is one root divergence with everything around it. A cause looks at it, and where its precondition holds offers
*trials*: a correction in words, and what the tensor becomes with it. A trial proves the cause when what then differs from
the reference is rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alignment.correspondence import path_of
from alignment.errors import AlignmentError
from alignment.localise import Root, Scene
from alignment.trace import GRADIENT_OF, Kind

Array = NDArray


@dataclass(frozen=True)
class Trial:
    """One correction and what came of it.

    change: what was corrected, in words that go before a figure ("transposing dense.weight").
    before, after: distance to the reference without and with it, as a `figure`. proved: what is left is rounding.
    doubt: why it is not proved, where that is not because more than rounding is left.
    """

    change: str
    before: float
    after: float
    proved: bool
    figure: str = "relative L2"
    doubt: str = ""


# What is said of trials of several causes that all leave nothing.
AMBIGUOUS = "but another cause fits as well"


@dataclass(frozen=True)
class Cause:
    """One way a port goes wrong.

    name: as in the documentation. summary: what is wrong, in plain words. remedy: what to change.
    records: the kinds of roots it can explain.
    test: suspect -> trials of its correction; none where its precondition does not hold.
    """

    name: str
    summary: str
    remedy: str
    records: tuple[str, ...]
    test: Callable[[Any], Iterable[Trial]]


@dataclass(frozen=True)
class Tensor:
    """A tensor a piece of code can see: its name in words, and the reference's float64 value."""

    name: str
    value: Array


def relative(candidate: Array, reference: Array) -> float:
    """‖candidate − reference‖₂ / ‖reference‖₂; infinite where the reference is zero and the candidate is not."""
    difference = float(np.linalg.norm((candidate - reference).ravel()))
    norm = float(np.linalg.norm(reference.ravel()))
    return difference / norm if norm else (0.0 if difference == 0.0 else math.inf)


class Suspect:
    """A root divergence found in a scene.

    record, name, owner: of the root; see `alignment.localise.Root`. reference, candidate: its float64 values, computed
    from the same inputs; the candidate's is None where it has none.
    """

    def __init__(self, root: Root, scene: Scene) -> None:
        self.root, self.scene = root, scene
        self.record, self.name, self.owner = root.kind, root.name, root.owner
        self.candidate = None if root.candidate is None else _wide(root.candidate)
        assert root.reference is not None
        self.reference = _wide(root.reference)

    # ------------------------------------------------------------------------------------------------ what is around it

    @cached_property
    def kind(self) -> str:
        """Layer kind of the module whose code computes the tensor, by torch's name; "" for a class of the user's own."""
        experiment = self.scene.experiment
        modules = {m.path: m for m in experiment.reference.modules(experiment.reference_model)}
        module = modules.get(self.owner)
        return "" if module is None or module.own else module.kind

    def options(self, side: str) -> dict[str, Any]:
        """Options of the owner on one side, by torch's names, as far as they are known."""
        experiment = self.scene.experiment
        path = self.owner if side == "reference" else experiment.paths[self.owner]
        return experiment.side(side)[0].options(self.scene.model(side), path)

    @cached_property
    def weights(self) -> dict[str, Array]:
        """The owner's own parameters and buffers by local name, in the reference's layout."""
        found = {}
        for full, value in self.scene.state.items():
            path, _, local = full.rpartition(".")
            if path == self.owner:
                found[local] = _wide(value)
        return found

    @cached_property
    def inputs(self) -> list[Array]:
        """What the owner is given in the call at hand: its arguments that are tensors; for the model itself its inputs."""
        return list(self.given.values())

    @cached_property
    def given(self) -> dict[str, Array]:
        """The tensors that the owner is given in the call at hand, by the names of their records; the model by its inputs'."""
        if not self.owner:
            return {name: _as_seen(value) for name, value in self.scene.batch.inputs.items()}
        return {label: value for label, value in self._records("input") if self._in_this_call(label, self.owner)}

    @cached_property
    def outputs(self) -> list[Array]:
        """What the owner makes of it on the reference side."""
        return [value for label, value in self._records("activation") if self._in_this_call(label, self.owner)]

    @cached_property
    def output_gradients(self) -> list[Array]:
        """The loss's gradient with respect to `outputs`, on the reference side."""
        found = self._records("activation gradient")
        return [value for label, value in found if self._in_this_call(label, self.owner)]

    @cached_property
    def targets(self) -> Array | None:
        """The targets of the batch."""
        return self.scene.batch.targets

    @cached_property
    def logits(self) -> Array | None:
        """The reference's logits."""
        value = self.scene.reference64.get("logits", "logits")
        return None if value is None else _wide(value)

    @cached_property
    def sources(self) -> tuple[Tensor, ...]:
        """Every tensor the owner's code can see before this one: its inputs, its own weights, its children's outputs.

        Nearest last. All are the reference's, in float64; masks and ids as they are.
        """
        found = [
            Tensor(f"input {index} of {self.owner or 'the model'}", value) for index, value in enumerate(self.inputs)
        ]
        found += [Tensor(f"{self.owner}.{local}", value) for local, value in self.weights.items()]
        prefix = f"{self.owner}." if self.owner else ""
        for record in self.scene.reference64.records:
            if (record.kind, record.name) == (self.record, self.name):
                break
            path = path_of(record.name)
            child = path.startswith(prefix) and "." not in path[len(prefix) :] and path != self.owner
            if record.kind == "activation" and child and record.value is not None:
                found.append(Tensor(f"the output of {record.name}", _as_seen(record.value)))
        return tuple(found)

    def masks(self) -> Iterator[Tensor]:
        """Sources that say which positions are real: boolean, or of zeros and ones; and the ids, that are not padding."""
        for tensor in self.sources:
            values = tensor.value
            if values.dtype == bool or (values.size and values.dtype.kind in "if" and np.isin(values, (0, 1)).all()):
                yield Tensor(tensor.name, values.astype(bool))
        for name, values in self.scene.batch.inputs.items():
            if values.dtype == bool:
                yield Tensor(name, values)
            elif values.dtype.kind == "i":
                padding = self.scene.experiment.twin.padding(self.scene.experiment.settings)
                yield Tensor(f"{name} that are not {padding}", values != padding)

    def padding(self) -> int:
        """The id of padding."""
        return self.scene.experiment.twin.padding(self.scene.experiment.settings)

    def _records(self, kind: Kind) -> list[tuple[str, Array]]:
        trace = self.scene.reference64
        return [(r.name, _as_seen(r.value)) for r in trace.records if r.kind == kind and r.value is not None]

    def _in_this_call(self, label: str, path: str) -> bool:
        if path_of(label) != path:
            return False
        here = (
            self.name if path_of(self.name) == path and self.record in (*GRADIENT_OF, *GRADIENT_OF.values()) else path
        )
        return label.partition("[")[0] == here.partition("[")[0]

    # ---------------------------------------------------------------------------------------------------------- trials

    def trial(self, change: str, corrected: Array | None) -> Iterator[Trial]:
        """One trial of a corrected value; none where there is no value, or it has another shape."""
        if corrected is None or corrected.shape != self.reference.shape or self.candidate is None:
            return
        corrected = _wide(corrected)
        if not np.isfinite(corrected).all():
            return
        before = relative(self.candidate, self.reference) if self.candidate.shape == self.reference.shape else math.inf
        after = relative(corrected, self.reference)
        judged = self.scene.judge(self.record, self.name, self._rounded(corrected))
        yield Trial(change, before, after, judged.verdict == "aligned" and not after > 0.01 * before)

    def _rounded(self, value: Array) -> Array:
        return value if self.scene.dtype == "float64" else value.astype(np.float32)

    def again(
        self,
        *,
        state: Mapping[str, Array] | None = None,
        options: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Array] | None = None,
    ) -> Array | None:
        """What the candidate computes here with other weights, options of the owner, or inputs of it (name in `given` -> value).

        None where the candidate can't be run again: nothing is tried then.
        """
        if not self.scene.live:
            return None
        scene, given = self.scene, inputs or {}
        if given and not self.owner:  # the same scene, the model itself given something else
            scene, given = copy.copy(scene), {}
            scene.batch = replace(scene.batch, inputs={**scene.batch.inputs, **(inputs or {})})
        try:
            trace = scene.forced(
                state=None if state is None else {**self.scene.state, **state},
                options=None if options is None else {self.owner: options},
                given={("input", name): value for name, value in given.items()},
            )
        except AlignmentError:
            return None  # a candidate that can't run with the correction has not been explained by it
        value = self.scene.value(trace, self.record, self.name)
        return None if value is None else _wide(value)


@dataclass(frozen=True)
class WeightSuspect:
    """A tensor of the state dict that is not what the reference's is after conversion.

    record: "parameter" or "buffer"; kind, local: its layer's kind by torch's name, and its name there. All in the
    reference's layout and float64; `own` is what the candidate's initialiser gave it. `others`: the reference's tensors.
    """

    record: str
    name: str
    kind: str
    local: str
    reference: Array
    candidate: Array
    own: Array | None
    others: Mapping[str, Array]

    def trial(self, change: str, corrected: Array | None) -> Iterator[Trial]:
        """One trial of a corrected value: weights are copies, so only equality proves anything."""
        if corrected is None or corrected.shape != self.reference.shape:
            return
        before, after = relative(self.candidate, self.reference), relative(_wide(corrected), self.reference)
        yield Trial(change, before, after, after == 0.0)


class AnySuspect(Protocol):
    """What every kind of suspect has: what diverges, by record and name."""

    @property
    def record(self) -> str:
        """Kind of the record."""

    @property
    def name(self) -> str:
        """The reference's name."""


def _as_seen(value: Array) -> Array:
    return _wide(value) if value.dtype.kind == "f" else np.asarray(value)


def _wide(value: Array) -> Array:
    return np.asarray(value, dtype=np.float64)
