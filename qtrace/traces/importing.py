"""Makes a trace of what another runtime has written: its tensors in the places of the reference's outputs."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import qtrace
from qtrace.errors import UsageError
from qtrace.report.records import Side
from qtrace.traces.foreign import foreign_tensors
from qtrace.traces.manifest import Manifest, StoredCall, StoredLeaf, StoredSample, StoredValue
from qtrace.traces.mapping import Match, Place, matched, places_of
from qtrace.traces.reader import Trace
from qtrace.traces.writer import Form, TraceWriter

_RECOGNISED = (
    "outputs of the candidate that were recognised by their values when they were imported: {}; none of them can be "
    "far off, so what is wrong shows as missing"
)
# So many tensors are named where none is of use.
_FEW = 3


@dataclass(frozen=True, slots=True)
class Imported:
    """What was found: the matches, the outputs of the reference without one, and the tensors that stand for none."""

    matches: tuple[Match, ...]
    alone: tuple[Place, ...]
    unused: tuple[str, ...]


def import_trace(
    place: Path,
    reference: Trace,
    folder: Path,
    *,
    given: Mapping[str, str] | None = None,
    by_value: bool = True,
    replaces: bool = False,
) -> Imported:
    """Write a trace to `folder` whose modules and calls are the reference's, and whose outputs are those of `place`.

    Calls without any output found are left out, so that a comparison counts and names them. There are no arguments, and
    the inputs are taken to be the reference's.

    Raises:
        SourceError: the tensors cannot be read.
        UsageError: a name in `given` is not there, the reference has more than one sample, or nothing was found.
        OutputError: the trace cannot be written.
    """
    if len(reference.manifest.samples) != 1:
        raise UsageError(
            f"{reference.name} holds {len(reference.manifest.samples)} samples; import beside a trace of one sample"
        )
    tensors = foreign_tensors(place)
    matches = matched(reference, tensors, given or {}, by_value=by_value)
    if not matches:
        few = ", ".join([*list(tensors)[:_FEW], *["…"] * (len(tensors) > _FEW)])
        raise UsageError(
            f"{place}: none of its {len(tensors)} tensors ({few}) stands for an output of {reference.name}, "
            "by name or value; say which is which with --map"
        )
    with TraceWriter(folder, Form(arguments=False), replaces=replaces) as writer:
        outputs: dict[tuple[str, int], list[StoredLeaf]] = {}
        for match in matches:
            number = writer.tensor(tensors[match.name](), match.name)
            leaf = StoredLeaf(path=match.place.output, tensor=number)
            outputs.setdefault((match.place.module, match.place.call), []).append(leaf)
        by_nearness = sum(match.rule == "value" for match in matches)
        writer.commit(_manifest(place, reference, outputs, by_nearness))
    taken = {match.place for match in matches}
    used = {match.name for match in matches}
    return Imported(
        tuple(matches),
        tuple(one for one in places_of(reference) if one not in taken),
        tuple(name for name in tensors if name not in used),
    )


def _manifest(
    place: Path, reference: Trace, outputs: Mapping[tuple[str, int], list[StoredLeaf]], by_nearness: int
) -> Manifest:
    calls: list[StoredCall] = []
    # The numbers of calls change where others are left out; inside one of these stands what ran inside it.
    numbers: dict[int, int | None] = {}
    for number, call in enumerate(reference.manifest.samples[0].calls):
        parent = None if call.parent is None else numbers[call.parent]
        leaves = outputs.get((call.module, call.call))
        if leaves is None:
            numbers[number] = parent
            continue
        numbers[number] = len(calls)
        bare = StoredValue(leaves=tuple(leaves))
        calls.append(
            dataclasses.replace(
                call, parent=parent, arguments={}, positional=(), passed=(), outputs=bare, site=None, error=None
            )
        )
    bare_modules = tuple(
        dataclasses.replace(module, attributes={}, functions={}, parameters={}, buffers={}, forward=None)
        for module in reference.manifest.modules
    )
    return Manifest(
        qtrace=qtrace.__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        environment={},
        model=Side(source=str(place), type="imported", parameters=0, dtypes=(), devices=(), training=False),
        call=reference.manifest.call,
        arguments=False,
        selected=reference.manifest.selected,
        modules=bare_modules,
        inputs=reference.manifest.inputs,
        samples=(StoredSample(calls=tuple(calls)),),
        warnings=(_RECOGNISED.format(by_nearness),) if by_nearness else (),
    )
