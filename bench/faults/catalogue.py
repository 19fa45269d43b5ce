"""All cases of the bench, by id."""

from __future__ import annotations

import fnmatch
import importlib

from bench.faults.case import CASES, Case

FILES = (
    "llama",
    "experts",
    "bert",
    "encoder_decoder",
    "vision_transformers",
    "qwen3_vl",
    "conv",
    "decoding",
    "quantized",
    "several",
    "correct",
    "gpt2",
    "gemma3",
    "decoders",
    "clip_text",
    "recurrent",
    "reparametrized",
    "hidden",
    "resnet_like",
    "assembled",
    "mlp_mixer",
    "quantized_vision",
    "wrapped_leaves",
    "tico_llama",
    "torch_layers",
)


def cases(pattern: str = "*") -> list[Case]:
    """Return the cases whose id matches the shell pattern, in the order in which they are written down.

    Raises ValueError where there is none.
    """
    for file in FILES:
        importlib.import_module(f"bench.faults.{file}")
    found = [case for name, case in CASES.items() if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise ValueError(f"no case of the bench is called {pattern!r}; python -m bench.faults --list shows all")
    return found
