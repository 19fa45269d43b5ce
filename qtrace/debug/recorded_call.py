"""A stored call as the prompt shows it: the line that made it, and its arguments and outputs by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from qtrace.debug.stop import Refusal
from qtrace.debug.values import BUILTINS, FoundValue, columns
from qtrace.engine.events import Call
from qtrace.errors import did_you_mean
from qtrace.report.text import shorten
from qtrace.traces import StoredSide
from qtrace.traces.excerpt import Sketch
from qtrace.traces.literals import decode
from qtrace.traces.manifest import Line, StoredLeaf, StoredSample, StoredValue
from qtrace.traces.reader import StoredObject, Values

OUTPUT = "output"
# How many leaves of one value, such as a cache, are shown.
_MOST_LEAVES = 8
_MOST_LETTERS, _MOST_OF_PATH = 60, 24


class RecordedCall:
    """One call of a stored side, and its enclosing calls.

    Its names are those of its arguments, and `output` for its return value. Other names are looked up in the arguments
    of the enclosing calls, outwards. Tensors are read on demand, separately from the run: changes to them do not affect
    it.
    """

    def __init__(self, side: StoredSide, call: Call) -> None:
        self._manifest = side.trace.manifest
        self._innermost, *_ = self._calls = side.recorded(call)
        self._known: list[dict[str, StoredValue]] = [dict(one.arguments) for one in self._calls]
        if self._innermost.call.error is None:
            self._known[0].setdefault(OUTPUT, self._innermost.call.outputs)
        self._values = Values(side.trace, StoredSample())
        self._read: dict[tuple[int, str], Any] = {}

    @property
    def names(self) -> list[str]:
        """Return the names that expressions may use, the call's own first."""
        return list(dict.fromkeys(name for known in self._known for name in known))

    def place(self) -> str:
        """Return the line that made the call, if it is recorded."""
        return "stored" if self._innermost.site is None else f"{_said(self._innermost.site)} (stored)"

    def entries(self) -> list[str]:
        """Return the line that made each call, the outermost first; its module where the line is not recorded."""
        places = [(one.call.site, one.call.module) for one in self._calls]
        # Code that only passes the call on does not count as its place.
        while len(places) > 1 and places[0][0] != self._innermost.site:
            del places[0]
        return [f"call of {module or '<root>'}" if site is None else _said(site) for site, module in reversed(places)]

    def described(self) -> Iterator[str]:
        """Yield the call, and each of its arguments and outputs: name, dtype and shape."""
        call, manifest = self._innermost.call, self._manifest
        made = "" if self._innermost.site is None else f", called at {_said(self._innermost.site)}"
        yield f"{call.module or '<root>'} ({call.type}), call #{call.call}{made}"
        values = [("argument", name, value) for name, value in self._innermost.arguments.items()]
        values.append(("output", "", call.outputs))
        rows = [(f"  {kind}", *told) for kind, name, value in values for told in self._leaves(name, value)]
        yield from columns(rows)
        if not manifest.arguments:
            yield "its arguments are not stored (--outputs-only, or imported)"
        if call.error is not None:
            yield f"it raised {call.error}"
        if manifest.sketches:
            yield "of each tensor only a sketch is stored (--stats-only)"
        if manifest.cast is not None:
            yield f"wider floats were rounded to {manifest.cast} (--as)"

    def find(self, expression: str, own: Mapping[str, Any] | None = None) -> FoundValue:
        """Evaluate an expression; each name is taken from the innermost call that has it.

        `own` are the user's names, which come first. Raises any exception of the expression; `NameError` where no call
        has one of its names, `Refusal` for an expression that computes with sketches.
        """
        tree = ast.parse(expression.strip(), "<stored>", "eval")
        values, level = self._scope(tree, expression, own or {})
        try:
            value = eval(compile(tree, "<stored>", "eval", dont_inherit=True), values)
        except NameError as error:
            near = did_you_mean(error.name or "", self.names)
            raise NameError(f"the trace holds no {error.name} here; {near}{self._reason()}") from None
        return FoundValue(value, self._place_of(level))

    def run(self, line: str, own: dict[str, Any]) -> None:
        """Run a line of Python over the same names; its assignments go to `own`."""
        tree = ast.parse(line, "<stored>", "single")
        values, _ = self._scope(tree, line, own)
        exec(compile(tree, "<stored>", "single", dont_inherit=True), values, own)

    def all(self) -> dict[str, Any]:
        """Read the arguments and outputs of the call itself, by name."""
        return {name: self._value(0, name) for name in self._known[0]}

    def _value(self, level: int, name: str) -> Any:
        if (level, name) not in self._read:
            value = self._values.value(self._known[level][name])
            self._read[level, name] = dict(vars(value)) if isinstance(value, StoredObject) else value
        return self._read[level, name]

    def _scope(self, tree: ast.AST, text: str, own: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the values of the names in a piece of code, and the outermost level at which one was found."""
        values, farthest = {"torch": torch, "__builtins__": BUILTINS, **own}, 0
        for name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - own.keys():
            level = next((level for level, known in enumerate(self._known) if name in known), None)
            if level is not None:
                values[name], farthest = self._value(level, name), max(farthest, level)
                if _holds_sketch(values[name]) and text.strip() != name:
                    # The few elements of a sketch must not be used as if they were the whole tensor.
                    raise Refusal(
                        "of each tensor only a sketch is stored (--stats-only): a name by itself can be shown and "
                        "compared, and nothing can be computed with it"
                    )
        return values, farthest

    def _place_of(self, level: int) -> str:
        """Return the place where the values of a level were passed."""
        one = self._calls[level]
        place = "stored" if one.site is None else _said(one.site)
        return place if level == 0 else f"{place}, into {shorten(one.call.module or '<root>', _MOST_OF_PATH)}"

    def _reason(self) -> str:
        return "" if self._manifest.arguments else " (its arguments are not stored: --outputs-only, or imported)"

    def _leaves(self, name: str, value: StoredValue) -> Iterator[tuple[str, str]]:
        for leaf in value.leaves[:_MOST_LEAVES]:
            yield ".".join(filter(None, (name, leaf.path))), self._told(leaf)
        if len(value.leaves) > _MOST_LEAVES:
            yield name, f"and {len(value.leaves) - _MOST_LEAVES} more"

    def _told(self, leaf: StoredLeaf) -> str:
        """Return a description of a leaf."""
        if leaf.tensor is None:
            return repr(decode(leaf.plain))[:_MOST_LETTERS]
        entry = self._manifest.tensors[leaf.tensor]
        return str(entry.spec) + (", without values" if entry.shard is None else "")


def _holds_sketch(value: Any) -> bool:
    return isinstance(value, Sketch) or (isinstance(value, dict) and any(map(_holds_sketch, value.values())))


def _said(site: Line) -> str:
    file, line, function = site
    return f"{Path(file).name}:{line} {function}"
