"""What is listed beside the report: calls of one side, aligned modules, inputs, the scatter plot."""

from __future__ import annotations

import builtins
import re
import sys
from dataclasses import replace
from typing import Any

import pytest

from qtrace.report.arguments import inputs
from qtrace.report.coverage import modules
from qtrace.report.records import TensorSpec, Unmatched
from qtrace.report.records.rows import CallTrace, Pairing, ValueTrace
from qtrace.report.scatter import MISSING, scatter
from qtrace.report.trace_listing import trace_listing
from tests.helpers import golden_files
from tests.helpers.golden_reports import REPORTS, mask_bug, odds, tensor
from tests.report.test_formats import GOLDEN
from tests.report.test_gate_verdict import CASES as GATES
from tests.report.test_table import WIDTHS, text_of

LAYER = "model.language_model.layers.0"
CALLS = (
    CallTrace(
        "reference",
        f"{LAYER}.self_attn",
        "Qwen3VLTextAttention",
        0,
        (
            ValueTrace("hidden_states", tensor(1, 84, 32, low=-3.25, high=4.5), 0.0125, 0.98),
            ValueTrace("attention_mask", tensor(1, 1, 84, 84, low=-3.4028e38, high=0.0), -1.68e38, 1.7e38),
            ValueTrace("position_embeddings.0", tensor(1, 84, 16, low=-1.0, high=1.0), 0.5, 0.5),
            ValueTrace("past_key_values", TensorSpec(type="NoneType", value="None")),
        ),
        (ValueTrace("0", tensor(1, 84, 32, low=-0.5, high=0.5), -1e-4, 0.1),),
    ),
    CallTrace(
        "candidate",
        f"{LAYER}.wrapped.mlp",
        "QuantQwen3VLTextMLP",
        3,
        (ValueTrace("x", tensor(2, low=1.0, high=2.0), 1.5, 0.5, "[1.      , 2.      ]"),),
        (ValueTrace("", tensor(2, low=1.0, high=2.0), 1.5, 0.5, "[1.000001, 2.      ]"),),
        {"obs_act_in.scale": "0.0123", "obs_act_in.zp": "128"},
    ),
)
PAIRINGS = (
    Pairing("", "", "exact", "high", "Net", "QuantNet", 1, 1),
    Pairing("model.layers.0.attn", "model.wrapped.layers.0.wrapped.attn", "stripped", "low", "A", "QA", 2, 1),
    Pairing("model.layers.0.attn.q_proj", "model.wrapped.layers.0.wrapped.attn.q_proj", "name_attribute",
            "high", "Linear", "QuantLinear", 1, 1),
    Pairing("model.norm", "model.norm", "exact", "high", "Norm", "Norm", 0, 0),
    Pairing("model.head", "model.head", "exact"),
)  # fmt: skip
ALONE = (
    Unmatched("reference", "model.rotary_emb", "RotaryEmbedding", 1, "no_partner"),
    Unmatched("reference", "model.never", "Linear", 0, "no_partner"),
    Unmatched("candidate", "model.wrapped.obs_act_in", "Observer", 0, "no_partner"),
    Unmatched("candidate", "model.wrapped.helper", "Helper", 2, "other_place"),
)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_listing_of_calls_reads_as_its_golden_file(side: str, width: int) -> None:
    text = text_of(list(trace_listing(CALLS, side, width=width)), width)
    golden_files.same_as_golden(text, f"calls_{side}.{width}.txt")
    assert max(map(len, text.splitlines())) <= width


def test_a_listing_says_everything_that_a_call_holds() -> None:
    text = text_of(list(trace_listing(CALLS, "candidate", width=80)), 80)
    assert f"{LAYER}.wrapped.mlp#3  QuantQwen3VLTextMLP" in text
    assert re.search(r"→ x +float32 \[2\] +1.50e\+00 +1.00e\+00 +2.00e\+00 +5.00e-01", text)
    assert "[1.000001, 2.      ]" in text
    assert "obs_act_in.scale = 0.0123, obs_act_in.zp = 128" in text
    assert "self_attn" not in text
    assert "→ past_key_values None" in text_of(list(trace_listing(CALLS, "reference", width=80)), 80)


@pytest.mark.parametrize("width", [*WIDTHS, 160])
def test_aligned_modules_read_as_their_golden_file(width: int) -> None:
    text = text_of(list(modules(PAIRINGS, ALONE, width=width)), width)
    golden_files.same_as_golden(text, f"modules.{width}.txt")
    assert max(map(len, text.splitlines())) <= width


def test_aligned_modules_are_counted_by_rule_and_named() -> None:
    text = text_of(list(modules(PAIRINGS, ALONE, width=160)), 160)
    assert "5 pairs: 3 exact, 1 stripped, 1 name_attribute" in text
    assert "2 reference modules without a partner, 1 of them called" in text
    assert "2 candidate modules without a partner, 1 of them called" in text
    assert "without a partner in the other model:\n    model.rotary_emb  RotaryEmbedding, 1 call\n" in text
    assert "called in another place:\n    model.wrapped.helper  Helper, 2 calls\n" in text
    assert "obs_act_in" not in text


def test_explain_says_what_a_rule_means_and_lists_what_never_ran() -> None:
    text = text_of(list(modules(PAIRINGS, ALONE, width=160, explain=True)), 160)
    assert "stripped: the same path without the components that only the candidate has" in text
    assert "model.wrapped.obs_act_in  Observer, never called" in text
    assert "model.never  Linear, never called" in text


def test_a_candidate_that_never_ran_is_left_out_where_another_one_did() -> None:
    pairs = (
        Pairing("layer", "module.layer", "prefix", reference_calls=1, candidate_calls=0),
        Pairing("layer", "wrapped.layer", "stripped", reference_calls=1, candidate_calls=1),
        Pairing("unused", "unused", "exact", reference_calls=0, candidate_calls=0),
    )
    text = text_of(list(modules(pairs, (), width=80)), 80)
    assert "wrapped.layer" in text
    assert "unused" in text
    assert "module.layer" not in text
    assert "2 pairs: 1 stripped, 1 exact\n1 more pair, of which the candidate never ran; --explain lists all" in text
    assert "module.layer" in text_of(list(modules(pairs, (), width=80, explain=True)), 80)


def test_many_modules_without_a_partner_are_counted_by_type() -> None:
    alone = [Unmatched("candidate", f"wrapped.{n}", "Wrapper", 1, "no_partner") for n in range(30)]
    text = text_of(list(modules(PAIRINGS, alone, width=80)), 80)
    assert "30 without a partner in the other model: 30 Wrapper; --explain names them" in text
    assert "wrapped.7" in text_of(list(modules(PAIRINGS, alone, width=80, explain=True)), 80)


def test_what_is_inside_a_module_of_the_candidate_alone_is_counted_there() -> None:
    inside = ("", ".int_quant", ".int_quant.clamp", ".scaling")
    alone = [Unmatched("candidate", f"fc.weight_quant{path}", "Quant", 1, "no_partner") for path in inside]
    alone += [Unmatched("reference", path, "Block", 1, "no_partner") for path in ("gone", "gone.inner")]
    text = text_of(list(modules(PAIRINGS, alone, width=80, explain=True)), 80)
    assert "4 candidate modules without a partner, 4 of them called" in text
    assert "    fc.weight_quant  Quant, 1 call, 3 more inside\n" in text
    assert "int_quant" not in text
    assert "gone.inner  Block, 1 call" in text


def test_no_pair_at_all_is_said() -> None:
    text = text_of(list(modules((), ALONE, width=80)), 80)
    assert "No module of the candidate answers to one of the reference." in text


def test_inputs_show_shape_range_and_first_values() -> None:
    table = inputs(mask_bug(), width=80)
    assert table is not None
    text = text_of(table, 80)
    assert re.search(r"input_ids +int64 \[1,84\] +0 +151655 \[151644\., +872\., +198\., 151652…", text)
    assert re.search(r"pixel_values float32 \[192,1536\] +-1 9.92e-01 \[-0.0118", text)
    assert "sample" not in text
    several = inputs(odds(), width=80)
    assert several is not None
    assert re.search(r"^ +1 x +float32 \[2,4\]", text_of(several, 80), re.MULTILINE)
    assert inputs(REPORTS["drift"](), width=80) is None
    spec = {"shape": [2, 3], "dtype": "float32", "type": "Tensor"}
    many = replace(odds(), inputs=tuple({"sample": n, "name": "x", "spec": spec} for n in range(1000)))
    table = inputs(many, width=80)
    assert table is not None
    lines = text_of(table, 80).splitlines()
    assert (len(lines), lines[-1]) == (23, "… and 980 more inputs; the report holds all")


def test_a_scatter_plot_has_its_axes_and_points() -> None:
    pytest.importorskip("plotext")
    points = [n / 10 for n in range(-20, 21)]
    text = scatter(points, [2 * p for p in points], width=60, title="final output").plain
    assert text.startswith("final output: candidate (up) over reference (right)")
    assert text.count("•") >= 15
    assert max(map(len, text.splitlines()[1:])) <= 60
    again = scatter(points, [2 * p for p in points], width=60, title="final output").plain
    assert again == text


def test_a_scatter_plot_leaves_out_what_is_not_finite() -> None:
    pytest.importorskip("plotext")
    text = scatter([1.0, 2.0, float("nan")], [1.0, 2.0, 3.0], width=60).plain
    assert text.endswith("1 of 3 points are not finite and left out")
    nothing = scatter([float("inf")], [1.0], width=60).plain
    assert nothing == "No scatter plot of the final output: none of its 1 points is finite on both sides."


def test_without_plotext_one_line_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "plotext":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "plotext", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert scatter([1.0], [1.0], width=60).plain == MISSING
    assert "pip install 'qtrace[plot]'" in MISSING


def test_every_golden_file_is_compared() -> None:
    reports = {f"{name}.{width}.txt" for name in REPORTS for width in WIDTHS}
    calls = {f"calls_{side}.{width}.txt" for side in ("reference", "candidate") for width in WIDTHS}
    lists = {f"modules.{width}.txt" for width in (*WIDTHS, 160)}
    gates = {f"gate_{name}.{width}.txt" for name in GATES for width in WIDTHS}
    operators = {f"operators{what}.{width}.txt" for what in ("", "_all") for width in WIDTHS}
    assert golden_files.names() == reports | calls | lists | gates | operators | set(GOLDEN)
