"""Recurrent tagger: a two-layer `nn.GRU` in the reference, one `nn.GRUCell` per layer stepped by hand in the port."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class GRUTagger(nn.Module):
    """Embedding, two recurrent layers and a linear head on every time step."""

    def __init__(self, vocab_size: int, embed_dim: int, hidden_dim: int, num_tags: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.gru = nn.GRU(embed_dim, hidden_dim, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden_dim, num_tags)

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the scores of every step and the final state of shape (layers, batch, hidden)."""
        outputs, hidden = self.gru(self.embedding(tokens), hidden)
        return self.head(outputs), hidden


class StackedCells(nn.Module):
    """A stack of recurrent cells that advances by one time step per call."""

    def __init__(self, in_size: int, state_size: int, depth: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.GRUCell(in_size if i == 0 else state_size, state_size) for i in range(depth))

    def forward(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        new_states = []
        for cell, state in zip(self.cells, states, strict=True):
            x = cell(x, state)
            new_states.append(x)
        return new_states


class StepwiseTagger(nn.Module):
    """The tagger as a loop over time; returns the scores and the list of final states, one per layer."""

    def __init__(self, n_symbols: int, symbol_dim: int, state_size: int, n_labels: int) -> None:
        super().__init__()
        self.lookup = nn.Embedding(n_symbols, symbol_dim)
        self.stack = StackedCells(symbol_dim, state_size, depth=2)
        self.classify = nn.Linear(state_size, n_labels)

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        states = list(hidden.unbind(0))
        tops = []
        for x_t in self.lookup(tokens).unbind(1):
            states = self.stack(x_t, states)
            tops.append(states[-1])
        return self.classify(torch.stack(tops, dim=1)), states


def reference() -> nn.Module:
    """The tagger with random weights."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(41)
        model = GRUTagger(vocab_size=50, embed_dim=24, hidden_dim=32, num_tags=9)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def port(reference: nn.Module) -> nn.Module:
    """The stepwise tagger with the weights of `reference`."""
    source = reference.state_dict()
    n_symbols, symbol_dim = source["embedding.weight"].shape
    n_labels, state_size = source["head.weight"].shape
    with torch.random.fork_rng(devices=[]):
        model = StepwiseTagger(n_symbols, symbol_dim, state_size, n_labels)
    target = {
        "lookup.weight": source["embedding.weight"],
        "classify.weight": source["head.weight"],
        "classify.bias": source["head.bias"],
    }
    for layer in range(2):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            target[f"stack.cells.{layer}.{name}"] = source[f"gru.{name}_l{layer}"]
    model.load_state_dict(target)
    return model.eval()


def inputs() -> tuple[Tensor, Tensor]:
    """Three sequences of seven tokens and a state to start from; token 6 is in the second sequence."""
    generator = torch.Generator().manual_seed(42)
    tokens = torch.randint(0, 50, (3, 7), generator=generator)
    tokens[1, 2] = 6
    return tokens, 0.5 * torch.randn(2, 3, 32, generator=generator)


def _scale(name: str, row: int, factor: float = 1.5) -> Callable[[nn.Module], None]:
    """A function that multiplies one row of the named parameter."""

    def apply(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name)[row].mul_(factor)

    return apply


def _shift(name: str, entry: int, amount: float = 0.5) -> Callable[[nn.Module], None]:
    """A function that adds to one entry of the named parameter."""

    def apply(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name)[entry].add_(amount)

    return apply


# The gates lie one after another in the rows: 32 for reset, 32 for update, 32 for the candidate state.
FAULTS: list[tuple[str, str, Callable[[nn.Module], None]]] = [
    ("embedding", "row of token 6", _scale("lookup.weight", 6)),
    ("gru", "layer 0, input weight, candidate row 10", _scale("stack.cells.0.weight_ih", 64 + 10)),
    ("gru", "layer 1, recurrent weight, update row 18", _scale("stack.cells.1.weight_hh", 32 + 18)),
    ("gru", "layer 0, recurrent bias, reset entry 8", _shift("stack.cells.0.bias_hh", 8)),
    ("gru", "layer 1, recurrent bias, candidate entry 15", _shift("stack.cells.1.bias_hh", 64 + 15)),
    ("head", "row 5", _scale("classify.weight", 5)),
    ("head", "bias entry 2", _shift("classify.bias", 2)),
]
