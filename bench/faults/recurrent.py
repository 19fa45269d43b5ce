"""Recurrent nets: LSTMs and GRUs in several shapes, and Mamba's state space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import BIAS_ZERO, EPS, EXCHANGED, ORDER, PART, TIED, WEIGHT, ZERO, all_of
from bench.faults.vision_models import trained

mamba = Suite("mamba", models.mamba, models.uncached)
MIXERS = [f"backbone.layers.{layer}.mixer" for layer in range(2)]


@mamba.fault("parameter", at=MIXERS[0], reason=all_of(r"\ba_log\b", rf"{PART}|\b5\b"))
def decay_of_one_channel(pair: Pair) -> None:
    """One channel's decay is another one's: a parameter of the mixer itself."""
    pair.faulty.A_log[5].add_(1.0)


@mamba.fault("parameter", at=MIXERS[1], reason=all_of(r"\bd\b", ZERO))
def skip_never_loaded(pair: Pair) -> None:
    """The mixer's skip D is zero."""
    pair.faulty.D.zero_()


@mamba.fault("parameter", at=[MIXERS[0], f"{MIXERS[0]}.conv1d"], reason=all_of(WEIGHT, ORDER))
def kernel_mirrored(pair: Pair) -> None:
    """A kernel is mirrored. Its module is never called: the mixer reads its weight, so either may be named."""
    weight = pair.at(f"{MIXERS[0]}.conv1d").weight
    weight.copy_(weight.flip(-1))


@mamba.fault("parameter", at=[MIXERS[1], f"{MIXERS[1]}.dt_proj"], reason=BIAS_ZERO)
def time_step_bias_lost(pair: Pair) -> None:
    """The bias of the time step is zero. Its module is never called: the mixer reads its bias."""
    pair.at(f"{MIXERS[1]}.dt_proj").bias.zero_()


@mamba.fault("container", at=MIXERS[1])
def input_and_output_maps_exchanged(pair: Pair) -> None:
    """B and C are taken from x_proj in the wrong order."""
    pair.rewrite("time_step, B, C = torch.split(", "time_step, C, B = torch.split(")


@mamba.fault("container", at=MIXERS[0])
def gate_exchanged(pair: Pair) -> None:
    """The mixer takes the first half of its projection for the gate."""
    pair.rewrite("hidden_states_B_C, gate = projected_states", "gate, hidden_states_B_C = projected_states")


@mamba.fault("container", at="backbone.layers.0")
def residual_forgotten(pair: Pair) -> None:
    """The first block returns its mixer's output alone."""
    pair.rewrite("hidden_states = residual + hidden_states", "pass")


@mamba.fault("leaf", at="backbone.layers.1.norm", reason=EPS)
def norm_eps(pair: Pair) -> None:
    """A norm has eps 1e-3 and not 1e-5."""
    pair.faulty.variance_epsilon = 1e-3


@mamba.several(f"{MIXERS[0]}.x_proj", f"{MIXERS[1]}.out_proj")
def two_projections(pair: Pair) -> None:
    """A row of one projection is zero, and two rows of another one changed places."""
    pair.at(f"{MIXERS[0]}.x_proj").weight[6].zero_()
    weight = pair.at(f"{MIXERS[1]}.out_proj").weight
    weight[[0, 1]] = weight[[1, 0]]


@mamba.fault("parameter", at="lm_head", reason=all_of(WEIGHT, rf"{TIED}|{EXCHANGED}|\bembeddings\b"))
def head_tied_by_mistake(pair: Pair) -> None:
    """The head shares the embedding's weight where it should have one of its own."""
    pair.faulty.weight = pair.at("backbone.embeddings").weight


@mamba.correct()
def inner_channels_permuted(pair: Pair) -> None:
    """The inner channels of each mixer are in another order, in all of its tensors."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    both = torch.cat((order, order + 64))
    for path in MIXERS:
        mixer = pair.at(path)
        mixer.in_proj.weight.copy_(mixer.in_proj.weight[both])
        for tensor in (mixer.conv1d.weight, mixer.conv1d.bias, mixer.A_log, mixer.D):
            tensor.copy_(tensor[order])
        for tensor in (mixer.dt_proj.weight, mixer.dt_proj.bias):
            tensor.copy_(tensor[order])
        for linear in (mixer.x_proj, mixer.out_proj):
            linear.weight.copy_(linear.weight[:, order])


@mamba.correct()
def norms_folded(pair: Pair) -> None:
    """The norms' weights are in the projections after them."""
    for block in pair.at("backbone").layers:
        block.mixer.in_proj.weight.mul_(block.norm.weight)
        nn.init.ones_(block.norm.weight)


WIDTH = 12


class Tagger(nn.Module):
    """Embeds, runs a bidirectional LSTM and a GRU over it, and tags each token: int64 [N, T] to scores and a state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.gru = nn.GRU(2 * WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 9)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(tokens)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, (hidden, _) = self.lstm(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        first = torch.cat([hidden[-2], hidden[-1]], dim=-1)
        out, last = self.gru(self.norm(states + first[:, None]))
        return self.head(out), last[0]


class Speech(nn.Module):
    """Steps two LSTM cells over frames, the second on the first's state: float32 [N, T, F] to [N, T, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, WIDTH)
        self.cells = nn.ModuleList([nn.LSTMCell(WIDTH, WIDTH), nn.LSTMCell(WIDTH, WIDTH)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, frames: Tensor) -> Tensor:
        zeros = frames.new_zeros(frames.shape[0], WIDTH)
        state = [(zeros, zeros) for _ in self.cells]
        outputs = []
        for frame in frames.unbind(1):
            x = self.project(frame)
            for place, cell in enumerate(self.cells):
                state[place] = cell(x, state[place])
                x = x + state[place][0]
            outputs.append(self.head(self.norm(x)))
        return torch.stack(outputs, dim=1)


tagger = trained(Tagger)
speech = trained(Speech)


def sentences() -> dict[str, Any]:
    """Return four sentences of up to nine tokens with their lengths."""
    tokens = torch.randint(1, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    return {"tokens": tokens, "lengths": torch.tensor([9, 4, 7, 9])}


def frames() -> Tensor:
    """Return random frames, float32 [2, 6, 6]."""
    return torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1))


tags = Suite("recurrent", tagger, sentences)
steps = Suite("recurrent", speech, frames)


def _gates(weight: Tensor, order: tuple[int, ...]) -> None:
    with torch.no_grad():
        parts = weight.detach().clone().chunk(len(order))
        weight.copy_(torch.cat([parts[i] for i in order]))


@tags.fault("parameter", at="lstm", reason=all_of(r"\b(weight|bias)_[ih]h_l0\b", ORDER))
def gates_in_another_order(pair: Pair) -> None:
    """One direction of the LSTM has its gates in the order input, candidate, forget, output."""
    lstm = pair.faulty
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        _gates(getattr(lstm, name), (0, 2, 1, 3))


@tags.fault("parameter", at="lstm", reason=all_of(r"\b(weight|bias)_[ih]h_l1\b", EXCHANGED))
def directions_exchanged(pair: Pair) -> None:
    """The second layer of the LSTM has the weights of its two directions exchanged."""
    lstm = pair.faulty
    for name in ("weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
        one, other = getattr(lstm, name), getattr(lstm, f"{name}_reverse")
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


@tags.fault("argument", at="", kind=["miscalls", "introduces"])
def last_state_of_one_direction(pair: Pair) -> None:
    """The root takes the final states of the two directions in the other order before it adds them."""
    pair.rewrite("torch.cat([hidden[-2], hidden[-1]]", "torch.cat([hidden[-1], hidden[-2]]")


@tags.fault("argument", at="", kind=["miscalls", "introduces"])
def lengths_ignored(pair: Pair) -> None:
    """The root packs all sentences at full length, padding included."""
    pair.rewrite("pack_padded_sequence(x, lengths,", "pack_padded_sequence(x, torch.full_like(lengths, 9),")


@tags.fault("leaf", at="gru", reason=r"batch_first")
def batch_first_mistaken(pair: Pair) -> None:
    """The GRU takes its first axis for time."""
    pair.faulty.batch_first = False


@tags.fault("parameter", at="gru", reason=r"\bbias_[ih]h_l0\b")
def reset_gate_bias_merged(pair: Pair) -> None:
    """The GRU's two biases of the new gate are merged into one, which the reset gate does not scale."""
    gru = pair.faulty
    gru.bias_ih_l0[2 * WIDTH :].add_(gru.bias_hh_l0[2 * WIDTH :])
    gru.bias_hh_l0[2 * WIDTH :].zero_()


@steps.fault("argument", at="", argument="hx")
def state_not_reset(pair: Pair) -> None:
    """The root starts its second cell from the first cell's state, not from zeros, after the first frame."""
    pair.rewrite("cell(x, state[place])", "cell(x, state[0] if len(outputs) == 1 else state[place])")


@steps.fault("argument", at="", argument="hx")
def state_never_carried(pair: Pair) -> None:
    """The root hands its second cell zeros at every step."""
    pair.rewrite("cell(x, state[place])", "cell(x, state[place] if place == 0 else (zeros, zeros))")


@steps.fault("parameter", at="cells.1", reason=all_of(r"\bbias_ih\b", ZERO))
def forget_bias_lost(pair: Pair) -> None:
    """The second cell has lost the bias of its forget gate."""
    pair.faulty.bias_ih[WIDTH : 2 * WIDTH].zero_()


@steps.fault("leaf", at="cells.0", reason=r"hard_?sigmoid|\boutput_gate\b|\b_cell\b")
def hard_sigmoid_in_a_cell(pair: Pair) -> None:
    """The first cell computes its gates itself, with a hard sigmoid for the output gate."""
    pair.candidate.cells[0] = _Cell(pair.candidate.cells[0], nn.functional.hardsigmoid)


@steps.fault("container", at="")
def frames_stacked_backwards(pair: Pair) -> None:
    """The root stacks its outputs from last to first."""
    pair.rewrite("torch.stack(outputs, dim=1)", "torch.stack(outputs[::-1], dim=1)")


@steps.several("", "cells.0", "head")
def state_gate_and_head(pair: Pair) -> None:
    """Zeros for the second cell's state, two gates exchanged in the first, and a head without its bias."""
    pair.rewrite("cell(x, state[place])", "cell(x, state[place] if place == 0 else (zeros, zeros))", at="")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        _gates(getattr(pair.at("cells.0"), name), (1, 0, 2, 3))
    pair.at("head").bias.zero_()


class _Cell(nn.Module):
    """An LSTM cell written out in plain operators."""

    def __init__(self, cell: Any, output_gate: Any = torch.sigmoid) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh = cell.weight_ih, cell.weight_hh
        self.bias_ih, self.bias_hh = cell.bias_ih, cell.bias_hh
        self.output_gate = output_gate

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        gates = input @ self.weight_ih.t() + self.bias_ih + hx[0] @ self.weight_hh.t() + self.bias_hh
        i, f, g, o = gates.chunk(4, dim=-1)
        c = torch.sigmoid(f) * hx[1] + torch.sigmoid(i) * torch.tanh(g)
        return self.output_gate(o) * torch.tanh(c), c


class _Unrolled(nn.Module):
    """A GRU as a loop over a cell that is a module of its own."""

    def __init__(self, gru: Any) -> None:
        super().__init__()
        self.cell = nn.GRUCell(gru.input_size, gru.hidden_size)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.cell.load_state_dict({name: getattr(gru, f"{name}_l0") for name in names})

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        hidden = input.new_zeros(input.shape[0], self.cell.hidden_size)
        states = []
        for x in input.unbind(1):
            hidden = self.cell(x, hidden)
            states.append(hidden)
        return torch.stack(states, dim=1), hidden[None]


@steps.correct()
def cells_written_out(pair: Pair) -> None:
    """The candidate's cells are written out in plain operators."""
    pair.candidate.cells = nn.ModuleList(_Cell(cell) for cell in pair.candidate.cells)


@tags.correct()
def gru_unrolled(pair: Pair) -> None:
    """The candidate's GRU is a loop over cells."""
    pair.candidate.gru = _Unrolled(pair.candidate.gru)


@steps.correct()
def frames_projected_at_once(pair: Pair) -> None:
    """The candidate projects all frames in one call before the loop, and normalises all after it."""
    pair.rewrite(
        "for frame in frames.unbind(1):\n            x = self.project(frame)",
        "for x in self.project(frames).unbind(1):",
        at="",
    )


@tags.correct()
def bias_of_update_gates_merged(pair: Pair) -> None:
    """The LSTM's two biases per direction are merged into one; the other is zero."""
    lstm = pair.at("lstm")
    for layer in ("l0", "l1", "l0_reverse", "l1_reverse"):
        getattr(lstm, f"bias_ih_{layer}").add_(getattr(lstm, f"bias_hh_{layer}"))
        getattr(lstm, f"bias_hh_{layer}").zero_()
