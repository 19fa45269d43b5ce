"""The tico wrapper on the models of the zoo: off it computes the same, on it costs what the bits cost."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from qtrace.engine.samples import Sample, as_samples
from qtrace.errors import SourceError, UsageError
from qtrace.sources.wrappers import apply_wrapper
from qtrace.toolkits.tico import DTYPES, _model_args
from qtrace.zoo import llama, qwen3_vl

pytestmark = pytest.mark.tico


@pytest.fixture(autouse=True)
def _needs_tico(request: pytest.FixtureRequest) -> None:
    if "without_tico" not in request.node.name:
        pytest.importorskip("tico", reason="tico is not installed; pip install 'qtrace[tico]'")


def logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found = model(**inputs).logits
    assert isinstance(found, torch.Tensor)
    return found.double()


def peir(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """Return max|reference - candidate| / (max reference - min reference), a ratio."""
    return float((reference - candidate).abs().max() / (reference.max() - reference.min()))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(llama.tiny, llama.tokens), (qwen3_vl.tiny, qwen3_vl.image_and_text)],
    ids=["llama", "qwen3_vl"],
)
def test_wrapped_and_not_quantized_computes_the_same(
    model: Any, inputs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, arguments = model(), inputs()
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    expected = logits(reference, arguments)
    candidate = apply_wrapper("tico", reference, as_samples(arguments), {})
    assert type(candidate).__name__ == "PTQWrapper"
    assert not any(module.training for module in candidate.modules())
    assert peir(expected, logits(candidate, arguments)) < 2e-6
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert torch.equal(logits(reference, arguments), expected)
    assert capsys.readouterr().out == ""


def test_quantized_errors_shrink_with_the_bits() -> None:
    reference, inputs = qwen3_vl.tiny(), qwen3_vl.image_and_text()
    expected = logits(reference, inputs)
    errors = {}
    for dtype in DTYPES:
        arguments = {"quantize": True, "dtype": dtype}
        candidate = apply_wrapper("tico", reference, as_samples(inputs), arguments)
        errors[dtype] = peir(expected, logits(candidate, inputs))
    assert 1e-5 < errors["int16"] < 2e-3
    assert 1e-2 < errors["uint8"] < 0.15
    assert errors["int16"] < errors["uint8"] < errors["uint4"]
    assert errors["int16"] < errors["int8"] < errors["int4"]


def test_weights_may_have_a_type_of_their_own() -> None:
    reference, inputs = llama.tiny(), llama.tokens()
    expected = logits(reference, inputs)

    def error(**arguments: Any) -> float:
        candidate = apply_wrapper("tico", reference, as_samples(inputs), {"quantize": True, **arguments})
        return peir(expected, logits(candidate, inputs))

    fine = error(dtype="int16")
    assert fine < error(dtype="int16", weight_dtype="uint8") < error(dtype="int16", weight_dtype="uint4")


def test_calibration_leaves_the_samples_alone() -> None:
    samples = as_samples(qwen3_vl.image_and_text())
    before = {name: value.clone() for name, value in samples[0].kwargs.items()}
    apply_wrapper("tico", qwen3_vl.tiny(), samples, {"quantize": True})
    assert all(torch.equal(value, before[name]) for name, value in samples[0].kwargs.items())


def test_a_qwen3_vls_image_is_found_in_the_samples() -> None:
    model, inputs = qwen3_vl.tiny(), qwen3_vl.image_and_text()
    vision = {"grid_thw": (1, 20, 14), "visual_start_idx": 4, "spatial_merge_size": 2}
    text = {"input_ids": inputs["input_ids"][:, :3]}
    assert _model_args(model, [Sample(kwargs=inputs)], {}) == {"vision": vision}
    assert _model_args(model, [Sample(kwargs=text), Sample(kwargs=inputs)], {}) == {"vision": vision}
    assert _model_args(model, [Sample((inputs["input_ids"],))], {}) == {
        "vision": {"visual_start_idx": 0, "spatial_merge_size": 2}
    }
    given = {"vision": {"grid_thw": [1, 2, 2], "visual_start_idx": 7}, "other": 1}
    assert _model_args(model, [Sample(kwargs=inputs)], given) == {
        "vision": {"grid_thw": (1, 2, 2), "visual_start_idx": 7, "spatial_merge_size": 2},
        "other": 1,
    }
    assert _model_args(llama.tiny(), [], {"a": 1}) == {"a": 1}


def test_a_text_alone_wraps_a_qwen3_vl_too() -> None:
    reference = qwen3_vl.tiny()
    inputs = {"input_ids": torch.arange(1, 9).unsqueeze(0)}
    candidate = apply_wrapper("tico", reference, as_samples(inputs), {})
    assert peir(logits(reference, inputs), logits(candidate, inputs)) < 2e-6


@pytest.mark.parametrize("name", ["dtype", "weight_dtype"])
def test_an_unknown_dtype_names_near_ones(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_wrapper("tico", llama.tiny(), [], {name: "int3"})
    assert str(caught.value) == "the wrapper tico has no dtype int3; did you mean int8 or int4 or uint8?"


def test_a_model_that_tico_does_not_know_is_named() -> None:
    with pytest.raises(SourceError) as caught:
        apply_wrapper("tico", nn.Conv1d(1, 1, 1), [], {})
    assert str(caught.value).startswith(
        "the wrapper tico failed on Conv1d: NotImplementedError: PTQWrapHelper: no quantization wrapper for Conv1d"
    )


def test_without_tico_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "tico" or name.startswith("tico.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tico", None)
    with pytest.raises(SourceError) as caught:
        apply_wrapper("tico", nn.Linear(2, 2), [], {})
    assert str(caught.value) == "the wrapper tico needs the extra qtrace[tico]: pip install 'qtrace[tico]'"


def test_a_tico_that_does_not_fit_transformers_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ImportError("cannot import name 'gone' from 'transformers'")

    monkeypatch.setattr("tico.quantization.prepare", refuse)
    with pytest.raises(SourceError) as caught:
        apply_wrapper("tico", nn.Linear(2, 2), [], {})
    assert str(caught.value) == (
        "the installed tico does not work with the installed transformers "
        "(cannot import name 'gone' from 'transformers'); "
        "tico 0.3.0 and transformers 5.22.2 were tried together"
    )
