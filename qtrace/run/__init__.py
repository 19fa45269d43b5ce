"""One run over all samples, from plan to report."""

from qtrace.run.tracing import Run

__all__ = ["Run"]
