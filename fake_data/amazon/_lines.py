"""Lines of a file that may be gzip, in blocks, with bounded memory whatever the file holds."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fake_data.errors import DataError

Progress = Callable[[int, int], None]

GZIP_MAGIC = b"\x1f\x8b"
READ = 1 << 17  # bytes read from the file at a time
BLOCK = 1 << 20  # bytes decompressed at most at a time
LONGEST_LINE = 1 << 20  # thirty times the longest review
BOM = b"\xef\xbb\xbf"


class TruncatedError(Exception):
    """The compressed data ends too early or is damaged: what came before was delivered."""


def line_blocks(path: Path, progress: Progress | None = None) -> Iterator[list[bytes]]:
    """Blocks of lines without their newline. Of a line above a MiB only a little more than that is delivered.

    `progress` is called with the bytes of the file that were read and its size. Raises DataError when the file is
    missing, a directory or unreadable, and TruncatedError when gzip data ends early or is damaged.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise DataError(f"{path} is a directory; name the file of reviews in it")
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    with file:
        first = True
        for lines in _lines(_chunks(file, size, progress)):
            if first:
                lines[0], first = lines[0].removeprefix(BOM), False
            yield lines


def _chunks(file: io.BufferedReader, size: int, progress: Progress | None) -> Iterator[bytes]:
    """The file's content, decompressed if it is gzip, in chunks of at most a MiB."""
    start = file.peek(2)[:2]
    plain = start != GZIP_MAGIC
    inflate = zlib.decompressobj(wbits=31)
    inside = False  # a gzip member has begun and not ended
    while data := file.read(READ):
        if progress is not None:
            progress(file.tell(), size)
        if plain:
            yield data
            continue
        while data:
            if not inside:
                # Padding with zeros after a member is allowed; anything else must be another member.
                data = data.lstrip(b"\0") if inflate.eof else data
                if not data:
                    break
                inflate, inside = zlib.decompressobj(wbits=31), True
            try:
                chunk = inflate.decompress(data, BLOCK)
            except zlib.error as error:
                raise TruncatedError(f"its gzip data is damaged ({error})") from None
            data = inflate.unconsumed_tail or inflate.unused_data
            inside = not inflate.eof
            if chunk:
                yield chunk
    if inside:
        raise TruncatedError("its gzip data ends too early")


def _lines(chunks: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Whole lines of each chunk; the rest waits for the next."""
    rest: list[bytes] = []  # pieces of a line that has not ended
    held = 0
    for chunk in chunks:
        lines = chunk.split(b"\n")
        if len(lines) > 1:
            lines[0] = b"".join([*rest, lines[0]])
            rest, held = [], 0
            tail = lines.pop()
            yield lines
        else:
            tail = chunk
        # Of a line that is too long only enough is kept to tell that it is.
        if held <= LONGEST_LINE:
            rest.append(tail)
            held += len(tail)
    if held:
        yield [b"".join(rest)]
