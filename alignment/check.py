"""The main job: check twins, get a report."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alignment.determinism import judge_randomness
from alignment.doctor import brief
from alignment.errors import AlignmentError
from alignment.experiment import Experiment, Options, prepare, told_mapping
from alignment.fullsize import FULL_SIZE, make_probe
from alignment.localise import Scene, localise
from alignment.lowprecision import judge_precision
from alignment.report import Report, StageResult, TwinResult
from alignment.reprod import write_reprod_logs
from alignment.sites import with_sites
from alignment.stages import bounded, run_stages
from alignment.trees import module_trees
from alignment.twins import DEFAULT_TWIN, Twin, get_twin, twin_of

# Told (done, total) as cases are finished.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Checked:
    """A check that has run, with what an explanation needs: the sides as they were probed, and the scenes of its roots."""

    report: Report
    experiment: Experiment
    scenes: tuple[Scene, ...]


def check(
    twin: str | Twin | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    reprod_log: Path | None = None,
    *,
    reference: Any = None,
    candidate: Any = None,
    inputs: Any = None,
    loss: Any = None,
    mode: Literal["eval", "train"] = "eval",
    dropout: Literal["frozen", "seeded"] = "frozen",
) -> Report:
    """Check one twin, or two models.

        report = alignment.check(reference=torch_module, candidate=paddle_layer, inputs=images)

    Args:
        twin: a built-in name, ``"package.module:attribute"``, or a Twin; nothing: the built-in default.
        options: which stages, sizes, data, weights; the default is what ``align check`` does.
        progress: called with (done, total) after every batch.
        reprod_log: a folder for pairs of files of the reprod_log package.
        reference, candidate: in place of a twin: the two models, or a class or function that builds each. They are copied,
            and left as they are.
        inputs: what both are given: an array, a tuple of positional arguments, a dict of keywords, nested in any way, or an
            iterable of such batches, of which the first few are taken; see `Twin`.
        loss: ``"criterion"``, ``"model"`` (see `Twin`), or a pair of functions, the reference's and the candidate's, called
            with what the model returned and the targets; each batch is then a pair (inputs, targets). None: all outputs,
            summed up with fixed weights.
        mode: ``"eval"`` or ``"train"``: in which the models run.
        dropout: ``"frozen"``: dropout layers let everything pass in either mode; ``"seeded"``: training mode, with the same
            masks on both sides; see `Twin`.

    Raises:
        AlignmentError, CheckpointError, DataError: it could not run; the message says what to change.
    """
    asked = asked_for(twin, reference, candidate, inputs, loss, mode, dropout)
    return run_check(asked, options or Options(), progress, reprod_log).report


def asked_for(
    twin: str | Twin | None,
    reference: Any,
    candidate: Any,
    inputs: Any,
    loss: Any,
    mode: Literal["eval", "train"],
    dropout: Literal["frozen", "seeded"],
) -> str | Twin:
    """The twin that the arguments of `check` and of `explain` name or make up.

    Raises:
        AlignmentError: they do not go together, or something is missing.
    """
    if reference is not None or candidate is not None:
        if twin is not None:
            raise AlignmentError("give either a twin or a reference and a candidate")
        return twin_of(reference, candidate, inputs, loss, mode, dropout)
    if inputs is not None or loss is not None:
        raise AlignmentError("inputs and a loss go with a reference and a candidate; a twin has its own")
    return twin or DEFAULT_TWIN


def run_check(
    twin: str | Twin, options: Options, progress: Progress | None = None, reprod_log: Path | None = None
) -> Checked:
    """`check`, with the live sides kept."""
    start = time.perf_counter()
    address = twin if isinstance(twin, str) else None
    twin = get_twin(twin) if isinstance(twin, str) else twin
    experiment = prepare(twin, options)
    probe = make_probe(experiment)
    low = options.precision != "float32"
    total = len(probe.weights) * len(probe.batches) + (probe is not experiment) + low
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    said = brief(experiment.reference, experiment.candidate)
    try:
        stages, scenes = localise(probe, run_stages(experiment, advance, probe))
    except AlignmentError as error:
        raise AlignmentError("\n".join((str(error), *(f"note: {note}" for note in said)))) from error
    judged = judge_randomness(probe, stages, scenes)
    stages, notes = judged.stages, (*probe.notes, *judged.notes, *said)
    if low and probe.layout is not None:
        stages = judge_precision(probe, stages)
        advance()
    stages = with_sites(stages, scenes, probe)
    if reprod_log is not None and experiment.layout is None:
        notes = (*notes, "no reprod_log files: the candidate can't be given the reference's weights")
    elif reprod_log is not None:
        write_reprod_logs(experiment, reprod_log)
    report = report_of(experiment, probe, stages, time.perf_counter() - start, notes, address)
    return Checked(report, probe, scenes)


def report_of(
    experiment: Experiment,
    probe: Experiment,
    stages: tuple[StageResult, ...],
    seconds: float,
    notes: tuple[str, ...] = (),
    address: str | None = None,
) -> Report:
    """The report of a check that ran its models as `probe` says. address: how its twin was asked for, if by name."""
    twin, options = experiment.twin, experiment.options
    trees = module_trees(experiment)
    result = TwinResult(
        twin=twin.name,
        reference=f"{twin.reference.framework} {twin.reference.name}",
        candidate=f"{twin.candidate.framework} {twin.candidate.name}",
        stages=bounded(stages),
        settings=experiment.settings,
        weights=tuple(experiment.weights),
        batches=(*(batch.name for batch in probe.batches), *(() if probe is experiment else (FULL_SIZE,))),
        data=experiment.data,
        seed=options.seed,
        faults=tuple(fault.name for fault in experiment.faults),
        notes=notes,
        seconds=seconds,
        options={
            "twin": address or twin.name,
            "faults": [fault if isinstance(fault, str) else fault.name for fault in options.faults],
            "steps": list(options.steps),
            "settings": dict(options.settings),
            "data": options.data,
            "weights": options.weights,
            "batch_size": options.batch_size,
            "length": options.length,
            "threads": options.threads,
            "strict": options.strict,
            "dropout": options.dropout,
            "precision": options.precision,
            "reference_device": options.reference_device,
            "candidate_device": options.candidate_device,
            "mapping": told_mapping(experiment),
            "mapping_file": options.mapping if isinstance(options.mapping, str) else None,
        },
        reference_tree=trees[0],
        candidate_tree=trees[1],
    )
    versions = own_versions() | experiment.reference.versions() | experiment.candidate.versions()
    return Report((result,), versions)


def merge_reports(reports: Sequence[Report]) -> Report:
    """Several reports as one."""
    versions: dict[str, str] = {}
    for report in reports:
        versions |= report.versions
    problems = tuple(problem for report in reports for problem in report.problems)
    return Report(tuple(twin for report in reports for twin in report.twins), versions, problems)


def own_versions() -> dict[str, str]:
    """Of this package and what it computes with itself."""
    return {
        "alignment": metadata.version("alignment"),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
