"""Training on both sides, step by step: is what parts them rounding, or a mistake?"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from alignment.causes import Cause, RateSuspect, SeriesSuspect, Trial, UpdateSuspect, diagnose
from alignment.check import own_versions
from alignment.doctor import brief
from alignment.errors import AlignmentError
from alignment.experiment import Options, prepare
from alignment.explain import finding_of, findings_of
from alignment.faults import Fault
from alignment.inputs import Chosen, make_training
from alignment.localise import localise
from alignment.report import Finding, Report, StageResult, TensorResult, Trajectory, TwinResult
from alignment.stages import merge, run_stages
from alignment.training.curves import FREE, Curves, Participants, draw, own_rule, total_norm
from alignment.training.faults import TrainingFault, get_training_fault
from alignment.training.judge import Judged, judge
from alignment.training.lockstep import Follower, lockstep
from alignment.training.participants import Sides, participants_of, recipes_of
from alignment.training.recipe import Recipe, differences
from alignment.trees import module_trees
from alignment.twins import DEFAULT_TWIN, Twin, get_twin, import_attribute
from fake_data import Batch, InputSpec

# Told what goes on, (done, total).
Progress = Callable[[int, int], None]
# Rows of the float64 run's batches, of an explanation's, and at which steps all weights are looked at, at most.
PROBE_ROWS, LOOKS = 4, 200
# How far into a training, and for how many tensors, the first steps are made again to explain what is hidden in them.
HIDDEN_STEPS, HIDDEN_TENSORS = 12, 4


@dataclass(frozen=True)
class Training:
    """What a trajectory is asked to do, besides `Options`. Every default is the command line's.

    steps: how many. recipe: of both sides. envelope: runs of the reference with its weights moved by one unit in the last
    place. every: look at all weights after each so many steps; None: so that there are at most 200 looks.
    epoch: steps after which schedules that go by epochs are told that one is over, with the mean loss as its metric.
    reference_optimizer, candidate_optimizer: in place of the recipe's: a function of the model that makes a side's own
    optimizer, or (optimizer, scheduler), or its name, ``"package.module:function"``.
    probe: steps of a further run in float64 on small batches; 0: none. float64: run everything in float64 instead.
    faults: of training, or of the model, to plant on the candidate.
    """

    steps: int = 200
    recipe: Recipe = field(default_factory=Recipe)
    envelope: int = 4
    every: int | None = None
    epoch: int | None = None
    reference_optimizer: Any = None
    candidate_optimizer: Any = None
    probe: int = 10
    float64: bool = False
    faults: tuple[str | Fault | TrainingFault, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("envelope", 1), ("probe", 0)):
            if getattr(self, name) < least:
                raise AlignmentError(f"{name} must be at least {least}, not {getattr(self, name)}")
        by_epochs = self.recipe.schedule.by == "epoch" or self.recipe.schedule.kind == "plateau"
        if self.epoch is None and by_epochs:
            raise AlignmentError("the schedule goes by epochs: say how many steps make one, with epoch (--epoch N)")
        if self.epoch is not None and self.epoch < 1:
            raise AlignmentError(f"epoch must be at least 1, not {self.epoch}")
        if self.every is not None and not 1 <= self.every <= self.steps:
            raise AlignmentError(f"every must be from 1 to the {self.steps} steps, not {self.every}")


def trajectory(
    twin: str | Twin | None = None,
    options: Options | None = None,
    training: Training | None = None,
    progress: Progress | None = None,
) -> Report:
    """Train both sides of a twin in lockstep, and judge what parts them.

        report = alignment.trajectory("fast-transformer-classifier", training=Training(steps=50))

    Args:
        twin: a built-in name, ``"package.module:attribute"``, or a Twin; nothing: the built-in default.
        options: sizes, data, weights, seed and so on, as `alignment.check` takes them; of its data every step gets a batch.
        training: steps, recipe and envelope.
        progress: called with (done, total) after every step.

    Returns:
        A report whose twin has one stage, ``training``, `trajectories` (float32, and the float64 probe), and findings.

    Raises:
        AlignmentError, CheckpointError, DataError: it could not run; the message says what to change.
    """
    options, training = options or Options(), training or Training()
    address = twin if isinstance(twin, str) else DEFAULT_TWIN if twin is None else None
    chosen_twin = get_twin(address) if address is not None else twin
    assert isinstance(chosen_twin, Twin)
    return _Run(chosen_twin, options, training, address).report(progress or (lambda _done, _total: None))


class _Run:
    def __init__(self, twin: Twin, options: Options, training: Training, address: str | None) -> None:
        self.start, self.training, self.address, self.options = time.perf_counter(), training, address, options
        faults = [get_training_fault(one) if isinstance(one, str) else one for one in training.faults]
        own = tuple(fault for fault in faults if isinstance(fault, TrainingFault))
        for fault in own:
            if fault.recipe is not None and training.candidate_optimizer is not None:
                raise AlignmentError(
                    f"fault {fault.name!r} changes the recipe, and the candidate has its own optimizer"
                )
            if not fault.hits(training.recipe):
                raise AlignmentError(
                    f"fault {fault.name!r} ({fault.summary}) has nothing to hit: it needs {fault.needs}"
                )
        twin, self.batches = _batches(twin, options, training)
        asked = replace(
            options,
            settings={**options.settings, **_changed(twin, self.batches.settings)},
            data="fake" if self.batches.source != "given inputs" else None,
            faults=(*options.faults, *(fault for fault in faults if isinstance(fault, Fault))),
            dropout="frozen",
            steps=(3, 4, 5),
        )
        self.experiment = prepare(twin, asked)
        self.experiment.use_threads()
        weights = next(iter(self.experiment.weights.values()))
        seeded = (options.dropout or twin.dropout) == "seeded"
        optimizers = tuple(map(_function, (training.reference_optimizer, training.candidate_optimizer)))
        self.sides = Sides(
            self.experiment,
            training.recipe,
            weights,
            options.seed if seeded else None,
            own,
            (optimizers[0], optimizers[1]),
        )
        self.recipes = recipes_of(self.sides)
        self.recipe_words = " / ".join(
            dict.fromkeys("an optimizer of its own" if r is None else in_words(r) for r in self.recipes)
        )
        self.planted = (*(fault.name for fault in self.experiment.faults), *(fault.name for fault in own))

    def report(self, progress: Progress) -> Report:
        """Draw the curves, judge them, explain what diverges."""
        training, judged = self.training, []
        probe = 0 if training.float64 else min(training.probe, training.steps)
        total = training.steps + probe
        runs: list[tuple[str, tuple[Batch, ...], int]] = [
            ("float64" if training.float64 else "float32", self.batches.batches, 0)
        ]
        if probe:
            runs.append(("float64", tuple(map(_cut, self.batches.batches[:probe])), training.steps))
        drawn: list[tuple[Participants, Curves]] = []
        for dtype, batches, before in runs:
            participants = participants_of(self.sides, dtype, _summands(batches[0]), self.recipes[0])
            every = training.every or -(-len(batches) // LOOKS)
            curves = draw(
                participants, batches, envelope=training.envelope, every=every, epoch=training.epoch or 0,
                progress=lambda number, before=before: progress(before + number, total),  # type: ignore[misc]
            )  # fmt: skip
            drawn.append((participants, curves))
            judged.append(judge(curves, participants, self._targets(), self.recipe_words, dtype))
        stage = _together(judged)
        findings = _Explained(self, drawn, judged).findings()
        stage = _with_roots(stage, findings)
        return self._report(stage, tuple(one.trajectory for one in judged), findings)

    def _recipe_notes(self) -> tuple[str, ...]:
        one, two = self.recipes
        if one is None or two is None:
            return ("an optimizer's recipe can't be read: updates are judged beside the reference's noise",)
        if self.training.reference_optimizer is None and self.training.candidate_optimizer is None:
            return ()
        return tuple(f"the two optimizers differ in {said}" for said in differences(one, two))

    def _targets(self) -> dict[str, str]:
        assert self.experiment.layout is not None
        return {move.label: move.target for move in self.experiment.layout.moves}

    def _report(
        self,
        stage: StageResult,
        trajectories: tuple[Trajectory, ...],
        findings: tuple[Finding, ...],
    ) -> Report:
        experiment, options, twin = self.experiment, self.options, self.experiment.twin
        trees = module_trees(experiment)
        result = TwinResult(
            twin=twin.name,
            reference=f"{twin.reference.framework} {twin.reference.name}",
            candidate=f"{twin.candidate.framework} {twin.candidate.name}",
            stages=(stage,),
            settings=experiment.settings,
            weights=(next(iter(experiment.weights)),),
            batches=(f"{len(self.batches.batches)} of {_rows(self.batches.batches[0])} rows",),
            data=self.batches.source,
            seed=options.seed,
            faults=self.planted,
            notes=(*self.batches.notes, *self._recipe_notes(), *brief(experiment.reference, experiment.candidate)),
            seconds=time.perf_counter() - self.start,
            options={
                "twin": self.address or twin.name,
                "training": {
                    "steps": self.training.steps,
                    "recipe": self.recipe_words,
                    "envelope": self.training.envelope,
                    "probe": self.training.probe,
                    "float64": self.training.float64,
                },
                "settings": dict(options.settings),
                "data": options.data,
                "weights": options.weights,
                "batch_size": options.batch_size,
                "length": options.length,
                "threads": options.threads,
                "dropout": options.dropout,
                "reference_device": options.reference_device,
                "candidate_device": options.candidate_device,
            },
            findings=findings,
            reference_tree=trees[0],
            candidate_tree=trees[1],
            trajectories=trajectories,
        )
        versions = own_versions() | experiment.reference.versions() | experiment.candidate.versions()
        return Report((result,), versions)


# ---------------------------------------------------------------------------------------------------------- explaining


class _Explained:
    """Why a training diverges: the learning rates, then the gradients, then the updates given these."""

    def __init__(self, run: _Run, drawn: list[tuple[Participants, Curves]], judged: list[Judged]) -> None:
        self.run, self.drawn, self.judged = run, drawn, judged

    def findings(self) -> tuple[Finding, ...]:
        """A finding for each root cause, over both dtypes."""
        found: list[Finding] = []
        for (participants, curves), one in zip(self.drawn, self.judged, strict=True):
            bad = {(row.record, row.name) for row in one.stage.tensors if row.verdict == "diverged"}
            told = any(finding.roots[0].startswith("rate ") for finding in found)  # by the longer run already
            for finding in (
                *(() if told else self._rates(curves, one, bad)),
                *self._gradients(curves, one, bad),
                *self._updates(participants, curves, one, bad),
                *self._hidden(participants, one, bad),
            ):
                known = next((n for n, other in enumerate(found) if other.cause == finding.cause), None)
                if known is None:
                    found.append(finding)
                elif finding.cause is not None or set(finding.roots) == set(found[known].roots):
                    roots = dict.fromkeys((*found[known].roots, *finding.roots))
                    found[known] = replace(found[known], roots=tuple(roots))
        proved = [finding for finding in found if finding.cause is not None]
        explained = {_record(root) for finding in proved for root in finding.roots}
        # What one dtype left open and the other proved is no finding of its own, nor is what follows from a proved one.
        left = (
            one for one in found if one.cause is None and not {*map(_record, one.roots)} <= {*explained, "trajectory"}
        )
        return (*proved, *left) if proved else tuple(found)

    def _rates(self, curves: Curves, judged: Judged, bad: set[tuple[str, str]]) -> Iterable[Finding]:
        names = [row.name for row in judged.stage.tensors if row.record == "rate"]
        for group, name in enumerate(names):
            if ("rate", name) not in bad or len({len(rates) for rates in curves.rates[FREE]}) != 1:
                continue
            one, two = (np.array([rates[group] for rates in curves.rates[who]]) for who in ("reference", FREE))
            step = judged.since["rate", name]
            place = curves.numbers.index(step)
            yield finding_of(
                diagnose(RateSuspect(name, one, two, self._base(group))),
                (f"rate {name}",),
                f"from step {step} on: the reference steps with {one[place]:.6g}, the candidate with {two[place]:.6g}",
                "candidate",
                "both were given the same recipe, and the reference's rates are the truth by definition",
            )

    def _base(self, group: int) -> float | None:
        recipe = self.run.recipes[0]
        return None if recipe is None else recipe.optimizer.learning_rate * recipe.settings_of(group)[0]

    def _gradients(self, curves: Curves, judged: Judged, bad: set[tuple[str, str]]) -> Iterable[Finding]:
        wrong = [(label, judged.since["gradient", label]) for record, label in bad if record == "gradient"]
        if ("loss", "loss of a step") not in bad and not wrong:
            return
        summed = [*self._summed(curves, judged)]
        if summed or curves.wrong is None:
            yield from summed
            return
        number, weights, batch = curves.wrong
        state = {name: np.asarray(v, np.float32) if v.dtype.kind == "f" else v for name, v in weights.items()}
        experiment = replace(
            self.run.experiment, weights={f"step {number}": state}, batches=(_cut(batch),), models={}, orders={}
        )
        experiment = replace(experiment, options=replace(experiment.options, dropout=self.run.options.dropout))
        try:
            stages, scenes = localise(experiment, run_stages(experiment, lambda: None))
            found = findings_of(experiment, scenes, stages)
        except AlignmentError:
            found = ()
        for finding in found:
            yield replace(finding, symptom=f"from step {number} on; with its weights and batch, {finding.symptom}")
        if not found:
            roots = tuple(f"gradient {label}" for label, _ in sorted(wrong, key=lambda one: one[1]))
            yield finding_of(
                [], roots, f"from step {number} on: gradients differ in training, and not in one pass with the same weights",
                "candidate", "the reference's gradient is the truth by definition",
            )  # fmt: skip

    def _summed(self, curves: Curves, judged: Judged) -> Iterable[Finding]:
        """Gradients that are wrong only together with those of the steps before."""
        for label, kept in curves.kept.items():
            if ("gradient", label) not in judged.since or len(kept) < 2:
                continue
            suspect = SeriesSuspect(
                label,
                kept[0].gradients[1],
                tuple(one.gradients[0] for one in kept[1:]),
                tuple(one.gradients[1] for one in kept[1:]),
            )
            found = diagnose(suspect)
            if any(trial.proved for _, trial in found):
                roots = tuple(f"gradient {name}" for record, name in judged.since if record == "gradient")
                step = min(step for (record, _), step in judged.since.items() if record == "gradient")
                yield finding_of(
                    found, roots, f"from step {step} on: gradient {label} and {len(roots) - 1} more are wrong",
                    "candidate", "the candidate's gradients hold those of the steps before; the reference's do not",
                )  # fmt: skip
                return

    def _updates(
        self, participants: Participants, curves: Curves, judged: Judged, bad: set[tuple[str, str]]
    ) -> Iterable[Finding]:
        wrong = {label: judged.since["update", label] for record, label in bad if record == "update"}
        groups: dict[str | None, list[tuple[str, list[Any]]]] = {}
        for label in (label for label in curves.kept if label in wrong and participants.recipe is not None):
            kept = curves.kept[label]
            assert participants.recipe is not None
            suspect = UpdateSuspect(
                label,
                kept[0].weights,
                tuple(one.gradients[0] for one in kept),
                tuple(one.gradients[1] for one in kept),
                tuple(one.updates[0] for one in kept),
                tuple(one.updates[1] for one in kept),
                tuple(one.rates[0] for one in kept),
                tuple(one.norm for one in kept),
                tuple((one.weights, one.slots, one.updated) for one in kept),
                own_rule(participants.recipe, participants.owners[label]),
            )
            found = diagnose(suspect)
            cause = next((cause.name for cause, trial in found if trial.proved), None)
            groups.setdefault(cause, []).append((label, found))
        proved = {cause: group for cause, group in groups.items() if cause is not None}
        # Tensors in which causes can't be told apart don't speak against one that another tensor proves.
        for group in (proved or groups).values():
            labels = [label for label, _ in group]
            rest = [label for label in wrong if label not in labels] if len(proved or groups) == 1 else []
            step = min(wrong.values())
            yield finding_of(
                group[0][1],
                tuple(f"update {label}" for label in (*labels, *rest)),
                f"from step {step} on: update {labels[0]} differs though its gradient and learning rate are taken as they are"
                + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""),
                "candidate",
                "given its own gradient, the candidate's step does not follow the recipe's formula; the reference's does",
            )

    def _hidden(self, participants: Participants, judged: Judged, bad: set[tuple[str, str]]) -> Iterable[Finding]:
        """Steps that are right from the reference's state, and wrong from the candidate's own: what it holds of the steps
        before is another. The first steps are made again, free-running, and held against rules as a series.
        """
        left = [track for track in judged.trajectory.tracks if track.left is not None]
        single = any(record in ("rate", "gradient", "update") or name == "loss of a step" for record, name in bad)
        if single or not left or participants.recipe is None:
            return
        first = left[0].left
        assert first is not None
        labels = [track.name for track in left if track.left == first][:HIDDEN_TENSORS]
        found: list[tuple[Cause, Trial]] = []
        if first <= HIDDEN_STEPS:
            batches = self.run.batches.batches[: max(first + 1, 3)]
            batches = tuple(map(_cut, batches)) if participants.truth is None else batches
            suspects = (self._replayed(participants, participants.recipe, label, batches) for label in labels)
            for trials in map(diagnose, suspects):
                found = trials if not found or any(trial.proved for _, trial in trials) else found
        yield finding_of(
            found,
            tuple(f"trajectory {label}" for label in labels),
            f"from step {first} on, though every step taken by itself is right: what the candidate holds of the steps before, "
            "and is given by the reference when it is re-synchronised, is another",
            "candidate",
            "from the reference's weights and optimizer state its steps are right; from its own they are not",
        )

    def _replayed(
        self, participants: Participants, recipe: Recipe, label: str, batches: tuple[Batch, ...]
    ) -> UpdateSuspect:
        """The first steps of both sides, free-running, of one tensor."""
        link, reference = participants.link, participants.reference()
        begun = link.labelled(reference.weights())[label].astype(np.float64)
        ways: tuple[list[Any], list[Any]] = [begun], [begun]
        gradients: tuple[list[Any], list[Any]] = [], []
        rates, norms = [], []
        follower = {FREE: Follower(participants.candidate(), link, gradients=True)}
        for moment in lockstep(reference, follower, batches, every=1, gradients=True, labelled=link.labelled):
            assert moment.weights is not None
            assert moment.followed is not None
            for side, weights in enumerate((moment.weights, moment.followed[FREE])):
                ways[side].append(weights[label].astype(np.float64))
            for side, (step, named) in enumerate(
                ((moment.reference, link.labelled), (moment.followers[FREE], link.taken))
            ):
                gradient = named({name: g for name, g in (step.gradients or {}).items() if g is not None}).get(label)
                gradients[side].append(np.zeros_like(begun) if gradient is None else gradient.astype(np.float64))
            rates.append(moment.reference.rates[recipe.group_of(participants.owners[label])])
            norms.append(total_norm(moment.reference))
        steps = tuple(tuple(np.diff(np.stack(way), axis=0)) for way in ways)
        return UpdateSuspect(
            label, begun, tuple(gradients[0]), tuple(gradients[1]), steps[0], steps[1], tuple(rates), tuple(norms),
            rule=own_rule(recipe, participants.owners[label]),
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- parts


def _together(judged: list[Judged]) -> StageResult:
    """The rows of all dtypes as one, the worst of each; of one that diverges in both, what the first says."""
    first, *others = judged
    rows = first.stage.tensors
    for other in others:
        dtype = other.trajectory.dtype
        marked = []
        for row in other.stage.tensors:
            said = f"in {dtype}, {row.reason}" if row.verdict != "aligned" else row.reason
            marked.append(replace(row, reason=said))
        rows = tuple(merge((*_unstrained(rows), *marked)))
    notes = dict.fromkeys(note for one in judged for note in one.stage.notes)
    return replace(first.stage, tensors=_reconciled(first.stage.tensors, rows), notes=tuple(notes))


def _unstrained(rows: Iterable[TensorResult]) -> Iterable[TensorResult]:
    """So that of two dtypes in which a row diverged, the first is shown."""
    return [replace(row, strain=np.inf) if row.verdict == "diverged" else row for row in rows]


def _reconciled(before: tuple[TensorResult, ...], after: tuple[TensorResult, ...]) -> tuple[TensorResult, ...]:
    strains = {(row.record, row.name): row.strain for row in before if row.verdict == "diverged"}
    roots = {(row.record, row.name) for row in (*before, *after) if row.root}
    kept = [replace(row, strain=strains.get((row.record, row.name), row.strain)) for row in after]
    steps = any(row.record != "trajectory" and row.name != "loss" and row.root for row in kept)
    return tuple(
        replace(row, root=(row.record, row.name) in roots and not (steps and (row.record == "trajectory" or row.name == "loss")))
        for row in kept
    )  # fmt: skip


def _with_roots(stage: StageResult, findings: tuple[Finding, ...]) -> StageResult:
    """Of the gradients that differ, only those that an explanation found to start by themselves stay roots."""
    named = {root for finding in findings for root in finding.roots}
    own = {
        row.name for row in stage.tensors if row.root and row.record == "gradient" and f"gradient {row.name}" in named
    }
    if not own:
        return stage
    rows = (replace(row, root=row.root and (row.record != "gradient" or row.name in own)) for row in stage.tensors)
    return replace(stage, tensors=tuple(rows))


def _record(root: str) -> str:
    return root.partition(" ")[0]


def _batches(twin: Twin, options: Options, training: Training) -> tuple[Twin, Chosen]:
    """A batch for each step; a twin's own inputs are taken once, as they may not come twice."""
    inputs = twin.inputs
    plain = isinstance(inputs, (InputSpec, tuple, Mapping)) or callable(inputs) or hasattr(inputs, "__array__")
    if not plain:
        twin = replace(twin, inputs=list(itertools.islice(inputs, training.steps)))
    settings = {**twin.settings, **options.settings}
    chosen = make_training(
        twin,
        settings,
        fixed=twin.vocabulary in options.settings or options.weights not in ("init", "random"),
        data=options.data,
        seed=options.seed,
        batch_size=options.batch_size,
        length=options.length,
        steps=training.steps,
    )
    return twin, chosen


def _changed(twin: Twin, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if twin.settings.get(name) != value}


def _function(given: Any) -> Any:
    return import_attribute(given, object) if isinstance(given, str) else given


def _rows(batch: Batch) -> int:
    first = next(iter(batch.inputs.values()))
    return int(first.shape[0]) if first.ndim else 1


def _summands(batch: Batch) -> int:
    """Terms that a bias's gradient sums up; equal ones round alike, so that their roundings add up."""
    first = next(iter(batch.inputs.values()))
    return max(1, first.size**2 // max(1, np.unique(first).size))


def _cut(batch: Batch) -> Batch:
    """The first rows of a batch, for float64."""
    rows = _rows(batch)
    arrays = [*batch.inputs.values(), *([] if batch.targets is None else [batch.targets])]
    if batch.structure is not None or any(array.ndim == 0 or array.shape[0] != rows for array in arrays):
        return batch
    inputs = {name: value[:PROBE_ROWS] for name, value in batch.inputs.items()}
    return replace(batch, inputs=inputs, targets=None if batch.targets is None else batch.targets[:PROBE_ROWS])


def in_words(recipe: Recipe) -> str:
    """A recipe in one line."""
    chosen = recipe.optimizer
    parts = [f"{chosen.kind} {chosen.learning_rate:g}"]
    if chosen.kind == "sgd" and chosen.momentum:
        parts.append(f"{'Nesterov ' if chosen.nesterov else ''}momentum {chosen.momentum:g}")
    if chosen.kind != "sgd":
        parts.append(f"betas {chosen.betas[0]:g} {chosen.betas[1]:g}, eps {chosen.eps:g}")
    if chosen.amsgrad:
        parts.append("AMSGrad")
    if chosen.weight_decay:
        parts.append(f"weight decay {chosen.weight_decay:g}")
    if recipe.clip is not None:
        parts.append(f"gradients clipped by {recipe.clip.kind} {recipe.clip.limit:g}")
    if recipe.schedule.kind != "constant":
        options = ", ".join(f"{name} {value}" for name, value in recipe.schedule.options.items())
        parts.append(f"schedule {recipe.schedule.kind}" + (f" ({options})" if options else ""))
    if recipe.groups:
        parts.append(f"{len(recipe.groups)} groups of parameters")
    return ", ".join(parts)
