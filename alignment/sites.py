"""Where in the candidate's source a diverging tensor is computed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from alignment.correspondence import path_of, rename
from alignment.experiment import Experiment
from alignment.frameworks import load_target
from alignment.localise import Root, Scene, is_criterion, row_of
from alignment.report import StageResult, TensorResult
from alignment.sources import class_site, making_site, short_site

# A model that is one layer is called by this package, which is no place to look at.
OURS = str(Path(__file__).parent)


def sites_of(
    row: TensorResult, experiment: Experiment, root: Root | None = None, scene: Scene | None = None
) -> Iterable[str]:
    """``"file:line (what)"`` for a root, the line that tells most first.

    root, scene: the root that the row is of, and the scene it was found in, where there is one.
    """
    owner = row.name.rpartition(".")[0] if root is None else root.owner
    if owner not in experiment.paths or row.record in ("module", "initializer", "metric") or is_criterion(row):
        return
    path = experiment.paths[owner]
    if root is not None and scene is not None and root.kind in ("input", "activation", "input gradient"):
        call = scene.forced_run.sites.get(root.name.partition("[")[0])
        if call and not call.startswith(OURS):
            yield f"{short_site(call)} (calls {rename(path_of(root.name), experiment.paths)})"
    framework, model = experiment.candidate, experiment.candidate_model
    if model is None:
        return  # a capture knows who called, and no source
    cls = type(framework.module(model, path))
    own = {m.path: m.own for m in framework.modules(model)}
    if own.get(path, True):
        site = class_site(cls)
        if site:
            yield f"{site} ({cls.__name__}.forward)"
    elif path:
        parent, _, local = path.rpartition(".")
        site = making_site(type(framework.module(model, parent)), local)
        if site:
            yield f"{site} (makes {path}, a {cls.__name__})"


def with_sites(
    stages: tuple[StageResult, ...], scenes: Sequence[Scene], experiment: Experiment
) -> tuple[StageResult, ...]:
    """The stages, each root with a line of source; that of what builds the model where nothing nearer is known."""
    found = {row_of(root): (root, scene) for scene in reversed(scenes) for root in scene.roots}

    def sited(row: TensorResult) -> TensorResult:
        if not row.root:
            return row
        lines = list(sites_of(row, experiment, *found.get((row.record, row.name), (None, None))))
        # Of what a module computes the line that makes it tells more than the one that calls it.
        line = (lines[-1] if row.record == "activation" else lines[0]) if lines else None
        return replace(row, site=re.sub(r"(:\d+) \(.*", r"\1", line) if line else _whole(experiment))

    return tuple(replace(stage, tensors=tuple(sited(row) for row in stage.tensors)) for stage in stages)


def _whole(experiment: Experiment) -> str | None:
    """The class or function that builds the candidate; of a ready model its class, unless that is the framework's own."""
    side, model = experiment.twin.candidate, experiment.candidate_model
    if model is None:
        return None
    if side.built:
        return class_site(load_target(side.target))
    own = next(module.own for module in experiment.candidate.modules(model))
    return class_site(type(model)) if own else None
