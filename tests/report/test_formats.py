"""The formats of `--report`: which ending is which, JSON with a verdict, and what every format must stand."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.errors import SourceError, UsageError
from qtrace.report import save
from qtrace.report.formats import ENDINGS, NAMES, check
from qtrace.report.json import json as as_json
from qtrace.report.json import verdict_in
from qtrace.report.problems import judgement, problems, violation_text
from qtrace.report.records import (
    Argument,
    Finding,
    GateVerdict,
    Outcome,
    ReportData,
    Row,
    Status,
    Unmatched,
    Verdict,
    Violation,
    dumps,
    loads,
)
from qtrace.report.text import one_line
from tests.helpers import golden_files
from tests.helpers.golden_reports import REPORTS, TEXT, mask_bug, side

# What a module path, a message or a file may hold where somebody is careless, or is not.
HOSTILE = (
    'say "it\'s"',
    "<script>alert(1)</script> & </td></pre>",
    "two\r\nlines\tand a tab",
    "\x1b[31mred\x1b[0m \x00\x07\x7f\x85",
    "größe.模型.🧪.e\u0301\u202eesrever",
    "x" * 300,
    "]]> --> <![CDATA[",
    "`tick` ``two`` ```three```\n```",
    "a|b \\| c\\",
    "*bold* _it_ ~~gone~~ [link](http://x) ![](y) $x$",
    "@everyone #1 &amp; &#64;",
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@SUM(1)",
    "::error file=a::b%0A",
    "a,b;c:d%",
    "torn \ud800 surrogate \uffff",
    "$title ${title} $$",
    "{0} {{1}}",
    " spaces ",
    "../../etc/passwd",
    "//host/share",
    "",
)


def named(name: str) -> tuple[ReportData, GateVerdict]:
    """Return a report and a verdict that hold a name wherever text can stand."""
    row = Row(module=name, call=1, output=name, type=name, order=1, status=Status.COMPARED, peir=0.5, peir_local=0.5,
              verdict=Verdict.INTRODUCED, mean=0.1, max=0.4, reference=None, candidate=None)  # fmt: skip
    nan = dataclasses.replace(row, call=2, order=2, status=Status.NON_FINITE, peir=math.nan, mean=math.inf,
                              verdict=Verdict.NON_FINITE, non_finite=(0, 3))  # fmt: skip
    alone = dataclasses.replace(
        row, call=3, order=3, status=Status.REFERENCE_ONLY, verdict=Verdict.UNMATCHED, peir=None
    )
    site = {"file": name, "line": 7, "function": name}
    finding = Finding(rank=1, module=name, call=0, kind="miscalls", summary=name, argument=name, callee=name,
                      callees=(name, "b"), members=(name, "c"), count=2, evidence=(name,) * 6,
                      source={"reference": site, "candidate": site})  # fmt: skip
    argument = Argument(module=name, call=0, argument=name, caller=name, status=Status.COMPARED, order=1, peir=math.inf)
    report = dataclasses.replace(
        REPORTS["two"](),
        environment={name: name, "versions": {name: name}},
        reference=side(name, name),
        candidate=side(name, name),
        outcome=Outcome.FAULT,
        rows=(row, nan, alone),
        arguments=(argument,),
        findings=(finding,),
        unmatched=(Unmatched("reference", name, name, 1, name),),
        warnings=(name,),
        error=None,
    )
    violation = Violation(module=name, call=1, output=name, column=name, rule=name, reason=name,
                          observed=0.5, limit=0.1, severity=5.0, finding=1)  # fmt: skip
    others = (
        dataclasses.replace(violation, call=9, observed=None, severity=math.inf, finding=None),
        dataclasses.replace(violation, module=None, call=0, observed=math.nan, limit=None),
    )
    verdict = GateVerdict(passed=False, violations=(violation, *others), judged=1, notes=(name,), source=name,
                          absorbed=(violation,), differences=(name,))  # fmt: skip
    return report, verdict


def gate(passed: bool = False, **fields: Any) -> GateVerdict:
    """Return a verdict on `mask_bug`: rows that one finding explains, one that none does, and the coverage."""
    rows = [
        Violation(module=f"{TEXT}.layers.{layer}", column="peir", rule="max_peir", observed=0.59 + layer / 1000,
                  limit=1e-4, reason="above the limit, by a factor of 5900", severity=5900.0 + layer, finding=1)
        for layer in reversed(range(4))
    ]  # fmt: skip
    qkv = "model.visual.blocks.0.attn.qkv"
    others = (
        Violation(module=None, column="coverage", rule="min_coverage", observed=74 / 77, limit=0.99,
                  reason="compared 74 of the reference's 77 calls", severity=1.03),
        Violation(module=qkv, column="cosine", rule="overrides model.visual.**: min_cosine", observed=0.88, limit=0.999,
                  reason="below the limit, by a factor of 1.1", severity=1.1),
        Violation(module="model.visual.merger", column="missing", rule="baseline",
                  reason="the baseline has this row, and the run has not", severity=math.inf),
    )  # fmt: skip
    violations = () if passed else tuple(sorted([*rows, *others], key=lambda one: -one.severity))
    given = {"violations": violations, "judged": 40, "source": "policy.yaml", "notes": ("3 rows are new",), **fields}
    return GateVerdict(passed=passed, **given)


GOLDEN = {"mask_bug.gate.md": "markdown", "mask_bug.gate.xml": "junit", "mask_bug.gate.github.txt": "github"}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_gated_report_reads_as_its_golden_file(name: str) -> None:
    golden_files.same_as_golden(NAMES[GOLDEN[name]](mask_bug(), gate()), name)


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_ending_has_its_format(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"report.of.mine{ending.upper()}"
    check([str(path)])
    save(mask_bug(), path, gate())
    assert path.read_text(encoding="utf-8") == ENDINGS[ending](mask_bug(), gate())
    save(mask_bug(), path)
    assert path.read_text(encoding="utf-8") == ENDINGS[ending](mask_bug(), None)


def test_a_longer_ending_counts_before_the_one_that_it_ends_with() -> None:
    assert ENDINGS[".sarif.json"] is ENDINGS[".sarif"]
    assert ENDINGS[".sarif"] is not ENDINGS[".json"]


@pytest.mark.parametrize("name", ["report.txt", "report", "report.json.gz", "json"])
def test_an_unknown_ending_names_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"known: \.json, \.html, \.md, \.csv, \.xml, \.sarif, .*, or - for stdout"):
        save(mask_bug(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", NAMES)
@pytest.mark.parametrize("report", REPORTS)
def test_every_report_has_a_text_in_every_format(report: str, format: str) -> None:
    for verdict in (None, gate(), gate(passed=True), GateVerdict(passed=False, inconclusive=True)):
        text = NAMES[format](REPORTS[report](), verdict)
        assert text.endswith("\n")
        assert len(text.splitlines()) >= 1


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("ending", ENDINGS)
def test_no_name_keeps_a_report_from_being_written(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"report{ending}"
    save(*_with_path(name, path))
    assert path.stat().st_size > 0


def _with_path(name: str, path: Path) -> tuple[ReportData, Path, GateVerdict]:
    report, verdict = named(name)
    return report, path, verdict


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_no_text_at_all_breaks_a_format(name: str) -> None:
    for format in NAMES.values():
        format(*named(name)).encode("utf-8", "backslashreplace")


# Problems: what the listing formats have in common.


def test_violations_that_one_finding_explains_are_one_problem() -> None:
    found = problems(mask_bug(), gate())
    assert [len(one.violations) for one in found] == [1, 4, 1, 1]
    assert [one.finding is not None for one in found] == [False, True, False, False]
    assert found[0].title == "model.visual.merger: missing"
    assert found[1].title == "model.language_model passes a wrong attention_mask"
    assert "Explains 4 violations, the worst: model.language_model.layers.3: PEIR 5.93e-01, limit" in found[1].text


@pytest.mark.parametrize(
    ("report", "titles"),
    [
        ("mask_bug", ["model.language_model passes a wrong attention_mask"]),
        ("blameless", ["outcome fault"]),
        ("two", ["model.layers.0.mlp introduces an error", "model.layers.2.self_attn.o_proj introduces an error"]),
        ("clean", []),
        ("drift", []),
        ("inconclusive", ["outcome inconclusive"]),
        ("partial", ["outcome inconclusive"]),
        ("raised", ["layers.1 raises an exception"]),
    ],
)
def test_without_a_gate_the_problems_are_the_runs_own(report: str, titles: list[str]) -> None:
    assert [one.title for one in problems(REPORTS[report](), None)] == titles


@pytest.mark.parametrize(
    ("verdict", "sentence", "amount"),
    [
        (gate(passed=True), "The gate passed: 40 rows judged against policy.yaml.", 0),
        (gate(), "The gate failed: 7 violations, 40 rows judged against policy.yaml.", 4),
        (GateVerdict(passed=False), "The gate failed: 0 rows judged, and no limit that was violated.", 1),
        (
            GateVerdict(passed=False, inconclusive=True, source="p.yaml"),
            "The gate is inconclusive: too little was compared to judge against p.yaml.",
            1,
        ),
    ],
)
def test_a_gate_that_did_not_pass_always_has_a_problem(verdict: GateVerdict, sentence: str, amount: int) -> None:
    assert judgement(mask_bug(), verdict) == sentence
    assert len(problems(mask_bug(), verdict)) == amount


@given(st.floats(1e-12, 1e3), st.floats(1 + 1e-15, 1.01, exclude_min=True))
def test_a_violation_never_reads_as_a_limit_that_is_kept(limit: float, factor: float) -> None:
    violation = Violation(module="m", column="peir", rule="max_peir", reason="r", observed=limit * factor, limit=limit)
    if limit * factor != limit:
        words = violation_text(violation).replace(",", "").replace(":", "").split()
        assert float(words[words.index("PEIR") + 1]) > float(words[words.index("limit") + 1])


# JSON


def test_json_carries_the_verdict_and_still_is_the_report() -> None:
    text = as_json(mask_bug(), gate())
    plain = json.loads(text)
    assert plain["gate"]["violations"][1]["module"] == f"{TEXT}.layers.3"
    assert loads(text) == loads(dumps(mask_bug()))
    assert verdict_in(plain, "r.json") == gate()
    assert as_json(mask_bug()) == dumps(mask_bug())
    assert verdict_in(json.loads(as_json(mask_bug())), "r.json") is None


@pytest.mark.parametrize("name", HOSTILE)
def test_json_gives_back_what_it_was_given(name: str) -> None:
    report, verdict = named(name)
    text = as_json(report, verdict)
    assert loads(text).rows[0].module == name
    found = verdict_in(json.loads(text), "r.json")
    assert found is not None
    assert found.violations[0] == verdict.violations[0]
    assert found.violations[1].severity == math.inf
    assert found.violations[2].observed is None


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda gate: gate.update(passed="yes"), "r.json: gate: passed: expected bool, found str"),
        (lambda gate: gate["violations"][0].pop("rule"), "r.json: gate: violations[0]: the key 'rule' is missing"),
        (lambda gate: gate.update(violations=3), "r.json: gate: violations: expected a list, found int"),
    ],
)
def test_a_damaged_verdict_says_where(edit: Callable[[Any], Any], words: str) -> None:
    plain = json.loads(as_json(mask_bug(), gate()))
    edit(plain["gate"])
    with pytest.raises(SourceError) as caught:
        verdict_in(plain, "r.json")
    assert str(caught.value) == words


# What all of them import.


def test_the_formats_need_no_torch() -> None:
    code = (
        "import sys, qtrace.report.formats; print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "[]\n"


@given(st.text(st.characters(exclude_categories=())))
def test_one_line_is_one_line_that_utf8_and_xml_take(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    line.encode("utf-8")
    assert all(char == " " or char.isprintable() or ord(char) > 0x9F for char in line)
