"""The doctor: what of this machine, the frameworks and their settings would make a check fail, slow, or say less than it seems.

`examine` looks at everything, each framework in a process of its own, because one that can't even be imported may take the
process with it. `brief` looks at the frameworks of a check where it runs, after the user's own code was imported: settings
belong to a process, and what another process finds says nothing about them.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson

from alignment.conditions import Condition, Severity, expect
from alignment.errors import FrameworkMissingError
from alignment.frameworks import FRAMEWORKS, Framework, get_framework, reserve_threads
from alignment.isolation import run_isolated
from alignment.views.github import without_github

SCHEMA_VERSION = 1
# The worst there is decides the exit status: notes and warnings leave a check possible.
ORDER: tuple[Severity, ...] = ("ok", "note", "warning", "error")
# Importing a framework on a slow disk takes tens of seconds.
TIMEOUT = 180.0
ROOT = str(Path(__file__).resolve().parents[1])
# The child imports the same package as this process, and not what lies in the working directory.
_CHILD = """
import sys
sys.path[0] = sys.argv[1]
from alignment.doctor import tell
tell(sys.argv[2])
"""
_MARK = "conditions: "
# Oldest versions that extras of this package take, and from where on they know NumPy 2.
OLDEST = {"torch": (2, 2), "paddle": (2, 6)}
FOR_NUMPY_2 = {"torch": (2, 3), "paddle": (3, 0)}


def examine(frameworks: Sequence[str] = tuple(FRAMEWORKS)) -> tuple[Condition, ...]:
    """Every condition of a check with these frameworks."""
    found = list(machine())
    reserve_threads()
    with ThreadPoolExecutor() as pool:
        for conditions in pool.map(_framework, frameworks):
            found += conditions
    return (*found, *combinations(found))


def machine() -> Iterable[Condition]:
    """What does not depend on a framework."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Condition("machine", "python", platform.python_version())
    yield Condition("machine", "numpy", np.__version__)
    yield Condition("machine", "system", f"{platform.system()} {platform.machine()}")
    yield Condition("machine", "processor", _processor())
    yield Condition("machine", "cores", str(cores))
    yield _threads(os.environ.get("OMP_NUM_THREADS"), cores)
    yield expect(
        "machine",
        "OMP_WAIT_POLICY",
        os.environ.get("OMP_WAIT_POLICY", "PASSIVE").upper(),
        "PASSIVE",
        "warning",
        "each framework has an OpenMP runtime of its own; one that waits actively takes the cores from the other",
        "unset OMP_WAIT_POLICY, or set it to PASSIVE",
    )
    yield expect(
        "machine",
        "NVIDIA_TF32_OVERRIDE",
        os.environ.get("NVIDIA_TF32_OVERRIDE", "0"),
        "0",
        "warning",
        "on a GPU float32 is computed in TF32 whatever the frameworks are told",
        "unset NVIDIA_TF32_OVERRIDE, or set it to 0",
    )
    yield flushing()


def flushing() -> Condition:
    """Are numbers smaller than the least normal one taken for zero?"""
    least = np.array([np.finfo(np.float32).smallest_subnormal], dtype=np.float32)
    return expect(
        "machine",
        "subnormal numbers",
        "flushed to zero" if float((least * np.float32(1))[0]) == 0.0 else "kept",
        "kept",
        "warning",
        "a library compiled with -ffast-math, or a setting, has the processor take tiny numbers for zero: gradients that "
        "matter may vanish",
        "torch.set_flush_denormal(False); look for the library that does it",
    )


def _threads(said: str | None, cores: int) -> Condition:
    name = "OMP_NUM_THREADS"
    if said is None:
        why = (
            "importing Paddle sets it to 1, and a torch that is imported later then has one thread; align settles it before, "
            "your own scripts do not"
        )
        return Condition(
            "machine", name, "not set", "note", why, f"export {name}={cores} before a script that imports both"
        )
    if not re.fullmatch("[1-9][0-9]{0,3}", said):
        why = "it is no number of threads: align takes all cores"
        return Condition("machine", name, said, "warning", why, f"export {name}={cores}")
    if int(said) > cores:
        why = f"threads wait for each other: there are {cores} cores"
        return Condition("machine", name, said, "warning", why, f"export {name}={cores}, or --threads {cores}")
    return Condition("machine", name, said)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or "unknown"
    names = re.findall(r"^(?:model name|vendor_id)\s*:\s*(.+)$", text, re.MULTILINE)
    return " ".join(dict.fromkeys(names[:2])) or platform.processor() or "unknown"


def combinations(found: Sequence[Condition]) -> Iterable[Condition]:
    """What is wrong with no part by itself, and with two of them together."""
    value = {(one.subject, one.name): one.value for one in found}
    numpy = _version(value.get(("machine", "numpy"), ""))
    for name, oldest in OLDEST.items():
        version = _version(value.get((name, "version"), ""))
        said = value.get((name, "version"), "")
        words = ".".join(map(str, oldest))
        if version and version < oldest:
            why = f"this package is made for {words} and later"
            yield Condition(name, "age", said, "error", why, f"install {name} {words} or later")
        elif version and numpy >= (2,) and version < FOR_NUMPY_2[name]:
            first = ".".join(map(str, FOR_NUMPY_2[name]))
            why = f"{name} before {first} is built for NumPy 1, and can't share arrays with NumPy 2"
            yield Condition(
                name, "numpy 2", f"{name} {said}", "error", why, f'pip install "numpy<2", or {name} {first}'
            )
    if "AMD" in value.get(("machine", "processor"), ""):
        for name in OLDEST:
            if value.get((name, "BLAS")) == "MKL" and "MKL_CBWR" not in os.environ:
                why = "MKL chooses its kernels by the processor's maker: the same check has other last bits on an Intel machine"
                remedy = "export MKL_CBWR=COMPATIBLE where bits of two machines are compared; a check need not"
                yield Condition(name, "MKL on AMD", "yes", "note", why, remedy)
    devices = {name: value.get((name, "device"), "cpu").partition(":")[0] for name in FRAMEWORKS}
    if len({"gpu" if device in ("cuda", "gpu") else device for device in devices.values()}) > 1:
        said = ", ".join(f"{name} on {device}" for name, device in devices.items())
        why = "the two sides are computed by different hardware: precision is compared across it, too"
        yield Condition("machine", "devices", said, "warning", why, "align check --device cpu, where that is not meant")


def brief(*frameworks: Framework) -> tuple[str, ...]:
    """A line for each condition of this process that a check should not go without; most often none."""
    found = [flushing(), *(one for framework in frameworks for one in framework.conditions())]
    return tuple(
        f"{one.subject}: {one.name} is {one.value}: {one.why}; {one.remedy} (`align doctor` says more)"
        for one in dict.fromkeys(found)
        if ORDER.index(one.severity) >= ORDER.index("warning")
    )


def worst(found: Iterable[Condition]) -> Severity:
    """The severity of the worst condition."""
    return max((one.severity for one in found), key=ORDER.index, default="ok")


def to_json(found: Sequence[Condition]) -> bytes:
    """UTF-8 JSON: the worst severity, and every condition."""
    data = {"schema_version": SCHEMA_VERSION, "worst": worst(found), "conditions": [asdict(one) for one in found]}
    return orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def tell(name: str) -> None:
    """Print one framework's conditions, for the process that asked."""
    found = [asdict(one) for one in conditions_here(name)]
    sys.stdout.write(f"\n{_MARK}{orjson.dumps(found).decode()}\n")


def conditions_here(name: str) -> tuple[Condition, ...]:
    """One framework's conditions in this process; that it does not import is one, too."""
    package, remedy = FRAMEWORKS[name][1:]
    if importlib.util.find_spec(package) is None:
        why = f"no side in {name} can be checked or captured here; captures can be compared all the same"
        return (Condition(name, "version", "not installed", "error", why, remedy),)
    try:
        return get_framework(name).conditions()
    except FrameworkMissingError as error:
        return (Condition(name, "version", "does not import", "error", str(error), remedy),)


def _framework(name: str) -> tuple[Condition, ...]:
    """The same, found out by a process of its own."""
    done = run_isolated([sys.executable, "-c", _CHILD, ROOT, name], TIMEOUT, env=without_github())
    last = next((line for line in reversed(done.last_output.splitlines()) if line.startswith(_MARK)), None)
    if last is not None:
        return tuple(Condition(**one) for one in orjson.loads(last.removeprefix(_MARK)))
    said = done.last_output.splitlines()[-1:] or ["(nothing)"]
    why = f"importing it ended with {done.outcome}; the last it said: {said[0]}"
    return (Condition(name, "version", "does not import", "error", why, FRAMEWORKS[name][2]),)


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version; empty where there are none."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
