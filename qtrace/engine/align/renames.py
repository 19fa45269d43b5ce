"""Names that the user gives: `CANDIDATE=REFERENCE`, with `*` for a component that stays."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qtrace.engine.align.module_info import ModuleInfo, Names, Tree
from qtrace.engine.align.weights import ALIKE, WeightSample, likeness, sample_of
from qtrace.errors import UsageError, did_you_mean, near


def renamed(reference: Tree, candidate: Tree, renames: Mapping[str, str]) -> Names:
    """Return the reference path of every candidate path at or below one that a pattern matches; the first one counts.

    `encoder.layer.*.query` to `layers.*.q` makes `layers.3.q` of `encoder.layer.3.query`, and `layers.3.q.norm`
    of what is below it.

    Raises:
        UsageError: a pattern matches no module of the candidate, or leads to none of the reference, or two modules
            would answer to one.
    """
    found: Names = {}
    for old, new in renames.items():
        if "**" in old + new:
            raise UsageError(f"--rename {old}={new}: here ** stands for nothing; write one * for each component")
        if old.count("*") < new.count("*"):
            raise UsageError(f"--rename {old}={new}: the right side has more * than the left one")
        pattern = re.compile(re.escape(old).replace(r"\*", r"([^.]+)") + r"(|\..*)")
        matched = [match for path in candidate.modules if path and (match := pattern.fullmatch(path))]
        if not matched:
            raise UsageError(f"--rename {old}={new}: {_hint(old, candidate)}")
        made = {match[0]: _filled(new, match.groups()) for match in matched}
        hits = {path: name for path, name in made.items() if name in reference}
        if not hits:
            first = next(iter(made.values()))
            raise UsageError(
                f"--rename {old}={new}: the reference has no module {first}; {did_you_mean(first, reference.below)}"
            )
        for path, name in hits.items():
            found.setdefault(path, name)
    _check_apart(found)
    return found


def outdone(given: Names, names: Names) -> list[str]:
    """Return the paths that answer to what the user gave another partner: neither around that partner nor inside it."""
    partners: dict[str, list[str]] = {}
    for path, name in given.items():
        partners.setdefault(name, []).append(path)
    return [
        path
        for path, name in names.items()
        if path not in given and name in partners and not any(_is_nested(path, other) for other in partners[name])
    ]


def doubts(reference: Tree, candidate: Tree, given: Names) -> tuple[str, ...]:
    """Return in a sentence which of the user's pairs hold weights that have nothing to do with each other."""
    wrong = []
    for path, name in given.items():
        alike = likeness(reference[name].module, candidate[path].module)
        if alike is not None and not alike >= ALIKE:
            wrong.append(path)
    if not wrong:
        return ()
    first = wrong[0]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    owner = _owner(reference, sample_of(candidate[first].module))
    whose = f"it holds the weight of {owner}" if owner else "their weights have nothing in common"
    return (f"by --rename {first} answers to {given[first]}, but {whose}{more}: is the pattern right?",)


def _owner(reference: Tree, sample: WeightSample | None) -> str | None:
    """Return the reference module whose weight this is, where there is one alone."""
    owners = [path for path, info in reference.modules.items() if _holds(info, sample)]
    return owners[0] if len(owners) == 1 else None


def _holds(info: ModuleInfo, sample: WeightSample | None) -> bool:
    mine = sample_of(info.module)
    return mine is not None and mine.is_in(sample)


def _check_apart(found: Names) -> None:
    partners: dict[str, str] = {}
    # The outermost first, which is what a pattern says.
    for path, name in sorted(found.items(), key=lambda pair: (pair[0].count("."), pair[0])):
        other = partners.setdefault(name, path)
        if not _is_nested(path, other):
            raise UsageError(
                f"--rename: {other} and {path} of the candidate would both answer to {name} of the reference; "
                "give each a reference module of its own"
            )


def _is_nested(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")


def _filled(new: str, groups: tuple[str, ...]) -> str:
    *components, rest = groups
    return re.sub(r"\*", lambda _: components.pop(0), new) + rest


def _hint(old: str, candidate: Tree) -> str:
    names = near(old.replace("*", "0"), candidate.below)
    tail = f"near: {', '.join(names)}" if names else "`qtrace modules` lists the paths"
    return f"the candidate has no module {old}; {tail}"
