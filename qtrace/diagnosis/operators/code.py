"""Finds the place in a model's own code, as file, line and function, that ran an operator or made a call."""

from __future__ import annotations

import inspect
import linecache
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from qtrace.engine.events import Site
from qtrace.report.records.operators import CodeLine, CodePlace

# Frames in these folders are not the model's own code.
_FOREIGN = (str(Path(torch.__file__).parent) + os.sep, str(Path(__file__).parents[1]) + os.sep)
_CALL = torch.nn.Module._call_impl.__code__
_AROUND = 2


@dataclass(frozen=True, slots=True)
class Origin:
    """The place in the code that ran an operator.

    `site` is the innermost place outside of torch. `own` is the innermost place in the code of the examined module,
    that is, in the file of its forward: `site` itself, or the line that called the module inside or the function
    elsewhere that `site` is in. `module` is the innermost module that is running.
    """

    site: Site | None
    own: Site | None
    module: torch.nn.Module | None


class OwnCode:
    """The code of the examined modules, a wrapper and the modules inside it."""

    def __init__(self, standing: Iterable[torch.nn.Module]) -> None:
        modules = list(standing)
        self._ids = {id(module) for module in modules}
        codes = (getattr(inspect.unwrap(module.forward), "__code__", None) for module in modules)
        self._files = {code.co_filename for code in codes if code is not None}

    def origin(self) -> Origin:
        """Return the place in the code that runs the current operator."""
        site: Site | None = None
        passed: list[Site] = []
        innermost: torch.nn.Module | None = None
        crossed: object = None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code is _CALL:
                module = frame.f_locals["self"]
                innermost = innermost or module
                if id(module) in self._ids:
                    break
                # All frames passed so far belong to a module inside.
                passed, crossed = [], module
            elif not code.co_filename.startswith(_FOREIGN):
                found = Site(code.co_filename, frame.f_lineno or 0, code.co_name)
                site = site or found
                # A frame in which a module calls itself, as for checkpointing, is no code of its caller.
                if passed or crossed is None or frame.f_locals.get("self") is not crossed:
                    passed.append(found)
            frame = frame.f_back
        own = next((one for one in passed if one.file in self._files), passed[0] if passed else None)
        return Origin(site, own, innermost)


def short(file: str) -> str:
    """Return a file's path within its package or below the current folder, without the machine's own folders."""
    path = Path(file)
    if "site-packages" in path.parts:
        return "/".join(path.parts[path.parts.index("site-packages") + 1 :])
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.name


def code_place(site: Site | None, *, around: bool = False) -> CodePlace | None:
    """Return a site as a report shows it; with `around` also the lines of code around it."""
    if site is None:
        return None
    lines: tuple[CodeLine, ...] = ()
    if around:
        numbers = range(max(1, site.line - _AROUND), site.line + _AROUND + 1)
        read = ((number, linecache.getline(site.file, number)) for number in numbers)
        lines = tuple(CodeLine(number, text.rstrip("\n")) for number, text in read if text)
    return CodePlace(short(site.file), site.line, site.function, lines)


# (file, line, function)
Line = tuple[str, int, str]
# Of the reference and of the candidate.
Lines = tuple[Line | None, Line | None]


def forward_of(module: torch.nn.Module) -> Line | None:
    """Return the line where a module's forward begins; None if it is torch's own, or no Python."""
    code = getattr(getattr(module.forward, "__func__", module.forward), "__code__", None)
    if code is None or Path(torch.__file__).parent in Path(code.co_filename).parents:
        return None
    return code.co_filename, code.co_firstlineno, code.co_name


def line_of(site: Site | None) -> Line | None:
    """Return a site as a line."""
    return None if site is None else (site.file, site.line, site.function)


def called_elsewhere(sites: Lines, parting: Lines) -> Iterator[str]:
    """Yield in words the place of a call, for each side on which it is not the named line."""
    for side, site, named in zip(("reference", "candidate"), sites, parting, strict=True):
        if site is not None and named is not None and site[:2] != named[:2]:
            yield f"the {side}'s call stands in {short(site[0])}:{site[1]}"


def source_of(reference: Line | None, candidate: Line | None) -> dict[str, Any] | None:
    """Return the two lines as a finding's `source`; None if neither is known."""
    if reference is None and candidate is None:
        return None
    return {
        name: None if line is None else {"file": short(line[0]), "line": line[1], "function": line[2]}
        for name, line in (("reference", reference), ("candidate", candidate))
    }
