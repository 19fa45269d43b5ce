"""Changes of a float model that leave its results alone and make it easier to quantize; each returns a new model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.rounding.models import HEADS, WIDTH, Subject
from bench.rounding.schemes import Recipe, quantize

PLAIN, SMOOTH, SCALED, TURNED = FOLDINGS = ("plain", "norms folded", "scales undone", "rotated")


def float_model(subject: Subject, folding: str, generator: torch.Generator) -> nn.Module:
    """Return a copy of the subject's model, changed so that it computes the same; not yet quantized."""
    model = copy.deepcopy(subject.model)
    if folding in (SMOOTH, TURNED):
        with torch.no_grad():
            _FOLDS[folding, subject.name](model, subject, generator)
    return model


def quantized(subject: Subject, folding: str, recipe: Recipe, generator: torch.Generator) -> nn.Module:
    """Return a right quantization of the subject's model."""
    model = float_model(subject, folding, generator)
    skip = set() if recipe.head else set(subject.heads)
    if folding == SCALED or (folding == TURNED and subject.name == "mixer"):
        for path, received in subject.received.items():
            if path in skip:
                continue
            linear = subject.linear(path)
            smooth = turn = None
            weight = linear.weight.detach()
            if folding == SCALED:
                smooth = _importance(received)
                weight = weight * smooth
            else:
                turn = orthogonal(weight.shape[1], generator)
                weight = weight @ turn
            layer = recipe.layer(recipe.store(weight), linear.bias, smooth=smooth, turn=turn)
            model.set_submodule(path, layer.eval())
        return model
    return quantize(model, recipe, skip)


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Return a random orthogonal matrix."""
    turn: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return turn.float().contiguous()


def _importance(received: Tensor) -> Tensor:
    """Return a scale per input, by the mean size of what is received, as AWQ takes it; its middle is 1."""
    scale = received.abs().flatten(0, -2).mean(0).clamp(min=1e-4).sqrt()
    return scale / (scale.max() * scale.min()).sqrt()


def _difficulty(received: Tensor, weights: list[Tensor]) -> Tensor:
    """Return a scale per input, by the largest values on both sides, as SmoothQuant takes it."""
    inputs = received.abs().flatten(0, -2).amax(0).clamp(min=1e-4)
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=1e-4)
    return (inputs / columns).sqrt()


def _fold(norm: nn.Module, linears: list[nn.Linear], received: Tensor) -> None:
    """Divide what a norm returns by a scale per channel, and multiply the columns of all that read it."""
    scale = _difficulty(received, [linear.weight for linear in linears])
    for parameter in norm.parameters():
        parameter.div_(scale)
    for linear in linears:
        linear.weight.mul_(scale)


def _smooth_decoder(model: nn.Module, subject: Subject, _: torch.Generator) -> None:
    for index, layer in enumerate(model.get_submodule("model.layers").children()):
        for norm, within, names in (
            ("input_layernorm", "self_attn", ("q_proj", "k_proj", "v_proj")),
            ("post_attention_layernorm", "mlp", ("gate_proj", "up_proj")),
        ):
            linears = [_linear(layer, f"{within}.{name}") for name in names]
            _fold(layer.get_submodule(norm), linears, subject.received[f"model.layers.{index}.{within}.{names[0]}"])


def _smooth_encoder(model: nn.Module, subject: Subject, _: torch.Generator) -> None:
    """Fold between value and output projection: the norms of this model feed the residual stream too."""
    for index, layer in enumerate(model.get_submodule("bert.encoder.layer").children()):
        value, out = _linear(layer, "attention.self.value"), _linear(layer, "attention.output.dense")
        received = subject.received[f"bert.encoder.layer.{index}.attention.output.dense"]
        scale = _difficulty(received, [out.weight])
        value.weight.div_(scale[:, None])
        value.bias.div_(scale)
        out.weight.mul_(scale)


def _smooth_mixer(model: nn.Module, subject: Subject, _: torch.Generator) -> None:
    for index, block in enumerate(model.get_submodule("blocks").children()):
        received = subject.received[f"blocks.{index}.channel_up"]
        _fold(block.get_submodule("norm2"), [_linear(block, "channel_up")], received)


def _turn_decoder(model: nn.Module, subject: Subject, generator: torch.Generator) -> None:
    """Rotate the residual stream of a decoder, or of one with biases the values of each head."""
    body = model.get_submodule("model")
    layers = list(body.get_submodule("layers").children())
    if _linear(layers[0], "self_attn.q_proj").bias is not None:
        for layer in layers:
            _turn_values(_linear(layer, "self_attn.v_proj"), _linear(layer, "self_attn.o_proj"), generator)
        return
    turn = orthogonal(WIDTH, generator)
    embedding, head = body.get_submodule("embed_tokens"), _linear(model, "lm_head")
    assert isinstance(embedding, nn.Embedding)
    embedding.weight.copy_(embedding.weight @ turn)
    pairs = [(body.get_submodule("norm"), [head])]
    for layer in layers:
        pairs += [
            (layer.get_submodule("input_layernorm"), [_linear(layer, f"self_attn.{x}_proj") for x in "qkv"]),
            (
                layer.get_submodule("post_attention_layernorm"),
                [_linear(layer, f"mlp.{x}_proj") for x in ("gate", "up")],
            ),
        ]
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            writer = _linear(layer, name)
            writer.weight.copy_(turn.T @ writer.weight)
    for norm, readers in pairs:
        (weight,) = norm.parameters()
        for reader in readers:
            reader.weight.copy_((reader.weight * weight) @ turn)
        weight.fill_(1.0)


def _turn_encoder(model: nn.Module, subject: Subject, generator: torch.Generator) -> None:
    for layer in model.get_submodule("bert.encoder.layer").children():
        _turn_values(_linear(layer, "attention.self.value"), _linear(layer, "attention.output.dense"), generator)


def _turn_mixer(model: nn.Module, subject: Subject, generator: torch.Generator) -> None:
    """Do nothing yet: weights are rotated, rounded and rotated back one by one, where they are quantized."""


def _turn_values(value: nn.Linear, out: nn.Linear, generator: torch.Generator) -> None:
    """Rotate the values of all heads alike; heads that share their values are rotated together."""
    size = WIDTH // HEADS
    turn = orthogonal(size, generator)
    both = _blocks(turn, value.out_features // size)
    value.weight.copy_(both.T @ value.weight)
    if value.bias is not None:
        value.bias.copy_(value.bias @ both)
    out.weight.copy_(out.weight @ _blocks(turn, HEADS))


def _blocks(turn: Tensor, count: int) -> Tensor:
    """Return a matrix with `count` copies of `turn` on its diagonal."""
    return torch.kron(torch.eye(count), turn)


def _linear(module: nn.Module, path: str) -> nn.Linear:
    linear = module.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    return linear


_FOLDS: dict[tuple[str, str], Callable[[nn.Module, Subject, torch.Generator], None]] = {
    (SMOOTH, "decoder"): _smooth_decoder,
    (SMOOTH, "encoder"): _smooth_encoder,
    (SMOOTH, "mixer"): _smooth_mixer,
    (TURNED, "decoder"): _turn_decoder,
    (TURNED, "encoder"): _turn_encoder,
    (TURNED, "mixer"): _turn_mixer,
}
