"""A progress bar on standard error for what takes over two seconds, one for all commands."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

PATIENCE_SECONDS = 2.0


class Show(Protocol):
    """Told what goes on now, and how much of it is done where that is known."""

    def __call__(self, what: str, done: int | None = None, total: int | None = None) -> None: ...


@contextmanager
def progress(what: str) -> Iterator[Show]:
    """A bar that appears after two seconds, only on a terminal, and leaves nothing behind."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    # What is printed meanwhile appears above the bar, unless it goes somewhere else.
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
    )
    task = bar.add_task(what, total=None)
    timer = threading.Timer(PATIENCE_SECONDS, bar.start)
    timer.daemon = True
    timer.start()

    def show(what: str, done: int | None = None, total: int | None = None) -> None:
        bar.update(task, description=what, completed=done or 0, total=total)

    try:
        yield show
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
