"""From what passes left behind to named faults: pure, free of torch."""

from qtrace.diagnose.isolate import Suspect, innocents, opened, repeats, role, suspects, unaccounted, vanished
from qtrace.diagnose.outliers import coarse_dtypes, is_noisy, outliers
from qtrace.diagnose.rewritten import error_inside, rewritten_inside, wrong_inside
from qtrace.diagnose.splice import spliced
from qtrace.diagnose.trial import CallRecord, Trial, Value
from qtrace.diagnose.verdicts import verdicts

__all__ = [
    "CallRecord",
    "Suspect",
    "Trial",
    "Value",
    "coarse_dtypes",
    "error_inside",
    "innocents",
    "is_noisy",
    "opened",
    "outliers",
    "repeats",
    "rewritten_inside",
    "role",
    "spliced",
    "suspects",
    "unaccounted",
    "vanished",
    "verdicts",
    "wrong_inside",
]
