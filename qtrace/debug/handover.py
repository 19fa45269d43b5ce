"""`force` and `heal`: the candidate goes on with the reference's tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from qtrace.debug.breakpoints import ENTER
from qtrace.debug.session import Refusal
from qtrace.debug.stop import Stop
from qtrace.engine.events import Enter, Exit, Replacement
from qtrace.engine.forcing import Forcing, LeafPairs

_MOST_TOLD = 3


@dataclass(slots=True)
class Handover:
    """What is handed over in a run: at chosen meetings, and wherever the candidate hands the same tensors on.

    `notes` says where it happened. `healed` are the (reference path, event) at which it happens every time.
    """

    healed: set[tuple[str, str]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    # Both tensors are kept, so that their ids stay theirs.
    _forced: dict[tuple[int, int], tuple[Any, Any, tuple[int, int]]] = field(default_factory=dict)

    def end(self) -> None:
        """Let go of the tensors of a pass."""
        self._forced.clear()

    def warnings(self) -> list[str]:
        """Return the warning for what was handed over, if anything was."""
        if not self.notes:
            return []
        rest = len(self.notes) - _MOST_TOLD
        some = "; ".join(self.notes[:_MOST_TOLD]) + (f"; and {rest} more" if rest > 0 else "")
        return [f"the candidate was handed the reference's {some}: what follows is not its own result"]

    def here(self, stop: Stop, *, heals: bool) -> Replacement | None:
        """Return what the candidate goes on with, None where it was written in place.

        Raises `Refusal` where nothing is handed over.
        """
        pairs: LeafPairs = [(*leaves, pair) for *leaves, pair in stop.compared() if pair is not None]
        differing = [one for one in pairs if not _is_equal(one)]
        if not differing:
            raise Refusal("nothing to hand over: the candidate holds the same values")
        # Of a trace that was captured on the meta device, say.
        pairs = [one for one in pairs if not (isinstance(one[1], torch.Tensor) and one[1].is_meta)]
        reply = self._replacement(stop, pairs)
        handed = [name for name, *_ in differing if stop.mark + name in stop.met.forced]
        if not handed:
            names = ", ".join(name or "output" for name, *_ in differing)
            raise Refusal(
                f"nothing could be handed over of {names}: no layout is known in which the candidate would take it"
            )
        off = [name for name, _, _, pair in differing if name in handed and not stop.agrees(name, pair)]
        self._note(stop, off or handed)
        if stop.event == ENTER:
            for name, mine, theirs, _ in differing:
                if name in handed and theirs is not None:
                    self._forced[id(mine), id(theirs)] = mine, theirs, (_version(mine), _version(theirs))
        if heals:
            self.healed.add((stop.call.path, stop.event))
        return reply

    def again(self, stop: Stop) -> Replacement | None:
        """Return what the candidate goes on with at a later meeting: one that is healed, or handed the same tensors."""
        if (stop.call.path, stop.event) in self.healed:
            try:
                return self.here(stop, heals=False)
            except Refusal:
                return None
        if not self._forced or stop.event != ENTER:
            return None
        pairs: LeafPairs = []
        for name, mine, theirs in stop.leaf_pairs():
            known = self._forced.get((id(mine), id(theirs)))
            if known is not None and known[2] == (_version(mine), _version(theirs)):
                pair = stop.comparer.compare(mine, theirs)
                assert pair is not None
                pairs.append((name, mine, theirs, pair))
        if not pairs:
            return None
        self._note(stop, [name for name, *_ in pairs])
        return self._replacement(stop, pairs)

    def _replacement(self, stop: Stop, pairs: LeafPairs) -> Replacement | None:
        key = {stop.call.key or ""}
        if isinstance(stop.candidate, Enter):
            return Forcing(entries=key).arguments(stop.met, stop.candidate, pairs)
        assert isinstance(stop.candidate, Exit)
        return Forcing(exits=key).outputs(stop.met, stop.candidate, pairs)

    def _note(self, stop: Stop, names: list[str]) -> None:
        self.notes.append(f"{', '.join(name or 'output' for name in names)} at {stop}")


def _is_equal(leaf: tuple[str, Any, Any, Any]) -> bool:
    pair = leaf[3]
    found = pair.statistics()
    return pair.measurement is not None and pair.layout is None and found.max == 0 and found.non_finite is None


def _version(leaf: Any) -> int:
    return leaf._version if isinstance(leaf, torch.Tensor) and not leaf.is_inference() else 0
