"""Which tensor of another runtime is which output of the reference: by what a user says, by name, by value.

Rules in order, the first that applies makes the pair:

1. `given`: a mapping file says so.
2. `name`: the tensor is called as the output is, `module.output`, or as the module where that returns one tensor;
   `/` counts as `.`, and a leading one for nothing.
3. `value`: it has as many elements, and of all those it is nearest to the reference's, closer than `CLOSE`. What is
   the same everywhere, such as zeros, is no evidence.

A tensor may stand for several outputs: a layer returns what its last module returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from qtrace.errors import UsageError, did_you_mean
from qtrace.stats import NoValues, plain
from qtrace.store.reader import Trace
from qtrace.store.sketch import Sketch, sketch
from qtrace.tree import join

# A relative L2 distance: what is farther off than this is not recognised.
CLOSE = 0.05


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
    """A tensor that stands for an output, and the rule that made the pair."""

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
    """Return a match per output of the reference that a tensor stands for, in execution order.

    `given` maps names of tensors to places, written as `module`, `module#call`, `module:output` or
    `module#call:output`.

    Raises `UsageError` where `given` names a tensor or an output that is not there.
    """
    places = places_of(trace)
    found: dict[Place, Match] = {}
    for name, text in given.items():
        if name not in tensors:
            raise UsageError(f"the mapping names a tensor {name!r} that was not written; {did_you_mean(name, tensors)}")
        place = _place(text, places)
        found[place] = Match(place, name, "given")
    names = {_dotted(name): name for name in reversed(list(tensors))}
    for place in places:
        own = [join(place.module, place.output)]
        if sum((other.module, other.call) == (place.module, place.call) for other in places) == 1:
            own.append(place.module)
        known = next((names[text] for text in own if text and text in names and not place.call), None)
        if place not in found and known is not None:
            found[place] = Match(place, known, "name")
    if by_value:
        for match in _by_value(trace, tensors, [place for place in places if place not in found]):
            found[match.place] = match
    return [found[place] for place in places if place in found]


def _place(text: str, places: list[Place]) -> Place:
    for place in places:
        if text in (str(place), join(place.module, place.output)) or (text == place.module and not place.call):
            return place
    known = [str(place) for place in places]
    raise UsageError(f"the mapping names an output {text!r} that the reference has not; {did_you_mean(text, known)}")


def _dotted(name: str) -> str:
    return name.strip("/").replace("/", ".")


def _by_value(trace: Trace, tensors: Mapping[str, Callable[[], torch.Tensor]], places: list[Place]) -> Iterator[Match]:
    wanted: dict[int, list[tuple[Place, torch.Tensor]]] = {}
    for place in places:
        elements = _elements(trace.tensor(place.tensor))
        if elements is not None:
            spec = trace.manifest.tensors[place.tensor].spec
            wanted.setdefault(_count(spec.shape), []).append((place, elements))
    best: dict[Place, tuple[float, str]] = {}
    for name, read in tensors.items():
        tensor = read()
        others = wanted.get(tensor.numel(), [])
        elements = _elements(tensor) if others else None
        for place, mine in others if elements is not None else ():
            assert elements is not None
            off = float((mine - elements).norm() / mine.norm()) if len(mine) == len(elements) else 1.0
            if off <= CLOSE and off < best.get(place, (CLOSE, ""))[0]:
                best[place] = (off, name)
    for place, (_, name) in best.items():
        yield Match(place, name, "value")


def _elements(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the elements by which a tensor is recognised, None where it has none that tell."""
    try:
        found = plain(tensor.as_subclass(torch.Tensor)) if isinstance(tensor, Sketch) else sketch(tensor)
    except NoValues:
        return None
    found = found.double()
    tells = found.numel() > 1 and bool(torch.isfinite(found).all()) and bool((found != found[0]).any())
    return found if tells else None


def _count(shape: tuple[int, ...] | None) -> int:
    count = 1
    for size in shape or ():
        count *= size
    return count
