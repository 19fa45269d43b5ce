"""The HTML page, as a strict reading of its tags finds it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.report.html import html
from qtrace.report.records import GateVerdict, ReportData
from qtrace.report.text import one_line, visible
from tests.helpers.golden_reports import REPORTS, mask_bug, odds
from tests.report.test_formats import HOSTILE, gate, named

VOID = {"meta"}
# A value that would run or load something, were it not a literal of the page's own.
ACTIVE = ("href", "src", "action", "style", "srcdoc")


class Page(HTMLParser):
    """Reads a page, and fails where an element is not closed by its own tag."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: list[list[list[str]]] = []
        self.sortable: list[str | None] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        assert not [name for name in names if name in ACTIVE or name.startswith("on")]
        self.tags.append(tag)
        if tag in VOID:
            return
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "td":
            self.sortable.append(dict(attrs).get("data-v"))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def page(report: ReportData, verdict: GateVerdict | None = None) -> Page:
    return Page(html(report, verdict))


@pytest.mark.parametrize("name", REPORTS)
def test_every_row_is_on_the_page(name: str) -> None:
    report = REPORTS[name]()
    found = page(report)
    (rows,) = [table for table in found.tables if table[0][:4] == ["module", "output", "type", "verdict"]]
    assert sorted(line[0] for line in rows[1:]) == sorted(row.module or "<root>" for row in report.rows)
    assert len({len(line) for line in rows}) == 1
    assert len(found.texts["script"]) == len(found.texts["style"]) == 1


def test_a_number_is_sorted_by_all_its_digits_and_an_absent_one_by_none() -> None:
    values = page(mask_bug()).sortable
    assert {repr(row.peir) for row in mask_bug().rows} <= set(values)
    values = page(odds()).sortable
    assert "" in values
    for value in values:
        if value:
            float(value)


def test_with_a_gate_the_violations_stand_before_the_rows() -> None:
    found = page(mask_bug(), gate(differences=("torch was 2.5",)))
    assert found.texts["h1"] == ["The gate failed: 7 violations, 40 rows judged against policy.yaml."]
    assert found.tables[0][0] == ["where", "what", "observed", "limit", "rule", "why"]
    assert len(found.tables[0]) == 8
    assert found.tables[1][0][0] == "module"
    assert found.texts["h2"][:3] == ["Diagnosis", "Violations", "Rows, the worst first (40)"]
    assert {"torch was 2.5", "3 rows are new"} <= set(found.texts["li"])
    assert "1. model.language_model passes a wrong attention_mask" in found.texts["pre"][0]


@pytest.mark.parametrize(
    ("name", "verdict", "mood"),
    [
        ("clean", None, "good"),
        ("drift", None, "doubt"),
        ("mask_bug", None, "bad"),
        ("mask_bug", gate(passed=True), "good"),
        ("clean", GateVerdict(passed=False), "bad"),
        ("clean", GateVerdict(passed=False, inconclusive=True), "doubt"),
    ],
)
def test_the_heading_says_how_it_went(name: str, verdict: GateVerdict | None, mood: str) -> None:
    assert f'<h1 class="{mood}">' in html(REPORTS[name](), verdict)


def test_the_page_loads_nothing() -> None:
    text = html(mask_bug(), gate())
    assert not re.search(r"https?://|//[a-z]|@import|url\(", text)
    assert "default-src 'none'" in text
    assert not {"link", "img", "iframe", "object", "form"} & set(page(mask_bug()).tags)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_whatever_it_holds(name: str) -> None:
    plain, report = page(*named("plain")), page(*named(name))
    assert report.tags == plain.tags
    assert report.texts["script"] == plain.texts["script"]
    assert report.texts["style"] == plain.texts["style"]
    rows = next(table for table in report.tables if table[0][:2] == ["module", "output"])
    assert {tuple(line[:3]) for line in rows[1:]} == {(one_line(name) or "<root>", one_line(name), one_line(name))}


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_leaves_the_pages_tags_as_they_are(name: str) -> None:
    report = dataclasses.replace(mask_bug(), warnings=(name,), created=name, qtrace=name)
    text = html(report)
    assert text == visible(text)
    assert Page(text).tags == page(dataclasses.replace(mask_bug(), warnings=("x",))).tags
