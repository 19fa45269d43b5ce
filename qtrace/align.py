"""Which module of the candidate answers to which module of the reference, judged from names alone.

Rules in order, the first that applies makes the pair:

1. `prefix`: the whole tree was moved below another module (a user's wrapper with `self.model = …`), or lifted
   out of one. Only where this explains most names, and clearly more than taking them as they are; then it
   replaces rule 3.
2. `name_attribute`: a wrapper keeps the float name in an attribute (discovered, not known by name: its values are
   reference paths).
3. `exact`: the same path.
4. `stripped`: the same path once the components are dropped that occur nowhere in the reference (`wrapped`,
   `_orig_mod`). At the end of a path only those that elsewhere stand before a known one: `q_proj.wrapped` is
   `q_proj` where there is a `wrapped.layers`, but `q_proj.weight_quantizer` is something that was put inside.

Several candidate modules may answer to one reference module: a wrapper and the module inside it. At run time
the outer one counts (the probe sees to it); those that never run never matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qtrace.records import Pairing


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module as alignment sees it: its path, its class name, and its string attributes."""

    path: str
    type: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alignment:
    """The pairs, and the reference modules that no candidate module answers to.

    `pairs` maps a candidate path to its `Pairing`; a reference path may occur in several.
    """

    pairs: dict[str, Pairing]
    alone: tuple[str, ...]


def align(reference: Sequence[ModuleInfo], candidate: Sequence[ModuleInfo]) -> Alignment:
    """Pair the candidate's modules with the reference's by name; roots always answer to each other."""
    references = {m.path: m for m in reference}
    renamed = _prefix_shift(references, candidate)
    attributes = _name_attributes(references, candidate)
    vocabulary = {part for path in references for part in path.split(".")}
    wrappers = _wrapper_components(candidate, vocabulary)
    pairs: dict[str, Pairing] = {}
    for module in candidate:
        name, rule = _reference_name(module, references, renamed, attributes, vocabulary, wrappers)
        if name is not None:
            pairs[module.path] = Pairing(
                reference=name,
                candidate=module.path,
                rule=rule,
                reference_type=references[name].type,
                candidate_type=module.type,
            )
    taken = {pair.reference for pair in pairs.values()}
    return Alignment(pairs, tuple(path for path in references if path not in taken))


def _reference_name(
    module: ModuleInfo,
    references: Mapping[str, ModuleInfo],
    renamed: Mapping[str, str] | None,
    attributes: Sequence[str],
    vocabulary: set[str],
    wrappers: set[str],
) -> tuple[str | None, str]:
    if module.path == "":
        return "", "exact"
    for attribute in attributes:
        name = module.attributes.get(attribute, "")
        if name in references and _is_subsequence(name, module.path):
            return name, "name_attribute"
    if renamed is not None:
        if module.path in renamed:
            return renamed[module.path], "prefix"
    elif module.path in references:
        return module.path, "exact"
    parts = module.path.split(".")
    if parts[-1] not in vocabulary and parts[-1] not in wrappers:
        return None, ""
    kept = ".".join(part for part in parts if part in vocabulary)
    if renamed is not None:
        kept = renamed.get(kept, "")
    # An inner module must not answer to the root just because every component of its path is foreign.
    if kept and kept in references:
        return kept, "stripped"
    return None, ""


def _prefix_shift(references: Mapping[str, ModuleInfo], candidate: Sequence[ModuleInfo]) -> dict[str, str] | None:
    """Return candidate path -> reference path under the one prefix that explains most names, or None."""
    candidates = {m.path for m in candidate}
    below = {path for path in references if path}
    exact = len(below & candidates)
    if len(below) <= 2 * exact + 1:
        return None
    best: dict[str, str] = {}
    root: dict[str, str] = {}
    # Only a module near the root can hold the whole tree; deeper ones would make this quadratic.
    for prefix in (path for path in candidates if path and path.count(".") < 3):
        shifted = {f"{prefix}.{path}": path for path in below if f"{prefix}.{path}" in candidates}
        if len(shifted) > len(best):
            best, root = shifted, {prefix: ""}
    for prefix in (path for path in below if path.count(".") < 3):
        cut = len(prefix) + 1
        lifted = {p[cut:]: p for p in below if p.startswith(f"{prefix}.") and p[cut:] in candidates}
        if len(lifted) > len(best):
            best, root = lifted, {}
    if len(best) <= 2 * exact + 1 or 2 * len(best) < len(below):
        return None
    return root | best


def _wrapper_components(candidate: Sequence[ModuleInfo], vocabulary: set[str]) -> set[str]:
    """Return the foreign components that somewhere stand directly or at a distance before a known one."""
    found: set[str] = set()
    for module in candidate:
        parts = module.path.split(".")
        known = [position for position, part in enumerate(parts) if part in vocabulary]
        if known:
            found.update(part for part in parts[: known[-1]] if part not in vocabulary)
    return found


def _name_attributes(references: Mapping[str, ModuleInfo], candidate: Sequence[ModuleInfo]) -> list[str]:
    """Return the attributes whose strings are reference paths on most of the modules that have them."""
    seen: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for module in candidate:
        for attribute, value in module.attributes.items():
            seen[attribute] += 1
            hits[attribute] += value in references and _is_subsequence(value, module.path)
    good = [a for a in seen if hits[a] and 2 * hits[a] >= seen[a]]
    return sorted(good, key=lambda a: (-hits[a], a))


def _is_subsequence(name: str, path: str) -> bool:
    """Return whether the components of `name` occur in `path` in this order; empty names do not count."""
    rest = iter(path.split("."))
    return bool(name) and all(part in rest for part in name.split("."))
