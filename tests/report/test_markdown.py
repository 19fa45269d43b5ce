"""Markdown, as a parser of GitHub's dialect reads it."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from qtrace.report.markdown import LIMIT, OPEN, code, escaped, markdown
from qtrace.report.records import Argument, GateVerdict, ReportData, Row, Status, TensorSpec, Unmatched, Violation
from qtrace.report.text import one_line
from tests.helpers.golden_reports import REPORTS, mask_bug, odds
from tests.report.test_formats import HOSTILE, gate, named

READER = MarkdownIt("commonmark").enable("table").enable("strikethrough")
INVISIBLE = "\u200b"
# Markdown drops the spaces at the ends of a cell.
TRIM = st.text(st.characters(exclude_categories=()), min_size=1).map(lambda text: f".{text}.")


def tokens(text: str) -> list[Token]:
    return READER.parse(text)


def shown(inline: Token) -> str:
    """Return what a reader sees of one line."""
    parts = [child.content for child in inline.children or () if child.type in ("text", "text_special", "code_inline")]
    return "".join(parts).replace(INVISIBLE, "")


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of each table, line by line."""
    found: list[list[list[str]]] = []
    for token in tokens(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level > 2:
            found[-1][-1].append(shown(token))
    return found


def headings(text: str) -> list[str]:
    return [shown(after) for token, after in pairwise(tokens(text)) if token.type == "heading_open"]


def test_the_diagnosis_comes_first_and_the_violations_follow() -> None:
    text = markdown(mask_bug(), gate())
    assert headings(text) == ["❌ qtrace: The gate failed: 7 violations, 40 rows judged against policy.yaml."]
    kinds = [token.type for token in tokens(text) if token.level == 0 and token.nesting >= 0]
    assert kinds[:4] == ["heading_open", "fence", "paragraph_open", "table_open"]
    fence = next(token for token in tokens(text) if token.type == "fence")
    assert "1. model.language_model passes a wrong attention_mask" in fence.content
    violations = tables(text)[0]
    assert violations[0] == ["where", "what", "observed", "limit", "rule", "why"]
    assert len(violations) == 8
    assert violations[7] == ["the run", "coverage", "96.1 %", "99.0 %", "min_coverage",
                             "compared 74 of the reference's 77 calls"]  # fmt: skip
    assert violations[6][4] == "overrides model.visual.**: min_cosine"


def test_tables_beneath_are_folded_and_closed() -> None:
    text = markdown(mask_bug(), gate())
    html = [token.content for token in tokens(text) if token.type == "html_block"]
    assert [content.startswith("<details>") for content in html] == [True, False] * (len(html) // 2)
    assert [content.strip() for content in html[1::2]] == ["</details>"] * (len(html) // 2)
    assert "<details><summary>Compared 74 of 77 calls (96.1 %)</summary>\n" in html
    rows = tables(text)[1]
    assert rows[1][:5] == ["lm_head", "inherited", "6.11e-01", "3.48e-07", "6.18e-01"]


@pytest.mark.parametrize(
    ("name", "verdict", "mark"),
    [
        ("clean", None, "✅"),
        ("drift", None, "⚠️"),
        ("inconclusive", None, "⚠️"),
        ("mask_bug", None, "❌"),
        ("mask_bug", gate(passed=True), "✅"),
        ("clean", GateVerdict(passed=False, inconclusive=True), "⚠️"),
        ("clean", GateVerdict(passed=False), "❌"),
    ],
)
def test_the_mark_says_how_it_went(name: str, verdict: GateVerdict | None, mark: str) -> None:
    assert markdown(REPORTS[name](), verdict).startswith(f"### {mark} qtrace: ")


def test_what_the_gate_has_to_say_besides_is_listed() -> None:
    absorbed = gate().violations[:2]
    text = markdown(mask_bug(), gate(absorbed=absorbed, differences=("torch was 2.5", "seed was 3")))
    for line in ("- torch was 2.5", "- seed was 3", "- 3 rows are new", "- 2 violations of rows that the calls around"):
        assert line in text


def test_the_worst_sample_is_told() -> None:
    assert "`logits` sample 1 of 2 |" in markdown(odds())


# Room


def huge(name: str, amount: int = 400) -> tuple[ReportData, GateVerdict]:
    """Return a report whose every list is too long."""
    report, verdict = named(name)
    row, argument = report.rows[0], report.arguments[0]
    rows = tuple(dataclasses.replace(row, module=f"{name}{n}", order=n) for n in range(amount))
    arguments = tuple(
        dataclasses.replace(argument, argument=f"{name}{n}", reference=TensorSpec((n, 2), "float32"))
        for n in range(amount)
    )
    finding = dataclasses.replace(report.findings[0], members=tuple(f"{name}{n}.x{n}" for n in range(amount)))
    filled = dataclasses.replace(
        report,
        rows=rows,
        arguments=arguments,
        findings=(finding,) * 3,
        warnings=(name,) * amount,
        unmatched=tuple(Unmatched("reference", f"{name}{n}", name, 1, "no_partner") for n in range(amount)),
        environment={f"{name}{n}": name for n in range(amount)},
        error=name * 20,
    )
    violations = tuple(dataclasses.replace(verdict.violations[0], module=f"{name}{n}") for n in range(amount))
    return filled, dataclasses.replace(verdict, violations=violations, notes=(name,) * amount, source=name * 50)


LONG = ("layers.", "x" * 300, "模" * 40, "🧪|" * 20, "`" * 99, "*" * 300, "@a_b", "\x1b" * 50, "")


@pytest.mark.parametrize("name", LONG)
def test_a_comment_is_never_too_long(name: str) -> None:
    report, verdict = huge(name)
    for text in (markdown(report, verdict), markdown(report)):
        assert len(text.encode("utf-8")) < LIMIT
        html = [token.content.strip() for token in tokens(text) if token.type == "html_block"]
        assert sum(content.startswith("<details>") for content in html) == html.count("</details>")


def test_what_is_left_out_is_counted() -> None:
    report, verdict = huge("layers.", 1000)
    text = markdown(report, verdict)
    first, rest = [table for table in tables(text) if table[0][0] == "where"]
    assert len(first) == 1 + OPEN
    assert "990 more violations</summary>" in text
    left = 990 - (len(rest) - 2)
    assert rest[-1][0] == f"… and {left:,} more"
    assert 0 < left < 990
    for last in ("- `layers.999` of the reference", "- layers.999: layers."):
        assert last not in text
        assert last.replace("999", "1") in text
    assert text.count("more |") == 2
    assert text.count("\n- … and ") == 4


# Whatever a name holds


def one_row(name: str) -> tuple[ReportData, GateVerdict]:
    row = Row(module=name, call=0, output=name, type="T", order=0, status=Status.COMPARED, peir=0.5)
    argument = Argument(module=name, call=0, argument=name, caller=name, status=Status.COMPARED, order=0, peir=0.5)
    violation = Violation(module=name, column="peir", rule=name, reason=name)
    report = dataclasses.replace(mask_bug(), rows=(row,), arguments=(argument,), findings=(), warnings=(name,))
    return report, GateVerdict(passed=False, violations=(violation,), notes=(name,), source=name)


def collapsed(text: str) -> str:
    return " ".join(one_line(text).split())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_cell_holds_a_name_and_nothing_else(name: str) -> None:
    text = markdown(*one_row(name))
    violations, rows, arguments = tables(text)
    root = collapsed(name) or "<root>"
    assert [collapsed(cell) for cell in violations[1]] == [root, "PEIR", "-", "-", collapsed(name), collapsed(name)]
    assert collapsed(rows[1][0]) == f"{root} {collapsed(name)}".strip()
    assert [len(line) for line in rows] == [8, 8]
    assert [collapsed(cell) for cell in arguments[1][:3]] == [root, collapsed(name), root]


@settings(max_examples=60, deadline=None)
@given(TRIM)
def test_any_text_is_shown_as_it_is(text: str) -> None:
    for line in (f"x {escaped(text)} x", f"x {code(text)} x"):
        (inline,) = [token for token in tokens(line) if token.type == "inline"]
        assert shown(inline) == f"x {one_line(text).replace(INVISIBLE, '')} x"


@settings(max_examples=30, deadline=None)
@given(TRIM)
def test_any_text_stays_in_its_cell(text: str) -> None:
    line = f"| {escaped(text)} | {code(text)} |"
    (table,) = tables(f"| a | b |\n| --- | --- |\n{line}\n")
    assert table[1] == [one_line(text).replace(INVISIBLE, "")] * 2


def test_nobody_is_called_by_a_name() -> None:
    assert "@everyone" not in escaped("@everyone")
    assert code("@everyone") == "`@everyone`"
