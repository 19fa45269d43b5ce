"""Torch's own large layers (multi-head attention, transformer layers, embedding bags) and faults beside and inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.faults.case import Pair, Suite
from bench.faults.reasons import MISSING, ORDER, ROW_NEGATED, TRANSPOSED, WEIGHT, all_of
from bench.faults.rewrite import rewrite
from bench.faults.vision_models import trained

WIDTH = 16


class Fusion(nn.Module):
    """Sound attends to text, both are encoded: frames [N, 40, 4], tokens [N, T], bags [B], offsets [N]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, WIDTH, 5, stride=2, padding=2)
        self.pool = nn.MaxPool1d(2)
        self.embed = nn.Embedding(20, WIDTH, padding_idx=0)
        self.text = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, norm_first=True, activation="gelu"),
            num_layers=2,
            norm=nn.LayerNorm(WIDTH),
            enable_nested_tensor=False,
        )
        self.own = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.cross = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.genre = nn.EmbeddingBag(12, WIDTH, mode="mean")
        self.pair = nn.Bilinear(WIDTH, WIDTH, 6)

    def forward(self, frames: Tensor, tokens: Tensor, *, bags: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        sound = self.pool(F.relu(self.conv(frames.transpose(1, 2)))).transpose(1, 2)
        blank = tokens == 0
        text = self.text(self.embed(tokens), src_key_padding_mask=blank)
        sound = sound + self.own(sound, sound, sound, need_weights=False)[0]
        read, weights = self.cross(sound, text, text, key_padding_mask=blank)
        sound = self.norm(sound + read)
        return {"scores": self.pair(sound.mean(1), self.genre(bags, offsets)), "weights": weights}


fusion = trained(Fusion)


def song() -> dict[str, Any]:
    """Return frames, padded tokens, and a bag of genres for each of three songs."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (3, 8), generator=generator)
    tokens[1, 5:] = 0
    return {
        "frames": torch.randn(3, 40, 4, generator=generator),
        "tokens": tokens,
        "bags": torch.randint(0, 12, (7,), generator=generator),
        "offsets": torch.tensor([0, 2, 3]),
    }


suite = Suite("torch_layers", fusion, song)


@suite.fault("argument", at="", argument="key")
def attends_to_itself(pair: Pair) -> None:
    """The root lets the sound attend to itself where it should attend to the text: keys and values, no mask."""
    pair.rewrite("(sound, text, text, key_padding_mask=blank)", "(sound, sound[:, :8], sound[:, :8])")


@suite.fault("argument", at="", argument="value")
def values_one_place_late(pair: Pair) -> None:
    """The reference hands its attention values rolled by one place; the candidate hands on one tensor thrice."""
    rewrite(pair.reference, "self.own(sound, sound, sound,", "self.own(sound, sound, sound.roll(1, 1),")


@suite.fault("argument", at="", argument="src_key_padding_mask")
def padding_mask_inverted(pair: Pair) -> None:
    """The root hands its text encoder the mask of what to keep for the mask of what to hide."""
    pair.rewrite("src_key_padding_mask=blank", "src_key_padding_mask=~blank")


@suite.fault("argument", at="", argument="key_padding_mask", reason=MISSING)
def padding_seen_by_the_sound(pair: Pair) -> None:
    """The root hands its cross-attention no mask: only the padded row differs."""
    pair.rewrite("text, text, key_padding_mask=blank", "text, text")


@suite.fault("parameter", at="own", reason=all_of(r"\bin_proj_(weight|bias)\b", ORDER))
def fused_projection_in_another_order(pair: Pair) -> None:
    """The fused projection of an attention holds keys, queries, values."""
    attention = pair.faulty
    for tensor in (attention.in_proj_weight, attention.in_proj_bias):
        q, k, v = tensor.detach().clone().chunk(3)
        tensor.copy_(torch.cat([k, q, v]))


@suite.fault("parameter", at=["cross", "cross.out_proj"], reason=all_of(WEIGHT, TRANSPOSED))
def output_projection_of_attention(pair: Pair) -> None:
    """The output projection of an attention is transposed.

    Torch reads that module's weight without calling it, so that the attention may be named for it.
    """
    pair.at("cross").out_proj.weight.copy_(pair.at("cross").out_proj.weight.t().clone())


@suite.fault("leaf", at="own", reason=r"\bnum_heads\b|\bhead_dim\b|\bheads\b")
def heads_of_another_size(pair: Pair) -> None:
    """An attention has two heads and not four, with weights of the same sizes."""
    pair.faulty.num_heads, pair.faulty.head_dim = 2, WIDTH // 2


@suite.fault("parameter", at=["text.layers.1.linear1", "text.layers.1"], reason=ROW_NEGATED)
def weight_of_a_transformer_layer(pair: Pair) -> None:
    """A row of the feed-forward's first weight has the opposite sign (torch's fast path calls no module inside)."""
    pair.at("text.layers.1.linear1").weight[3].neg_()


@suite.fault("leaf", at=["text.layers.0"], reason=r"norm_first")
def norm_after_attention(pair: Pair) -> None:
    """One layer of the encoder norms after attention: an attribute of the layer."""
    pair.at("text.layers.0").norm_first = False


@suite.fault("leaf", at="genre", reason=r"\bmode\b|\bsum\b")
def bag_summed(pair: Pair) -> None:
    """The bag of genres is the sum and not the mean: only songs of several genres differ."""
    pair.faulty.mode = "sum"


@suite.fault("argument", at="", argument="offsets")
def offsets_one_late(pair: Pair) -> None:
    """The root hands its bags offsets of which the second is one late."""
    pair.rewrite("self.genre(bags, offsets)", "self.genre(bags, offsets + torch.tensor([0, 1, 1]))")


@suite.fault("argument", at="", kind=["miscalls", "introduces"])
def bilinear_arguments_exchanged(pair: Pair) -> None:
    """The root hands its bilinear layer the genre first and the sound second: two equal shapes, exchanged."""
    pair.rewrite("(sound.mean(1), self.genre(bags, offsets))", "(self.genre(bags, offsets), sound.mean(1))")


@suite.several("text.norm", "conv", "pair")
def norm_convolution_and_bilinear(pair: Pair) -> None:
    """The encoder's last norm has eps 1, the convolution reflects at its border, the bilinear layer lost its bias."""
    pair.at("text.norm").eps = 1.0
    pair.candidate.conv = nn.Conv1d(4, WIDTH, 5, stride=2, padding=2, padding_mode="reflect")
    pair.candidate.conv.load_state_dict(pair.reference.conv.state_dict())
    pair.at("pair").bias.zero_()


class _Written(nn.Module):
    """Multi-head attention in plain modules: three projections, softmax, one more projection."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        linears = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
        self.projections = nn.ModuleList(linears)
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            pieces = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
            for linear, (weight, bias) in zip(linears, pieces, strict=True):
                linear.weight.copy_(weight)
                linear.bias.copy_(bias)
        self.out_proj.load_state_dict(attention.out_proj.state_dict())

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Any = None, need_weights: bool = True
    ) -> tuple[Tensor, Tensor]:
        heads = [
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, x in zip(self.projections, (query, key, value), strict=True)
        ]
        logits = heads[0] @ heads[1].transpose(2, 3) * heads[0].shape[-1] ** -0.5
        if key_padding_mask is not None:
            logits = logits.masked_fill(key_padding_mask[:, None, None], -torch.inf)
        weights = logits.softmax(-1)
        return self.out_proj((weights @ heads[2]).transpose(1, 2).flatten(2)), weights.mean(1)


@suite.correct()
def attention_written_out(pair: Pair) -> None:
    """The candidate's attentions are written in plain modules."""
    pair.candidate.own = _Written(pair.candidate.own)
    pair.candidate.cross = _Written(pair.candidate.cross)


@suite.fault("container", at="cross")
def written_out_wrongly(pair: Pair) -> None:
    """The candidate's attentions are written in plain modules, and one scales by the width and not by the head."""
    attention_written_out(pair)
    pair.rewrite("heads[0].shape[-1] ** -0.5", "WIDTH ** -0.5")


@suite.correct()
def float_masks(pair: Pair) -> None:
    """The candidate's root hands on float masks (0 and minus infinity) for bool ones."""
    pair.rewrite("blank = tokens == 0", "blank = torch.zeros(tokens.shape).masked_fill(tokens == 0, -torch.inf)", at="")


@suite.correct()
def bag_by_matrix(pair: Pair) -> None:
    """The convolution of the candidate runs over unfolded frames as one matrix product."""
    pair.candidate.conv = _Unfolded(pair.candidate.conv)


class _Unfolded(nn.Module):
    """A convolution over time as a matrix product of unfolded frames."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, input: Tensor) -> Tensor:
        windows = F.pad(input, (2, 2)).unfold(2, 5, 2)
        out: Tensor = torch.einsum("nctk,ock->not", windows, self.weight) + self.bias[:, None]
        return out
