"""Correct candidates with other modules: merged, fused, wrapped, or of another number type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

llama = Suite("llama", models.llama, models.uncached)
vit = Suite("vit", models.vit, models.image)
LAYERS = range(2)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it: base(x) + up(down(x))."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        generator = torch.Generator().manual_seed(6)
        with torch.no_grad():
            self.down.weight.normal_(std=0.1, generator=generator)
            self.up.weight.normal_(std=0.1, generator=generator)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.base(input) + self.up(self.down(input))
        return output

    def merged(self) -> nn.Linear:
        """Return one linear layer with the adapter added to its weight."""
        linear = nn.Linear(self.base.in_features, self.base.out_features, bias=False)
        with torch.no_grad():
            linear.weight.copy_(self.base.weight.double() + self.up.weight.double() @ self.down.weight.double())
        return linear


class Wrapped(nn.Module):
    """Passes everything on to the module inside, as a toolkit's wrapper does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.wrapped = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped(*args, **kwargs)


def _adapt(model: Any, merge: bool) -> None:
    for layer in LAYERS:
        attention = model.get_submodule(f"model.layers.{layer}.self_attn")
        for name in ("q_proj", "v_proj"):
            adapted = Adapted(getattr(attention, name))
            setattr(attention, name, adapted.merged() if merge else adapted)


@llama.correct()
def adapter_merged(pair: Pair) -> None:
    """The reference runs low-rank adapters beside its linear layers, the candidate has them in the weights."""
    _adapt(pair.reference, merge=False)
    _adapt(pair.candidate, merge=True)


@llama.correct()
def adapter_split(pair: Pair) -> None:
    """The other way round: the candidate runs the adapters as modules."""
    _adapt(pair.reference, merge=True)
    _adapt(pair.candidate, merge=False)


@llama.correct()
def projections_fused(pair: Pair) -> None:
    """The candidate has one projection for query, key and value, and one for gate and up."""
    for layer in LAYERS:
        attention, mlp = pair.at(f"model.layers.{layer}.self_attn"), pair.at(f"model.layers.{layer}.mlp")
        attention.qkv_proj = _joined(attention, "q_proj", "k_proj", "v_proj")
        rewrite(
            attention,
            "        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)\n"
            "        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)\n"
            "        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)\n",
            "        heads = self.qkv_proj(hidden_states).view(hidden_shape).transpose(1, 2)\n"
            "        query_states, key_states, value_states = heads.split([4, 2, 2], dim=1)\n",
        )
        mlp.gate_up_proj = _joined(mlp, "gate_proj", "up_proj")
        rewrite(
            mlp,
            "        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))\n",
            "        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)\n"
            "        down_proj = self.down_proj(self.act_fn(gate) * up)\n",
        )


def _joined(parent: Any, *names: str) -> nn.Linear:
    """Return one linear layer for all of these, which are taken away from the parent."""
    linears = [getattr(parent, name) for name in names]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    joined.weight = nn.Parameter(weight)
    for name in names:
        delattr(parent, name)
    return joined


@llama.correct()
def tree_wrapped(pair: Pair) -> None:
    """The candidate, each of its layers and each projection stand inside a wrapper: all paths are longer."""
    for layer in LAYERS:
        attention = pair.at(f"model.layers.{layer}.self_attn")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(attention, name, Wrapped(getattr(attention, name)))
    layers = pair.at("model").layers
    pair.at("model").layers = nn.ModuleList(Wrapped(layer) for layer in layers)
    pair.candidate = Wrapped(pair.candidate)


@llama.correct("clean", "drift")
def cast_to_bfloat16(pair: Pair) -> None:
    """The whole candidate is in bfloat16."""
    pair.candidate.to(torch.bfloat16)


@vit.correct("clean", "drift")
def cast_to_half(pair: Pair) -> None:
    """The whole candidate is in float16."""
    pair.candidate.half()


@llama.correct()
def cast_to_float64(pair: Pair) -> None:
    """The whole candidate is in float64: more exact than the reference."""
    pair.candidate.double()


@vit.correct("clean", "drift")
def weights_in_eight_bits(pair: Pair) -> None:
    """All linear weights are rounded to 8 bits per channel, the activations are not."""
    round_weights(pair.candidate, levels=127)


def round_weights(model: nn.Module, levels: int) -> None:
    """Round the weight of every linear layer to `levels` steps on either side of zero, per output channel."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                step = module.weight.abs().amax(1, keepdim=True) / levels
                module.weight.copy_(torch.round(module.weight / step) * step)
