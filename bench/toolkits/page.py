"""The rows as docs/toolkits.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bench.toolkits.ways import ALL, Way
from qtrace.static.report import pattern_of

Row = dict[str, Any]
REASONS = {
    "no_partner": "has no partner",
    "fused": "computed in one with others",
    "partner_not_called": "its partner is never called",
    "other_place": "called in another place",
}
COMPARED = ("torchao int8 dynamic", "optimum-quanto int8 weights", "bitsandbytes 8 bits")
MOST = 10

HEAD = """# Coverage by toolkit

Written by `make bench-toolkits`; do not edit. Each cell is one real run of a wrapper (`--wrap`) on a model: how many of
the reference's calls (the root's not counted) have a partner that runs in the candidate, of how many; and how many were
compared, where those are fewer. *Wrong pairs* are looked for by value, whatever rule made the pair: by the dequantized
weight, which must be more like the partner's than like any other's of that shape, else by what the module computes on
the reference's own arguments.

Tiny models with random weights (Llama, BERT, ViT, a convolutional net), and SmolLM2-135M in float32, 32 tokens; one
thread on the CPU.
"""


def page(about: dict[str, Any], ways: Sequence[Way], rows: Sequence[Row], absent: Sequence[Way]) -> str:
    """Return the whole page."""
    parts = [HEAD, ", ".join(f"{name} {value}" for name, value in about.items()) + ".", "", _coverage(ways, rows)]
    parts += ["## Left over, and why", "", *_left(rows), ""]
    parts += ["## Refused", "", *_refused(rows), ""]
    if absent:
        named = ", ".join(way.name for way in absent)
        parts += ["## Not run", "", f"There is no environment for: {named}.", ""]
    parts += [_ranked(rows), "## Seconds", "", _seconds(ways, rows)]
    return "\n".join(parts)


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *body, ""])


def _coverage(ways: Sequence[Way], rows: Sequence[Row]) -> str:
    lines = []
    for way in ways:
        own = {row["model"]: row for row in rows if row["way"] == way.name}
        if not own:
            continue
        ran = [row for row in own.values() if "calls" in row]
        wrong = sum(len(row["checked"]["wrong"]) for row in ran)
        checked = sum(row["checked"]["by_weights"] + row["checked"]["by_error"] for row in ran) + wrong
        unknown = sum(row["checked"]["unknown"] for row in ran)
        outcomes = Counter(row["outcome"] for row in ran)
        lines.append([
            way.name,
            *(_cell(own.get(model)) for model in ALL),
            f"{wrong} of {checked}" + (f" ({unknown} not told)" if unknown else "") if ran else "",
            ", ".join(sorted({rule for row in ran for rule in row["rules"]})),
            ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()),
        ])  # fmt: skip
    return _table(["way", *ALL, "wrong pairs", "rules", "outcomes"], lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if "calls" not in row:
        return "refused"
    compared = f"<br>compared {row['compared']}" if row["compared"] != row["aligned"] else ""
    return f"{row['aligned']}/{row['calls']}{compared}"


def _left(rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        groups: dict[str, list[str]] = {}
        for module, reason in row.get("left", {}).items():
            groups.setdefault(reason, []).append(module)
        for reason, modules in groups.items():
            shown = ", ".join(f"`{module}`" for module in _patterns(modules))
            found.append(f"- {row['way']}, {row['model']}: {shown}: {REASONS.get(reason, reason)}")
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
        f"is better); the {MOST} modules with the largest one.\n"
    )
    return f"{head}\n{_table(['module', *names], [*lines, ['final logits, accumulated', *finals]])}"


def _seconds(ways: Sequence[Way], rows: Sequence[Row]) -> str:
    lines = []
    for way in ways:
        own = {row["model"]: row for row in rows if row["way"] == way.name and "trace_s" in row}
        if own:
            cells = (f"{own[m]['wrap_s']:.1f} / {own[m]['trace_s']:.1f}" if m in own else "" for m in ALL)
            lines.append([way.name, *cells])
    return "To wrap, and to trace with every module's own error:\n\n" + _table(["way", *ALL], lines)
