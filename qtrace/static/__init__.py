"""What differs between aligned modules before anything runs: parameters, buffers, plain attributes, ties."""

from qtrace.static.differences import attribute_differences, minds_mode, static_differences, tensor_differences
from qtrace.static.report import StaticNote, pattern_of, static_report

__all__ = [
    "StaticNote",
    "attribute_differences",
    "minds_mode",
    "pattern_of",
    "static_differences",
    "static_report",
    "tensor_differences",
]
