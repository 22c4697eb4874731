"""The one error of this room."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint can't be read, written or converted: the message names the file or tensor and the remedy.

    Control characters in the message (names come out of files) are escaped, so that printing it is harmless.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """`text` with everything but printable characters and line ends escaped."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
