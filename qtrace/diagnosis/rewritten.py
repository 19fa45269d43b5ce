"""Containers whose inside is rewritten: channels rotated, reordered or scaled in one place and put right in another."""

from __future__ import annotations

from collections.abc import Collection

from qtrace.diagnosis.trial import Trial


def rewritten_inside(trial: Trial, open_paths: Collection[str], converted: Collection[str] = ()) -> set[str]:
    """Return which of these containers hand something around inside in a convention that no accident makes.

    `converted` are the calls whose boundaries were handed over in the candidate's convention already.
    """
    return {
        call.module
        for call in trial.calls
        if call.module in open_paths and call.side is None
        for child in call.children
        if child.side is None and child.module not in converted
        if any(value.deliberate for value in (*child.arguments, *child.outputs))
    }


def error_inside(trial: Trial, path: str) -> float:
    """Return the sum of the relative L2 errors that a container's children make on clean arguments.

    For where differing is the rule, and to count what is wrong says nothing. What is right in the convention that was
    handed over makes none.
    """
    return sum(
        value.rel_l2 or 0.0
        for call in trial.calls
        if call.module == path and call.side is None
        for child in call.children
        if child.side is None and trial.enters_clean(child)
        for value in child.outputs
        if not (value.agrees and value.deliberate)
    )


def wrong_inside(trial: Trial, path: str) -> set[tuple[str, ...]]:
    """Return what is wrong in a container: arguments handed to its children, what these make of clean ones, itself.

    Left out is what follows from a child that left unclean: wrong arguments after it, and the container's own output.
    """
    found: set[tuple[str, ...]] = set()
    for call in trial.calls:
        if call.module != path or call.side is not None:
            continue
        spoiled = False
        for child in call.children:
            if child.side is not None:
                continue
            wrong = (value for value in child.arguments if not value.agrees and (value.forced or not spoiled))
            found.update((child.module, value.name) for value in wrong)
            if child.differs and trial.enters_clean(child):
                found.add((child.module,))
            spoiled = spoiled or not child.leaves_clean
        if not spoiled and any(not (value.agrees or value.deliberate) for value in call.outputs):
            found.add((call.module,))
    return found
