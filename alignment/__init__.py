"""Proves that a reference model and its candidate port compute the same thing, and says where they do not.

    from alignment import Options, check

    report = check("fast-transformer-classifier", Options(steps=(3, 5)))
    assert report.verdict == "aligned"

Nothing here imports a framework until a check runs.
"""

from alignment.apart import compare_captures
from alignment.capture import Keep, capture_candidate, capture_reference, save_traces
from alignment.causes import Scored
from alignment.check import check, run_check
from alignment.compare import Comparison, Pair, Tolerance, compare
from alignment.errors import AlignmentError, FrameworkMissingError
from alignment.experiment import Options
from alignment.explain import explain, explain_traces
from alignment.report import Effect, Finding, Report, StageResult, TensorResult, Track, Trajectory, TwinResult
from alignment.reported import explain_metric, explain_order
from alignment.training.data_stage import compare_feeds
from alignment.training.recipe import Clip, Group, Optimizer, Recipe, Schedule
from alignment.trajectory import Training, trajectory
from alignment.twins import Side, Twin, get_twin

__all__ = [
    "AlignmentError",
    "Clip",
    "Comparison",
    "Effect",
    "Finding",
    "FrameworkMissingError",
    "Group",
    "Keep",
    "Optimizer",
    "Options",
    "Pair",
    "Recipe",
    "Report",
    "Schedule",
    "Scored",
    "Side",
    "StageResult",
    "TensorResult",
    "Tolerance",
    "Track",
    "Training",
    "Trajectory",
    "Twin",
    "TwinResult",
    "capture_candidate",
    "capture_reference",
    "check",
    "compare",
    "compare_captures",
    "compare_feeds",
    "explain",
    "explain_metric",
    "explain_order",
    "explain_traces",
    "get_twin",
    "run_check",
    "save_traces",
    "trajectory",
]
