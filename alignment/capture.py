"""Capture one side of a twin into a file, where the other side's framework need not be installed.

The reference is captured first. Its file holds all that the candidate needs: weights, batches, settings, seeds, and what
was to be kept. The candidate is captured from it, elsewhere or later, and the two files are compared (`alignment.apart`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np

import checkpoints
from alignment.capture_file import (
    SUFFIX,
    About,
    Capture,
    CaptureWriter,
    Dropout,
    Key,
    Level,
    Loss,
    Mode,
    Run,
    Why,
    listing_cost,
    read_capture,
    refuse_suffix,
    size_in_words,
    write_capture,
)
from alignment.check import Checked, Progress
from alignment.correspondence import OF_MODULES, path_of, rename, renamed
from alignment.errors import AlignmentError
from alignment.experiment import (
    LEARNING_RATE,
    NOISE_RUNS,
    SIDES,
    Experiment,
    Options,
    State,
    largest_gradient,
    mapping_of,
    prepare,
    summands_of,
    told_mapping,
    tree_of,
)
from alignment.faults import Fault, get_fault
from alignment.figures import Figures, figures_of, float32_error
from alignment.frameworks import Framework, get_framework, own_loss
from alignment.localise import Scene
from alignment.mapping import ModelMapping
from alignment.matching import Tree
from alignment.recorded import Recorded, tree_told
from alignment.saved_pair import no_inputs
from alignment.scope import ASK_FOR_A_MAPPING, Said, corresponding, settle_scope, spell_out
from alignment.stages import criterion, criterion_options, criterion_scale, fits, initializer_seeds
from alignment.trace import Record, Terms, Trace
from alignment.twins import TWINS, Side, Twin, framework_of, get_twin
from checkpoints import Move, NameMap, undo
from fake_data import Batch

# Runs of the reference whose spread says how far rounding moves a training run.
TRAIN_NOISE_RUNS = NOISE_RUNS + 1
TRAIN_BATCH = "training"


@dataclass(frozen=True)
class Keep:
    """What is kept of a run.

    level: ``"all"``; ``"boundaries"``: outputs of the model's own children, the logits, the loss and the gradients;
    ``"statistics"``: figures of every tensor in place of its values, and no optimizer's step.
    only: patterns (as a shell's) of the reference's record names; a record that none matches is left out. Empty: all.
    budget: bytes the file may have; what would be beyond is left out, in the order of the runs.
    """

    level: Level = "all"
    only: tuple[str, ...] = ()
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise AlignmentError(f"the budget must be at least one byte, not {self.budget}")

    def why_not(self, key: Key) -> Why | None:
        """Why a record of this kind and name (the reference's) is not asked for; None: it is."""
        kind, name = key
        inner = kind == "activation" and "." in path_of(name)
        if self.level == "boundaries" and (inner or kind not in ("activation", "logits", "output", "loss", "gradient")):
            return "level"
        if self.level == "statistics" and kind == "update":  # which is judged given its gradient, element by element
            return "level"
        if self.only and not any(fnmatchcase(name, pattern) for pattern in self.only):
            return "only"
        return None

    @property
    def detail(self) -> bool:
        """Is everything asked for, and so a detailed run to explain divergences by, too?"""
        return self.level == "all" and not self.only


@dataclass(frozen=True)
class Captured:
    """What was written. left_out: reason -> number of records. notes: what the reader should know besides."""

    path: Path
    bytes: int
    left_out: Mapping[Why, int]
    notes: tuple[str, ...]

    def describe(self) -> str:
        """In one line."""
        told = f"{self.path}: {size_in_words(self.bytes)}"
        words = {"level": "by the level", "only": "by --only", "budget": "for want of room (--budget)"}
        parts = [f"{count} {words[why]}" for why, count in self.left_out.items()]
        return told + (f"; records left out: {', '.join(parts)}" if parts else "")


def capture_reference(
    twin: Any,
    path: str | Path,
    options: Options | None = None,
    keep: Keep | None = None,
    train_steps: int = 0,
    progress: Progress | None = None,
    *,
    initializers: bool = False,
    inputs: Any = None,
    loss: Any = None,
    mode: Mode = "eval",
) -> Captured:
    """Run the reference on every batch with every set of weights, in both precisions, and write what it did.

    The candidate's framework and package are not imported.

    Args:
        twin: a built-in name, ``"package.module:attribute"``, a Twin, or the reference's model itself or its class.
        path: a .safetensors file.
        options: sizes, data, weights, seed; faults are planted on candidates, and belong to the candidate's capture, and so
            does a mapping.
        keep: what to keep of each run; the default is all.
        train_steps: steps of Adam to record besides, by loss and by the change of each parameter.
        progress: called with (done, total) after every batch.
        initializers: keep what the reference's own initialiser gives under several seeds, too, so that the candidate's can be
            compared with it.
        inputs, loss, mode: of a model that is given itself, as in `alignment.check`; the loss is this side's alone.

    Raises:
        AlignmentError, CheckpointError, DataError: it could not run, or the file can't be written.
    """
    options, keep, path = options or Options(), keep or Keep(), Path(path)
    if options.faults:
        raise AlignmentError("faults are planted on the candidate: name them where the candidate is captured")
    if options.mapping is not None:
        raise AlignmentError(
            "a mapping goes with the candidate, which is given weights by it: name it where the candidate is captured, or "
            "where the two are compared"
        )
    if options.precision != "float32":
        raise AlignmentError(
            f"a capture holds runs in float32 and float64, none in {options.precision}: a precision goes with a check in one "
            "environment"
        )
    refuse_suffix(path)
    checkpoints.check_destination(path)
    asked = get_twin(twin) if isinstance(twin, str) else twin
    if not isinstance(asked, Twin):
        asked = lone_reference(asked, inputs, loss, mode)
    elif inputs is not None or loss is not None or mode != "eval":
        raise AlignmentError("inputs, a loss and a mode go with a model that is given itself; a twin has its own")
    if Path(options.weights).suffix == ".pdparams" and asked.reference.framework != "paddle":
        raise AlignmentError(
            f"{options.weights}: is in Paddle's layout, which the reference's side alone does not tell: convert it first, with "
            "`align convert`"
        )
    address = twin if isinstance(twin, str) else asked.name if TWINS.get(asked.name) is asked else ""
    if initializers and not asked.reference.built:
        raise AlignmentError(
            "a model given ready-made can't be drawn again: give its class, or leave out the initializers"
        )
    experiment = prepare(asked, options, alone=True)
    framework, chosen = experiment.reference, experiment.twin
    model = experiment.reference_model
    renames = {slot.name: chosen.names.rename(slot.name) for slot in framework.slots(model)}
    about = replace(
        _about(experiment, "reference", model, keep),
        address=address,
        train_steps=train_steps,
        initializers=initializer_seeds(experiment) if initializers else 0,
        counterparts={name: to for name, to in renames.items() if to is None or to.changed},
    )
    return _Capturing(experiment, "reference", about, keep).write(path, experiment.weights, progress)


def capture_candidate(
    reference: str | Path,
    path: str | Path,
    twin: Any = None,
    faults: tuple[str | Fault, ...] = (),
    threads: int | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
    *,
    mapping: ModelMapping | str | None = None,
    loss: Any = None,
) -> Captured:
    """Run the candidate as a reference's capture says, and write what it did.

    The reference's framework and package are not imported. Level, patterns and training steps are those of the reference's
    capture. Where the candidate can't take the reference's weights, the file says why, and holds no runs.

    Args:
        reference: the reference's capture.
        path: a .safetensors file.
        twin: the twin, if not by the name in the reference's capture; or the candidate's model itself or its class.
        faults: to plant, by name or as they are.
        threads: CPU threads; None: as many as the reference had.
        budget: bytes the file may have.
        progress: called with (done, total) after every batch.
        mapping: how its parts correspond to the reference's: a value, or a file; None: the twin's own.
        loss: of a model that is given itself, where the reference's is a function: the candidate's.

    Raises:
        AlignmentError, CheckpointError: the capture can't be read or is of another twin, the candidate fails, or the file can't
            be written.
    """
    path = Path(path)
    refuse_suffix(path)
    checkpoints.check_destination(path)
    source = _read_reference(reference)
    chosen = twin_of_capture(source, twin, reference, loss)
    keep = Keep(source.about.level, source.about.only, budget)
    experiment = _settled(_beside(source, chosen, faults, threads, mapping))
    trees = tree_told(source.about), tree_of(experiment.candidate, experiment.candidate_model)
    recorded = dict.fromkeys(name for run in source.runs for _, name in run.order)
    about = replace(
        _about(experiment, "candidate", experiment.candidate_model, keep),
        address=source.about.address,
        train_steps=source.about.train_steps,
        initializers=source.about.initializers if chosen.candidate.built else 0,
        of=source.identity,
        mismatch=tuple(map(_printable, experiment.mismatch)),
        counterparts=experiment.scope.names.exact,
        said=spell_out(experiment.scope, *trees, recorded),
    )
    if experiment.layout is None:
        write_capture(path, replace(about, initializers=0), {}, (), ())
        note = f"nothing was run: the candidate can't be given the reference's weights: {experiment.mismatch[0]}"
        return Captured(path, path.stat().st_size, {}, (note,))
    given = {name: experiment.candidate_state(state) for name, state in experiment.weights.items()}
    return _Capturing(experiment, "candidate", about, keep, source).write(path, given, progress)


def _read_reference(path: str | Path) -> Capture:
    source = read_capture(path)
    if source.about.side != "reference":
        raise AlignmentError(f"{path}: is a {source.about.side}'s capture; a candidate is captured from a reference's")
    if not source.batches or not source.weights:
        raise AlignmentError(f"{path}: holds no weights or no batches, and so nothing to run a candidate with")
    return source


def lone_reference(model: Any, inputs: Any, loss: Any, mode: Mode) -> Twin:
    """A twin of which only the reference is at hand.

    Raises:
        AlignmentError: no inputs, or the model is of no known framework.
    """
    if inputs is None:
        raise AlignmentError("a model given itself needs inputs: what it is to be called with")
    side, kind = _lone("reference", model, loss)
    return Twin(side.name.rpartition(".")[2], "a reference", side, Side("", ""), {}, inputs, loss=kind, mode=mode)


def _lone(side: str, model: Any, loss: Any) -> tuple[Side, Loss]:
    """A side that was given itself, and what its twin's loss is called."""
    own = callable(loss) or (isinstance(loss, str) and ":" in loss)
    if loss not in (None, "model", "criterion", "outputs") and not own:
        raise AlignmentError(
            f"the loss of the {side} is 'criterion', 'model', 'outputs', a function, or the name of one; not {loss!r:.60}"
        )
    return Side(framework_of(model, side), model, loss=loss if own else None), "function" if own else loss or "outputs"


def twin_of_capture(source: Capture, twin: Any, path: str | Path, loss: Any = None) -> Twin:
    """The twin of a reference's capture, whose candidate is to be run. path: of the capture.

    Args:
        twin: as `capture_candidate` takes it.

    Raises:
        AlignmentError: the capture is of another twin, or of one that has no name to get it by.
    """
    about = source.about
    if twin is None and not about.address:
        raise AlignmentError(
            f"{path}: is of {about.twin}, which was given in Python and has no name to get it by: give capture_candidate the "
            "candidate's model; or, on the command line, the name of a twin: package.module:attribute"
        )
    if twin is not None and not isinstance(twin, (str, Twin)):
        side, kind = _lone("candidate", twin, loss)
        if (loss is None and about.loss == "function") or (loss is not None and kind != about.loss):
            what = (
                "a function, which a capture can't hold: give this side's own as loss=" if loss is None else about.loss
            )
            raise AlignmentError(f"{path}: the reference's loss is {what}")
        reference, names = Side(about.framework, about.target), NameMap(exact=about.counterparts)
        settings = dict(about.settings)
        return Twin(
            about.twin, "a candidate", reference, side, settings, no_inputs, loss=about.loss, mode=about.mode, names=names
        )  # fmt: skip
    if loss is not None:
        raise AlignmentError("a loss goes with a model that is given itself; a twin has its own")
    chosen = twin if isinstance(twin, Twin) else get_twin(about.address if twin is None else twin)
    if chosen.name != about.twin and about.address:
        raise AlignmentError(f"{path}: is a capture of the twin {about.twin}, not of {chosen.name}")
    return chosen


def trees_beside(reference: str | Path, twin: Twin) -> tuple[Tree, Tree]:
    """What a matching looks at of a captured reference, and of the twin's candidate built with its settings.

    Raises:
        AlignmentError: the file is no reference's capture, or of another twin; or the candidate can't be built.
    """
    source = _read_reference(reference)
    twin_of_capture(source, twin, reference)
    bare = _beside(source, twin, (), None, None)
    return tree_told(source.about), tree_of(bare.candidate, bare.candidate_model)


def _beside(
    source: Capture,
    twin: Twin,
    faults: tuple[str | Fault, ...],
    threads: int | None,
    mapping: ModelMapping | str | None,
) -> Experiment:
    """A live candidate beside a recorded reference, nothing settled between them."""
    about = source.about
    unknown = sorted(set(about.settings) - set(twin.settings))
    problems = [f"it has settings that the twin has not: {', '.join(unknown)}"] if unknown else []
    problems += [] if about.loss == twin.loss else [f"its loss is {about.loss}, the twin's {twin.loss}"]
    problems += [] if about.mode == twin.mode else [f"it was run in {about.mode} mode, the twin is in {twin.mode}"]
    if problems:
        raise AlignmentError(f"the reference's capture is of another version of {twin.name}: {'; '.join(problems)}")
    planted = tuple(get_fault(fault) if isinstance(fault, str) else fault for fault in faults)
    framework = get_framework(twin.candidate.framework)
    bare = Experiment(
        twin,
        Options(seed=about.seed, faults=planted, strict=about.strict, mapping=mapping, dropout=about.dropout),
        dict(about.settings),
        cast(Framework, Recorded(about)),
        framework,
        None,
        None,
        None,
        (),
        {},
        dict(source.weights),
        source.batches,
        about.data,
        planted,
        about.notes,
        threads or about.threads,
    )
    framework.set_threads(bare.threads)
    return replace(bare, candidate_model=bare.build("candidate", about.seed))


def _settled(experiment: Experiment) -> Experiment:
    """The live candidate with its layout, and the faults found something to hit."""
    twin, framework = experiment.twin, experiment.candidate
    trees = tree_of(experiment.reference, None), tree_of(framework, experiment.candidate_model)
    try:
        layout, mismatch, scope = settle_scope(*trees, mapping_of(twin, experiment.options), twin.names)
    except AlignmentError as error:
        if ASK_FOR_A_MAPPING[1:] not in str(error):
            raise
        hint = "The reference was captured: give align map its file with --from, and the mapping to align capture."
        raise AlignmentError(f"{error}\n{hint}") from error
    # What is inside a boundary is recorded all the same: where it lies may be said anew where the two are compared.
    paths = corresponding(scope, *trees, layout)
    for fault in experiment.faults:
        if fault.plant is not None and not fault.plant(framework, experiment.build("candidate"), twin):
            raise AlignmentError(f"fault {fault.name!r} ({fault.summary}) has nothing to hit in {twin.name}")
    return replace(experiment, layout=layout, mismatch=mismatch, paths=paths, scope=scope)


def _about(experiment: Experiment, side: str, model: Any, keep: Keep) -> About:
    framework, target = experiment.side(side)
    twin, options = experiment.twin, experiment.options
    modules, wide = framework.modules(model), experiment.model(side, "float64").module
    batch = next(iter(experiment.batches[0].inputs.values())) if experiment.batches else None
    return About(
        side="reference" if side == "reference" else "candidate",
        framework=framework.name,
        target=target,
        slots=framework.slots(model),
        modules=modules,
        layers={module.path: framework.options(wide, module.path) for module in modules},
        loss=twin.loss,
        mode=twin.mode,
        dropout=cast(Dropout, options.dropout or twin.dropout),
        padding=twin.padding(experiment.settings),
        device=framework.device(model),
        versions=framework.versions(),
        twin=twin.name,
        settings=experiment.settings,
        options={
            "data": options.data,
            "weights": options.weights,
            "rows": None if batch is None else len(batch),
            "mapping": told_mapping(experiment),
        },
        data=experiment.data,
        notes=tuple(map(_printable, experiment.notes)),
        faults=tuple(fault.name for fault in experiment.faults),
        seed=options.seed,
        strict=options.strict,
        learning_rate=LEARNING_RATE,
        threads=experiment.threads,
        level=keep.level,
        only=keep.only,
        budget=keep.budget,
    )


def _printable(text: str) -> str:
    return "".join(mark if mark.isprintable() else "�" for mark in text)


# -------------------------------------------------------------------------------------------------------------- running


class _Capturing:
    """One side being run and written. source: the reference's capture that a candidate is run by."""

    def __init__(
        self, experiment: Experiment, side: str, about: About, keep: Keep, source: Capture | None = None
    ) -> None:
        self.experiment, self.side, self.about, self.keep, self.source = experiment, side, about, keep, source
        self.framework = experiment.side(side)[0]
        # Records of the side by its own names -> by the reference's, and how they turn into the reference's layout.
        moves = experiment.layout.moves if experiment.layout is not None else ()
        self.moves: dict[str, list[Move]] = {}
        for move in moves:
            self.moves.setdefault(move.target, []).append(move)

    def write(self, path: Path, weights: Mapping[str, State], progress: Progress | None) -> Captured:
        experiment = self.experiment
        cases = len(experiment.weights) * len(experiment.batches)
        noise = NOISE_RUNS if self.side == "reference" else 0
        trained = self.about.train_steps > 0
        done, total = 0, cases + self.keep.detail + trained
        with checkpoints.write_aside(path) as file:
            writer = CaptureWriter(
                file,
                self.about,
                self._loaded(weights),
                experiment.batches,
                cases * (2 + noise),
                self._training_listed(),
                (experiment.initial(self.side, 1 + seed) for seed in range(self.about.initializers)),
            )
            parts = (self._cases(weights), self._detail(weights), self._train(weights))
            for part in parts:
                for group in part:
                    for run in group:
                        writer.add(run, self._why_not(run))
                    done += 1
                    if progress is not None:
                        progress(done, total)
            writer.finish()
        return Captured(path, writer.written, dict(writer.left_out), experiment.notes)

    def _training_listed(self) -> int:
        """Bytes to list all that the training runs may have to leave out."""
        parameters = [slot.name for slot in self.about.slots if slot.role == "parameter"]
        keys = [
            (kind, f"{step}/{name}")
            for step in range(1, self.about.train_steps + 1)
            for kind, name in (("loss", "loss"), *(("update", name) for name in parameters))
        ]
        runs = 1 + (TRAIN_NOISE_RUNS if self.side == "reference" else 0)
        exact = [("gradient", f"1/{name}") for name in parameters]
        return runs * listing_cost(keys) + listing_cost(exact) if keys else 0

    def _loaded(self, weights: Mapping[str, State]) -> dict[str, State]:
        """What the model holds once it was given each set."""
        model = self.experiment.model(self.side, "float32").module
        found = {}
        for name, state in weights.items():
            self.framework.load_state(model, state)
            found[name] = self.framework.read_state(model)
        return found

    def _cases(self, weights: Mapping[str, State]) -> Iterator[list[Run]]:
        experiment, framework, side = self.experiment, self.framework, self.side
        narrow, wide = (experiment.model(side, dtype).module for dtype in ("float32", "float64"))
        for name, state in weights.items():
            for model in (narrow, wide):
                framework.load_state(model, state)
            moved = experiment.moved(name, NOISE_RUNS) if side == "reference" else []
            for batch in experiment.batches:
                traces = [experiment.run(side, model, batch, True, step=True) for model in (narrow, wide)]
                for other in moved:
                    framework.load_state(narrow, other)
                    traces.append(experiment.run(side, narrow, batch, True))
                framework.load_state(narrow, state)
                runs = self._case(name, batch, traces)
                if side == "reference":
                    runs[1] = replace(runs[1], summands=self._summands(wide, batch))
                yield runs

    def _summands(self, model: Any, batch: Batch) -> dict[str, Terms]:
        """What the gradients of a case sum up, for the second look at those that seem imprecise."""
        experiment = self.experiment
        if not experiment.has_loss(batch):
            return {}
        sizes = summands_of(experiment.run(self.side, model, batch, True, detail=True))
        return {path: found for path, found in sizes.items() if all(map(math.isfinite, found))}

    def _case(self, weights: str, batch: Batch, traces: Sequence[Trace]) -> list[Run]:
        """The runs of a case: float32, float64, and those with moved weights. Traces are by the reference's module names."""
        scale = self._scale(weights, batch, traces[1])
        traces = [self._with_criterion(trace, batch, scale) for trace in traces]
        runs = []
        for number, trace in enumerate(traces):
            run = Run(
                "case",
                weights,
                batch.name,
                max(0, number - 1),
                renamed(trace, self.experiment.own_words) if self.side == "candidate" else trace,
                criterion_scale=scale,
                largest_gradient=largest_gradient(trace),
            )
            if self.keep.level == "statistics":
                run = self._as_figures(
                    run, [traces[0], *traces[2:]] if number == 1 and self.side == "reference" else []
                )
            runs.append(run)
        return runs

    def _scale(self, weights: str, batch: Batch, trace: Trace) -> float:
        """By what logits are multiplied for the criterion's options: by the reference's logits, on both sides."""
        if self.source is not None:
            run = self.source.run(weights, batch.name, "float64")
            return 1.0 if run is None else run.criterion_scale
        logits = trace.get("logits", "logits")
        return criterion_scale(logits) if batch.targets is not None and fits(logits, batch.targets) else 1.0

    def _with_criterion(self, trace: Trace, batch: Batch, scale: float) -> Trace:
        """The trace with what this framework's own cross entropy makes of its logits under every option."""
        targets, logits = batch.targets, trace.get("logits", "logits")
        if targets is None or not own_loss(self.experiment.twin.loss) or not fits(logits, targets):
            return trace
        added = [
            Record("loss", label, criterion(self.framework, trace, targets, scale, options))
            for label, options in criterion_options(targets)
        ]
        return replace(trace, records=(*trace.records, *added))

    def _as_figures(self, run: Run, narrow: Sequence[Trace]) -> Run:
        """The run with figures in the place of values. narrow: float32 runs, to know the reference's error by."""
        figures: dict[Key, Figures] = {}
        left_out: dict[Key, Why] = {}
        for record in run.trace.records:
            value = record.value
            if value is None:
                continue
            moves = self.moves.get(record.name, []) if record.kind in ("gradient", "update") else []
            if len(moves) > 1:  # the figures of a whole say nothing of its parts, which have counterparts of their own
                left_out[record.kind, record.name] = "level"
                continue
            error = float32_error(value, [trace.get(record.kind, record.name) for trace in narrow]) if narrow else None
            if moves and value.shape == moves[0].shape_to:
                value = undo(value, moves[0])
            figures[record.kind, record.name] = figures_of(value, error)
        order = tuple((record.kind, record.name) for record in run.trace.records)
        absent = tuple(record for record in run.trace.records if record.value is None)
        return replace(run, trace=replace(run.trace, records=absent), figures=figures, left_out=left_out, order=order)

    def _why_not(self, run: Run) -> Callable[[Key], Why | None]:
        """What is left out of a run, by the side's own names."""
        if run.purpose != "case":
            return lambda _key: None
        return lambda key: run.left_out.get(key) or self.keep.why_not((key[0], self._called(*key)))

    def _called(self, kind: str, name: str) -> str:
        """The reference's name of a record."""
        if self.side == "reference":
            return name
        if kind in OF_MODULES:
            return rename(name, self.experiment.called)
        # Of a tensor whose parts have counterparts of their own the whole: the reference's capture knows no parts.
        return self.moves[name][0].source if kind in ("gradient", "update") and name in self.moves else name

    def _detail(self, weights: Mapping[str, State]) -> Iterator[list[Run]]:
        """A detailed float64 run of the first batch with the last set of weights, the random ones."""
        if not self.keep.detail:
            return
        experiment, batch, name = self.experiment, self.experiment.batches[0], list(weights)[-1]
        model = experiment.model(self.side, "float64").module
        self.framework.load_state(model, weights[name])
        trace = experiment.run(self.side, model, batch, experiment.has_loss(batch), detail=True)
        own = renamed(trace, experiment.own_words) if self.side == "candidate" else trace
        yield [Run("detail", name, batch.name, 0, own, largest_gradient=largest_gradient(trace))]

    def _train(self, weights: Mapping[str, State]) -> Iterator[list[Run]]:
        """Training from the first set of weights, in float32, over the batches that are shaped as the first."""
        if not self.about.train_steps:
            return
        experiment, name = self.experiment, next(iter(weights))
        batches = self._training_batches()
        model = experiment.model(self.side, "float32").module
        sets = [weights[name], *(experiment.moved(name, TRAIN_NOISE_RUNS) if self.side == "reference" else [])]
        runs = []
        for number, state in enumerate(sets):
            self.framework.load_state(model, state)
            records: list[Record] = []

            def sink(step: int, record: Record, records: list[Record] = records) -> None:
                records.append(replace(record, name=f"{step}/{record.name}"))

            try:
                losses = self.framework.train(
                    model, batches, loss=experiment.loss(self.side), learning_rate=LEARNING_RATE, sink=sink
                )
            except (Exception, SystemExit) as error:  # a user's model may raise anything
                what = f"{type(error).__name__}: {error}"
                raise AlignmentError(f"the {self.side} ({self.about.target}) fails in training: {what}") from error
            records += [
                Record("loss", f"{step}/loss", np.array(loss, np.float64)) for step, loss in enumerate(losses, start=1)
            ]
            if self.side == "reference" and not number:
                records += self._exact(state, batches[0])
            trace = Trace(self.framework.name, "float32", tuple(records))
            runs.append(Run("train", name, experiment.batches[0].name, number, trace))
        yield runs

    def _exact(self, state: State, batch: Batch) -> list[Record]:
        """The gradients of the first training step in float64: what is zero but for rounding is told by them."""
        model = self.experiment.model(self.side, "float64").module
        self.framework.load_state(model, state)
        trace = self.experiment.run(self.side, model, batch, True)
        parameters = {slot.name for slot in self.about.slots if slot.role == "parameter"}
        return [
            replace(record, name=f"1/{record.name}")
            for record in trace.records
            if record.kind == "gradient" and record.name in parameters
        ]

    def _training_batches(self) -> list[Batch]:
        """A batch for each step: those that are shaped as the first, in turn."""
        batches = self.experiment.batches
        shapes = [value.shape for value in batches[0].inputs.values()]
        alike = [batch for batch in batches if [value.shape for value in batch.inputs.values()] == shapes]
        usable = [batch for batch in alike if self.experiment.has_loss(batch)]
        if not usable:
            raise AlignmentError("no batch has targets, and so there is nothing to train by: leave out --train-steps")
        if not any(slot.role == "parameter" for slot in self.about.slots):
            raise AlignmentError(
                "the model has no parameters, and so there is nothing to train: leave out --train-steps"
            )
        return [usable[step % len(usable)] for step in range(self.about.train_steps)]


# --------------------------------------------------------------------------------------------------------- both at once


def save_traces(checked: Checked, folder: str | Path) -> tuple[Path, Path]:
    """Write ``reference.safetensors`` and ``candidate.safetensors`` of a check into a folder: captures of one detailed run.

    It is of the first scene in which roots were found; where there is none, of the first batch with random weights.

    Raises:
        AlignmentError: the candidate can't be given the reference's weights, or fails. CheckpointError: can't be written.
    """
    experiment = checked.experiment
    if experiment.layout is None:
        raise AlignmentError(
            f"no traces: the candidate can't be given the reference's weights: {experiment.mismatch[0]}"
        )
    scene = checked.scenes[0] if checked.scenes else Scene(experiment, "random", experiment.batches[0])
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AlignmentError(f"{folder}: can't make this folder: {error.strerror or error}") from error
    models = ((experiment.reference, experiment.reference_model), (experiment.candidate, experiment.candidate_model))
    one, two = (tree_of(*model) for model in models)
    said = spell_out(experiment.scope, one, two, (record.name for record in scene.reference64.records))
    written = []
    for side in SIDES:
        framework = experiment.side(side)[0]
        ours = side == "reference"
        slots = framework.slots(experiment.reference_model if ours else experiment.candidate_model)
        state = experiment.weights[scene.weights] if ours else scene.candidate_state
        # Faults are found in the records, not told; the options are those the model had.
        about = replace(
            _about(replace(experiment, faults=()), side, scene.model(side, "float64"), Keep()),
            slots=slots,
            address=experiment.twin.name,
            counterparts={} if ours else experiment.scope.names.exact,
            said=Said() if ours else said,
        )
        trace = scene.reference64 if ours else renamed(scene.candidate64, experiment.own_words)
        run = Run("detail", scene.weights, scene.batch.name, 0, trace, largest_gradient=largest_gradient(trace))
        written.append(folder / f"{side}{SUFFIX}")
        write_capture(
            written[-1],
            about,
            {scene.weights: state},
            (scene.batch,),
            (run,),
        )
    return written[0], written[1]
