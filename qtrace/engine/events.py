"""What a side tells while its model runs: a call was entered, a call was left, the run ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qtrace.engine.arguments import Bound


@dataclass(slots=True, eq=False)
class Call:
    """One call of one module of one side.

    `path` is in the side's own names, `key` the reference path that it answers to (None where nothing does),
    `index` counts the module's calls from 0, `caller` the module whose code made the call. `entry` and `order`
    count the calls that the side had left when this one was entered and left: execution order, with arguments
    before the output. A `fresh` one returns a tensor that nobody else holds; one that `has_data` has parameters or
    buffers of its own.
    """

    path: str
    key: str | None
    type: str
    index: int
    caller: str
    entry: int = 0
    order: int = 0
    fresh: bool = False
    has_data: bool = False


@dataclass(slots=True)
class Enter:
    """A call is about to run; its arguments stand in `arguments` by name, in `args` and `kwargs` as they were given."""

    call: Call
    arguments: Bound
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Exit:
    """A call has run; `value` is what it returned. `error` is set where it raised and the model goes on."""

    call: Call
    value: Any
    error: BaseException | None = None


@dataclass(slots=True)
class End:
    """The model has run; `error` is what it raised, `module` the innermost module that was running then."""

    value: Any = None
    error: BaseException | None = None
    module: str = ""


@dataclass(slots=True)
class Pause:
    """The side was stopped between two events, by a debugger that steps through its code."""


@dataclass(slots=True)
class Replacement:
    """What a side goes on with in place of its own: (args, kwargs) at an entry, the returned value at an exit."""

    value: Any


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a side's code: the file, the line, and the function that stands there."""

    file: str
    line: int
    function: str


Event = Enter | Exit | End
