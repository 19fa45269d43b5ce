"""Pairs without a culprit: correct ones whose insides differ, a little wrong everywhere, too different to compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.convnet import ConvNet, convnet, pixels
from bench.faults.rewrite import rewrite

llama = Suite("llama", models.llama, models.uncached)
mixtral = Suite("mixtral", models.mixtral, models.uncached)
bert = Suite("bert", models.bert, models.padded)
t5 = Suite("t5", models.t5, models.translation)
vit = Suite("vit", models.vit, models.image)
LAYERS = range(2)


@llama.correct()
def identical(pair: Pair) -> None:
    """The same model twice."""


@llama.correct()
def scale_folded_into_keys(pair: Pair) -> None:
    """1 / sqrt(head size) is in the key weights and no longer in attention's code."""
    for layer in LAYERS:
        attention = pair.at(f"model.layers.{layer}.self_attn")
        attention.k_proj.weight.mul_(attention.scaling)
        attention.scaling = 1.0


@llama.correct()
def norms_smoothed(pair: Pair) -> None:
    """As SmoothQuant does: norm weights are divided by factors per channel, the linear layers after them multiplied."""
    generator = torch.Generator().manual_seed(5)
    for layer in LAYERS:
        block = pair.at(f"model.layers.{layer}")
        attention, mlp = block.self_attn, block.mlp
        for norm, linears in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            factors = torch.rand(norm.weight.shape, generator=generator) * 4 + 0.25
            norm.weight.div_(factors)
            for linear in linears:
                linear.weight.mul_(factors)


def _orthogonal(size: int, seed: int = 0) -> torch.Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation: torch.Tensor = torch.linalg.qr(matrix)[0]
    return rotation


def _per_head(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Return a block-diagonal matrix with `matrix` for each head."""
    return torch.kron(torch.eye(heads, dtype=matrix.dtype), matrix.contiguous())


def _multiply(linear: Any, left: torch.Tensor | None = None, right: torch.Tensor | None = None) -> None:
    """Replace the weight W by left W right, computed in float64."""
    with torch.no_grad():
        weight = linear.weight.double()
        weight = weight if left is None else left @ weight
        weight = weight if right is None else weight @ right
        linear.weight.copy_(weight)


@llama.correct()
def residual_stream_rotated(pair: Pair) -> None:
    """As SpinQuant and QuaRot do: norm weights go into the next layers, then the residual stream is rotated."""
    rotation = _orthogonal(64)
    model = pair.at("model")
    _multiply(model.embed_tokens, right=rotation)
    for block in model.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm, linears in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for linear in linears:
                _multiply(linear, right=norm.weight.double().diag() @ rotation)
            nn.init.ones_(norm.weight)
        for linear in (attention.o_proj, mlp.down_proj):
            _multiply(linear, left=rotation.t())
    _multiply(pair.candidate.lm_head, right=model.norm.weight.double().diag() @ rotation)
    nn.init.ones_(model.norm.weight)


@llama.correct()
def values_rotated_per_head(pair: Pair) -> None:
    """Each head's values are rotated, and the output projection rotates them back."""
    rotation = _orthogonal(16, seed=1)
    for layer in LAYERS:
        attention = pair.at(f"model.layers.{layer}.self_attn")
        _multiply(attention.v_proj, left=_per_head(rotation, 2))
        _multiply(attention.o_proj, right=_per_head(rotation.t(), 4))


@llama.correct()
def hidden_channels_permuted(pair: Pair) -> None:
    """The hidden channels of each MLP are in another order, in all three of its weights."""
    order = torch.randperm(96, generator=torch.Generator().manual_seed(2))
    for layer in LAYERS:
        mlp = pair.at(f"model.layers.{layer}.mlp")
        mlp.gate_proj.weight.copy_(mlp.gate_proj.weight[order])
        mlp.up_proj.weight.copy_(mlp.up_proj.weight[order])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])


@llama.correct()
def positions_shifted(pair: Pair) -> None:
    """All positions count from 1: rotary attention sees differences of positions alone."""
    pair.rewrite("hidden_states, position_ids=position_ids", "hidden_states, position_ids=position_ids + 1", at="model")


@llama.correct(inputs=models.padded_uncached)
def other_mask_fill(pair: Pair) -> None:
    """What is masked gets -10000 and not the smallest float."""
    pair.rewrite("attention_mask=causal_mask", "attention_mask=causal_mask.clamp(min=-1e4)", at="model")


@llama.correct(inputs=models.padded_uncached)
def fused_attention(pair: Pair) -> None:
    """The candidate uses torch's scaled_dot_product_attention, with a boolean mask or none."""
    pair.candidate.set_attn_implementation("sdpa")


@mixtral.correct()
def experts_permuted(pair: Pair) -> None:
    """The experts are in another order, in the router as well: logits and indices differ, the sum does not."""
    order = [2, 0, 3, 1]
    for layer in LAYERS:
        block = pair.at(f"model.layers.{layer}.mlp")
        for weight in (block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj):
            weight.copy_(weight[order])


@bert.correct()
def feed_forward_in_chunks(pair: Pair) -> None:
    """The feed-forward runs three times on 8 tokens each, and not once on 24."""
    for layer in LAYERS:
        pair.at(f"bert.encoder.layer.{layer}").chunk_size_feed_forward = 8


@t5.correct()
def gate_rescaled(pair: Pair) -> None:
    """The linear half of each gated feed-forward is scaled per channel, and its output projection undoes it."""
    factors = torch.rand(96, generator=torch.Generator().manual_seed(4)) * 4 + 0.25
    for module in pair.candidate.modules():
        if type(module).__name__ == "T5DenseGatedActDense":
            module.wi_1.weight.mul_(factors[:, None])
            module.wo.weight.div_(factors)


@vit.correct()
def key_bias_dropped(pair: Pair) -> None:
    """The keys' biases are gone: they add the same to all logits of a query, which softmax does not see."""
    for layer in LAYERS:
        pair.at(f"vit.layers.{layer}.attention.k_proj").bias.zero_()


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
    pair.replace(nn.ModuleList(Wrapped(layer) for layer in layers), at="model.layers")
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


deep = Suite("llama", models.llama_deep, models.uncached)
conv = Suite("conv", convnet, pixels)


class _Function(nn.Module):
    """A network as an export leaves it: one module that computes everything, under no path of the original."""

    def __init__(self, model: ConvNet) -> None:
        super().__init__()
        self._compute = [model]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self._compute[0].forward(x)
        return outputs


@deep.drift()
def variance_in_bfloat16(pair: Pair) -> None:
    """Every RMSNorm computes its variance in bfloat16: each is a little off, the error grows with depth."""
    for module in pair.candidate.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            rewrite(
                module,
                "hidden_states.pow(2).mean(-1, keepdim=True)",
                "hidden_states.bfloat16().pow(2).mean(-1, keepdim=True).float()",
            )


@t5.drift()
def weights_in_four_bits(pair: Pair) -> None:
    """Every linear weight is rounded to 4 bits: large errors that no layer has more of than its peers."""
    round_weights(pair.candidate, levels=7)


@bert.drift()
def linear_layers_in_bfloat16(pair: Pair) -> None:
    """Every linear layer computes in bfloat16, as under autocast; the rest is float32."""
    for module in pair.candidate.modules():
        if isinstance(module, nn.Linear):
            rewrite(
                module,
                "F.linear(input, self.weight, self.bias)",
                "F.linear(input.bfloat16(), self.weight.bfloat16(), self.bias.bfloat16()).float()",
            )


@conv.inconclusive()
def exported_to_one_module(pair: Pair) -> None:
    """The candidate has no modules inside, so nothing but its outputs can be compared."""
    pair.candidate = _Function(pair.candidate).eval()


@bert.inconclusive()
def another_architecture(pair: Pair) -> None:
    """The candidate is another network altogether, which takes the same inputs."""
    pair.candidate = models.llama()
