"""Run a command where its crash or its hang costs nothing but its own answer.

The command gets a session of its own, so that whatever it starts ends with it, and a pipe for its output of which only the
end is kept. POSIX only; on Linux the command also ends when this process does, `kill -9` included.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from alignment.errors import AlignmentError

# What is kept of the output: enough for a traceback or an abort's message.
LAST_BYTES = 16_384
LAST_LINES = 60
# Between asking a command to end and making it end.
GRACE_SECONDS = 3.0
POLL_SECONDS = 0.05

# Linux only: the kernel ends the command when its parent dies. Done by the command itself before it becomes what was asked
# for, because code between fork and exec may deadlock in a process that has threads. PR_SET_PDEATHSIG is 1.
_LEASHED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[3:])
"""


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    returncode: its exit status, or minus the signal that killed it; None if it was stopped.
    timed_out: it was stopped because its time was over.
    last_output: the last lines of standard output and standard error, as they came.
    seconds: until it ended, or its time was over.
    """

    returncode: int | None
    timed_out: bool
    last_output: str
    seconds: float

    @property
    def outcome(self) -> str:
        """What happened, in words: "exit status 3", "killed by signal SIGABRT", "no answer after 60 s"."""
        if self.timed_out:
            return f"no answer after {self.seconds:.{0 if self.seconds >= 10 else 1}f} s"
        if self.returncode is None:
            return "stopped"
        if self.returncode >= 0:
            return f"exit status {self.returncode}"
        number = -self.returncode
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        why = ", as the system does when memory runs out" if number == signal.SIGKILL else ""
        return f"killed by signal {name}{why}"


def run_isolated(
    command: Sequence[str],
    timeout: float | None,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    stop: threading.Event | None = None,
) -> Finished:
    """Run a command in a session of its own and wait for it.

    When its time is over, when `stop` is set, or on Ctrl-C, the command and all that it started are asked to end (SIGTERM)
    and, three seconds later, made to (SIGKILL). What it leaves running when it ends by itself is killed, too. Standard input
    is empty.

    Args:
        command: the program and its arguments.
        timeout: seconds; None waits for ever.
        env: the whole environment; None is this process's own. cwd: the working directory; None is this process's own.
        stop: may be set by another thread, to end the command early.

    Raises:
        AlignmentError: there is no such program, or it can't be started.
    """
    environment = dict(os.environ if env is None else env)
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        raise AlignmentError(f"{command[0]}: no such program, or it can't be executed")
    leashed = [program, *command[1:]]
    if sys.platform == "linux":
        leashed = [sys.executable, "-I", "-S", "-c", _LEASHED, str(os.getpid()), program, *command]
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            leashed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise AlignmentError(f"{command[0]}: can't be started: {error}") from error
    assert process.stdout is not None
    with process.stdout as pipe, _Tail(pipe) as tail:
        try:
            ended = _watch(process, tail, None if timeout is None else start + timeout, stop)
            seconds = time.monotonic() - start
        finally:
            _end(process, tail)
        tail.drain()
        stopped = stop is not None and stop.is_set()
        return Finished(
            process.returncode if ended else None,
            timed_out=not ended and not stopped,
            last_output=tail.text(),
            seconds=seconds,
        )


def _watch(
    process: subprocess.Popen[bytes], tail: _Tail, until: float | None, stop: threading.Event | None = None
) -> bool:
    """Read what the process says until it ends: True; or until its time is over or `stop` is set: False."""
    while process.poll() is None:
        if (until is not None and time.monotonic() >= until) or (stop is not None and stop.is_set()):
            return False
        tail.read(POLL_SECONDS)
    return True


def _end(process: subprocess.Popen[bytes], tail: _Tail) -> None:
    """Ask the process to end if it is still running, then make it and all that it started."""
    try:
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            _watch(process, tail, time.monotonic() + GRACE_SECONDS)
    finally:
        _signal(process, signal.SIGKILL)
        # Not for ever: a process that waits for a device can't be killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the whole session; the session's number is the process's own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class _Tail:
    """The end of what comes through a pipe."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._kept = bytearray()
        self._file = pipe.fileno()
        self._selector = selectors.DefaultSelector()
        self._open = True
        self._selector.register(self._file, selectors.EVENT_READ)

    def __enter__(self) -> _Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()

    def read(self, wait: float) -> bool:
        """Take what there is, after waiting for it at most `wait` seconds; False: nothing came."""
        if not self._open:
            time.sleep(wait)
            return False
        if not self._selector.select(wait):
            return False
        chunk = os.read(self._file, 65_536)
        self._open = bool(chunk)
        self._kept += chunk
        del self._kept[:-LAST_BYTES]
        return self._open

    def drain(self) -> None:
        """Take what is left; not for ever, as a process that left the session may still be writing."""
        until = time.monotonic() + 1
        while self._open and time.monotonic() < until and self.read(0):
            pass

    def text(self) -> str:
        """The last whole lines, without what would move a terminal's cursor."""
        lines = self._kept.decode("utf-8", errors="replace").splitlines()
        shown = ["".join(mark for mark in line if mark.isprintable() or mark == "\t").rstrip() for line in lines]
        return "\n".join([line for line in shown if line][-LAST_LINES:])
