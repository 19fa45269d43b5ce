"""The zoo: the models are what the documentation says they are, and the bug does what it is there for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from qtrace.engine.samples import as_samples
from qtrace.errors import SourceError, UsageError
from qtrace.sources.wrappers import apply_wrapper
from qtrace.zoo import llama, qwen3_vl

O_PROJ = "layers.0.self_attn.o_proj"


def outputs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run the model; return each called module's first output by path, less the wrapper's own parts."""
    found: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: object, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                found[".".join(part for part in path.split(".") if part != "wrapped")] = first.detach().clone()

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in model.named_modules()]
    try:
        with torch.no_grad():
            found["logits"] = model(**inputs).logits
    finally:
        for handle in handles:
            handle.remove()
    return found


def peir(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """Return max|reference - candidate| / (max reference - min reference), a ratio."""
    return float((reference - candidate).abs().max() / (reference.max() - reference.min()))


@pytest.mark.parametrize("tiny", [llama.tiny, qwen3_vl.tiny], ids=["llama", "qwen3_vl"])
def test_equal_seeds_give_equal_weights_and_leave_torchs_generator_alone(tiny: Any) -> None:
    state = torch.get_rng_state()
    one, same, other = tiny(seed=1), tiny(seed=1), tiny(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert not one.training
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_llama_has_grouped_heads() -> None:
    model, inputs = llama.tiny(), llama.tokens(length=7, batch=2)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, 7)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (64, 64)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (32, 64)
    with torch.no_grad():
        assert model(**inputs).logits.shape == (2, 7, llama.VOCABULARY)


def test_tokens_and_images_follow_their_seed() -> None:
    assert torch.equal(llama.tokens(3)["input_ids"], llama.tokens(3)["input_ids"])
    assert not torch.equal(llama.tokens(3)["input_ids"], llama.tokens(4)["input_ids"])
    one, other = qwen3_vl.image_and_text(3), qwen3_vl.image_and_text(4)
    assert not torch.equal(one["pixel_values"], other["pixel_values"])
    assert torch.equal(one["mm_token_type_ids"], other["mm_token_type_ids"])


def test_the_inputs_are_laid_out_as_qwens_processor_does() -> None:
    inputs = qwen3_vl.image_and_text()
    specs = {name: (tuple(value.shape), str(value.dtype)) for name, value in inputs.items()}
    assert specs == {
        "input_ids": ((1, 84), "torch.int64"),
        "attention_mask": ((1, 84), "torch.int64"),
        "pixel_values": ((280, 1536), "torch.float32"),
        "image_grid_thw": ((1, 3), "torch.int64"),
        "mm_token_type_ids": ((1, 84), "torch.int64"),
    }
    ids = inputs["input_ids"][0]
    assert ids[3] == qwen3_vl.VISION_START_TOKEN
    assert (ids == qwen3_vl.IMAGE_TOKEN).nonzero().flatten().tolist() == list(range(4, 74))
    assert inputs["mm_token_type_ids"][0].tolist() == [0] * 4 + [1] * 70 + [0] * 10
    assert -1 <= inputs["pixel_values"].min() < -0.99 < 0.99 < inputs["pixel_values"].max() <= 1


def test_77_modules_of_the_qwen3_vl_are_called() -> None:
    model = qwen3_vl.tiny()
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, path=path: called.append(path))
        for path, module in model.named_modules()
    ]
    with torch.no_grad():
        model(**qwen3_vl.image_and_text())
    for handle in handles:
        handle.remove()
    assert len(called) == len(set(called)) == 77


@pytest.mark.tico
def test_the_bug_leaps_at_o_proj_and_reaches_the_logits() -> None:
    pytest.importorskip("tico", reason="tico is not installed; pip install 'qtrace[tico]'")
    reference, inputs = qwen3_vl.tiny(), qwen3_vl.image_and_text()
    expected = outputs(reference, inputs)
    before = f"model.language_model.{O_PROJ.replace('o_proj', 'v_proj')}"
    leap = f"model.language_model.{O_PROJ}"

    found = outputs(qwen3_vl.mask_bug(copy.deepcopy(reference)), inputs)
    assert peir(expected[before], found[before]) < 1e-5
    assert 0.4 < peir(expected[leap], found[leap]) < 0.7
    assert 0.4 < peir(expected["logits"], found["logits"]) < 0.7

    # The process-wide classes of tico are as they were: the correct pair agrees in the same process.
    correct = outputs(apply_wrapper("tico", reference, as_samples(inputs), {}), inputs)
    assert peir(expected[leap], correct[leap]) < 5e-6
    assert peir(expected["logits"], correct["logits"]) < 5e-6


@pytest.mark.tico
def test_the_buggy_candidate_can_be_copied() -> None:
    pytest.importorskip("tico", reason="tico is not installed; pip install 'qtrace[tico]'")
    inputs = qwen3_vl.image_and_text()
    candidate = qwen3_vl.mask_bug(qwen3_vl.tiny())
    copied = copy.deepcopy(candidate)
    assert torch.equal(outputs(candidate, inputs)["logits"], outputs(copied, inputs)["logits"])


def test_the_bug_is_one_of_qwen3_vl() -> None:
    with pytest.raises(UsageError) as caught:
        qwen3_vl.mask_bug(llama.tiny())
    assert str(caught.value) == (
        "mask_bug wraps a Qwen3-VL, and the reference is LlamaForCausalLM; "
        "use qtrace.zoo.qwen3_vl:tiny as the reference"
    )


def test_the_bug_says_when_tico_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtrace.toolkits.tico.wrap", lambda reference, samples, **args: reference)
    with pytest.raises(SourceError) as caught:
        qwen3_vl.mask_bug(qwen3_vl.tiny())
    assert str(caught.value) == (
        "mask_bug knows tico 0.3.0, and the installed one has no method _normalize_attention_mask"
    )
