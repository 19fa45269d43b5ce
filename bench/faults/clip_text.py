"""CLIP's text model: a causal encoder whose summary is the state at the end of the text."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import MISSING, ROW_ZERO, TRANSPOSED, WEIGHT, all_of, times

suite = Suite("clip_text", models.clip_text, models.clip_tokens)
# Candidates of other modules or another dtype, which single modules of the reference cannot be exchanged with.
rebuilt = Suite("rebuilt", models.clip_text, models.clip_tokens)
LAYERS = [f"text_model.encoder.layers.{layer}" for layer in range(2)]


@suite.several(*(f"{layer}.mlp.activation_fn" for layer in LAYERS))
def gelu_for_quick_gelu(pair: Pair) -> None:
    """Both MLPs run the exact GELU."""
    for layer in LAYERS:
        pair.replace(nn.GELU(), at=f"{layer}.mlp.activation_fn")


@suite.fault("argument", at="text_model", argument="attention_mask", reason=MISSING)
def not_causal(pair: Pair) -> None:
    """The model hands its encoder no mask: every token sees all others, also the padding."""
    pair.rewrite("attention_mask=attention_mask,\n            is_causal", "attention_mask=None,\n            is_causal")


@suite.fault("argument", at="text_model.encoder", argument="attention_mask", reason=MISSING)
def encoder_keeps_the_mask_to_itself(pair: Pair) -> None:
    """The encoder hands its layers None for the mask."""
    pair.rewrite("                attention_mask,\n", "                None,\n", at="text_model.encoder")


@suite.fault("container", at="text_model", kind="introduces")
def summary_of_the_last_token(pair: Pair) -> None:
    """The summary is the last token's state, also where the text ends before: its own last lines."""
    pair.rewrite(
        "(input_ids.to(dtype=torch.int, device=last_hidden_state.device) == self.eos_token_id)\n"
        "                .int()\n"
        "                .argmax(dim=-1),",
        "-1,",
    )


@suite.fault("container", at="text_model")
def summary_before_the_last_norm(pair: Pair) -> None:
    """The model returns the states from before its last norm beside a right summary."""
    pair.rewrite("last_hidden_state=last_hidden_state", "last_hidden_state=encoder_outputs.last_hidden_state")


@suite.fault("argument", at="text_model.embeddings", argument="input")
def positions_reversed(pair: Pair) -> None:
    """The embeddings look up their positions from last to first."""
    pair.rewrite("self.position_embedding(position_ids)", "self.position_embedding(position_ids.flip(1))")


@suite.fault("container", at=LAYERS[0], kind=["structure", "miscalls"])
def norms_swapped(pair: Pair) -> None:
    """One layer's second norm is called first, and its first second."""
    span = inspect.getsource(type(pair.faulty).forward)
    span = span[span.index("        hidden_states = self.layer_norm1") : span.index("        hidden_states = self.mlp")]
    swapped = span.replace("layer_norm1", "layer_norm_").replace("layer_norm2", "layer_norm1")
    pair.rewrite(span, swapped.replace("layer_norm_", "layer_norm2"))


@suite.several(f"{LAYERS[0]}.layer_norm1", f"{LAYERS[0]}.layer_norm2")
def weights_of_two_norms_exchanged(pair: Pair) -> None:
    """The weights of one layer's two norms changed places."""
    layer = pair.at(LAYERS[0])
    first, second = (norm.state_dict() for norm in (layer.layer_norm1, layer.layer_norm2))
    saved = {name: tensor.clone() for name, tensor in first.items()}
    layer.layer_norm1.load_state_dict(second)
    layer.layer_norm2.load_state_dict(saved)


@suite.fault("parameter", at="text_projection", reason=all_of(WEIGHT, TRANSPOSED))
def projection_transposed(pair: Pair) -> None:
    """The square text projection is transposed: only the summary is wrong."""
    weight = pair.at("text_projection").weight
    weight.copy_(weight.t().clone())


@suite.fault("container", at=f"{LAYERS[1]}.self_attn")
def scaled_twice(pair: Pair) -> None:
    """One attention scales its logits twice."""
    pair.rewrite("scaling=self.scale", "scaling=self.scale * self.scale")


@suite.fault("container", at=f"{LAYERS[0]}.self_attn")
def keys_and_values_exchanged(pair: Pair) -> None:
    """One attention weighs its keys by how queries meet its values."""
    pair.rewrite("keys,\n            values", "values,\n            keys")


@suite.fault("container", at=f"{LAYERS[1]}.self_attn")
def softmax_before_the_mask(pair: Pair) -> None:
    """One attention adds its mask to the probabilities, clamped at zero: rows do not sum to one."""
    pair.rewrite(
        "    if attention_mask is not None:\n        attn_weights = attn_weights + attention_mask\n"
        "    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)\n",
        "    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)\n"
        "    attn_weights = (attn_weights + attention_mask).clamp(min=0)\n",
        within="eager_attention_forward",
    )


@suite.fault("parameter", at="text_model.embeddings.token_embedding", reason=ROW_ZERO)
def one_token_never_loaded(pair: Pair) -> None:
    """The embedding of the token that ends a text is zero."""
    pair.faulty.weight[-1].zero_()


@suite.several("text_model.encoder", f"{LAYERS[1]}.mlp.fc2", "text_projection")
def mask_bias_and_projection(pair: Pair) -> None:
    """The encoder loses the mask, one bias is zero, and the projection is transposed."""
    encoder_keeps_the_mask_to_itself(pair)
    projection_transposed(pair)
    pair.at(f"{LAYERS[1]}.mlp.fc2").bias.zero_()


@suite.correct()
def residual_in_place(pair: Pair) -> None:
    """Residuals are added in place, into what attention and MLP returned."""
    for layer in LAYERS:
        pair.rewrite(
            "        hidden_states = residual + hidden_states\n\n        return hidden_states",
            "        hidden_states += residual\n\n        return hidden_states",
            at=layer,
        )


@suite.correct()
def identities_added(pair: Pair) -> None:
    """Identities stand after every MLP and before every norm."""
    for layer in LAYERS:
        block = pair.at(layer)
        block.mlp = nn.Sequential(block.mlp, nn.Identity())
        block.layer_norm2 = nn.Sequential(nn.Identity(), block.layer_norm2)


@rebuilt.fault("parameter", at=f"{LAYERS[1]}.layer_norm2", reason=all_of(WEIGHT, times("1.5")))
def identities_added_one_norm_scaled(pair: Pair) -> None:
    """The same, and half of one norm's weight is 1.5 times too large."""
    identities_added(pair)
    pair.at(f"{LAYERS[1]}.layer_norm2.1").weight[:32].mul_(1.5)


@suite.correct()
def channels_of_the_mlp_permuted(pair: Pair) -> None:
    """The hidden channels of each MLP are in another order."""
    order = torch.randperm(96, generator=torch.Generator().manual_seed(2))
    for layer in LAYERS:
        mlp = pair.at(f"{layer}.mlp")
        for tensor in (mlp.fc1.weight, mlp.fc1.bias):
            tensor.copy_(tensor[order])
        mlp.fc2.weight.copy_(mlp.fc2.weight[:, order])


@suite.correct()
def attention_in_torchs_kernel(pair: Pair) -> None:
    """The candidate uses scaled_dot_product_attention."""
    pair.candidate.set_attn_implementation("sdpa")
