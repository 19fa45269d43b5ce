"""Decides, at each boundary in a run's passes, whether to stop there."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from qtrace.debug import pdb_prompt
from qtrace.debug.answers import Handover
from qtrace.debug.breakpoints import ENTER, EXIT, Breakpoint, Condition, why_not_reached
from qtrace.debug.conversation import Conversation, Sides
from qtrace.debug.stop import Script, Stop
from qtrace.engine.comparison import Comparison
from qtrace.engine.events import Enter, Exit, Replacement
from qtrace.engine.lockstep import REFERENCE, EndRun, Meeting, MeetingProxy
from qtrace.engine.pair import CallPair
from qtrace.report.records import Status
from qtrace.traces import StoredSide
from qtrace.tree import tensors


@dataclass(slots=True)
class Faults:
    """Follows a pass, and distinguishes faults from calls that only pass an error on.

    A call is at fault if its output differs although its arguments agree and so do the outputs of all its callees. A
    caller is at fault if it passes on an argument that differs although its own arguments agree and so do the outputs
    of all its earlier callees.
    """

    _affected: set[int] = field(default_factory=set)

    def is_at(self, stop: Stop) -> bool:
        """Return whether this boundary shows a fault; must be called at each boundary, in order."""
        own, parent = id(stop.met), id(stop.met.parent)
        if not stop.differing() and stop.error() is None:
            return False
        if stop.event == ENTER:
            self._affected.add(own)
            return parent not in self._affected
        self._affected.add(parent)
        return own not in self._affected

    def healed(self, stop: Stop) -> None:
        """Forget the result of a boundary: the candidate continues with the reference's tensors."""
        self._affected.discard(id(stop.met if stop.event == ENTER else stop.met.parent))


class StoppingMeeting(MeetingProxy):
    """Asks `met` for the tensors that the candidate continues with from each boundary; `met` may stop there."""

    def __init__(self, comparison: Comparison, met: Callable[[Stop, Replacement | None], Replacement | None]) -> None:
        super().__init__(comparison)
        self._comparison = comparison
        self._met = met
        self._open: list[CallPair] = []

    def entered(self, reference: Enter, candidate: Enter) -> Replacement | None:
        """Compare, then ask `met`."""
        reply = super().entered(reference, candidate)
        met = self._comparison.met[-1]
        # The caller may ignore the return value of a module that works in place: then the written tensor is forced.
        met.argument_ids = {id(tensor) for _, tensor in tensors(candidate.arguments.values)}
        self._open.append(met)
        return self._met(self._stop(met, reference, candidate), reply)

    def left(self, reference: Exit, candidate: Exit) -> Replacement | None:
        """Compare, then ask `met`."""
        reply = super().left(reference, candidate)
        return self._met(self._stop(self._open.pop(), reference, candidate), reply)

    def _stop(self, met: CallPair, reference: Enter | Exit, candidate: Enter | Exit) -> Stop:
        # On request the values are compared again in the same way.
        return Stop(self._comparison, met, reference, candidate, type(self._comparison.comparer)())


class Debugger:
    """Attends the passes of a run: stops at breakpoints, and at calls with a row that satisfies a condition.

    Without a `script` the prompt's commands come from the terminal. `has_quit` says that the run was ended there.
    """

    def __init__(
        self,
        breakpoints: Sequence[Breakpoint],
        conditions: Sequence[Condition] = (),
        *,
        script: Script | None = None,
    ) -> None:
        self.has_quit = False
        self._breakpoints = breakpoints
        self._conditions = conditions
        self._script = script
        self._reached: set[Breakpoint] = set()
        self._satisfied_by: Counter[Condition] = Counter()
        self._undecided: Counter[Status] = Counter()
        self._calls: list[Counter[str]] = []
        self._stored: Collection[str] | None = None
        self._handover = Handover()
        self._faults = Faults()
        self._comparison: Comparison
        self._conversation: Conversation

    # The interface for a run that is attended.

    def around(self, comparison: Comparison) -> Meeting:
        """Return a meeting that reports each boundary to this debugger."""
        self._comparison = comparison
        return StoppingMeeting(comparison, self.met)

    @contextlib.contextmanager
    def attending(self, sides: Sides) -> Iterator[None]:
        """Give each side a prompt, and a live side a stepper; release both at the end."""
        reference = sides[REFERENCE]
        self._calls.append(reference.calls)
        if isinstance(reference, StoredSide):
            self._stored = reference.trace.manifest.selected
        self._faults = Faults()
        self._conversation = Conversation(sides, self._comparison, self._handover, self._script)
        try:
            yield
        except EndRun:
            self.has_quit = True
            raise
        finally:
            self._handover.end()
            self._conversation.close()

    def warnings(self) -> list[str]:
        """Return warnings for breakpoints that were not reached, and for tensors that were forced."""
        return [*self.unreached(), *self.unsatisfied(), *self._handover.warnings()]

    def unreached(self) -> list[str]:
        """Return for each breakpoint that a complete run did not reach a sentence with the reason."""
        if self.has_quit or pdb_prompt.is_off():
            return []
        calls = sum(self._calls, Counter())
        missed = [one for one in self._breakpoints if one not in self._reached]
        return [why_not_reached(one, calls, self._stored) for one in missed]

    def unsatisfied(self) -> list[str]:
        """Return a sentence for each condition that no row satisfied, and for rows where it could not be decided."""
        if self.has_quit or pdb_prompt.is_off():
            return []
        said = [f"no row satisfies {str(one)!r}" for one in self._conditions if not self._satisfied_by[one]]
        if self._undecided:
            counts = ", ".join(f"{n} {status.value}" for status, n in self._undecided.most_common())
            said.append(f"rows that satisfied no condition, and may have no number to compare: {counts}")
            said[-1] += "; 'status != compared' stops there"
        return said

    def met(self, stop: Stop, reply: Replacement | None) -> Replacement | None:
        """Return the tensors that the candidate continues with from a boundary; stop there first where requested."""
        conversation = self._conversation
        conversation.begin(stop, reply)
        reason = self._reason(stop)
        if reason is None or pdb_prompt.is_off():
            conversation.pass_by(stop)
        else:
            conversation.open(stop, reason)
        if conversation.has_handed_over:
            self._faults.healed(stop)
        return conversation.end()

    # Where to stop.

    def _reason(self, stop: Stop) -> str | None:
        """Return the reason to stop at a boundary, None where there is none."""
        hit = [one for one in self._breakpoints if one.is_at(stop.event, stop.call)]
        self._reached.update(hit)
        is_fault = self._faults.is_at(stop)
        satisfied = self._satisfied(stop)
        if self._conversation.wants_next:
            return "the next call"
        if (stop.call.path, stop.event) in self._handover.healed:
            return None
        if hit:
            return f"breakpoint {hit[0].place}"
        if satisfied is not None:
            return f"{satisfied} holds"
        return "a fault" if is_fault and self._conversation.seeks_fault else None

    def _satisfied(self, stop: Stop) -> Condition | None:
        """Return the first condition that a row of a call satisfies, and count undecidable conditions."""
        if stop.event != EXIT or not self._conditions or stop.error() is not None:
            return None
        found: list[Condition] = []
        for row in stop.comparison.rows_of(stop.met):
            holding = [one for one in self._conditions if one.holds(row)]
            found += holding
            if not holding and row.status is not Status.COMPARED:
                self._undecided[row.status] += 1
        self._satisfied_by.update(found)
        return found[0] if found else None
