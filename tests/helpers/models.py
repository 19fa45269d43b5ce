"""Small models, one for each shape of code that a tracer meets."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


def hooks_of(model: nn.Module) -> dict[str, int]:
    """Count the hooks on each module, and the global ones."""
    counts = {
        path: len(module._forward_hooks) + len(module._forward_pre_hooks) for path, module in model.named_modules()
    }
    from torch.nn.modules import module as registry

    counts["global"] = len(registry._global_forward_hooks) + len(registry._global_forward_pre_hooks)
    return counts


def own_hooks_of(modules: Mapping[str, nn.Module]) -> list[str]:
    """Name the modules on which a hook of qtrace sits."""
    return [
        path
        for path, module in modules.items()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if getattr(hook, "__module__", "").startswith("qtrace")
    ]


def twin(model: nn.Module) -> nn.Module:
    """Return an independent copy in eval mode, as most candidates begin."""
    return copy.deepcopy(model).eval()


class Chain(nn.Module):
    """Three linear layers, one of them called twice, with an in-place activation between."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Linear(width, width)
        self.unused = nn.Linear(width, width)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.first(x))
        out: torch.Tensor = self.first(self.second(hidden))
        return out


class Block(nn.Module):
    """Norm, attention-like pair of projections and a residual; `mask` is keyword-only."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        normed = self.norm(hidden)
        weight = self.query(normed) @ normed.transpose(-1, -2)
        if mask is not None:
            weight = weight + mask
        out: torch.Tensor = hidden + self.out(weight.softmax(-1) @ self.value(normed))
        return out


class Stack(nn.Module):
    """A model of blocks that builds a causal mask and hands it down: the seed's case in small."""

    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 16)
        self.eval()

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = self.embed(ids)
        mask = self.mask(hidden, attention_mask)
        for layer in self.layers:
            hidden = layer(hidden, mask=mask)
        return {"logits": self.head(hidden), "hidden": hidden}

    def mask(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        length = hidden.shape[-2]
        return torch.full((length, length), torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)


class Wrapped(nn.Module):
    """A wrapper as quantization toolkits write them: any arguments, the model below one more name."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped(*args, **kwargs)


def wrap_children(model: nn.Module) -> nn.Module:
    """Put a `Wrapped` around every child of a copy, at every depth."""
    made = twin(model)
    for name, child in list(made.named_children()):
        if isinstance(child, nn.ModuleList):
            setattr(made, name, nn.ModuleList(Wrapped(wrap_children(item)) for item in child))
        else:
            setattr(made, name, Wrapped(wrap_children(child)))
    return made.eval()


@dataclass
class Pair:
    first: torch.Tensor
    second: torch.Tensor | None


class Cache:
    """Holds tensors in attributes, as key-value caches do."""

    def __init__(self, keys: torch.Tensor) -> None:
        self.keys = keys
        self.seen = 3


class Returns(nn.Module):
    """Returns whatever `make` builds from the output of one linear layer."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.make = make
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(self.layer(x))
