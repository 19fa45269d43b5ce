"""A test's baseline: which file it is, what a run is held against, and when it is written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qtrace.errors import OutputError, UsageError

if TYPE_CHECKING:
    import pytest

    from qtrace.config import Policy
    from qtrace.gate import Baseline, Update
    from qtrace.report.records import GateVerdict, ReportData

UPDATE = "--qtrace-update-baseline"
LOOSEN = "--qtrace-allow-loosen"
# User properties travel from the workers of pytest-xdist to the process that prints.
WRITTEN = "qtrace_baseline"
NOTE = "qtrace_note"
FOLDER = "__qtrace__"
# Of a name that is longer than file systems take, or that holds what they do not, a digest tells the rest.
LONGEST = 100
_UNFIT = re.compile(r"[^\w.\-\[\]]", re.ASCII)


def baseline_path(item: pytest.Item, nth: int = 1) -> Path:
    """Return the file of a test's own baseline: `__qtrace__/test_file/test_name.json` beside the test file.

    A class goes before the name (`TestHead.test_name.json`), parameters behind it in brackets; the second assertion of
    a test and later ones have their number (`test_name.2.json`).
    """
    name = ".".join(item.nodeid.split("::")[1:])
    fit = _UNFIT.sub("_", name)
    if fit != name or len(fit) > LONGEST:
        fit = f"{fit[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    number = f".{nth}" if nth > 1 else ""
    return item.path.parent / FOLDER / item.path.stem / f"{fit}{number}.json"


@dataclass(frozen=True)
class Decision:
    """The verdict on a run; where the baseline was to be written, what that changes, and why it was not, if so."""

    verdict: GateVerdict
    update: Update | None = None
    refusal: str = ""


class BaselineFile:
    """The baseline at `path` of the test `item`, read when this is made.

    Raises `UsageError` where there is none and none is to be written, `SourceError` where it is damaged.
    """

    def __init__(self, path: Path, item: pytest.Item) -> None:
        self.name = os.path.relpath(path, item.config.rootpath)
        self._path = path
        self._item = item
        self._updates = bool(item.config.getoption(UPDATE))
        self._loosens = bool(item.config.getoption(LOOSEN))
        self._stored: Baseline | None = None
        if path.exists():
            from qtrace.gate import load_baseline

            self._stored = load_baseline(path)
        elif not self._updates:
            raise UsageError(f"no baseline {self.name}; pytest {UPDATE} writes it")

    def decide(self, report: ReportData, policy: Policy | None) -> Decision:
        """Hold a report against the baseline, or write it anew where that is asked for and nothing speaks against it.

        Raises `OutputError` where it cannot be written.
        """
        from qtrace.gate import judge, update

        new = update(report, self._stored)
        if not self._updates:
            verdict = judge(report, policy, self._stored, source=self.name)
            if verdict.passed and (new.tightened or new.appeared):
                news = f"{len(new.tightened)} rows better than the baseline, {len(new.appeared)} not in it"
                self._tell(NOTE, f"{news}; {UPDATE} takes them in")
            return Decision(verdict)
        looser = bool(new.loosened) and not self._loosens
        verdict = judge(report, policy, self._stored if looser else new.baseline, source=self.name)
        if looser:
            return Decision(verdict, new, f"it would be looser than before; {LOOSEN} takes that in")
        if not verdict.passed:
            return Decision(verdict, new, "the run does not pass")
        self._write(new.baseline)
        self._tell(WRITTEN, self.name)
        return Decision(verdict, new)

    def _tell(self, name: str, value: str) -> None:
        self._item.user_properties.append((name, value))

    def _write(self, baseline: Baseline) -> None:
        """Write the file at once, so that no other process ever reads half of it."""
        from qtrace.gate import save_baseline

        written = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            save_baseline(baseline, written)
            os.replace(written, self._path)
        except OSError as error:
            raise OutputError(f"baseline {self.name}: {error.strerror}; nothing was written") from error
        finally:
            with contextlib.suppress(OSError):
                written.unlink()
