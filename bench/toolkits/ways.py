"""The ways of wrapping a model that are tried: a wrapper, its arguments, the environment it runs in, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRANSFORMERS = ("llama", "bert", "vit", "qwen3_vl")
TINY = ("llama", "bert", "vit", "convnet", "qwen3_vl")
ALL = (*TINY, "minilm", "smollm2")
FUSE = [[f"features.{n + i}" for i in range(3)] for n in (0, 3)]
LAYERS = {"convnet": {"target_modules": ["fc"]}}

# Layers whose sizes 4-bit kernels and groups do not divide.
ODD = {"vit": {"keep": ["classifier"]}, "qwen3_vl": {"keep": ["linear_fc2", "lm_head"]}}

# What nncf wants to be told, lest it quantize the mask of attention.
TOLD = {model: {"transformer": True} for model in TRANSFORMERS}


@dataclass(frozen=True)
class Way:
    """A row of the table: `environment` is the name of one of `environments.PACKAGES`, "" the project's own.

    `own` are further arguments by model.
    """

    name: str
    wrapper: str
    args: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""
    models: tuple[str, ...] = TINY
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def arguments(self, model: str) -> dict[str, Any]:
        """Return the wrapper's arguments for a model."""
        return {**self.args, **self.own.get(model, {})}


WAYS = (
    Way("bfloat16 cast", "dtype", models=ALL),
    Way("torch.compile", "compile", {"backend": "eager"}, models=ALL),
    Way("torch.export, unflattened", "export"),
    Way("accelerate, offload to memory", "accelerate", {"offload": "cpu"}),
    Way("accelerate, offload to disk", "accelerate", {"offload": "disk"}, models=ALL),
    Way("torch.ao dynamic int8", "torch_ao", models=ALL),
    Way(
        "torch.ao static, prepared", "torch_ao", {"mode": "static", "convert": False, "fuse": FUSE}, models=("convnet",)
    ),
    Way("torch.ao static int8", "torch_ao", {"mode": "static", "fuse": FUSE}, models=("convnet",)),
    Way("torch.ao FX, prepared", "torch_ao", {"mode": "fx", "convert": False}, models=("convnet",)),
    Way("torch.ao FX int8", "torch_ao", {"mode": "fx"}, models=("convnet",)),
    Way("tico, not quantized", "tico", models=("llama", "qwen3_vl")),
    Way("tico uint8", "tico", {"quantize": True}, models=("llama", "qwen3_vl")),
    Way("torchao int8 weight-only", "torchao", environment="torchao", models=ALL),
    Way("torchao int8 dynamic", "torchao", {"scheme": "int8_dynamic"}, "torchao", ALL),
    Way("torchao int4 weight-only", "torchao", {"scheme": "int4_weight_only"}, "torchao", TRANSFORMERS, ODD),
    Way("torchao intx 4 bits", "torchao", {"scheme": "intx_weight_only"}, "torchao", TRANSFORMERS, ODD),
    Way("torchao float8 weight-only", "torchao", {"scheme": "float8_weight_only"}, "torchao"),
    Way("torchao QAT prepare", "torchao", {"scheme": "qat"}, "torchao", TRANSFORMERS, ODD),
    Way("optimum-quanto int8 weights", "quanto", environment="quanto", models=ALL),
    Way("optimum-quanto int4 weights", "quanto", {"weights": "qint4"}, "quanto", TRANSFORMERS),
    Way("optimum-quanto int8", "quanto", {"activations": "qint8"}, "quanto"),
    Way("PEFT LoRA, apart", "peft", {"size": 0.02}, "peft", ALL, LAYERS),
    Way("PEFT LoRA, merged", "peft", {"size": 0.02, "state": "merged"}, "peft", TINY, LAYERS),
    Way("PEFT LoRA, unloaded", "peft", {"size": 0.02, "state": "unloaded"}, "peft", TINY, LAYERS),
    Way("bitsandbytes 8 bits", "bitsandbytes", environment="bitsandbytes", models=ALL),
    Way("bitsandbytes 4 bits", "bitsandbytes", {"bits": 4}, "bitsandbytes", ("llama", "minilm", "smollm2")),
    Way("compressed-tensors W8A8", "compressed_tensors", environment="compressed_tensors", models=ALL),
    Way("compressed-tensors FP8", "compressed_tensors", {"scheme": "FP8_DYNAMIC"}, "compressed_tensors", TRANSFORMERS),
    Way("llm-compressor W8A8", "llmcompressor", {}, "llmcompressor", (*TRANSFORMERS, "minilm", "smollm2")),
    Way("llm-compressor SmoothQuant", "llmcompressor", {"method": "smoothquant"}, "llmcompressor", ("llama", "bert")),
    Way("llm-compressor GPTQ", "llmcompressor", {"method": "gptq"}, "llmcompressor", TRANSFORMERS),
    Way("brevitas layerwise int8", "brevitas", environment="brevitas", models=(*TINY, "minilm")),
    Way("brevitas FX int8", "brevitas", {"mode": "fx"}, "brevitas", ("convnet",)),
    Way("modelopt int8", "modelopt", environment="modelopt", models=ALL),
    Way("nncf PTQ int8", "nncf", environment="nncf", own=TOLD),
    Way("nncf PTQ int8, type not told", "nncf", environment="nncf", models=("llama",)),
    Way("nncf int8 weights", "nncf", {"mode": "weights"}, "nncf", TRANSFORMERS),
    Way("neural-compressor RTN int8", "neural_compressor", {}, "neural_compressor", TRANSFORMERS),
    Way("quark int8", "quark", environment="quark"),
    Way("aimet QuantSim int8", "aimet", environment="aimet", models=(*TINY, "minilm")),
)
