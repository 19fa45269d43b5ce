"""Text for people: formats numbers, module paths and text from models for a column, a file or a terminal."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

# Invisible characters, characters that change the direction of text, and those that XML or UTF-8 does not allow.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def visible(text: str) -> str:
    """Return `text` with a backslash escape for each control character; tabs and line breaks stay.

    >>> visible("red \\x1b[31m, torn \\ud800")
    'red \\\\x1b[31m, torn \\\\ud800'
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """Return `text` as `visible` does, in one line.

    >>> one_line("sizes differ\\n\\tat dim 1")
    'sizes differ\\\\n\\\\tat dim 1'
    """
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def shortened(text: str, most: int) -> str:
    """Return text in at most `most` characters, with an ellipsis where it is cut.

    >>> shortened("too bad", 4)
    'too…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


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
    """Return a bound of a tensor's range: a whole number unchanged (token ids, masks), any other rounded.

    >>> bound(83.0), bound(-3.4028e38), bound(0.5), bound(None)
    ('83', '-3.40e+38', '5.00e-01', '-')
    """
    if value is not None and value.is_integer() and abs(value) < 1e9:
        return f"{value:.0f}"
    return number(value)


def apart(value: float, limit: float) -> tuple[str, str]:
    """Return `value` and `limit` with enough digits to show that they are not the same.

    >>> apart(1.0004e-05, 1e-05)
    ('1.0004e-05', '1.0000e-05')
    """
    digits = 2
    while value != limit and number(value, digits) == number(limit, digits) and digits < 17:
        digits += 1
    return number(value, digits), number(limit, digits)


def share(part: float, whole: float) -> str:
    """Return part / whole in percent, rounded down: 100 % means all, 0 % means none.

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
    """Return a ratio such as PEIR in percent, for comparison with the output of other tools.

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


ROOT = "<root>"
CUT = "…"


def shown(path: str) -> str:
    """Return a module path as it is shown; the root's empty path is `<root>`."""
    return path or ROOT


def shorten(path: str, width: int) -> str:
    """Return `path` in at most `width` characters where its last component allows that.

    >>> shorten("model.language_model.layers.0.self_attn.o_proj", 30)
    '…layers.0.self_attn.o_proj'
    >>> shorten("model.a_very_long_component", 10)
    '…a_very_long_component'
    """
    path = shown(path)
    if len(path) <= width:
        return path
    components = path.split(".")
    for dropped in range(1, len(components)):
        short = CUT + ".".join(components[dropped:])
        if len(short) <= width or dropped == len(components) - 1:
            return short
    return path


def shorten_all(paths: Iterable[str], width: int) -> dict[str, str]:
    """Return each path with its short form; paths whose short forms would be the same stay whole.

    >>> shorten_all(["encoder.layers.0.out", "decoder.layers.0.out"], 15)["encoder.layers.0.out"]
    'encoder.layers.0.out'
    """
    short = {path: shorten(path, width) for path in paths}
    times = Counter(short.values())
    return {path: text if times[text] == 1 else shown(path) for path, text in short.items()}


def pattern(paths: Sequence[str]) -> str:
    """Return paths of one shape with `*` where they differ, others as a list.

    >>> pattern(["layers.0.mlp", "layers.7.mlp"]), pattern(["embed", "layers.0.mlp"])
    ('layers.*.mlp', 'embed, layers.0.mlp')
    """
    split = [path.split(".") for path in paths]
    if len({len(components) for components in split}) == 1:
        columns = list(zip(*split, strict=True))
        differing = [set(column) for column in columns if len(set(column)) > 1]
        if all(name.isdecimal() for names in differing for name in names):
            return ".".join(column[0] if len(set(column)) == 1 else "*" for column in columns)
    return ", ".join(map(shown, paths))


FULL = "█"
DECADES = 8
LEGEND = f"one {FULL} a factor of 10, from 1e-{DECADES}"


def bar(error: float | None) -> str:
    """Return a bar on a logarithmic scale: a block for each power of ten from 1e-8 that `error` reaches.

    >>> len(bar(3e-8)), len(bar(1e-3)), len(bar(0.5)), len(bar(40.0)), bar(0.0), bar(None)
    (1, 6, 8, 8, '', '')
    """
    if not error or math.isnan(error):
        return ""
    reached = DECADES if math.isinf(error) else math.floor(math.log10(error)) + DECADES + 1
    return FULL * min(max(reached, 0), DECADES)
