"""The statistics kernel: computes how a candidate's tensor differs from the reference's, in one pass over both.

`measure` takes a pair of tensors, `describe` takes one, and `plain` unwraps any tensor that a model returns.
`qtrace.numerics.metrics.statistics` documents formulas and edge cases. All figures, including the SQNR in dB and the
cosine, are within a relative error of 1e-6 of a computation in float64. Sums run in float32 only where that holds
(see `kernel`), and in float64 otherwise (see `float64`).
"""

from qtrace.numerics.dense import NoValues, dequantizes, plain
from qtrace.numerics.measurement import Measurement, Summary, describe, measure
from qtrace.numerics.metrics import Metrics

__all__ = ["Measurement", "Metrics", "NoValues", "Summary", "dequantizes", "describe", "measure", "plain"]
