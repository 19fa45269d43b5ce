"""Which finding stands behind a row that is wrong."""

from __future__ import annotations

from collections.abc import Iterable

from qtrace.report.records import Finding, ReportData, Row


class Causes:
    """The findings of a report, to be asked which of them explains a row."""

    def __init__(self, report: ReportData) -> None:
        self._findings = sorted(report.findings, key=lambda finding: finding.rank)
        self._begins = {finding.rank: _begin(finding, report.rows) for finding in self._findings}

    def of(self, module: str | None, order: int | None = None) -> int | None:
        """Return the rank of the finding that explains a row of `module`, at this place of the execution order.

        It is the one that names the module itself or a callee that it misleads; else the one that names the innermost
        module around it; else the one that shows first, if that is before the row. For the whole run, whose
        `module` is None, it is the first. None where no finding explains the row.
        """
        if module is None:
            return self._findings[0].rank if self._findings else None
        for finding in self._findings:
            if module in (finding.module, *finding.members, *finding.callees):
                return finding.rank
        around = [
            (len(path), -finding.rank)
            for finding in self._findings
            for path in _reached(finding)
            if _is_inside(module, path)
        ]
        if around:
            return -max(around)[1]
        before = [(begin, rank) for rank, begin in self._begins.items() if begin is not None and order is not None]
        earliest = min(before, default=None)
        return earliest[1] if earliest is not None and order is not None and earliest[0] <= order else None


def _reached(finding: Finding) -> tuple[str, ...]:
    """Return the modules in which a finding shows at once: whoever is called wrongly, else whoever is wrong."""
    return finding.callees or (finding.module, *finding.members)


def _is_inside(module: str, path: str) -> bool:
    return module.startswith(f"{path}.") if path else module != ""


def _begin(finding: Finding, rows: Iterable[Row]) -> int | None:
    """Return where the first row in which a finding shows stands in execution order."""
    paths = _reached(finding)
    found = (
        row.order for row in rows if row.module in paths or any(path and _is_inside(row.module, path) for path in paths)
    )
    return min(found, default=None)
