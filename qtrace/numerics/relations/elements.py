"""Element by element: what a PEIR does not tell where one huge channel makes the interval.

A tolerance in units of the interval has room for anything in the ordinary channels of such a tensor, above all in a
coarse dtype. So most elements must also agree beside their own size, or the typical one.
"""

from __future__ import annotations

import torch

# An element may be off by so many tolerances, of its own size...
_SLACK = 10.0
_LOOSEST = 0.05
# Sums over a huge channel leave more rounding than an ordinary channel would have of its own.
_TIGHTEST = 1e-3
# ...and so many elements must not be off by more.
MOST = 0.9
_SAMPLE = 1 << 16


def picks(count: int, most: int, device: torch.device) -> torch.Tensor:
    """Return up to `most` different indices below `count`, spread evenly and without a period."""
    if count <= most:
        return torch.arange(count, device=device)
    golden = torch.arange(most, dtype=torch.float64) * 0.618_033_988_749_895
    indices: torch.Tensor = torch.unique((golden.frac() * count).long())
    return indices.to(device)


def sampled(tensor: torch.Tensor) -> torch.Tensor:
    """Return up to 2^16 elements, the same ones of any two tensors of one size."""
    flat = tensor.reshape(-1)
    return flat[picks(len(flat), _SAMPLE, flat.device)]


def loose(limit: float) -> float:
    """Return the share of its size by which an element may be off where the PEIR may be `limit`."""
    return min(max(_SLACK * limit, _TIGHTEST), _LOOSEST)


def typical(tensor: torch.Tensor) -> float:
    """Return the median size of the elements that are not zero, of a sample; 0 where all are."""
    sizes = sampled(tensor).abs()
    sizes = sizes[sizes > 0]
    return float(sizes.median()) if len(sizes) else 0.0


def near(found: torch.Tensor, wanted: torch.Tensor, share: float, least: float) -> torch.Tensor:
    """Return which elements are apart by at most `share` of their size, or of `least` where they are smaller."""
    return (found - wanted).abs_() <= share * wanted.abs().clamp_min_(least)
