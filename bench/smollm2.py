"""The model that time and memory are measured on: SmolLM2-135M against a copy of it that differs everywhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "qtrace" / "smollm2"
LAYERS = 30


def available() -> bool:
    """Return whether `make models` has put the weights where they are looked for."""
    return (FOLDER / "model.safetensors").exists()


def load_pair(layers: int = LAYERS) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return the model in float32, cut to `layers`, and a copy with noise of 1e-6 on the embedding.

    The noise makes every tensor differ, so that no comparison ends at the first glance.
    """
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    reference.model.layers = reference.model.layers[:layers].eval()
    reference.config.num_hidden_layers = layers
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        weight = candidate.model.embed_tokens.weight
        weight.add_(torch.randn_like(weight).mul_(1e-6 * float(weight.std())))
    return reference, candidate


def tokens(length: int) -> dict[str, Any]:
    """Return a batch of one with `length` tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (1, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
