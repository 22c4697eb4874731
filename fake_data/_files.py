"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fake_data.errors import DataError


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well, and leaves no trace when it does not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise DataError(f"{path} is a directory; name a file")
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        file = temporary.open("xb")
    except OSError as error:
        raise DataError(f"{path} can't be written: {error.strerror}") from error
    try:
        with file:
            yield file
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DataError(f"{path} can't be written: {error.strerror}") from error
        raise


def write(path: Path, content: bytes) -> None:
    """Write a small file whole."""
    with replaced(path) as file:
        file.write(content)


def read(path: Path) -> bytes:
    """A file's content. Raises DataError when it can't be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


def sha256(content: bytes | memoryview) -> str:
    """The hash as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
