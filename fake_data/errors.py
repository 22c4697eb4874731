"""The one error of this room."""

from __future__ import annotations


class DataError(ValueError):
    """Data can't be made or read: the message names the file, line or field and the remedy."""
