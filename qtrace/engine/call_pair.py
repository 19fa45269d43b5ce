"""One call on which both sides met: what stood there on either side, and what was handed over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qtrace.engine.events import Call, Site
from qtrace.engine.pair import Pair
from qtrace.numerics.tolerance import Place
from qtrace.report.records import Relation


@dataclass(slots=True)
class Handed:
    """Two objects, such as caches, that a call was handed on either side, and the tensors that the first one held."""

    name: str
    reference: Any
    candidate: Any
    held: set[tuple[int, int]]


@dataclass(slots=True, eq=False)
class Met:
    """A call on which both sides met, or one that stayed alone (`candidate` is None, or `reference` is).

    `parent` is the meeting that it ran inside. `sites` are the places in both sides' code that made the call, where
    somebody asks for them. `kept` are the outputs that differ and are the model's own affair, with the convention that
    they are in. Pairs may still have their numbers on an accelerator; they are read when the run is over.
    """

    reference: Call | None
    candidate: Call | None
    parent: Met | None = None
    arguments: list[tuple[str, Pair]] = field(default_factory=list)
    outputs: list[tuple[str, Pair]] = field(default_factory=list)
    forced: set[str] = field(default_factory=set)
    argument_ids: set[int] = field(default_factory=set)
    sites: tuple[Site | None, Site | None] = (None, None)
    handed: list[Handed] = field(default_factory=list)
    kept: dict[str, Relation | None] = field(default_factory=dict)
    raised: bool = False
    ended: bool = False

    @property
    def call(self) -> Call:
        """Return the call of the side that is there, the reference's first."""
        call = self.reference if self.reference is not None else self.candidate
        assert call is not None
        return call


def place(met: Met, mark: str, name: str) -> Place:
    """Return the key of one value of a call among the noise floors; `mark` tells arguments from outputs."""
    return met.call.key or "", met.call.index, mark + name
