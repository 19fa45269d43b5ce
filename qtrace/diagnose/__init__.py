"""From what passes left behind to named faults: pure, free of torch."""

from qtrace.diagnose.isolate import Suspect, opened, suspects, vanished
from qtrace.diagnose.outliers import is_noisy, outliers
from qtrace.diagnose.trial import CallRecord, Trial, Value

__all__ = ["CallRecord", "Suspect", "Trial", "Value", "is_noisy", "opened", "outliers", "suspects", "vanished"]
