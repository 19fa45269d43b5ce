"""Conditions over the columns of a row, such as `peir > 1e-3 and status == compared`; none of it is run as code.

    condition  := conjunction ("or" conjunction)*
    conjunction := part ("and" part)*
    part       := "(" condition ")" | operand OP operand (OP operand)*      OP: < <= > >= == !=

An operand is a number, a column, or the word that a column in words is compared with. A comparison with a number that
does not exist (PEIR of tensors of two shapes, SQNR of equal ones) is undecided: it satisfies nothing, and neither does
its opposite.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, NoReturn

from qtrace.errors import UsageError, did_you_mean
from qtrace.report.records import Row, Status

NUMBERS = (
    *("peir", "peir_in", "peir_related", "mean", "min", "max", "stddev"),
    *("sqnr_db", "cosine", "rel_l2", "mismatch", "floor", "order", "call", "sample"),
)
WORDS = ("status", "type")
# Names that the tables use.
ALIASES = {"accumulated": "peir", "received": "peir_in", "sqnr": "sqnr_db"}
# Known only when the further passes are over.
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
    """One word of a condition: its kind, its text, and where it begins, from 0."""

    kind: str
    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of a comparison, and what it stands for in a row; `column` is None for a constant."""

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
        """Return whether a row satisfies the condition; None where a number that it asks for does not exist."""
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
        """Take the next token if it is this one, and return whether it was."""
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
