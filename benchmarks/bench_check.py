"""What a check of a large batch costs: time and peak memory against running both sides bare, forward and backward in float32.

Every round times each form once, in turn; the fastest round counts. Imports and building the models are left out on every
side of the comparison. Peak memory is that of a process of its own for each form, imports included.

The check is what `align check` runs on the models: every module recorded on both sides, the float64 probe, every verdict
(stages 3 to 5). Explaining is a check of a candidate with two planted faults, root divergences, sides, causes and proofs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TWIN = "fastformer-classifier"
FAULTS = ("gelu-form", "stale-bias-gradient")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--memory-of", choices=("bare", "check", "explain"), help="run one form once and print its peak"
    )
    return parser.parse_args()


GIVEN = options()
os.environ["OMP_NUM_THREADS"] = str(GIVEN.threads)  # read when the frameworks are imported

from alignment import Options  # noqa: E402
from alignment.check import Checked, report_of  # noqa: E402
from alignment.experiment import Experiment, prepare  # noqa: E402
from alignment.explain import explain_checked  # noqa: E402
from alignment.frameworks import reserve_threads  # noqa: E402
from alignment.fullsize import make_probe  # noqa: E402
from alignment.localise import localise  # noqa: E402
from alignment.stages import run_stages  # noqa: E402
from alignment.twins import get_twin  # noqa: E402

reserve_threads(GIVEN.threads)


def experiment(faults: tuple[str, ...] = ()) -> Experiment:
    settings = {
        "vocab_size": GIVEN.vocabulary,
        "hidden_size": GIVEN.width,
        "num_attention_heads": 16,
        "intermediate_size": GIVEN.width,
        "max_position_embeddings": GIVEN.length,
    }
    given = Options(
        (3, 4, 5),
        settings,
        "fake",
        batch_size=GIVEN.batch_size,
        length=GIVEN.length,
        faults=faults,
        threads=GIVEN.threads,
    )
    return prepare(get_twin(TWIN), given)


def bare(prepared: Experiment) -> Callable[[], Any]:
    """Forward and backward of both sides, nothing recorded."""
    import paddle
    import torch

    batch, ours, theirs = prepared.batches[0], prepared.reference_model, prepared.candidate_model
    assert batch.targets is not None

    def run() -> None:
        prepared.use_threads()  # a check leaves as many as its last run had
        for parameter in ours.parameters():
            parameter.grad = None
        ours(*map(torch.from_numpy, batch.inputs.values()), torch.from_numpy(batch.targets))[0].backward()
        for parameter in theirs.parameters():
            parameter.clear_gradient(False)
        theirs(*map(paddle.to_tensor, batch.inputs.values()), paddle.to_tensor(batch.targets))[0].backward()

    return run


def check(prepared: Experiment) -> Callable[[], Any]:
    probe = make_probe(prepared)

    def run() -> Checked:
        stages, scenes = localise(probe, run_stages(prepared, lambda: None, probe))
        return Checked(report_of(prepared, probe, stages, 0.0), probe, scenes)

    return run


def explain(prepared: Experiment) -> Callable[[], Any]:
    checked = check(prepared)
    return lambda: explain_checked(checked())


FORMS: dict[str, tuple[tuple[str, ...], Callable[[Experiment], Callable[[], Any]]]] = {
    "bare": ((), bare),
    "check": ((), check),
    "explain": (FAULTS, explain),
}


def peak(form: str) -> float:
    """Peak memory of a process that runs one form twice, in GB."""
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in vars(GIVEN).items() if value is not None]
    done = subprocess.run(
        [sys.executable, __file__, *arguments, f"--memory-of={form}"], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    faults, make = FORMS[GIVEN.memory_of or "bare"]
    if GIVEN.memory_of:
        run = make(experiment(faults))
        run()
        run()
        # Not ru_maxrss, which a process inherits from the one that started it.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) / 1e6)
        return
    runs = {name: make(experiment(faults)) for name, (faults, make) in FORMS.items()}
    verdict = runs["check"]().report.verdict
    found = [finding.cause for finding in runs["explain"]().twins[0].findings]
    runs["bare"]()
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(GIVEN.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    print(
        f"{TWIN}, B {GIVEN.batch_size}, N {GIVEN.length}, D {GIVEN.width}, V {GIVEN.vocabulary:,}, {GIVEN.threads} threads; "
        f"the check says {verdict}, the explanation {', '.join(map(str, found))}"
    )
    memory = {name: peak(name) for name in runs}
    for name in runs:
        print(
            f"{name:<8} {best[name]:6.2f} s  {best[name] / best['bare']:5.2f} x   "
            f"{memory[name]:5.2f} GB  {memory[name] / memory['bare']:5.2f} x"
        )


if __name__ == "__main__":
    main()
