"""A side that is not at hand, told by what a capture knows of it."""

from __future__ import annotations

from typing import Any

from alignment.capture_file import About
from alignment.frameworks import ModuleInfo
from checkpoints import Slot


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

    def get_option(self, _model: Any, kind: str, option: str) -> dict[str, Any]:
        """Path -> value of an option of every layer of a kind."""
        alike = (module.path for module in self._about.modules if module.kind == kind)
        return {path: options[option] for path in alike if option in (options := self._about.layers[path])}
