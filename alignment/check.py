"""The main job: check twins, get a report."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from alignment.experiment import Options, prepare
from alignment.localise import localise
from alignment.report import Report, TwinResult
from alignment.reprod import write_reprod_logs
from alignment.stages import run_stages
from alignment.twins import DEFAULT_TWIN, Twin, get_twin

# Told (done, total) as cases are finished.
Progress = Callable[[int, int], None]


def check(
    twin: str | Twin = DEFAULT_TWIN,
    options: Options | None = None,
    progress: Progress | None = None,
    reprod_log: Path | None = None,
) -> Report:
    """Check one twin.

    Args:
        twin: a built-in name, or a Twin.
        options: which stages, sizes, data, weights; the default is what ``align check`` does.
        progress: called with (done, total) after every batch.
        reprod_log: a folder for pairs of files of the reprod_log package.

    Raises:
        AlignmentError, CheckpointError, DataError: it could not run; the message says what to change.
    """
    start = time.perf_counter()
    twin, options = get_twin(twin) if isinstance(twin, str) else twin, options or Options()
    experiment = prepare(twin, options)
    total = len(experiment.weights) * len(experiment.batches)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    stages, _ = localise(experiment, run_stages(experiment, advance), lambda: None)
    notes = experiment.notes
    if reprod_log is not None and experiment.layout is None:
        notes = (*notes, "no reprod_log files: the candidate can't be given the reference's weights")
    elif reprod_log is not None:
        write_reprod_logs(experiment, reprod_log)
    result = TwinResult(
        twin=twin.name,
        reference=f"{twin.reference.framework} {twin.reference.target}",
        candidate=f"{twin.candidate.framework} {twin.candidate.target}",
        stages=stages,
        settings=experiment.settings,
        weights=tuple(experiment.weights),
        batches=tuple(batch.name for batch in experiment.batches),
        data=experiment.data,
        seed=options.seed,
        faults=tuple(fault.name for fault in experiment.faults),
        notes=notes,
        seconds=time.perf_counter() - start,
    )
    versions = _versions() | experiment.reference.versions() | experiment.candidate.versions()
    return Report((result,), versions)


def merge_reports(reports: Sequence[Report]) -> Report:
    """Several reports as one."""
    versions: dict[str, str] = {}
    for report in reports:
        versions |= report.versions
    return Report(tuple(twin for report in reports for twin in report.twins), versions)


def _versions() -> dict[str, str]:
    return {
        "alignment": metadata.version("alignment"),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
