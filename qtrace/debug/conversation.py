"""Controls both sides while a user is at the prompt: which side has the prompt, which is stepped, which continues."""

from __future__ import annotations

import bdb
from typing import NoReturn

from qtrace.debug import answers, pdb_prompt
from qtrace.debug.answers import Answers, Handover
from qtrace.debug.breakpoints import ENTER
from qtrace.debug.live_party import LiveParty
from qtrace.debug.party import Party
from qtrace.debug.stop import Move, Script, Stop
from qtrace.debug.stored_party import StoredParty
from qtrace.engine.comparison import Comparison
from qtrace.engine.events import Pause, Replacement
from qtrace.engine.live_side import LiveSide
from qtrace.engine.lockstep import CANDIDATE, REFERENCE, EndRun
from qtrace.traces import StoredSide

Sides = tuple[LiveSide | StoredSide, LiveSide | StoredSide]


class Conversation:
    """The prompts of one pass.

    The prompt of a live side runs on that side's own stack; between two prompts the driver decides here which side
    continues. `Answers` answers the commands.

    `seeks_fault` says that the user wants to stop at the next fault.
    """

    def __init__(self, sides: Sides, comparison: Comparison, handover: Handover, script: Script | None) -> None:
        self.seeks_fault = False
        self._handover = handover
        self._answers = Answers(comparison, handover)
        self._parties = self._party(sides, REFERENCE, script), self._party(sides, CANDIDATE, script)
        self._answers.parties = self._parties
        # Prefer a side that has code.
        self._current = CANDIDATE if self._parties[CANDIDATE].has_code else REFERENCE
        self._last = ""

    def _party(self, sides: Sides, number: int, script: Script | None) -> Party:
        side = sides[number]
        if isinstance(side, StoredSide):
            return StoredParty(side, number, self._answers, script)
        return LiveParty(side, number, self._answers, script, lambda: self._converse(number))

    def close(self) -> None:
        """Release both sides."""
        self._answers.stop = None
        for party in self._parties:
            party.release()

    def begin(self, stop: Stop, reply: Replacement | None) -> None:
        """Note the tensors that the candidate will continue with from a boundary."""
        candidate = self._parties[CANDIDATE]
        again = self._handover.again(stop) if candidate.is_at(stop.candidate) else None
        self._answers.has_handed_over = again is not None
        candidate.reply = again or reply

    def end(self) -> Replacement | None:
        """Return the tensors that the candidate continues with from a boundary."""
        return self._parties[CANDIDATE].reply

    @property
    def has_handed_over(self) -> bool:
        """Return whether the candidate continues from the last boundary with the reference's tensors."""
        return self._answers.has_handed_over

    @property
    def wants_next(self) -> bool:
        """Return whether a side is stepped that stops at the next event, whichever it is."""
        return any(party.stops_anywhere for party in self._parties)

    def open(self, stop: Stop, reason: str) -> None:
        """Stop at a boundary; raises `EndRun` where the user ends the run."""
        self._answers.stop, self._answers.has_moved, self.seeks_fault = stop, False, False
        self._last = str(stop)
        for party in self._parties:
            party.disarm()
        self._stand()
        try:
            if pdb_prompt.is_wanted():
                self._open_foreign(stop)
                return
            for line in answers.heading(stop, reason, self._parties):
                self._parties[self._current].message(line)
            self._converse(self._current)
        finally:
            self._answers.stop = None

    def pass_by(self, stop: Stop) -> None:
        """Continue from a boundary without a reason to stop.

        A stepped candidate runs first: the lockstep would run the reference first, but the reference must stand still.
        """
        candidate = self._parties[CANDIDATE]
        if candidate.is_armed and candidate.is_at(stop.candidate) and isinstance(candidate.go(), Pause):
            self._converse(CANDIDATE)

    def _converse(self, current: int) -> None:
        """Open prompts until the user continues the run; raises `EndRun` where the user ends it."""
        self._stand()
        while True:
            self._current = current
            party, other = self._parties[current], self._parties[1 - current]
            move = party.converse()
            if move is Move.QUIT:
                self._quit()
            elif move is Move.SWITCH:
                current = 1 - current
            elif move is not Move.STEP:
                self.seeks_fault = move is Move.NEXT_FAULT
                return
            elif party.has_arrived:
                party.message(f"the {party.name} waits at its next call for the {other.name}: step there, or continue")
                party.disarm()
            else:
                self._answers.has_moved = True
                other.disarm()
                if not isinstance(party.go(), Pause):
                    return

    def _stand(self) -> None:
        stop = self._answers.stop
        for number, party in enumerate(self._parties):
            party.stand(None if stop is None else stop.events[number])

    def _quit(self) -> NoReturn:
        raise EndRun(f"ended at the prompt, {'after' if self._answers.stop is None else 'at'} {self._last}")

    def _open_foreign(self, stop: Stop) -> None:
        pairs = {name or "output": (mine, theirs) for name, mine, theirs in stop.leaf_pairs()}
        ref, cand = (party.standing(event) for party, event in zip(self._parties, stop.events, strict=True))
        args, out = (pairs, {}) if stop.event == ENTER else ({}, pairs)
        try:
            pdb_prompt.stand(ref, cand, args, out)
        except bdb.BdbQuit:
            self._quit()
