"""Why a tensor diverges: hypotheses, one file for each family, each with a precondition and a counterfactual.

To add a cause, write a function that takes a suspect and yields trials, and a `Cause` around it in the family it belongs to.
"""

from __future__ import annotations

from alignment.causes import options
from alignment.causes.suspect import Cause, Suspect, Trial, WeightSuspect

CAUSES: tuple[Cause, ...] = (*options.CAUSES,)

__all__ = ["CAUSES", "Cause", "Suspect", "Trial", "WeightSuspect", "diagnose"]


def diagnose(suspect: Suspect | WeightSuspect) -> list[tuple[Cause, Trial]]:
    """Every hypothesis whose precondition holds, with its best trial; the proved ones first, then by what they leave."""
    found = []
    for cause in CAUSES:
        if suspect.record not in cause.records:
            continue
        trials = sorted(cause.test(suspect), key=lambda trial: (not trial.proved, trial.after))
        if trials:
            found.append((cause, trials[0]))
    return sorted(found, key=lambda pair: not pair[1].proved)
