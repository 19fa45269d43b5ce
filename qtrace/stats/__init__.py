"""The statistics kernel: how a candidate's tensor differs from the reference's, in one pass over both.

`measure` is for a pair, `describe` for one tensor, `plain` for what a model returned in whatever wrapping.
Formulas and edges stand at `qtrace.stats.metrics.statistics`. All figures are within a relative error of 1e-6
of a computation in float64, the SQNR in dB and the cosine included: sums run in float32 only where that holds,
see `kernel`, and in float64 otherwise, see `exact`.
"""

from qtrace.stats.measurement import Measurement, measure
from qtrace.stats.metrics import Metrics
from qtrace.stats.plain import NoValues, dequantizes, plain
from qtrace.stats.summary import Summary, describe

__all__ = ["Measurement", "Metrics", "NoValues", "Summary", "dequantizes", "describe", "measure", "plain"]
