"""OPT: positions from the mask with an offset of 2, a narrower embedding, norms before their blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults.case import Pair, Suite
from bench.faults.more_text_models import left_padded, opt
from bench.faults.rewrite import rewrite

suite = Suite("opt", opt, left_padded)
# Candidates of other modules or another dtype, which single modules of the reference cannot be exchanged with.
rebuilt = Suite("rebuilt", opt, left_padded)
DECODER = "model.decoder"


@suite.fault("leaf", at="model.decoder.embed_positions")
def position_offset_one_short(pair: Pair) -> None:
    """The table of positions is read with an offset of 1 and not 2."""
    pair.at("model.decoder.embed_positions").offset = 1


@suite.fault("leaf", at="model.decoder.layers.1.activation_fn")
def gelu_for_relu(pair: Pair) -> None:
    """The activation is a GELU."""
    pair.at("model.decoder.layers.1").activation_fn = nn.GELU()


@suite.fault("container", at="model.decoder.layers.0", kind=["miscalls", "introduces", "structure"])
def norms_after_their_blocks(pair: Pair) -> None:
    """One layer norms after attention and after the MLP, as OPT-350m does: an attribute of the layer."""
    pair.at("model.decoder.layers.0").do_layer_norm_before = False


@suite.fault("parameter", at="model.decoder.project_in")
def row_of_the_projection_flipped(pair: Pair) -> None:
    """One row of the projection into the layers has the opposite sign."""
    with torch.no_grad():
        pair.at("model.decoder.project_in").weight[3].neg_()


@rebuilt.fault("container", at=DECODER, kind=["structure", "miscalls", "introduces"])
def last_norm_left_out(pair: Pair) -> None:
    """The decoder has no final norm, as old checkpoints of OPT-350m: the module is missing."""
    pair.at(DECODER).final_layer_norm = None


@suite.fault("argument", at=DECODER, kind="miscalls", argument="position_ids")
def padding_counted_in_positions(pair: Pair) -> None:
    """Positions count the padding on the left: only the padded row is wrong."""
    rewrite(
        pair.at(DECODER),
        "torch.cumsum(position_attention_mask, dim=1)\n"
        "            position_ids = (position_ids * position_attention_mask - 1).long()",
        "torch.cumsum(torch.ones_like(position_attention_mask), dim=1)\n            position_ids = position_ids - 1",
    )


@suite.fault("argument", at=DECODER, kind="miscalls", argument="attention_mask")
def mask_for_the_first_layer_alone(pair: Pair) -> None:
    """The decoder hands its second layer None for the mask."""
    rewrite(pair.at(DECODER), "attention_mask=causal_mask", "attention_mask=causal_mask if idx == 0 else None")


@suite.fault("argument", at="model.decoder.layers.1", kind="miscalls", argument="attention_mask")
def mask_of_row_zero_in_one_layer(pair: Pair) -> None:
    """One layer hands its attention the mask of batch row 0 for both rows."""
    rewrite(pair.at("model.decoder.layers.1"), "attention_mask=attention_mask", "attention_mask=attention_mask[:1]")


@suite.fault("argument", at="", kind="miscalls", argument="attention_mask")
def padding_lost_by_the_root(pair: Pair) -> None:
    """The root hands its decoder None for the padding mask: positions and mask are wrong in the padded row."""
    rewrite(pair.candidate, "attention_mask=attention_mask", "attention_mask=None")


@suite.fault("container", at="model.decoder.layers.0.self_attn", kind=["miscalls", "introduces"])
def queries_unscaled(pair: Pair) -> None:
    """One attention does not scale its queries."""
    pair.at("model.decoder.layers.0.self_attn").scaling = 1.0


@suite.fault("container", at="model.decoder.layers.1")
def mlp_without_residual(pair: Pair) -> None:
    """One layer returns its MLP's output alone: its own last sum."""
    rewrite(pair.at("model.decoder.layers.1"), "(residual + hidden_states).view", "hidden_states.view")


@suite.fault("parameter", at="model.decoder.layers.0.fc2")
def bias_twice(pair: Pair) -> None:
    """A bias is twice as large, as when each of two shards adds it."""
    with torch.no_grad():
        pair.at("model.decoder.layers.0.fc2").bias.mul_(2)


@suite.fault("parameter", at="model.decoder.layers.1.self_attn_layer_norm")
def norm_of_another_layer(pair: Pair) -> None:
    """One norm has the weights of the first layer's."""
    source = pair.at("model.decoder.layers.0.self_attn_layer_norm")
    pair.at("model.decoder.layers.1.self_attn_layer_norm").load_state_dict(source.state_dict())


@suite.fault("dtype", at="model.decoder.layers.0.fc2", kind="non_finite")
def half_overflows(pair: Pair) -> None:
    """One linear layer computes in half precision, and one of its rows is beyond 65504."""
    with torch.no_grad():
        for model in (pair.reference, pair.candidate):
            model.get_submodule("model.decoder.layers.0.fc2").weight[9].mul_(3e6)
    rewrite_linear_in_half(pair.at("model.decoder.layers.0.fc2"))


def rewrite_linear_in_half(linear: nn.Module) -> None:
    """Let one linear layer compute in float16 and return float32."""
    linear.__class__ = HalfLinear


class HalfLinear(nn.Linear):
    """Computes in float16."""

    def forward(self, input: Tensor) -> Tensor:
        bias = self.bias.half() if self.bias is not None else None
        return nn.functional.linear(input.half(), self.weight.half(), bias).float()


class Positional(nn.Module):
    """Wraps a decoder layer and passes what it is given on by position; `masked=False` forgets the mask."""

    def __init__(self, layer: nn.Module, masked: bool = True) -> None:
        super().__init__()
        self.inner = layer
        self.masked = masked

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        mask = kwargs["attention_mask"] if self.masked else None
        return self.inner(
            hidden_states, mask, kwargs.get("past_key_values"), kwargs.get("use_cache"), kwargs.get("position_ids")
        )


@suite.correct()
def layers_called_by_position(pair: Pair) -> None:
    """Every layer is inside a wrapper that passes keywords on by position."""
    layers = pair.at(DECODER).layers
    pair.at(DECODER).layers = nn.ModuleList(Positional(layer) for layer in layers)


@rebuilt.fault("argument", at="model.decoder.layers.1")
def wrapper_forgets_the_mask(pair: Pair) -> None:
    """The same, and one wrapper forgets the mask: the reference's layer that it stands for is the answer."""
    layers = pair.at(DECODER).layers
    pair.at(DECODER).layers = nn.ModuleList(Positional(layer, masked=i == 0) for i, layer in enumerate(layers))


@rebuilt.fault("parameter", at="model.decoder.layers.0.self_attn.out_proj")
def layers_called_by_position_one_row_zero(pair: Pair) -> None:
    """Every layer is inside such a wrapper, and one output projection has a row of zeros."""
    layers_called_by_position(pair)
    with torch.no_grad():
        pair.at("model.decoder.layers.0.inner.self_attn.out_proj").weight[20].zero_()


@suite.correct()
def scale_folded_into_queries(pair: Pair) -> None:
    """The queries' scale is in their projection, and attention does not scale."""
    with torch.no_grad():
        for layer in pair.at(DECODER).layers:
            layer.self_attn.q_proj.weight.mul_(layer.self_attn.scaling)
            layer.self_attn.q_proj.bias.mul_(layer.self_attn.scaling)
            layer.self_attn.scaling = 1.0


@suite.correct()
def value_bias_moved(pair: Pair) -> None:
    """The values' bias is in the output projection's: probabilities sum to one."""
    with torch.no_grad():
        for layer in pair.at(DECODER).layers:
            attention = layer.self_attn
            attention.out_proj.bias.add_(attention.out_proj.weight @ attention.v_proj.bias)
            attention.v_proj.bias.zero_()


@suite.correct()
def narrow_embedding_widened(pair: Pair) -> None:
    """The projection into the layers is folded into the embedding, and an identity stands in its place."""
    decoder = pair.at(DECODER)
    weight = decoder.embed_tokens.weight.detach().double() @ decoder.project_in.weight.detach().double().t()
    decoder.embed_tokens = nn.Embedding(len(weight), weight.shape[1], padding_idx=1)
    decoder.embed_tokens.weight = nn.Parameter(weight.float())
    decoder.project_in = nn.Identity()


@suite.several("", "model.decoder.layers.0.self_attn.k_proj")
def mask_lost_and_key_row_flipped(pair: Pair) -> None:
    """The root loses the padding mask, and a row of a key projection has the opposite sign."""
    padding_lost_by_the_root(pair)
    with torch.no_grad():
        pair.at("model.decoder.layers.0.self_attn.k_proj").weight[4].neg_()
