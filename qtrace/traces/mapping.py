"""Matches the tensors of another runtime to the reference's outputs: by a mapping file, by name, by value."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qtrace.documents import read_yaml
from qtrace.errors import UsageError, did_you_mean
from qtrace.numerics import NoValues, plain
from qtrace.traces.excerpt import Sketch, sketch
from qtrace.traces.reader import Trace
from qtrace.tree import join

# A relative L2 distance; a tensor at a greater distance is not recognised.
CLOSE = 0.05
_MSPROBE = re.compile(r"Module\.(?P<module>.+)\.\w+\.forward\.(?P<call>\d+)\.output\.(?P<number>\d+)")


@dataclass(frozen=True, slots=True)
class Place:
    """One output of one call of the reference, in the first sample; `tensor` is its number in the trace."""

    module: str
    call: int
    output: str
    tensor: int

    def __str__(self) -> str:
        return (
            f"{self.module or '<root>'}{f'#{self.call}' if self.call else ''}{f':{self.output}' if self.output else ''}"
        )


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor that is matched to an output, and the rule that made the match."""

    place: Place
    name: str
    rule: str


def places_of(trace: Trace) -> list[Place]:
    """Return the outputs of all calls, in execution order."""
    calls = sorted(trace.manifest.samples[0].calls, key=lambda call: call.order) if trace.manifest.samples else []
    return [
        Place(call.module, call.call, leaf.path, leaf.tensor)
        for call in calls
        for leaf in call.outputs.leaves
        if leaf.tensor is not None
    ]


def matched(
    trace: Trace, tensors: Mapping[str, Callable[[], torch.Tensor]], given: Mapping[str, str], *, by_value: bool = True
) -> list[Match]:
    """Return a match for each output of the reference that a tensor fits, in execution order.

    `given` maps names of tensors to places, written as `module`, `module#call`, `module:output` or
    `module#call:output`.

    Raises `UsageError` where `given` names a tensor or an output that does not exist.
    """
    places = places_of(trace)
    found: dict[Place, Match] = {}
    by_text = _places_by_text(places)
    for name, text in given.items():
        if name not in tensors:
            raise UsageError(f"the mapping names a tensor {name!r} that was not written; {did_you_mean(name, tensors)}")
        if text not in by_text:
            known = did_you_mean(text, map(str, places))
            raise UsageError(f"the mapping names an output {text!r} that the reference has not; {known}")
        found[by_text[text]] = Match(by_text[text], name, "given")
    names = {text: name for name in reversed(list(tensors)) for text in _as_outputs(name)}
    returned = Counter((place.module, place.call) for place in places)
    for place in places:
        own = _names_of(place, is_only=returned[place.module, place.call] == 1)
        called = next((names[text] for text in own if text in names), None)
        if place not in found and called is not None:
            found[place] = Match(place, called, "name")
    if by_value:
        for match in _by_value(trace, tensors, [place for place in places if place not in found]):
            found[match.place] = match
    return [found[place] for place in places if place in found]


def _places_by_text(places: list[Place]) -> dict[str, Place]:
    """Return the places by every name that a mapping file may use; an ambiguous name means the first place."""
    found: dict[str, Place] = {}
    for place in places:
        texts = [str(place), join(place.module, place.output)]
        for text in texts if place.call else [*texts, place.module]:
            found.setdefault(text, place)
    return found


def _names_of(place: Place, *, is_only: bool) -> list[str]:
    """Return the names that a tensor for this output may have; `is_only` says that its call returns no other output."""
    call = f"{place.module}#{place.call}"
    names = [f"{call}:{place.output}", *([call] if is_only else [])]
    if not place.call:
        names += [join(place.module, place.output), str(place), *([place.module] if is_only else [])]
    return [name for name in names if name]


def _as_outputs(name: str) -> list[str]:
    """Return a tensor's name in the spelling of output names."""
    told = _MSPROBE.fullmatch(name)
    if told is None:
        return [name.strip("/").replace("/", ".")]
    call = f"{told['module']}#{told['call']}"
    return [f"{call}:{told['number']}", *([call] if told["number"] == "0" else [])]


class _Wanted:
    """The outputs of one number of elements, to be compared with tensors; each keeps the nearest tensor so far."""

    def __init__(self, places: list[tuple[Place, torch.Tensor]]) -> None:
        self._places = [place for place, _ in places]
        self._elements = torch.stack([elements for _, elements in places])
        self._norms = self._elements.norm(dim=1)
        self._nearest = torch.full_like(self._norms, CLOSE)
        self._names: dict[int, str] = {}

    def offer(self, name: str, elements: torch.Tensor) -> None:
        """Keep a tensor for the outputs that it is nearer to than all tensors before."""
        # A product is cheaper than all differences. It finds every near output, though not its exact distance.
        squares = self._norms**2 + elements.norm() ** 2 - 2 * (self._elements @ elements)
        for number in torch.nonzero(squares < (2 * CLOSE * self._norms) ** 2).flatten().tolist():
            off = (self._elements[number] - elements).norm() / self._norms[number]
            if off < self._nearest[number]:
                self._nearest[number] = off
                self._names[number] = name

    def matches(self) -> Iterator[Match]:
        """Yield a match for each output that was recognised."""
        for number, name in self._names.items():
            yield Match(self._places[number], name, "value")


def _by_value(trace: Trace, tensors: Mapping[str, Callable[[], torch.Tensor]], places: list[Place]) -> Iterator[Match]:
    grouped: dict[tuple[int, int], list[tuple[Place, torch.Tensor]]] = {}
    for place in places:
        elements = _elements(trace.tensor(place.tensor))
        if elements is not None:
            shape = trace.manifest.tensors[place.tensor].spec.shape or ()
            grouped.setdefault((math.prod(shape), len(elements)), []).append((place, elements))
    wanted = {key: _Wanted(group) for key, group in grouped.items()}
    counts = {count for count, _ in wanted}
    for name, read in tensors.items() if wanted else ():
        tensor = read()
        elements = _elements(tensor) if tensor.numel() in counts else None
        if elements is not None and (tensor.numel(), len(elements)) in wanted:
            wanted[tensor.numel(), len(elements)].offer(name, elements)
    for group in wanted.values():
        yield from group.matches()


def _elements(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the elements by which a tensor is recognised, None where they are not distinctive."""
    try:
        found = plain(tensor.as_subclass(torch.Tensor)) if isinstance(tensor, Sketch) else sketch(tensor)
    except NoValues:
        return None
    found = found.double()
    tells = found.numel() > 1 and bool(torch.isfinite(found).all()) and bool((found != found[0]).any())
    return found if tells else None


def read_mapping(path: Path) -> dict[str, str]:
    """Read a YAML file that maps names of tensors to modules, `module`, `module#call` or `module:output`.

    Raises `UsageError` where the file is missing, is no YAML, or is no mapping of names to names.
    """
    document = read_yaml(path, "mapping file")
    value = document.value if document.value is not None else {}
    if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise UsageError(f"{document.name}: expected a mapping, of a tensor's name to a module's; both are text")
    return value
