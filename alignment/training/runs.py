"""Training a twin on reviews: either side or both from the same initial weights, and then the parity of the trained weights.

    report = train("fast-transformer-classifier", TrainOptions(epochs=3), "runs/one")
    print(report.verdict, [run.test.confusion.macro_f1 for run in report.runs])

A run keeps itself in a folder (`alignment.training.run_folder`) and goes on from there after it was stopped or killed:
``resume("runs/one")``.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from alignment.check import own_versions
from alignment.errors import AlignmentError
from alignment.experiment import SIDES, Experiment, Options, prepare
from alignment.frameworks import Dropout, get_trainer
from alignment.training.fit import evaluate, fit
from alignment.training.parity import Parity, compare_trained
from alignment.training.recipe import Recipe
from alignment.training.reviews import PARTS, ReviewTask, read_task
from alignment.training.run_folder import BEST, RUN, Epoch, RunFolder
from alignment.training.scores import Scores, spread
from alignment.training.trainer import Trainer
from alignment.twins import get_twin
from checkpoints import read

Verdict = Literal["aligned", "diverged", "inconclusive"]
# Told (what, done, total).
Progress = Callable[[str, int, int], None]
# Told (seed, side, epoch) when one is over.
OnEpoch = Callable[[int, str, Epoch], None]

SAVE_EVERY = 60.0


@dataclass(frozen=True)
class TrainOptions:
    """How a twin is trained. Every default is the command line's.

    settings:   sizes and other constructor keywords that replace the twin's own; the vocabulary's size is the reviews'.
    side:       ``"reference"``, ``"candidate"`` or ``"both"``. All start from the reference's initial weights.
    data:       ``"synthetic"``, or the path of a file of reviews. reviews: read no more than so many.
    split:      ``"balanced"``: as many of each rating; ``"random"``: as they come. split_seed: which rows are in which part.
    length:     tokens of a row; None: the model's longest. min_count, max_words: what is kept of the vocabulary.
    recipe:     optimizer, schedule, clipping. batch_size: rows of a step.
    epochs:     at most so many. patience: epochs without a better macro-F in validation after which training ends.
    dropout:    ``"seeded"``: the same masks on both sides, others in each step; ``"own"``: the frameworks' own, seeded anew
                in each step; ``"off"``.
    weights:    ``"init"``: the reference's initialiser, or the path of a checkpoint.
    seed:       of initial weights, of the order of the rows and of dropout. seeds: how many in a row, from `seed` on.
    threads:    CPU threads of both frameworks; None: one for small sizes, else all.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    side: Literal["reference", "candidate", "both"] = "both"
    data: str = "synthetic"
    reviews: int | None = None
    split: Literal["balanced", "random"] = "balanced"
    split_seed: int = 0
    length: int | None = None
    min_count: int = 2
    max_words: int | None = None
    recipe: Recipe = field(default_factory=Recipe)
    batch_size: int = 32
    epochs: int = 5
    patience: int = 3
    dropout: Literal["seeded", "own", "off"] = "seeded"
    weights: str = "init"
    seed: int = 0
    seeds: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "patience", "seeds", "min_count"):
            if getattr(self, name) < 1:
                raise AlignmentError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, allowed in (
            ("side", (*SIDES, "both")),
            ("split", ("balanced", "random")),
            ("dropout", ("seeded", "own", "off")),
        ):
            if getattr(self, name) not in allowed:
                raise AlignmentError(f"{name} is {', '.join(allowed)}, not {getattr(self, name)!r}")

    @property
    def sides(self) -> tuple[str, ...]:
        """Which are trained, the reference first."""
        return SIDES if self.side == "both" else (self.side,)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has them."""
        shallow = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**shallow, "settings": dict(self.settings), "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainOptions:
        """What `to_dict` gave.

        Raises:
            AlignmentError: it is something else.
        """
        try:
            return cls(**{**values, "recipe": Recipe.from_dict(values["recipe"])})
        except (KeyError, TypeError) as error:
            raise AlignmentError(f"{RUN} is not as it was written ({error!r}); train anew in another folder") from None


@dataclass(frozen=True, eq=False)
class SideRun:
    """One side trained with one seed.

    history: the epochs. ended: why it ended. best: the number of the epoch whose weights the scores are of. tokens: of a
    second of training since the run was begun or resumed, padding included; None where nothing was left to train.
    """

    seed: int
    side: str
    name: str
    history: tuple[Epoch, ...]
    ended: str
    best: int
    train: Scores
    validation: Scores
    test: Scores
    tokens: float | None = None

    def scores(self, part: str) -> Scores:
        """Of ``"train"``, ``"validation"`` or ``"test"``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[part]


@dataclass(frozen=True, eq=False)
class TrainReport:
    """What a training run led to.

    settings: of the models. rows: of each part. length: tokens of a row. parities: of each seed, where both sides were
    trained. notes: what a person should know.
    """

    twin: str
    options: TrainOptions
    settings: Mapping[str, Any]
    source: str
    rows: Mapping[str, int]
    length: int
    runs: tuple[SideRun, ...]
    parities: tuple[Parity, ...]
    versions: Mapping[str, str]
    notes: tuple[str, ...]
    seconds: float

    @property
    def verdict(self) -> Verdict | None:
        """The worst of the parities; None where one side alone was trained, and there is nothing to compare."""
        found = {parity.verdict for parity in self.parities}
        order: tuple[Verdict, ...] = ("diverged", "inconclusive", "aligned")
        return next((verdict for verdict in order if verdict in found), None)

    @property
    def comparison(self) -> tuple[str, ...]:
        """How the two sides' own training compares, in words: macro-F and accuracy on the test rows."""
        if self.options.side != "both":
            return ()
        lines = []
        for name, called in (("macro_f1", "macro-F"), ("accuracy", "accuracy")):
            (one, sd_one), (two, sd_two) = (
                spread(100 * getattr(run.test.confusion, name) for run in self.of(side)) for side in SIDES
            )
            gap, widest = abs(one - two), max(sd_one, sd_two)
            line = f"{called} on the test rows: reference {one:.2f}, candidate {two:.2f}, {gap:.2f} apart"
            if self.options.seeds > 1:
                line += f"; from seed to seed they spread by {widest:.2f}: {'within' if gap <= widest else 'beyond'} it"
            lines.append(line)
        return tuple(lines)

    def of(self, side: str) -> tuple[SideRun, ...]:
        """One side's runs, a seed each."""
        return tuple(run for run in self.runs if run.side == side)


def train(
    twin: str,
    options: TrainOptions | None = None,
    folder: str | Path | None = None,
    *,
    save_every: float = SAVE_EVERY,
    progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainReport:
    """Train a twin.

    Args:
        twin: a built-in name, or ``"package.module:attribute"``.
        folder: where the run is kept: a new or an empty one; None: nothing is kept.
        save_every: seconds between two saves within an epoch.
        stop: asked before each step; where it says so, all is saved and StoppedError raised.

    Raises:
        StoppedError: it was asked to stop.
        AlignmentError, CheckpointError, DataError: it could not run; the message says what to change.
    """
    options = options or TrainOptions()
    with _kept(folder) as path:
        session = _Session(twin, options, RunFolder(path), save_every, progress, on_epoch, stop)
        session.folder.begin(session.about())
        with session.folder.held():
            return session.run()


def resume(
    folder: str | Path,
    *,
    data: str | None = None,
    save_every: float = SAVE_EVERY,
    progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainReport:
    """Go on with a run that was stopped or killed; of one that has ended, the report is made again.

    Args:
        data: where the file of reviews is now, if it has moved. For the others see `train`.

    Raises:
        AlignmentError: the folder holds no run, or the reviews are not those it was trained on; and as `train`.
    """
    kept = RunFolder(Path(folder))
    about = kept.about()
    options = replace(TrainOptions.from_dict(about["options"]), threads=about["threads"])
    if data is not None:
        options = replace(options, data=data)
    session = _Session(about["twin"], options, kept, save_every, progress, on_epoch, stop)
    now = session.about()
    kept.refuse_other({**now, "options": about["options"]})
    then, versions = about["versions"], now["versions"]
    if then != versions:
        changed = [
            f"{name} {then.get(name)} → {versions.get(name)}"
            for name in {**then, **versions}
            if then.get(name) != versions.get(name)
        ]
        session.notes.append(
            f"begun with other versions, so the end may not be the same to the last bit: {', '.join(changed)}"
        )
    with kept.held():
        return session.run()


def _file_hash(path: str) -> str | None:
    """SHA-256 of the file that training starts from; None where it is no file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else None


@contextmanager
def _kept(folder: str | Path | None) -> Iterator[Path]:
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="align-train-") as name:
        yield Path(name)


class _Session:
    """One run of the program: the data, the models, and what both sides have come to."""

    def __init__(
        self,
        twin: str,
        options: TrainOptions,
        folder: RunFolder,
        save_every: float,
        progress: Progress | None,
        on_epoch: OnEpoch | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self.address, self.twin, self.options, self.folder = twin, get_twin(twin), options, folder
        self.save_every, self.progress, self.on_epoch, self.stop = save_every, progress, on_epoch, stop
        self.start = time.perf_counter()
        unknown = sorted(set(options.settings) - set(self.twin.settings))
        if unknown:
            raise AlignmentError(
                f"{self.twin.name} has no setting {', '.join(unknown)}; it has: {', '.join(self.twin.settings)}"
            )
        if self.twin.vocabulary in options.settings:
            raise AlignmentError(
                f"{self.twin.vocabulary} follows from the reviews: leave it out, and choose with --max-words and --min-count"
            )
        self.task: ReviewTask = read_task(
            self.twin,
            {**self.twin.settings, **options.settings},
            data=options.data,
            reviews=options.reviews,
            split=options.split,
            split_seed=options.split_seed,
            length=options.length,
            min_count=options.min_count,
            max_words=options.max_words,
            progress=progress,
        )
        self.notes = list(self.task.notes)
        self.experiment = self._prepare(options.seed)

    def _prepare(self, seed: int) -> Experiment:
        """Both sides with the initial weights of a seed; where the reference alone is trained, nothing else is imported."""
        options = self.options
        given = Options(
            settings=self.task.settings,
            data="fake",
            weights=options.weights,
            seed=seed,
            batch_size=options.batch_size,
            length=self.task.length,
            threads=options.threads,
        )
        experiment = prepare(self.twin, given, alone=options.side == "reference")
        if experiment.layout is None and options.side != "reference":
            raise AlignmentError(
                "\n  ".join(("the candidate can't be given the reference's weights:", *experiment.mismatch))
            )
        return experiment

    def about(self) -> dict[str, Any]:
        """What decides the result, as the folder keeps it."""
        versions = own_versions() | self.experiment.reference.versions() | self.experiment.candidate.versions()
        return {
            "twin": self.address,
            "options": self.options.to_dict(),
            "settings": dict(self.task.settings),
            "threads": self.experiment.threads,
            "weights": _file_hash(self.options.weights),
            "reviews": {
                "source": self.task.source,
                "hash": self.task.hash,
                "words": len(self.task.words),
                "length": self.task.length,
                **{name: len(self.task.part(name)) for name in PARTS},
            },
            "versions": versions,
        }

    def run(self) -> TrainReport:
        """Train what is left, evaluate, compare."""
        options = self.options
        self.folder.keep_words(self.task.words)
        runs: list[SideRun] = []
        parities: list[Parity] = []
        for seed in range(options.seed, options.seed + options.seeds):
            experiment = self.experiment if seed == options.seed else self._prepare(seed)
            experiment.use_threads()
            trainers: dict[str, Trainer] = {}
            for side in options.sides:
                trainers[side] = self._trainer(experiment, side, seed)
                runs.append(self._train(trainers[side], experiment, side, seed))
            if options.side == "both":
                self._tell(f"seed {seed}: parity of the trained weights")
                best = self.folder.side(seed, "reference").path / BEST
                trainers["candidate"].load_weights(experiment.candidate_state(read(best)))
                parities.append(compare_trained(experiment, trainers, best, self.task, options.batch_size, seed))
        report = TrainReport(
            self.twin.name,
            options,
            self.task.settings,
            self.task.source,
            {name: len(self.task.part(name)) for name in PARTS},
            self.task.length,
            tuple(runs),
            tuple(parities),
            self.about()["versions"],
            tuple(self.notes),
            time.perf_counter() - self.start,
        )
        return report

    def _trainer(self, experiment: Experiment, side: str, seed: int) -> Trainer:
        framework, _ = experiment.side(side)
        model = experiment.build(side)
        initial = next(iter(experiment.weights.values()))
        framework.load_state(model, initial if side == "reference" else experiment.candidate_state(initial))
        masks: dict[str, Dropout] = {"seeded": seed, "own": ("own", seed), "off": None}
        names = None
        if side == "candidate":
            assert experiment.layout is not None
            names = {move.target: move.source for move in experiment.layout.moves}
        return get_trainer(
            framework.name,
            model,
            self.options.recipe,
            loss=experiment.loss(side),
            dropout=masks[self.options.dropout],
            names=names,
        )

    def _train(self, trainer: Trainer, experiment: Experiment, side: str, seed: int) -> SideRun:
        options, folder = self.options, self.folder.side(seed, side)
        start = time.perf_counter()
        _, name = experiment.side(side)
        called = f"the {side} ({name})"
        steps: list[int] = []

        def tell(what: str, done: int, total: int) -> None:
            steps.append(done)
            self._tell(f"seed {seed}, {side}: {what}", done, total)

        place = fit(
            trainer,
            self.task,
            folder,
            name=called,
            seed=seed,
            batch_size=options.batch_size,
            epochs=options.epochs,
            patience=options.patience,
            save_every=self.save_every,
            progress=tell,
            on_epoch=None if self.on_epoch is None else partial(self.on_epoch, seed, side),
            stop=self.stop,
        )
        tokens = len(steps) * options.batch_size * self.task.length / (time.perf_counter() - start) if steps else None
        self._tell(f"seed {seed}, {side}: the best weights on all rows")
        trainer.load_weights(read(folder.path / BEST))
        train, validation, test = (
            evaluate(trainer, self.task.part(part), options.batch_size, called) for part in PARTS
        )
        best = place.best
        assert best is not None
        return SideRun(seed, side, name, place.history, place.ended, best.number, train, validation, test, tokens)

    def _tell(self, what: str, done: int = 0, total: int = 0) -> None:
        if self.progress is not None:
            self.progress(what, done, total)
