"""The plugin, in real runs of pytest: what passes, how a failure reads, baselines, workers, and what it costs to load."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import pytest_alignment
from alignment import check

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
# Installed with this package, the plugin loads by itself; from a bare checkout it is asked for.
INSTALLED = bool(metadata.entry_points(group="pytest11", name="alignment"))
LOAD = () if INSTALLED else ("-p", "pytest_alignment")

PAIR = """
import numpy as np
import paddle
import pytest
import torch


class Wrong(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.up = paddle.nn.Linear(6, 8)
        self.act = paddle.nn.GELU(approximate=True)
        self.down = paddle.nn.Linear(8, 3)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


class Right(Wrong):
    def __init__(self):
        super().__init__()
        self.act = paddle.nn.GELU()


class Reference(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(6, 8)
        self.act = torch.nn.GELU()
        self.down = torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


images = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
"""


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """pytester forgets what a run imports, and torch can't be imported twice: a check has imported it all before."""
    import paddle
    import torch

    models = torch.nn.Sequential(torch.nn.Linear(2, 2)), paddle.nn.Sequential(paddle.nn.Linear(2, 2))
    inputs = np.ones((2, 2), dtype=np.float32)
    for dtype in ("float32", "bfloat16"):
        reference, candidate = models[0].to(getattr(torch, dtype)), models[1].to(dtype=dtype)
        assert check(reference=reference, candidate=candidate, inputs=inputs).verdict == "aligned"


@pytest.fixture(autouse=True)
def _plain(monkeypatch) -> None:
    """A CI is set only where a test sets it."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(pytester: pytest.Pytester, body: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(test_port=PAIR + body)
    return pytester.runpytest_inprocess(*LOAD, "-p", "no:cacheprovider", *arguments)


def test_the_entry_point_is_the_plugin() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\nalignment = "pytest_alignment"\n' in text
    assert pytest_alignment.parity


def test_what_passes_and_what_could_not_be_decided(pytester) -> None:
    result = run(
        pytester,
        """
def test_port(parity):
    report = parity(reference=Reference(), candidate=Right(), inputs=images)
    assert [stage.verdict for stage in report.twins[0].stages] == ["aligned"] * 5

def test_nan(parity):
    parity(reference=Reference(), candidate=Right(), inputs=images * np.nan, steps=[3])

def test_nothing_there(parity):
    parity("no_such_module:twin")

def test_mistyped(parity):
    parity(reference=Reference(), candidate=Right(), inputs=images, batchsize=3)
""",
    )
    result.assert_outcomes(passed=1, failed=3)
    text = result.stdout.str()
    assert "Reference: inconclusive" in text
    assert "both sides are NaN or infinite" in text
    assert "no_such_module:twin can't be imported" in text
    assert "parity does not take batchsize; it takes: baseline, batch_size" in text


def test_a_failure_names_the_root_first_and_shows_the_line_of_the_test_alone(pytester) -> None:
    result = run(
        pytester,
        """
def test_port(parity):
    parity(reference=Reference(), candidate=Wrong(), inputs=images, steps=[3, 5])
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">       parity(reference=Reference(), candidate=Wrong(), inputs=images, steps=?3, 5?)",
            "E       Failed: Reference: diverged",
            "E         root: activation act *",
            "E           seen *, allowed *, worst at *",
            "E           float64 differs by *; at * the reference has *, the candidate *",
            "E           *weights, batch given-1*",
            "E           at test_port.py:1*",
            "E         and * more, which depend on the roots",
            "E         step 3 forward diverged, step 5 backward diverged",
        ],
        consecutive=False,
    )
    text = result.stdout.str()
    for ours in ("pytest_alignment/__init__.py", "alignment/parity.py", "alignment/check.py"):
        assert ours not in text
    assert "activation down" not in text


def test_sizes_dtypes_and_seeds_by_parametrize_and_marker(pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.parity(steps=[3], batch_size=2)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("seed", [0, 7])
class TestPort:
    def test_port(self, parity, dtype, rows, seed):
        reference, candidate = Reference().to(getattr(torch, dtype)), Right().to(dtype=dtype)
        report = parity(reference=reference, candidate=candidate, inputs=images[:rows], seed=seed)
        (twin,) = report.twins
        assert (twin.seed, twin.options["batch_size"], [stage.step for stage in twin.stages]) == (seed, 2, [3])
        assert any("bfloat16 weights" in note for note in twin.notes) == (dtype == "bfloat16")

    @pytest.mark.parity(steps=[1, 3])
    def test_the_nearest_mark_has_the_last_word(self, parity, dtype, rows, seed):
        if (dtype, rows, seed) == ("float32", 1, 0):
            report = parity(reference=Reference(), candidate=Right(), inputs=images, batch_size=3)
            assert [stage.step for stage in report.twins[0].stages] == [1, 3]
            assert report.twins[0].options["batch_size"] == 3
""",
        "--strict-markers",
        "--strict-config",
        "--import-mode=importlib",
    )
    result.assert_outcomes(passed=16)


BASELINE = """
@pytest.mark.parametrize("seed", [0, 1])
def test_port(parity, seed):
    parity(reference=Reference(), candidate=Right(), inputs=images, steps=[3], seed=seed, baseline=True)
"""


def test_a_missing_baseline_fails_until_it_is_written_on_purpose(pytester) -> None:
    result = run(pytester, BASELINE)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["*test_port-test_port_0.toml: there is no such baseline; pytest --parity-update writes it*"]
    )
    assert not list(pytester.path.rglob("*.toml"))
    run(pytester, BASELINE, "--parity-update").assert_outcomes(passed=2)
    files = sorted(file.name for file in (pytester.path / "baselines").iterdir())
    assert files == ["test_port-test_port_0.toml", "test_port-test_port_1.toml"]
    run(pytester, BASELINE).assert_outcomes(passed=2)


def test_a_loss_of_precision_fails_though_it_is_aligned(pytester) -> None:
    body = BASELINE.replace("Right()", "Rounded()") + ROUNDED
    run(pytester, body.format(shift=0), "--parity-update").assert_outcomes(passed=2)
    result = run(pytester, body.format(shift=12), "-k", "1")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "E       Failed: Reference: diverged",
            "E         diverged: output output *",
            "E           less precise than it was: float32 error * times the reference's, in the baseline * times; allowed *",
        ]
    )
    run(pytester, body.format(shift=12), "-k", "1", "--parity-update").assert_outcomes(passed=1, deselected=1)


# In float64 the same function; in float32 the lower digits go, and what is left is aligned all the same.
ROUNDED = """

class Rounded(Right):
    def forward(self, x):
        return (super().forward(x) + {shift}) - {shift}
"""


def test_ci_never_writes_its_own_baselines(pytester, monkeypatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = run(pytester, BASELINE, "--parity-update")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--parity-update is for a person's machine: CI is set*"])
    assert not list(pytester.path.rglob("*.toml"))


def test_a_baseline_of_what_diverges_is_not_written(pytester) -> None:
    body = BASELINE.replace("Right()", "Wrong()")
    run(pytester, body, "--parity-update").assert_outcomes(failed=2)
    assert not list(pytester.path.rglob("*.toml"))


def test_waivers_are_files_beside_the_test(pytester) -> None:
    body = """
def test_port(parity):
    parity(reference=Reference(), candidate=Wrong(), inputs=images, steps=[3], waivers="waivers.toml")
"""
    entry = '[[waiver]]\nname = "{}"\nstage = "forward"\nreason = "tanh"\nowner = "me"\nexpires = 2999-01-01\n'
    pytester.path.joinpath("waivers.toml").write_text(
        "".join(entry.format(name) for name in ("act", "down", "output", "(root)"))
    )
    result = run(pytester, body)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*waiver of stage=forward name=(root)*waives nothing any more*"])
    pytester.path.joinpath("waivers.toml").write_text("".join(entry.format(name) for name in ("act", "down", "output")))
    run(pytester, body).assert_outcomes(passed=1)


@pytest.mark.slow
def test_workers_write_and_hold_baselines_apart(pytester) -> None:
    """xdist starts processes of its own: so does this test."""
    pytester.makepyfile(test_port=PAIR + BASELINE)
    for arguments in (("--parity-update",), ()):
        result = pytester.runpytest_subprocess(*LOAD, "-n", "2", *arguments)
        result.assert_outcomes(passed=2)
    assert len(list((pytester.path / "baselines").iterdir())) == 2


def test_names_of_baselines_are_told_apart(tmp_path) -> None:
    from alignment.parity import baseline_file

    names = ["test_a[x/y]", "test_a[x y]", "test_a[x-y]", "A::test_a[1]", "B::test_a[1]", "n" * 300, "n" * 301]
    files = [baseline_file(tmp_path, name, 1) for name in names] + [baseline_file(tmp_path, "n", 2)]
    assert len({file.name for file in files}) == len(files)
    assert all(len(file.name) < 200 and file.parent == tmp_path / "baselines" for file in files)


def test_loading_imports_neither_a_framework_nor_the_toolkit() -> None:
    said = "import sys, pytest_alignment; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", said], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pytest_alignment" in done.stdout
    for heavy in ("torch", "paddle", "numpy", "alignment", "scipy", "rich"):
        assert f"'{heavy}'" not in done.stdout
