"""Families of dtypes that are measured in one way."""

from __future__ import annotations

import torch

# float32 holds every value of these, and their differences to within half a unit in the last place.
NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16})
# Neither float32 nor float64 holds all of these.
WIDE = frozenset({torch.int64, torch.uint64})
INTEGERS = WIDE | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32}
# Not every version of torch has all of these.
FLOAT8 = frozenset(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)
# What can be measured as it is.
READY = NARROW | INTEGERS | {torch.float64}
