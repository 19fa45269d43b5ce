"""The operator view on the real wrapped model with the real bug."""

from __future__ import annotations

import pytest
import torch

from qtrace.diagnosis.operators import compare_operators
from qtrace.zoo import qwen3_vl

pytestmark = pytest.mark.tico
ATTENTION = "model.language_model.layers.0.self_attn"


@pytest.fixture(autouse=True)
def _needs_tico() -> None:
    pytest.importorskip("tico", reason="tico is not installed; pip install 'qtrace[tico]'")


def test_the_mask_that_is_wrong_comes_in_where_it_is_added_to_the_logits() -> None:
    reference = qwen3_vl.tiny()
    inputs = qwen3_vl.image_and_text()
    with torch.no_grad():
        view = compare_operators(reference, qwen3_vl.mask_bug(reference), inputs, ATTENTION)
    split = view.split
    assert split is not None
    assert split.arguments == ("attention_mask",)
    assert split.reference is not None
    assert split.candidate is not None
    sides = view.reference_operators[split.reference], view.candidate_operators[split.candidate]
    for operator, file, code in zip(
        sides,
        ("modeling_qwen3_vl.py", "quant_text_attention.py"),
        (
            "attn_weights = attn_weights + attention_mask",
            "logits_i = self._fq(logits_i + attn_mask, self.obs_mask_add)",
        ),
        strict=True,
    ):
        assert operator.name == "aten.add.Tensor"
        assert operator.place is not None
        assert operator.place.file.endswith(file)
        (line,) = (line.text.strip() for line in operator.place.around if line.number == operator.place.line)
        assert line == code
    # The wrapper never holds the logits of both heads, and has folded their scale into the keys.
    agreed = split.agreed
    assert agreed is not None
    assert agreed.relation is not None
    assert agreed.relation.kind == "slice"
    assert agreed.error is not None
    assert agreed.error < 1e-5
    assert view.reference_operators[agreed.reference].outputs[0].shape == (1, 2, 84, 84)
    assert view.candidate_operators[agreed.candidate].outputs[0].shape == (1, 84, 84)


def test_an_attention_without_the_bug_agrees() -> None:
    reference = qwen3_vl.tiny()
    with torch.no_grad():
        view = compare_operators(
            reference, qwen3_vl.mask_bug(reference), qwen3_vl.image_and_text(), "model.visual.blocks.0.attn"
        )
    assert view.agrees
    assert len(view.candidate_operators) > len(view.reference_operators)
    assert view.paired[0] > 0.9 * len(view.reference_operators)
