"""The statistics kernel: how a candidate's tensor differs from the reference's, in one pass over both.

`measure` is for a pair, `describe` for one tensor, `plain` for what a model returned in whatever wrapping.
Formulas and edges stand at `qtrace.numerics.metrics.statistics`. All figures are within a relative error of 1e-6
of a computation in float64, the SQNR in dB and the cosine included: sums run in float32 only where that holds,
see `kernel`, and in float64 otherwise, see `float64`.
"""

from qtrace.numerics.dense import NoValues, dequantizes, plain
from qtrace.numerics.measurement import Measurement, Summary, describe, measure
from qtrace.numerics.metrics import Metrics

__all__ = ["Measurement", "Metrics", "NoValues", "Summary", "dequantizes", "describe", "measure", "plain"]
