"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fake_data.errors import DataError


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well, and leaves no trace when it does not.

    A symbolic link keeps pointing where it points; a device or pipe is written to as it is.
    """
    path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        try:
            with path.open("wb") as special:
                yield special
        except OSError as error:
            raise DataError(f"{path} can't be written: {error.strerror}") from error
        return
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


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    write(path, json.dumps(value, indent=2).encode() + b"\n")


def read_manifest(path: Path, schema: str, version: int) -> dict[str, Any]:
    """A manifest of that schema and version. Raises DataError when the file is anything else."""
    content = read(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{path} is no JSON; write the folder again") from None
    if not isinstance(value, dict) or value.get("schema") != schema:
        raise DataError(f'{path} is no manifest of "{schema}"')
    if value.get("version") != version:
        raise DataError(f"{path} has version {value.get('version')!r}, but this release reads version {version}")
    return value


def array_facts(array: np.ndarray) -> dict[str, Any]:
    """Dtype, shape and hash of an array, the hash over its little-endian bytes in C order."""
    content = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": sha256(content.tobytes())}


def check_array(where: str, array: np.ndarray, facts: dict[str, Any]) -> None:
    """Raises DataError, beginning with `where`, when the array is not the one these facts were written of."""
    for key, found in array_facts(array).items():
        if found != facts[key]:
            raise DataError(f"{where} has {key} {found}, but the manifest says {facts[key]}; write the folder again")


def inside(folder: Path, name: object) -> Path:
    """The path of a file that a manifest names. Raises DataError when the name leads out of the folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise DataError(f"{folder}: the manifest names the file {name!r}, which is no plain file name")
    return folder / name


def sha256(content: bytes | memoryview) -> str:
    """The hash as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
