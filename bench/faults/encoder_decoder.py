"""Encoder-decoders: T5, BART, ELECTRA below GPT-2, and Whisper."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.decoders import HalfLinear
from bench.faults.reasons import (
    EXACT_GELU,
    MISSING,
    ONE_ROW_MASK,
    ORDER,
    ROW_NEGATED,
    ROW_ZERO,
    SCALING,
    TANH,
    WEIGHT,
    ZERO,
    all_of,
)

t5 = Suite("t5", models.t5, models.translation)


@t5.fault("leaf", at="encoder.block.0.layer.1.DenseReluDense.act", reason=EXACT_GELU)
def gelu_by_erf(pair: Pair) -> None:
    """The gate uses the exact GELU where the model was trained with the tanh approximation."""
    pair.replace(nn.GELU())


@t5.fault("container", at="encoder.block.1.layer.0.SelfAttention", reason=SCALING)
def logits_scaled(pair: Pair) -> None:
    """One attention divides its logits by the root of the head size, which T5 does not: an attribute of it."""
    pair.faulty.scaling = 0.25


@t5.fault("container", at="decoder.block.0.layer.0.SelfAttention", argument="input", reason=r"max_distance")
def buckets_of_another_width(pair: Pair) -> None:
    """Attention sorts distances into buckets up to 128 and not 16, then looks up its bias by them."""
    pair.faulty.relative_attention_max_distance = 128


@t5.fault("argument", at="encoder", argument="position_bias", reason=MISSING)
def position_bias_not_shared(pair: Pair) -> None:
    """The encoder hands its second block None for the bias that the first block computed."""
    pair.rewrite("            position_bias = self_attention_position_bias\n", "")


@t5.fault("argument", at="", argument="encoder_attention_mask", reason=MISSING)
def encoder_mask_lost(pair: Pair) -> None:
    """The root does not tell its decoder which tokens of the source are padding."""
    pair.rewrite("encoder_attention_mask=attention_mask", "encoder_attention_mask=None")


@t5.fault("argument", at="", argument="encoder_hidden_states")
def encoder_states_reversed(pair: Pair) -> None:
    """The root hands its decoder the encoder's states from last to first."""
    pair.rewrite("encoder_hidden_states=hidden_states", "encoder_hidden_states=hidden_states.flip(1)")


@t5.fault("argument", at="decoder.block.1.layer.1", argument="hidden_states")
def cross_attention_without_norm(pair: Pair) -> None:
    """The cross-attention's layer calls its norm, and hands attention the states from before it."""
    pair.rewrite("normed_hidden_states,\n            mask", "hidden_states,\n            mask")


@t5.fault("container", at="encoder.block.1.layer.1.DenseReluDense")
def gate_halves_swapped(pair: Pair) -> None:
    """The gated feed-forward activates the linear half."""
    block = "encoder.block.1.layer.1.DenseReluDense"
    pair.rewrite(
        "        hidden_gelu = self.act(self.wi_0(hidden_states))\n        hidden_linear = self.wi_1(hidden_states)\n",
        "        hidden_gelu = self.wi_0(hidden_states)\n        hidden_linear = self.act(self.wi_1(hidden_states))\n",
        at=block,
    )


@t5.fault("container", at="decoder.block.1.layer.2", kind="introduces")
def residual_of_the_normed(pair: Pair) -> None:
    """The feed-forward's layer adds its output to itself, not to the residual: its last line."""
    pair.rewrite("hidden_states + self.dropout(forwarded_states)", "forwarded_states + self.dropout(forwarded_states)")


@t5.fault("tie", at="decoder.embed_tokens")
def embedding_untied_and_stale(pair: Pair) -> None:
    """The decoder's embedding shares no weight with the encoder's any more, and holds an older version."""
    embedding = pair.faulty
    noise = torch.randn(embedding.weight.shape, generator=torch.Generator().manual_seed(3))
    embedding.weight = nn.Parameter(embedding.weight.detach() + 0.1 * noise)


@t5.fault(
    "parameter",
    at="decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    reason=all_of(WEIGHT, r"\bencoder\.block\.0\.layer\.0\.selfattention\.relative_attention_bias\b"),
)
def bias_table_of_the_encoder(pair: Pair) -> None:
    """The decoder's table of relative biases holds the encoder's."""
    source = pair.at("encoder.block.0.layer.0.SelfAttention.relative_attention_bias")
    pair.faulty.load_state_dict(source.state_dict())


bart = Suite("bart", models.bart, models.translation)


@bart.fault("leaf", at="model.encoder.embed_positions", reason=r"\boffset\b")
def position_offset_missing(pair: Pair) -> None:
    """The learned positions start at row 0 of their table and not at row 2: an attribute of that embedding."""
    pair.faulty.offset = 0


@bart.fault("leaf", at="model.decoder.layers.1.activation_fn", reason=TANH)
def gelu_by_tanh(pair: Pair) -> None:
    """The decoder's last GELU is the tanh approximation."""
    pair.replace(nn.GELU(approximate="tanh"))


@bart.fault("argument", at="model.decoder.layers.0", argument="attention_mask", reason=MISSING)
def cross_attention_without_mask(pair: Pair) -> None:
    """One decoder layer hands its cross-attention None for the mask over the source's padding."""
    pair.rewrite("attention_mask=encoder_attention_mask", "attention_mask=None")


@bart.fault("argument", at="model.decoder.layers.1", kind=["miscalls", "structure"], argument="key_value_states")
def cross_attention_to_itself(pair: Pair) -> None:
    """One decoder layer attends to its own states (repeated to the source's length), not to the encoder's."""
    pair.rewrite(
        "key_value_states=encoder_hidden_states",
        "key_value_states=hidden_states.repeat(1, 3, 1)[:, : encoder_hidden_states.shape[1]]",
    )


@bart.fault("container", at="model.encoder.layers.1", kind=["miscalls", "introduces", "structure"])
def norm_before_attention(pair: Pair) -> None:
    """One encoder layer norms before attention, as other models do."""
    pair.rewrite(
        "        hidden_states = residual + hidden_states\n"
        "        hidden_states = self.self_attn_layer_norm(hidden_states)\n",
        "        hidden_states = residual + self.self_attn_layer_norm(hidden_states)\n",
    )


@bart.fault("buffer", at="", reason=all_of(r"\bfinal_logits_bias\b", ZERO))
def final_bias_lost(pair: Pair) -> None:
    """The reference adds a bias to its logits from a buffer of the root, which the candidate never loaded."""
    pair.reference.final_logits_bias.normal_()


electra_to_gpt2 = Suite("electra_to_gpt2", models.electra_to_gpt2, models.translation)


@electra_to_gpt2.fault("argument", at="", argument="encoder_attention_mask", reason=MISSING)
def source_padding_forgotten(pair: Pair) -> None:
    """The root does not tell its decoder which tokens of the source are padding: None against a tensor."""
    pair.rewrite("encoder_attention_mask=attention_mask", "encoder_attention_mask=None", at="")


@electra_to_gpt2.fault("argument", at="decoder.transformer", argument="encoder_attention_mask", reason=ONE_ROW_MASK)
def source_padding_of_row_zero(pair: Pair) -> None:
    """The decoder's model hands its blocks the source's mask of row 0, which has no padding."""
    pair.rewrite("encoder_attention_mask=encoder_attention_mask", "encoder_attention_mask=encoder_attention_mask[:1]")


@electra_to_gpt2.fault("argument", at="decoder.transformer.h.1", argument="encoder_attention_mask", reason=MISSING)
def one_block_forgets_the_source_padding(pair: Pair) -> None:
    """One block hands its cross-attention None for the source's mask."""
    pair.rewrite("encoder_attention_mask=encoder_attention_mask", "encoder_attention_mask=None")


@electra_to_gpt2.fault("container", at="decoder.transformer.h.0.crossattention")
def keys_and_values_exchanged(pair: Pair) -> None:
    """One cross-attention splits its fused projection of the source as value, key."""
    pair.rewrite(
        "key_states, value_states = self.c_attn(encoder_hidden_states)",
        "value_states, key_states = self.c_attn(encoder_hidden_states)",
    )


@electra_to_gpt2.fault("parameter", at="encoder.embeddings_project", reason=ROW_ZERO)
def projection_of_the_embeddings_stale(pair: Pair) -> None:
    """A column of the projection from the narrow embedding is zero."""
    pair.faulty.weight[:, 3].zero_()


@electra_to_gpt2.fault("argument", at="encoder", argument="attention_mask", reason=MISSING)
def encoder_without_mask(pair: Pair) -> None:
    """The encoder's model hands its layers no mask."""
    pair.rewrite("attention_mask,\n            encoder_hidden", "None,\n            encoder_hidden")


@electra_to_gpt2.several("", "decoder.transformer.h.1.crossattention.q_attn")
def source_padding_and_query(pair: Pair) -> None:
    """The root forgets the source's padding, and a bias of a cross-attention's queries is zero."""
    source_padding_forgotten(pair)
    pair.at("decoder.transformer.h.1.crossattention.q_attn").bias.zero_()


@electra_to_gpt2.correct()
def keys_without_their_bias(pair: Pair) -> None:
    """No attention adds a bias to its keys, which softmax does not see."""
    for module in pair.at("decoder").modules():
        if type(module).__name__ == "GPT2Attention":
            keys = slice(0, 64) if module.is_cross_attention else slice(64, 128)
            module.c_attn.bias[keys] = 0.0


whisper = Suite("whisper", models.whisper, models.speech)


@whisper.fault("parameter", at="model.encoder.embed_positions", reason=all_of(WEIGHT, ORDER))
def cosines_before_sines(pair: Pair) -> None:
    """The halves of the encoder's sinusoidal positions changed places."""
    weight = pair.faulty.weight
    weight.copy_(weight.roll(32, dims=1))


@whisper.fault("container", at="model.encoder")
def gelu_by_tanh_after_the_first_convolution(pair: Pair) -> None:
    """The encoder's own code runs the tanh approximation between its two convolutions."""
    pair.rewrite("(self.conv1(input_features))", '(self.conv1(input_features), approximate="tanh")')


@whisper.fault("leaf", at="model.encoder.conv1", reason=r"circular|padding_mode")
def border_wraps_around(pair: Pair) -> None:
    """The first convolution pads with the other end of the sound: only the border differs."""
    conv = pair.faulty
    circular = nn.Conv1d(8, 64, kernel_size=3, padding=1, padding_mode="circular")
    circular.load_state_dict(conv.state_dict())
    pair.replace(circular.eval())


@whisper.fault("container", at="model.encoder", kind=["structure", "miscalls", "introduces"])
def encoder_without_its_last_norm(pair: Pair) -> None:
    """The encoder does not norm what it returns."""
    pair.rewrite("        hidden_states = self.layer_norm(hidden_states)\n", "")


@whisper.fault("container", at="model.encoder", kind=["structure", "miscalls", "introduces"])
def first_layer_twice(pair: Pair) -> None:
    """The encoder runs its first layer twice and its second not at all."""
    pair.rewrite("enumerate(self.layers)", "enumerate([self.layers[0], self.layers[0]])")


@whisper.fault("argument", at="model.decoder", argument="position_ids")
def decoder_positions_one_off(pair: Pair) -> None:
    """The decoder counts its positions from 1."""
    pair.rewrite("+ past_key_values_length\n", "+ past_key_values_length + 1\n")


@whisper.fault("container", at="model.decoder.layers.0", kind=["structure", "miscalls"])
def norm_of_self_attention_for_cross_attention(pair: Pair) -> None:
    """One layer norms for its cross-attention with the norm of its self-attention."""
    pair.rewrite("self.encoder_attn_layer_norm(hidden_states)", "self.self_attn_layer_norm(hidden_states)")


@whisper.fault("argument", at="model.decoder.layers.1", argument="key_value_states")
def cross_attention_of_the_first_row(pair: Pair) -> None:
    """One layer attends to the sound of batch row 0 for both rows."""
    pair.rewrite(
        "key_value_states=encoder_hidden_states",
        "key_value_states=encoder_hidden_states[:1].expand_as(encoder_hidden_states)",
    )


@whisper.fault("argument", at="model.decoder", argument="attention_mask", reason=MISSING)
def decoder_not_causal(pair: Pair) -> None:
    """The decoder hands its layers None for the causal mask, by position."""
    pair.rewrite("                causal_mask,\n", "                None,\n")


@whisper.fault("argument", at="model", argument="encoder_hidden_states")
def every_other_frame_twice(pair: Pair) -> None:
    """The model hands its decoder every other state of the encoder, twice."""
    pair.rewrite(
        "encoder_hidden_states=encoder_outputs[0]",
        "encoder_hidden_states=encoder_outputs[0][:, ::2].repeat_interleave(2, dim=1)",
    )


@whisper.correct()
def frames_in_another_order(pair: Pair) -> None:
    """The model hands its decoder the encoder's states from last to first: attention does not see their order."""
    pair.rewrite(
        "encoder_hidden_states=encoder_outputs[0]", "encoder_hidden_states=encoder_outputs[0].flip(1)", at="model"
    )


@whisper.fault("dtype", at="model.encoder.layers.1.fc2")
def half_overflows(pair: Pair) -> None:
    """One linear layer computes in half precision and leaves its range."""
    for linear in pair.both():
        linear.weight.mul_(3e5)
    pair.faulty.__class__ = HalfLinear


@whisper.fault("tie", at="proj_out")
def head_untied_and_stale(pair: Pair) -> None:
    """The head has a weight of its own, an older version of the embedding."""
    head = pair.faulty
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3))
    head.weight = nn.Parameter(head.weight.detach() + 0.05 * noise)


@whisper.fault("parameter", at=["model.decoder.embed_tokens", "proj_out"], reason=ROW_NEGATED)
def tied_row_flipped(pair: Pair) -> None:
    """A row of the weight that embedding and head share has the opposite sign: one tensor, in both of them."""
    pair.at("model.decoder.embed_tokens").weight[models.speech()["decoder_input_ids"][0, 0]].neg_()


@whisper.several(
    "model.encoder.layers.0.self_attn", "model.decoder.layers.0.encoder_attn", "model.decoder.layers.1.fc1"
)
def scale_keys_and_bias(pair: Pair) -> None:
    """An attention of the encoder does not scale, a cross-attention keeps its heads transposed, a bias is lost."""
    pair.at("model.encoder.layers.0.self_attn").scaling = 1.0
    pair.rewrite(
        "attn_output.reshape(*input_shape, -1)",
        "attn_output.transpose(-1, -2).reshape(*input_shape, -1)",
        at="model.decoder.layers.0.encoder_attn",
    )
    pair.at("model.decoder.layers.1.fc1").bias.zero_()


@whisper.correct()
def head_copied(pair: Pair) -> None:
    """The head has a copy of the embedding's weight and is tied no more."""
    head = pair.at("proj_out")
    head.weight = nn.Parameter(head.weight.detach().clone())


@whisper.correct()
def convolution_as_a_matrix(pair: Pair) -> None:
    """The first convolution is a matrix product over unfolded windows, in a module of another class."""
    pair.at("model.encoder").conv1 = Unfolded(pair.at("model.encoder.conv1"))


@whisper.correct()
def attention_in_torchs_kernel(pair: Pair) -> None:
    """The candidate uses scaled_dot_product_attention in encoder and decoder."""
    pair.candidate.set_attn_implementation("sdpa")


class Unfolded(nn.Module):
    """A convolution of width 3 as one matrix product."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.weight = nn.Parameter(conv.weight.detach().flatten(1))
        self.bias = nn.Parameter(conv.bias.detach().clone())
        # The encoder asks its convolutions for their stride.
        self.stride = conv.stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = nn.functional.pad(x, (1, 1)).unfold(2, 3, 1)
        product: torch.Tensor = self.weight @ windows.permute(0, 1, 3, 2).flatten(1, 2) + self.bias[:, None]
        return product
