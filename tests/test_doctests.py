"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import qtrace


def _modules() -> list[ModuleType]:
    names = [found.name for found in pkgutil.walk_packages(qtrace.__path__, "qtrace.")]
    kept = [name for name in names if not name.startswith("qtrace.__main__")]
    return [importlib.import_module(name) for name in kept]


WITH_EXAMPLES = [module for module in _modules() if any(test.examples for test in doctest.DocTestFinder().find(module))]


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) > 5


@pytest.mark.parametrize("module", WITH_EXAMPLES, ids=lambda module: module.__name__)
def test_examples_are_true(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
