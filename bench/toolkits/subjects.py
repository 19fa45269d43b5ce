"""The models that toolkits wrap, each with one sample: tiny ones with random weights, and two with real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench import smollm2
from bench.faults import models
from qtrace.zoo import qwen3_vl

TOKENS = 32
MINILM = smollm2.FOLDER.with_name("minilm")


class ConvNet(nn.Module):
    """Two times convolution, batch norm and ReLU, then pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.flatten(self.pool(self.features(x)), 1))
        return out


def convnet() -> nn.Module:
    """Return the convolutional net with batch norms that have seen something, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ConvNet()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = 0.2 * torch.randn(module.num_features)
                module.running_var = 0.5 + torch.rand(module.num_features)
    return models.enliven(net)


def _qwen3_vl() -> nn.Module:
    return models.enliven(qwen3_vl.tiny())


def _minilm() -> nn.Module:
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_pretrained(MINILM, dtype=torch.float32)
    return model.eval()


def _words() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30_000, (2, TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _smollm2() -> nn.Module:
    return smollm2.load_pair()[0]


# Builder of the reference, and of what it is called with.
SUBJECTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "llama": (models.llama, lambda: {**models.tokens(batch=1), "use_cache": False}),
    "bert": (models.bert, models.tokens),
    "vit": (models.vit, models.image),
    "convnet": (convnet, lambda: torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))),
    "qwen3_vl": (_qwen3_vl, qwen3_vl.image_and_text),
    "minilm": (_minilm, _words),
    "smollm2": (_smollm2, lambda: {**smollm2.tokens(TOKENS), "use_cache": False}),
}


def available(name: str) -> bool:
    """Return whether a model is there; the weights of the real ones are fetched by `make models`."""
    folders = {"minilm": MINILM, "smollm2": smollm2.FOLDER}
    return name not in folders or (folders[name] / "model.safetensors").exists()
