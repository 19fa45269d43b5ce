"""The wrappers aimet and llmcompressor: what they hand over to toolkits that are stood in for here."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from qtrace.engine.samples import as_samples
from qtrace.errors import SourceError, UsageError
from qtrace.sources.wrappers import apply_wrapper
from qtrace.toolkits import calibration
from qtrace.zoo import llama
from tests.helpers.models import Chain

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
TOKENS = {**llama.tokens(length=8), "use_cache": False}


def installed(monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> None:
    """Let modules of these names (a dot is two underscores) be found, holding what is given."""
    monkeypatch.setattr(calibration, "find_spec", lambda module: module)
    for name, content in modules.items():
        module = types.ModuleType(name.replace("__", "."))
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)


class Simulation:
    """Follows the model as AIMET's does, and counts what calibrates it."""

    def __init__(self, model: Any, dummy_input: tuple[torch.Tensor, ...], **bits: int) -> None:
        untyped: Any = torch.jit
        untyped.trace(model, dummy_input, check_trace=False)
        self.model: Any = SimpleNamespace(model=copy.deepcopy(model.model))
        self.model.model.bits = bits

    def compute_encodings(self, calibrate: Callable[[Any], None]) -> None:
        calls: list[object] = []
        handle = self.model.model.register_forward_hook(lambda *call: calls.append(call))
        calibrate(self.model)
        handle.remove()
        self.model.model.calibrated = len(calls)
        self.model.model.add_module("quantizer", nn.Identity())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("reference", "sample"),
    [(llama.tiny(), TOKENS), (Chain(), X), (Chain(), (X,))],
    ids=["keywords", "tensor", "tuple"],
)
def test_aimet_traces_what_returns_no_tuple_and_gives_back_the_model_itself(
    reference: nn.Module, sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, aimet_torch={"QuantizationSimModel": Simulation})
    reference = reference.eval()
    candidate: Any = apply_wrapper("aimet", reference, as_samples([sample, sample]), {"param_bits": 4})
    assert type(candidate) is type(reference)
    names = [name for name, _ in reference.named_modules()]
    assert [name for name, _ in candidate.named_modules()] == [*names, "quantizer"]
    assert candidate.bits == {"default_param_bw": 4, "default_output_bw": 8}
    assert candidate.calibrated == 2
    assert not any(module.training for module in candidate.modules())


class Oneshot:
    """Reads the model's config as llm-compressor does, and takes tensors only."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.batches: list[dict[str, Any]] = []
        self.recipes: list[list[tuple[str, dict[str, Any]]]] = []

    def __call__(self, model: Any, recipe: Any, dataset: Any, **_: Any) -> None:
        self.folders.append(model.config.name_or_path)
        assert AutoConfig.from_pretrained(model.config.name_or_path).hidden_size == model.config.hidden_size
        self.batches += list(dataset)
        self.recipes.append(recipe)


@pytest.fixture
def oneshot(monkeypatch: pytest.MonkeyPatch) -> Oneshot:
    def modifier(name: str) -> dict[str, Any]:
        return {name: lambda **what: (name, what)}

    stood_in = Oneshot()
    installed(
        monkeypatch,
        compressed_tensors={},
        compressed_tensors__quantization={},
        compressed_tensors__quantization__quant_scheme={"PRESET_SCHEMES": {"W8A8": {}, "W4A16": {}}},
        llmcompressor={"oneshot": stood_in},
        llmcompressor__modifiers={},
        llmcompressor__modifiers__gptq=modifier("GPTQModifier"),
        llmcompressor__modifiers__quantization=modifier("QuantizationModifier"),
        llmcompressor__modifiers__transform={},
        llmcompressor__modifiers__transform__smoothquant=modifier("SmoothQuantModifier"),
    )
    return stood_in


@pytest.mark.parametrize(
    ("method", "modifiers"),
    [
        ("rtn", ["QuantizationModifier"]),
        ("gptq", ["GPTQModifier"]),
        ("smoothquant", ["SmoothQuantModifier", "QuantizationModifier"]),
    ],
)
def test_llmcompressor_reads_the_config_from_a_folder_that_is_there_only_then(
    method: str, modifiers: list[str], oneshot: Oneshot
) -> None:
    reference: Any = llama.tiny()
    candidate: Any = apply_wrapper("llmcompressor", reference, as_samples([TOKENS, TOKENS]), {"method": method})
    assert [name for name, _ in oneshot.recipes[0]] == modifiers
    assert oneshot.recipes[0][-1][1] == {"targets": "Linear", "scheme": "W8A8", "ignore": [r"re:(.*\.)?lm_head$"]}
    assert [sorted(batch) for batch in oneshot.batches] == [["attention_mask", "input_ids"]] * 2
    assert not Path(oneshot.folders[0]).exists()
    assert candidate.config.name_or_path == reference.config.name_or_path


def test_llmcompressor_refuses_what_it_does_not_take_in_one_sentence(oneshot: Oneshot) -> None:
    with pytest.raises(SourceError, match=r"^the wrapper llmcompressor takes transformers' models, and Chain is none$"):
        apply_wrapper("llmcompressor", Chain(), as_samples(X), {})
    with pytest.raises(
        UsageError, match=r"^the wrapper llmcompressor has no method awq; known: gptq, rtn, smoothquant$"
    ):
        apply_wrapper("llmcompressor", llama.tiny(), as_samples(TOKENS), {"method": "awq"})
    with pytest.raises(UsageError, match=r"^the wrapper llmcompressor has no scheme W8A4; did you mean"):
        apply_wrapper("llmcompressor", llama.tiny(), as_samples(TOKENS), {"scheme": "W8A4"})
    assert not oneshot.folders


@pytest.mark.parametrize(("name", "package"), [("aimet", "aimet-torch"), ("llmcompressor", "llmcompressor")])
def test_without_the_toolkit_or_a_sample_one_sentence_says_so(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "find_spec", lambda module: None)
    with pytest.raises(SourceError, match=f"^the wrapper {name} needs the package {package}, which is missing: "):
        apply_wrapper(name, llama.tiny(), as_samples(TOKENS), {})
    with pytest.raises(UsageError, match=f"^the wrapper {name} follows the model on a sample, and there is none"):
        apply_wrapper(name, llama.tiny(), [], {})
