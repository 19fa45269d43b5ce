"""Pairs without a culprit: a little wrong everywhere, or too different to be compared."""

from __future__ import annotations

from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.convnet import ConvNet, convnet, pixels
from bench.faults.correct_structure import round_weights
from bench.faults.rewrite import rewrite

llama = Suite("llama", models.llama_deep, models.uncached)
t5 = Suite("t5", models.t5, models.translation)
bert = Suite("bert", models.bert, models.padded)
conv = Suite("conv", convnet, pixels)


class _Function(nn.Module):
    """A network as an export leaves it: one module that computes everything, under no path of the original."""

    def __init__(self, model: ConvNet) -> None:
        super().__init__()
        self._compute = [model]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self._compute[0].forward(x)
        return outputs


@llama.drift()
def variance_in_bfloat16(pair: Pair) -> None:
    """Every RMSNorm computes its variance in bfloat16: each is a little off, the error grows with depth."""
    for module in pair.candidate.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            rewrite(
                module,
                "hidden_states.pow(2).mean(-1, keepdim=True)",
                "hidden_states.bfloat16().pow(2).mean(-1, keepdim=True).float()",
            )


@t5.drift()
def weights_in_four_bits(pair: Pair) -> None:
    """Every linear weight is rounded to 4 bits: large errors that no layer has more of than its peers."""
    round_weights(pair.candidate, levels=7)


@bert.drift()
def linear_layers_in_bfloat16(pair: Pair) -> None:
    """Every linear layer computes in bfloat16, as under autocast; the rest is float32."""
    for module in pair.candidate.modules():
        if isinstance(module, nn.Linear):
            rewrite(
                module,
                "F.linear(input, self.weight, self.bias)",
                "F.linear(input.bfloat16(), self.weight.bfloat16(), self.bias.bfloat16()).float()",
            )


@conv.inconclusive()
def exported_to_one_module(pair: Pair) -> None:
    """The candidate has no modules inside, so nothing but its outputs can be compared."""
    pair.candidate = _Function(pair.candidate).eval()


@bert.inconclusive()
def another_architecture(pair: Pair) -> None:
    """The candidate is another network altogether, which takes the same inputs."""
    pair.candidate = models.llama()
