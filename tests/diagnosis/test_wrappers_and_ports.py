"""Hand-written wrappers and ports: other names, arguments and outputs, and what a graft proves there."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qtrace
from qtrace.engine.pair import PairComparer, channels_of
from qtrace.engine.samples import Sample, hidden_positions
from qtrace.report.records import Finding, Outcome

WIDTH, HEADS = 16, 4


class Attention(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.scale = scale

    def mix(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (one(x).view(batch, tokens, HEADS, -1).transpose(1, 2) for one in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) * self.scale * 4).softmax(-1)
        out: Tensor = self.o((weights @ v).transpose(1, 2).reshape(batch, tokens, WIDTH))
        return out

    def forward(self, hidden_states: Tensor, position_embeddings: Any = None) -> Tensor:
        return self.mix(hidden_states)


class Renamed(Attention):
    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        return self.mix(hidden)


class Model(nn.Module):
    """Embedding, attention with a residual, head; `by_keyword` calls the attention as a port does."""

    def __init__(self, attention: nn.Module, *, by_keyword: bool = False) -> None:
        super().__init__()
        self.embed, self.norm, self.attn, self.head = (
            nn.Embedding(20, WIDTH),
            nn.LayerNorm(WIDTH),
            attention,
            nn.Linear(WIDTH, 20),
        )
        self.by_keyword = by_keyword
        self.eval()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        normed = self.norm(x)
        extra = (normed.sin(), normed.cos())
        mixed = self.attn(hidden=normed) if self.by_keyword else self.attn(normed, position_embeddings=extra)
        out: Tensor = self.head(x + mixed)
        return out


def pair(scale: float) -> tuple[Model, Model]:
    torch.manual_seed(0)
    reference = Model(Attention(0.5))
    candidate = Model(Renamed(scale), by_keyword=True)
    candidate.load_state_dict(reference.state_dict())
    return reference, candidate


IDS = torch.arange(12).reshape(2, 6)


def test_a_renamed_keyword_and_an_argument_of_one_side_hide_nothing() -> None:
    reference, candidate = pair(0.5)
    assert qtrace.trace(reference, candidate, IDS).outcome is Outcome.CLEAN
    reference, candidate = pair(0.2)
    (finding,) = qtrace.trace(reference, candidate, IDS).findings
    assert (finding.module, finding.strength) == ("attn", "confirmed")
    assert "scale 0.5 against 0.2" in " ".join(finding.evidence)


@pytest.mark.parametrize("leaf", ["q", "v", "o"])
def test_a_child_that_heals_as_much_as_its_container_is_named(leaf: str) -> None:
    reference, candidate = pair(0.5)
    with torch.no_grad():
        weight = candidate.attn.get_submodule(leaf)._parameters["weight"]
        assert weight is not None
        weight[:3] *= 0.3
    found = qtrace.trace(reference, candidate, IDS).findings
    assert [finding.module for finding in found] == [f"attn.{leaf}"]


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, ids: Tensor) -> Any:
        return self.model(ids)["logits"]


class Full(Model):
    def forward(self, ids: Tensor) -> Any:
        return {"logits": super().forward(ids), "hidden_states": (self.embed(ids),), "loss": torch.zeros(())}


def test_a_wrapper_that_returns_the_logits_alone_is_clean() -> None:
    torch.manual_seed(0)
    reference = Full(Attention(0.5))
    report = qtrace.trace(reference, Wrapper(copy.deepcopy(reference)), IDS)
    assert (report.outcome, report.findings) == (Outcome.CLEAN, ())
    assert any("does not return hidden_states, loss" in warning for warning in report.warnings)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(20, 8), nn.GRU(8, 12, batch_first=True), nn.Linear(12, 5)
        self.eval()

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.out(self.rnn(self.embed(ids))[0])
        return out


class Stepwise(nn.Module):
    def __init__(self, other: Recurrent, update: float) -> None:
        super().__init__()
        self.table, self.cell, self.proj = nn.Embedding(20, 8), nn.GRUCell(8, 12), nn.Linear(12, 5)
        self.table.load_state_dict(other.embed.state_dict())
        self.proj.load_state_dict(other.out.state_dict())
        self.cell.load_state_dict({name.removesuffix("_l0"): value for name, value in other.rnn.state_dict().items()})
        self.update = update
        self.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        state, states = x.new_zeros(len(x), 12), []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state) * self.update
            states.append(state)
        out: Tensor = self.proj(torch.stack(states, 1))
        return out


def test_a_recurrent_layer_written_as_a_loop_is_named_and_not_the_root() -> None:
    torch.manual_seed(0)
    reference = Recurrent()
    assert qtrace.trace(reference, Stepwise(reference, 1.0), IDS).outcome is Outcome.CLEAN
    (finding,) = qtrace.trace(reference, Stepwise(reference, 0.9), IDS).findings
    assert finding.module == "rnn"
    assert "the candidate calls cell in its place" in finding.summary


class Fused(nn.Module):
    """q, k and v in one linear layer, cut into thirds or head by head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.dense, self.num_heads = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), HEADS

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        cut = self.qkv(x).view(batch, tokens, HEADS, 3, -1).permute(3, 0, 2, 1, 4)
        q, k, v = cut
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        out: Tensor = self.dense(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return out


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, y: Tensor) -> Tensor:
        batch, tokens, _ = y.shape
        q, k, v = (one(y).view(batch, tokens, HEADS, -1).transpose(1, 2) for one in (self.wq, self.wk, self.wv))
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        out: Tensor = self.wo(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return out


class Holder(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(WIDTH, WIDTH), attention, nn.Linear(WIDTH, WIDTH)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.attention(self.first(x)))
        return out


def split(*, by_head: bool) -> tuple[Holder, Holder]:
    torch.manual_seed(0)
    fused = Fused()
    reference, candidate = Holder(fused), Holder(Apart())
    for name in ("first", "last"):
        candidate.get_submodule(name).load_state_dict(reference.get_submodule(name).state_dict())
    apart = candidate.attention
    with torch.no_grad():
        for name in ("weight", "bias"):
            whole = fused.qkv._parameters[name]
            assert whole is not None
            cut = whole.view(HEADS, 3, -1, *whole.shape[1:]).transpose(0, 1) if by_head else whole.view(3, -1)
            for part, rows in zip(("wq", "wk", "wv"), cut, strict=True):
                own = apart.get_submodule(part)._parameters[name]
                assert own is not None
                own.copy_(rows.reshape(own.shape))
    apart.get_submodule("wo").load_state_dict(fused.dense.state_dict())
    return reference, candidate


def test_rows_of_a_fused_projection_that_are_cut_wrongly_are_told() -> None:
    inputs = torch.randn(2, 5, WIDTH)
    assert qtrace.trace(*split(by_head=True), inputs).outcome is Outcome.CLEAN
    found = qtrace.trace(*split(by_head=False), inputs).findings
    assert [finding.module for finding in found] == ["attention"]
    assert "with the rows of attention.qkv taken head by head (4 heads), the candidate agrees" in found[0].evidence


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = (
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return out


def test_the_eps_of_one_batch_norm_in_a_block_is_told() -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(*(Residual() for _ in range(3))).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.uniform_(0.05, 0.5)
    candidate = copy.deepcopy(reference)
    candidate[1].get_submodule("bn1").eps = 0.1  # type: ignore[assignment]
    found = qtrace.trace(reference, candidate, torch.randn(2, 6, 8, 8)).findings
    assert [finding.module for finding in found] == ["1.bn1"]
    assert "eps 1e-05 against 0.1" in found[0].evidence


class Shifted(Attention):
    """An attention that takes positions, which count from `base`."""

    def __init__(self, scale: float, base: int) -> None:
        super().__init__(scale)
        self.positions = nn.Embedding(32, WIDTH)
        self.base = base

    def forward(self, hidden: Tensor, positions: Tensor) -> Tensor:  # type: ignore[override]
        return self.mix(hidden + self.positions(positions - self.base))


class Positioned(nn.Module):
    def __init__(self, attention: Shifted) -> None:
        super().__init__()
        self.embed, self.attn, self.head = nn.Linear(8, WIDTH), attention, nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])[None] + self.attn.base
        out: Tensor = self.head(self.attn(self.embed(x), positions))
        return out


@pytest.mark.parametrize(("scale", "outcome"), [(0.25, Outcome.CLEAN), (0.7, Outcome.FAULT)])
def test_positions_in_a_base_of_the_candidates_own_do_not_excuse_its_attention(scale: float, outcome: Outcome) -> None:
    reference = Positioned(Shifted(0.25, base=0))
    candidate = Positioned(Shifted(scale, base=2))
    candidate.load_state_dict(reference.state_dict())
    report = qtrace.trace(reference, candidate, torch.randn(2, 6, 8))
    assert report.outcome is outcome
    assert [finding.module for finding in report.findings] == (["attn"] if outcome is Outcome.FAULT else [])


class OneHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.head_sizes = [4, 4, 4, 4]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        out: Tensor = self.o((q @ k.transpose(1, 2)).softmax(-1) @ v)
        return out


class Split(nn.Module):
    """The same with three projections, the value's being the key's."""

    def __init__(self, fused: OneHead) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.o = copy.deepcopy(fused.o)
        self.q.weight.data, self.k.weight.data = (part.clone() for part in fused.qkv.weight.data.chunk(3)[:2])
        self.v.weight = self.k.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.o((self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x))
        return out


class WithConfig(nn.Module):
    def __init__(self, attention: nn.Module, embed: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.embed, self.attn, self.head = copy.deepcopy(embed), attention, copy.deepcopy(head)
        self.config = {"n_head": 1, 3: "of any kind"}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.attn(self.embed(x)))
        return out


def test_weights_that_share_storage_are_put_back_whatever_a_configuration_is() -> None:
    embed, head, fused = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8), OneHead()
    with torch.no_grad():
        fused.qkv.weight[2 * WIDTH :] = fused.qkv.weight[WIDTH : 2 * WIDTH]
    split = Split(fused)
    with torch.no_grad():
        split.k.weight[0] *= 3
    before = split.k.weight.detach().clone()
    report = qtrace.trace(WithConfig(fused, embed, head), WithConfig(split, embed, head), torch.randn(2, 6, 8))
    assert report.outcome is Outcome.FAULT
    assert torch.equal(split.k.weight, before)


class InPlace(nn.Module):
    def __init__(self, *, clamps: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.clamps = nn.ModuleList(nn.Hardtanh(-9, 9, inplace=True) for _ in range(clamps))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for clamp in self.clamps:
            x = clamp(x)
        out: Tensor = self.b(x)
        return out


def test_a_module_that_writes_into_its_input_does_not_pass_it_on() -> None:
    reference, candidate = InPlace(clamps=6), InPlace(clamps=0)
    candidate.load_state_dict(reference.state_dict())
    report = qtrace.trace(reference, candidate, torch.randn(2, 8))
    assert report.coverage.reasons == {"no_partner": 6}


def test_tensors_of_a_linear_layer_and_a_convolution_are_compared_in_the_closer_layout() -> None:
    reference = torch.randn(2, WIDTH, WIDTH)
    noisy = reference + 1e-3 * torch.randn_like(reference)
    channels = channels_of("Linear", "Conv1d")
    as_it_is = PairComparer().compare(reference, noisy, channels=channels)
    moved = PairComparer().compare(reference, noisy.transpose(1, 2).contiguous(), channels=channels)
    assert as_it_is is not None
    assert moved is not None
    assert as_it_is.layout is None
    assert moved.layout is not None
    assert (moved.statistics().peir or 1) < 1e-2


@pytest.mark.parametrize(
    ("name", "mask", "hidden"),
    [
        ("attention_mask", [[0, 0, 1, 1]], [[True, True, False, False]]),
        ("src_key_padding_mask", [[True, True, False, False]], [[True, True, False, False]]),
        ("bool_masked_pos", [[False, False, True, True]], None),
    ],
)
def test_a_mask_hides_what_its_name_says(name: str, mask: list[list[Any]], hidden: list[list[bool]] | None) -> None:
    found = hidden_positions(Sample((), {name: torch.tensor(mask)}))
    assert (None if found is None else found.tolist()) == hidden


@pytest.mark.parametrize(
    ("before", "after", "strength"),
    [
        (1.0, 0.5, "in part"),
        (1.0, 0.95, "not confirmed"),
        (math.inf, 0.5, "in part"),
        (math.inf, math.inf, "not confirmed"),
        (0.0, 0.0, "not confirmed"),
        (math.nan, 0.5, "not confirmed"),
        (0.5, math.nan, "not confirmed"),
        (None, 5.0, "not confirmed"),
    ],
)
def test_a_graft_that_changes_nothing_shows_nothing(before: float | None, after: float, strength: str) -> None:
    graft = {"before": before, "after": after}
    assert Finding(rank=1, module="a", call=0, kind="introduces", summary="", graft=graft).strength == strength
