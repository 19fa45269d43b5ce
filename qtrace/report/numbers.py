"""Numbers as people read them. A failure is never rounded into a pass."""

from __future__ import annotations

import math

ABSENT = "-"


def number(value: float | None, digits: int = 2) -> str:
    """Return a statistic in scientific notation; an exact 0 is `0`, a number that does not exist is `-`.

    >>> number(4.66e-07), number(0.0), number(None)
    ('4.66e-07', '0', '-')
    """
    if value is None or math.isnan(value):
        return ABSENT
    return "0" if value == 0 else f"{value:.{digits}e}"


def decibels(value: float | None) -> str:
    """Return a ratio in dB.

    >>> decibels(41.239), decibels(None)
    ('41.24', '-')
    """
    return ABSENT if value is None else f"{value:.2f}"


def cosine(value: float | None) -> str:
    """Return a cosine similarity, rounded down: 1.000000 is 1.

    >>> cosine(0.99999996), cosine(1.0), cosine(-0.5)
    ('0.999999', '1.000000', '-0.500000')
    """
    return ABSENT if value is None else f"{math.floor(value * 1e6) / 1e6:.6f}"


def bound(value: float | None) -> str:
    """Return the end of a tensor's range: a whole number as it is (token ids, masks), any other rounded.

    >>> bound(83.0), bound(-3.4028e38), bound(0.5), bound(None)
    ('83', '-3.40e+38', '5.00e-01', '-')
    """
    if value is not None and value.is_integer() and abs(value) < 1e9:
        return f"{value:.0f}"
    return number(value)


def apart(value: float, limit: float) -> tuple[str, str]:
    """Return `value` and `limit` with as many digits as it takes to see that they are not the same.

    >>> apart(1.0004e-05, 1e-05)
    ('1.0004e-05', '1.0000e-05')
    """
    digits = 2
    while value != limit and number(value, digits) == number(limit, digits) and digits < 17:
        digits += 1
    return number(value, digits), number(limit, digits)


def share(part: float, whole: float) -> str:
    """Return part / whole in percent, rounded down: 100 % means all of it, 0 % means nothing of it.

    >>> share(74, 77), share(9999, 10000), share(1, 10000), share(77, 77), share(0, 0)
    ('96.1 %', '99.9 %', '<0.1 %', '100 %', '0 %')
    """
    if part == 0 or whole == 0:
        return "0 %"
    if part == whole:
        return "100 %"
    tenths = int(1000 * part // whole)
    return f"{tenths // 10}.{tenths % 10} %" if tenths else "<0.1 %"


def percent(ratio: float | None) -> str:
    """Return a ratio such as PEIR in percent, as a person compares it with other tools' output.

    >>> percent(0.08692164), percent(4.7e-07), percent(0.0)
    ('8.692164 %', '4.70e-05 %', '0 %')
    """
    if ratio is None:
        return ABSENT
    value = 100 * ratio
    return f"{value:.6f} %" if 0.01 <= abs(value) < 1e6 else f"{number(value)} %"


def count(amount: int, noun: str) -> str:
    """Return an amount with its noun.

    >>> count(1, "call"), count(1234, "row")
    ('1 call', '1,234 rows')
    """
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"
