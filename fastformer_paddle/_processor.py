"""Paddle's matrix products on AMD processors, which otherwise run at half the speed.

The CPU wheel carries an old MKL that gives its AVX2 code to Intel's processors only and SSE to all others.
MKL_DEBUG_CPU_TYPE=5 asks for AVX2 wherever it runs; the variable is read once, at the process's first product.
"""

import os
from pathlib import Path


def use_avx2() -> None:
    """Ask for AVX2 on a Linux machine whose AMD processor has it, unless the variable is set already."""
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return
    if "AuthenticAMD" in processor and " avx2 " in processor:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
