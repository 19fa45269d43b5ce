"""A wrapper of its own class round every leaf (and round containers), with and without a fault below it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import EPS, MISSING, ORDER, ROW_NEGATED, STATISTICS, TANH, TRANSPOSED, all_of
from bench.faults.vision_models import images, resnet_like, swin


class Observed(nn.Module):
    """Keeps the range of what the module inside returns, and passes its output on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module
        self.ranges: list[float] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        if isinstance(out, Tensor):
            self.ranges = [float(out.min()), float(out.max())]
        return out

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def _round_leaves(model: Any, depth: int = 1) -> Any:
    leaves = [(name, module) for name, module in model.named_modules() if name and not list(module.children())]
    for name, leaf in leaves:
        wrapped: nn.Module = leaf
        for _ in range(depth):
            wrapped = Observed(wrapped)
        model.set_submodule(name, wrapped)
    return model.eval()


def _twice(model: Any) -> Any:
    return _round_leaves(model, depth=2)


llama = Suite("wrapped_llama", models.llama, models.padded_uncached, _round_leaves)
bert = Suite("wrapped_bert", models.bert, models.padded, _twice)
resnet = Suite("wrapped_resnet", resnet_like, lambda: images(45, 3), _round_leaves)
windows = Suite("wrapped_swin", swin, models.image, _round_leaves)


@llama.correct()
def leaves_wrapped(pair: Pair) -> None:
    """Every leaf stands in a wrapper, and nothing else is changed."""


@llama.fault("parameter", at="model.layers.1.mlp.up_proj", reason=ROW_NEGATED)
def row_of_a_wrapped_leaf(pair: Pair) -> None:
    """A row of a weight inside of a wrapper has the opposite sign."""
    pair.at("model.layers.1.mlp.up_proj.inner").weight[11].neg_()


@llama.fault("leaf", at="model.layers.0.post_attention_layernorm", reason=EPS)
def eps_of_a_wrapped_norm(pair: Pair) -> None:
    """A norm inside of a wrapper has eps 1e-3."""
    pair.at("model.layers.0.post_attention_layernorm.inner").variance_epsilon = 1e-3


@llama.fault("container", at="model.layers.0.mlp")
def activation_of_the_wrong_half(pair: Pair) -> None:
    """Among wrapped leaves, the MLP's code activates the linear half."""
    pair.rewrite("self.act_fn(self.gate_proj(x)) * self.up_proj(x)", "self.gate_proj(x) * self.act_fn(self.up_proj(x))")


@llama.fault("argument", at="model", argument="attention_mask", reason=MISSING)
def mask_lost(pair: Pair) -> None:
    """Among wrapped leaves, the model hands on no mask."""
    pair.rewrite("attention_mask=causal_mask", "attention_mask=None")


@llama.fault("leaf", at="model.layers.1.self_attn.v_proj")
def wrapper_scales(pair: Pair) -> None:
    """One wrapper, and not the module inside, multiplies what it passes on by 1.1."""
    pair.rewrite("return out", "return out * 1.1")


@llama.fault("leaf", at="model.layers.0.self_attn.k_proj")
def wrapper_forgets_the_bias_of_one_row(pair: Pair) -> None:
    """One wrapper zeroes what it passes on in batch row 1."""
    pair.rewrite("return out", "out[1] = 0; return out")


@bert.correct()
def leaves_wrapped_twice(pair: Pair) -> None:
    """Every leaf stands in two wrappers."""


@bert.fault("leaf", at="bert.encoder.layer.1.intermediate.intermediate_act_fn", reason=TANH)
def gelu_in_two_wrappers(pair: Pair) -> None:
    """The GELU inside of two wrappers is the tanh approximation."""
    pair.replace(nn.GELU(approximate="tanh"), at="bert.encoder.layer.1.intermediate.intermediate_act_fn.inner.inner")


@bert.fault("container", at="bert.encoder.layer.0.output")
def residual_lost_among_wrappers(pair: Pair) -> None:
    """Among wrapped leaves, a feed-forward's output is normed without its residual."""
    pair.rewrite("self.LayerNorm(hidden_states + input_tensor)", "self.LayerNorm(hidden_states)")


@resnet.correct()
def in_place_leaves_wrapped(pair: Pair) -> None:
    """Every leaf of the residual net stands in a wrapper, in-place activations too."""


@resnet.fault("buffer", at="layer2.1.bn1", reason=STATISTICS)
def statistics_inside_a_wrapper(pair: Pair) -> None:
    """A batch norm inside of a wrapper has its initial statistics."""
    pair.at("layer2.1.bn1.inner").reset_running_stats()


@resnet.fault("container", at="layer1.1")
def shortcut_overwritten(pair: Pair) -> None:
    """A block keeps a reference to what its in-place activation overwrites: the shortcut is the first norm's output.

    The pre-activation of the shortcut is taken from the activated tensor.
    """
    pair.rewrite("out += identity", "out += identity.relu() - 0.5 * identity")


@windows.correct()
def windows_wrapped(pair: Pair) -> None:
    """Every leaf of the Swin stands in a wrapper; its relative biases are leaves without arguments."""


@windows.fault(
    "buffer",
    at="swin.encoder.layers.0.blocks.0.attention.relative_position_bias",
    reason=all_of(r"\brelative_position_index\b", f"{TRANSPOSED}|{ORDER}"),
)
def index_inside_a_wrapper(pair: Pair) -> None:
    """The index into a table of relative biases, inside of a wrapper, is transposed."""
    bias = pair.at("swin.encoder.layers.0.blocks.0.attention.relative_position_bias.inner")
    bias.relative_position_index = bias.relative_position_index.view(16, 16).t().reshape(-1).clone()
