"""Writing aside, then renaming: a file is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from checkpoints.errors import CheckpointError


@contextmanager
def write_aside(path: Path) -> Iterator[BinaryIO]:
    """A binary file beside `path` that takes its place when the block ends well and vanishes when it doesn't.

    Ctrl-C counts as not ending well. A symbolic link keeps pointing where it points; a device or pipe is written to as it
    is. CheckpointError names `path` where its folder can't be written to.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: is a directory; give the name of a file")
    path = path.resolve()
    if path.exists() and not path.is_file():
        try:
            with path.open("wb") as file:
                yield file
        except OSError as error:
            raise CheckpointError(f"{path}: can't write: {error.strerror or error}") from error
        return
    aside: Path | None = None
    try:
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
            aside = Path(name)
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files private; the result gets the rights any new file would get.
            umask = os.umask(0)
            os.umask(umask)
            aside.chmod(0o666 & ~umask)
            aside.replace(path)
        except OSError as error:
            raise CheckpointError(f"{path}: can't write: {error.strerror or error}") from error
    except BaseException:
        if aside is not None:
            with suppress(OSError):
                aside.unlink()
        raise
