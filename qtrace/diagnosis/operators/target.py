"""Runs both models up to one call of one module, records that call, and verifies it by value in a second run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from qtrace.diagnosis.operators.graph import Recording, place
from qtrace.diagnosis.operators.recorder import Recorder
from qtrace.engine.comparison import Comparison
from qtrace.engine.hooks import run_with_probe
from qtrace.engine.lockstep import CANDIDATE, REFERENCE
from qtrace.engine.lockstep_pass import copied
from qtrace.engine.model import Model, buffers_kept, devices_of
from qtrace.engine.pair import Pair, PairComparer
from qtrace.engine.plan import Plan
from qtrace.engine.torch_state import RandomState
from qtrace.errors import ForwardError, QtraceError, UsageError, did_you_mean, first_line
from qtrace.numerics.tolerance import Floors
from qtrace.patterns import ROOT
from qtrace.tree import join

NAMES = ("reference", "candidate")


@dataclass
class Target:
    """The module `path` (a reference path) on both sides, in the run of the two models on one sample.

    Each side's model runs by itself, on a copy of the sample and from the same random state, and leaves no trace: no
    hook, no written buffer.
    """

    models: tuple[Model, Model]
    plan: Plan
    sample: Any
    path: str
    call: str = "forward"
    _random: RandomState = field(init=False)

    def __post_init__(self) -> None:
        self._random = RandomState(devices_of(self.models))

    @cached_property
    def answering(self) -> list[str]:
        """The candidate's paths that are aligned with the module, a wrapper before the modules inside it."""
        return [path for path, key in self.plan.candidate_keys.items() if key == self.path]

    def standing(self, side: int) -> list[torch.nn.Module]:
        """Return a side's modules for the reference path, the outermost first."""
        paths = [self.path] if side == REFERENCE else self.answering
        return [self.models[side].modules[path] for path in paths]

    def recorded(
        self,
        side: int,
        path: str,
        index: int,
        keeps: Collection[int] = (),
        *,
        most: int | None = None,
    ) -> tuple[Recorder, int]:
        """Run a side's model; return the recorder of one call of the module at `path`, and the number of its calls.

        See `Recorder` for `keeps` and `most`.

        Raises `ForwardError` where the model raises.
        """
        model = self.models[side]
        recorder = Recorder(self.standing(side), self._names(side), keeps, most)
        run = model.entry(self.call, copied(self.sample))
        self._random.restore()
        inner = [one for one in self.standing(side) if one is not model.modules[path]]
        try:
            with buffers_kept([model]), _eagerly(model):
                calls = run_with_probe(model.modules[path], index, recorder, run, inner=inner)
        except QtraceError:
            raise
        except Exception as error:
            said = f"the {model.name} raised {type(error).__name__}: {first_line(error)}"
            raise ForwardError(said, side=model.name, module="") from error
        finally:
            self._random.restore()
        return recorder, calls

    def first(self, index: int, *, most: int | None = None) -> tuple[str, tuple[Recorder, Recorder], tuple[int, int]]:
        """Record the call on both sides; return the candidate's path, the recorders, and how many calls each side made.

        `most` is as for `recorded`.

        Raises `UsageError` if the module was not called (so often), or none of its partners was.
        """
        mine, calls = self.recorded(REFERENCE, self.path, index, most=most)
        _check(calls, index, self.path, f"the reference's {self.path or ROOT}")
        found: dict[str, int] = {}
        for path in self.answering:
            theirs, found[path] = self.recorded(CANDIDATE, path, index, most=most)
            if found[path]:
                _check(found[path], index, self.path, f"the candidate's {path or ROOT}")
                return path, (mine, theirs), (calls, found[path])
        _check(0, index, self.path, f"the candidate's {' or '.join(found) or self.path or ROOT}")
        raise AssertionError

    def _names(self, side: int) -> Mapping[Any, str]:
        named: dict[Any, str] = {}
        for path, module in self.models[side].modules.items():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        named.setdefault(place(tensor), join(path, name))
        return named


@contextlib.contextmanager
def _eagerly(model: Model) -> Iterator[None]:
    """Run without gradients, and compiled code eagerly, as a comparison of whole models does."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if model.is_compiled() or "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def target(models: tuple[Model, Model], plan: Plan, sample: Any, module: str, call: str = "forward") -> Target:
    """Return the target for a reference path as a user writes it.

    Raises `UsageError` for a path that is no module's, or that no module of the candidate is aligned with.
    """
    path = "" if module == ROOT else module
    path = models[REFERENCE].aliases.get(path, path)
    if path not in models[REFERENCE].modules:
        hint = did_you_mean(module, models[REFERENCE].modules)
        raise UsageError(f"--module {module}: the reference has no module of this path; {hint}")
    found = Target(models, plan, sample, path, call)
    if not found.answering:
        raise UsageError(
            f"--module {module}: no module of the candidate answers to it; `qtrace modules` shows which answer to which"
        )
    return found


def _check(calls: int, index: int, module: str, who: str) -> None:
    if calls == 0:
        raise UsageError(
            f"--module {module or ROOT}: {who} is never called on these inputs; "
            "`qtrace modules` lists what is, choose one of those"
        )
    if index >= calls:
        times = "once" if calls == 1 else f"{calls} times"
        raise UsageError(
            f"--call-index {index}: {who} is called {times}, and calls count from 0; give at most {calls - 1}"
        )


# (reference value, candidate value)
ValuePair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Kept:
    """The tensors of the operators around a split, by side and value."""

    tensors: tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]
    floors: Floors
    depth: int

    def compared(self, values: ValuePair, cut: tuple[int, int] | None) -> Pair | None:
        """Return the comparison of two values; `cut` is the axis and the index of the larger value's slice.

        Return None if a value was not kept, or if the shapes do not fit.
        """
        mine, theirs = (self.tensors[side].get(values[side]) for side in (REFERENCE, CANDIDATE))
        if mine is None or theirs is None:
            return None
        if cut is not None:
            mine, theirs = (_cut(one, other, cut) for one, other in ((mine, theirs), (theirs, mine)))
        comparer = PairComparer()
        pair = comparer.compare(mine, theirs)
        if pair is None or pair.measurement is None:
            return None
        comparer.explain(pair, mine, theirs, self.floors.of(pair.dtypes, self.depth))
        return pair

    def agree(self, pair: Pair) -> bool:
        """Return whether a pair agrees, up to a convention of the candidate's."""
        if Comparison(floors=self.floors).agrees(pair, self.depth):
            return True
        left = pair.peir_related()
        return left is not None and left <= self.floors.of(pair.dtypes, self.depth)


def keep(
    found: Target,
    path: str,
    index: int,
    recordings: tuple[Recording, Recording],
    values: tuple[set[int], set[int]],
    floors: Floors,
    depth: int,
) -> Kept | None:
    """Return the tensors of the operators that made these values; runs both sides again, up to the end of the call.

    Return None if a side does not run the same operators again.
    """
    kept = []
    for side, at in ((REFERENCE, found.path), (CANDIDATE, path)):
        before = recordings[side]
        operators = {before.values[value].operator for value in values[side]}
        recorder, _ = found.recorded(side, at, index, operators)
        again = recorder.recording
        if again is None or [one.name for one in again.operators] != [one.name for one in before.operators]:
            return None
        kept.append(recorder.kept)
    return Kept((kept[REFERENCE], kept[CANDIDATE]), floors, depth)


def _cut(whole: torch.Tensor, part: torch.Tensor, cut: tuple[int, int]) -> torch.Tensor:
    axis, index = cut
    if whole.dim() > axis and whole.shape[axis] > index and whole.numel() == part.numel() * whole.shape[axis]:
        return whole.select(axis, index)
    return whole
