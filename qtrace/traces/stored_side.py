"""A stored trace as a side of the lockstep: yields the events of the model's run from the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qtrace.engine.events import Bound, Call, End, Enter, Event, Exit, Replacement, Signature, Site
from qtrace.engine.live_side import Listener
from qtrace.engine.torch_state import RandomState
from qtrace.traces.literals import decode, encode
from qtrace.traces.manifest import Line, StoredCall, StoredLeaf, StoredModule, StoredValue
from qtrace.traces.reader import Trace, Values


@dataclass(slots=True, eq=False)
class _Open:
    """A call that has not ended; `stands` says whether its entry and exit are events."""

    number: int
    stored: StoredCall
    call: Call
    stands: bool


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call as the trace records it.

    `arguments` are keyed by the names of forward's parameters, as in the events. `site` is the line of the model's code
    that made the call; wrappers that only pass the call on are skipped.
    """

    call: StoredCall
    arguments: Mapping[str, StoredValue]
    site: Line | None


class StoredError(RuntimeError):
    """The exception that a call raised when the trace was written; the text names the type."""

    def told(self) -> tuple[str, str]:
        """Return the type of the exception, and its message."""
        kind, _, said = str(self).partition(": ")
        return kind, said


class StoredSide:
    """One sample of a trace that yields events; replacements for its tensors are ignored.

    `standing` is the event that was yielded last.

    `keys` maps the trace's module paths to the reference paths that they are aligned with, as for
    `qtrace.engine.LiveSide`. `passed` is called with every call of a module without partner. `listener` receives every
    call of `modules`, which are the trace's skeletons by path. Without `arguments`, calls have no arguments.
    """

    def __init__(
        self,
        trace: Trace,
        sample: int,
        keys: Mapping[str, str],
        *,
        passed: Callable[[Call, Any], None] | None = None,
        listener: Listener | None = None,
        modules: Mapping[str, torch.nn.Module] | None = None,
        arguments: bool = True,
    ) -> None:
        stored = trace.manifest.samples[sample]
        self.trace = trace
        self.standing: Event | None = None
        self.calls: Counter[str] = Counter()
        self.unseen: Counter[tuple[str, str]] = Counter({(path, why): n for path, why, n in stored.unseen})
        self.silent: list[str] = list(stored.silent)
        # A model counts its calls under a function transform, although these calls are not observed.
        self.calls.update({path: n for path, why, n in stored.unseen if why == "in_vmap"})
        self._sample = stored
        self._keys = keys
        self._passed = passed
        self._listener = listener
        self._modules = modules or {}
        self._arguments = arguments
        self._signatures = _signatures(trace.manifest.modules, keys)
        self._values = Values(trace, stored)
        self._open: list[_Open] = []
        self._events: Iterator[Event] = iter(())

    def start(self, function: Callable[[], Any]) -> Event:
        """Return the first event; there is nothing to run."""
        self._events = self._walk()
        return self.step()

    def step(self, reply: Replacement | None = None) -> Event:
        """Go on to the next event."""
        self.standing = next(self._events)
        return self.standing

    def close(self) -> None:
        """Release the values that were read."""
        self._events = iter(())
        self.standing = None
        self.trace.close()

    def site(self) -> Site | None:
        """Return the line of the model's code that made the current call, as `LiveSide.site` does."""
        found = self._site([one.stored for one in reversed(self._open)])
        return None if found is None else Site(*found)

    def recorded(self, call: Call) -> list[Recorded]:
        """Return the record of a call, then those of the enclosing calls, outwards; no tensor is read."""
        calls = self._sample.calls
        around = [next(one for one in calls if (one.module, one.call) == (call.path, call.index))]
        while around[-1].parent is not None:
            around.append(calls[around[-1].parent])
        return [
            Recorded(
                one,
                {name: _as_stored(value) for name, value in self._named(one).values.items()},
                self._site(around[depth:]),
            )
            for depth, one in enumerate(around)
        ]

    def drew_from(self, random: RandomState) -> bool:
        """Return False: a trace draws no random numbers, even if its model did."""
        return False

    def _walk(self) -> Iterator[Event]:
        for number, stored in enumerate(self._sample.calls):
            while self._open and self._open[-1].number != stored.parent:
                yield from self._leave()
            yield from self._enter(number, stored)
        while self._open:
            yield from self._leave()
        returned = self._sample.returned
        yield End(value=None if returned is None else self._values.value(returned))

    def _enter(self, number: int, stored: StoredCall) -> Iterator[Event]:
        self.calls[stored.module] += 1
        key = self._keys.get(stored.module)
        call = Call(stored.module, key, stored.type, stored.call, stored.caller, stored.entry, stored.order)
        stands = key is not None and not self._is_inner(stored.module, key)
        self._open.append(_Open(number, stored, call, stands))
        listener = self._listener if stored.module in self._modules else None
        is_read = self._arguments and (stands or listener is not None)
        bound = self._bound(stored) if is_read else Bound({}, (), frozenset())
        if not is_read:
            self._values.skip(stored.arguments.values())
        if listener is not None:
            listener.enter(call, self._modules[stored.module], bound)
        if stands:
            yield Enter(call, bound)

    def _leave(self) -> Iterator[Event]:
        done = self._open[-1]
        outputs = done.stored.outputs
        error = None if done.stored.error is None else StoredError(done.stored.error)
        is_passed = done.call.key is None and self._passed is not None
        value = None
        listener = self._listener if done.stored.module in self._modules else None
        if done.stands or is_passed or listener is not None:
            value = None if error else self._values.value(outputs)
        else:
            self._values.skip([outputs])
        if listener is not None and error is None:
            listener.leave(done.call, self._modules[done.stored.module], value)
        if is_passed and self._passed is not None:
            self._passed(done.call, value)
        if done.stands:
            yield Exit(done.call, value, error)
        self._open.pop()

    def _site(self, around: Sequence[StoredCall]) -> Line | None:
        """Return the line that made the first of these calls; each call ran inside the next one."""
        own: Line | None = None
        for one in around:
            if one.site is not None:
                # A module with the same partner, or without one, only passes the call on.
                if self._keys.get(one.caller) not in (None, self._keys.get(around[0].module)):
                    return one.site
                own = own or one.site
        return own

    def _is_inner(self, path: str, key: str) -> bool:
        """Return whether the call runs inside a call of another module with the same reference module as partner."""
        around = next((one for one in reversed(self._open) if one.call.key is not None), None)
        return around is not None and around.call.key == key and around.stored.module != path

    def _bound(self, stored: StoredCall) -> Bound:
        bound = self._named(stored)
        for name, value in bound.values.items():
            if isinstance(value, StoredValue):
                bound.values[name] = self._values.value(value)
        return bound

    def _named(self, stored: StoredCall) -> Bound:
        """Return the arguments by name, as they are stored; a default that was not passed may be included."""
        values: dict[str, Any] = dict(stored.arguments)
        signature = self._signatures.get(stored.module)
        if signature is None:
            return Bound(values, stored.positional, frozenset(stored.passed))
        args = tuple(values[name] for name in stored.positional if name in values)
        return signature.bind(args, {name: value for name, value in values.items() if name not in stored.positional})


def _as_stored(value: Any) -> StoredValue:
    return value if isinstance(value, StoredValue) else StoredValue(leaves=(StoredLeaf(path="", plain=encode(value)),))


def _signatures(modules: tuple[StoredModule, ...], keys: Mapping[str, str]) -> dict[str, Signature]:
    """Return the parameter names of modules that have none themselves: those of the first module inside with names.

    Inside means that it is aligned with the same reference module. This alignment was not known when the trace was
    written.
    """
    groups: dict[str, list[StoredModule]] = {}
    for module in modules:
        if module.path in keys:
            groups.setdefault(keys[module.path], []).append(module)
    found: dict[str, Signature] = {}
    for group in groups.values():
        for module in group:
            prefix = f"{module.path}." if module.path else ""
            inside = (one for one in group if one is not module and one.path.startswith(prefix) and one.signature.named)
            named = None if module.signature.named else next(inside, None)
            if named is not None:
                told = named.signature
                defaults = {name: decode(value) for name, value in told.defaults.items()}
                found[module.path] = Signature(told.positional, defaults, True)
    return found
