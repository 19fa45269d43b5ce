"""How modules quantize, quantizer by quantizer, and what is wrong with any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from qtrace.patterns import matches
from qtrace.report.paths import shorten
from qtrace.report.records import QuantFacts, Row

INDENT = 4


def quantizer_listing(rows: Iterable[Row], inspect: Iterable[str], *, width: int) -> Iterator[RenderableType]:
    """Yield the quantizers of the modules that any pattern of `inspect` matches; nothing where none has any."""
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
