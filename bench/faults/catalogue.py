"""All cases of the bench, by id."""

from __future__ import annotations

import fnmatch
import importlib

from bench.faults.case import CASES, Case

FILES = (
    "llama",
    "llama_containers",
    "llama_arguments",
    "mixtral",
    "gemma2",
    "bert",
    "t5",
    "bart",
    "vit",
    "qwen3_vl",
    "conv",
    "decoding",
    "quantized",
    "several",
    "correct_transformers",
    "correct_structure",
    "correct_conv",
    "no_culprit",
    "reparametrized",
    "gpt2",
    "gpt2_rebuilt",
    "qwen2_moe",
    "gemma3",
    "opt",
    "clip_text",
    "deberta",
    "encoder_decoder",
    "whisper",
    "gpt_neox",
    "mamba",
    "compensated",
    "hidden_text",
    "resnet_like",
    "unet",
    "swin",
    "segformer_clip",
    "recurrent",
    "assembled",
    "mlp_mixer",
    "more_quantized",
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
