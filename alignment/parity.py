"""What the pytest plugin `pytest_alignment` does when a test asks for it: a check that fails as a test fails."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from alignment.baseline import Baseline, apply_baseline, baseline_of
from alignment.check import check
from alignment.errors import AlignmentError
from alignment.experiment import Options
from alignment.faults import Fault
from alignment.report import Report
from alignment.views.words import message
from alignment.waivers import apply_waivers, read_waivers
from checkpoints import CheckpointError
from fake_data import DataError

OPTIONS = frozenset(option.name for option in fields(Options))
MODELS = frozenset(("reference", "candidate", "inputs", "loss", "mode"))
# Of a baseline's name: file systems take 255 bytes.
LONGEST = 100
# Options that may be a file, and the words that are none.
FILES = {"mapping": (), "weights": ("init", "random"), "data": ("fake", "synthetic")}
GATE = frozenset(("baseline", "waivers"))


class NotAlignedError(AssertionError):
    """A check did not come out aligned; the message says where it starts."""


def hold(given: Mapping[str, Any], folder: Path, default: Path, update: bool) -> Report:
    """Check what a test asks for.

    Args:
        given: `twin`, or the models of `alignment.check`; fields of `Options`; `baseline`, True or a file; `waivers`, a file.
        folder: of the test's file; files are named from there. default: of the baseline, where it is True.
        update: write the baseline in place of holding to it.

    Raises:
        NotAlignedError: it diverged or could not be decided.
        AlignmentError: it could not run; the message says what to change.
    """
    unknown = sorted(set(given) - OPTIONS - MODELS - GATE - {"twin"})
    if unknown:
        known = ", ".join(sorted(OPTIONS | MODELS | GATE | {"twin"}))
        raise AlignmentError(f"parity does not take {', '.join(unknown)}; it takes: {known}")
    asked = {name: given[name] for name in given if name in OPTIONS}
    for name, single in (("steps", int), ("faults", (str, Fault))):
        if name in asked:
            asked[name] = (asked[name],) if isinstance(asked[name], single) else tuple(asked[name])
    for name, words in FILES.items():
        if isinstance(asked.get(name), (str, Path)) and asked[name] not in words:
            asked[name] = str(folder / asked[name])
    models = {name: given[name] for name in given if name in MODELS}
    wanted = given.get("baseline")
    file = None if not wanted else default if wanted is True else folder / wanted
    waivers = read_waivers(folder / given["waivers"]) if given.get("waivers") else ()
    if file is not None and not update and not file.exists():
        raise AlignmentError(
            f"{file}: there is no such baseline; pytest --parity-update writes it, to be reviewed and kept"
        )
    held = Baseline.read(file) if file is not None and not update else None
    try:
        report = check(given.get("twin"), Options(**asked), **models)
    except (CheckpointError, DataError) as error:
        raise AlignmentError(str(error)) from error
    if held is not None:
        report = apply_baseline(report, held)
    report = apply_waivers(report, waivers)
    if report.verdict != "aligned":
        raise NotAlignedError(message(report))
    if file is not None and update:
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = Baseline.read(file) if file.exists() and wanted is not True else Baseline()
        replace(kept, twins={**kept.twins, **baseline_of(report).twins}).write(file)
    return report


def baseline_file(folder: Path, test: str, number: int) -> Path:
    """Where the baseline of a test is kept: a file of its own for each, so that tests that run at once write apart.

    test: its name, with its parameters. number: of the call in the test, from 1.
    """
    name = re.sub(r"[^\w.,=-]+", "_", test).strip("_")
    if re.search(r"[^\w.,=:\[\]-]", test) or len(name) > LONGEST:  # other tests may have the same name left
        name = f"{name[:LONGEST]}-{zlib.crc32(test.encode()):08x}"
    return folder / "baselines" / f"{name}{'' if number == 1 else f'-{number}'}.toml"
