"""Whisper: a convolutional front end, an encoder of sound, a decoder of text, and a head tied to its embedding."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults.case import Pair, Suite
from bench.faults.more_text_models import speech, whisper
from bench.faults.opt import HalfLinear
from bench.faults.rewrite import rewrite

suite = Suite("whisper", whisper, speech)


@suite.fault("parameter", at="model.encoder.embed_positions")
def cosines_before_sines(pair: Pair) -> None:
    """The halves of the encoder's sinusoidal positions changed places."""
    with torch.no_grad():
        weight = pair.at("model.encoder.embed_positions").weight
        weight.copy_(weight.roll(32, dims=1))


@suite.fault("container", at="model.encoder", kind=["miscalls", "introduces"])
def gelu_by_tanh_after_the_first_convolution(pair: Pair) -> None:
    """The encoder's own code runs the tanh approximation between its two convolutions."""
    rewrite(
        pair.at("model.encoder"),
        "nn.functional.gelu(self.conv1(input_features))",
        'nn.functional.gelu(self.conv1(input_features), approximate="tanh")',
    )


@suite.fault("leaf", at="model.encoder.conv1")
def border_wraps_around(pair: Pair) -> None:
    """The first convolution pads with the other end of the sound: only the border differs."""
    conv = pair.at("model.encoder.conv1")
    circular = nn.Conv1d(8, 64, kernel_size=3, padding=1, padding_mode="circular")
    circular.load_state_dict(conv.state_dict())
    pair.at("model.encoder").conv1 = circular.eval()


@suite.fault("container", at="model.encoder", kind=["structure", "miscalls", "introduces"])
def encoder_without_its_last_norm(pair: Pair) -> None:
    """The encoder does not norm what it returns."""
    rewrite(pair.at("model.encoder"), "        hidden_states = self.layer_norm(hidden_states)\n", "")


@suite.fault("container", at="model.encoder", kind=["structure", "miscalls", "introduces"])
def first_layer_twice(pair: Pair) -> None:
    """The encoder runs its first layer twice and its second not at all."""
    rewrite(pair.at("model.encoder"), "enumerate(self.layers)", "enumerate([self.layers[0], self.layers[0]])")


@suite.fault("argument", at="model.decoder", kind="miscalls", argument="position_ids")
def decoder_positions_one_off(pair: Pair) -> None:
    """The decoder counts its positions from 1."""
    rewrite(pair.at("model.decoder"), "+ past_key_values_length\n", "+ past_key_values_length + 1\n")


@suite.fault("container", at="model.decoder.layers.0", kind=["structure", "miscalls"])
def norm_of_self_attention_for_cross_attention(pair: Pair) -> None:
    """One layer norms for its cross-attention with the norm of its self-attention."""
    rewrite(
        pair.at("model.decoder.layers.0"),
        "self.encoder_attn_layer_norm(hidden_states)",
        "self.self_attn_layer_norm(hidden_states)",
    )


@suite.fault("argument", at="model.decoder.layers.1", kind="miscalls", argument="key_value_states")
def cross_attention_of_the_first_row(pair: Pair) -> None:
    """One layer attends to the sound of batch row 0 for both rows."""
    rewrite(
        pair.at("model.decoder.layers.1"),
        "key_value_states=encoder_hidden_states",
        "key_value_states=encoder_hidden_states[:1].expand_as(encoder_hidden_states)",
    )


@suite.fault("argument", at="model.decoder", kind="miscalls", argument="attention_mask")
def decoder_not_causal(pair: Pair) -> None:
    """The decoder hands its layers None for the causal mask, by position."""
    rewrite(pair.at("model.decoder"), "                causal_mask,\n", "                None,\n")


@suite.fault("argument", at="model", kind="miscalls", argument="encoder_hidden_states")
def every_other_frame_twice(pair: Pair) -> None:
    """The model hands its decoder every other state of the encoder, twice."""
    rewrite(
        pair.at("model"),
        "encoder_hidden_states=encoder_outputs[0]",
        "encoder_hidden_states=encoder_outputs[0][:, ::2].repeat_interleave(2, dim=1)",
    )


@suite.correct()
def frames_in_another_order(pair: Pair) -> None:
    """The model hands its decoder the encoder's states from last to first: attention does not see their order."""
    rewrite(
        pair.at("model"),
        "encoder_hidden_states=encoder_outputs[0]",
        "encoder_hidden_states=encoder_outputs[0].flip(1)",
    )


@suite.fault("dtype", at="model.encoder.layers.1.fc2", kind="non_finite")
def half_overflows(pair: Pair) -> None:
    """One linear layer computes in half precision and leaves its range."""
    with torch.no_grad():
        for side in (pair.reference, pair.candidate):
            side.get_submodule("model.encoder.layers.1.fc2").weight.mul_(3e5)
    pair.at("model.encoder.layers.1.fc2").__class__ = HalfLinear


@suite.fault("tie", at="proj_out")
def head_untied_and_stale(pair: Pair) -> None:
    """The head has a weight of its own, an older version of the embedding."""
    head = pair.at("proj_out")
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3))
    head.weight = nn.Parameter(head.weight.detach() + 0.05 * noise)


@suite.fault("parameter", at=["model.decoder.embed_tokens", "proj_out"])
def tied_row_flipped(pair: Pair) -> None:
    """A row of the weight that embedding and head share has the opposite sign: one tensor, in both of them."""
    with torch.no_grad():
        pair.at("model.decoder.embed_tokens").weight[speech()["decoder_input_ids"][0, 0]].neg_()


@suite.several("model.encoder.layers.0.self_attn", "model.decoder.layers.0.encoder_attn", "model.decoder.layers.1.fc1")
def scale_keys_and_bias(pair: Pair) -> None:
    """An attention of the encoder does not scale, a cross-attention keeps its heads transposed, a bias is lost."""
    pair.at("model.encoder.layers.0.self_attn").scaling = 1.0
    rewrite(
        pair.at("model.decoder.layers.0.encoder_attn"),
        "attn_output.reshape(*input_shape, -1)",
        "attn_output.transpose(-1, -2).reshape(*input_shape, -1)",
    )
    with torch.no_grad():
        pair.at("model.decoder.layers.1.fc1").bias.zero_()


@suite.correct()
def head_copied(pair: Pair) -> None:
    """The head has a copy of the embedding's weight and is tied no more."""
    head = pair.at("proj_out")
    head.weight = nn.Parameter(head.weight.detach().clone())


@suite.correct()
def convolution_as_a_matrix(pair: Pair) -> None:
    """The first convolution is a matrix product over unfolded windows, in a module of another class."""
    pair.at("model.encoder").conv1 = Unfolded(pair.at("model.encoder.conv1"))


@suite.correct()
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
