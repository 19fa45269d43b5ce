"""One lockstep pass of a pair of models over one sample, and what must be known of the models before it."""

from qtrace.passes.onepass import LEAST_COVERAGE, Options, Pass, copied

__all__ = ["LEAST_COVERAGE", "Options", "Pass", "copied"]
