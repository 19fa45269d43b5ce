"""Runs a container again by itself, on what it was handed in a pass of the whole models."""

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

# What is held for replays, in bytes. A container that was handed more is looked into by a pass of the whole models.
_MOST_HELD = 64 * 2**20


@dataclass(slots=True)
class Replays:
    """Keeps what the containers `wanted` are handed while a pass runs, and runs these again alone.

    A container that is called more than once, that is handed modules or too much, or that the sides did not enter
    at the same time cannot be replayed.
    """

    runner: Runner
    wanted: Collection[str]
    _kept: dict[str, Kept] = field(default_factory=dict)
    _calls: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    _held: int = 0
    _forcing: Forcing = field(default_factory=Forcing)

    def during(self, forcing: Forcing) -> Pass:
        """Run a pass of the whole models, and keep what is wanted."""
        self._kept.clear()
        self._held = 0
        self._forcing = forcing
        done = self.runner.run(forcing, around=lambda comparison: _Keeping(comparison, self))
        self._calls = done.calls(REFERENCE), done.calls(CANDIDATE)
        for path in [path for path, kept in self._kept.items() if not self._is_whole(kept)]:
            del self._kept[path]
        return done

    def covering(self, paths: Collection[str]) -> set[str]:
        """Return the kept containers in which all these paths lie; none where one of them lies in none of these."""
        found = {path: next((kept for kept in self._kept if is_inside(path, [kept])), None) for path in paths}
        return {kept for kept in found.values() if kept is not None} if None not in found.values() else set()

    def run(self, path: str, forcing: Forcing) -> Pass | None:
        """Run a kept container alone, under the given forcing; None where it does not do what it did.

        What depends on more than its arguments (a position that the model keeps, a random number, autocast around
        the call) shows in what is returned, or in who is called. On the candidate's side it shows only where the same
        is handed over as in the pass of the whole models, so that is run first, once.
        """
        kept = self._kept[path]
        if not kept.is_proven:
            kept.is_proven = all(self._alone(kept, self._forcing)[1])
            if not kept.is_proven:
                return None
        done, does_the_same = self._alone(kept, forcing)
        return done if does_the_same[REFERENCE] else None

    def _alone(self, kept: Kept, forcing: Forcing) -> tuple[Pass, tuple[bool, bool]]:
        """Run it; say also of each side whether it returned the same bits, after the same calls, as before."""
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
        """Keep what a container is about to be handed, if it is wanted and can be kept."""
        if path in self._kept or path not in self.wanted:
            return
        given = Sample(reference.args, dict(reference.kwargs)), Sample(candidate.args, dict(candidate.kwargs))
        sizes = {id(t): t.numel() * t.element_size() for side in given for _, t in tensors((side.args, side.kwargs))}
        if self._held + sum(sizes.values()) > _MOST_HELD:
            return
        try:
            samples = _held_apart(given[0]), _held_apart(given[1])
        except Exception:
            # Not everything that a model hands around can be copied.
            return
        self._held += sum(sizes.values())
        paths = reference.call.path, candidate.call.path
        self._kept[path] = Kept(paths, samples)

    def returned(self, path: str, reference: Any, candidate: Any) -> None:
        """Note what both sides returned from a kept container."""
        kept = self._kept.get(path)
        if kept is not None:
            kept.returned = Fingerprint(reference), Fingerprint(candidate)

    def _is_whole(self, kept: Kept) -> bool:
        once = all(calls[path] == 1 for calls, path in zip(self._calls, kept.paths, strict=True))
        return once and kept.returned is not None


class _Keeping(MeetingProxy):
    """Keeps what goes into the wanted containers, before anything of it is handed over or written to."""

    def __init__(self, comparison: Comparison, replays: Replays) -> None:
        super().__init__(comparison)
        self._replays = replays

    def entered(self, reference: Enter, candidate: Enter) -> Replacement | None:
        # Of a call that one side came to earlier, no arguments as they were given are left.
        if reference.call.key is not None and _is_as_given(reference) and _is_as_given(candidate):
            self._replays.keep(reference.call.key, reference, candidate)
        return super().entered(reference, candidate)

    def left(self, reference: Exit, candidate: Exit) -> Replacement | None:
        if reference.error is None and reference.call.key is not None:
            self._replays.returned(reference.call.key, reference.value, candidate.value)
        return super().left(reference, candidate)


class _Returned(MeetingProxy):
    """Takes the fingerprints of what both sides returned from one container."""

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
