"""Where a model's own code stands: file, line and function, as a report tells them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qtrace.operators.code import short
from qtrace.probe import Site

# (file, line, function)
Line = tuple[str, int, str]


def forward_of(module: torch.nn.Module) -> Line | None:
    """Return where a module's forward begins; None where it is torch's own, or no Python."""
    code = getattr(getattr(module.forward, "__func__", module.forward), "__code__", None)
    if code is None or Path(torch.__file__).parent in Path(code.co_filename).parents:
        return None
    return code.co_filename, code.co_firstlineno, code.co_name


def line_of(site: Site | None) -> Line | None:
    """Return a site as a line."""
    return None if site is None else (site.file, site.line, site.function)


def called_at(reference: Line | None, candidate: Line | None) -> str:
    """Return where a call is made, in words."""
    places = [f"{short(line[0])}:{line[1]}" for line in (reference, candidate) if line is not None]
    return f"the call stands in {' and '.join(places)}"


def source_of(reference: Line | None, candidate: Line | None) -> dict[str, Any] | None:
    """Return the two lines as a finding's `source`, None where neither is known."""
    if reference is None and candidate is None:
        return None
    return {
        name: None if line is None else {"file": short(line[0]), "line": line[1], "function": line[2]}
        for name, line in (("reference", reference), ("candidate", candidate))
    }
