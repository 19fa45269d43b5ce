"""ViT: patches, a class token, learned positions that may be interpolated."""

from __future__ import annotations

from typing import Any

import torch

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

suite = Suite("vit", models.vit, models.image)


def larger_image() -> dict[str, Any]:
    """Return an image of 48 x 48 pixels, for which positions are interpolated."""
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels, "interpolate_pos_encoding": True}


@suite.fault("parameter", at="vit.embeddings")
def positions_one_off(pair: Pair) -> None:
    """The learned positions are one patch off; the parameter belongs to the embeddings themselves."""
    with torch.no_grad():
        positions = pair.at("vit.embeddings").position_embeddings
        positions.copy_(positions.roll(1, dims=1))


@suite.fault("parameter", at="vit.embeddings.patch_embeddings.projection")
def red_and_blue_exchanged(pair: Pair) -> None:
    """The kernel of the patch projection reads BGR for RGB."""
    with torch.no_grad():
        weight = pair.at("vit.embeddings.patch_embeddings.projection").weight
        weight.copy_(weight.flip(1))


@suite.fault("container", at="vit.embeddings.patch_embeddings")
def patches_by_column(pair: Pair) -> None:
    """Patches are laid out column by column: the code after the projection."""
    rewrite(
        pair.at("vit.embeddings.patch_embeddings"),
        "self.projection(pixel_values).flatten(2)",
        "self.projection(pixel_values).transpose(2, 3).flatten(2)",
    )


@suite.fault("container", at="vit.embeddings", kind=["miscalls", "introduces"])
def class_token_at_the_end(pair: Pair) -> None:
    """The class token is appended after the patches."""
    rewrite(
        pair.at("vit.embeddings"),
        "torch.cat((cls_tokens, embeddings), dim=1)",
        "torch.cat((embeddings, cls_tokens), dim=1)",
    )


@suite.fault("container", at="vit.embeddings", kind=["miscalls", "introduces"], inputs=larger_image)
def positions_bilinear(pair: Pair) -> None:
    """Positions are interpolated bilinearly and not bicubically, by a method of the embeddings."""
    rewrite(pair.at("vit.embeddings"), 'mode="bicubic"', 'mode="bilinear"', within="interpolate_pos_encoding")


@suite.fault("argument", at="", kind="miscalls", argument="input")
def mean_for_class_token(pair: Pair) -> None:
    """The root hands its classifier the mean over tokens, not the class token."""
    rewrite(pair.candidate, "sequence_output[:, 0, :]", "sequence_output.mean(dim=1)")


@suite.fault("leaf", at="vit.layers.1.layernorm_after")
def layer_norm_eps(pair: Pair) -> None:
    """One LayerNorm has eps 1e-4 and not 1e-12: on its large input some parts in 100 000."""
    pair.at("vit.layers.1.layernorm_after").eps = 1e-4


@suite.fault("leaf", at="vit.layers.0.mlp.activation_fn")
def quick_gelu(pair: Pair) -> None:
    """The activation is x sigmoid(1.702 x), as in CLIP."""
    from transformers.activations import ACT2FN

    pair.at("vit.layers.0.mlp").activation_fn = ACT2FN["quick_gelu"]


@suite.fault("container", at="vit.layers.1", kind=["miscalls", "introduces"])
def second_residual_from_the_first(pair: Pair) -> None:
    """The layer adds the residual of attention again after the MLP."""
    rewrite(
        pair.at("vit.layers.1"),
        "        residual = hidden_states\n        hidden_states = self.layernorm_after",
        "        hidden_states = self.layernorm_after",
    )
