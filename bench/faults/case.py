"""A case of the bench: two models, inputs for both, and what may rightly be said of them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.faults.reasons import USUAL_REASONS
from bench.faults.rewrite import rewrite

KINDS = ("introduces", "miscalls", "non_finite", "structure", "raises")
# The kinds of finding that describe a fault of this kind, where a case says no others.
USUAL_KINDS = {
    "argument": ("miscalls",),
    "call": ("miscalls",),
    "container": ("miscalls", "introduces"),
    "dtype": ("non_finite",),
}
CASES: dict[str, Case] = {}


@dataclass(slots=True)
class Pair:
    """Two models and what both are called with, as `qtrace.trace` takes them.

    `place` is the path of the case's answer, and None where there are several or none. The methods below take it for
    `at` where that is left out.
    """

    reference: Any
    candidate: Any
    inputs: Any
    place: str | None = None

    @property
    def faulty(self) -> Any:
        """The candidate's module at `place`, which the fault is put into."""
        return self.at(self._path(None))

    def at(self, path: str) -> Any:
        """Return the candidate's module at `path`."""
        return self.candidate.get_submodule(path)

    def unwrapped(self, at: str | None = None) -> Any:
        """Return the candidate's module for a path of the reference, where wrappers hold modules as `.wrapped`."""
        module = self.candidate
        for name in self._path(at).split("."):
            module = getattr(module, "wrapped", module)
            module = getattr(module, name) if not name.isdigit() else module[int(name)]
        return getattr(module, "wrapped", module)

    def both(self, at: str | None = None) -> tuple[Any, Any]:
        """Return the module of the reference and that of the candidate."""
        path = self._path(at)
        return self.reference.get_submodule(path), self.at(path)

    def rewrite(self, old: str, new: str, *, within: str = "forward", at: str | None = None) -> None:
        """Replace `old` by `new` in the source of one module of the candidate, as `rewrite.rewrite` does."""
        rewrite(self.at(self._path(at)), old, new, within=within)

    def replace(self, module: Any, *, at: str | None = None) -> None:
        """Put `module` into the candidate in place of the one that stands there."""
        self.candidate.set_submodule(self._path(at), module)

    def _path(self, at: str | None) -> str:
        path = self.place if at is None else at
        if path is None:
            raise ValueError("the case has no single answer: say at which path")
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What to build, and the answer.

    `answers` are the reference's module paths that may be named first: empty where any finding is a false alarm.
    `faults` holds a set of rightful paths per fault that must be among the findings; `fault` is the kind of place that
    the fault was put into, `kinds` are the finding kinds that describe it, `argument` the argument that is handed
    wrongly. `reason` is a regular expression, in lower case, for the words that tell why the place is wrong: empty
    where naming the place (and the argument) says it all. `outcomes` are the outcomes that are right. `why` says where
    the fault was put and why the answer is what it is.
    """

    id: str
    architecture: str
    fault: str
    why: str
    build: Callable[[], Pair]
    answers: frozenset[str] = frozenset()
    faults: tuple[frozenset[str], ...] = ()
    kinds: frozenset[str] = frozenset()
    argument: str | None = None
    reason: str = ""
    outcomes: frozenset[str] = frozenset({"fault"})
    call: str = "forward"


Change = Callable[[Pair], Pair | None]
Register = Callable[[Change], Change]


class Suite:
    """Registers cases of one architecture: each is a function that changes a pair of equal models.

    The function receives the pair and changes its candidate, or returns another pair; it runs under `torch.no_grad`.
    Its name and docstring are the case's id and reason. Where `candidate` is given, it makes the candidate from a copy
    of the reference.
    """

    def __init__(
        self,
        architecture: str,
        model: Callable[[], Any],
        inputs: Callable[[], Any],
        candidate: Callable[[Any], Any] = lambda model: model,
    ) -> None:
        self._architecture = architecture
        self._model = model
        self._inputs = inputs
        self._candidate = candidate

    def fault(
        self,
        fault: str,
        at: str | Sequence[str],
        kind: str | Sequence[str] | None = None,
        *,
        argument: str | None = None,
        reason: str | None = None,
        inputs: Callable[[], Any] | None = None,
        model: Callable[[], Any] | None = None,
        call: str = "forward",
    ) -> Register:
        """Register a case with one fault.

        `at` lists the module paths that may rightly be named first, `kind` the kinds of finding that describe it, and
        `reason` is the expression for the words that tell it (both as is usual for this fault, unless given).
        """
        answers = frozenset([at] if isinstance(at, str) else at)
        kind = USUAL_KINDS.get(fault, "introduces") if kind is None else kind
        return self._register(
            fault,
            answers=answers,
            faults=(answers,),
            kinds=frozenset([kind] if isinstance(kind, str) else kind),
            argument=argument,
            reason=USUAL_REASONS.get(fault, "") if reason is None else reason,
            inputs=inputs,
            model=model,
            call=call,
        )

    def several(self, *at: str | Sequence[str], inputs: Callable[[], Any] | None = None) -> Register:
        """Register a case with a fault at each of `at`, independent of each other; all must be found."""
        faults = tuple(frozenset([place] if isinstance(place, str) else place) for place in at)
        return self._register("several", answers=frozenset().union(*faults), faults=faults, inputs=inputs)

    def correct(
        self,
        *outcomes: str,
        inputs: Callable[[], Any] | None = None,
        model: Callable[[], Any] | None = None,
    ) -> Register:
        """Register a correct pair, `clean` unless other outcomes are given: any finding is a false alarm."""
        return self._register("correct", outcomes=frozenset(outcomes or ("clean",)), inputs=inputs, model=model)

    def drift(self, *, model: Callable[[], Any] | None = None) -> Register:
        """Register a pair that differs a little everywhere: there is no culprit to name."""
        return self._register("drift", outcomes=frozenset({"drift"}), model=model)

    def inconclusive(self) -> Register:
        """Register a pair in which too little answers to each other to say anything."""
        return self._register("inconclusive", outcomes=frozenset({"inconclusive"}))

    def _register(
        self,
        fault: str,
        *,
        inputs: Callable[[], Any] | None = None,
        model: Callable[[], Any] | None = None,
        **answer: Any,
    ) -> Register:
        def register(change: Change) -> Change:
            name = f"{self._architecture}/{change.__name__}"
            places = answer.get("answers", ())
            place = next(iter(places)) if len(places) == 1 else None
            if name in CASES:
                raise ValueError(f"two cases of the bench are called {name}")
            CASES[name] = Case(
                id=name,
                architecture=self._architecture,
                fault=fault,
                why=inspect.cleandoc(change.__doc__ or ""),
                build=lambda: self._build(change, place, model or self._model, inputs or self._inputs),
                **answer,
            )
            return change

        return register

    def _build(self, change: Change, place: str | None, model: Callable[[], Any], inputs: Callable[[], Any]) -> Pair:
        # The models are built once and shared by all cases, so each case gets copies of its own.
        original = model()
        pair = Pair(copy.deepcopy(original), self._candidate(copy.deepcopy(original)), inputs(), place)
        with torch.no_grad():
            return change(pair) or pair
