"""Where to stop: `MODULE[:enter|exit][#call]`, a glob over the reference's module paths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qtrace.engine.events import Call
from qtrace.errors import UsageError, did_you_mean
from qtrace.patterns import select

ENTER, EXIT = "enter", "exit"
_FORM = re.compile(r"(?P<glob>[^:#]+)(?::(?P<event>[^#]*))?(?:#(?P<call>.*))?")


@dataclass(frozen=True, slots=True)
class Place:
    """A breakpoint as it was written; without an event it means the entry and the exit, without a number every call.

    `option` is what it was given by, for messages.
    """

    glob: str
    event: str | None = None
    call: int | None = None
    option: str = "--break"

    def __str__(self) -> str:
        event = f":{self.event}" if self.event is not None else ""
        return self.glob + event + (f"#{self.call}" if self.call is not None else "")


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A place in a pair of models: the reference paths that its glob matches."""

    place: Place
    paths: frozenset[str]

    def is_at(self, event: str, call: Call) -> bool:
        """Return whether the entry or the exit of a reference call is meant."""
        place = self.place
        return call.path in self.paths and place.event in (None, event) and place.call in (None, call.index)


def parse_place(text: str, option: str = "--break") -> Place:
    """Return the place that `text` names; raises `UsageError`, naming the option, where it names none.

    >>> parse_place("model.layers.*:enter#2")
    Place(glob='model.layers.*', event='enter', call=2, option='--break')
    """
    parts = _FORM.fullmatch(text.strip())
    if parts is None:
        raise UsageError(f"{option} {text!r}: expected MODULE[:enter|exit][#call], as in 'model.layers.0:exit#1'")
    event, call = parts["event"], parts["call"]
    if event not in (None, ENTER, EXIT):
        raise UsageError(f"{option} {text!r}: {event!r} is no event of a call; {did_you_mean(event, (ENTER, EXIT))}")
    if call is not None and not call.isdecimal():
        raise UsageError(f"{option} {text!r}: {call!r} is no call number; calls of a module count from #0")
    return Place(parts["glob"], event, None if call is None else int(call), option)


def resolve(place: Place, paths: Mapping[str, str]) -> Breakpoint:
    """Return the breakpoint in a model whose module paths are the keys, each with the first path of its module.

    Raises `UsageError`, naming near paths, where the glob matches no module.
    """
    chosen = select((place.glob,), paths, option=place.option)
    return Breakpoint(place, frozenset(paths[path] for path in chosen))


def why_not_reached(breakpoint: Breakpoint, calls: Counter[str], stored: Collection[str] | None = None) -> str:
    """Return in a sentence why nobody stopped at a breakpoint.

    `calls` counts the reference's calls by path; of a stored reference, `stored` are the modules whose calls it tells.
    """
    place, paths = breakpoint.place, sorted(breakpoint.paths)
    which = f"{place.option} {str(place)!r}"
    called = {path: calls[path] for path in paths if calls[path]}
    names = ", ".join(path or "<root>" for path in paths[:3]) + (", …" if len(paths) > 3 else "")
    if stored is not None and not breakpoint.paths & set(stored):
        return f"{which}: the stored reference holds no calls of {names}; `qtrace show TRACE` lists what it holds"
    if not called:
        return f"{which}: the reference never calls {names}; `qtrace modules` lists what is called"
    most = max(called.values())
    if place.call is not None and place.call >= most:
        times = "once" if most == 1 else f"{most} times"
        return f"{which}: the reference calls {names} {times}, so the last call is #{most - 1}"
    return (
        f"{which}: both sides never stand at {names} together; --only or --skip leaves it out, "
        "or it has no partner, and `qtrace modules` tells why"
    )
