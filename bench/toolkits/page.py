"""The rows as docs/toolkits.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bench.toolkits.environments import NOTES
from bench.toolkits.ways import ALL, Way
from qtrace.diagnosis.static_differences import pattern_of
from qtrace.report.notes import reason as words

Row = dict[str, Any]
COMPARED = ("torchao int8 dynamic", "optimum-quanto int8 weights", "bitsandbytes 8 bits")
MOST = 10

HEAD = """# Coverage by toolkit

Written by `make bench-toolkits`; do not edit. Each cell is one real run of a wrapper (`--wrap`) on a model. It counts
the reference's calls (without the root's) that have a partner that runs in the candidate, of all its calls. If fewer
were compared, that count follows. *Wrong pairs* are looked for by value, whatever rule made the pair. The dequantized
weight must be more like the partner's than like any other of that shape. A module without one is judged by what it
computes on the reference's own arguments.

Tiny models with random weights (Llama, BERT, ViT, a convolutional net, Qwen3-VL with an image), and two with real ones:
all-MiniLM-L6-v2 and SmolLM2-135M in float32, 32 tokens; one thread on the CPU.
"""


def page(about: dict[str, Any], ways: Sequence[Way], rows: Sequence[Row], absent: Sequence[Way]) -> str:
    """Return the whole page."""
    parts = [HEAD, ", ".join(f"{name} {value}" for name, value in about.items()) + ".", "", _coverage(ways, rows)]
    parts += ["## Left over, and why", "", *_left(rows), ""]
    parts += ["## Refused", "", *_refused(rows), ""]
    if absent:
        named = ", ".join(way.name for way in absent)
        parts += ["## Not run", "", f"There is no environment for: {named}.", ""]
    parts += ["## Outcomes, and the rules that paired", "", _outcomes(ways, rows)]
    parts += ["## Named as faults", "", *_faults(rows), ""]
    parts += [_ranked(rows), "## Environments", "", *_environments(about, ways, rows), ""]
    parts += ["## Seconds", "", _seconds(ways, rows)]
    return "\n".join(parts)


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *body, ""])


def _by_way(ways: Sequence[Way], rows: Sequence[Row]) -> list[tuple[Way, list[Row]]]:
    """Return the ways that have rows, with them."""
    own = [(way, [row for row in rows if row["way"] == way.name]) for way in ways]
    return [(way, found) for way, found in own if found]


def _coverage(ways: Sequence[Way], rows: Sequence[Row]) -> str:
    lines = []
    for way, found in _by_way(ways, rows):
        own = {row["model"]: row for row in found}
        ran = [row for row in found if "calls" in row]
        wrong = sum(len(row["checked"]["wrong"]) for row in ran)
        checked = sum(row["checked"]["by_weights"] + row["checked"]["by_error"] for row in ran) + wrong
        lines.append([way.name, *(_cell(own.get(model)) for model in ALL), f"{wrong} of {checked}" if ran else ""])
    return _table(["way", *ALL, "wrong pairs"], lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if "calls" not in row:
        return "refused"
    compared = f"<br>compared {row['compared']}" if row["compared"] != row["aligned"] else ""
    return f"{row['aligned']}/{row['calls']}{compared}"


def _outcomes(ways: Sequence[Way], rows: Sequence[Row]) -> str:
    lines = []
    for way, found in _by_way(ways, rows):
        ran = [row for row in found if "calls" in row]
        if not ran:
            continue
        outcomes = Counter(row["outcome"] for row in ran)
        unknown = sum(row["checked"]["unknown"] for row in ran)
        lines.append([
            way.name,
            ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()),
            ", ".join(sorted({rule for row in ran for rule in row["rules"]})),
            str(unknown or ""),
        ])  # fmt: skip
    return _table(["way", "outcomes", "rules", "pairs that no value tells"], lines)


def _left(rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        groups: dict[str, list[str]] = {}
        for module, reason in {**row.get("left", {}), **row.get("apart", {})}.items():
            groups.setdefault(reason, []).append(module)
        for reason, modules in groups.items():
            shown = ", ".join(f"`{module}`" for module in _patterns(modules))
            found.append(f"- {row['way']}, {row['model']}: {shown}: {words(reason)}")
    return found or ["Nothing."]


def _patterns(modules: Sequence[str]) -> list[str]:
    if len(modules) <= MOST:
        return list(modules)
    groups: dict[tuple[str, ...], list[str]] = {}
    for module in modules:
        groups.setdefault(tuple(part for part in module.split(".") if not part.isdigit()), []).append(module)
    return [pattern_of(members) for members in groups.values()]


def _refused(rows: Sequence[Row]) -> list[str]:
    said = [f"- {row['way']}, {row['model']}: {row['refused']}" for row in rows if "refused" in row]
    return said or ["Nothing."]


def _faults(rows: Sequence[Row]) -> list[str]:
    said = []
    for row in rows:
        if row.get("outcome") == "fault":
            findings = row["findings"]
            more = f" and {len(findings) - MOST} more" if len(findings) > MOST else ""
            named = ", ".join("{} `{}`".format(*finding.split(" ", 1)) for finding in findings[:MOST])
            said.append(f"- {row['way']}, {row['model']}: {named}{more}")
    return said or ["Nothing."]


def _environments(about: dict[str, Any], ways: Sequence[Way], rows: Sequence[Row]) -> list[str]:
    """Return a line for each: what is pinned there, what differs from the head line, and what is peculiar to it."""
    shown: dict[str, dict[str, str]] = {}
    for way, found in _by_way(ways, rows):
        versions = {name: value for row in found for name, value in row.get("versions", {}).items()}
        differing = {name: value for name, value in versions.items() if about.get(name) != value}
        shown.setdefault(way.environment, {}).update(differing)
    lines = []
    for environment, packages in shown.items():
        said = ", ".join(f"{name} {value}" for name, value in packages.items()) or "as above"
        note = f"; {NOTES[environment]}" if environment in NOTES else ""
        where = environment or "the project's own"
        lines.append(f"- {where}: {said}{note}")
    return lines


def _ranked(rows: Sequence[Row]) -> str:
    """Return SmolLM2's modules by the error that each toolkit's int8 introduces there."""
    chosen = {
        row["way"]: row for row in rows if row["model"] == "smollm2" and row["way"] in COMPARED and "local" in row
    }
    if len(chosen) < 2:
        return ""
    names = [name for name in COMPARED if name in chosen]
    modules = {module for name in names for module in chosen[name]["local"]}
    worst = {module: max(chosen[name]["local"].get(module, 0.0) for name in names) for module in modules}
    lines = [
        [f"`{module}`", *(f"{chosen[name]['local'].get(module, 0.0):.2e}" for name in names)]
        for module in sorted(modules, key=lambda m: -worst[m])[:MOST]
    ]
    finals = [f"{chosen[name]['final_peir']:.2e}" for name in names]
    head = (
        "## SmolLM2-135M: float32 against int8 by three toolkits\n\n"
        "The error that each module introduces by itself, on the float model's own arguments, as PEIR (a ratio, lower "
        f"is better), for the {MOST} modules with the largest error.\n"
    )
    return f"{head}\n{_table(['module', *names], [*lines, ['final logits, accumulated', *finals]])}"


def _seconds(ways: Sequence[Way], rows: Sequence[Row]) -> str:
    lines = []
    for way, found in _by_way(ways, rows):
        own = {row["model"]: row for row in found if "trace_s" in row}
        if own:
            cells = (f"{own[m]['wrap_s']:.1f} / {own[m]['trace_s']:.1f}" if m in own else "" for m in ALL)
            lines.append([way.name, *cells])
    return "Seconds to wrap the model / to trace it with every module's own error:\n\n" + _table(["way", *ALL], lines)
