"""Shared by all tests: threads are settled before any framework is imported, and the optional real data is located."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Importing paddle sets OMP_NUM_THREADS to 1 when it is unset; one thread a worker is also what two xdist workers want.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# In a workflow of GitHub, reports of planted faults would annotate the project's own source.
os.environ.pop("GITHUB_ACTIONS", None)

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("ALIGNMENT_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Recorded outputs of the original models; the tests that use them are skipped where the folder is absent."""
    folder = SHARED / "reference"
    if not folder.is_dir():
        pytest.skip(f"no recorded outputs of the original models at {folder} (set ALIGNMENT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def amazon_dir() -> Path:
    """A sample of real reviews; the tests that use it are skipped where the folder is absent."""
    folder = SHARED / "data" / "amazon"
    if not folder.is_dir():
        pytest.skip(f"no real reviews at {folder} (set ALIGNMENT_SHARED)")
    return folder
