"""One model run by itself: without hooks, with them, and in lockstep with itself on other random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qtrace.engine.comparison import Comparison
from qtrace.engine.driver import Lockstep
from qtrace.engine.events import End
from qtrace.engine.forcing import IN, Forcing
from qtrace.engine.live_side import LiveSide
from qtrace.engine.model import Model
from qtrace.engine.modelstate import buffers_kept
from qtrace.engine.onepass import copied
from qtrace.engine.torch_state import RandomState


@dataclass(frozen=True, slots=True)
class Ran:
    """What a model returned, and whether it drew random numbers; `error` is what it raised instead."""

    value: Any = None
    drew_random: bool = False
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Solo:
    """Runs one model, each time on a copy of the same inputs and from the random state `random`,
    which is that of `devices`.

    No run leaves a trace in the model's buffers or a hook on it; the random state is left wherever the run took it.
    """

    model: Model
    sample: Any
    call: str
    random: RandomState
    devices: tuple[str, ...] = ("cpu",)

    def bare(self) -> Ran:
        """Run without hooks."""
        function = self._function()
        self.random.restore()
        with buffers_kept([self.model]):
            try:
                value = function()
            except Exception as error:
                return Ran(error=error)
        return Ran(value, not self.random.equals(RandomState(self.devices)))

    def hooked(self) -> Ran:
        """Run with the hooks that a pass has, standing still at each call, and nobody beside it."""
        side = self._side(self.random)
        with buffers_kept([self.model]):
            try:
                event = side.start(self._function())
                while not isinstance(event, End):
                    event = side.step()
            finally:
                side.close()
        if isinstance(event.error, Exception):
            return Ran(error=event.error)
        if event.error is not None:
            raise event.error
        return Ran(event.value)

    def varying(self) -> dict[str, float | None]:
        """Return the innermost modules whose output changes with the random numbers, with the PEIR of the change.

        The model runs beside itself, on two streams of random numbers; the second run is handed the first one's
        tensors at every boundary, so that each module shows on its own whether it varies. The PEIR is None where
        there is none, as between NaN and a number.
        """
        everything = self.model.modules.keys()
        comparison = Comparison(forcing=Forcing(entries=everything, exits=everything))
        lockstep = Lockstep(self._side(self.random), self._side(self._other_random()), comparison, reference_first=True)
        with buffers_kept([self.model]):
            lockstep.run(self._function(), self._function())
        for end in lockstep.ends:
            if end.error is not None and not isinstance(end.error, Exception):
                raise end.error
        found = _innermost(comparison)
        comparison.release()
        return found

    def _side(self, stream: RandomState) -> LiveSide:
        keys = {path: path for path in self.model.modules}
        model = self.model
        return LiveSide(model.modules, keys, devices=self.devices, random=stream, rewriting=model.rewriting)

    def _function(self) -> Callable[[], Any]:
        return self.model.entry(self.call, copied(self.sample))

    def _other_random(self) -> RandomState:
        """Return where another stream begins, the same one every time."""
        self.random.restore()
        seed = int(torch.randint(1 << 32, ()))
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return RandomState(self.devices)


def _innermost(comparison: Comparison) -> dict[str, float | None]:
    """Return the modules that differ on clean arguments, without those around another one that does."""
    found: dict[str, float | None] = {}
    around: set[int] = set()
    # A call is met before those inside it.
    for met in reversed(comparison.met):
        if id(met) in around:
            around.add(id(met.parent))
            continue
        clean = all(IN + name in met.forced or comparison.agrees(p, met.call.entry) for name, p in met.arguments)
        changed = [pair for _, pair in met.outputs if not comparison.agrees(pair, met.call.order)]
        if clean and changed:
            around.add(id(met.parent))
            sizes = [pair.statistics().peir for pair in changed]
            found[met.call.path] = max((size for size in sizes if size is not None), default=None)
    return dict(reversed(found.items()))
