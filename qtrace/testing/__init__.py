"""What tests are made of: a model held against the one that it stands in for; see `qtrace.pytest_plugin`."""

from qtrace.testing.baselinefile import BaselineFile, baseline_path
from qtrace.testing.parity import Parity, ParityError

__all__ = ["BaselineFile", "Parity", "ParityError", "baseline_path"]
