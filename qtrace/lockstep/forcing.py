"""Teacher forcing: the candidate is handed the reference's tensors at chosen boundaries.

What a module then shows is the error that it makes itself, on clean arguments. A tensor is handed over as a
copy, in the candidate's own layout and dtype, so that nothing the candidate writes reaches the reference. Where
the two are related by no more than a guess, or one of them is no tensor, the candidate keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qtrace.probe import Enter, Exit, Replacement
from qtrace.relate import into_candidate
from qtrace.tree import leaves, replaced

if TYPE_CHECKING:
    from qtrace.lockstep.comparison import Met
    from qtrace.lockstep.pair import Pair

# How `Met.forced` tells arguments from outputs.
IN, OUT = "in:", "out:"
LeafPairs = list[tuple[str, Any, Any, "Pair"]]


@dataclass(frozen=True, slots=True)
class Forcing:
    """Where to hand over: at the entry and the exit of calls of these reference paths.

    `entries` and `exits` are sets of reference paths, or a test of one; `names` limits the entries to these
    arguments.
    """

    entries: Collection[str] = ()
    exits: Collection[str] = ()
    names: Callable[[str], bool] | None = None

    def arguments(self, met: Met, candidate: Enter, pairs: LeafPairs) -> Replacement | None:
        """Return the candidate's arguments with the reference's tensors in them, or None to leave them."""
        if met.call.key not in self.entries:
            return None
        chosen = [pair for pair in pairs if self.names is None or self.names(pair[0].split(".")[0])]
        swaps = _swaps(met, chosen, IN)
        args, kwargs = replaced(candidate.args, swaps), replaced(dict(candidate.kwargs), swaps)
        for name, mine, theirs, _ in chosen:
            if theirs is None and type(mine) is torch.Tensor and name in candidate.arguments.values:
                args, kwargs = _filled(candidate, name, mine.detach().clone(), args, kwargs)
                met.forced.add(IN + name)
        unchanged = args is candidate.args and all(kwargs.get(n) is v for n, v in candidate.kwargs.items())
        return None if unchanged and len(kwargs) == len(candidate.kwargs) else Replacement((args, kwargs))

    def outputs(self, met: Met, candidate: Exit, pairs: LeafPairs) -> Replacement | None:
        """Return the candidate's output with the reference's tensors in it, or None to leave it."""
        if met.call.key not in self.exits:
            return None
        swaps = _swaps(met, pairs, OUT)
        if not swaps:
            return None
        # A module that works in place may have its return value ignored: what it wrote to must hold the tensor too.
        for leaf in [leaf for _, leaf in leaves(candidate.value) if id(leaf) in swaps]:
            if id(leaf) in met.argument_ids:
                with torch.no_grad():
                    leaf.copy_(swaps.pop(id(leaf)))
        return Replacement(replaced(candidate.value, swaps)) if swaps else None


def _filled(
    candidate: Enter, name: str, tensor: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand over a whole argument where the candidate was given None, by position if it was given so."""
    if name in candidate.arguments.positional:
        position = candidate.arguments.positional.index(name)
        return (*args[:position], tensor, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: tensor}


def _swaps(met: Met, pairs: LeafPairs, mark: str) -> dict[int, torch.Tensor]:
    """Return what stands in for each of the candidate's tensors, by its id; `met.forced` notes the names."""
    swaps: dict[int, torch.Tensor] = {}
    for path, mine, theirs, pair in pairs:
        if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
            continue
        handed = _in_candidates_terms(mine, theirs, pair, is_argument=mark == IN)
        if handed is not None:
            swaps[id(theirs)] = handed
            met.forced.add(mark + path)
    return swaps


def _in_candidates_terms(
    reference: torch.Tensor, candidate: torch.Tensor, pair: Pair, *, is_argument: bool
) -> torch.Tensor | None:
    if type(reference) is not torch.Tensor or type(candidate) not in (torch.Tensor, torch.nn.Parameter):
        return None
    relation = pair.relation
    if reference.shape == candidate.shape and (relation is None or relation.kind == "gain"):
        return reference.detach().to(candidate.device, candidate.dtype, copy=True)
    if relation is not None and relation.kind == "layout" and reference.shape != candidate.shape:
        return into_candidate(relation, reference, candidate)
    if is_argument and relation is None and pair.measurement is None and reference.numel() != candidate.numel():
        # Another size altogether, such as a raw padding mask for a causal one, and no layout: the callee is
        # what the reference's is, and takes what that takes.
        return reference.detach().to(candidate.device, copy=True)
    return None
