"""Recurrent nets: gates, states, directions, and the same recurrence in several shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults.case import Pair, Suite
from bench.faults.more_vision_models import seeded
from bench.faults.rewrite import rewrite

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


tagger = seeded(Tagger)
speech = seeded(Speech)


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


@tags.fault("parameter", at="lstm")
def gates_in_another_order(pair: Pair) -> None:
    """One direction of the LSTM has its gates in the order input, candidate, forget, output."""
    lstm = pair.at("lstm")
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        _gates(getattr(lstm, name), (0, 2, 1, 3))


@tags.fault("parameter", at="lstm")
def directions_exchanged(pair: Pair) -> None:
    """The second layer of the LSTM has the weights of its two directions exchanged."""
    lstm = pair.at("lstm")
    with torch.no_grad():
        for name in ("weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
            one, other = getattr(lstm, name), getattr(lstm, f"{name}_reverse")
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)


@tags.fault("argument", at="", kind=["miscalls", "introduces"])
def last_state_of_one_direction(pair: Pair) -> None:
    """The root takes the final states of the two directions in the other order before it adds them."""
    rewrite(pair.candidate, "torch.cat([hidden[-2], hidden[-1]]", "torch.cat([hidden[-1], hidden[-2]]")


@tags.fault("argument", at="", kind=["miscalls", "introduces"])
def lengths_ignored(pair: Pair) -> None:
    """The root packs all sentences at full length, padding included."""
    rewrite(pair.candidate, "pack_padded_sequence(x, lengths,", "pack_padded_sequence(x, torch.full_like(lengths, 9),")


@tags.fault("leaf", at="gru")
def batch_first_mistaken(pair: Pair) -> None:
    """The GRU takes its first axis for time."""
    pair.at("gru").batch_first = False


@tags.fault("parameter", at="gru")
def reset_gate_bias_merged(pair: Pair) -> None:
    """The GRU's two biases of the new gate are merged into one, which the reset gate does not scale."""
    gru = pair.at("gru")
    with torch.no_grad():
        gru.bias_ih_l0[2 * WIDTH :].add_(gru.bias_hh_l0[2 * WIDTH :])
        gru.bias_hh_l0[2 * WIDTH :].zero_()


@steps.fault("argument", at="", kind="miscalls", argument="hx")
def state_not_reset(pair: Pair) -> None:
    """The root starts its second cell from the first cell's state, not from zeros, after the first frame."""
    rewrite(
        pair.candidate,
        "state[place] = cell(x, state[place])",
        "state[place] = cell(x, state[0] if len(outputs) == 1 else state[place])",
    )


@steps.fault("argument", at="", kind="miscalls", argument="hx")
def state_never_carried(pair: Pair) -> None:
    """The root hands its second cell zeros at every step."""
    rewrite(pair.candidate, "cell(x, state[place])", "cell(x, state[place] if place == 0 else (zeros, zeros))")


@steps.fault("parameter", at="cells.1")
def forget_bias_lost(pair: Pair) -> None:
    """The second cell has lost the bias of its forget gate."""
    with torch.no_grad():
        pair.at("cells.1").bias_ih[WIDTH : 2 * WIDTH].zero_()


@steps.fault("leaf", at="cells.0")
def hard_sigmoid_in_a_cell(pair: Pair) -> None:
    """The first cell computes its gates itself, with a hard sigmoid for the output gate."""
    pair.candidate.cells[0] = _Cell(pair.candidate.cells[0], nn.functional.hardsigmoid)


@steps.fault("container", at="", kind=["miscalls", "introduces"])
def frames_stacked_backwards(pair: Pair) -> None:
    """The root stacks its outputs from last to first."""
    rewrite(pair.candidate, "torch.stack(outputs, dim=1)", "torch.stack(outputs[::-1], dim=1)")


@steps.several("", "cells.0", "head")
def state_gate_and_head(pair: Pair) -> None:
    """Zeros for the second cell's state, two gates exchanged in the first, and a head without its bias."""
    rewrite(pair.candidate, "cell(x, state[place])", "cell(x, state[place] if place == 0 else (zeros, zeros))")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        _gates(getattr(pair.at("cells.0"), name), (1, 0, 2, 3))
    with torch.no_grad():
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
    rewrite(
        pair.candidate,
        "for frame in frames.unbind(1):\n            x = self.project(frame)",
        "for x in self.project(frames).unbind(1):",
    )


@tags.correct()
def bias_of_update_gates_merged(pair: Pair) -> None:
    """The LSTM's two biases per direction are merged into one; the other is zero."""
    lstm = pair.at("lstm")
    with torch.no_grad():
        for layer in ("l0", "l1", "l0_reverse", "l1_reverse"):
            getattr(lstm, f"bias_ih_{layer}").add_(getattr(lstm, f"bias_hh_{layer}"))
            getattr(lstm, f"bias_hh_{layer}").zero_()
