"""Refuses stored traces where a command looks into code that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtrace.errors import UsageError

if TYPE_CHECKING:
    from qtrace.sources.pair import Pair


def need_a_model(pair: Pair, command: str) -> None:
    """Raise `UsageError` where both sides of `pair` are stored traces."""
    from qtrace.traces import trace_of

    if trace_of(pair.reference) is not None and trace_of(pair.candidate) is not None:
        raise UsageError(
            f"both sides are stored traces, which hold tensors and no code, and `qtrace {command}` needs a live model "
            "on one side; `qtrace run --inspect MODULE` shows the tensors of two traces side by side"
        )


def need_models(pair: Pair, command: str) -> None:
    """Raise `UsageError` where a side of `pair` is a stored trace: it holds tensors, and no code to look into."""
    from qtrace.traces import trace_of

    for side, model in (("reference", pair.reference), ("candidate", pair.candidate)):
        if trace_of(model) is not None:
            raise UsageError(
                f"the {side} is a stored trace, which holds tensors and no code, and `qtrace {command}` needs both "
                "models; `qtrace run --inspect MODULE` shows the tensors of a trace beside the other side's"
            )
