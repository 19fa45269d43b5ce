"""`assert_parity`: compares a model with the one that it replaces in a test, by limits or a baseline."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtrace.errors import Interrupted, OutputError, QtraceError, UsageError, did_you_mean

if TYPE_CHECKING:
    import pytest
    import torch

    from qtrace.config import Policy
    from qtrace.gate import Baseline, Update
    from qtrace.report.records import GateVerdict, ReportData
    from qtrace.tracing.api import Report

UPDATE = "--qtrace-update-baseline"
LOOSEN = "--qtrace-allow-loosen"
# User properties travel from the workers of pytest-xdist to the process that prints.
WRITTEN = "qtrace_baseline"
NOTE = "qtrace_note"
FOLDER = "__qtrace__"
# A digest replaces the rest of a name that is too long for file systems, or has characters that they refuse.
LONGEST = 100
_UNFIT = re.compile(r"[^\w.\-\[\]]", re.ASCII)


def baseline_path(item: pytest.Item, nth: int = 1) -> Path:
    """Return the file of a test's own baseline: `__qtrace__/test_file/test_name.json` beside the test file.

    A class precedes the name (`TestHead.test_name.json`), parameters follow it in brackets; the second assertion of a
    test and later ones have their number (`test_name.2.json`).
    """
    name = ".".join(item.nodeid.split("::")[1:])
    fit = _UNFIT.sub("_", name)
    if fit != name or len(fit) > LONGEST:
        fit = f"{fit[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    number = f".{nth}" if nth > 1 else ""
    return item.path.parent / FOLDER / item.path.stem / f"{fit}{number}.json"


@dataclass(frozen=True)
class Decision:
    """The verdict on a run; where the baseline was to be written, its change, and the reason if it was not written."""

    verdict: GateVerdict
    update: Update | None = None
    refusal: str = ""


class BaselineFile:
    """The baseline at `path` of the test `item`, read by the constructor.

    Raises `UsageError` where there is no baseline and none is to be written, `SourceError` where it is damaged.
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
        """Judge a report by the baseline, or write the baseline where this is requested and permitted.

        Raises `OutputError` where the baseline cannot be written.
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
        """Write the file atomically, so that no other process ever reads a part of it."""
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


LIMITS = ("max_peir", "policy", "baseline")
INTRODUCED = "max_peir_local"


class ParityError(AssertionError):
    """A model violates its limits; `report` and `verdict` hold the results."""

    def __init__(self, message: str, report: Report, verdict: GateVerdict) -> None:
        super().__init__(message)
        self.report = report
        self.verdict = verdict


class Parity:
    """The value of the fixture `qtrace` for the test `item`; `defaults` are the arguments of its marks."""

    def __init__(self, item: pytest.Item, defaults: Mapping[str, Any]) -> None:
        self._item = item
        self._defaults = dict(defaults)
        self._asserted = 0

    def assert_parity(
        self,
        reference: torch.nn.Module,
        candidate: torch.nn.Module,
        inputs: Any,
        *,
        max_peir: float | None = None,
        policy: Policy | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        baseline: bool | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Report:
        """Run the same inputs through both models, and fail unless the candidate keeps its limits.

        Without any limit it must compute the same as the reference: an outcome other than `clean` fails. A run that
        compared too little always fails.

        Args:
            reference: the model that is correct by definition.
            candidate: the model that should compute the same.
            inputs: as for `qtrace.trace`; of several samples the worst is judged.
            max_peir: the PEIR (a ratio) that no row may exceed; overrides the policy's own.
            policy: limits of all kinds, as a mapping or in a YAML file beside the test or below pytest's rootdir.
            baseline: True for the numbers of an earlier run in the test's own file (`baseline_path` says which), or
                the name of a file beside the test.
            **options: those of `qtrace.trace`, such as `only`, `tolerance` or `local`.

        Returns:
            The report of the run.

        Raises:
            ParityError: a limit was violated, or too little was compared.
            UsageError: an option or a file is invalid.
            ForwardError: a model raised.
        """
        __tracebackhide__ = True
        self._asserted += 1
        given = {"max_peir": max_peir, "policy": policy, "baseline": baseline}
        named = {**self._defaults, **options, **{name: value for name, value in given.items() if value is not None}}
        try:
            report, decision, message = self._decided(reference, candidate, inputs, named)
        except Interrupted as error:
            raise KeyboardInterrupt from error
        except QtraceError as error:
            # The message names the error and its object; the place inside qtrace that detected it is of no use.
            raise error.with_traceback(None) from error.__cause__
        if message:
            raise ParityError(message, report, decision.verdict)
        return report

    def _decided(
        self, reference: torch.nn.Module, candidate: torch.nn.Module, inputs: Any, named: dict[str, Any]
    ) -> tuple[Report, Decision, str]:
        """Return the report, the decision on it, and the message where the test fails."""
        policy = self._policy(named.pop("max_peir", None), named.pop("policy", None))
        stored = self._stored(named.pop("baseline", None))
        if policy is None and stored is None:
            policy = _must_be_clean()
        report = _traced(reference, candidate, inputs, policy, named)
        if stored is not None:
            decision = stored.decide(report, policy)
        else:
            from qtrace.gate import judge

            decision = Decision(judge(report, policy))
        if decision.verdict.passed and not decision.refusal:
            return report, decision, ""
        from qtrace.report.gate_verdict import parity_text

        name = "" if stored is None else stored.name
        text = parity_text(report, decision.verdict, update=decision.update, path=name, refusal=decision.refusal)
        return report, decision, text

    def _stored(self, baseline: Any) -> BaselineFile | None:
        if baseline is None or baseline is False:
            return None
        if baseline is True:
            return BaselineFile(baseline_path(self._item, self._asserted), self._item)
        if not isinstance(baseline, (str, os.PathLike)):
            raise UsageError(f"baseline is {baseline!r}; expected True, False or the name of a file")
        return BaselineFile(self._item.path.parent / baseline, self._item)

    def _policy(self, max_peir: Any, policy: Any) -> Policy | None:
        """Return the policy that both give together; None where neither was given."""
        from pydantic import ValidationError

        from qtrace.config import Policy, load_policy
        from qtrace.documents import complain

        if policy is None and max_peir is None:
            return None
        if isinstance(policy, (str, os.PathLike)):
            policy = load_policy(self._found(policy))
        known = policy.model_dump(exclude_unset=True) if isinstance(policy, Policy) else policy
        if not isinstance(known, (Mapping, type(None))):
            raise UsageError(f"policy is a {type(known).__name__}; expected a YAML file or a mapping of limits")
        own = {} if max_peir is None else {"max_peir": max_peir}
        try:
            return Policy.model_validate({**(known or {}), **own})
        except ValidationError as error:
            raise UsageError(complain(error, Policy, lambda keys: "assert_parity")) from error

    def _found(self, name: str | os.PathLike[str]) -> Path:
        """Return the file beside the test, or below pytest's rootdir where there is none beside the test."""
        beside, below = (folder / name for folder in (self._item.path.parent, self._item.config.rootpath))
        return below if below.exists() and not beside.exists() else beside


def _must_be_clean() -> Policy:
    from qtrace.config import Policy
    from qtrace.patterns import EVERY_MODULE

    # A module without a partner is no violation: what the final outputs say of it is in the outcome.
    return Policy(fail_on=("fault", "drift"), allow_unmatched=(EVERY_MODULE,))


def _traced(
    reference: torch.nn.Module, candidate: torch.nn.Module, inputs: Any, policy: Policy | None, options: dict[str, Any]
) -> Report:
    from qtrace.tracing.api import trace

    known = [name for name, one in inspect.signature(trace).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise UsageError(f"assert_parity has no option {name!r}; {did_you_mean(name, (*known, *LIMITS))}")
    if policy is not None and any(INTRODUCED in one.limits() for one in (policy, *policy.overrides.values())):
        # The error that each module introduces is measured also where the final outputs agree.
        options = {"local": True, **options}
    return trace(reference, candidate, inputs, **options)
