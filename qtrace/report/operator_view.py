"""The operator view on the terminal: differing arguments and outputs, the last equal operators, the first that part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qtrace.report.notes import STATUS_WORDS, spec
from qtrace.report.records import Status, TensorSpec
from qtrace.report.records.operators import CodePlace, Differing, Operator, OperatorView, Split
from qtrace.report.table import plain_table
from qtrace.report.text import ABSENT, bound, count, number, shorten

SIDES = ("reference", "candidate")
INDENT = 2
LABEL_WIDTH = 11
MOST_PARTNERS = 3


def operator_view(view: OperatorView, *, width: int, everything: bool = False) -> Iterator[RenderableType]:
    """Yield the view in `width` columns; with `everything` also all operators of both sides."""
    yield from _heading(view, width)
    for title, values in (("Arguments that differ", view.arguments), ("Outputs that differ", view.outputs)):
        if values:
            yield Text()
            yield Text(title, style="bold")
            yield _differing(values)
    if view.split is not None:
        yield from _split(view, view.split, width)
    if everything:
        split = view.split
        parted = (None, None) if split is None else (split.reference, split.candidate)
        both = view.reference_operators, view.candidate_operators
        for side, operators, index in zip(SIDES, both, parted, strict=True):
            yield Text()
            yield Text(f"Operators of the {side}", style="bold")
            yield _listing(operators, index)
    yield Text()


def operator_outcome(view: OperatorView) -> Text:
    """Return the result of the view in one line."""
    if view.agrees:
        line = Text.assemble(("the outputs agree", "bold green"), ". ")
        if view.arguments:
            verb = "brings" if len(view.arguments) == 1 else "bring"
            return line.append(f"What {_names(view.arguments)} {verb} in makes no difference.")
        return line.append("Nothing parts inside.")
    line = Text.assemble(("the outputs differ", "bold red"), ". ")
    split = view.split
    if split is None or (split.reference is None and split.candidate is None):
        return line.append("No operator was recorded on the way to them.")
    first, second = _split_operators(view, split)
    if any(split.left_out):
        side = SIDES[split.left_out.index(True)]
        other = second if split.left_out[0] else first
        return line.append(f"The {side} leaves out {_name(other)}." if other is not None else f"The {side} differs.")
    line.append(f"They part at {_name(first)}" + (f" and {_name(second)}." if _name(second) != _name(first) else "."))
    return line


def _heading(view: OperatorView, width: int) -> Iterator[RenderableType]:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    paths = view.module, view.candidate
    for side, path, operators, paired, calls in zip(
        SIDES, paths, (view.reference_operators, view.candidate_operators), view.paired, view.calls, strict=True
    ):
        told = f"{count(len(operators), 'operator')}, {paired} with a partner; call {view.call} of {calls}"
        grid.add_row(side, Text.assemble(shorten(path, width - LABEL_WIDTH), "\n", (told, "dim")))
    yield grid


def _differing(values: Sequence[Differing]) -> RenderableType:
    table = plain_table()
    for heading in ("name", *SIDES):
        table.add_column(heading, overflow="fold")
    table.add_column("PEIR ↓", justify="right")
    for value in values:
        told = number(value.peir) if value.status is Status.COMPARED else STATUS_WORDS[value.status]
        name = Text(value.name or "output", style="bold")
        if value.relation is not None:
            name.append(f"\n{value.relation}", style="dim")
        table.add_row(name, Text(_spec(value.reference)), Text(_spec(value.candidate)), told)
    return table


def _spec(value: TensorSpec | None) -> str:
    """Return dtype, shape and range; a value that was not passed is described so."""
    if value is None:
        return "not there"
    if value.min is None or value.max is None:
        return spec(value)
    low, high = bound(value.min), bound(value.max)
    return f"{spec(value)}\n" + (f"all {low}" if low == high else f"{low} … {high}")


def _split(view: OperatorView, split: Split, width: int) -> Iterator[RenderableType]:
    first, second = _split_operators(view, split)
    if split.agreed is not None:
        yield Text()
        yield Text("Both hold the same, last", style="bold")
        pair = view.reference_operators[split.agreed.reference], view.candidate_operators[split.agreed.candidate]
        for side, one in zip(SIDES, pair, strict=True):
            yield from _operator(side, one, width)
        related = "the same values" if split.agreed.relation is None else str(split.agreed.relation)
        yield _indented(Text(f"{related}; PEIR {number(split.agreed.error)}", style="dim"))
    yield Text()
    yield Text("Here they part", style="bold")
    for side, operator, left_out in zip(SIDES, (first, second), split.left_out, strict=True):
        if left_out:
            yield from _labelled(side, Text("goes on without; what it returns is made here:"))
        if operator is not None:
            yield from _operator("" if left_out else side, operator, width)
            yield from _code(operator.place, width)
            yield from _called_from(operator, width)
    said = [f"{name} differs already" for name in split.arguments]
    if split.error is not None:
        said.append(f"PEIR {number(split.error)} between the two results")
    if split.relation is not None:
        said.append(str(split.relation))
    if said:
        yield _indented(Text("; ".join(said), style="dim"))


def _split_operators(view: OperatorView, split: Split) -> tuple[Operator | None, Operator | None]:
    first = None if split.reference is None else view.reference_operators[split.reference]
    second = None if split.candidate is None else view.candidate_operators[split.candidate]
    return first, second


def _operator(side: str, operator: Operator, width: int) -> Iterator[RenderableType]:
    result = ", ".join(map(str, operator.outputs))
    head = Text.assemble((f"#{operator.index} {operator.name}", "bold"), f"  {result}")
    taken = [*(f"#{index}" for index in operator.inputs), *operator.given]
    said = [f"of {', '.join(taken)}"] if taken else []
    said += [f"with {operator.settings}"] if operator.settings else []
    if said:
        head.append(f"\n{' '.join(said)}")
    if operator.place is not None:
        head.append(f"\n{_line(operator.place, width - INDENT - LABEL_WIDTH)}")
    yield from _labelled(side, head)


def _labelled(label: str, text: Text) -> Iterator[RenderableType]:
    grid = Table.grid(padding=0)
    grid.add_column(width=LABEL_WIDTH, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(label, text)
    yield _indented(grid)


def _code(place: CodePlace | None, width: int) -> Iterator[RenderableType]:
    """Yield the lines of code around a place, with the place's own line marked; without common indentation."""
    if place is None or not place.around:
        return
    room = width - INDENT - LABEL_WIDTH
    margin = min((len(line.text) - len(line.text.lstrip()) for line in place.around if line.text.strip()), default=0)
    digits = len(str(place.around[-1].number))
    for line in place.around:
        here = line.number == place.line
        text = _cut(f"{'>' if here else ' '} {line.number:>{digits}}  {line.text[margin:]}".rstrip(), room)
        yield Padding(Text(text, style="bold" if here else "dim"), (0, 0, 0, INDENT + LABEL_WIDTH), expand=False)


def _listing(operators: Sequence[Operator], parted: int | None) -> RenderableType:
    """Return the table of all operators; `parted` is the operator where the sides part."""
    table = plain_table()
    table.add_column("#", justify="right")
    for heading in ("operator", "result", "line", "partner"):
        table.add_column(heading, overflow="fold")
    for operator in operators:
        place = operator.place
        where = ABSENT if place is None else f"{place.file.rpartition('/')[2]}:{place.line}"
        result = ", ".join(map(str, operator.outputs))
        here = operator.index == parted
        cells = str(operator.index), operator.name.removeprefix("aten."), result, where
        partner = Text("here they part") if here else _partner(operator)
        table.add_row(*map(Text, cells), partner, style="bold red" if here else "")
    return table


def _partner(operator: Operator) -> Text:
    if operator.partner is None:
        return Text(ABSENT, style="bold")
    named = [f"#{index}" for index in operator.partner.operators]
    said = " ".join(named[:MOST_PARTNERS]) + (" …" if len(named) > MOST_PARTNERS else "") or "given"
    return Text(said if operator.partner.relation is None else f"{said} {operator.partner.relation}")


def _called_from(operator: Operator, width: int) -> Iterator[RenderableType]:
    """Yield the line of the module's own code that led to the operator, where it is not the operator's line."""
    if operator.own is not None and operator.own != operator.place and operator.own.around:
        yield from _labelled("", Text(f"called from {_line(operator.own, width - INDENT - LABEL_WIDTH - 12)}"))
        yield from _code(operator.own, width)


def _line(place: CodePlace, width: int) -> str:
    """Return a place in `width` characters; without enough room, folders are dropped from the left."""
    tail = f":{place.line}, in {place.function}"
    parts = place.file.split("/")
    for dropped in range(len(parts)):
        short = "/".join(["…", *parts[dropped:]] if dropped else parts) + tail
        if len(short) <= width or dropped == len(parts) - 1:
            return short
    return place.file + tail


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _name(operator: Operator | None) -> str:
    return "nothing" if operator is None else operator.name


def _names(values: Sequence[Differing]) -> str:
    return ", ".join(value.name for value in values)


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, INDENT), expand=False)
