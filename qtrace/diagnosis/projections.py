"""Fused projections: whether one module's rows stand in the order in which the other side takes them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from qtrace.diagnosis.runner import Runner
from qtrace.diagnosis.static_differences import config_entries
from qtrace.diagnosis.suspects import Suspect

# Other counts of heads than these modules name are not tried.
_MOST_HEADS = 4
# An order is recognised where so many rows stand at their places.
_MOST_OF_THEM = 0.75


@dataclass(frozen=True, slots=True)
class Projection:
    """One projection that one side computes in one module and the other in several.

    `members` are the reference's paths: of the one module, or of the several. `names` are the candidate's. `is_split`
    tells that the candidate has the several.
    """

    members: tuple[str, ...]
    whole: torch.nn.Module
    parts: tuple[torch.nn.Module, ...]
    names: tuple[str, ...]
    is_split: bool

    @property
    def has_weights(self) -> bool:
        """Return whether the modules hold weights, and no codes of them."""
        return all(_tensor(module, "weight").numel() for module in (self.whole, *self.parts))

    @property
    def path(self) -> str:
        """Return the reference's path, the first of several."""
        return self.members[0]


def projection_evidence(runner: Runner, suspect: Suspect) -> Iterator[str]:
    """Yield how the rows of fused projections in a container at fault are cut, and whether another cut mends it.

    A fused projection of n parts holds their rows one part after the other, or head by head, the n parts of each. The
    candidate's rows are put into the other order, and the final error says whether that was the cause.
    """
    if not suspect.has_children:
        return
    found = [one for module in suspect.modules for one in projections_in(runner, module)]
    for one in [one for one in found if one.path.rpartition(".")[0] == suspect.module]:
        if not one.has_weights:
            continue
        orders = row_orders(runner, one)
        order = next((n for n in orders if _holds(one, n)), None)
        kind = "is split into" if one.is_split else "is computed in one with"
        said = f"{one.path} {kind} {', '.join(one.names)} of the candidate"
        if order is None:
            yield f"{said}, with rows in an order that was not recognised"
            continue
        yield f"{said}: the rows stand {_words(order)}"
        for other in [n for n in orders if n != order]:
            changes = [change for same in found if _holds(same, order) for change in _in_order(same, other)]
            if changes and runner.is_healed(runner.final_with(changes)):
                yield f"with the rows of {one.path} taken {_words(other)}, the candidate agrees"
                break


def projections_in(runner: Runner, module: str) -> Iterator[Projection]:
    """Yield the projections directly in a reference module that the candidate cuts otherwise."""
    reference, candidate = (model.modules for model in runner.models)
    alignment = runner.plan.alignment
    for path, members in alignment.split.items():
        if path.rpartition(".")[0] == module and len(members) > 1:
            parts = tuple(candidate[member] for member in members)
            yield Projection((path,), reference[path], parts, tuple(members), True)
    groups: dict[str, list[str]] = {}
    for path, whole in alignment.fused.items():
        if path.rpartition(".")[0] == module:
            groups.setdefault(whole, []).append(path)
    for whole, several in groups.items():
        if len(several) > 1 and whole in candidate:
            parts = tuple(reference[one] for one in several)
            yield Projection(tuple(several), candidate[whole], parts, (whole,), False)


def all_projections(runner: Runner) -> Iterator[Projection]:
    """Yield every projection of the reference that the candidate cuts otherwise."""
    alignment = runner.plan.alignment
    for module in dict.fromkeys(path.rpartition(".")[0] for path in (*alignment.split, *alignment.fused)):
        yield from projections_in(runner, module)


def row_orders(runner: Runner, one: Projection) -> list[int]:
    """Return the orders in which a projection may hold its rows: part by part (1), or by so many heads."""
    return [1, *head_counts(runner, one.path.rpartition(".")[0])]


def faulty_projection(runner: Runner, suspect: Suspect) -> tuple[str, tuple[str, ...]] | None:
    """Return the reference's path of a projection in a container at fault whose rows differ, and in which way.

    None where all rows are the reference's, or where putting these back does not heal.
    """
    for one in projections_in(runner, suspect.module) if suspect.has_children else ():
        heads = next((n for n in row_orders(runner, one) if _holds(one, n)), None)
        if heads is None:
            continue
        said = {path: words for path, words in _differences(one, heads) if words}
        changes = list(_in_order(one, heads))
        if said and runner.is_relieved(runner.final_with(changes), runner.before):
            return next(iter(said.items()))
    return None


def _differences(one: Projection, heads: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (reference path, what differs in words) for each module of the reference that the projection holds."""
    for name in ("weight", "bias"):
        apart = [
            (tensor.detach() != values).reshape(len(tensor), -1).any(1)
            for tensor, values in _in_order(one, heads, name)
        ]
        if not apart:
            continue
        if one.is_split:
            rows = int(sum(part.sum() for part in apart))
            yield one.path, _said(name, rows, sum(map(len, apart)))
            continue
        sizes = [len(_tensor(part, name)) for part in one.parts]
        owners = stacked([torch.full((size,), place) for place, size in enumerate(sizes)], heads)
        for place, path in enumerate(one.members):
            yield path, _said(name, int(apart[0][owners == place].sum()), sizes[place])


def _said(name: str, rows: int, of: int) -> tuple[str, ...]:
    return (f"{name} differs in {rows} of {of} rows",) if rows else ()


def head_counts(runner: Runner, module: str) -> list[int]:
    """Return the counts of heads that a module of either side, or the model's configuration, names."""
    modules = [runner.models[0].modules[module], *runner.partners(module)]
    entries = [vars(one) for one in modules] + [config_entries(model.root) for model in runner.models]
    found = (value for held in entries for name, value in held.items() if "head" in str(name))
    return list(dict.fromkeys(n for n in found if type(n) is int and n > 1))[:_MOST_HEADS]


def stacked(parts: Sequence[torch.Tensor], heads: int) -> torch.Tensor | None:
    """Return the rows of the parts head by head, or part by part with one head; None where that does not fit."""
    if heads == 1:
        return torch.cat(list(parts))
    if len({part.shape for part in parts}) > 1 or len(parts[0]) % heads:
        return None
    cut = [part.reshape(heads, -1, *part.shape[1:]) for part in parts]
    return torch.stack(cut, 1).reshape(-1, *parts[0].shape[1:])


def _holds(one: Projection, heads: int) -> bool:
    """Return whether the whole holds the rows of the parts in this order; a few may be damaged."""
    rows = stacked([_tensor(part, "weight") for part in one.parts], heads)
    whole = _tensor(one.whole, "weight")
    if rows is None or rows.shape != whole.shape or not len(whole):
        return False
    same = torch.isclose(rows, whole.to(rows.dtype)).reshape(len(whole), -1).all(1)
    return float(same.double().mean()) >= _MOST_OF_THEM


def _in_order(one: Projection, heads: int, *names: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (tensor of the candidate, the reference's rows for it in this order)."""
    for name in names or ("weight", "bias"):
        tensors = [part._parameters.get(name) for part in one.parts]
        whole = one.whole._parameters.get(name)
        if whole is None or any(tensor is None for tensor in tensors):
            continue
        parts = [tensor.detach() for tensor in tensors if tensor is not None]
        if not one.is_split:
            rows = stacked(parts, heads)
            if rows is not None and rows.shape == whole.shape:
                yield whole, rows
        elif len({part.shape for part in parts}) == 1 and len(whole) % (heads * len(parts)) == 0:
            cut = whole.detach().reshape(heads, len(parts), -1, *whole.shape[1:])
            for place, tensor in enumerate(tensors):
                if tensor is not None:
                    yield tensor, cut[:, place].reshape(tensor.shape)


def _tensor(module: torch.nn.Module, name: str) -> torch.Tensor:
    tensor = module._parameters.get(name)
    return torch.empty(0) if tensor is None else tensor.detach()


def _words(heads: int) -> str:
    return "one part after the other" if heads == 1 else f"head by head ({heads} heads)"
