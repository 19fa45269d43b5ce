"""Runs a live model as a stream of events.

The model runs in a coroutine of its own (a greenlet), which is suspended at every entry and exit of a module that
has a partner on the other side. Nothing is copied: at that moment the arguments or outputs are in memory.
At modules without a partner it is not suspended; their calls are only counted.

Not every call can be suspended: a call in another thread, or inside `torch.vmap`, runs through and is counted with
the reason.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet

from qtrace.engine.events import Bound, Call, End, Enter, Event, Exit, Pause, Replacement, Signature, Site, signature_of
from qtrace.engine.hooks import Hooks
from qtrace.engine.torch_state import RandomState, SideState

# Torch's own modules that always return a new tensor.
_FRESH = frozenset(
    {torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.LayerNorm}
)
# Frames in these folders are not the model's own code.
_FOREIGN = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]) + os.sep)

T = TypeVar("T")


class Listener(Protocol):
    """Receives every call of every module of one side, with or without a partner, on that side's own stack."""

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """A call is about to run."""

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """A call has run and returned `value`; not called where it raised."""


class Stepper(Protocol):
    """Steps a side in the driver's place, and may stop it between two events."""

    def step(self, reply: Replacement | None) -> Event:
        """Go on to the next event, as `LiveSide.step` does, by means of `LiveSide.resume`."""


@dataclass(slots=True)
class _Errand:
    """A function to run on a side's own stack: for `asker`, which gets the result, or before going on with `then`."""

    function: Callable[[], Any]
    asker: Any = None
    then: Replacement | None = None


@dataclass(slots=True)
class _Done:
    """The value that an errand has returned, or the exception that it raised."""

    value: Any = None
    error: BaseException | None = None


class _Frame:
    """An open call on the side's stack; `stands` says whether its entry and exit are events."""

    __slots__ = ("call", "error_before", "key", "module", "stands")

    def __init__(self, module: torch.nn.Module, key: str | None, call: Call, stands: bool) -> None:
        self.module = module
        self.key = key
        self.call = call
        self.stands = stands
        self.error_before = sys.exc_info()[1]


class LiveSide:
    """One live model that yields events.

    `modules` are the model's modules by path. `keys` maps the paths of modules to the reference paths that they are
    aligned with; other modules yield no events. `calls` counts the calls by path, `unseen` counts those that could not
    be suspended by (path, reason), and `silent` lists the modules that accept no hooks. `passed` is called with every
    call of a module without a partner, and its output. A `sparse` side hooks only the modules of `keys`, and counts no
    others. `stepper`, if set, steps the side. `rewriting` says what is known of the model's own hooks, see
    `qtrace.engine.hooks`.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        keys: Mapping[str, str],
        *,
        devices: tuple[str, ...] = ("cpu",),
        random: RandomState | None = None,
        listener: Listener | None = None,
        passed: Callable[[Call, Any], None] | None = None,
        sparse: bool = False,
        rewriting: dict[str, bool] | None = None,
    ) -> None:
        self._modules = {path: modules[path] for path in keys} if sparse else modules
        self.calls: Counter[str] = Counter()
        self.unseen: Counter[tuple[str, str]] = Counter()
        self.silent: list[str] = []
        self.stepper: Stepper | None = None
        self._keys = keys
        self._devices = devices
        self._random = random
        self._listener = listener
        self._passed = passed
        self._left = 0
        self._hooks = Hooks({} if rewriting is None else rewriting)
        self._places: dict[torch.nn.Module, tuple[str, str | None, Signature]] = {}
        self._stack: list[_Frame] = []
        # The hooks do nothing while this is set: once the side was closed, and while other code runs on its stack.
        self._is_off = False
        self._failed: tuple[BaseException, str] | None = None
        self._state: SideState
        self._runner: greenlet
        self._driver: greenlet

    def drew_from(self, random: RandomState) -> bool:
        """Return whether a side with random generators of its own has moved them from where they began."""
        return self._state.drew_from(random)

    def start(self, function: Callable[[], Any]) -> Event:
        """Register the hooks, run `function` (which runs the model) up to the first event, and return that event."""
        self._register()
        self._driver = getcurrent()
        self._state = SideState(self._devices, random=self._random)
        self._runner = greenlet(lambda _: self._run(function), parent=self._driver)
        # A new greenlet has an empty context; the model expects the caller's.
        self._runner.gr_context = copy_context()
        return self._step()

    def step(self, reply: Replacement | None = None) -> Event:
        """Go on to the next event and return it; with a reply the model uses that value in place of its own."""
        return self._step(reply)

    def site(self) -> Site | None:
        """Return where the model's own code made the current call: the innermost frame outside torch.

        A frame of the called module itself, or of a wrapper that only passes the call on, is skipped.
        """
        frame = self.caller(self._stack[-1].key) if self._stack else self.caller()
        return None if frame is None else Site(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)

    def caller(self, key: str | None = None) -> FrameType | None:
        """Return the innermost frame of the model's own code where the side is suspended; None where there is none.

        A frame of a module that is aligned with `key`, or has no partner, is skipped where there is another frame.
        """
        own: FrameType | None = None
        frame: FrameType | None = self._runner.gr_frame
        while frame is not None:
            if is_own_code(frame):
                if key is None or not self._hands_on(frame.f_locals.get("self"), key):
                    return frame
                own = own or frame
            frame = frame.f_back
        return own

    def _hands_on(self, owner: Any, key: str) -> bool:
        """Return whether `owner` is a module that is itself aligned with `key`, or has no partner."""
        place = self._places.get(owner) if isinstance(owner, torch.nn.Module) else None
        return place is not None and place[1] in (None, key)

    # For a debugger, which steps a side through its own code and talks to the user on that side's stack.

    @property
    def is_under_way(self) -> bool:
        """Return whether the model has begun to run, and has not ended."""
        return bool(getattr(self, "_runner", None))

    def resume(self, reply: Replacement | None = None, *, before: Callable[[], None] | None = None) -> Event | Pause:
        """Go on to the next event or pause and return it; `before` is run first, on the side's own stack."""
        event = self._runner.switch(reply if before is None else _Errand(before, then=reply))
        assert isinstance(event, (Enter, Exit, End, Pause)), event
        return event

    def pause(self) -> None:
        """Let the driver run until it resumes the side; must be called on the side's own stack, between two events."""
        self._stand_still(Pause())

    def aside(self, function: Callable[[], T]) -> T:
        """Run `function` on top of the side's stack, in the side's torch state, and return its result.

        The side must be under way and suspended. Modules that `function` calls are not compared. Its exceptions are
        raised here. This may be called from the driver, or from a function that runs aside on the other side.
        """
        done: _Done = self._runner.switch(_Errand(function, asker=getcurrent()))
        if done.error is not None:
            raise done.error
        value: T = done.value
        return value

    def _replied(self, reply: Any) -> Any:
        """Run errands until there is a reply, and return the value that the hook returns."""
        while isinstance(reply, _Errand):
            if reply.asker is None:
                reply.function()
                reply = reply.then
            else:
                reply = self._ran(reply)
        return reply.value if isinstance(reply, Replacement) else None

    def _ran(self, errand: _Errand) -> Any:
        """Run one errand, pass its result to the asker, and return the next reply or errand."""
        done, self._is_off = _Done(), True
        try:
            done.value = errand.function()
        except BaseException as error:
            done.error = error
        finally:
            self._is_off = False
        self._state.suspend()
        try:
            return errand.asker.switch(done)
        finally:
            self._state.resume()

    def close(self) -> None:
        """Remove the hooks and end the model's run, wherever it is; may be called at any time, more than once."""
        self._is_off = True
        self._hooks.remove()
        runner = getattr(self, "_runner", None)
        # A bare `except:` in a model swallows the exit and the forward goes on, without hooks now, to its end.
        while runner is not None and runner and not runner.dead:
            runner.throw(GreenletExit)

    def _step(self, reply: Replacement | None = None) -> Event:
        if self.stepper is not None:
            return self.stepper.step(reply)
        # Always one value: a bare switch() passes an empty tuple, which a pre-hook would return as "no arguments".
        event = self._runner.switch(reply)
        assert isinstance(event, (Enter, Exit, End)), event
        return event

    def _run(self, function: Callable[[], Any]) -> Event:
        self._state.begin()
        try:
            event = End(value=function())
        except GreenletExit:
            event = End()
        except BaseException as error:
            event = End(error=error, module=self._failing_module(error))
        self._state.suspend()
        return event

    def _failing_module(self, error: BaseException) -> str:
        if self._failed is not None and self._failed[0] is error:
            return self._failed[1]
        return self._stack[-1].call.path if self._stack else ""

    def _register(self) -> None:
        inner = self._inner_modules()
        for path, module in self._modules.items():
            signature = signature_of(module, inner.get(path, ()))
            self._places[module] = (path, self._keys.get(path), signature)
            try:
                self._hooks.add(path, module, self._enter, self._leave)
            except RuntimeError:
                # A scripted module accepts no such hooks.
                self.silent.append(path)

    def _inner_modules(self) -> dict[str, list[torch.nn.Module]]:
        """Return, for each module, the modules nested in it that are aligned with the same reference path."""
        by_key: dict[str, list[tuple[str, torch.nn.Module]]] = {}
        for path, module in self._modules.items():
            key = self._keys.get(path)
            if key is not None:
                by_key.setdefault(key, []).append((path, module))
        return {
            path: [m for other, m in group if other != path and other.startswith(f"{path}." if path else "")]
            for group in by_key.values()
            if len(group) > 1
            for path, _ in group
        }

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path, key, signature = self._places[module]
        if self._is_off or not self._is_own_call(path):
            return None
        stands = key is not None and not self._is_inner(module, key) and not self._in_vmap(path)
        call = self._call(path, key, module)
        # Until the listener has returned, the driver knows nothing of the call, and must not be told that it ended.
        frame = _Frame(module, key, call, stands=False)
        self._stack.append(frame)
        if self._listener is not None:
            self._listener.enter(call, module, signature.bind(args, kwargs))
        frame.stands = stands
        if stands:
            return self._stand_still(Enter(call, signature.bind(args, kwargs), args, kwargs))
        return None

    def _leave(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        if self._is_off or getcurrent() is not self._runner:
            return None
        frame = self._pop(module)
        if frame is None:
            return None
        frame.call.order = self._left
        self._left += 1
        # An exit hook that always runs sees None both for "returned None" and for "raised".
        error = sys.exc_info()[1] if value is None else None
        if error is frame.error_before:
            error = None
        if error is None:
            self._hooks.learn(frame.call.path, module, value)
        if error is not None and (self._failed is None or self._failed[0] is not error):
            self._failed = (error, frame.call.path)
        if self._listener is not None and error is None:
            self._listener.leave(frame.call, module, value)
        if frame.key is None and self._passed is not None:
            self._passed(frame.call, value)
        if frame.stands:
            return self._stand_still(Exit(frame.call, value, error))
        return None

    def _call(self, path: str, key: str | None, module: torch.nn.Module) -> Call:
        index = self.calls[path]
        self.calls[path] = index + 1
        caller = self._stack[-1].call.path if self._stack else ""
        return Call(
            path,
            key,
            type(module).__name__,
            index,
            caller,
            entry=self._left,
            fresh=_is_fresh(module),
            has_data=bool(module._parameters or module._buffers),
        )

    def _is_inner(self, module: torch.nn.Module, key: str) -> bool:
        """Return whether the call runs inside a call of another module that is aligned with the same reference path."""
        for frame in reversed(self._stack):
            if frame.key is not None:
                return frame.key == key and frame.module is not module
        return False

    def _is_own_call(self, path: str) -> bool:
        """Return whether the running call is this side's; count a call that was made in another thread."""
        current = getcurrent()
        if current is self._runner:
            return True
        # A module that both sides share fires both sides' hooks: the other side's own hook handles that call.
        if current.parent is not self._driver:
            self.unseen[path, "in_thread"] += 1
        return False

    def _in_vmap(self, path: str) -> bool:
        """Return whether the call runs under a function transform, where tensors have no values; count it if so."""
        if torch._C._functorch.peek_interpreter_stack() is None:
            return False
        self.unseen[path, "in_vmap"] += 1
        return True

    def _pop(self, module: torch.nn.Module) -> _Frame | None:
        """Remove the module's open call from the stack, with all calls that were left open inside it."""
        for depth in range(len(self._stack) - 1, -1, -1):
            if self._stack[depth].module is module:
                frame = self._stack[depth]
                del self._stack[depth:]
                return frame
        return None

    def _stand_still(self, event: Event | Pause) -> Any:
        """Let the driver run until it switches back; return the value that the hook returns, None for no change."""
        self._state.suspend()
        try:
            reply = self._driver.switch(event)
        finally:
            self._state.resume()
        return None if reply is None else self._replied(reply)


def is_own_code(frame: FrameType) -> bool:
    """Return whether a frame is of the model's own code, and not of torch or of qtrace."""
    return not frame.f_code.co_filename.startswith(_FOREIGN)


def is_in_hook(frame: FrameType | None) -> bool:
    """Return whether a frame runs on behalf of a hook of qtrace, and not of the model."""
    while frame is not None:
        if frame.f_code in _HOOKS:
            return True
        frame = frame.f_back
    return False


_HOOKS = (LiveSide._enter.__code__, LiveSide._leave.__code__)


def _is_fresh(module: torch.nn.Module) -> bool:
    """Return whether a module runs torch's own forward, and only this side's hook sees its output."""
    kind = type(module)
    own = kind in _FRESH and "forward" not in vars(module) and kind.forward.__module__.startswith("torch.nn.modules.")
    return own and len(module._forward_hooks) == 1
