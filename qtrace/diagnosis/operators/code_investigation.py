"""Where a model's own code stands: file, line and function, as a report tells them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qtrace.diagnosis.operators.code import short
from qtrace.engine.events import Site

# (file, line, function)
Line = tuple[str, int, str]
# Of the reference and of the candidate.
Lines = tuple[Line | None, Line | None]


def forward_of(module: torch.nn.Module) -> Line | None:
    """Return where a module's forward begins; None where it is torch's own, or no Python."""
    code = getattr(getattr(module.forward, "__func__", module.forward), "__code__", None)
    if code is None or Path(torch.__file__).parent in Path(code.co_filename).parents:
        return None
    return code.co_filename, code.co_firstlineno, code.co_name


def line_of(site: Site | None) -> Line | None:
    """Return a site as a line."""
    return None if site is None else (site.file, site.line, site.function)


def called_elsewhere(sites: Lines, parting: Lines) -> Iterator[str]:
    """Yield where a call stands, in words, for each side on which it is not the line that is named."""
    for side, site, named in zip(("reference", "candidate"), sites, parting, strict=True):
        if site is not None and named is not None and site[:2] != named[:2]:
            yield f"the {side}'s call stands in {short(site[0])}:{site[1]}"


def source_of(reference: Line | None, candidate: Line | None) -> dict[str, Any] | None:
    """Return the two lines as a finding's `source`, None where neither is known."""
    if reference is None and candidate is None:
        return None
    return {
        name: None if line is None else {"file": short(line[0]), "line": line[1], "function": line[2]}
        for name, line in (("reference", reference), ("candidate", candidate))
    }
