"""qtrace: find the module where a wrapped, quantized or ported model stops computing the original's results.

In Python:

    report = qtrace.trace(reference, candidate, inputs)
    report.outcome, report.rows, report.save("report.json")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtrace.errors import ForwardError, Interrupted, QtraceError

if TYPE_CHECKING:
    from qtrace.tracing.api import Report, trace

__version__ = "0.1.0"
__all__ = ["ForwardError", "Interrupted", "QtraceError", "Report", "__version__", "trace"]


def __getattr__(name: str) -> Any:
    # torch is imported by the first use that needs it: the command line's help and stored reports do not need it.
    if name in ("Report", "trace"):
        from qtrace.tracing import api

        return getattr(api, name)
    raise AttributeError(f"module 'qtrace' has no attribute {name!r}")
