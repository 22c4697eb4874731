"""Asking Paddle's MKL for AVX2: on AMD processors that have it, and never against the user's own word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastformer_paddle import _processor

AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx avx2 fma\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    ("cpuinfo", "before", "after"),
    [
        (AMD, None, "5"),
        (AMD, "4", "4"),
        (AMD.replace(" avx2", ""), None, None),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), None, None),
        (None, None, None),
    ],
)
def test_avx2_is_asked_for(
    cpuinfo: str | None, before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(_path: Path, encoding: str) -> str:
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", before or "")
    if before is None:
        monkeypatch.delenv("MKL_DEBUG_CPU_TYPE")
    monkeypatch.setattr(Path, "read_text", read_text)
    _processor.use_avx2()
    assert os.environ.get("MKL_DEBUG_CPU_TYPE") == after
