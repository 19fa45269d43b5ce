"""Listings of one side: the contents of a stored trace, calls in execution order, and modules' quantizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qtrace.patterns import matches
from qtrace.report.notes import spec
from qtrace.report.records import QuantFacts, Row
from qtrace.report.records.rows import CallTrace, ValueTrace
from qtrace.report.table import plain_table
from qtrace.report.text import count, number, share, shorten

UNITS = ("B", "KB", "MB", "GB", "TB")
BY = {"given": "the mapping file", "name": "name", "value": "value"}
MOST_NAMED = 8
CALLS_WIDTH = 6
OUTPUT_WIDTH = 23
SIZE_WIDTH = 9


@dataclass(frozen=True, slots=True)
class HeldModule:
    """The contents of a trace for one module: its calls over all samples, its outputs, and the bytes of these."""

    module: str
    type: str
    calls: int
    outputs: str
    bytes: int


def written(folder: str, calls: int, tensors: int, amount: int) -> Text:
    """Return the line that states what was captured."""
    return Text(f"wrote {folder}: {count(calls, 'call')}, {count(tensors, 'tensor')}, {size(amount)}")


def size(amount: int) -> str:
    """Return bytes as readable text, in powers of 1000.

    >>> size(999), size(1_234_567), size(0)
    ('999 B', '1.2 MB', '0 B')
    """
    value, unit = float(amount), 0
    while value >= 999.95 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{amount} B"


def returned(outputs: Sequence[str]) -> str:
    """Return a call's outputs in a few words: the first tensor, and the number of further ones.

    >>> returned(["float32 [1,4]", "int64 [1]"]), returned([])
    ('float32 [1,4]\\nand 1 more', 'no tensor')
    """
    if not outputs:
        return "no tensor"
    return outputs[0] if len(outputs) == 1 else f"{outputs[0]}\nand {len(outputs) - 1} more"


def contents(facts: Sequence[tuple[str, str]], held: Sequence[HeldModule], *, width: int) -> Iterator[RenderableType]:
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
    """Yield how much of the reference was matched, by which rule, and the outputs that were not.

    `pairs` are (output of the reference, tensor, rule), `alone` the outputs without a tensor, `unused` counts the
    tensors without an output. With `explain` every pair is listed.
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


NUMBER_WIDTH = 9
SPEC_WIDTH = 19
INTO = "→ "
OUT_OF = "← "
HEADINGS = ("mean", "min", "max", "stddev")


def trace_listing(calls: Iterable[CallTrace], side: str, *, width: int) -> Iterator[RenderableType]:
    """Yield the calls of `side` ("reference" or "candidate") in execution order, for `width` columns."""
    names = max(width - len("  ") - len(INTO) - SPEC_WIDTH - 2 - len(HEADINGS) * (NUMBER_WIDTH + 1), 8)
    headings = "".join(f"{heading:>{NUMBER_WIDTH + 1}}" for heading in HEADINGS)
    yield Text(f"{side}, call by call ({INTO.strip()} argument, {OUT_OF.strip()} output)", style="bold")
    yield Text(f"{'':{width - len(headings) - 1}}{headings}", style="bold")
    for call in calls:
        if call.side != side:
            continue
        tail = (f"#{call.call}" if call.call else "") + f"  {call.type}"
        yield Text.assemble((shorten(call.module, width - len(tail)), "bold"), tail)
        for arrow, values in ((INTO, call.arguments), (OUT_OF, call.outputs)):
            for value in values:
                yield from _value(arrow, value, names, width)
        if call.facts:
            facts = ", ".join(f"{name} = {fact}" for name, fact in call.facts.items())
            yield Padding(Text(facts, style="cyan"), (0, 0, 0, 4), expand=False)


def _value(arrow: str, value: ValueTrace, names: int, width: int) -> Iterator[RenderableType]:
    """Yield a value's line, its statistics on a second line where the first has no room, then its elements."""
    name = value.name or "output"
    what = spec(value.spec)
    numbers = ""
    if value.spec.shape is not None:
        statistics = (value.mean, value.spec.min, value.spec.max, value.stddev)
        numbers = "".join(f"{number(statistic):>{NUMBER_WIDTH + 1}}" for statistic in statistics)
    line = f"  {arrow}{name:<{names}} {what}"
    if numbers and len(line) + len(numbers) >= width:
        yield Text(line)
        line = ""
    yield Text(f"{line:<{width - len(numbers) - 1}}{numbers}" if numbers else line)
    if value.values is not None:
        yield Padding(Text(value.values), (0, 0, 0, 6), expand=False)


INDENT = 4


def quantizer_listing(rows: Iterable[Row], inspect: Iterable[str], *, width: int) -> Iterator[RenderableType]:
    """Yield the quantizers of the modules that any pattern of `inspect` matches; nothing where there are none."""
    patterns = tuple(inspect)
    found: dict[str, QuantFacts] = {}
    for row in rows:
        if row.quantization is not None and any(matches(pattern, row.module) for pattern in patterns):
            found.setdefault(row.module, row.quantization)
    if not found:
        return
    yield Text("candidate, quantizers", style="bold")
    for module, facts in found.items():
        tail = f"  {facts.toolkit}"
        yield Text.assemble((shorten(module, width - len(tail)), "bold"), tail)
        for quantizer in facts.quantizers:
            yield _indented(f"{quantizer.name}: {quantizer}", "cyan")
        for _, sentence in facts.sentences():
            yield _indented(sentence, "yellow")
    yield Text()


def _indented(text: str, style: str) -> Padding:
    return Padding(Text(text, style=style), (0, 0, 0, INDENT), expand=False)
