"""One side's calls in execution order: what went in, what came out, what is known of the quantization."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from qtrace.report.notes import spec
from qtrace.report.numbers import number
from qtrace.report.paths import shorten
from qtrace.report.records.calls import CallTrace, ValueTrace

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
    """Yield a value's line, its statistics on a second one where the first has no room, then its elements."""
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
