"""Both twins against recorded outputs of the original models, and against cases recorded from the naive form."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import helpers

ORIGINALS = [
    f"{name}{kind}"
    for name in (
        "fast_transformer_absolute",
        "fast_transformer_pooled",
        "fast_transformer_rotary",
        "fastformer_official",
        "fastformer_single",
    )
    for kind in ("", "_rich")
]
RECORDED = sorted((Path(__file__).parent / "cases").glob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("framework", helpers.FRAMEWORKS)
@pytest.mark.parametrize("name", ORIGINALS)
def test_original(name: str, framework: str, dtype: str, reference_dir: Path) -> None:
    helpers.check(framework, helpers.Case(reference_dir / f"{name}.safetensors"), dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("framework", helpers.FRAMEWORKS)
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded(path: Path, framework: str, dtype: str) -> None:
    helpers.check(framework, helpers.Case(path), dtype)


def test_recorded_cases_are_all_there() -> None:
    assert {helpers.Case(path).name for path in RECORDED} == set(helpers.CLASSES.values())
    assert all(path.stat().st_size < 100_000 for path in RECORDED)
