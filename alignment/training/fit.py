"""Training one side: epochs, early stopping, the best weights kept, and saves from which it goes on bit for bit.

What a step computes depends on the weights, the optimizer's and the schedule's state, the batch and the step's number alone:
the order of the rows follows from the seed and the epoch, dropout masks from the seed and the step. So a run that goes on from
a save makes the same steps that it would have made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.training.feeding import Position
from alignment.training.reviews import Part, ReviewTask
from alignment.training.run_folder import Epoch, Place, Saved, SideFolder
from alignment.training.scores import Scores, score
from alignment.training.trainer import Trainer
from fake_data import Batch

# Told what is done, (steps, of how many).
Progress = Callable[[str, int, int], None]


class StoppedError(AlignmentError):
    """Training was asked to stop; all it has done is saved."""


def fit(
    trainer: Trainer,
    task: ReviewTask,
    folder: SideFolder,
    *,
    name: str,
    seed: int,
    batch_size: int,
    epochs: int,
    patience: int,
    save_every: float,
    progress: Progress | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Place:
    """Train until the last epoch, or until macro-F in validation has not risen for `patience` epochs.

    It goes on from what the folder holds, if anything; the trainer has the initial weights before.

    Args:
        name: of the model, for messages.
        seed: of the order of the rows.
        save_every: seconds between two saves within an epoch; at the end of each there is one, too.
        stop: asked before each step.

    Raises:
        StoppedError: `stop` said so.
        AlignmentError: the model raises something, or the loss is no longer finite.
        CheckpointError: what was saved can't be read, or a save can't be written; the one before is still there.
    """
    saved = folder.load()
    place = Place()
    if saved is not None:
        trainer.load_weights(saved.weights)
        trainer.load_state(saved.state)
        place = saved.place
        folder.write_metrics(place)
    feed = task.train.feed(batch_size, seed)
    kept = time.monotonic()
    while not place.ended:
        number = place.position.epoch + 1
        rate = math.nan
        for batch in feed.epoch(place.position.epoch, place.position.step):
            if stop is not None and stop():
                _save(trainer, place, folder)
                raise StoppedError(f"stopped in epoch {number}, after {place.position.step} of its {len(feed)} steps")
            with telling(name, batch):
                done = trainer.step(batch)
            rate, step = done.rates[0], place.position.step + 1
            if not math.isfinite(done.loss):
                raise AlignmentError(
                    f"the loss is {done.loss} in epoch {number}, step {step} of {len(feed)}: "
                    "lower the learning rate (--lr), or clip gradients (--clip 'global norm:1')"
                )
            rows = len(batch.targets) if batch.targets is not None else 0
            place = replace(
                place,
                position=Position(number - 1, step),
                total=place.total + done.loss * rows,
                rows=place.rows + rows,
            )
            if progress is not None:
                said = f"epoch {number} of {epochs}, loss {place.total / place.rows:.3f}"
                progress(said, (number - 1) * len(feed) + step, epochs * len(feed))
            if step < len(feed) and time.monotonic() - kept >= save_every:
                _save(trainer, place, folder)
                kept = time.monotonic()
        place = _end_epoch(trainer, task, place, folder, name, rate, batch_size, len(feed))
        place = replace(place, ended=_ended(place, epochs, patience))
        _save(trainer, place, folder)
        kept = time.monotonic()
        if on_epoch is not None:
            on_epoch(place.history[-1])
    return place


def predict(trainer: Trainer, part: Part, batch_size: int, name: str) -> NDArray:
    """Logits [n, C] of some rows, in evaluation mode. name: of the model, for messages.

    Raises:
        AlignmentError: the model raises something.
    """
    logits = []
    for batch in part.feed(batch_size).epoch():
        with telling(name, batch):
            logits.append(trainer.predict(batch))
    return np.concatenate(logits)


def evaluate(trainer: Trainer, part: Part, batch_size: int, name: str) -> Scores:
    """How a trainer's model does on some rows; see `predict`."""
    return score(predict(trainer, part, batch_size, name), part.labels)


@contextmanager
def telling(name: str, batch: Batch) -> Iterator[None]:
    """Say of which model and batch it is what a user's model raises."""
    try:
        yield
    except AlignmentError:
        raise
    except Exception as error:
        raise AlignmentError(f"{name} fails on {batch.name}: {type(error).__name__}: {error}") from error


def _end_epoch(
    trainer: Trainer,
    task: ReviewTask,
    place: Place,
    folder: SideFolder,
    name: str,
    rate: float,
    batch_size: int,
    steps: int,
) -> Place:
    train = evaluate(trainer, task.train.first(len(task.validation)), batch_size, name)
    validation = evaluate(trainer, task.validation, batch_size, name)
    best = place.best is None or validation.confusion.macro_f1 > place.best.validation.confusion.macro_f1
    number = place.position.epoch + 1
    if best:
        # Before the save: should there be none after it, the epoch is trained again, and ends with the same weights.
        folder.save_best(trainer.weights())
    trainer.end_epoch(validation.loss)
    epoch = Epoch(number, number * steps, rate, place.total / place.rows, train, validation, best)
    return Place(Position(number), history=(*place.history, epoch))


def _ended(place: Place, epochs: int, patience: int) -> str:
    best = place.best
    assert best is not None
    if place.position.epoch >= epochs:
        return f"all {epochs} epochs"
    since = place.position.epoch - best.number
    return f"no better macro-F in validation for {since} epochs" if since >= patience else ""


def _save(trainer: Trainer, place: Place, folder: SideFolder) -> None:
    folder.save(Saved(place, trainer.weights(), trainer.state()))
