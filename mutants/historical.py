"""The historical bias gradient: was it only displayed wrong, or was the update wrong?

    python -m mutants.historical                          sizes that take a minute
    python -m mutants.historical --full                   the sizes of the port (minutes a run)

A port of the pooled classifier printed 1/64 in every entry of its last bias gradient; the losses of its first steps parted
from the reference's by −3.80e-4 at the second. This simulates that second loss twice from the same weights: with the right
update of the bias, and with the one that a gradient of 1/64 gives (one step of Adam, lr 1e-3, is −lr in every entry). It
prints their difference beside what rounding explains: the reference's own loss with its weights moved by one unit in the
last place, and, with --candidate, the Paddle twin's.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import numpy as np
from scipy.special import logsumexp

from alignment import Options
from alignment.experiment import Experiment, prepare
from alignment.frameworks import reserve_threads
from alignment.twins import get_twin
from fake_data import make_batch

TWIN = "fast-transformer-classifier"
SMALL = {"num_tokens": 2000, "dim": 64, "depth": 2, "max_seq_len": 64, "heads": 8, "dim_head": 8}
FULL = {"num_tokens": 82780, "dim": 512, "depth": 2, "max_seq_len": 512, "heads": 8, "dim_head": 64}
LEARNING_RATE = 1e-3

# As the port's author recorded them: losses of the first five steps.
RECORDED_REFERENCE = (1.6879623, 3.3895013, 2.823279, 1.1130939, 1.2721274)
RECORDED_CANDIDATE = (1.6879623, 3.3891215, 2.823027, 1.112812, 1.2724642)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean cross entropy in float64: logits [B, C], targets [B]."""
    wide = logits.astype(np.float64)
    return float(np.mean(logsumexp(wide, -1) - wide[np.arange(len(targets)), targets]))


def second_losses(
    experiment: Experiment, side: str, state: dict[str, np.ndarray], batches: list[Any]
) -> tuple[float, float]:
    """Loss of the second batch after one Adam step on the first: with the right bias update, and with −lr in every entry."""
    framework = experiment.side(side)[0]
    model = experiment.reference_model if side == "reference" else experiment.candidate_model
    first, second = batches
    trace = framework.run(model, first, loss=experiment.twin.loss, backward=True, learning_rate=LEARNING_RATE)
    before = framework.read_state(model)
    after = {
        name: value if (step := trace.get("update", name)) is None else (value + step).astype(value.dtype)
        for name, value in before.items()
    }
    framework.load_state(model, after)
    logits = framework.run(model, second, loss=experiment.twin.loss).get("logits", "logits")
    framework.load_state(model, before)
    right = trace.get("update", "dense_linear.bias")
    assert logits is not None
    assert right is not None
    stale = logits.astype(np.float64) - right + np.full_like(right, -LEARNING_RATE)
    return cross_entropy(logits, second.targets), cross_entropy(stale, second.targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the port's own sizes: V 82,780, D 512, N 512")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--states", type=int, default=8, help="initial states")
    parser.add_argument("--batches", type=int, default=3, help="pairs of batches for each")
    parser.add_argument("--candidate", action="store_true", help="the Paddle twin's loss, too (once for each state)")
    given = parser.parse_args()
    reserve_threads()
    settings = FULL if given.full else SMALL
    differences, rounding, port = [], [], []
    for seed in range(given.states):
        options = Options(
            settings=settings,
            data="fake",
            batch_size=given.batch_size,
            length=settings["max_seq_len"],
            seed=seed,
            threads=os.cpu_count(),
        )
        experiment = prepare(get_twin(TWIN), options)
        state = experiment.weights["init"]
        spec = experiment.twin.inputs(experiment.settings)
        for number in range(given.batches):
            batches = [
                make_batch(
                    spec,
                    seed=seed,
                    batch_size=given.batch_size,
                    length=settings["max_seq_len"],
                    name=f"{number}-{step}",
                )
                for step in (1, 2)
            ]
            experiment.reference.load_state(experiment.reference_model, state)
            right, stale = second_losses(experiment, "reference", state, batches)
            differences.append(stale - right)
            print(
                f"state {seed}, batches {number}: loss at step 2 {right:.7f}, with the stale bias {stale - right:+.2e}",
                flush=True,
            )
            if number == 0:
                experiment.reference.load_state(experiment.reference_model, experiment.moved("init", 1)[0])
                rounding.append(second_losses(experiment, "reference", state, batches)[0] - right)
            if number == 0 and given.candidate:
                experiment.candidate.load_state(experiment.candidate_model, experiment.candidate_state(state))
                port.append(second_losses(experiment, "candidate", state, batches)[0] - right)
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    observed = RECORDED_CANDIDATE[1] - RECORDED_REFERENCE[1]
    negative = sum(difference < 0 for difference in differences)
    print(f"recorded difference at step 2:        {observed:+.2e}")
    print(f"simulated with the stale bias:        {mean:+.2e}, standard deviation {deviation:.1e}")
    print(f"  {negative} of {len(differences)} are negative")
    if deviation:
        print(f"  the record lies {abs(observed - mean) / deviation:.2f} standard deviations from it")
    noise = max(map(abs, rounding))
    print(
        f"rounding (weights moved by one ulp):  {noise:.1e} at most: {abs(observed) / noise:.0f} times too small"
        if noise
        else "rounding: none seen"
    )
    if port:
        print(f"the Paddle twin of today:             {max(map(abs, port)):.1e} at most")


if __name__ == "__main__":
    main()
