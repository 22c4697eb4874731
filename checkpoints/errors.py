"""The one error of this room."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint can't be read, written or converted: the message names the file or tensor and the remedy."""
