"""Why a tensor diverges: hypotheses, one file for each family, each with a precondition and a counterfactual.

To add a cause, write a function that takes a suspect and yields trials, and put a `Cause` around it into the CAUSES of the
family it belongs to. Within a family the more particular come first.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignment.causes import (
    functions,
    gradients,
    initialization,
    loss,
    masks,
    options,
    structure,
    updates,
    values,
    weights,
)
from alignment.causes.initialization import InitializerSuspect
from alignment.causes.structure import StructureSuspect
from alignment.causes.suspect import AnySuspect, Cause, Suspect, Trial, WeightSuspect
from alignment.causes.updates import StatisticSuspect, UpdateSuspect

# What kind of suspect -> its causes, the more particular families first.
CAUSES: dict[type, tuple[Cause, ...]] = {
    Suspect: (
        *options.CAUSES,
        *loss.CAUSES,
        *masks.CAUSES,
        *functions.CAUSES,
        *values.CAUSES,
        *gradients.CAUSES,
    ),
    WeightSuspect: weights.CAUSES,
    InitializerSuspect: initialization.CAUSES,
    StructureSuspect: structure.CAUSES,
    UpdateSuspect: updates.CAUSES,
    StatisticSuspect: updates.CAUSES,
}

__all__ = [
    "CAUSES",
    "AnySuspect",
    "Cause",
    "InitializerSuspect",
    "StatisticSuspect",
    "StructureSuspect",
    "Suspect",
    "Trial",
    "UpdateSuspect",
    "WeightSuspect",
    "diagnose",
]


def diagnose(suspect: AnySuspect, first: Sequence[Cause] = ()) -> list[tuple[Cause, Trial]]:
    """Hypotheses whose precondition holds, each with its best trial, up to the first that is proved; that one comes first.

    first: causes to try before the others.
    """
    own = CAUSES[type(suspect)]
    found: list[tuple[Cause, Trial]] = []
    for cause in (*(cause for cause in first if cause in own), *(cause for cause in own if cause not in first)):
        if suspect.record not in cause.records:
            continue
        trials = sorted(cause.test(suspect), key=lambda trial: (not trial.proved, trial.after))
        if trials and trials[0].proved:
            return [(cause, trials[0]), *found]
        # One cause may be tested in two families: as a layer's option, and by a formula.
        if trials and all(cause.name != known.name for known, _ in found):
            found.append((cause, trials[0]))
    return found
