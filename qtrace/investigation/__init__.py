"""From "it differs" to a named fault: passes with forced boundaries, then grafts, then words."""

from qtrace.investigation.investigation import Investigation
from qtrace.investigation.trials import as_trial

__all__ = ["Investigation", "as_trial"]
