"""Llama: faults in the code of attention, MLP and decoder layer, put into the real source."""

from __future__ import annotations

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

suite = Suite("llama", models.llama, models.uncached)
_LAST_RESIDUAL = "hidden_states = self.mlp(hidden_states)\n        hidden_states = residual + hidden_states"


@suite.fault("container", at="model.layers.1")
def residual_dropped(pair: Pair) -> None:
    """The layer returns the MLP's output without the residual: its last line, seen in its own output only."""
    rewrite(pair.at("model.layers.1"), _LAST_RESIDUAL, "hidden_states = self.mlp(hidden_states)")


@suite.fault("container", at="model.layers.0", kind=["miscalls", "introduces"])
def residual_added_twice(pair: Pair) -> None:
    """The residual is added twice after attention, so the layer hands a wrong sum to its second norm."""
    old = "hidden_states = residual + hidden_states\n\n        # Fully Connected"
    rewrite(pair.at("model.layers.0"), old, old.replace("residual +", "residual + residual +"))


@suite.fault("container", at="model.layers.1", kind=["structure", "miscalls"])
def norm_skipped(pair: Pair) -> None:
    """The layer does not call its second norm and hands the MLP what should have been normed."""
    rewrite(pair.at("model.layers.1"), "        hidden_states = self.post_attention_layernorm(hidden_states)\n", "")


@suite.fault("container", at="model.layers.0", kind=["structure", "miscalls"])
def norms_swapped(pair: Pair) -> None:
    """The layer calls its second norm in the place of the first: another module is called, by the layer's code."""
    rewrite(pair.at("model.layers.0"), "self.input_layernorm(", "self.post_attention_layernorm(")


@suite.fault("container", at="model.layers.1", kind=["miscalls", "introduces"])
def residual_after_the_norm(pair: Pair) -> None:
    """The layer keeps the normed states as the residual: a wrong order of two lines of its own."""
    rewrite(
        pair.at("model.layers.1"),
        "        residual = hidden_states\n        hidden_states = self.input_layernorm(hidden_states)",
        "        hidden_states = self.input_layernorm(hidden_states)\n        residual = hidden_states",
    )


@suite.fault("container", at="model.layers.0.mlp", kind=["miscalls", "introduces"])
def gate_and_up_swapped(pair: Pair) -> None:
    """The MLP activates the other half: all three projections are right, and the MLP calls act_fn with `up`."""
    rewrite(
        pair.at("model.layers.0.mlp"),
        "self.act_fn(self.gate_proj(x)) * self.up_proj(x)",
        "self.gate_proj(x) * self.act_fn(self.up_proj(x))",
    )


@suite.fault("container", at="model.layers.1.self_attn", kind=["miscalls", "introduces"])
def heads_left_untransposed(pair: Pair) -> None:
    """Heads and tokens are not transposed back before they are joined, in a function that attention calls."""
    rewrite(
        pair.at("model.layers.1.self_attn"),
        "attn_output = attn_output.transpose(1, 2).contiguous()",
        "attn_output = attn_output.contiguous()",
        within="eager_attention_forward",
    )


@suite.fault("container", at="model.layers.0.self_attn", kind=["miscalls", "introduces"])
def value_heads_tiled(pair: Pair) -> None:
    """The grouped value heads are repeated as 0 1 0 1 for 0 0 1 1, in a function that attention calls."""
    rewrite(
        pair.at("model.layers.0.self_attn"),
        "value_states = repeat_kv(value, module.num_key_value_groups)",
        "value_states = value.repeat(1, module.num_key_value_groups, 1, 1)",
        within="eager_attention_forward",
    )


@suite.fault("container", at=["model.layers.0.self_attn", "model.layers.1.self_attn"], kind=["miscalls", "introduces"])
def rotation_interleaved(pair: Pair) -> None:
    """Every attention rotates neighbouring channels where the halves belong together: token 0 stays exact.

    The same fault in both layers, so either may be named first.
    """
    for layer in (0, 1):
        rewrite(
            pair.at(f"model.layers.{layer}.self_attn"),
            "q_embed = (q * cos) + (rotate_half(q) * sin)",
            "q_embed = (q * cos) + (torch.stack((-q[..., 1::2], q[..., ::2]), -1).flatten(-2) * sin)",
            within="apply_rotary_pos_emb",
        )


@suite.fault("container", at="model.layers.1.self_attn", kind=["miscalls", "introduces"])
def scale_of_the_wrong_size(pair: Pair) -> None:
    """The logits are divided by the root of the number of heads; the code of attention says so itself."""
    rewrite(
        pair.at("model.layers.1.self_attn"),
        "scaling=self.scaling",
        "scaling=self.config.num_attention_heads ** -0.5",
    )


@suite.fault("container", at="model.layers.1.self_attn", kind=["miscalls", "introduces"])
def key_rotation_missing(pair: Pair) -> None:
    """The keys are not rotated: a line of the function that attention calls."""
    rewrite(
        pair.at("model.layers.1.self_attn"),
        "k_embed = (k * cos) + (rotate_half(k) * sin)",
        "k_embed = k",
        within="apply_rotary_pos_emb",
    )
