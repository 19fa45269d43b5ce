"""Teacher forcing: passes the reference's tensors to the candidate at chosen boundaries.

A module then shows only its local error, which it makes on clean arguments. A forced tensor is a copy, in the
candidate's own layout and dtype, so that nothing the candidate writes reaches the reference. A quantized tensor is
replaced by one on the same grid, a subclass that dequantizes itself by plain numbers. Where no layout explains another
shape, or one of the two is no plain tensor for another reason, the candidate keeps its own.

The tensor itself does not show whether a factor, an order of channels or a rotation is a fault or is undone later.
Forcing the reference's values as they are heals a fault and breaks a convention; forcing them in the candidate's own
convention keeps both. So the boundaries for the latter are chosen by name: `Forcing.converted`. There, a tensor that
differs and is not related in any known way is not forced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from qtrace.engine.events import Enter, Exit, Replacement
from qtrace.engine.pair import CallPair, Pair
from qtrace.numerics import dequantizes
from qtrace.numerics.relations import FILL, into_candidate, mask_relation
from qtrace.report.records import Relation, Status
from qtrace.tree import leaves, replaced

# The prefixes by which `CallPair.forced` distinguishes arguments from outputs.
IN, OUT = "in:", "out:"
LeafPairs = list[tuple[str, Any, Any, Pair]]


@dataclass(frozen=True, slots=True)
class Forcing:
    """Where tensors are forced: at the entries and the exits of calls of these reference paths.

    `names` limits the entries to these arguments. At the boundaries of `converted`, related tensors are forced in the
    candidate's convention (scaled, reordered, rotated as its own are), as far as `PairComparer.explain` was called
    before, which `explains` requests. Elsewhere only the candidate's layout and the fill of its masks are kept. With
    `resizes` an argument of an entirely different size is forced in the reference's size; with `resizes_outputs` an
    output is as well. With `unwraps` plain numbers replace a subclass. `is_noisy` says that unrelated pairs are the
    rule, and no sign of a convention. Arguments that are `harmless`, by class of the callee and name, are in a
    convention of their own, and are not forced.
    """

    entries: Collection[str] = ()
    exits: Collection[str] = ()
    names: Callable[[str], bool] | None = None
    converted: Collection[str] = ()
    harmless: Collection[tuple[str, str]] = ()
    explains: bool = False
    resizes: bool = True
    resizes_outputs: bool = False
    unwraps: bool = True
    is_noisy: bool = False

    def arguments(self, met: CallPair, candidate: Enter, pairs: LeafPairs) -> Replacement | None:
        """Return the candidate's arguments with the reference's tensors in them, or None to keep them."""
        if met.call.key not in self.entries:
            return None
        chosen = [
            pair
            for pair in pairs
            if (self.names is None or self.names(pair[0].split(".")[0]))
            and (met.call.type, pair[0]) not in self.harmless
        ]
        swaps = self._swaps(met, chosen, IN)
        args, kwargs = replaced(candidate.args, swaps), replaced(dict(candidate.kwargs), swaps)
        for name, mine, theirs, _ in chosen:
            if theirs is None and type(mine) is torch.Tensor and name in candidate.arguments.values:
                args, kwargs = _filled(candidate, name, mine.detach().clone(), args, kwargs)
                met.forced.add(IN + name)
        unchanged = args is candidate.args and all(kwargs.get(n) is v for n, v in candidate.kwargs.items())
        return None if unchanged and len(kwargs) == len(candidate.kwargs) else Replacement((args, kwargs))

    def outputs(self, met: CallPair, candidate: Exit, pairs: LeafPairs) -> Replacement | None:
        """Return the candidate's output with the reference's tensors in it, or None to keep it."""
        if met.call.key not in self.exits:
            return None
        swaps = self._swaps(met, pairs, OUT)
        if not swaps:
            return None
        # The return value of a module that works in place may be ignored: the tensor that it wrote to is forced too.
        for _, leaf in leaves(candidate.value):
            if id(leaf) in swaps and id(leaf) in met.argument_ids:
                with torch.no_grad():
                    leaf.copy_(swaps.pop(id(leaf))[0])
        return Replacement(replaced(candidate.value, swaps)) if swaps else None

    def written(self, met: CallPair, pairs: LeafPairs) -> None:
        """Put the reference's values where the candidate's call wrote its own, in an object that it received."""
        if met.call.key not in self.exits:
            return
        for path, mine, theirs, pair in pairs:
            if not (_is_plain(mine) and _is_plain(theirs)) or theirs.is_inference():
                continue
            converts = met.call.key in self.converted
            handed = _in_candidates_terms(mine, theirs, pair, converts=converts, resizes=False)
            if handed is not None:
                with torch.no_grad():
                    theirs.copy_(handed)
                met.forced.add(OUT + path)

    def _swaps(self, met: CallPair, pairs: LeafPairs, mark: str) -> dict[int, list[torch.Tensor]]:
        """Return the tensors that replace each of the candidate's tensors, by its id; `met.forced` notes the names.

        One tensor of the candidate may occur in several places and correspond to several of the reference's. Where the
        reference's are one as well, so is the forced tensor: a callee may test whether query and key are the same.
        """
        converts = met.call.key in self.converted
        swaps: dict[int, list[torch.Tensor]] = {}
        made: dict[tuple[int, int], torch.Tensor] = {}
        for path, mine, theirs, pair in pairs:
            if not _is_plain(mine):
                continue
            if not _is_plain(theirs):
                handed = self._in_its_form(mine, theirs, pair)
                if handed is not None:
                    swaps.setdefault(id(theirs), []).append(handed)
                    met.forced.add(mark + path)
                continue
            if mine.device.type == "cpu" and _is_equal(pair):
                # Most arguments are an output that was forced already.
                swaps.setdefault(id(theirs), []).append(theirs)
                met.forced.add(mark + path)
                continue
            is_unknown = pair.explained and pair.convention is None and not self.is_noisy
            if converts and is_unknown and not _holds_a_fill(pair):
                # The neighbours are in a convention of their own, and the one for this tensor is not known.
                continue
            plain = _is_copied_as_it_is(mine, theirs, _to_apply(pair, converts))
            if mark == OUT and plain and _may_be_written(met, theirs):
                # The candidate's tensor would be discarded at once: overwriting it saves the memory of a copy.
                with torch.no_grad():
                    theirs.copy_(mine)
                met.forced.add(mark + path)
                continue
            resizes = self.resizes if mark == IN else self.resizes_outputs
            handed = made.get((id(mine), id(theirs)))
            if handed is None:
                handed = _in_candidates_terms(mine, theirs, pair, converts=converts, resizes=resizes)
            if handed is not None:
                made[id(mine), id(theirs)] = handed
                if handed is not theirs:
                    swaps.setdefault(id(theirs), []).append(handed)
                met.forced.add(mark + path)
        return {own: turns for own, turns in swaps.items() if any(id(turn) != own for turn in turns)}

    def _in_its_form(self, reference: torch.Tensor, candidate: Any, pair: Pair) -> torch.Tensor | None:
        """Return the tensor that replaces one which holds its values quantized; None where none is known."""
        if pair.measurement is None or reference.shape != candidate.shape or not isinstance(candidate, torch.Tensor):
            return None
        values = reference.detach().to(candidate.device, copy=True)
        if type(candidate) is torch.Tensor and candidate.qscheme() == torch.per_tensor_affine:
            scale, zero_point = candidate.q_scale(), candidate.q_zero_point()
            return torch.quantize_per_tensor(values.float(), scale, zero_point, candidate.dtype)
        if self.unwraps and dequantizes(candidate):
            return values.to(candidate.dtype)
        return None


def _is_equal(pair: Pair) -> bool:
    """Return whether the candidate holds the same numbers anyway, so that nothing need be forced."""
    found = pair.statistics()
    return pair.layout is None and pair.relation is None and found.status is Status.COMPARED and found.max == 0


def _may_be_written(met: CallPair, candidate: torch.Tensor) -> bool:
    """Return whether no other code holds the tensor that the candidate's call returned."""
    fresh = met.candidate is not None and met.candidate.fresh
    return fresh and not candidate.is_inference() and candidate._base is None


def _to_apply(pair: Pair, converts: bool) -> Relation | None:
    """Return the relation in which the reference's values are forced; None where they are forced unchanged."""
    return pair.convention if converts or _is_mask(pair.relation) else pair.layout


def _is_copied_as_it_is(reference: torch.Tensor, candidate: torch.Tensor, relation: Relation | None) -> bool:
    same_shape = reference.shape == candidate.shape
    return relation is None and same_shape and not _is_bool_against_additive(reference, candidate)


def _filled(
    candidate: Enter, name: str, tensor: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with a tensor where the candidate received None, by position if it was passed so."""
    if name in candidate.arguments.positional:
        position = candidate.arguments.positional.index(name)
        return (*args[:position], tensor, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: tensor}


def _is_plain(leaf: Any) -> bool:
    if isinstance(leaf, torch.Tensor) and leaf.is_nested:
        return False
    # A subclass may hold its values quantized, and plain values cannot be written into it.
    return type(leaf) in (torch.Tensor, torch.nn.Parameter) and not leaf.is_quantized


def _in_candidates_terms(
    reference: torch.Tensor, candidate: torch.Tensor, pair: Pair, *, converts: bool, resizes: bool
) -> torch.Tensor | None:
    """Return the tensor to force: the candidate's own where that is right already, None where it is unknown."""
    relation = _to_apply(pair, converts)
    if _is_copied_as_it_is(reference, candidate, relation):
        return reference.detach().to(candidate.device, candidate.dtype, copy=True)
    kinds_differ = reference.shape == candidate.shape and _is_bool_against_additive(reference, candidate)
    if relation is None and kinds_differ:
        relation = mask_relation(reference, candidate)
    if relation is not None:
        handed = into_candidate(relation, reference, candidate)
        if handed is None and relation.kind == "rotation":
            # These tokens do not determine the matrix, but they are known to be the reference's, rotated.
            return candidate
        return handed
    unmeasured = pair.measurement is None and reference.numel() != candidate.numel()
    if resizes and (kinds_differ or unmeasured):
        # Another kind of mask, or an entirely different size without a layout, such as a raw padding mask for a
        # causal one: the callee corresponds to the reference's, and takes the same arguments.
        floats = reference.is_floating_point() and candidate.is_floating_point()
        return reference.detach().to(candidate.device, candidate.dtype if floats else reference.dtype, copy=True)
    return None


def _is_mask(relation: Relation | None) -> bool:
    return relation is not None and relation.kind == "mask"


def _holds_a_fill(pair: Pair) -> bool:
    # A mask has no channels that a convention could scale or rotate.
    low = pair.statistics().reference_min
    return low is not None and low < FILL


def _is_bool_against_additive(*pair: torch.Tensor) -> bool:
    return any(t.dtype is torch.bool for t in pair) and any(t.is_floating_point() for t in pair)
