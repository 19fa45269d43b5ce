"""From what a pass left behind to a tree of calls that can be judged without torch."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping

from qtrace.diagnosis.trial import CallRecord, Trial, Value
from qtrace.engine.comparison import LOCAL_DEPTH, Comparison
from qtrace.engine.events import Site
from qtrace.engine.forcing import IN, OUT
from qtrace.engine.met import Met, place
from qtrace.engine.pair import Pair
from qtrace.numerics.relations import DELIBERATE, excuses
from qtrace.report.records import Relation

# No two trials give one number to two pairs, so that a part of one may stand in another.
_NUMBERS = itertools.count()


def as_trial(
    comparison: Comparison,
    *,
    local: bool,
    known: frozenset[tuple[str, str]] = frozenset(),
    kept: frozenset[str] = frozenset(),
) -> Trial:
    """Return what a pass left behind as a tree of calls.

    `local` judges each call by the error made in it alone; `known` are arguments that do no harm, see `Trial`. `kept`
    are the root's outputs that a pass before showed to be a cache in a convention of the candidate's.
    """
    made: dict[int, CallRecord] = {}
    roots: list[CallRecord] = []
    numbers: dict[int, int] = defaultdict(_NUMBERS.__next__)
    for met in comparison.met:
        own = {**dict.fromkeys(kept if met.call.key == "" else ()), **met.kept}
        record = _record(comparison, met, numbers, own, local=local)
        made[id(met)] = record
        (made[id(met.parent)].children if met.parent is not None else roots).append(record)
    return Trial(tuple(roots), known)


def kept_in(comparison: Comparison) -> frozenset[str]:
    """Return the root's outputs that are a cache in a convention of the candidate's."""
    return frozenset(path for met in comparison.met if met.call.key == "" for path in met.kept)


def _record(
    comparison: Comparison, met: Met, numbers: dict[int, int], kept: Mapping[str, Relation | None], *, local: bool
) -> CallRecord:
    call = met.call
    inner = max(LOCAL_DEPTH, call.order - call.entry)
    depth_in, depth_out = (LOCAL_DEPTH, inner) if local else (call.entry, call.order)
    converted = comparison.forcing is not None and met.call.key in comparison.forcing.converted

    def values(pairs: list[tuple[str, Pair]], mark: str, depth: int) -> tuple[Value, ...]:
        # Attention weights that another kernel does not return are missed by nobody who goes on with the rest.
        others = mark == OUT and any(pair.measurement is not None for _, pair in pairs)
        wheres = [None if local else place(met, mark, name) for name, _ in pairs]
        return tuple(
            _value(
                name,
                pair,
                comparison.agrees(pair, depth, where) or (others and _is_left_out(pair)),
                mark + name in met.forced,
                converted,
                numbers[id(pair)],
            )
            if mark == IN or name not in kept
            else _kept(name, pair, kept[name], numbers[id(pair)])
            for (name, pair), where in zip(pairs, wheres, strict=True)
        )

    sites = tuple(None if site is None else _plain_site(site) for site in met.sites)
    return CallRecord(
        module=call.key if call.key is not None else call.path,
        type=call.type,
        call=call.index,
        entry=call.entry,
        order=call.order,
        arguments=values(met.arguments, IN, depth_in),
        outputs=values(met.outputs, OUT, depth_out),
        side="reference" if met.candidate is None else "candidate" if met.reference is None else None,
        has_data=call.has_data,
        raised=met.raised,
        ended=met.ended,
        sites=(sites[0], sites[1]),
    )


def _is_left_out(pair: Pair) -> bool:
    """Return whether one side has None where the other has a tensor."""
    kinds = [spec.type if spec is not None else None for spec in (pair.reference, pair.candidate)]
    return pair.measurement is None and kinds.count("NoneType") == 1


def _kept(name: str, pair: Pair, relation: Relation | None, key: int) -> Value:
    """Return an output that nobody but the candidate reads, so that it makes no error."""
    return Value(
        name,
        True,
        error=0.0,
        rel_l2=0.0,
        relation=relation,
        reference=pair.reference,
        candidate=pair.candidate,
        key=key,
    )


def _value(name: str, pair: Pair, agrees: bool, forced: bool, converted: bool, key: int) -> Value:
    found = pair.statistics()
    related = pair.relation.error if pair.relation is not None and pair.relation.kind == "mask" else None
    if converted and excuses(pair.relation):
        # In the convention that holds there, the two are the same.
        agrees, related = True, pair.peir_related()
    return Value(
        name=name,
        agrees=agrees,
        forced=forced,
        status=found.status,
        error=found.peir if related is None else related,
        related=pair.peir_related(),
        rel_l2=found.rel_l2,
        relation=pair.relation,
        reference=pair.reference,
        candidate=pair.candidate,
        deliberate=pair.relation is not None and pair.relation.kind in DELIBERATE,
        key=key,
    )


def _plain_site(site: Site) -> tuple[str, int, str]:
    return site.file, site.line, site.function
