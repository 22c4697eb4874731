"""A pytest plugin: a port is held to its reference by a test of three lines.

    def test_port(parity):
        parity(reference=Reference(), candidate=Port(), inputs=images)

Nothing of the toolkit is imported until a test uses the fixture.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from alignment.report import Report

MARKER = """\
parity(**options): what the fixture `parity` is given in every call of this test, class or module, unless the call says \
otherwise: seed, steps, settings, batch_size, baseline, waivers …"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one option."""
    parser.getgroup("alignment").addoption(
        "--parity-update",
        action="store_true",
        help="Write the baselines of the tests that have one, in place of holding them to it. Refused where CI is set.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker. A CI that writes its own baselines holds nobody to anything."""
    config.addinivalue_line("markers", MARKER)
    if config.getoption("parity_update") and os.environ.get("CI"):
        raise pytest.UsageError(
            "--parity-update is for a person's machine: CI is set, and a CI must not move its own baselines"
        )


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """parity(twin, **options): check a twin, or reference=, candidate= and inputs=, and fail unless it is aligned.

    twin: a `Twin`, or its name: ``"package.module:twin"``. options: what `alignment.check` takes (reference, candidate,
    inputs, loss, mode), fields of `alignment.Options` (seed, steps, settings, batch_size …), and

    baseline: True, or a file: fail where a tensor is less precise than the file says; ``--parity-update`` writes it. True is
        ``baselines/NAME.toml`` beside the test's file. A baseline that is missing fails.
    waivers: a file of divergences that are known; see `alignment.waivers`.

    Returns the report.
    """
    from alignment.errors import AlignmentError
    from alignment.parity import NotAlignedError, baseline_file, hold

    usual: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers("parity"))):  # the nearest mark has the last word
        if mark.args:
            raise pytest.UsageError(f"{request.node.nodeid}: the marker parity takes keywords alone")
        usual |= mark.kwargs
    calls = 0

    def run(twin: Any = None, **options: Any) -> Report:
        __tracebackhide__ = True
        nonlocal calls
        calls += 1
        given = {**usual, **({} if twin is None else {"twin": twin}), **options}
        folder = request.path.parent
        test = request.node.nodeid.partition("::")[2]
        default = baseline_file(folder, f"{request.path.stem}-{test}", calls)
        try:
            return hold(given, folder, default, bool(request.config.getoption("parity_update")))
        except (NotAlignedError, AlignmentError) as error:
            said = str(error)
        pytest.fail(said)

    return run
