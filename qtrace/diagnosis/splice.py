"""A trial of the whole models, with one container as a trial of that container alone shows it."""

from __future__ import annotations

from dataclasses import replace

from qtrace.diagnosis.trial import CallRecord, Trial, Value


def spliced(trial: Trial, again: Trial) -> Trial:
    """Return `trial` with the call that `again` made alone in the place where the whole models made it.

    It is a module that they call once. In execution order its calls come where they came then; what is handed on from
    its arguments is recognised as what came in there, and what it returned in what comes after it.
    """
    (call,) = again.roots
    before = next(one for one in trial.calls if one.module == call.module and one.side is None)
    came_in = {value.name: value.key for value in before.arguments}
    went_out = {value.name: value.key for value in before.outputs}
    keys = {value.key: went_out.get(value.name, value.key) for value in call.outputs}
    keys |= {value.key: came_in.get(value.name, value.key) for value in call.arguments}

    def numbered(values: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(replace(value, key=keys.get(value.key, value.key)) for value in values)

    def placed(one: CallRecord) -> CallRecord:
        return replace(
            one,
            entry=one.entry + before.entry,
            order=one.order + before.entry,
            arguments=numbered(one.arguments),
            outputs=numbered(one.outputs),
            children=[placed(child) for child in one.children],
        )

    def walked(one: CallRecord) -> CallRecord:
        if one is before:
            return replace(placed(call), sites=before.sites)
        return replace(one, children=[walked(child) for child in one.children])

    return Trial(tuple(walked(root) for root in trial.roots), trial.known)
