"""Names that the user gives: `CANDIDATE=REFERENCE`, with `*` for a component that stays."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qtrace.align.modules import Names, Tree
from qtrace.errors import UsageError, did_you_mean, near


def renamed(reference: Tree, candidate: Tree, renames: Mapping[str, str]) -> Names:
    """Return the reference path of every candidate path at or below one that a pattern matches; the first one counts.

    `encoder.layer.*.query` to `layers.*.q` makes `layers.3.q` of `encoder.layer.3.query`, and `layers.3.q.norm`
    of what is below it.

    Raises:
        UsageError: a pattern matches no module of the candidate, or leads to none of the reference.
    """
    found: Names = {}
    for old, new in renames.items():
        if old.count("*") < new.count("*"):
            raise UsageError(f"--rename {old}={new}: the right side has more * than the left one")
        pattern = re.compile(re.escape(old).replace(r"\*", r"([^.]+)") + r"(|\..*)")
        matched = [match for path in candidate.below if (match := pattern.fullmatch(path))]
        if not matched:
            raise UsageError(f"--rename {old}={new}: {_hint(old, candidate)}")
        made = {match[0]: _filled(new, match.groups()) for match in matched}
        hits = {path: name for path, name in made.items() if name in reference}
        if not hits:
            first = next(iter(made.values()))
            raise UsageError(
                f"--rename {old}={new}: the reference has no module {first}; {did_you_mean(first, reference.below)}"
            )
        found = hits | found
    return found


def _filled(new: str, groups: tuple[str, ...]) -> str:
    *components, rest = groups
    return re.sub(r"\*", lambda _: components.pop(0), new) + rest


def _hint(old: str, candidate: Tree) -> str:
    names = near(old.replace("*", "0"), candidate.below)
    tail = f"near: {', '.join(names)}" if names else "`qtrace modules` lists the paths"
    return f"the candidate has no module {old}; {tail}"
