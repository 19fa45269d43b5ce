"""Hugging Face's PEFT: LoRA adapters beside the linear layers, or merged into them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import chosen, toolkit

STATES = ("apart", "merged", "unloaded")


def wrap(
    reference: nn.Module,
    samples: Sequence[Sample],
    rank: int = 4,
    target_modules: str | Sequence[str] = "all-linear",
    state: str = "apart",
    size: float = 0.0,
) -> nn.Module:
    """Return `reference` with LoRA adapters of this rank on `target_modules`.

    A fresh adapter adds zero, so the result must compute the same as the reference. With `size` the second matrix
    holds normal random numbers of that standard deviation instead. `state` leaves the adapters `apart`, `merged` into
    the weights with the wrappers kept, or `unloaded`: merged, with the wrappers removed.

    Raises:
        SourceError: peft is missing.
        UsageError: no such state.
    """
    chosen("peft", "state", state, STATES)
    with toolkit("peft", "peft"):
        from peft import LoraConfig, get_peft_model

        targets = target_modules if isinstance(target_modules, str) else list(target_modules)
        model = get_peft_model(reference, LoraConfig(r=rank, target_modules=targets)).train(reference.training)
        if size:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=size)
        if state == "merged":
            model.merge_adapter()
        result: nn.Module = model.merge_and_unload() if state == "unloaded" else model
    return result
