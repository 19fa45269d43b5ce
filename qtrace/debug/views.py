"""What the prompt shows of a stop and of both stacks, in lines."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Protocol

from qtrace.debug.breakpoints import ENTER
from qtrace.debug.leaves import columns, described, judged
from qtrace.debug.stop import NAMES, Stop
from qtrace.report.numbers import number
from qtrace.traces.stored_side import StoredError

MOST_SHOWN = 5


class Stack(Protocol):
    """Where a side stands."""

    def place(self) -> str:
        """Return where it stands."""

    def entries(self) -> tuple[list[str], int]:
        """Return the lines of its stack, the outermost first, and the place of the selected one."""


def heading(stop: Stop, reason: str, stacks: Sequence[Stack]) -> Iterator[str]:
    """Yield where both sides stand, why, and what differs there."""
    call = stop.call
    which = f", call #{call.index}" if call.index else ""
    now = "is about to run" if stop.event == ENTER else "has returned"
    yield ""
    yield f"{call.path or '<root>'} ({call.type}{which}) {now}"
    error = stop.error()
    if error is not None:
        side, raised = error
        kind, said = raised.told() if isinstance(raised, StoredError) else (type(raised).__name__, str(raised))
        yield f"the {side} raised {kind} in it: {said}"
    rows = [("stopped by", reason), *((side, stack.place()) for side, stack in zip(NAMES, stacks, strict=True))]
    differing = stop.differing()
    for name, pair in differing[:MOST_SHOWN]:
        peir = pair.statistics().peir
        told = f"PEIR {number(peir)}" if peir is not None else f"{pair.reference} against {pair.candidate}"
        rows.append(("differs", f"{name or 'output'}: {told}"))
    yield from columns(rows)
    if len(differing) > MOST_SHOWN:
        yield f"and {len(differing) - MOST_SHOWN} more differ; `{'args' if stop.event == ENTER else 'out'}` shows all"


def compared(stop: Stop) -> Iterator[str]:
    """Yield the leaves of the arguments or outputs: what each is on both sides, and how far apart."""
    empty = True
    for name, mine, theirs, pair in stop.compared():
        if mine is None and theirs is None:
            continue
        empty = False
        yield name or "output"
        rows = [(f"  {side}", *described(leaf)) for side, leaf in zip(NAMES, (mine, theirs), strict=True)]
        yield from columns(rows)
        lines = list(judged(pair, mine, theirs, agrees=lambda pair, name=name: stop.agrees(name, pair)))  # type: ignore[misc]
        yield from (f"  {line}" for line in lines)
    error = stop.error()
    if error is not None:
        yield f"nothing is compared: the {error[0]} raised in this call"
    elif empty:
        yield "nothing is handed over" if stop.event == ENTER else "nothing was returned"


def rows(stop: Stop) -> Iterator[str]:
    """Yield every number of the rows of a call that has returned."""
    found = stop.comparison.rows_of(stop.met)
    for row in found:
        yield f"{row.module or '<root>'}#{row.call} {row.output or 'output'}  {row.reference} / {row.candidate}"
        values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        shown = {name: value for name, value in values.items() if name not in _IN_THE_LINE and value is not None}
        yield from columns([(f"  {name}", _word(value)) for name, value in shown.items()])
    if not found:
        yield "no row: nothing that was returned can be compared"


def side_by_side(stacks: Sequence[Stack]) -> Iterator[str]:
    """Yield both stacks, the innermost frames in one line, the selected ones marked."""
    width = (shutil.get_terminal_size().columns - 3) // 2
    texts = []
    for stack in stacks:
        entries, selected = stack.entries()
        marks = ["> " if index == selected else "  " for index in range(len(entries))]
        texts.append([mark + _cut(entry, width - 2) for mark, entry in zip(marks, entries, strict=True)])
    yield f"{NAMES[0]:<{width}}   {NAMES[1]}"
    pairs = list(zip_longest(*(reversed(text) for text in texts), fillvalue=""))
    for reference, candidate in reversed(pairs):
        yield f"{reference:<{width}} | {candidate}".rstrip()


_IN_THE_LINE = ("module", "call", "output", "reference", "candidate")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _word(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    return str(getattr(value, "value", value))
