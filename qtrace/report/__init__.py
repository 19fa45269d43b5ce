"""Renders reports for people and programs: the terminal's sections, and a file for each format of `--report`.

A renderer takes any `ReportData` and returns text or rich renderables. Only `save` writes to a disk, and only to the
given path. No numbers are computed here: the renderers show the numbers of the record.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtrace.report.formats import check, save
    from qtrace.report.terminal import to_html

__all__ = ["check", "save", "to_html"]

# A command that only prints must not wait for the import of every file format.
_HOMES = {"check": "formats", "save": "formats", "to_html": "terminal"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"qtrace.report.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'qtrace.report' has no attribute {name!r}")
