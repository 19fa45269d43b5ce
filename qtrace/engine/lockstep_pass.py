"""Runs one lockstep pass of a pair of models over one sample of inputs, and holds its results."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from qtrace.engine.comparison import Comparison
from qtrace.engine.events import Call, End
from qtrace.engine.forcing import Forcing
from qtrace.engine.live_side import Listener, LiveSide
from qtrace.engine.lockstep import REFERENCE, Lockstep, Meeting
from qtrace.engine.model import Model, buffers_kept, devices_of
from qtrace.engine.pair import PairComparer
from qtrace.engine.plan import Plan
from qtrace.engine.samples import hidden_positions, map_tensors
from qtrace.engine.torch_state import RandomState
from qtrace.errors import UsageError
from qtrace.numerics import NoValues, plain
from qtrace.numerics.tolerance import Floors
from qtrace.report.records import Verdict
from qtrace.tree import PLAIN, leaves

# Below this share of compared calls a run says nothing about the model.
LEAST_COVERAGE = 0.5
_PARTS = 256
_WORD = 8


class Fingerprint:
    """The bits of a nested value in some 260 integers per tensor; equal values have equal fingerprints.

    Each tensor is read once, as integers of 64 bits, and summed in 256 stretches modulo 2^64. Different values give
    different sums, except with a chance of about 2^-64, or where the same words only change places within one stretch.
    On an accelerator the sums stay there until two fingerprints are compared.
    """

    def __init__(self, value: Any) -> None:
        self._plain: dict[str, object] = {}
        self._sums: dict[str, torch.Tensor] = {}
        for path, leaf in leaves(value):
            if isinstance(leaf, torch.Tensor):
                self._plain[path] = (tuple(leaf.shape), leaf.dtype) if not leaf.is_nested else leaf.dtype
                try:
                    self._sums[path] = _sums(plain(leaf))
                except NoValues:
                    continue
            elif isinstance(leaf, PLAIN):
                # As text, so that NaN equals itself.
                self._plain[path] = repr(leaf)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint):
            return NotImplemented
        if self._plain != other._plain or self._sums.keys() != other._sums.keys():
            return False
        return all(torch.equal(sums, other._sums[path]) for path, sums in self._sums.items())

    __hash__ = None  # type: ignore[assignment]


def _sums(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sums of a tensor's bits, in memory order."""
    # A transposed tensor need not be copied: its axes are read in memory order.
    strides = tensor.stride()
    axes = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    data = tensor.permute(axes).contiguous().reshape(-1).view(torch.uint8)
    if data.storage_offset() % _WORD:
        data = data.clone()
    whole = len(data) // _WORD * _WORD
    words = data[:whole].view(torch.int64)
    even = len(words) // _PARTS * _PARTS
    rest = torch.stack((words[even:].sum(), data[whole:].sum()))
    return torch.cat((words[:even].view(_PARTS, -1).sum(1), rest)) if even else rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a run; see `qtrace.trace`."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    floors: Floors = field(default_factory=Floors)
    measure_noise: bool = False
    local: bool | None = None
    min_coverage: float = LEAST_COVERAGE
    call: str = "forward"
    sources: tuple[str, str] = ("", "")
    listeners: tuple[Listener | None, Listener | None] = (None, None)
    progress: Callable[[int, int], None] | None = None


class Pass:
    """One run of both models on one sample.

    Its fields hold the results so far, also when it was cut short: `comparison` the rows, `sides` the calls
    that were counted, `ends` how each model ended, and `random` the states of the random generators at the start.
    `fingerprints` are those of the models' outputs, where the final outputs differ in a pass without forcing (in a
    sparse one, the reference's).

    `around` returns the object that receives the pairs of calls in the comparison's place, and passes them on to it.
    `at` are the paths of the modules that are called instead of the whole models; the samples are then their arguments.
    """

    def __init__(
        self,
        models: tuple[Model, Model],
        plan: Plan,
        sample: Any,
        options: Options,
        *,
        candidate_sample: Any = None,
        index: int = 0,
        own_random: bool = True,
        progress: Callable[[], None] | None = None,
        forcing: Forcing | None = None,
        around: Callable[[Comparison], Meeting] | None = None,
        at: tuple[str, str] = ("", ""),
    ) -> None:
        self.comparison = Comparison(
            sample=index,
            selected=plan.chosen.__contains__,
            floors=options.floors,
            progress=progress,
            forcing=forcing,
            is_entry=options.call == "forward" or at[0] != "",
            sites=None if forcing is None else lambda: (self.sides[0].site(), self.sides[1].site()),
            outputs_only=plan.outputs_only,
            comparer=PairComparer(hidden_positions(sample) if at == ("", "") else None),
        )
        self.ends = (End(), End())
        self.drew_random = False
        self.fingerprints: tuple[Fingerprint | None, Fingerprint | None] = (None, None)
        self.own_random = own_random
        self._models = models
        self._samples = (sample, sample if candidate_sample is None else candidate_sample)
        self._call = options.call
        self._at = at
        self._meeting = self.comparison if around is None else around(self.comparison)
        self._is_sparse = plan.sparse
        self._may_be_checked = forcing is None and options.local is not False
        self._devices = devices = devices_of(models)
        self.random = RandomState(devices)
        self.sides = (
            LiveSide(
                models[0].modules,
                plan.reference_keys,
                devices=devices,
                random=self.random if own_random else None,
                listener=options.listeners[0],
                sparse=plan.sparse,
                passed=self.comparison.passed,
                rewriting=models[0].rewriting,
            ),
            LiveSide(
                models[1].modules,
                plan.candidate_keys,
                devices=devices,
                random=self.random if own_random else None,
                listener=options.listeners[1],
                sparse=plan.sparse,
                rewriting=models[1].rewriting,
            ),
        )

    def execute(self) -> None:
        """Run both models to their ends, or until one raises; no hook is left in any case."""
        lockstep = Lockstep(*self.sides, self._meeting, reference_first=self.comparison.forcing is not None)
        # Each side has inputs of its own: a model may write to them.
        given = zip(self._models, self._samples, self._at, strict=True)
        with buffers_kept(self._models):
            lockstep.run(*(model.entry(self._call, copied(sample), at) for model, sample, at in given))
        self.ends = lockstep.ends
        moved = not self.random.equals(RandomState(self._devices))
        self.drew_random = moved or any(side.drew_from(self.random) for side in self.sides)
        if self._call != "forward" and self._at[0] == "" and all(end.error is None for end in self.ends):
            order = sum(self.sides[REFERENCE].calls.values())
            entry = Call("", "", type(self._models[REFERENCE].root).__name__, 0, "", order=order)
            first, second = (end.value for end in self.ends)
            self.comparison.returned(entry, first, second, below=f"{self._call}()")
        if self._is_sparse and self.ends[0].error is None:
            self.fingerprints = (Fingerprint(self.ends[0].value), None)
        elif self._may_be_checked and not all(row.verdict is Verdict.EQUAL for row in self.comparison.final_rows()):
            prints = [None if end.error is not None else Fingerprint(end.value) for end in self.ends]
            self.fingerprints = (prints[0], prints[1])
        # The models' outputs are compared; keeping them would cost the memory that a lockstep run saves.
        self.ends = (replace(self.ends[0], value=None), replace(self.ends[1], value=None))
        self.comparison.release()

    def raised(self) -> bool:
        """Return whether a model raised, so that the pass ended early."""
        return any(end.error is not None for end in self.ends)

    def calls(self, side: int) -> Counter[str]:
        """Return how often each module of a side was called."""
        return self.sides[side].calls

    def unseen(self, side: int) -> Counter[tuple[str, str]]:
        """Return how many calls of a side could not be suspended, by path and reason."""
        return self.sides[side].unseen


def copied(sample: Any) -> Any:
    """Return a copy of the inputs with all tensors copied, also those that result from a computation with gradients.

    A tensor that occurs in several places stays one. Raises `UsageError` for inputs that cannot be copied.
    """
    detached: dict[int, torch.Tensor] = {}
    try:
        return copy.deepcopy(map_tensors(lambda tensor: detached.setdefault(id(tensor), tensor.detach()), sample))
    except Exception as error:
        raise UsageError(f"the inputs cannot be copied for each side ({error}); give plain tensors") from error
