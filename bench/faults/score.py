"""Runs the cases through `qtrace.trace` and counts how often the right module was named."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import qtrace
from bench.faults.case import Case, Pair
from bench.faults.catalogue import cases
from bench.faults.claims import overclaims
from bench.faults.heuristics import HEURISTICS
from bench.faults.rewrite import changes_in
from qtrace.report.records import Finding, ReportData

RIGHT = Path(__file__).parent / "right.txt"
TOP = 3
_FILE = re.compile(r"\S+\.py(:\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one case came to.

    `named` are the modules of the findings, best first. `first`, `top`, `found_all`, `kind`, `argument` and `reason`
    are None where the case has no fault (the last three also where the answer leaves them open or the first name is
    wrong). `reason` says whether the words that the case demands are told where an answer is named. `spurious` counts
    findings that are at no fault of the case, and `overclaims` those whose words go beyond their numbers. `heuristics`
    says for each rule whether the module that it named is an answer. `line` says whether the first finding, being
    right, points at a line that was changed; None where no source was. `error` is set where `trace` failed in a way
    that it does not promise.
    """

    id: str
    architecture: str
    fault: str
    answers: tuple[str, ...]
    named: tuple[str, ...] = ()
    outcome: str | None = None
    outcome_right: bool = False
    first: bool | None = None
    top: bool | None = None
    found_all: bool | None = None
    kind: bool | None = None
    argument: bool | None = None
    reason: bool | None = None
    spurious: int = 0
    overclaims: int = 0
    heuristics: dict[str, bool] = field(default_factory=dict)
    line: bool | None = None
    seconds: float = 0.0
    error: str | None = None

    @property
    def right(self) -> bool:
        """Whether the answer is right: the fault first and all of them found, or no finding and the right outcome."""
        if self.error is not None:
            return False
        if self.answers:
            return bool(self.first and self.found_all)
        return self.outcome_right and not self.named


def run(ids: Iterable[str] | None = None, *, progress: Callable[[Result], None] | None = None) -> list[Result]:
    """Run the cases with these ids (None: all) and return their results, in the catalogue's order."""
    wanted = None if ids is None else set(ids)
    chosen = [case for case in cases() if wanted is None or case.id in wanted]
    if wanted is not None and len(chosen) < len(wanted):
        raise ValueError(f"no case of the bench is called {sorted(wanted - {case.id for case in chosen})}")
    results = []
    for case in chosen:
        results.append(run_case(case))
        if progress is not None:
            progress(results[-1])
    return results


def run_case(case: Case) -> Result:
    """Build one case, trace it, and judge the report by the case's answer."""
    pair = case.build()
    begin = time.perf_counter()
    report: Any
    try:
        report = qtrace.trace(pair.reference, pair.candidate, pair.inputs, call=case.call)
    except qtrace.ForwardError as error:
        report = error.report
    except Exception as error:  # a bench goes on: whatever trace fails with counts against it
        return _result(case, time.perf_counter() - begin, error=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - begin
    first = next(iter(report.findings), None)
    return replace(judge(case, report, seconds), line=None if first is None else _names_line(pair, case, first))


def _names_line(pair: Pair, case: Case, first: Finding) -> bool | None:
    """Return whether a finding points at a changed line, on either side; None where no container's source was changed.

    It is asked of the right one alone.
    """
    if first.module not in case.answers:
        return None
    try:
        changed = changes_in(pair.at(first.module))
    except AttributeError:
        # A rebuilt candidate has no module of this name.
        return None
    if changed is None:
        return None
    sides = ((first.source or {}).get(name) or {} for name in ("reference", "candidate"))
    return any(side.get("line") in lines for side, lines in zip(sides, (changed.before, changed.after), strict=True))


def judge(case: Case, report: ReportData, seconds: float) -> Result:
    """Compare the report's findings with the case's answer."""
    named = tuple(finding.module for finding in report.findings)
    outcome = report.outcome.value
    judged: dict[str, Any] = {
        "named": named,
        "outcome": outcome,
        "outcome_right": outcome in case.outcomes,
        "spurious": sum(not _modules(finding) & case.answers for finding in report.findings),
        "overclaims": sum(map(overclaims, report.findings)),
    }
    if case.answers:
        judged |= _judge_fault(case, report.findings)
        if judged["first"] and case.reason:
            judged["reason"] = re.search(case.reason, _words(case, report)) is not None
        judged["heuristics"] = {name: rule(report.rows) in case.answers for name, rule in HEURISTICS.items()}
    return _result(case, seconds, **judged)


def _judge_fault(case: Case, findings: Sequence[Finding]) -> dict[str, Any]:
    first = bool(findings) and findings[0].module in case.answers
    found = set().union(*(_modules(finding) for finding in findings))
    right_argument = None
    if first and case.argument is not None:
        # A path inside a nested argument ("position_embeddings.0") names that argument, and more precisely.
        right_argument = (findings[0].argument or "").split(".")[0] == case.argument
    return {
        "first": first,
        "top": any(finding.module in case.answers for finding in findings[:TOP]),
        "found_all": all(found & fault for fault in case.faults),
        "kind": findings[0].kind in case.kinds if first and case.kinds else None,
        "argument": right_argument,
    }


def _words(case: Case, report: ReportData) -> str:
    """Return what the report tells of the case's answers, in lower case and without the names of files."""
    lines = list(report.static)
    for finding in report.findings:
        if _modules(finding) & case.answers:
            lines += [finding.module, finding.summary, finding.argument or "", finding.callee or "", *finding.callees]
            # That a module quantizes is true of its peers too, and no fault.
            lines += [line for line in finding.evidence if not line.startswith("it quantizes")]
    return _FILE.sub("", "\n".join(lines).lower())


def _modules(finding: Finding) -> set[str]:
    return {finding.module, *finding.members}


def _result(case: Case, seconds: float, **judged: Any) -> Result:
    if "error" in judged and case.answers:
        judged |= {"first": False, "top": False, "found_all": False}
    return Result(
        id=case.id,
        architecture=case.architecture,
        fault=case.fault,
        answers=tuple(sorted(case.answers)),
        seconds=seconds,
        **judged,
    )


def store_right(results: Sequence[Result]) -> None:
    """Write the ids of the cases that are right, so that a later run can tell which of them turned wrong."""
    RIGHT.write_text("".join(f"{result.id}\n" for result in results if result.right))


def stored_right() -> list[str]:
    """Return the ids that were right when they were last stored."""
    return RIGHT.read_text().split() if RIGHT.exists() else []
