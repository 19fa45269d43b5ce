"""What is inside a stored trace: where it came from, and its modules with the size of what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from qtrace.report.numbers import count, share
from qtrace.report.paths import shorten
from qtrace.report.table import plain_table

UNITS = ("B", "KB", "MB", "GB", "TB")
BY = {"given": "the mapping file", "name": "name", "value": "value"}
MOST_NAMED = 8
CALLS_WIDTH = 6
OUTPUT_WIDTH = 23
SIZE_WIDTH = 9


@dataclass(frozen=True, slots=True)
class Held:
    """What a trace holds of one module: its calls over all samples, what it returns, and the bytes of that."""

    module: str
    type: str
    calls: int
    outputs: str
    bytes: int


def written(folder: str, calls: int, tensors: int, amount: int) -> Text:
    """Return the line that says what was captured."""
    return Text(f"wrote {folder}: {count(calls, 'call')}, {count(tensors, 'tensor')}, {size(amount)}")


def size(amount: int) -> str:
    """Return bytes as people read them, in powers of 1000.

    >>> size(999), size(1_234_567), size(0)
    ('999 B', '1.2 MB', '0 B')
    """
    value, unit = float(amount), 0
    while value >= 999.95 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{amount} B"


def returned(outputs: Sequence[str]) -> str:
    """Return what a call gives in a few words: the first tensor, and how many more.

    >>> returned(["float32 [1,4]", "int64 [1]"]), returned([])
    ('float32 [1,4]\\nand 1 more', 'no tensor')
    """
    if not outputs:
        return "no tensor"
    return outputs[0] if len(outputs) == 1 else f"{outputs[0]}\nand {len(outputs) - 1} more"


def contents(facts: Sequence[tuple[str, str]], held: Sequence[Held], *, width: int) -> Iterator[RenderableType]:
    """Yield the facts by name, then the modules in the order of their first calls."""
    named = Table.grid(padding=(0, 2))
    for name, fact in facts:
        named.add_row(name, Text(fact, overflow="fold"))
    yield named
    yield Text()
    table = plain_table()
    room = width - CALLS_WIDTH - OUTPUT_WIDTH - SIZE_WIDTH - 3
    table.add_column("module", overflow="fold", min_width=room)
    table.add_column("calls", justify="right", width=CALLS_WIDTH)
    table.add_column("returns", overflow="fold", width=OUTPUT_WIDTH)
    table.add_column("size", justify="right", width=SIZE_WIDTH)
    for one in held:
        place = Text.assemble(shorten(one.module, room), (f"\n  {one.type}", "dim"))
        table.add_row(place, Text(str(one.calls)), Text(one.outputs), Text(size(one.bytes)))
    yield table


def imported(
    pairs: Sequence[tuple[str, str, str]], alone: Sequence[str], unused: int, *, width: int, explain: bool = False
) -> Iterator[RenderableType]:
    """Yield how much of the reference was found, by which rule, and what was not.

    `pairs` are (output of the reference, tensor, rule), `alone` the outputs that none stands for, `unused` counts the
    tensors that stand for none. With `explain` every pair is listed.
    """
    if explain:
        table = plain_table()
        for heading in ("reference", "tensor", "rule"):
            table.add_column(heading, overflow="fold")
        for place, name, rule in pairs:
            table.add_row(Text(shorten(place, width // 2)), Text(name), Text(rule))
        yield table
    rules = Counter(rule for _, _, rule in pairs)
    total = len(pairs) + len(alone)
    by = ", ".join(f"{number} by {BY[rule]}" for rule, number in rules.most_common())
    yield Text(f"found {len(pairs)} of the reference's {count(total, 'output')} ({share(len(pairs), total)}): {by}")
    if alone:
        names = ", ".join(alone if explain else alone[:MOST_NAMED])
        yield Text(f"not found: {names}{'' if explain or len(alone) <= MOST_NAMED else ', …; --explain names all'}")
    if unused:
        yield Text(f"{count(unused, 'tensor')} stand{'s' if unused == 1 else ''} for no output of the reference")
