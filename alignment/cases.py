"""A case: one `align check`, described so that another process, or another machine, can run it.

A case that crashes or hangs is one inconclusive answer: it runs in a child process, which is given the command line and
leaves its report as JSON.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from alignment.check import own_versions
from alignment.isolation import Finished, run_isolated
from alignment.report import EXIT_STATUS, Report, StageResult, TwinResult
from alignment.stages import STAGES
from alignment.views.github import without_github
from alignment.views.json import from_dict

DEFAULT_TIMEOUT = 600.0
ROOT = str(Path(__file__).resolve().parents[1])
# Lines of a crash's traceback that say nothing about the models: our own way to them, and a list of libraries.
_OURS = re.compile(
    rf'\s*File "({re.escape(ROOT)}/alignment/(?!frameworks/)|.*/click/core\.py|<string>)|Extension modules: '
)

# The child imports the same package as this process, wherever it was started, and not what lies in the working directory.
# When it is killed by a signal, or shortly before its time is over, it says in which line of Python it is.
_CHILD = """
import faulthandler, sys
faulthandler.enable(all_threads=False)
sys.path[0], limit = sys.argv.pop(1), float(sys.argv.pop(1))
if limit:
    faulthandler.dump_traceback_later(limit * 0.98)
from alignment.cli import main
main()
"""


@dataclass(frozen=True)
class Case:
    """One twin with the options of its check.

    twin: a built-in name, or ``"package.module:attribute"``.
    options: by their long names on the command line of ``align check``, without the dashes, as in a configuration file;
    ``set`` is a table of names and values.
    """

    twin: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The same for the same case and version of this package, on every machine."""
        canonical = [self.twin, _canonical(self.options), _version()]
        return hashlib.sha256(orjson.dumps(canonical, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    def arguments(self) -> list[str]:
        """What to say after ``align check``. Configuration files play no part: a case is whole."""
        said = [f"--config={os.devnull}"]
        for key, value in _canonical(self.options).items():
            if isinstance(value, bool):
                said += [f"--{key}"] if value else []
            elif isinstance(value, dict):
                said += [f"--{key}={name}={one}" for name, one in value.items()]
            else:
                said += [f"--{key}={one}" for one in (value if isinstance(value, list) else [value])]
        return [*said, "--", self.twin]

    def __str__(self) -> str:
        parts = []
        for key, value in _canonical(self.options).items():
            if isinstance(value, dict):
                parts += [f"{name}={one}" for name, one in value.items()]
            else:
                parts.append(f"{key}={','.join(value) if isinstance(value, list) else value}")
        return " ".join([self.twin, *parts])


@dataclass(frozen=True)
class Answer:
    """What a case's process left behind. report: None where `reason` says why there is none."""

    finished: Finished
    report: Report | None
    reason: str = ""


def run_case(
    case: Case,
    timeout: float | None = DEFAULT_TIMEOUT,
    stop: threading.Event | None = None,
    cwd: str | Path | None = None,
) -> Answer:
    """Run a case in a process of its own; whatever its models do, there is an answer.

    Args:
        case: what to check.
        timeout: seconds after which it is killed. stop: may be set by another thread, to end it early.
        cwd: where its modules and files are looked for; None is the working directory.
    """
    with tempfile.TemporaryDirectory(prefix="align-") as folder:
        file = Path(folder) / "report.json"
        arguments = ["check", "--quiet", f"--json={file}", *case.arguments()]
        command = [sys.executable, "-c", _CHILD, ROOT, str(timeout or 0), *arguments]
        finished = run_isolated(command, timeout, env=without_github(), cwd=cwd, stop=stop)
        written = file.read_bytes() if file.exists() else None
    finished = replace(finished, last_output=_without_our_own(finished.last_output))
    if finished.returncode not in EXIT_STATUS.values():
        after = " after its report was written" if written else ""
        return Answer(finished, None, f"{finished.outcome}{after}")
    if written is None:
        return Answer(finished, None, f"could not run: {_message(finished.last_output)}")
    report = from_dict(orjson.loads(written))
    if EXIT_STATUS[report.verdict] != finished.returncode:
        return Answer(finished, None, f"{finished.outcome}, though its report says {report.verdict}")
    return Answer(finished, report)


def check_isolated(case: Case, timeout: float | None = DEFAULT_TIMEOUT) -> Report:
    """The report of a case run in a process of its own; inconclusive, with the reason, where that leaves none."""
    answer = run_case(case, timeout)
    return answer.report or _inconclusive(case, answer)


def _inconclusive(case: Case, answer: Answer) -> Report:
    """The report of a check that left none: nothing was compared."""
    finished = answer.finished
    steps = {int(step) for step in _many(case.options.get("step"))} or {stage.step for stage in STAGES}
    told = finished.returncode in EXIT_STATUS.values()  # the reason is what it said
    said = (f"its last output:\n{finished.last_output}",) if finished.last_output and not told else ()
    result = TwinResult(
        twin=case.twin,
        reference="",
        candidate="",
        stages=tuple(StageResult(stage.step, stage.name, ()) for stage in STAGES if stage.step in steps),
        settings=dict(case.options.get("set", {})),
        weights=(),
        batches=(),
        data="",
        seed=int(case.options.get("seed", 0)),
        faults=_many(case.options.get("inject")),
        notes=(f"nothing was decided: {answer.reason}", *said),
        seconds=finished.seconds,
    )
    return Report((result,), own_versions())


@cache
def _version() -> str:
    return metadata.version("alignment")


def _many(value: Any) -> tuple[Any, ...]:
    """The values of an option that may be repeated."""
    return tuple(value) if isinstance(value, (list, tuple)) else () if value is None else (value,)


def _without_our_own(output: str) -> str:
    """The output with what a traceback says of the models' code; all of it where it says nothing of that."""
    kept = "\n".join(line for line in output.splitlines() if not _OURS.match(line))
    return kept if "  File " in kept else output


def _message(output: str) -> str:
    """What `align` said was wrong; all it said, if that is not clear."""
    found = re.search(r"^error: ", output, re.IGNORECASE | re.MULTILINE)
    return output[found.end() :] if found else output


def _canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the command line has them: 8 and "8" are the same batch size."""
    return {key: _as_said(value) for key, value in options.items()}


def _as_said(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {name: str(one).lower() if isinstance(one, bool) else str(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [str(one) for one in value]
    return str(value)
