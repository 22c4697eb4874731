"""A command that crashes, hangs, floods or leaves children behind costs its own answer and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import psutil
import pytest

from alignment.errors import AlignmentError
from alignment.isolation import LAST_BYTES, Finished, run_isolated

# A child that says its process number, ignores SIGTERM and hangs; it and its own child must both go.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def python(code: str, timeout: float | None = 60, **given) -> Finished:
    return run_isolated([sys.executable, "-c", code], timeout, **given)


def gone(pid: int) -> bool:
    """Ended; a zombie that nobody has collected has ended, too."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_an_answer_comes_with_its_status_and_its_output() -> None:
    done = python("import sys; print('to stdout'); print('to stderr', file=sys.stderr, flush=True); sys.exit(3)")
    assert (done.returncode, done.timed_out, done.outcome) == (3, False, "exit status 3")
    assert sorted(done.last_output.splitlines()) == ["to stderr", "to stdout"]
    assert 0 < done.seconds < 60


def test_an_abort_is_named() -> None:
    done = python("import os; print('before', flush=True); os.abort()")
    assert (done.returncode, done.timed_out) == (-signal.SIGABRT, False)
    assert done.outcome == "killed by signal SIGABRT"
    assert "before" in done.last_output


def test_a_segmentation_fault_is_named() -> None:
    done = python("import ctypes; ctypes.string_at(0)")
    assert done.outcome == "killed by signal SIGSEGV"


def test_a_signal_without_a_name_has_a_number() -> None:
    assert Finished(-40, False, "", 1.0).outcome == "killed by signal 40"
    assert "memory" in Finished(-signal.SIGKILL, False, "", 1.0).outcome


def test_what_hangs_and_ignores_sigterm_is_killed_with_its_children(monkeypatch) -> None:
    monkeypatch.setattr("alignment.isolation.GRACE_SECONDS", 0.3)
    start = time.monotonic()
    done = python(STUBBORN, timeout=2)
    assert time.monotonic() - start < 30
    assert (done.returncode, done.timed_out) == (None, True)
    assert done.outcome == "no answer after 2.0 s"
    pids = [int(word) for word in done.last_output.split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_what_hangs_is_asked_to_end_first() -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('tidied up', flush=True), sys.exit(0)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)"
    )
    done = python(code, timeout=2)
    assert done.timed_out
    assert done.last_output == "ready\ntidied up"


def test_children_left_behind_are_killed_and_not_waited_for() -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid)"
    )
    done = python(code)
    assert done.returncode == 0
    assert done.seconds < 30
    assert gone(int(done.last_output))


def test_a_child_that_left_the_session_with_the_pipe_is_not_waited_for() -> None:
    code = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(20)']\n"
        "print(subprocess.Popen(command, start_new_session=True).pid)"
    )
    done = python(code)
    assert done.seconds < 15
    os.kill(int(done.last_output), signal.SIGKILL)


def test_a_flood_of_output_costs_no_memory_and_its_end_is_kept() -> None:
    code = "import sys\nfor _ in range(400): sys.stdout.write(('x' * 99 + '\\n') * 1000)\nprint('the end')"  # 40 MB
    tracemalloc.start()
    done = python(code)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert done.returncode == 0
    assert done.last_output.endswith("x\nthe end")
    assert len(done.last_output) <= LAST_BYTES
    assert peak < 2_000_000


def test_bytes_that_are_no_text_and_commands_to_the_terminal_do_no_harm() -> None:
    done = python(r"import sys; sys.stdout.buffer.write(b'\x1b[2Jred \xff\xfe\x07\r\nend\n')")
    assert done.last_output == "[2Jred \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\nend"


def test_environment_and_folder_are_passed_on(tmp_path) -> None:
    code = "import os; print(os.environ.get('COLOUR'), os.environ.get('HOME'), os.getcwd())"
    assert python(code, env={"COLOUR": "green"}, cwd=tmp_path).last_output == f"green None {tmp_path}"


def test_arguments_arrive_as_they_are() -> None:
    done = run_isolated([sys.executable, "-c", "import sys; print(sys.argv[1:])", "a b", "", "--x"], 60)
    assert done.last_output == "['a b', '', '--x']"


def test_another_thread_can_stop_it() -> None:
    stop = threading.Event()
    timer = threading.Timer(1, stop.set)
    timer.start()
    done = python("import time; time.sleep(600)", timeout=None, stop=stop)
    timer.join()
    assert (done.returncode, done.timed_out, done.outcome) == (None, False, "stopped")


def test_no_such_program_and_no_such_folder_are_said(tmp_path) -> None:
    with pytest.raises(AlignmentError, match="no/such/program"):
        run_isolated(["no/such/program"], 1)
    with pytest.raises(AlignmentError, match="can't be started"):
        run_isolated([sys.executable], 1, cwd=tmp_path / "missing")


def _parent(tmp_path: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A process that waits for the stubborn child, and the child's process numbers."""
    said = tmp_path / "pids"
    child = STUBBORN.replace("flush=True", f"flush=True, file=open({str(said)!r}, 'w')")
    code = f"from alignment.isolation import run_isolated; import sys\nrun_isolated([sys.executable, '-c', {child!r}], None)"
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
        # A test run in the background may be told to ignore Ctrl-C, which children would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (said.exists() and said.read_text().endswith("\n")):
        time.sleep(0.05)
        assert parent.poll() is None
    return parent, [int(word) for word in said.read_text().split()]


def test_ctrl_c_ends_the_child_and_its_children(tmp_path) -> None:
    parent, pids = _parent(tmp_path)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(30) != 0
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is needed")
def test_a_parent_that_is_killed_takes_its_child_along(tmp_path) -> None:
    parent, (pid, grandchild) = _parent(tmp_path)
    parent.kill()
    parent.wait(30)
    assert gone(pid)
    os.kill(grandchild, signal.SIGKILL)
