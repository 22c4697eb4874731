"""A side that is not at hand, told by what a capture knows of it."""

from __future__ import annotations

from typing import Any

from alignment.capture_file import About
from alignment.errors import AlignmentError
from alignment.frameworks import ModuleInfo
from alignment.mapping import ModelMapping
from alignment.matching import Tree
from alignment.scope import Scope, corresponding, located, plan_scope, settle_scope
from checkpoints import CheckpointError, Layout, NameMap, Slot


class Recorded:
    """What a capture knows of its side, told as a framework's adapter would tell it of a live model."""

    meanings = ()

    def __init__(self, about: About) -> None:
        self.name, self._about = about.framework, about

    def versions(self) -> dict[str, str]:
        """Versions of what ran."""
        return dict(self._about.versions)

    def set_threads(self, _count: int) -> None:
        """There is nothing to run."""

    def slots(self, _model: Any) -> tuple[Slot, ...]:
        """Every name of the state dict."""
        return self._about.slots

    def modules(self, _model: Any) -> tuple[ModuleInfo, ...]:
        """The module tree."""
        return self._about.modules

    def options(self, _model: Any, path: str) -> dict[str, Any]:
        """Options of one module, as far as they were known."""
        return dict(self._about.layers.get(path, {}))

    def cross_entropy(self, _logits: Any, _targets: Any, **_options: Any) -> None:
        """None: what it gives was recorded with the run, or left out."""

    def get_option(self, _model: Any, kind: str, option: str) -> dict[str, Any]:
        """Path -> value of an option of every layer of a kind."""
        alike = (module.path for module in self._about.modules if module.kind == kind)
        return {path: options[option] for path in alike if option in (options := self._about.layers[path])}


def settle_recorded(
    reference: About, candidate: About, mapping: ModelMapping | None = None
) -> tuple[Layout | None, tuple[str, ...], Scope, dict[str, str]]:
    """How the tensors and modules of two captured sides correspond: as the candidate's capture says that it was settled.

    mapping: what is said in place of that.

    Returns the layout, or None with what keeps the tensors from corresponding, one line each; the scope; and the reference's
    module path -> the candidate's.

    Raises:
        AlignmentError: the mapping speaks of what is not there, or by it the candidate should have been given other weights.
    """
    ours, theirs = (tree_told(about) for about in (reference, candidate))
    scope, layout, mismatch = candidate.said.scope(candidate.counterparts), None, candidate.mismatch
    if not mismatch:
        try:
            layout = plan_scope(ours, theirs, scope)
        except CheckpointError as error:
            mismatch = tuple(line.strip() for line in str(error).splitlines())
    if mapping is not None:
        given = layout
        layout, mismatch, scope = settle_scope(ours, theirs, mapping, NameMap(exact=reference.counterparts))
        if layout != given:
            raise AlignmentError(
                "by this mapping the candidate's tensors correspond to others of the reference's than those it was captured "
                "with: capture the candidate again, with --mapping"
            )
    paths = corresponding(scope, ours, theirs, layout)
    return layout, mismatch, located(scope, ours, theirs, paths), paths


def tree_told(about: About) -> Tree:
    """What a matching looks at of a captured side."""
    return Tree(about.framework, about.modules, about.slots)
