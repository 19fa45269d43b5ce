"""Reports for people and programs: the terminal's sections, and one file a format of `--report`.

A renderer takes any `ReportData` and returns text or rich renderables; only `save` touches a disk, and only
where it is told to. No numbers are made here: what is shown is what the record holds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtrace.report.formats import check, save
    from qtrace.report.terminal import to_html

__all__ = ["check", "save", "to_html"]

# A command that only prints need not wait for every format of a file.
_HOMES = {"check": "formats", "save": "formats", "to_html": "terminal"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"qtrace.report.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'qtrace.report' has no attribute {name!r}")
