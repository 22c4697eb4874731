"""Errors meant for the person reading: what was wrong, where, and what to do next."""

from __future__ import annotations


class AlignmentError(Exception):
    """The check could not run or could not decide. The command line prints the message and exits with status 2."""


class FrameworkMissingError(AlignmentError):
    """A framework that one side needs is not installed."""
