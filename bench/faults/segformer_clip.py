"""Segformer (reduced keys, depthwise positions, an all-MLP decoder) and CLIP's vision tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.faults.case import Pair, Suite
from bench.faults.more_vision_models import clip_vision, images, segformer
from bench.faults.rewrite import rewrite

segmentation = Suite("segformer", segformer, lambda: {"pixel_values": images(64)})
clip = Suite("clip_vision", clip_vision, lambda: {"pixel_values": images()})


def _larger() -> dict[str, Any]:
    return {"pixel_values": images(48), "interpolate_pos_encoding": True}


@segmentation.fault("container", at="decode_head", kind=["miscalls", "introduces"])
def upsampled_with_corners_aligned(pair: Pair) -> None:
    """The decoder upsamples its features with corners aligned: functional code between modules."""
    rewrite(pair.at("decode_head"), "align_corners=False", "align_corners=True")


@segmentation.fault("container", at="decode_head", kind=["miscalls", "introduces"])
def stages_concatenated_in_order(pair: Pair) -> None:
    """The decoder concatenates its features first stage first."""
    rewrite(pair.at("decode_head"), "all_hidden_states[::-1]", "all_hidden_states")


@segmentation.fault("container", at="segformer.stages.0.blocks.0.mlp.dwconv", kind=["miscalls", "introduces"])
def height_for_width(pair: Pair) -> None:
    """The depthwise convolution of an MLP sees its tokens column by column."""
    rewrite(
        pair.at("segformer.stages.0.blocks.0.mlp.dwconv"),
        "hidden_states.transpose(1, 2).view(batch_size, num_channels, height, width)",
        "hidden_states.transpose(1, 2).view(batch_size, num_channels, height, width).transpose(2, 3)",
    )


@segmentation.fault(
    "container", at="segformer.stages.0.blocks.0.attention.sequence_reduction", kind=["miscalls", "introduces"]
)
def reduced_without_norm(pair: Pair) -> None:
    """The reduction of keys and values returns what its norm was handed and not what it returned."""
    rewrite(
        pair.at("segformer.stages.0.blocks.0.attention.sequence_reduction"),
        "        hidden_states = self.layer_norm(hidden_states)",
        "        self.layer_norm(hidden_states)",
    )


@segmentation.fault("argument", at="", kind=["miscalls", "introduces"])
def stages_reversed_for_the_head(pair: Pair) -> None:
    """The root hands its decoder the first stage with height and width exchanged."""
    rewrite(
        pair.candidate,
        "self.decode_head(encoder_hidden_states)",
        "self.decode_head([encoder_hidden_states[0].transpose(2, 3), *encoder_hidden_states[1:]])",
    )


@segmentation.fault("argument", at="segformer.stages.1.blocks.1", kind=["miscalls", "introduces"])
def attention_of_the_unnormed(pair: Pair) -> None:
    """One layer hands its attention the residual and not the normed states; its norm is still called."""
    rewrite(
        pair.at("segformer.stages.1.blocks.1"),
        "self.attention(hidden_states, height",
        "self.attention(residual, height",
    )


@segmentation.fault("buffer", at="decode_head.batch_norm")
def statistics_of_one_channel(pair: Pair) -> None:
    """One channel of the decoder's batch norm has variance 1 and mean 0."""
    norm = pair.at("decode_head.batch_norm")
    norm.running_mean[7], norm.running_var[7] = 0.0, 1.0


@segmentation.fault("container", at="segformer.stages.0", kind=["miscalls", "introduces"])
def stage_reshaped_by_channels(pair: Pair) -> None:
    """A stage returns its map with channels and pixels mixed up by a reshape without permute."""
    rewrite(
        pair.at("segformer.stages.0"),
        "hidden_states.reshape(batch_size, height, width, -1).permute(0, 3, 1, 2).contiguous()",
        "hidden_states.reshape(batch_size, -1, height, width)",
    )


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


@clip.fault("container", at="vision_model.embeddings", kind=["miscalls", "introduces"])
def class_token_last(pair: Pair) -> None:
    """The class token is appended and not put first."""
    rewrite(
        pair.at("vision_model.embeddings"),
        "torch.cat([class_embeds, patch_embeds]",
        "torch.cat([patch_embeds, class_embeds]",
    )


@clip.fault("parameter", at="vision_model.embeddings")
def class_token_halved(pair: Pair) -> None:
    """The class token, a parameter of the embeddings themselves, is half as large."""
    with torch.no_grad():
        pair.at("vision_model.embeddings").class_embedding.mul_(0.5)


@clip.fault("container", at="vision_model.embeddings", kind=["miscalls", "introduces"], inputs=_larger)
def positions_interpolated_with_corners(pair: Pair) -> None:
    """Positions are interpolated with corners aligned: only seen on another size of image."""
    rewrite(
        pair.at("vision_model.embeddings"),
        "align_corners=False",
        "align_corners=True",
        within="interpolate_pos_encoding",
    )


@clip.fault("leaf", at="vision_model.encoder.layers.0.mlp.activation_fn")
def gelu_for_quick_gelu(pair: Pair) -> None:
    """One activation is the exact GELU and not CLIP's quick one."""
    pair.at("vision_model.encoder.layers.0.mlp").activation_fn = nn.GELU()


@clip.fault("argument", at="vision_model", kind=["miscalls", "introduces"])
def pooled_from_the_mean(pair: Pair) -> None:
    """The tower pools the mean over tokens and not the class token."""
    rewrite(pair.at("vision_model"), "last_hidden_state[:, 0, :]", "last_hidden_state.mean(1)")


@clip.fault("argument", at="vision_model", kind="miscalls")
def pre_norm_returned_late(pair: Pair) -> None:
    """The tower hands its encoder the embeddings from before the first norm in the second image alone."""
    rewrite(
        pair.at("vision_model"),
        "        hidden_states = self.pre_layrnorm(hidden_states)\n",
        "        before = hidden_states\n        hidden_states = self.pre_layrnorm(hidden_states)\n"
        "        hidden_states = torch.cat([hidden_states[:1], before[1:]])\n",
    )


@clip.fault("container", at="vision_model.encoder.layers.1.self_attn", kind=["miscalls", "introduces"])
def heads_not_merged_back(pair: Pair) -> None:
    """One attention interleaves its heads when it merges them."""
    rewrite(
        pair.at("vision_model.encoder.layers.1.self_attn"),
        "attn_output.reshape(*input_shape, -1).contiguous()",
        "attn_output.transpose(2, 3).reshape(*input_shape, -1).contiguous()",
    )


@clip.fault("parameter", at="visual_projection")
def projection_transposed_in_part(pair: Pair) -> None:
    """The first 24 columns of the projection are transposed."""
    with torch.no_grad():
        weight = pair.at("visual_projection").weight
        weight[:, :24] = weight[:, :24].t().clone()


@clip.correct()
def projections_in_double(pair: Pair) -> None:
    """The projection computes in float64 and returns float32."""
    pair.candidate.visual_projection.double()
    rewrite(
        pair.at("visual_projection"),
        "F.linear(input, self.weight, self.bias)",
        "F.linear(input.double(), self.weight, self.bias).float()",
    )
