"""Hand-written models: lists and dicts of modules, a module called several times, odd outputs and signatures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.faults.case import Pair, Suite
from bench.faults.reasons import EXCHANGED, MISSING, NON_FINITE, ORDER, WEIGHT, ZERO, all_of
from bench.faults.rewrite import rewrite
from bench.faults.vision_models import trained

WIDTH, HEADS = 24, 3


@dataclass
class Features:
    """What the encoder returns: a state per token, a summary, and the attention of each round."""

    states: Tensor
    summary: Tensor
    attention: list[Tensor]


class Attention(nn.Module):
    """Fused projection, distances added to the logits, a gate per head: keyword-only mask and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.slope = nn.Parameter(torch.tensor([0.5, 0.1, 0.02]))
        self.gate = nn.Linear(WIDTH, HEADS)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, *, mask: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2) * (scale / math.sqrt(q.shape[-1]))
        place = torch.arange(t)
        logits = logits - self.slope[:, None, None] * (place[:, None] - place).abs()
        logits = logits.masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = logits.softmax(-1)
        heads = weights @ v * torch.sigmoid(self.gate(x)).transpose(1, 2)[..., None]
        return self.out(heads.transpose(1, 2).reshape(n, t, -1)), weights


class Block(nn.Module):
    """Attention and one of several feed-forwards by name, each with a norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.paths = nn.ModuleDict(
            {
                "text": nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)),
                "image": nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, WIDTH)),
            }
        )

    def forward(self, x: Tensor, *, mask: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        mixed, weights = self.attention(x, mask=mask)
        x = self.norms[0](x + mixed)
        x = self.norms[1](x + self.paths[kind](x))
        return x, weights


class Encoder(nn.Module):
    """One block called for three rounds with a learned step vector, as a universal transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.steps = nn.Parameter(torch.randn(3, WIDTH))

    def forward(self, x: Tensor, *, mask: Tensor, kind: str = "text") -> Features:
        attention = []
        for step in self.steps:
            x, weights = self.block(x + step, mask=mask, kind=kind)
            attention.append(weights)
        summary = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return Features(x, summary, attention)


class TwoTowers(nn.Module):
    """Encodes text and patches with one shared encoder and compares the two: scores, both features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, WIDTH)
        self.patch = nn.Linear(10, WIDTH)
        self.encoder = Encoder()
        self.heads = nn.ModuleDict({"text": nn.Linear(WIDTH, 8), "image": nn.Linear(WIDTH, 8)})
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        text = self.encoder(self.embed(batch["tokens"]), mask=batch["mask"])
        everything = torch.ones(batch["patches"].shape[:2], dtype=torch.bool)
        image = self.encoder(self.patch(batch["patches"]), mask=everything, kind="image")
        first = F.normalize(self.heads["text"](text.summary), dim=-1)
        second = F.normalize(self.heads["image"](image.summary), dim=-1)
        return {"scores": self.temperature.exp() * first @ second.t(), "features": [text, image]}


two_towers = trained(TwoTowers)


def batch() -> tuple[dict[str, Tensor]]:
    """Return tokens with a mask over padding, and patches, as one dictionary."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    return (
        {
            "tokens": torch.randint(0, 30, (3, 7), generator=generator),
            "mask": mask,
            "patches": torch.randn(3, 5, 10, generator=generator),
        },
    )


suite = Suite("assembled", two_towers, batch)


@suite.fault("argument", at="", argument="mask")
def mask_lost_for_text(pair: Pair) -> None:
    """The root hands the encoder a mask of ones for text: a keyword-only argument of its first call alone."""
    pair.rewrite('mask=batch["mask"]', 'mask=torch.ones_like(batch["mask"])')


@suite.fault(
    "argument",
    at="",
    kind=["miscalls", "structure", "introduces"],
    argument="kind",
    reason=rf"{MISSING}|\bkind\b.*\b(text|image)\b",
)
def images_through_the_text_path(pair: Pair) -> None:
    """The root does not say that its second call is an image: a plain string among the arguments."""
    pair.rewrite(', kind="image")', ")")


@suite.fault("parameter", at="encoder", kind=["introduces", "miscalls"], reason=all_of(r"\bsteps\b", ORDER))
def steps_one_off(pair: Pair) -> None:
    """The learned steps are in another order: a parameter of the encoder itself, added between its calls."""
    pair.faulty.steps.copy_(pair.faulty.steps.roll(1, 0))


@suite.fault("container", at="encoder")
def mean_over_padding(pair: Pair) -> None:
    """The encoder's summary is the mean over all tokens, padding included."""
    pair.rewrite("(x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)", "x.mean(1)")


@suite.fault("container", at="encoder.block.attention")
def slope_signed(pair: Pair) -> None:
    """Attention takes the signed distance, for which keys behind a query gain."""
    pair.rewrite("(place[:, None] - place).abs()", "(place[:, None] - place)")


@suite.fault("parameter", at="encoder.block.attention", kind=["introduces", "miscalls"], reason=r"\bslope\b")
def slope_of_one_head(pair: Pair) -> None:
    """The last head's slope is that of the first: a parameter of attention itself."""
    pair.faulty.slope[2] = pair.faulty.slope[0]


@suite.fault("container", at="encoder.block.attention")
def gates_over_tokens(pair: Pair) -> None:
    """The gate per head is normalised over heads (softmax) and not per head (sigmoid)."""
    pair.rewrite("torch.sigmoid(self.gate(x))", "torch.softmax(self.gate(x), -1)")


@suite.fault("container", at="encoder.block")
def residual_of_the_feed_forward_missing(pair: Pair) -> None:
    """The block norms what its feed-forward returns without adding its input."""
    pair.rewrite("x + self.paths[kind](x)", "self.paths[kind](x)")


@suite.fault("parameter", at=["encoder.block.norms.0", "encoder.block.norms.1"], reason=all_of(WEIGHT, EXCHANGED))
def norms_exchanged(pair: Pair) -> None:
    """The two norms of the block stand in each other's place: either may be named."""
    norms = pair.at("encoder.block.norms")
    norms[0], norms[1] = norms[1], norms[0]


@suite.fault("leaf", at="encoder.block.paths.image.1", reason=r"\bgelu\b")
def gelu_in_the_image_path(pair: Pair) -> None:
    """The image path has the text path's activation."""
    pair.candidate.encoder.block.paths["image"][1] = nn.GELU()


@suite.fault("parameter", at="", reason=all_of(r"\btemperature\b", rf"{ZERO}|\b0(\.0+)?\b"))
def temperature_of_the_root(pair: Pair) -> None:
    """The temperature, a parameter of the root, was never loaded: it is 0, and exp(0) is 1."""
    pair.candidate.temperature.zero_()


@suite.fault("container", at="", kind=["miscalls", "introduces", "structure"])
def heads_exchanged(pair: Pair) -> None:
    """The root projects text by the image's head and image by the text's."""
    pair.rewrite('self.heads["text"](text.summary)', 'self.heads["image"](text.summary)')


@suite.fault("container", at="encoder")
def steps_accumulated(pair: Pair) -> None:
    """The encoder adds the sum of all steps so far and not the step, from its second round on."""
    pair.rewrite("for step in self.steps:", "for step in self.steps.cumsum(0):")


@suite.fault("container", at="")
def scores_transposed(pair: Pair) -> None:
    """The root returns scores of images against texts: a square matrix, transposed."""
    pair.rewrite("first @ second.t()", "second @ first.t()")


@suite.fault("container", at="")
def features_of_the_image_twice(pair: Pair) -> None:
    """The root returns the text's features twice: the scores are right, an output in a list is not."""
    pair.rewrite('"features": [text, image]', '"features": [image, image]')


@suite.fault("container", at="encoder.block.attention", kind="non_finite", reason=NON_FINITE)
def masked_rows_are_nan(pair: Pair) -> None:
    """Attention takes the root of its weights less 0.001, which is below zero for some: NaN."""
    pair.rewrite("weights = logits.softmax(-1)", "weights = (logits.softmax(-1) - 1e-3).sqrt()")


@suite.several("", "encoder.block.attention.gate", "encoder.block.paths.image.0", "heads.text")
def root_gate_path_and_head(pair: Pair) -> None:
    """Temperature at 1, a gate's bias, a weight of the image path, a head's bias: four places, some shared."""
    pair.candidate.temperature.zero_()
    pair.at("encoder.block.attention.gate").bias.add_(1)
    pair.at("encoder.block.paths.image.0").weight[3].neg_()
    pair.at("heads.text").bias.zero_()


@suite.several("encoder.block", "encoder.block.paths.text.0")
def code_and_a_leaf_inside(pair: Pair) -> None:
    """The block's code does not add one residual, and a weight of a layer inside of it has a row of opposite sign."""
    pair.rewrite("x + self.paths[kind](x)", "self.paths[kind](x)", at="encoder.block")
    pair.at("encoder.block.paths.text.0").weight[3].neg_()


@suite.correct()
def slope_folded(pair: Pair) -> None:
    """The logits' scale is in the queries' rows of the fused projection."""
    attention = pair.at("encoder.block.attention")
    attention.qkv.weight[:WIDTH].mul_(8**-0.5)
    attention.qkv.bias[:WIDTH].mul_(8**-0.5)
    rewrite(attention, "(scale / math.sqrt(q.shape[-1]))", "scale")


@suite.correct()
def in_place(pair: Pair) -> None:
    """Residuals, gates and step vectors are added in place where the tensor is the candidate's own."""
    pair.rewrite("x + self.paths[kind](x)", "self.paths[kind](x).add_(x)", at="encoder.block")
    pair.rewrite("weights @ v * torch", "(weights @ v).contiguous() * torch", at="encoder.block.attention")


@suite.correct()
def paths_flattened(pair: Pair) -> None:
    """The feed-forwards of the candidate stand in sequences within sequences."""
    paths = pair.at("encoder.block.paths")
    for name in ("text", "image"):
        old = paths[name]
        paths[name] = nn.Sequential(nn.Sequential(old[0], old[1]), old[2])


@suite.correct()
def weight_norm_removed(pair: Pair) -> None:
    """The reference's projections are under weight norm; the candidate has the weights computed."""
    for path in ("patch", "encoder.block.attention.qkv", "heads.text"):
        nn.utils.parametrizations.weight_norm(pair.reference.get_submodule(path))


@suite.correct("clean", "inconclusive")
def images_first(pair: Pair) -> None:
    """The candidate's root encodes the image before the text: the shared encoder's calls are in the other order.

    Calls of one module pair in order, so hardly anything inside can be compared: too little is an answer as well.
    """
    pair.candidate.__class__ = _ImagesFirst


class _ImagesFirst(TwoTowers):
    """The same model, image first."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        everything = torch.ones(batch["patches"].shape[:2], dtype=torch.bool)
        image = self.encoder(self.patch(batch["patches"]), mask=everything, kind="image")
        text = self.encoder(self.embed(batch["tokens"]), mask=batch["mask"])
        first = F.normalize(self.heads["text"](text.summary), dim=-1)
        second = F.normalize(self.heads["image"](image.summary), dim=-1)
        return {"scores": self.temperature.exp() * first @ second.t(), "features": [text, image]}
