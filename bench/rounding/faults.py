"""Faults of one quantized linear layer, drawn at random, and their size against the layer's rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.rounding.models import HEADS, NAMES, SEEDS, Subject, subject
from bench.rounding.schemes import FORMS, Recipe, Stored

# Draws of one kind before the next kind is tried.
_PATIENCE = 25


@dataclass(slots=True)
class Draw:
    """One layer that is quantized rightly, and what a fault may need: `pick` draws numbers, `path` is the layer's.

    A fault returns the weight that it leaves, or None where it cannot be made here. `bias` and `first` are changed by
    those faults that concern the bias and the scale of activations.
    """

    subject: Subject
    recipe: Recipe
    path: str
    stored: Stored
    bias: Tensor | None
    generator: torch.Generator
    first: bool = False

    def pick(self, count: int) -> int:
        """Return a random number from 0 to `count` - 1."""
        return int(torch.randint(count, (), generator=self.generator))

    def rows(self) -> Tensor:
        """Return a mask [rows, 1, 1] of a random block: a head, or 1 row to half of them."""
        count = self.stored.codes.shape[0]
        if self.pick(2):
            size = max(count // HEADS, 1)
            begin = self.pick(HEADS) * size
        else:
            size = 2 ** self.pick(max(count.bit_length() - 1, 1))
            begin = self.pick(count - size + 1)
        mask = torch.zeros(count, 1, 1, dtype=torch.bool)
        mask[begin : begin + size] = True
        return mask

    def other(self) -> Stored | None:
        """Return the stored weight of another layer of the same shape."""
        shape = self.subject.linear(self.path).weight.shape
        others = [
            path
            for path in self.subject.received
            if path != self.path and self.subject.linear(path).weight.shape == shape
        ]
        if not others:
            return None
        return self.recipe.store(self.subject.linear(others[self.pick(len(others))]).weight.detach())


Fault = Callable[[Draw], "Stored | None"]


def _zero_point(draw: Draw) -> Stored | None:
    if draw.recipe.scheme == "float":
        return None
    return replace(draw.stored, zero=draw.stored.zero + (1 if draw.pick(2) else -1))


def _neighbour(draw: Draw) -> Stored | None:
    """Take the scales of the next row, or of the next group."""
    scale = draw.stored.scale
    if scale.numel() == 1:
        return None
    return replace(draw.stored, scale=scale.roll(1, 1 if scale.shape[1] > 1 and draw.pick(2) else 0))


def _other_scale(draw: Draw) -> Stored | None:
    other = draw.other()
    return None if other is None else replace(draw.stored, scale=other.scale)


def _reciprocal(draw: Draw) -> Stored:
    scale = draw.stored.scale
    rows = draw.rows() if len(scale) > 1 else torch.tensor(True)
    return replace(draw.stored, scale=torch.where(rows, 1 / scale, scale))


def _order(draw: Draw) -> Stored:
    """Put the codes of rows in another order; their scales stay, or go with them."""
    stored = draw.stored
    count = stored.codes.shape[0]
    orders = (torch.arange(count).roll(1), torch.arange(count).flip(0), torch.randperm(count, generator=draw.generator))
    order = orders[draw.pick(3)]
    if draw.pick(2):
        order = torch.where(draw.rows().flatten(), order, torch.arange(count))
    codes = stored.codes[order]
    if len(stored.scale) == 1 or draw.pick(2):
        return replace(stored, codes=codes)
    return replace(stored, codes=codes, scale=stored.scale[order], zero=stored.zero[order])


def _nibbles(draw: Draw) -> Stored:
    """Exchange the halves of each byte: of one code, or two codes of 4 bits."""
    patterns = draw.stored.patterns()
    if draw.recipe.bits == 8:
        return draw.stored.with_patterns(patterns << 4 | patterns >> 4)
    return draw.stored.with_patterns(patterns.view(*patterns.shape[:2], -1, 2).flip(3).flatten(2))


def _zeroed(draw: Draw) -> Stored:
    """Give rows the code of zero."""
    stored = draw.stored
    return replace(stored, codes=torch.where(draw.rows(), stored.zero.to(stored.codes.dtype), stored.codes))


def _negated(draw: Draw) -> Stored:
    """Negate the codes of rows, about their zero point."""
    stored = draw.stored
    if draw.recipe.scheme == "float":
        negated = stored.codes ^ 2 ** (stored.bits - 1)
    else:
        negated = 2 * stored.zero.to(stored.codes.dtype) - stored.codes
        negated = negated.clamp(0, 2**stored.bits - 1) if stored.code == "uint" else negated
    return replace(stored, codes=torch.where(draw.rows(), negated, stored.codes))


def _bias(draw: Draw) -> Stored | None:
    if draw.bias is None:
        return None
    draw.bias = None
    return draw.stored


def _shifted(draw: Draw) -> Stored:
    """Shift all codes by one bit, to the left or to the right."""
    patterns = draw.stored.patterns()
    return draw.stored.with_patterns(patterns << 1 if draw.pick(2) else patterns >> 1)


def _narrow(draw: Draw) -> Stored:
    weight = draw.subject.linear(draw.path).weight.detach()
    return draw.recipe.store(weight, narrow=1 / (2 + draw.pick(2)))


def _doubled(draw: Draw) -> Stored | None:
    """Double the scales of one group of columns in a block of rows, or of that block."""
    scale = draw.stored.scale
    if scale.numel() == 1:
        return None
    groups = torch.zeros(1, scale.shape[1], 1, dtype=torch.bool)
    groups[:, draw.pick(scale.shape[1])] = True
    return replace(draw.stored, scale=torch.where(draw.rows() & groups, 2 * scale, scale))


def _other_weight(draw: Draw) -> Stored | None:
    return draw.other()


def _first_token(draw: Draw) -> Stored | None:
    if draw.recipe.scheme != "dynamic":
        return None
    draw.first = True
    return draw.stored


KINDS: dict[str, Fault] = {
    "zero point off by one": _zero_point,
    "scale of a neighbour": _neighbour,
    "scale of another layer": _other_scale,
    "reciprocal scale": _reciprocal,
    "rows in another order": _order,
    "nibbles swapped": _nibbles,
    "rows zeroed": _zeroed,
    "sign flipped": _negated,
    "bias lost": _bias,
    "codes shifted": _shifted,
    "range too narrow": _narrow,
    "scale doubled": _doubled,
    "weight of another layer": _other_weight,
    "scale of the first token": _first_token,
}


@dataclass(frozen=True, slots=True)
class Faulty:
    """A fault that was drawn: `layer` stands at `path` in place of the right one, `ratio` is its size."""

    subject: Subject
    recipe: Recipe
    kind: str
    path: str
    layer: nn.Module
    ratio: float


def draw(kind: str, scheme: str, bits: int, generator: torch.Generator) -> Faulty | None:
    """Draw model, layer and details of one fault; None where this kind cannot be made of them."""

    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    chosen = subject(NAMES[pick(len(NAMES))], pick(SEEDS))
    recipe = Recipe(scheme, bits, FORMS[pick(len(FORMS))], bool(pick(2)), bool(pick(2)))
    paths = [path for path in chosen.received if recipe.head or path not in chosen.heads]
    path = paths[pick(len(paths))]
    linear = chosen.linear(path)
    with torch.no_grad():
        stored = recipe.store(linear.weight)
        bias: Tensor | None = linear.bias
        given = Draw(chosen, recipe, path, stored, bias, generator)
        wrong = KINDS[kind](given)
        if wrong is None:
            return None
        # A bias that is lost reads as zeros in place, and is not there at all in a layer of codes.
        left = (
            torch.zeros_like(bias)
            if bias is not None and given.bias is None and recipe.form == "weights"
            else given.bias
        )
        layer = recipe.layer(wrong, left, first=given.first).eval()
        ratio = size(linear, recipe.layer(stored, bias), layer, chosen.received[path])
    return Faulty(chosen, recipe, kind, path, layer, ratio)


def size(linear: nn.Module, right: nn.Module, wrong: nn.Module, received: Tensor) -> float:
    """Return the fault's share of the output over the rounding's: RMS(wrong - right) / RMS(right - linear)."""
    with torch.no_grad():
        rounded = right(received)
        fault = float((wrong(received) - rounded).pow(2).mean().sqrt())
        rounding = float((rounded - linear(received)).pow(2).mean().sqrt())
    return fault / rounding if rounding else math.inf


def first_in(low: float, high: float, kinds: list[str], scheme: str, bits: int, generator: torch.Generator) -> Faulty:
    """Draw until a fault's size is in [low, high); each kind has its turns before the next is tried."""
    for kind in kinds:
        for _ in range(_PATIENCE):
            found = draw(kind, scheme, bits, generator)
            if found is not None and low <= found.ratio < high:
                return found
    raise ValueError(f"no fault of {scheme} at {bits} bits is {low} to {high} times its rounding")
