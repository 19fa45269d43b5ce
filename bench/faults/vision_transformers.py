"""Vision transformers: ViT, Swin, Segformer and CLIP's vision tower."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from bench.faults import models, vision_models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import EPS, EXACT_GELU, HALVED, MISSING, ORDER, PART, STATISTICS, TRANSPOSED, WEIGHT, all_of
from bench.faults.rewrite import rewrite
from bench.faults.vision_models import images

vit = Suite("vit", models.vit, models.image)


def larger_image() -> dict[str, Any]:
    """Return an image of 48 x 48 pixels, for which positions are interpolated."""
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels, "interpolate_pos_encoding": True}


@vit.fault("parameter", at="vit.embeddings", reason=all_of(r"\bposition_embeddings\b", ORDER))
def positions_one_off(pair: Pair) -> None:
    """The learned positions are one patch off; the parameter belongs to the embeddings themselves."""
    positions = pair.faulty.position_embeddings
    positions.copy_(positions.roll(1, dims=1))


@vit.fault("parameter", at="vit.embeddings.patch_embeddings.projection", reason=all_of(WEIGHT, ORDER))
def red_and_blue_exchanged(pair: Pair) -> None:
    """The kernel of the patch projection reads BGR for RGB."""
    weight = pair.faulty.weight
    weight.copy_(weight.flip(1))


@vit.fault("container", at="vit.embeddings.patch_embeddings", kind="introduces")
def patches_by_column(pair: Pair) -> None:
    """Patches are laid out column by column: the code after the projection."""
    pair.rewrite("self.projection(pixel_values).flatten(2)", "self.projection(pixel_values).transpose(2, 3).flatten(2)")


@vit.fault("container", at="vit.embeddings")
def class_token_at_the_end(pair: Pair) -> None:
    """The class token is appended after the patches."""
    pair.rewrite("torch.cat((cls_tokens, embeddings), dim=1)", "torch.cat((embeddings, cls_tokens), dim=1)")


@vit.fault("container", at="vit.embeddings", inputs=larger_image)
def positions_bilinear(pair: Pair) -> None:
    """Positions are interpolated bilinearly and not bicubically, by a method of the embeddings."""
    pair.rewrite('mode="bicubic"', 'mode="bilinear"', within="interpolate_pos_encoding")


@vit.fault("argument", at="", argument="input")
def mean_for_class_token(pair: Pair) -> None:
    """The root hands its classifier the mean over tokens, not the class token."""
    pair.rewrite("sequence_output[:, 0, :]", "sequence_output.mean(dim=1)")


@vit.fault("leaf", at="vit.layers.1.layernorm_after", reason=EPS)
def layer_norm_eps(pair: Pair) -> None:
    """One LayerNorm has eps 1e-4 and not 1e-12: on its large input some parts in 100 000."""
    pair.faulty.eps = 1e-4


@vit.fault("leaf", at="vit.layers.0.mlp.activation_fn", reason=r"quick_?gelu")
def quick_gelu(pair: Pair) -> None:
    """The activation is x sigmoid(1.702 x), as in CLIP."""
    from transformers.activations import ACT2FN

    pair.replace(ACT2FN["quick_gelu"])


@vit.fault("container", at="vit.layers.1")
def second_residual_from_the_first(pair: Pair) -> None:
    """The layer adds the residual of attention again after the MLP."""
    pair.rewrite(
        "        residual = hidden_states\n        hidden_states = self.layernorm_after",
        "        hidden_states = self.layernorm_after",
    )


swin = Suite("swin", vision_models.swin, models.image)
LAYER = "swin.encoder.layers.0.blocks.1"


@swin.fault("leaf", at=LAYER, kind=["miscalls", "introduces"], reason=r"\bshift_size\b")
def window_not_shifted(pair: Pair) -> None:
    """A layer that should shift its windows does not: an attribute of the layer."""
    pair.faulty.shift_size = 0


@swin.fault("container", at=LAYER)
def shifted_the_other_way(pair: Pair) -> None:
    """A layer shifts its windows the other way, there and back; the mask stays."""
    pair.rewrite("direction = 1 if reverse else -1", "direction = -1 if reverse else 1", within="cyclic_shift")


@swin.fault("argument", at=LAYER, argument="attention_mask", reason=MISSING)
def windows_see_across_the_border(pair: Pair) -> None:
    """A shifted layer hands its attention no mask."""
    pair.rewrite("self.attention(hidden_states_windows, attn_mask,", "self.attention(hidden_states_windows, None,")


@swin.fault("argument", at=LAYER, argument="attention_mask")
def mask_of_rows_alone(pair: Pair) -> None:
    """The mask of a shifted layer tells regions apart by row alone."""
    pair.rewrite("3 + w_region[None, None, :, None]", "3 + 0 * w_region[None, None, :, None]", within="get_attn_mask")


@swin.fault("container", at=LAYER)
def never_shifted_back(pair: Pair) -> None:
    """A layer shifts windows and does not shift them back after attention."""
    pair.rewrite("reverse=True\n        )", "reverse=True\n        ).roll((-2, -2), (1, 2))")


@swin.fault(
    "buffer",
    at=f"{LAYER}.attention.relative_position_bias",
    reason=all_of(r"\brelative_position_index\b", f"{TRANSPOSED}|{ORDER}"),
)
def relative_index_transposed(pair: Pair) -> None:
    """The index into one table of relative biases is transposed: keys for queries."""
    bias = pair.faulty
    bias.relative_position_index = bias.relative_position_index.view(16, 16).t().reshape(-1).clone()


@swin.fault(
    "parameter",
    at="swin.encoder.layers.1.blocks.0.attention.relative_position_bias",
    reason=all_of(r"\brelative_position_bias_table\b", f"{TRANSPOSED}|{ORDER}"),
)
def relative_table_of_rows_and_columns(pair: Pair) -> None:
    """A table of relative biases is stored column by column."""
    table = pair.faulty.relative_position_bias_table
    table.copy_(table.view(7, 7, -1).transpose(0, 1).reshape(49, -1))


@swin.fault("argument", at="swin.encoder.layers.0.downsample", kind=["miscalls", "introduces"], argument="input")
def patches_merged_in_another_order(pair: Pair) -> None:
    """The four neighbours that are merged stand in row order and not in column order."""
    pair.rewrite("for col in range(2) for row in range(2)", "for row in range(2) for col in range(2)")


@swin.fault("container", at="swin.encoder.layers.1.blocks.1.attention")
def bias_of_one_head_missing(pair: Pair) -> None:
    """One attention drops the relative bias of its last head, between the bias's module and the softmax."""
    pair.rewrite(
        "            combined_mask = relative_position_bias\n",
        "            combined_mask = relative_position_bias.clone()\n            combined_mask[:, -1] = 0\n",
    )


@swin.fault("argument", at="swin", kind=["miscalls", "introduces", "structure"])
def pooled_before_the_norm(pair: Pair) -> None:
    """The model pools what the encoder returned, not what its norm did; nothing else reads the norm."""
    pair.rewrite("(sequence_output.transpose(1, 2))", "(encoder_outputs.last_hidden_state.transpose(1, 2))")


@swin.fault("leaf", at="swin.encoder.layers.0.blocks.0.layernorm_before", reason=EPS)
def eps_of_the_default(pair: Pair) -> None:
    """One LayerNorm has eps 1e-3."""
    pair.faulty.eps = 1e-3


@swin.fault("parameter", at="swin.encoder.layers.1.blocks.0.attention.q_proj", reason=all_of(WEIGHT, ORDER))
def one_head_rotated(pair: Pair) -> None:
    """The query weights of one head hold their halves exchanged."""
    weight = pair.faulty.weight
    weight[16:32] = weight[16:32].roll(8, 0)


@swin.several("swin.embeddings", f"{LAYER}.mlp.fc1", "classifier")
def positions_weight_and_classifier(pair: Pair) -> None:
    """Positions transposed, a bias lost, and a classifier with two rows exchanged."""
    positions = pair.at("swin.embeddings").position_embeddings
    positions.copy_(positions.view(1, 8, 8, -1).transpose(1, 2).reshape(1, 64, -1))
    pair.at(f"{LAYER}.mlp.fc1").bias.zero_()
    weight = pair.at("classifier").weight
    weight[[0, 1]] = weight[[1, 0]]


@swin.correct()
def fused_attention(pair: Pair) -> None:
    """The candidate uses torch's scaled_dot_product_attention."""
    pair.candidate.set_attn_implementation("sdpa")


@swin.correct()
def roll_undone(pair: Pair) -> None:
    """Shift and mask are those of a shift by two, written as a concatenation."""
    layer = pair.at(LAYER)
    assert layer.shift_size == 2
    rewrite(
        layer,
        "            hidden_states = torch.roll(\n                hidden_states,\n"
        "                shifts=(direction * self.shift_size, direction * self.shift_size),\n"
        "                dims=(1, 2),\n            )\n",
        "            step = -direction * self.shift_size\n"
        "            hidden_states = torch.cat([hidden_states[:, step:], hidden_states[:, :step]], dim=1)\n"
        "            hidden_states = torch.cat([hidden_states[:, :, step:], hidden_states[:, :, :step]], dim=2)\n",
        within="cyclic_shift",
    )


@swin.correct()
def keys_scaled(pair: Pair) -> None:
    """In all attentions the scale is folded into the queries, and biases into the table as they were."""
    for module in pair.candidate.modules():
        if type(module).__name__ == "SwinAttention":
            module.q_proj.weight.mul_(module.scaling)
            module.q_proj.bias.mul_(module.scaling)
            module.scaling = 1.0


@swin.correct()
def norm_weights_folded(pair: Pair) -> None:
    """The weights of each norm before an MLP are in the MLP's first layer."""
    for module in pair.candidate.modules():
        if type(module).__name__ == "SwinLayer":
            norm, linear = module.layernorm_after, copy.deepcopy(module.mlp.fc1)
            linear.bias.add_(linear.weight @ norm.bias)
            linear.weight.mul_(norm.weight)
            norm.weight.fill_(1)
            norm.bias.zero_()
            module.mlp.fc1 = linear


segmentation = Suite("segformer", vision_models.segformer, lambda: {"pixel_values": images(64)})
clip = Suite("clip_vision", vision_models.clip_vision, models.image)


def _larger() -> dict[str, Any]:
    return {"pixel_values": images(48), "interpolate_pos_encoding": True}


@segmentation.fault("container", at="decode_head")
def upsampled_with_corners_aligned(pair: Pair) -> None:
    """The decoder upsamples its features with corners aligned: functional code between modules."""
    pair.rewrite("align_corners=False", "align_corners=True")


@segmentation.fault("container", at="decode_head")
def stages_concatenated_in_order(pair: Pair) -> None:
    """The decoder concatenates its features first stage first."""
    pair.rewrite("all_hidden_states[::-1]", "all_hidden_states")


@segmentation.fault("container", at="segformer.stages.0.blocks.0.mlp.dwconv")
def height_for_width(pair: Pair) -> None:
    """The depthwise convolution of an MLP sees its tokens column by column."""
    pair.rewrite(
        "hidden_states.transpose(1, 2).view(batch_size, num_channels, height, width)",
        "hidden_states.transpose(1, 2).view(batch_size, num_channels, height, width).transpose(2, 3)",
    )


@segmentation.fault("container", at="segformer.stages.0.blocks.0.attention.sequence_reduction")
def reduced_without_norm(pair: Pair) -> None:
    """The reduction of keys and values returns what its norm was handed and not what it returned."""
    pair.rewrite("        hidden_states = self.layer_norm(hidden_states)", "        self.layer_norm(hidden_states)")


@segmentation.fault("argument", at="", kind=["miscalls", "introduces"])
def stages_reversed_for_the_head(pair: Pair) -> None:
    """The root hands its decoder the first stage with height and width exchanged."""
    pair.rewrite("(encoder_hidden_states)", "([encoder_hidden_states[0].transpose(2, 3), *encoder_hidden_states[1:]])")


@segmentation.fault("argument", at="segformer.stages.1.blocks.1", kind=["miscalls", "introduces"])
def attention_of_the_unnormed(pair: Pair) -> None:
    """One layer hands its attention the residual and not the normed states; its norm is still called."""
    pair.rewrite("self.attention(hidden_states, height", "self.attention(residual, height")


@segmentation.fault("buffer", at="decode_head.batch_norm", reason=STATISTICS)
def statistics_of_one_channel(pair: Pair) -> None:
    """One channel of the decoder's batch norm has variance 1 and mean 0."""
    norm = pair.faulty
    norm.running_mean[7], norm.running_var[7] = 0.0, 1.0


@segmentation.fault("container", at="segformer.stages.0")
def stage_reshaped_by_channels(pair: Pair) -> None:
    """A stage returns its map with channels and pixels mixed up by a reshape without permute."""
    pair.rewrite("(batch_size, height, width, -1).permute(0, 3, 1, 2).contiguous()", "(batch_size, -1, height, width)")


@segmentation.correct()
def linear_projections_as_convolutions(pair: Pair) -> None:
    """The 1x1 convolutions of the decoder's end are linear layers over the last axis, in modules of the same names."""
    head = pair.at("decode_head")
    head.classifier = _Pointwise(head.classifier)
    head.linear_fuse = _Pointwise(head.linear_fuse)


class _Pointwise(nn.Module):
    """A 1x1 convolution as a linear layer on [N, H, W, C]."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
        with torch.no_grad():
            self.linear.weight.copy_(conv.weight[:, :, 0, 0])
            if conv.bias is not None:
                self.linear.bias.copy_(conv.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.linear(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return output


@clip.fault("container", at="vision_model.embeddings")
def class_token_last(pair: Pair) -> None:
    """The class token is appended and not put first."""
    pair.rewrite("torch.cat([class_embeds, patch_embeds]", "torch.cat([patch_embeds, class_embeds]")


@clip.fault("parameter", at="vision_model.embeddings", reason=all_of(r"\bclass_embedding\b", HALVED))
def class_token_halved(pair: Pair) -> None:
    """The class token, a parameter of the embeddings themselves, is half as large."""
    pair.faulty.class_embedding.mul_(0.5)


@clip.fault("container", at="vision_model.embeddings", inputs=_larger)
def positions_interpolated_with_corners(pair: Pair) -> None:
    """Positions are interpolated with corners aligned: only seen on another size of image."""
    pair.rewrite("align_corners=False", "align_corners=True", within="interpolate_pos_encoding")


@clip.fault("leaf", at="vision_model.encoder.layers.0.mlp.activation_fn", reason=EXACT_GELU)
def gelu_for_quick_gelu(pair: Pair) -> None:
    """One activation is the exact GELU and not CLIP's quick one."""
    pair.replace(nn.GELU())


@clip.fault("argument", at="vision_model", kind=["miscalls", "introduces"])
def pooled_from_the_mean(pair: Pair) -> None:
    """The tower pools the mean over tokens and not the class token."""
    pair.rewrite("last_hidden_state[:, 0, :]", "last_hidden_state.mean(1)")


@clip.fault("argument", at="vision_model")
def pre_norm_returned_late(pair: Pair) -> None:
    """The tower hands its encoder the embeddings from before the first norm in the second image alone."""
    pair.rewrite(
        "        hidden_states = self.pre_layrnorm(hidden_states)\n",
        "        before = hidden_states\n        hidden_states = self.pre_layrnorm(hidden_states)\n"
        "        hidden_states = torch.cat([hidden_states[:1], before[1:]])\n",
    )


@clip.fault("container", at="vision_model.encoder.layers.1.self_attn")
def heads_not_merged_back(pair: Pair) -> None:
    """One attention interleaves its heads when it merges them."""
    pair.rewrite("attn_output.reshape(*input_shape, -1)", "attn_output.transpose(2, 3).reshape(*input_shape, -1)")


@clip.fault("parameter", at="visual_projection", reason=all_of(WEIGHT, rf"{TRANSPOSED}|{PART}"))
def projection_transposed_in_part(pair: Pair) -> None:
    """The first 24 columns of the projection are transposed."""
    weight = pair.faulty.weight
    weight[:, :24] = weight[:, :24].t().clone()


@clip.correct()
def projections_in_double(pair: Pair) -> None:
    """The projection computes in float64 and returns float32."""
    pair.candidate.visual_projection.double()
    pair.rewrite(
        "F.linear(input, self.weight, self.bias)",
        "F.linear(input.double(), self.weight, self.bias).float()",
        at="visual_projection",
    )
