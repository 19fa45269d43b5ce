"""Pairs that are related in a known way: what the tests of `qtrace.numerics.relations` are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qtrace.numerics import measure
from qtrace.numerics.relations import relate
from qtrace.report.records import Relation

Change = Callable[[torch.Tensor], torch.Tensor]


def related(reference: torch.Tensor, candidate: torch.Tensor) -> Relation | None:
    return relate(reference, candidate, measure(reference, candidate).result(), thorough=True)


def factors(count: int) -> torch.Tensor:
    return torch.linspace(0.3, 2.3, count)[torch.randperm(count)]


def orthogonal(size: int) -> torch.Tensor:
    turn: torch.Tensor = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    return turn


def rotated(x: torch.Tensor) -> torch.Tensor:
    return (x.double() @ orthogonal(x.shape[-1])).to(x.dtype)


def interleaved(x: torch.Tensor) -> torch.Tensor:
    return torch.stack(x.chunk(2, -1), -1).flatten(-2)


def of_heads(change: Change, head_dim: int) -> Change:
    return lambda x: change(x.reshape(*x.shape[:-1], -1, head_dim)).reshape(x.shape)


def shifted(x: torch.Tensor, by: int, axis: int = -2) -> torch.Tensor:
    edge = range(by) if by > 0 else range(x.shape[axis] + by, x.shape[axis])
    return x.roll(by, axis).index_fill(axis, torch.tensor(list(edge)), 0)


def on_a_grid(x: torch.Tensor, bits: int) -> torch.Tensor:
    step = x.abs().max() / (2 ** (bits - 1) - 1)
    rounded: torch.Tensor = (x / step).round() * step
    return rounded


def through(dtype: torch.dtype) -> Change:
    return lambda x: x.to(dtype).to(x.dtype)


def _derangement(size: int) -> torch.Tensor:
    return (torch.arange(size) * 5 + 3) % size


# By kind: how a candidate so related is made of a reference [..., tokens, channels] with 64 channels. float32 only
# where a kind needs a finer reference than the result.
RELATED: dict[str, dict[str, Change]] = {
    "gain": {"quarter": lambda x: x * 0.25, "minus": lambda x: x * -1.5},
    "channel_gain": {"spread": lambda x: x * factors(x.shape[-1]).to(x.dtype)},
    "rotation": {"random": rotated},
    "permuted_channels": {"mixed": lambda x: x[..., _derangement(x.shape[-1])]},
    "halves": {
        "swapped": lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
        "interleaved": interleaved,
        "deinterleaved": lambda x: torch.cat([x[..., 0::2], x[..., 1::2]], -1),
        "heads": of_heads(interleaved, 16),
    },
    "shifted": {"later": lambda x: shifted(x, 1), "earlier": lambda x: shifted(x, -3)},
    "clipped": {"both": lambda x: x.clamp(-0.8, 0.9), "below": lambda x: x.relu()},
    "cast": {
        "float8_e4m3fn": through(torch.float8_e4m3fn),
        "float8_e5m2": through(torch.float8_e5m2),
    },
}
FINE: dict[str, dict[str, Change]] = {
    "cast": {"bfloat16": through(torch.bfloat16), "float16": through(torch.float16), "plain": lambda x: x.bfloat16()},
    "rounded": {"int8": lambda x: on_a_grid(x, 8), "int4": lambda x: on_a_grid(x, 4)},
}

# What a fault makes of a tensor, and what is no relation of the whole tensor.
UNRELATED: dict[str, Change] = {
    "other values": torch.randn_like,
    "small noise": lambda x: x + 1e-6 * torch.randn_like(x),
    "noise": lambda x: x + 0.02 * torch.randn_like(x),
    "much noise": lambda x: x + torch.randn_like(x),
    "one channel flipped": lambda x: x * (1 - 2 * (torch.arange(x.shape[-1]) == 3).to(x.dtype)),
    "one channel scaled": lambda x: x * (1 + (torch.arange(x.shape[-1]) == 3).to(x.dtype)),
    "two channels swapped": lambda x: x[..., [1, 0, *range(2, x.shape[-1])]],
    "a factor per token": lambda x: x * factors(x.shape[-2])[:, None].to(x.dtype),
    "a bias": lambda x: x + torch.randn(x.shape[-1]).to(x.dtype),
    "gelu": torch.nn.functional.gelu,
    "truncated": lambda x: (x * 16).floor() / 16,
    "zeros": torch.zeros_like,
    "one token for all": lambda x: x.mean(-2, keepdim=True).expand_as(x),
    "rotated, then noise": lambda x: rotated(x) + 0.2 * torch.randn_like(x),
    "other from position 5": lambda x: torch.cat([x[..., :5, :], torch.randn_like(x[..., 5:, :])], -2),
    "each token rotated apart": lambda x: torch.stack([rotated(t) for t in x.unbind(-2)], -2),
    "tokens mixed": lambda x: x[..., _derangement(x.shape[-2]), :],
}

REFERENCES: dict[str, Callable[[], torch.Tensor]] = {
    "normal": lambda: torch.randn(1, 84, 64),
    "half zeros": lambda: torch.randn(1, 84, 64).relu() + 0.0,
    "one huge channel": lambda: torch.randn(84, 64) * (1 + 200 * (torch.arange(64) == 5)),
    "offsets": lambda: torch.randn(2, 42, 64) + 3 * torch.randn(64),
    "unit norm": lambda: torch.nn.functional.normalize(torch.randn(84, 64), dim=-1) * 8,
    "heads": lambda: torch.randn(2, 3, 28, 64),
    "few tokens": lambda: torch.randn(14, 64),
}


def table(*parts: dict[str, dict[str, Change]]) -> list[Any]:
    return [(kind, name, change) for part in parts for kind, named in part.items() for name, change in named.items()]
