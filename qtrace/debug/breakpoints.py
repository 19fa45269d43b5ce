"""The places to stop: breakpoints `MODULE[:enter|exit][#call]`, conditions over a row's columns, a run's findings."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, NoReturn

import torch

from qtrace.engine.events import Call
from qtrace.engine.model import Model
from qtrace.errors import UsageError, did_you_mean
from qtrace.patterns import ROOT, select
from qtrace.report.columns import first_leap
from qtrace.report.records import Finding, Outcome, ReportData, Row, Status

ENTER, EXIT = "enter", "exit"
_FORM = re.compile(r"(?P<glob>[^:#]+)(?::(?P<event>[^#]*))?(?:#(?P<call>.*))?")


@dataclass(frozen=True, slots=True)
class Place:
    """A breakpoint as it was written; without an event it means entry and exit, without a number every call.

    `option` is the option that it was given by, for messages.
    """

    glob: str
    event: str | None = None
    call: int | None = None
    option: str = "--break"

    def __str__(self) -> str:
        event = f":{self.event}" if self.event is not None else ""
        return self.glob + event + (f"#{self.call}" if self.call is not None else "")


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A breakpoint in a pair of models: the place, and the reference paths that its glob matches."""

    place: Place
    paths: frozenset[str]

    def is_at(self, event: str, call: Call) -> bool:
        """Return whether the breakpoint covers this entry or exit of a reference call."""
        place = self.place
        return call.path in self.paths and place.event in (None, event) and place.call in (None, call.index)


def parse_place(text: str, option: str = "--break") -> Place:
    """Return the place that `text` names; raises `UsageError`, naming the option, where the text is malformed.

    >>> parse_place("model.layers.*:enter#2")
    Place(glob='model.layers.*', event='enter', call=2, option='--break')
    """
    parts = _FORM.fullmatch(text.strip())
    if parts is None:
        raise UsageError(f"{option} {text!r}: expected MODULE[:enter|exit][#call], as in 'model.layers.0:exit#1'")
    event, call = parts["event"], parts["call"]
    if event not in (None, ENTER, EXIT):
        raise UsageError(f"{option} {text!r}: {event!r} is no event of a call; {did_you_mean(event, (ENTER, EXIT))}")
    if call is not None and not call.isdecimal():
        raise UsageError(f"{option} {text!r}: {call!r} is no call number; calls of a module count from #0")
    return Place(parts["glob"], event, None if call is None else int(call), option)


def resolve(place: Place, paths: Mapping[str, str]) -> Breakpoint:
    """Return the breakpoint in a model whose module paths are the keys, each with the first path of its module.

    Raises `UsageError`, naming similar paths, where the glob matches no module.
    """
    chosen = select((place.glob,), paths, option=place.option)
    return Breakpoint(place, frozenset(paths[path] for path in chosen))


def why_not_reached(breakpoint: Breakpoint, calls: Counter[str], stored: Collection[str] | None = None) -> str:
    """Return in a sentence why the run did not stop at a breakpoint.

    `calls` counts the reference's calls by path; for a stored reference, `stored` are the modules whose calls it
    records.
    """
    place, paths = breakpoint.place, sorted(breakpoint.paths)
    which = f"{place.option} {str(place)!r}"
    called = {path: calls[path] for path in paths if calls[path]}
    names = ", ".join(path or "<root>" for path in paths[:3]) + (", …" if len(paths) > 3 else "")
    if stored is not None and not breakpoint.paths & set(stored):
        return f"{which}: the stored reference holds no calls of {names}; `qtrace show TRACE` lists what it holds"
    if not called:
        return f"{which}: the reference never calls {names}; `qtrace modules` lists what is called"
    most = max(called.values())
    if place.call is not None and place.call >= most:
        times = "once" if most == 1 else f"{most} times"
        return f"{which}: the reference calls {names} {times}, so the last call is #{most - 1}"
    return (
        f"{which}: both sides never stand at {names} together; --only or --skip leaves it out, "
        "or it has no partner, and `qtrace modules` tells why"
    )


NUMBERS = (
    *("peir", "peir_in", "peir_related", "mean", "min", "max", "stddev"),
    *("sqnr_db", "cosine", "rel_l2", "mismatch", "floor", "order", "call", "sample"),
)
WORDS = ("status", "type")
# Names that the tables use.
ALIASES = {"accumulated": "peir", "received": "peir_in", "sqnr": "sqnr_db"}
# These are known only after the further passes.
LATER = ("peir_local", "introduced", "verdict")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<operator><=|>=|==|!=|<|>)|(?P<bracket>[()])|['\"](?P<word>\w*)['\"]|(?P<odd>\S))"
)

Test = Callable[[Row], "bool | None"]


@dataclass(frozen=True, slots=True)
class Token:
    """One word of a condition: its kind, its text, and its first position, counted from 0."""

    kind: str
    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of a comparison, and its value in a row; `column` is None for a constant."""

    token: Token
    column: str | None
    of: Callable[[Row], Any]


class Condition:
    """A condition on rows, as it was written; raises `UsageError`, naming `option` and the place, where malformed."""

    def __init__(self, text: str, option: str = "--break-when") -> None:
        self.text = text.strip()
        self._option = option
        self._tokens = list(_tokens(self.text))
        self._test = self._either()
        if self._tokens[0].kind != "end":
            self._wrong("expected 'and', 'or' or the end")

    def __str__(self) -> str:
        return self.text

    def holds(self, row: Row) -> bool | None:
        """Return whether a row satisfies the condition; None where a number that it needs does not exist."""
        return self._test(row)

    def _either(self) -> Test:
        parts = [self._both()]
        while self._is_next("name", "or"):
            parts.append(self._both())
        return lambda row: _any(part(row) for part in parts)

    def _both(self) -> Test:
        parts = [self._part()]
        while self._is_next("name", "and"):
            parts.append(self._part())
        return lambda row: _all(part(row) for part in parts)

    def _part(self) -> Test:
        if self._is_next("bracket", "("):
            inner = self._either()
            if not self._is_next("bracket", ")"):
                self._wrong("expected ')'")
            return inner
        operands, signs = [self._operand("a column")], []
        while self._tokens[0].kind == "operator":
            signs.append(self._tokens.pop(0).text)
            operands.append(self._operand(f"a number after {signs[-1]}"))
        if not signs:
            self._wrong(f"expected a comparison (<, <=, >, >=, ==, !=) after {operands[0].token.text}")
        links = [
            self._comparison(left, sign, right) for (left, right), sign in zip(pairwise(operands), signs, strict=True)
        ]
        return lambda row: _all(link(row) for link in links)

    def _operand(self, expected: str) -> Operand:
        token = self._tokens[0]
        if token.kind not in ("number", "name", "word") or token.text in ("and", "or"):
            self._wrong(f"expected {expected}")
        self._tokens.pop(0)
        if token.kind == "number":
            number = float(token.text)
            return Operand(token, None, lambda row: number)
        name = ALIASES.get(token.text, token.text)
        if token.kind == "name" and name in (*NUMBERS, *WORDS):
            return Operand(token, name, lambda row: getattr(row, name))
        return Operand(token, None, lambda row: token.text)

    def _comparison(self, left: Operand, sign: str, right: Operand) -> Test:
        in_words = [one for one in (left, right) if one.column in WORDS]
        for one, other in ((left, right), (right, left)):
            if one.column is None and one.token.kind != "number":
                if not in_words:
                    self._unknown(one.token)
                self._check_word(one.token, other)
            elif in_words and one not in in_words:
                self._wrong(f"{in_words[0].token.text} is a word, and this is none", one.token)
        if in_words and sign not in ("==", "!="):
            self._wrong(f"{in_words[0].token.text} is a word: it can be == or != to another", in_words[0].token)
        if left.column is None and right.column is None:
            self._wrong("no column is compared here", left.token)
        compare = _OPERATORS[sign]

        def test(row: Row) -> bool | None:
            values = [value.value if isinstance(value, Enum) else value for value in (left.of(row), right.of(row))]
            return None if None in values else compare(*values)

        return test

    def _check_word(self, token: Token, column: Operand) -> None:
        known = [status.value for status in Status]
        if column.column == "status" and token.text not in known:
            self._wrong(f"{token.text} is no status; {did_you_mean(token.text, known)}", token)

    def _unknown(self, token: Token) -> NoReturn:
        if token.text in LATER:
            self._wrong(f"{token.text} is known only when the run is over; peir is what has accumulated so far", token)
        self._wrong(f"{token.text} is no column; {did_you_mean(token.text, (*NUMBERS, *WORDS, *ALIASES))}", token)

    def _is_next(self, kind: str, text: str) -> bool:
        """Consume the next token if it is this one, and return whether it was."""
        is_it = (self._tokens[0].kind, self._tokens[0].text) == (kind, text)
        if is_it:
            self._tokens.pop(0)
        return is_it

    def _wrong(self, said: str, token: Token | None = None) -> NoReturn:
        token = token or self._tokens[0]
        found = "at its end" if token.kind == "end" else f"at column {token.at + 1} ({token.text})"
        example = "a condition reads like 'peir > 1e-3 and max > 0.1'"
        raise UsageError(f"{self._option} {self.text!r}: {found}: {said}; {example}")


def is_condition(text: str) -> bool:
    """Return whether a breakpoint in Python is meant as a condition rather than as a place.

    >>> is_condition("peir > 1e-3"), is_condition("<root>:exit")
    (True, False)
    """
    return re.match(r"\s*\(*\s*[\w.+-]+\s*(<|>|=|!)", text) is not None


def _tokens(text: str) -> Iterator[Token]:
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "odd"
        yield Token(kind, match[kind], match.start(kind))
    yield Token("end", "", len(text))


def _all(parts: Iterator[bool | None]) -> bool | None:
    found = list(parts)
    return False if False in found else None if None in found else True


def _any(parts: Iterator[bool | None]) -> bool | None:
    found = list(parts)
    return True if True in found else None if None in found else False


@dataclass(frozen=True, slots=True)
class StopRequest:
    """The places to stop before there is a model, and the conditions on rows of the calls to stop at."""

    places: tuple[Place, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.places or self.conditions)

    def breakpoints(self, reference: torch.nn.Module) -> list[Breakpoint]:
        """Return the breakpoints in a reference; raises `UsageError` for a glob that matches no module of it."""
        model = Model("reference", reference)
        paths = {**{path: path for path in model.modules}, **model.aliases}
        return [resolve(place, paths) for place in self.places]


def stop_request(places: Iterable[str], conditions: Iterable[str]) -> StopRequest:
    """Return the request of `--break` and `--break-when`; raises `UsageError` for malformed text."""
    return StopRequest(tuple(map(parse_place, places)), tuple(map(Condition, conditions)))


def stop_request_from_python(breakpoints: Iterable[str]) -> StopRequest:
    """Return the request of `trace(breakpoints=[…])`: a text with a comparison is a condition, any other a place."""
    texts = [breakpoints] if isinstance(breakpoints, str) else list(breakpoints)
    option = "breakpoints"
    return StopRequest(
        tuple(parse_place(text, option) for text in texts if not is_condition(text)),
        tuple(Condition(text, option) for text in texts if is_condition(text)),
    )


def culprit(report: ReportData, paths: Collection[str]) -> list[Place]:
    """Return the places of the first finding; without a finding, the exit of the first leap of a fault.

    For a wrong argument this is the entry of the callee, where both sides are still in the code that makes the
    argument; otherwise the entry and the exit of the module at fault. `paths` are the reference's modules. The list is
    empty where no module is at fault.
    """
    if report.findings:
        return _places(min(report.findings, key=lambda one: one.rank), paths)
    leap = first_leap(report.rows) if report.outcome is Outcome.FAULT else None
    return [] if leap is None else [Place(_known(leap.row.module, paths), EXIT, leap.row.call)]


def sample_of(report: ReportData) -> int:
    """Return the sample on which the final outputs are furthest apart."""
    return next((row.sample for row in report.rows if row.module == ""), 0)


def _places(finding: Finding, paths: Collection[str]) -> list[Place]:
    if finding.kind == "miscalls" and finding.callee is not None:
        return [Place(_known(finding.callee, paths), ENTER)]
    module = _known(finding.module, paths)
    if finding.kind == "raises":
        return [Place(module, ENTER)]
    return [Place(module, ENTER, finding.call), Place(module, EXIT, finding.call)]


def _known(path: str, paths: Collection[str]) -> str:
    """Return a path of the reference as a glob: this path, or the nearest known path around it."""
    while path and path not in paths:
        path = path.rpartition(".")[0]
    return path or ROOT
