"""A conversion from file to file beside copying the file, and beside the plain route: load with torch, save with Paddle.

    python benchmarks/bench_convert.py [--gib N] [--repeats N] [--folder DIR]

Each GiB holds an embedding of 256 MiB, which is copied, and twelve square matrices of 64 MiB, which are transposed. Every
round times each form once, in turn, and the fastest counts; all write to the disk (fsync) before they are done, as a
conversion does. Each conversion runs in a process of its own, whose peak memory is printed; imports are not timed. The plain
route proves nothing and keeps all in memory: it is left out above 2 GiB. The files are deleted in the end.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from checkpoints import Layout, Move, open_checkpoint, stream, write

EMBEDDING, MATRIX, MATRICES = (16384, 4096), (4096, 4096), 12


def make(folder: Path, gib: int) -> None:
    """The sources and the layout."""
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal(EMBEDDING, dtype=np.float32)
    matrix = rng.standard_normal(MATRIX, dtype=np.float32)
    tensors: dict[str, np.ndarray] = {}
    for part in range(gib):
        tensors[f"{part}.embedding"] = embedding
        tensors |= {f"{part}.{number}.weight": matrix for number in range(MATRICES)}
    write(folder / "source.safetensors", tensors)
    if gib <= 2:
        write(folder / "source.pth", tensors)
    moves = tuple(
        Move(name, name, "transpose" if name.endswith("weight") else "copy", array.shape, array.shape, "float32")
        for name, array in tensors.items()
    )
    Layout("torch", "paddle", moves).save(folder / "layout.json")


def plain(folder: Path) -> None:
    """What one would write without a converter."""
    import paddle
    import torch

    state = torch.load(folder / "source.pth", weights_only=True)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    given = {name: array.T.copy() if name.endswith("weight") else array for name, array in arrays.items()}
    paddle.save({name: paddle.to_tensor(array) for name, array in given.items()}, str(folder / "plain.pdparams"))
    with (folder / "plain.pdparams").open("rb") as file:
        os.fsync(file.fileno())


def convert(folder: Path, source: str, target: str) -> None:
    stream(open_checkpoint(folder / source), folder / target, Layout.load(folder / "layout.json"))


FORMS: dict[str, Callable[[Path], None]] = {
    ".safetensors to .safetensors": lambda folder: convert(folder, "source.safetensors", "ours.safetensors"),
    ".safetensors to .pdparams": lambda folder: convert(folder, "source.safetensors", "ours.pdparams"),
    ".pth to .pdparams": lambda folder: convert(folder, "source.pth", "ours.pdparams"),
    "torch.load, paddle.save": plain,
}


def run_one(form: str, folder: Path) -> None:
    """What a child process does: prints seconds and its peak in MiB."""
    if form == "torch.load, paddle.save":
        import paddle  # noqa: F401
        import torch  # noqa: F401
    start = time.perf_counter()
    FORMS[form](folder)
    seconds = time.perf_counter() - start
    peak = int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024
    print(seconds, peak)


def copy(folder: Path) -> float:
    source, target = folder / "source.safetensors", folder / "copy"
    start = time.perf_counter()
    subprocess.run(["cp", str(source), str(target)], check=True)
    subprocess.run(["sync", str(target)], check=True)
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, default=1, help="size of the checkpoint")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to make the files (default: the system's temporary folder)")
    parser.add_argument("--form", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.form:
        run_one(options.form, options.folder)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make(folder, options.gib)
        forms = [form for form in FORMS if options.gib <= 2 or (".pth" not in form and "torch" not in form)]
        best = dict.fromkeys(["cp and sync", *forms], float("inf"))
        peaks: dict[str, float] = {}
        for _ in range(options.repeats):
            best["cp and sync"] = min(best["cp and sync"], copy(folder))
            for form in forms:
                arguments = [sys.executable, __file__, "--form", form, "--folder", str(folder)]
                done = subprocess.run(arguments, check=True, capture_output=True, text=True)
                seconds, peaks[form] = map(float, done.stdout.split()[-2:])
                best[form] = min(best[form], seconds)
                for path in (*folder.glob("ours.*"), *folder.glob("plain.*")):
                    path.unlink()
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{options.gib} GiB, largest tensor 256 MiB, {os.cpu_count()} cores, load {load}")
        for form, seconds in best.items():
            peak = f"  peak {peaks[form]:6.0f} MiB" if form in peaks else ""
            print(f"  {form:30} {seconds:7.2f} s  {seconds / best['cp and sync']:5.1f} x cp{peak}")


if __name__ == "__main__":
    main()
