"""The pytest plugin: the fixture `qtrace`, with which a test compares a model with the one that it replaces.

    def test_quantized_head(qtrace):
        qtrace.assert_parity(reference, candidate, inputs, max_peir=1e-3)

torch is imported by the first assertion, not by pytest's start.
"""

from __future__ import annotations

from typing import Any

import pytest

from qtrace.errors import UsageError
from qtrace.testing import LOOSEN, NOTE, UPDATE, WRITTEN, Parity, ParityError

__all__ = ["Parity", "ParityError"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that write baselines."""
    group = parser.getgroup("qtrace", "parity of two models")
    group.addoption(UPDATE, action="store_true", help="take the numbers of each test with a baseline into its baseline")
    group.addoption(LOOSEN, action="store_true", help=f"let {UPDATE} take in rows that got worse")


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and refuse options that exclude each other."""
    config.addinivalue_line(
        "markers", "qtrace(max_peir=…, policy=…, baseline=…, **trace options): defaults of qtrace.assert_parity"
    )
    if config.getoption(LOOSEN) and not config.getoption(UPDATE):
        raise pytest.UsageError(f"{LOOSEN} is about what is written, and nothing is; give {UPDATE} as well")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the baselines that were written, and those that could be written."""
    reports = [one for several in terminalreporter.stats.values() for one in several]
    for report in reports:
        if getattr(report, "when", None) != "call":
            continue
        for name, value in report.user_properties:
            if name in (WRITTEN, NOTE):
                said = "wrote baseline " if name == WRITTEN else f"{report.nodeid}: "
                terminalreporter.write_line(f"qtrace: {said}{value}")


@pytest.fixture(name="qtrace")
def parity(request: pytest.FixtureRequest) -> Parity:
    """Compare a model with the one that it replaces: `qtrace.assert_parity(reference, candidate, inputs)`."""
    given: dict[str, Any] = {}
    for mark in request.node.iter_markers("qtrace"):
        if mark.args:
            value = mark.args[0]
            raise UsageError(f"the mark qtrace has {value!r} without a name; write it as max_peir={value!r}")
        # The mark nearest to the test comes first.
        given = {**mark.kwargs, **given}
    return Parity(request.node, given)
