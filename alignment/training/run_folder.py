"""What a training run keeps on disk, so that one that was killed at any moment goes on as if nothing had been.

    DIR/run.json                      what is trained, how, on what; written first and never changed
    DIR/vocabulary.txt                line i + 1 is the word of id i
    DIR/seed-0/reference/state.safetensors    weights, optimizer state and place of the last save: what a run goes on from
    DIR/seed-0/reference/last.safetensors     the weights of the last save
    DIR/seed-0/reference/best.safetensors     the weights with the best validation macro-F
    DIR/seed-0/reference/metrics.jsonl        a line an epoch
    DIR/seed-0/candidate/…
    DIR/result.json, DIR/report.html, DIR/parity.html    written when the run has ended

Every file is written aside and renamed. `state.safetensors` is the one that counts: all that a run goes on from is in it, so
there is no moment between two files at which they do not fit. The others follow from it and from the steps that come after
it, which are the same steps again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.training.feeding import Position
from alignment.training.scores import Scores
from alignment.training.trainer import TrainerState
from checkpoints import CheckpointError, read_checkpoint, write, write_aside

SCHEMA, VERSION = "alignment.training", 1
RUN, VOCABULARY, RESULT, REPORT, PARITY = "run.json", "vocabulary.txt", "result.json", "report.html", "parity.html"
STATE, LAST, BEST, METRICS = "state.safetensors", "last.safetensors", "best.safetensors", "metrics.jsonl"
_WEIGHT, _SLOT = "weight", "slot"


@dataclass(frozen=True, eq=False)
class Epoch:
    """What one epoch of training led to.

    number: from 1. steps: made up to its end. rate: the learning rate of its last step. loss: mean of its steps' losses, with
    dropout, weighted by rows. train, validation: scores at its end, without dropout; of the training rows as many as there
    are for validation. best: no epoch before it had a better macro-F in validation.
    """

    number: int
    steps: int
    rate: float
    loss: float
    train: Scores
    validation: Scores
    best: bool

    def to_dict(self) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        return {
            "epoch": self.number,
            "steps": self.steps,
            "learning_rate": self.rate,
            "loss": self.loss,
            "train": self.train.to_dict(),
            "validation": self.validation.to_dict(),
            "best": self.best,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Epoch:
        """What `to_dict` gave."""
        return cls(
            values["epoch"],
            values["steps"],
            values["learning_rate"],
            values["loss"],
            Scores.from_dict(values["train"]),
            Scores.from_dict(values["validation"]),
            values["best"],
        )


@dataclass(frozen=True, eq=False)
class Place:
    """How far the training of one side has come.

    position: the next batch. total, rows: of the epoch under way, the losses times rows, and the rows. ended: why training
    ended, empty while it goes on.
    """

    position: Position = field(default_factory=Position)
    total: float = 0.0
    rows: int = 0
    history: tuple[Epoch, ...] = ()
    ended: str = ""

    @property
    def best(self) -> Epoch | None:
        """The epoch with the best macro-F in validation, the first of equal ones."""
        return next((epoch for epoch in reversed(self.history) if epoch.best), None)


@dataclass(frozen=True, eq=False)
class Saved:
    """Everything that training goes on from."""

    place: Place
    weights: dict[str, NDArray]
    state: TrainerState


@dataclass(frozen=True)
class SideFolder:
    """The files of one side of one seed."""

    path: Path

    def save(self, saved: Saved) -> None:
        """Keep all of it.

        Raises:
            CheckpointError: it can't be written; what was saved before is still there.
        """
        place, state = saved.place, saved.state
        write(self.path / LAST, saved.weights)
        tensors = {f"{_WEIGHT}/{name}": value for name, value in saved.weights.items()}
        for slot, values in state.slots.items():
            tensors |= {f"{_SLOT}/{slot}/{name}": value for name, value in values.items()}
        about = {
            "schema": SCHEMA,
            "version": VERSION,
            "epoch": place.position.epoch,
            "step": place.position.step,
            "total": place.total,
            "rows": place.rows,
            "history": [epoch.to_dict() for epoch in place.history],
            "ended": place.ended,
            "steps": state.steps,
            "schedule": dict(state.schedule),
            "updates": dict(state.updates),
        }
        # One entry: the order of several is not the same in every run.
        write(self.path / STATE, tensors, {"training": json.dumps(about)})
        self.write_metrics(place)

    def save_best(self, weights: Mapping[str, NDArray]) -> None:
        """Keep the weights with the best validation macro-F up to now."""
        write(self.path / BEST, weights)

    def write_metrics(self, place: Place) -> None:
        """A line for each epoch that is over."""
        with write_aside(self.path / METRICS) as file:
            file.write("".join(json.dumps(epoch.to_dict()) + "\n" for epoch in place.history).encode())

    def load(self) -> Saved | None:
        """What was saved last; None before the first time. Files that were not written to their end are taken away.

        Raises:
            CheckpointError, AlignmentError: the file is damaged, or of another version.
        """
        path = self.path / STATE
        for aside in filter(_unfinished, self.path.iterdir()):
            with suppress(OSError):
                aside.unlink()
        if not path.exists():
            return None
        held = read_checkpoint(path)
        try:
            about = json.loads(held.metadata["training"])
            if (about["schema"], about["version"]) != (SCHEMA, VERSION):
                raise AlignmentError(
                    f"{path} is of version {about['version']}; this program writes and reads {VERSION}"
                )
            place = Place(
                Position(about["epoch"], about["step"]),
                about["total"],
                about["rows"],
                tuple(Epoch.from_dict(line) for line in about["history"]),
                about["ended"],
            )
            state = TrainerState(about["steps"], {}, about["schedule"], about["updates"])
        except (KeyError, TypeError, ValueError) as error:
            raise AlignmentError(f"{path} is not as it was written ({error!r}); train anew in another folder") from None
        weights: dict[str, NDArray] = {}
        slots: dict[str, dict[str, NDArray]] = {}
        for full, value in held.tensors.items():
            kind, _, rest = full.partition("/")
            if kind == _WEIGHT:
                weights[rest] = value
            else:
                slot, _, name = rest.partition("/")
                slots.setdefault(slot, {})[name] = value
        return Saved(place, weights, replace(state, slots=slots))


@dataclass(frozen=True)
class RunFolder:
    """The folder of a whole run."""

    path: Path

    def side(self, seed: int, side: str) -> SideFolder:
        """The files of one side trained with one seed; its folder is made."""
        path = self.path / f"seed-{seed}" / side
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{path}: can't make the folder: {error.strerror or error}") from error
        return SideFolder(path)

    def begin(self, about: Mapping[str, Any]) -> None:
        """Write down what is trained, before the first step.

        Raises:
            AlignmentError: the folder holds a run already, or other files; the message says what to do.
            CheckpointError: it can't be written to.
        """
        if (self.path / RUN).exists():
            self.refuse_other(about)
            raise AlignmentError(
                f"{self.path} holds this very run already: `align train --resume {self.path}` goes on with it, or shows its "
                "result if it has ended"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not all(_unfinished(path) for path in self.path.iterdir()):
                raise AlignmentError(f"{self.path} is not empty and holds no run; name a new folder")
        except OSError as error:
            raise CheckpointError(f"{self.path}: can't make the folder: {error.strerror or error}") from error
        self.write_json(RUN, {"schema": SCHEMA, "version": VERSION, **about})

    def keep_words(self, words: tuple[str, ...]) -> None:
        """Write down the word of each id, where that is not done."""
        if not (self.path / VOCABULARY).exists():
            with write_aside(self.path / VOCABULARY) as file:
                file.write("".join(f"{word}\n" for word in words).encode())

    def about(self) -> dict[str, Any]:
        """What `begin` wrote.

        Raises:
            AlignmentError: there is no run, or of another version, or its file is damaged.
        """
        path = self.path / RUN
        if not path.is_file():
            raise AlignmentError(
                f"{self.path} holds no run: there is no {RUN}; `align train -o {self.path}` begins one"
            )
        try:
            held = json.loads(path.read_bytes())
            schema, version = held.pop("schema"), held.pop("version")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise AlignmentError(f"{path} is not as it was written ({error!r}); train anew in another folder") from None
        if (schema, version) != (SCHEMA, VERSION):
            raise AlignmentError(f"{path} is {schema} {version}; this program writes and reads {SCHEMA} {VERSION}")
        return dict(held)

    def refuse_other(self, about: Mapping[str, Any]) -> None:
        """Compare what the folder was made for with what is asked for now.

        Raises:
            AlignmentError: they differ; the message lists in what.
        """
        there, here = _flat(self.about()), _flat(json.loads(json.dumps(about)))
        differing = [key for key in dict.fromkeys((*there, *here)) if there.get(key) != here.get(key)]
        # A run may be taken to another machine, and its reviews with it: versions are told, and the reviews' hash counts.
        differing = [key for key in differing if not key.startswith("versions.") and key != "reviews.source"]
        if differing:
            lines = [f"  {key}: {_told(there, key)} there, {_told(here, key)} asked for" for key in differing]
            raise AlignmentError(
                "\n".join(
                    (f"{self.path} holds a run with another configuration:", *lines, "Name another folder with -o.")
                )
            )

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """One file of plain values."""
        with write_aside(self.path / name) as file:
            file.write((json.dumps(values, indent=1) + "\n").encode())


def _unfinished(path: Path) -> bool:
    """Is it what a process that was killed was writing?"""
    return path.name.startswith(".") and path.suffix == ".part"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _told(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "nothing"
