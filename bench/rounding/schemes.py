"""Five ways to quantize a linear layer, at 8 and at 4 bits, as weights in place or as codes in a module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCHEMES = ("tensor", "channel", "group", "dynamic", "float")
BITS = (8, 4)
GROUP = 32
FORMS = ("weights", "codes", "packed")
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LARGEST_E4M3 = 448.0


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight as codes [rows, groups, columns of a group], with scales and zero points [rows or 1, groups, 1].

    `code` is "int" (signed, no zero point), "uint" (with one), "e4m3" or "e2m1"; codes are integers, those of the two
    floats their bits.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    code: str
    bits: int

    def values(self) -> Tensor:
        """Return the weight [rows, columns]."""
        weight: Tensor = ((decode(self.codes, self.code) - self.zero) * self.scale).flatten(1)
        return weight

    def patterns(self) -> Tensor:
        """Return the codes as unsigned patterns of `bits` bits."""
        patterns: Tensor = self.codes % 2**self.bits
        return patterns

    def with_patterns(self, patterns: Tensor) -> Stored:
        """Return the weight with other patterns of bits; for signed codes the first bit is the sign."""
        codes = patterns % 2**self.bits
        if self.code == "int":
            codes = torch.where(codes >= 2 ** (self.bits - 1), codes - 2**self.bits, codes)
        return replace(self, codes=codes)


def decode(codes: Tensor, code: str) -> Tensor:
    """Return the numbers that the codes stand for, before zero point and scale."""
    if code == "e4m3" and not codes.is_floating_point():
        codes = codes.to(torch.uint8).view(torch.float8_e4m3fn)
    if code == "e2m1":
        return torch.tensor([*_E2M1, *(-x for x in _E2M1)])[codes.long()]
    return codes.to(torch.float32)


def store(weight: Tensor, scheme: str, bits: int, *, affine: bool = False, narrow: float = 1.0) -> Stored:
    """Quantize a weight rightly, to the nearest code.

    `affine` takes a zero point where the scheme's codes are integers; `narrow` is the share of the true range that is
    covered, what is beyond it is clipped.
    """
    rows, columns = weight.shape
    grouped = scheme == "group" or (scheme == "float" and bits == 4)
    blocks = weight.reshape(rows, -1, GROUP if grouped else columns)
    whole = scheme == "tensor" or (scheme == "float" and bits == 8)
    over = (0, 1, 2) if whole else (2,)
    largest = blocks.abs().amax(over, keepdim=True).clamp(min=1e-9) * narrow
    none = torch.zeros_like(largest)
    if scheme == "float":
        scale = largest / (_LARGEST_E4M3 if bits == 8 else _E2M1[-1])
        scaled = blocks / scale
        if bits == 8:
            cut = scaled.clamp(-_LARGEST_E4M3, _LARGEST_E4M3)
            return Stored(cut.to(torch.float8_e4m3fn).view(torch.uint8).short(), scale, none, "e4m3", bits)
        nearest = (scaled.abs()[..., None] - torch.tensor(_E2M1)).abs().argmin(-1)
        return Stored((nearest + 8 * (scaled < 0)).short(), scale, none, "e2m1", bits)
    if not affine:
        most = 2 ** (bits - 1) - 1
        scale = largest / most
        return Stored(torch.round(blocks / scale).clamp(-most, most).short(), scale, none, "int", bits)
    low, high = blocks.amin(over, keepdim=True).clamp(max=0), blocks.amax(over, keepdim=True).clamp(min=0)
    scale = ((high - low) * narrow).clamp(min=1e-9) / (2**bits - 1)
    zero = torch.round(-low * narrow / scale)
    return Stored((torch.round(blocks / scale) + zero).clamp(0, 2**bits - 1).short(), scale, zero, "uint", bits)


def scales_per_token(x: Tensor, most: int) -> Tensor:
    """Return the scale of each token."""
    return x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / most


def scale_of_first_token(x: Tensor, most: int) -> Tensor:
    """Return the scale of each sample's first token, as a wrong layer uses it for all tokens."""
    return scales_per_token(x[..., :1, :], most)


class CodesLinear(nn.Module):
    """A linear layer that keeps codes and scales, and restores its weight in each forward."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    smooth: Tensor | None

    def __init__(self, stored: Stored, bias: Tensor | None, packed: bool, smooth: Tensor | None) -> None:
        super().__init__()
        self.code, self.shape, self.packed = stored.code, stored.codes.shape, packed
        self.register_buffer("codes", _packed(stored) if packed else _unpacked(stored))
        self.register_buffer("scale", stored.scale.clone())
        self.register_buffer("zero_point", stored.zero.clone())
        self.register_buffer("smooth", smooth)
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        codes = self.codes
        if self.packed:
            codes = torch.stack([codes & 15, codes >> 4], -1).view(self.shape).short()
            codes = torch.where(codes > 7, codes - 16, codes) if self.code == "int" else codes
        weight = ((decode(codes, self.code) - self.zero_point) * self.scale).flatten(1)
        return F.linear(x if self.smooth is None else x / self.smooth, weight, self.bias)


class DynamicLinear(nn.Module):
    """Rounds the input of a linear layer, with scales that are found in each forward."""

    def __init__(self, linear: nn.Module, bits: int, scales: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.linear, self.most, self.scales = linear, 2 ** (bits - 1) - 1, scales

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scales(x, self.most)
        out: Tensor = self.linear(torch.round(x / scale).clamp(-self.most, self.most) * scale)
        return out


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is quantized: `form` is how weights are kept, `head` whether the last layer is quantized too."""

    scheme: str
    bits: int
    form: str
    affine: bool
    head: bool

    def store(self, weight: Tensor, *, narrow: float = 1.0) -> Stored:
        """Quantize a weight."""
        affine = self.affine and self.scheme != "float"
        return store(weight, self.scheme, self.bits, affine=affine, narrow=narrow)

    def layer(
        self,
        stored: Stored,
        bias: Tensor | None,
        *,
        smooth: Tensor | None = None,
        turn: Tensor | None = None,
        first: bool = False,
    ) -> nn.Module:
        """Return the layer for a stored weight.

        Where `smooth` is given, the weight's columns were multiplied by it; where `turn` is, the weight was multiplied
        by this orthogonal matrix. The layer undoes both. With `first` the first token's scale is used for all.
        """
        layer: nn.Module
        if self.form == "weights" or turn is not None:
            weight = stored.values()
            weight = weight if turn is None else weight @ turn.T
            weight = weight if smooth is None else weight / smooth
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            with torch.no_grad():
                layer.weight.copy_(weight)
                if bias is not None:
                    layer.bias.copy_(bias)
        else:
            layer = CodesLinear(stored, bias, self.form == "packed" and self.bits == 4, smooth)
        if self.scheme == "dynamic":
            return DynamicLinear(layer, self.bits, scale_of_first_token if first else scales_per_token)
        return layer


def quantize(model: nn.Module, recipe: Recipe, skip: Iterable[str]) -> nn.Module:
    """Quantize all linear layers of `model` but those in `skip`, in place; return the model."""
    skipped = set(skip)
    with torch.no_grad():
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and path not in skipped:
                model.set_submodule(path, recipe.layer(recipe.store(module.weight), module.bias).eval())
    return model


def _unpacked(stored: Stored) -> Tensor:
    """Return the codes in the type that fits them."""
    if stored.code == "int":
        return stored.codes.to(torch.int8)
    codes = stored.codes.to(torch.uint8)
    return codes.view(torch.float8_e4m3fn) if stored.code == "e4m3" else codes


def _packed(stored: Stored) -> Tensor:
    """Return two patterns of 4 bits in each byte, the first in the low half."""
    flat = stored.patterns().flatten(1)
    return (flat[:, ::2] | flat[:, 1::2] << 4).to(torch.uint8)


@functools.cache
def cells() -> tuple[tuple[str, int], ...]:
    """Return all schemes with all widths."""
    return tuple((scheme, bits) for scheme in SCHEMES for bits in BITS)
