"""A model as a stream of events: hooks, bound arguments, and the torch state that belongs to one side."""

from qtrace.probe.arguments import Bound, Signature, signature_of
from qtrace.probe.events import Call, End, Enter, Event, Exit, Pause, Replacement, Site
from qtrace.probe.precision import Precision
from qtrace.probe.side import Listener, LiveSide, Stepper, is_in_hook, is_own_code
from qtrace.probe.state import RandomState, SideState

__all__ = [
    "Bound",
    "Call",
    "End",
    "Enter",
    "Event",
    "Exit",
    "Listener",
    "LiveSide",
    "Pause",
    "Precision",
    "RandomState",
    "Replacement",
    "SideState",
    "Signature",
    "Site",
    "Stepper",
    "is_in_hook",
    "is_own_code",
    "signature_of",
]
