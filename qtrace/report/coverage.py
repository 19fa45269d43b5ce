"""Shows the coverage of the reference's calls, and the module pairs that `qtrace modules` lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from qtrace.report.notes import reason
from qtrace.report.records import ReportData, Unmatched
from qtrace.report.records.rows import Pairing
from qtrace.report.table import plain_table
from qtrace.report.text import ABSENT, count, share, shorten, shown

NAMED = 4
# Calls without counterpart have one reason in the coverage, but two among the unmatched modules.
BEHIND = {"alone": ("partner_not_called", "other_place")}


def coverage(report: ReportData) -> RenderableType:
    """Return the coverage line, and a line for every reason why calls were not compared."""
    covered = report.coverage
    line = Text("compared ")
    line.append(f"{covered.compared} of {covered.reference_calls} calls", style="bold")
    line.append(f" ({share(covered.compared, covered.reference_calls)})")
    if not covered.reasons:
        return line
    line.append("; not compared:")
    lines: list[RenderableType] = [line]
    for key, calls in sorted(_reasons(report).items(), key=lambda item: -item[1]):
        lines.append(Padding(Text(f"{calls} {reason(key)}{_names(report, key)}"), (0, 0, 0, 2), expand=False))
    return Group(*lines)


def _reasons(report: ReportData) -> dict[str, int]:
    """Return the uncompared calls by reason; by more precise reasons where these account for all calls."""
    found: dict[str, int] = {}
    for key, calls in report.coverage.reasons.items():
        behind = [(one.reason, one.calls) for one in _modules(report, BEHIND.get(key, ()))]
        if calls != sum(number for _, number in behind):
            behind = [(key, calls)]
        for name, number in behind:
            found[name] = found.get(name, 0) + number
    return found


def _modules(report: ReportData, reasons: Collection[str]) -> list[Unmatched]:
    return [one for one in report.unmatched if one.reason in reasons and one.side == "reference" and one.calls]


def _names(report: ReportData, key: str) -> str:
    """Return the modules behind a reason: all when they are few, else some and the command that shows the rest."""
    names = list(dict.fromkeys(shown(one.module) for one in _modules(report, BEHIND.get(key, (key,)))))
    if not names:
        return ""
    if len(names) <= NAMED:
        return ": " + ", ".join(names)
    return f": {', '.join(names[:NAMED])} and {len(names) - NAMED} more modules (`qtrace modules` lists them)"


RULES = {
    "exact": "the same path on both sides",
    "renamed": "the user says so (--rename)",
    "name_attribute": "the candidate's module keeps the reference's path in an attribute of its own",
    "stripped": "the same path without the components that only the candidate has (such as `wrapped`), or a wrapper's",
    "prefix": "the same path below another module: the whole tree was moved",
    "fused": "the last of several that the candidate computes in one, so only what they return is compared",
    "weights": "no name can be trusted, but both hold the same weight, each being the other's only match",
    "enclosing": "no name can be trusted, but both hold the same pairs",
    "order": "no name or weight tells, but both stand between the same pairs and have the same type; may be wrong",
}
REASONS = {
    "fused": "computed by the candidate in one with others",
    "fuses": "computing several of the reference's in one",
}
RULE_WIDTH = max(map(len, RULES))
CONFIDENCE_WIDTH = 10
CALLS_WIDTH = 7
MOST = 8
WEIGHTS = (
    "column weights: how alike a pair's are, row by row (a cosine, 1 is the same up to a scale); "
    "- where they cannot be read"
)


def modules(
    pairings: Sequence[Pairing],
    unmatched: Sequence[Unmatched],
    *,
    width: int,
    explain: bool = False,
    alike: Mapping[str, float] | None = None,
) -> Iterator[RenderableType]:
    """Yield the pairs, then the modules without partner, then the totals.

    With `explain` the list also has modules that never ran, every name, the confidence in each pair, and the meaning of
    each rule. `alike` has, by the candidate's path, the similarity of a pair's weights, 0 to 1.
    """
    listed = pairings if explain else _that_ran(pairings)
    yield from _pairs(listed, width, alike if explain else None)
    for side in ("reference", "candidate"):
        yield from _alone(side, [one for one in unmatched if one.side == side], width, explain)
    yield Text()
    rules = Counter(pair.rule for pair in listed)
    total = count(len(listed), "pair")
    yield Text.assemble((total, "bold"), ": ", ", ".join(f"{n} {rule}" for rule, n in rules.most_common()))
    if explain:
        for rule in rules:
            meaning = f"{rule}: {RULES.get(rule, 'no description')}"
            yield Padding(Text(meaning), (0, 0, 0, 2), expand=False)
        if alike:
            yield Padding(Text(WEIGHTS), (0, 0, 0, 2), expand=False)
    if len(listed) < len(pairings):
        hidden = count(len(pairings) - len(listed), "more pair")
        yield Text(f"{hidden}, of which the candidate never ran; --explain lists all")


def _that_ran(pairings: Sequence[Pairing]) -> list[Pairing]:
    """Return the pairs without those whose candidate never ran while the reference had another partner that did."""
    ran = {pair.reference for pair in pairings if pair.candidate_calls}
    return [pair for pair in pairings if pair.candidate_calls != 0 or pair.reference not in ran]


def _pairs(pairings: Sequence[Pairing], width: int, alike: Mapping[str, float] | None) -> Iterator[RenderableType]:
    """Yield the pairs: side by side where both paths have room, else one below the other."""
    fixed = RULE_WIDTH + CALLS_WIDTH + 3 + (0 if alike is None else CONFIDENCE_WIDTH + CALLS_WIDTH + 2)
    longest = max([len(shown(path)) for pair in pairings for path in (pair.reference, pair.candidate)], default=0)
    beside = fixed + 2 * longest <= width
    room = longest if beside else width - fixed
    table = plain_table()
    for heading in ("reference", "candidate") if beside else ("reference, candidate below it",):
        table.add_column(heading, overflow="fold", min_width=min(longest, room))
    table.add_column("rule", width=RULE_WIDTH)
    if alike is not None:
        table.add_column("confidence", width=CONFIDENCE_WIDTH)
        table.add_column("weights", justify="right", width=CALLS_WIDTH)
    table.add_column("calls", justify="right", width=CALLS_WIDTH)
    for pair in pairings:
        candidate = "=" if pair.candidate == pair.reference else shorten(pair.candidate, room if beside else room - 2)
        names = [Text(shorten(pair.reference, room))]
        if beside:
            names.append(Text(candidate))
        elif candidate != "=":
            names[0].append(f"\n  {candidate}")
        if alike is not None:
            weights = f"{alike[pair.candidate]:.3f}" if pair.candidate in alike else ABSENT
            said = [pair.rule, pair.confidence, weights]
        else:
            said = [pair.rule if pair.confidence == "high" else f"{pair.rule}\n({pair.confidence})"]
        table.add_row(*names, *map(Text, said), Text(_calls(pair)))
    if pairings:
        yield table
    else:
        yield Text("No module of the candidate answers to one of the reference.")


def _alone(side: str, ones: Sequence[Unmatched], width: int, explain: bool) -> Iterator[RenderableType]:
    """Yield the modules of one side without a partner, by reason; long lists, and never-called ones, with `explain`."""
    called = [one for one in ones if one.calls]
    if ones:
        yield Text()
        yield Text.assemble(
            (count(len(ones), f"{side} module"), "bold"), f" without a partner, {len(called)} of them called"
        )
    for why, group in _by_reason(ones if explain else called).items():
        if len(group) > MOST and not explain:
            types = Counter(one.type for one in group).most_common(4)
            kinds = ", ".join(f"{n} {kind}" for kind, n in types)
            said = f"{len(group)} {REASONS.get(why) or reason(why)}: {kinds}, …; --explain names them"
            yield Padding(Text(said.replace(", …", "") if len(types) < 4 else said), (0, 0, 0, 2), expand=False)
            continue
        yield Padding(Text(f"{REASONS.get(why) or reason(why)}:"), (0, 0, 0, 2), expand=False)
        for one, inside in _outermost(group) if side == "candidate" else [(one, 0) for one in group]:
            calls = count(one.calls, "call") if one.calls else "never called"
            tail = f"  {one.type}, {calls}" + (f", {inside} more inside" if inside else "")
            yield Text.assemble("    ", shorten(one.module, width - len(tail) - 4), (tail, "dim"))


def _outermost(ones: Sequence[Unmatched]) -> list[tuple[Unmatched, int]]:
    """Return the modules that are inside no other, with the number of modules inside: quantizers are deep trees."""
    paths = {one.module for one in ones}
    inside = Counter(outer for one in ones if (outer := _outermost_around(one.module, paths)) is not None)
    return [(one, inside[one.module]) for one in ones if _outermost_around(one.module, paths) is None]


def _outermost_around(path: str, paths: Collection[str]) -> str | None:
    parts = path.split(".")
    around = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return next((outer for outer in around if outer in paths), None)


def _by_reason(ones: Sequence[Unmatched]) -> dict[str, list[Unmatched]]:
    groups: dict[str, list[Unmatched]] = {}
    for one in ones:
        groups.setdefault(one.reason, []).append(one)
    return groups


def _calls(pair: Pairing) -> str:
    """Return the number of calls of a pair: one number where both sides agree, else one for each side."""
    if pair.reference_calls is None or pair.candidate_calls is None:
        return ABSENT
    if pair.reference_calls != pair.candidate_calls:
        return f"{pair.reference_calls}/{pair.candidate_calls}"
    return str(pair.reference_calls) if pair.reference_calls else "never"
