"""Small random models with heavy-tailed weights: a Llama, a BERT and an MLP mixer, and inputs for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SEEDS = 4
WIDTH, INNER, LAYERS, HEADS = 64, 128, 3, 4
VOCABULARY = 96
SAMPLES, TOKENS = 2, 64
# Student's t with this many degrees of freedom, and the spread of log(channel size).
_FREEDOM, _CHANNELS = 6.0, 0.3


class MixerBlock(nn.Module):
    """Mixes tokens, then channels: [N, T, C] to the same."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.token_up, self.token_down = nn.Linear(TOKENS, INNER, bias), nn.Linear(INNER, TOKENS, bias)
        self.channel_up, self.channel_down = nn.Linear(WIDTH, INNER, bias), nn.Linear(INNER, WIDTH, bias)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        turned = self.norm1(x).transpose(1, 2)
        x = x + self.token_down(self.act(self.token_up(turned))).transpose(1, 2)
        mixed: Tensor = self.channel_down(self.act(self.channel_up(self.norm2(x))))
        return x + mixed


class Mixer(nn.Module):
    """Patches of 4 × 4, blocks, the mean over tokens: [N, 3, 32, 32] to logits."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.ModuleList([MixerBlock(bias) for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def _llama(seed: int) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS if seed % 2 else HEADS // 2,
        attention_bias=seed == 1,
        mlp_bias=seed == 1,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def _bert(seed: int) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=TOKENS,
        tie_word_embeddings=False,
        attn_implementation="eager" if seed % 2 else "sdpa",
    )
    model: nn.Module = transformers.BertForMaskedLM(config)
    return model


def _mixer(seed: int) -> nn.Module:
    return Mixer(bias=seed % 2 == 1)


_BUILDERS: dict[str, Callable[[int], nn.Module]] = {"decoder": _llama, "encoder": _bert, "mixer": _mixer}
NAMES = tuple(_BUILDERS)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, inputs for it, and what each of its linear layers receives from them, in rows."""

    name: str
    model: nn.Module
    inputs: Any
    received: dict[str, Tensor]

    def linear(self, path: str) -> nn.Linear:
        """Return one linear layer of the model."""
        module = self.model.get_submodule(path)
        assert isinstance(module, nn.Linear)
        return module

    @property
    def heads(self) -> tuple[str, ...]:
        """The paths of the layers behind the last block: many quantizers leave them alone."""
        return tuple(path for path in self.received if path in ("lm_head", "cls.predictions.decoder", "head"))


@functools.cache
def subject(name: str, seed: int) -> Subject:
    """Return one of the models; it is shared, so change copies of it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1000 + seed)
        model = _BUILDERS[name](seed).eval()
        for module in model.modules():
            _randomize(module)
        inputs: Any = {"input_ids": torch.randint(0, VOCABULARY, (SAMPLES, TOKENS))}
        if name == "mixer":
            inputs = torch.randn(SAMPLES, 3, 32, 32)
        return Subject(name, model, inputs, _received(model, inputs))


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    """Return the model's logits."""
    with torch.no_grad():
        out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    logits: Tensor = out if isinstance(out, Tensor) else out.logits
    return logits


def _randomize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        rows, columns = module.weight.shape
        values = torch.distributions.StudentT(_FREEDOM).sample(module.weight.shape)
        values = values * torch.exp(_CHANNELS * torch.randn(rows, 1)) * torch.exp(_CHANNELS * torch.randn(1, columns))
        module.weight.copy_(values / columns**0.5)
        if module.bias is not None:
            module.bias.copy_(0.3 * torch.randn(rows))
    elif isinstance(module, nn.Embedding):
        module.weight.copy_(torch.randn(module.weight.shape))
    elif isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__:
        # Both kinds of norm have a vector for a weight, and a LayerNorm a bias too.
        for parameter in module.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))


def _received(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Return what each linear layer receives; a layer is called once."""
    received: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, path=path: received.__setitem__(path, args[0].clone()))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    outputs(model, inputs)
    for hook in hooks:
        hook.remove()
    return received
