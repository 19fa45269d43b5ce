"""The diagnosis panel and the line that ends the output: what they say of each kind of report."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

import pytest

from qtrace.report.columns import first_leap
from qtrace.report.diagnosis_panel import diagnosis, outcome
from qtrace.report.finding import KINDS, proposal
from qtrace.report.records import Finding, Outcome, ReportData, Verdict
from qtrace.report.table import View, rows_tables, select
from qtrace.report.terminal import results
from tests.helpers.golden_reports import (
    REPORTS,
    Rows,
    blameless,
    drift,
    leaf,
    mask_bug,
    raised,
    report,
    two,
    unconfirmed,
)
from tests.report.test_table import TYPED, text_of

ASKED = View(command=TYPED)


def said(of: ReportData, view: View = ASKED, width: int = 80) -> str:
    """Return the panel without its line breaks."""
    return " ".join(text_of(diagnosis(of, view, width=width), width).split())


def last_line(of: ReportData, width: int = 80) -> str:
    return text_of(outcome(of, width=width), width).rstrip("\n")


def with_finding(**fields: Any) -> ReportData:
    """Return a report with one finding, of which only these fields are not the usual ones."""
    usual: dict[str, Any] = {"rank": 1, "module": "a.b", "call": 0, "kind": "introduces", "summary": "is wrong"}
    rows = Rows()
    rows.add("a.b", 0.2, verdict=Verdict.INTRODUCED, peir_local=0.2)
    rows.add("", 0.2, output="logits")
    return report(rows, Outcome.FAULT, findings=(Finding(**{**usual, **fields}),), inputs=())


def test_the_panel_comes_before_the_rows_and_the_outcome_comes_last() -> None:
    text = text_of(list(results(mask_bug(), View(command=TYPED), width=80)), 80)
    assert text.startswith("─ Diagnosis ─")
    assert text.index("passes a wrong attention_mask") < text.index("\nmodule ")


def test_a_miscall_names_caller_argument_callees_lines_and_the_graft() -> None:
    text = said(mask_bug())
    for words in (
        "1. model.language_model passes a wrong attention_mask",
        "float32 [1,1,84,84] against int64 [1,84], all 1.",
        "callee model.language_model.layers.0 and 3 more: model.language_model.layers.*",
        "confirmed handing the callee the reference's attention_mask takes the final PEIR from 4.02e-01 to 5.41e-07",
        "reference transformers/models/qwen3_vl/modeling_qwen3_vl.py:849, in forward",
        "candidate tico/quantization/wrapq/quant_text_model.py:212, in forward",
        "To see what the callee receives on each side: "
        "qtrace run configs/pair.yaml --seed 3 \\ --inspect model.language_model.layers.0",
    ):
        assert words in text, words
    assert "First leap" not in text


def test_a_fault_of_many_layers_is_one_finding_with_their_pattern() -> None:
    text = said(leaf())
    assert "1. model.layers.0.mlp.act_fn introduces an error" in text
    assert "also in 29 more: model.layers.*.mlp.act_fn" in text
    assert "evidence output: PEIR 1.94e-03 on clean arguments" in text
    assert "no parameter differs and 1 more in the report" in text
    assert "no buffer differs" not in text


def test_repeats_that_are_only_counted_are_counted() -> None:
    assert "also in 4 more " in said(with_finding(count=5)) + " "
    assert "also in" not in said(with_finding())


def test_what_to_type_next_shows_a_leaf_whole_and_a_container_from_inside() -> None:
    text = said(two())
    assert "the operators inside it" not in said(leaf())
    assert "To see what goes in and what comes out on each side:" in text
    assert "--inspect model.layers.2.self_attn.o_proj" in text
    rows = Rows()
    rows.add("a.b.c", 1e-7)
    inside = dataclasses.replace(with_finding(), rows=tuple(rows.rows))
    assert "the operators inside it, side by side: qtrace ops configs/pair.yaml --seed 3 --module a.b" in said(inside)
    assert "side by side: qtrace ops configs/pair.yaml --seed 3 --module '<root>'" in said(with_finding(module=""))
    assert "--show-trace both" in said(with_finding(module="", kind="non_finite"))
    assert "qtrace run" not in said(mask_bug(), View())


def test_a_finding_that_no_graft_confirms_says_so() -> None:
    text = said(unconfirmed())
    assert (
        "not confirmed handing on the reference's tensors in its place "
        "takes the final PEIR from 3.11e-02 only to 2.98e-02"
    ) in text
    assert " confirmed handing" not in text.replace("not confirmed", "")


@pytest.mark.parametrize(
    ("graft", "words"),
    [
        ({"before": None, "after": 1e-7}, "takes the final outputs from no PEIR at all to 1.00e-07"),
        ({"before": 0.5, "after": None}, "leaves the final outputs without a PEIR"),
        (None, "no graft was made"),
    ],
)
def test_a_graft_without_a_number_is_said_in_words(graft: dict[str, Any] | None, words: str) -> None:
    assert words in said(with_finding(graft=graft))


def test_findings_beyond_the_first_ones_are_told_in_brief_unless_all_are_asked_for() -> None:
    brief = said(unconfirmed())
    assert brief.count("not confirmed") == 3
    assert "4. model.layers.3.self_attn.o_proj introduces an error 5. model.layers.4.self_attn.o_proj" in brief
    assert "2 findings in brief; --all says everything" in brief
    everything = said(unconfirmed(), View(everything=True))
    assert everything.count("not confirmed") == 5
    assert "in brief" not in everything


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_finding_has_its_words(kind: str) -> None:
    assert f"1. a.b {KINDS[kind]}" in said(with_finding(kind=kind))
    assert last_line(with_finding(kind=kind)) == f"outcome: fault. 1 finding: a.b {KINDS[kind]}."


def test_a_later_call_of_a_module_is_told_from_its_first() -> None:
    assert "1. a.b#2 introduces an error" in said(with_finding(call=2))


def test_an_exception_of_the_candidate_alone_is_a_finding() -> None:
    text = said(raised())
    assert "1. layers.1 raises an exception Raises ValueError in the candidate alone: too bad." in text
    assert "confirmed the reference runs on the same inputs" in text


def test_without_a_finding_the_panel_names_the_leap_and_the_argument_before_it() -> None:
    text = said(blameless())
    assert text.startswith("─ Diagnosis")
    assert "The candidate does not compute what the reference computes." in text
    assert "First leap: model.language_model.layers.0.self_attn.o_proj, PEIR 5.78e-01, after at most 1.11e-06." in text
    assert (
        "model.language_model calls model.language_model.layers.0 with another attention_mask: "
        "float32 [1,1,84,84] in the reference, int64 [1,84] in the candidate."
    ) in text


def test_where_nobody_looked_for_a_culprit_the_command_that_does_is_given() -> None:
    text = said(blameless(), View(command=("pair.yaml", "--no-local")))
    assert "Which module is to blame was not looked for." in text
    assert "What each module adds, and which is at fault: qtrace run pair.yaml ─" in text
    looked = dataclasses.replace(mask_bug(), findings=())
    assert "No single module stands out as the one to blame." in said(looked)
    assert "--inspect model.language_model.layers.0.self_attn.o_proj" in said(looked)


def test_an_argument_of_a_call_that_began_after_the_leap_is_not_named() -> None:
    late = tuple(dataclasses.replace(argument, order=99) for argument in blameless().arguments)
    assert "with another" not in said(dataclasses.replace(blameless(), arguments=late))


def test_an_argument_of_the_same_shape_is_told_by_its_values() -> None:
    first = blameless().arguments[0]
    argument = dataclasses.replace(first, candidate=first.reference, max=2.5, peir=0.1)
    text = said(dataclasses.replace(blameless(), arguments=(argument,)))
    assert "float32 [1,1,84,84] on both sides, |reference - candidate| up to 2.50e+00." in text


def test_a_difference_that_is_undone_is_no_leap() -> None:
    clean = REPORTS["clean"]()
    assert first_leap(clean.rows) is None
    assert (
        "Differences in 1 row on the way are undone before the output, "
        "most at model.visual.blocks.0.attn.qkv, PEIR 3.40e-01."
    ) in said(clean)
    assert "qtrace run" not in said(clean)


def test_drift_says_from_where_to_where_it_grows() -> None:
    text = said(drift())
    assert "The difference grows slowly; no single module is to blame." in text
    assert "It grows from PEIR 2.00e-03 at model.layers.0 to 5.00e-02 at the final logits." in text


def test_drift_that_shrinks_on_its_way_is_not_said_to_grow() -> None:
    report = drift()
    rows = tuple(
        dataclasses.replace(row, peir=row.peir / 1e3) if row.module == "" and row.peir else row for row in report.rows
    )
    text = said(dataclasses.replace(report, rows=rows))
    assert "It begins with PEIR 2.00e-03 at model.layers.0, and is 5.00e-05 at the final logits." in text
    assert "grows from" not in text


def test_a_partial_report_says_why_it_ends() -> None:
    why = (
        "The run ended early, after 2 rows: the candidate raised ValueError in layers.1 (Block): too bad (models.py:7)."
    )
    assert why in said(REPORTS["partial"]())
    assert " ".join(last_line(REPORTS["partial"]()).split()) == f"outcome: inconclusive. {why}"


def test_too_little_compared_points_to_the_modules_command() -> None:
    text = said(REPORTS["inconclusive"]())
    assert "Too little was compared to say: 2 of 12 calls (16.6 %)." in text
    assert "How names were aligned, and which have no partner: qtrace modules configs/pair.yaml --seed 3" in text


@pytest.mark.parametrize("name", [name for name in REPORTS if name not in ("partial", "raised")])
def test_the_outcome_is_one_line(name: str) -> None:
    assert len(text_of(outcome(REPORTS[name](), width=80), 200).rstrip("\n")) <= 80


def test_the_outcome_counts_findings_and_shortens_the_path_of_the_first() -> None:
    assert last_line(two()) == "outcome: fault. 2 findings, first: model.layers.0.mlp introduces an error."
    long = with_finding(module="model." + "encoder." * 10 + "linear")
    assert re.fullmatch(r"outcome: fault\. 1 finding: …(encoder\.)+linear introduces an error\.", last_line(long))


def test_rows_that_say_no_more_are_folded_where_somebody_is_to_blame() -> None:
    chosen = select(two(), View())
    assert [row.module for row in chosen.rows] == [
        "model.layers.0.mlp",
        "model.layers.2.self_attn.o_proj",
        "model.norm",
    ]
    assert chosen.folded == {Verdict.INHERITED: 9, Verdict.EQUAL: 2}
    assert len(chosen.rows) + sum(chosen.folded.values()) + chosen.rest == len(two().rows)
    text = text_of(list(results(two(), View(), width=80)), 80)
    assert "… folded away: 9 inherited, 2 equal; --all shows them" in text


@pytest.mark.parametrize("view", [View(everything=True), View(top=0), View(execution=True)])
def test_every_row_is_there_for_whom_asks(view: View) -> None:
    chosen = select(leaf(), view)
    assert (len(chosen.rows), chosen.rest, chosen.folded) == (len(leaf().rows), 0, {})


def test_all_with_top_ranks_the_folded_among_the_others() -> None:
    chosen = select(leaf(), View(everything=True, top=40))
    assert (chosen.folded, chosen.rest) == ({}, len(leaf().rows) - len(chosen.rows))
    assert len(chosen.rows) == 41  # The row of the largest PEIR beside the first forty.


def test_without_a_finding_or_where_the_run_ended_early_nothing_is_folded() -> None:
    assert not select(raised(), View()).folded
    assert not select(blameless(), View()).folded
    assert not select(drift(), View()).folded


def test_rows_are_ranked_by_the_introduced_error_where_it_was_measured() -> None:
    introduced = [row.peir_local for row in select(drift(), View()).rows if row.peir_local is not None]
    assert introduced == sorted(introduced, reverse=True)
    assert select(blameless(), View()).sort == "peir"
    assert select(drift(), View(sort="peir")).sort == "peir"


def test_the_widest_table_and_the_two_narrow_ones_say_the_same() -> None:
    for width, tables in ((80, 2), (160, 1)):
        found = list(rows_tables(select(two(), View()), two(), width=width))
        assert len(found) == tables
        headings = " ".join(str(column.header) for table in found for column in table.columns).split()
        for heading in ("verdict", "received", "introduced", "accumulated", "mean", "min", "max", "stddev", "bar"):
            assert headings.count(heading) == 1, heading


def test_a_proposal_is_what_a_shell_splits_back_into_its_words() -> None:
    words = ["a b.yaml", "--only", "x.**", "--wrap-arg", "quantize=true", "--no-local", "--text", "it's"]
    for width in (20, 40, 200):
        text = proposal("run", words, "--inspect", "m.0", width=width).plain
        assert shlex.split(text.replace("\\\n", " ")) == ["qtrace", "run", *words, "--inspect", "m.0"]
        assert all(line.endswith(" \\") for line in text.split("\n")[:-1])
