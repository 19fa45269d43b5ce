"""vLLM's llm-compressor: linear layers quantized by `oneshot`, calibrated on the samples."""

from __future__ import annotations

import contextlib
import copy
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample, named_arguments
from qtrace.errors import SourceError
from qtrace.toolkits.calibration import chosen, first_sample, toolkit

METHODS = ("rtn", "gptq", "smoothquant")


def wrap(
    reference: nn.Module,
    samples: Sequence[Sample],
    scheme: str = "W8A8",
    method: str = "rtn",
    keep: Sequence[str] = ("lm_head",),
) -> nn.Module:
    """Return `reference` with its linear layers quantized in place, except those whose own name is in `keep`.

    `scheme` is one of compressed-tensors' presets, such as W8A8, W4A16 or FP8_DYNAMIC. `method` is how weights are
    rounded: each to the nearest (`rtn`), by GPTQ, or to the nearest after SmoothQuant moved the activations' outliers
    out of norms into them.

    Raises:
        SourceError: llmcompressor is missing, or the model is none of transformers'.
        UsageError: no such scheme or method, or no sample.
    """
    chosen("llmcompressor", "method", method, METHODS)
    first_sample("llmcompressor", samples)
    if not hasattr(reference, "save_pretrained"):
        raise SourceError(
            f"the wrapper llmcompressor takes transformers' models, and {type(reference).__name__} is none"
        )
    with toolkit("llmcompressor", "llmcompressor"), _config_on_disk(reference):
        from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
        from llmcompressor import oneshot

        chosen("llmcompressor", "scheme", scheme, list(PRESET_SCHEMES))
        kept = [rf"re:(.*\.)?{re.escape(name)}$" for name in keep]
        what = {"targets": "Linear", "scheme": scheme, "ignore": kept}
        loader: Any = torch.utils.data.DataLoader(_batches(reference, samples), batch_size=None)  # type: ignore[arg-type]
        # The samples are the arguments of the model's call: no tokenizer is needed.
        oneshot(model=reference, recipe=_recipe(method, what), dataset=loader, processor=object(), pipeline="basic")
    return reference


def _batches(model: nn.Module, samples: Sequence[Sample]) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of each sample, by argument name; llm-compressor accepts nothing else."""
    calls = [named_arguments(model, sample) for sample in copy.deepcopy(list(samples))]
    return [{name: value for name, value in call.items() if isinstance(value, torch.Tensor)} for call in calls]


def _recipe(method: str, what: dict[str, Any]) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    if method == "gptq":
        return [GPTQModifier(**what)]
    smoothing = [SmoothQuantModifier()] if method == "smoothquant" else []
    return [*smoothing, QuantizationModifier(**what)]


@contextlib.contextmanager
def _config_on_disk(model: Any) -> Iterator[None]:
    """Set the model's name to a folder with its config: llm-compressor reads the config there before it begins."""
    name = model.config._name_or_path
    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder:
        model.config.save_pretrained(folder)
        model.config._name_or_path = folder
        try:
            yield
        finally:
            model.config._name_or_path = name
