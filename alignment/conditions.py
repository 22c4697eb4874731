"""Conditions of a check: facts of the machine, the frameworks and their settings, and what each means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Condition:
    """One fact.

    subject: ``"machine"`` or a framework. name, value: what it is, and how it stands.
    severity: note: worth knowing; warning: figures or time may suffer; error: a check can't run, or says little.
    why, remedy: what it does to a check, and what to do about it; empty where all is well.
    """

    subject: str
    name: str
    value: str
    severity: Severity = "ok"
    why: str = ""
    remedy: str = ""


def expect(subject: str, name: str, value: Any, wanted: Any, severity: Severity, why: str, remedy: str) -> Condition:
    """A fact that should be `wanted`; what could not be read is None, and is not judged."""
    if value is None or value == wanted:
        return Condition(subject, name, "unknown" if value is None else str(value))
    return Condition(subject, name, str(value), severity, why, remedy)


def tried(read: Callable[[], Any]) -> Any:
    """What a framework says of a setting; None where this version has no such setting, or can't tell."""
    try:
        return read()
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return None
