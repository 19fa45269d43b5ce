"""From what passes left behind to named faults: pure, free of torch."""

from qtrace.diagnose.isolate import Suspect, is_accounted, opened, repeats, role, suspects, vanished
from qtrace.diagnose.outliers import is_noisy, outliers
from qtrace.diagnose.rewritten import rewritten_inside, wrong_inside
from qtrace.diagnose.trial import CallRecord, Trial, Value
from qtrace.diagnose.verdicts import verdicts

__all__ = [
    "CallRecord",
    "Suspect",
    "Trial",
    "Value",
    "is_accounted",
    "is_noisy",
    "opened",
    "outliers",
    "repeats",
    "rewritten_inside",
    "role",
    "suspects",
    "vanished",
    "verdicts",
    "wrong_inside",
]
