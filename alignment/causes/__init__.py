"""Why a tensor diverges: hypotheses, one file for each family, each with a precondition and a counterfactual.

To add a cause, write a function that takes a suspect and yields trials, and a `Cause` around it in the family it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignment.causes import options
from alignment.causes.suspect import AnySuspect, Cause, Suspect, Trial, WeightSuspect

CAUSES: tuple[Cause, ...] = (*options.CAUSES,)

__all__ = ["CAUSES", "Cause", "Suspect", "Trial", "WeightSuspect", "diagnose"]


def diagnose(suspect: AnySuspect, first: Sequence[Cause] = ()) -> list[tuple[Cause, Trial]]:
    """Every hypothesis whose precondition holds, with its best trial; the proved ones first.

    first: causes to try before the others; if one of them is proved, the others are not tried.
    """
    found: list[tuple[Cause, Trial]] = []
    for cause in (*first, *(cause for cause in CAUSES if cause not in first)):
        if suspect.record not in cause.records:
            continue
        trials = sorted(cause.test(suspect), key=lambda trial: (not trial.proved, trial.after))
        if trials:
            found.append((cause, trials[0]))
        if trials and trials[0].proved and cause in first:
            break
    return sorted(found, key=lambda pair: not pair[1].proved)
