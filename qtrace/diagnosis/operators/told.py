"""From what was recorded to what is reported."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qtrace.diagnosis.operators.code import code_place
from qtrace.diagnosis.operators.graph import Kind, Recorded, Recording
from qtrace.diagnosis.operators.pairing import Match
from qtrace.report.records.operators import Operator, Partner


def operators(
    recording: Recording,
    other: Recording,
    matches: Mapping[int, Match],
    modules: Mapping[str, torch.nn.Module],
    shown: int | None,
) -> tuple[Operator, ...]:
    """Return a side's operators; `shown` is the one of which the lines of code around it are told as well."""
    paths = {id(module): path for path, module in modules.items()}
    return tuple(
        _operator(recorded, recording, other, matches, paths, around=recorded.index == shown)
        for recorded in recording.operators
    )


def _operator(
    recorded: Recorded,
    recording: Recording,
    other: Recording,
    matches: Mapping[int, Match],
    paths: Mapping[int, str],
    *,
    around: bool,
) -> Operator:
    taken = [recording.values[index] for index in recorded.inputs]
    origin = recorded.origin
    return Operator(
        index=recorded.index,
        name=recorded.name,
        outputs=recorded.specs,
        inputs=tuple(dict.fromkeys(value.operator for value in taken if value.kind is Kind.OPERATOR)),
        given=tuple(value.name or value.kind.value for value in taken if value.kind is not Kind.OPERATOR),
        settings=recorded.settings,
        module=paths.get(id(origin.module), ""),
        place=code_place(origin.site, around=around),
        own=code_place(origin.own, around=around and origin.own != origin.site),
        partner=next((_partner(matches[v], other) for v in recorded.outputs if v in matches), None),
    )


def _partner(match: Match, other: Recording) -> Partner:
    made = [other.values[index].operator for index in match.others]
    return Partner(tuple(dict.fromkeys(index for index in made if index >= 0)), match.relation)
