"""Why a tensor diverges: hypotheses, one file for each family, each with a precondition and a counterfactual.

To add a cause, write a function that takes a suspect and yields trials, and put a `Cause` around it into the CAUSES of the
family it belongs to. Within a family the more particular come first.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignment.causes import (
    attention,
    data,
    functions,
    gradients,
    initialization,
    loss,
    masks,
    metrics,
    options,
    structure,
    training,
    updates,
    values,
    weights,
)
from alignment.causes.data import DataSuspect, InputSuspect
from alignment.causes.gradients import CutSuspect
from alignment.causes.initialization import InitializerSuspect
from alignment.causes.loss import CriterionSuspect
from alignment.causes.metrics import MetricSuspect, Scored
from alignment.causes.structure import StructureSuspect
from alignment.causes.suspect import AnySuspect, Cause, Suspect, Trial, WeightSuspect
from alignment.causes.training import RateSuspect, SeriesSuspect
from alignment.causes.updates import StatisticSuspect, UpdateSuspect

# Every family, by the name of its file.
FAMILIES: dict[str, tuple[Cause, ...]] = {
    "options": tuple(options.CAUSES),
    "loss": loss.CAUSES,
    "masks": masks.CAUSES,
    "attention": attention.CAUSES,
    "functions": functions.CAUSES,
    "values": values.CAUSES,
    "gradients": (*gradients.CAUSES, *gradients.CUTS),
    "weights": weights.CAUSES,
    "initialization": initialization.CAUSES,
    "structure": structure.CAUSES,
    "updates": updates.CAUSES,
    "training": training.CAUSES,
    "metrics": metrics.CAUSES,
    "data": (*data.CAUSES, *data.INPUTS),
}

# What kind of suspect -> its causes, the more particular families first.
CAUSES: dict[type, tuple[Cause, ...]] = {
    Suspect: (
        *(c for family in ("options", "loss", "masks", "attention", "functions", "values") for c in FAMILIES[family]),
        *gradients.CAUSES,
    ),
    CriterionSuspect: FAMILIES["loss"],
    CutSuspect: gradients.CUTS,
    WeightSuspect: FAMILIES["weights"],
    InitializerSuspect: FAMILIES["initialization"],
    StructureSuspect: FAMILIES["structure"],
    UpdateSuspect: FAMILIES["updates"],
    StatisticSuspect: FAMILIES["updates"],
    RateSuspect: FAMILIES["training"],
    SeriesSuspect: FAMILIES["training"],
    MetricSuspect: FAMILIES["metrics"],
    DataSuspect: data.CAUSES,
    InputSuspect: data.INPUTS,
}

__all__ = [
    "CAUSES",
    "FAMILIES",
    "AnySuspect",
    "Cause",
    "CriterionSuspect",
    "CutSuspect",
    "DataSuspect",
    "InitializerSuspect",
    "InputSuspect",
    "MetricSuspect",
    "RateSuspect",
    "Scored",
    "SeriesSuspect",
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
