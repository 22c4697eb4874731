"""Many cases, each in a process of its own, on this machine's cores or a Ray cluster; what is finished is kept.

from alignment.cases import Case
from alignment.sweep import sweep

for result in sweep([Case("fast-transformer", {"seed": seed}) for seed in range(10)], Path("sweep.jsonl")):
    print(result.case, result.verdict)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from alignment.cases import DEFAULT_TIMEOUT, Answer, Case, run_case
from alignment.compare import Verdict, overall
from alignment.errors import AlignmentError
from alignment.report import TensorResult


@dataclass(frozen=True)
class CaseResult:
    """What became of a case.

    stage: the first that diverged, if one did. tensor: record and name of the first root divergence; of an inconclusive
    case the first tensor that could not be judged, of an aligned one that nearest to its limit. strain: that tensor's seen
    over allowed, None beyond all measure.
    reason: why it is not aligned. last_output: of a process that left no report.
    earlier: it was not run now, but read from the results file.
    """

    case: Case
    verdict: Verdict
    seconds: float
    stage: str | None = None
    tensor: str | None = None
    strain: float | None = None
    reason: str = ""
    last_output: str = ""
    earlier: bool = False


# Runs cases and yields their results as they come, in any order. Closing it ends what is still running.
Engine = Callable[[Sequence[Case]], Iterator[CaseResult]]


def sweep(
    cases: Sequence[Case], results: Path | None = None, engine: Engine | None = None, retry: bool = False
) -> Iterator[CaseResult]:
    """Run cases, and yield a result for each: those that are in the results file at once, the others as they come.

    Args:
        cases: what to run; the same case twice is run once.
        results: a file of one JSON line a case, to which each result is added the moment it is there. A case that is in it
            already is not run again. None keeps nothing.
        engine: where to run them, `local()` or `on_ray()`; the default is `local()`.
        retry: run again what is inconclusive in the file.

    Raises:
        AlignmentError: the file can't be read or written, is no results file, or is in use by another sweep.
    """
    wanted = {case.id: case for case in cases}
    engine = engine or local()
    with contextlib.ExitStack() as stack:
        file = None if results is None else stack.enter_context(_ResultsFile(results))
        known = {} if file is None else {key: file.known[key] for key in wanted if key in file.known}
        kept = {key: result for key, result in known.items() if not (retry and result.verdict == "inconclusive")}
        yield from kept.values()
        running = engine([case for key, case in wanted.items() if key not in kept])
        stack.callback(getattr(running, "close", lambda: None))
        for result in running:
            if file is not None:
                file.add(result)
            yield result


def verdict_of(results: Sequence[CaseResult]) -> Verdict:
    """Aligned only if there is at least one result and every one is aligned."""
    return overall(result.verdict for result in results)


# ------------------------------------------------------------------------------------------------------------- engines


def local(jobs: int | None = None, timeout: float | None = DEFAULT_TIMEOUT) -> Engine:
    """Cases on this machine, `jobs` at a time (None: one a core), each killed after `timeout` seconds."""
    return partial(_locally, jobs or cores(), timeout)


def _locally(jobs: int, timeout: float | None, cases: Sequence[Case]) -> Iterator[CaseResult]:
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(run_one, case, timeout, stop) for case in cases]):
                yield future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def on_ray(address: str | None = None, timeout: float | None = DEFAULT_TIMEOUT) -> Engine:
    """Cases on a Ray cluster, a core each; None is the cluster of RAY_ADDRESS, or else a new one on this machine.

    Every node needs this package, both frameworks and this working directory.
    """
    return partial(_on_ray, address, timeout)


def _on_ray(address: str | None, timeout: float | None, cases: Sequence[Case]) -> Iterator[CaseResult]:
    try:
        import ray
    except ImportError as error:
        raise AlignmentError("--on ray needs Ray, which is not installed: pip install 'alignment[ray]'") from error
    joined = ray.is_initialized()
    if not joined:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise AlignmentError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    submit = ray.remote(num_cpus=1)(_run_there).remote
    running = {submit(case, case.id, timeout, str(Path.cwd())): case for case in cases}
    try:
        while running:
            (ready,), _ = ray.wait(list(running))
            case = running.pop(ready)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayError as error:
                result = CaseResult(case, "inconclusive", 0.0, reason=f"Ray lost it: {_first_line(str(error))}")
            yield result
    finally:
        for ready in running:
            ray.cancel(ready, force=True)
        if not joined:
            ray.shutdown()


def _run_there(case: Case, wanted: str, timeout: float | None, cwd: str) -> CaseResult:
    """`run_one` on another machine. wanted: the case's id here; another version of this package gives another."""
    if case.id != wanted:
        reason = f"{platform.node()} has another version of alignment: {metadata.version('alignment')}"
        return CaseResult(case, "inconclusive", 0.0, reason=reason)
    return run_one(case, timeout, cwd=cwd)


def run_one(
    case: Case, timeout: float | None, stop: threading.Event | None = None, cwd: str | None = None
) -> CaseResult:
    """Run a case with one thread, so that cases side by side do not take each other's cores, and judge its answer."""
    try:
        answer = run_case(replace(case, options={"threads": 1, **case.options}), timeout, stop, cwd)
    except (AlignmentError, OSError) as error:
        return CaseResult(case, "inconclusive", 0.0, reason=f"could not be started: {error}")
    return _judge(case, answer)


def _judge(case: Case, answer: Answer) -> CaseResult:
    seconds = round(answer.finished.seconds, 3)
    if answer.report is None:
        return CaseResult(case, "inconclusive", seconds, reason=answer.reason, last_output=answer.finished.last_output)
    (twin,) = answer.report.twins
    result = CaseResult(case, twin.verdict, seconds)
    tensors = [tensor for stage in twin.stages for tensor in stage.tensors]
    if twin.verdict == "aligned":
        nearest = max(tensors, key=lambda tensor: tensor.strain)
        return replace(result, tensor=_label(nearest), strain=nearest.strain)
    first = next((tensor for tensor in (*twin.roots, *tensors) if tensor.verdict == twin.verdict), None)
    return replace(
        result,
        stage=next((stage.name for stage in twin.stages if stage.verdict == "diverged"), None),
        tensor=None if first is None else _label(first),
        strain=None if first is None or first.strain == float("inf") else first.strain,
        reason=first.reason if first else "; ".join(twin.notes) or "nothing was compared",
    )


def _label(tensor: TensorResult) -> str:
    return tensor.name if tensor.name == tensor.record else f"{tensor.record} {tensor.name}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -------------------------------------------------------------------------------------------------------- results file


class _ResultsFile:
    """A file of one JSON line a case, to which only whole lines count. known: the last result of each case, by its id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, CaseResult] = {}
        try:
            self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise AlignmentError(f"{path}: the results can't be kept there: {error.strerror}") from error

    def __enter__(self) -> _ResultsFile:
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlignmentError(f"{self.path}: another sweep is writing to it; wait, or name another file") from None
        except OSError:
            pass  # a file system without locks

    def _read(self) -> None:
        content = self._file.read()
        whole = content.rfind(b"\n") + 1  # a line that was being written when its writer was killed has no end
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = orjson.loads(line)
                key = entry.pop("id")
                self.known[key] = _from_line(entry)
            except (orjson.JSONDecodeError, AttributeError, LookupError, TypeError) as error:
                raise AlignmentError(
                    f"{self.path}:{number} is no result of `align sweep`: {error}; name another file with -o"
                ) from error
        if not whole and content[:6] != b'{"id":'[: len(content)]:
            raise AlignmentError(f"{self.path} is no file of results of `align sweep`; name another file with -o")
        self._file.truncate(whole)
        self._file.seek(whole)

    def add(self, result: CaseResult) -> None:
        """Add a result, and return when it is on the disk."""
        self._file.write(_to_line(result))
        self._file.flush()
        os.fsync(self._file.fileno())


def _to_line(result: CaseResult) -> bytes:
    entry = {"id": result.case.id, "twin": result.case.twin, "options": dict(result.case.options)}
    entry |= {key: value for key, value in vars(result).items() if key not in ("case", "earlier")}
    return orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _from_line(entry: dict[str, Any]) -> CaseResult:
    return CaseResult(case=Case(entry.pop("twin"), entry.pop("options")), **entry, earlier=True)
