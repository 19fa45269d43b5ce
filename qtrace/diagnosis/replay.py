"""Runs a container again by itself, on the arguments that it received in a pass of the whole models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch

from qtrace.diagnosis.runner import Kept, Runner
from qtrace.engine.comparison import Comparison
from qtrace.engine.events import Enter, Exit, Replacement
from qtrace.engine.forcing import Forcing
from qtrace.engine.lockstep import CANDIDATE, REFERENCE, MeetingProxy
from qtrace.engine.lockstep_pass import Fingerprint, Pass, copied
from qtrace.engine.samples import Sample
from qtrace.tree import tensors

# The most bytes held for replays. A container that received more is examined by a pass of the whole models.
_MOST_HELD = 64 * 2**20


@dataclass(slots=True)
class Replays:
    """Keeps the arguments of the containers `wanted` while a pass runs, and runs these containers again by themselves.

    A container cannot be replayed if it is called more than once, receives modules or too many bytes, or if the sides
    did not enter it at the same time.
    """

    runner: Runner
    wanted: Collection[str]
    _kept: dict[str, Kept] = field(default_factory=dict)
    _calls: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    _held: int = 0
    _forcing: Forcing = field(default_factory=Forcing)

    def during(self, forcing: Forcing) -> Pass:
        """Run a pass of the whole models, and keep the arguments of the wanted containers."""
        self._kept.clear()
        self._held = 0
        self._forcing = forcing
        done = self.runner.run(forcing, around=lambda comparison: _Keeping(comparison, self))
        self._calls = done.calls(REFERENCE), done.calls(CANDIDATE)
        for path in [path for path, kept in self._kept.items() if not self._is_whole(kept)]:
            del self._kept[path]
        return done

    def covering(self, paths: Collection[str]) -> set[str]:
        """Return the kept containers around these paths; none if a path lies in no kept container."""
        found = {path: next((kept for kept in self._kept if is_inside(path, [kept])), None) for path in paths}
        return {kept for kept in found.values() if kept is not None} if None not in found.values() else set()

    def run(self, path: str, forcing: Forcing) -> Pass | None:
        """Run a kept container by itself, under the given forcing; None where it does not do the same as before.

        A container may depend on more than its arguments: a position that the model keeps, a random number, autocast
        around the call. That shows in its output, or in the modules that it calls. On the candidate's side it shows
        only under the forcing of the pass of the whole models, so the container is first run once under that forcing.
        """
        kept = self._kept[path]
        if not kept.is_proven:
            kept.is_proven = all(self._alone(kept, self._forcing)[1])
            if not kept.is_proven:
                return None
        done, does_the_same = self._alone(kept, forcing)
        return done if does_the_same[REFERENCE] else None

    def _alone(self, kept: Kept, forcing: Forcing) -> tuple[Pass, tuple[bool, bool]]:
        """Run the container; return also for each side whether it made the same calls and returned the same bits."""
        returned: list[tuple[Fingerprint, Fingerprint]] = []
        done = self.runner.run(
            forcing, around=lambda comparison: _Returned(comparison, kept.paths[REFERENCE], returned), only=kept
        )
        if done.raised() or len(returned) != 1 or kept.returned is None:
            return done, (False, False)
        same = [
            returned[0][side] == kept.returned[side] and done.calls(side) == self._inside(side, kept)
            for side in (REFERENCE, CANDIDATE)
        ]
        return done, (same[REFERENCE], same[CANDIDATE])

    def _inside(self, side: int, kept: Kept) -> Counter[str]:
        calls = self._calls[side]
        return Counter({path: times for path, times in calls.items() if is_inside(path, [kept.paths[side]])})

    def keep(self, path: str, reference: Enter, candidate: Enter) -> None:
        """Keep the arguments of a container at its entry, if they are wanted and can be kept."""
        if path in self._kept or path not in self.wanted:
            return
        given = Sample(reference.args, dict(reference.kwargs)), Sample(candidate.args, dict(candidate.kwargs))
        sizes = {id(t): t.numel() * t.element_size() for side in given for _, t in tensors((side.args, side.kwargs))}
        if self._held + sum(sizes.values()) > _MOST_HELD:
            return
        try:
            samples = _held_apart(given[0]), _held_apart(given[1])
        except Exception:
            # Not every object that a model passes can be copied.
            return
        self._held += sum(sizes.values())
        paths = reference.call.path, candidate.call.path
        self._kept[path] = Kept(paths, samples)

    def returned(self, path: str, reference: Any, candidate: Any) -> None:
        """Note the outputs of both sides of a kept container."""
        kept = self._kept.get(path)
        if kept is not None:
            kept.returned = Fingerprint(reference), Fingerprint(candidate)

    def _is_whole(self, kept: Kept) -> bool:
        once = all(calls[path] == 1 for calls, path in zip(self._calls, kept.paths, strict=True))
        return once and kept.returned is not None


class _Keeping(MeetingProxy):
    """Keeps the arguments of the wanted containers, before any of them is forced or written to."""

    def __init__(self, comparison: Comparison, replays: Replays) -> None:
        super().__init__(comparison)
        self._replays = replays

    def entered(self, reference: Enter, candidate: Enter) -> Replacement | None:
        # If one side entered the call earlier, its original arguments are gone.
        if reference.call.key is not None and _is_as_given(reference) and _is_as_given(candidate):
            self._replays.keep(reference.call.key, reference, candidate)
        return super().entered(reference, candidate)

    def left(self, reference: Exit, candidate: Exit) -> Replacement | None:
        if reference.error is None and reference.call.key is not None:
            self._replays.returned(reference.call.key, reference.value, candidate.value)
        return super().left(reference, candidate)


class _Returned(MeetingProxy):
    """Takes the fingerprints of both sides' outputs of one container."""

    def __init__(self, comparison: Comparison, path: str, returned: list[tuple[Fingerprint, Fingerprint]]) -> None:
        super().__init__(comparison)
        self._path = path
        self._returned = returned

    def left(self, reference: Exit, candidate: Exit) -> Replacement | None:
        if reference.error is None and reference.call.key == self._path:
            self._returned.append((Fingerprint(reference.value), Fingerprint(candidate.value)))
        return super().left(reference, candidate)


def is_inside(path: str, containers: Collection[str]) -> bool:
    """Return whether a path is one of these containers', or lies below one."""
    return any(f"{path}.".startswith(f"{container}.") for container in containers)


def _is_as_given(event: Enter) -> bool:
    return bool(event.args or event.kwargs)


def _held_apart(given: Sample) -> Sample:
    if any(isinstance(value, torch.nn.Module) for value in (*given.args, *given.kwargs.values())):
        raise ValueError("a module among the arguments would be copied with all that is in it")
    held: Sample = copied(given)
    return held
