"""Mixtures of experts: Mixtral, and Qwen2-MoE with shared experts, biases and a sliding window in its first layer."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.correct import Wrapped
from bench.faults.reasons import ANOTHER_SHAPE, BIAS_ZERO, HALVED, ORDER, PART, ROUNDED, WEIGHT, ZERO, all_of

mixtral = Suite("mixtral", models.mixtral, models.uncached)


@mixtral.fault("leaf", at="model.layers.0.mlp.gate")
def routing_weights_not_normalised(pair: Pair) -> None:
    """The router does not divide its two weights by their sum: its own code, and it calls nothing."""
    pair.rewrite("router_top_value /= router_top_value.sum(dim=-1, keepdim=True)", "pass")


@mixtral.fault(
    "leaf", at="model.layers.1.mlp.gate", kind=["introduces", "structure"], reason=rf"\btop_k\b|{ANOTHER_SHAPE}"
)
def one_expert_for_two(pair: Pair) -> None:
    """The router picks one expert per token: its attribute top_k is wrong, and its outputs have another shape."""
    pair.faulty.top_k = 1


@mixtral.fault("leaf", at="model.layers.1.mlp.experts")
def gate_and_up_swapped(pair: Pair) -> None:
    """The experts activate the other half of their fused projection."""
    pair.rewrite("gate, up = nn.functional", "up, gate = nn.functional")


@mixtral.fault("parameter", at="model.layers.0.mlp.experts", reason=all_of(r"\bdown_proj\b", ZERO))
def one_expert_never_loaded(pair: Pair) -> None:
    """The down projection of expert 2 is zero; the other experts are right, so only its tokens differ."""
    pair.faulty.down_proj[2].zero_()


@mixtral.fault("parameter", at="model.layers.1.mlp.gate", reason=all_of(WEIGHT, ORDER))
def router_rows_exchanged(pair: Pair) -> None:
    """Two rows of the router's weight changed places, and the experts did not."""
    weight = pair.faulty.weight
    weight.copy_(weight[[1, 0, 2, 3]])


@mixtral.fault("argument", at="model.layers.0.mlp", argument="top_k_weights")
def routing_weights_in_wrong_order(pair: Pair) -> None:
    """The block hands its experts the two weights of each token the wrong way round."""
    pair.rewrite("(hidden_states, top_k_index, top_k_weights)", "(hidden_states, top_k_index, top_k_weights.flip(-1))")


@mixtral.fault("argument", at="model.layers.1", argument="hidden_states")
def block_reads_the_residual(pair: Pair) -> None:
    """The layer hands its experts' block the residual, although it did call the norm."""
    pair.rewrite("self.mlp(hidden_states)", "self.mlp(residual)")


@mixtral.fault("container", at="model.layers.1.self_attn")
def heads_reversed(pair: Pair) -> None:
    """Attention joins its heads in reverse order before the output projection."""
    pair.rewrite("attn_output.reshape(*input_shape, -1)", "attn_output.flip(2).reshape(*input_shape, -1)")


qwen2_moe = Suite("qwen2_moe", models.qwen2_moe, models.uncached)
# The answer stands among changes that a replay of single modules on the reference's arguments cannot tell from it.
folded = Suite("compensated", models.qwen2_moe, models.uncached)
GATES = [f"model.layers.{layer}.mlp.gate" for layer in range(2)]


@qwen2_moe.several(*GATES)
def weights_not_normalised_anywhere(pair: Pair) -> None:
    """No router divides its weights by their sum: an attribute of each."""
    for path in GATES:
        pair.at(path).norm_topk_prob = False


@qwen2_moe.fault("leaf", at="model.layers.1.mlp.gate")
def softmax_over_tokens(pair: Pair) -> None:
    """The router's softmax runs over the tokens."""
    pair.rewrite("dtype=torch.float, dim=-1", "dtype=torch.float, dim=0")


@qwen2_moe.fault("leaf", at="model.layers.0.mlp.gate", reason=ROUNDED)
def router_in_bfloat16(pair: Pair) -> None:
    """One router computes its logits in bfloat16: a little off, and here and there another expert."""
    pair.rewrite("(hidden_states, self.weight)", "(hidden_states.bfloat16(), self.weight.bfloat16()).float()")


@qwen2_moe.fault("parameter", at="model.layers.1.mlp.experts", reason=all_of(r"\b(gate_up|down)_proj\b", ORDER))
def experts_in_another_order(pair: Pair) -> None:
    """The experts are in another order than the router's rows."""
    experts = pair.faulty
    for weight in (experts.gate_up_proj, experts.down_proj):
        weight.copy_(weight[[1, 2, 3, 0]])


@qwen2_moe.fault("parameter", at="model.layers.0.mlp.experts", reason=all_of(r"\bdown_proj\b", rf"{PART}|\b3\b"))
def one_down_projection_from_another_expert(pair: Pair) -> None:
    """Expert 3 has the down projection of expert 0."""
    down = pair.faulty.down_proj
    down[3].copy_(down[0])


@qwen2_moe.fault("container", at="model.layers.0.mlp", kind="introduces")
def shared_expert_ungated(pair: Pair) -> None:
    """The block adds its shared expert without the sigmoid: it calls everything as before."""
    pair.rewrite(
        "F.sigmoid(self.shared_expert_gate(hidden_states_reshaped))",
        "self.shared_expert_gate(hidden_states_reshaped)",
        at="model.layers.0.mlp",
    )


@qwen2_moe.fault("container", at="model.layers.1.mlp", kind="introduces")
def shared_expert_dropped(pair: Pair) -> None:
    """The block calls its shared expert and forgets what it returns."""
    pair.rewrite("expert_output + shared_expert_output", "expert_output")


@qwen2_moe.fault("argument", at="model.layers.1.mlp", argument="top_k_weights")
def routing_weights_squared(pair: Pair) -> None:
    """The block hands its experts the square of the router's weights."""
    pair.rewrite("selected_experts, routing_weights)", "selected_experts, routing_weights * routing_weights)")


@qwen2_moe.fault("parameter", at="model.layers.0.self_attn.q_proj", reason=BIAS_ZERO)
def query_bias_lost(pair: Pair) -> None:
    """A bias was never loaded."""
    pair.faulty.bias.zero_()


@qwen2_moe.fault("argument", at="model", argument="attention_mask", reason=r"\bsliding_window\b|\bwindow\b")
def window_one_off(pair: Pair) -> None:
    """The window holds one token more: only the first layer's mask, and only from the seventh token on."""
    pair.candidate.config.sliding_window = 7


@qwen2_moe.fault("argument", at="model", argument="attention_mask")
def window_ignored(pair: Pair) -> None:
    """The first layer gets the mask without a window."""
    pair.rewrite("causal_mask_mapping[self.config.layer_types[i]]", 'causal_mask_mapping["full_attention"]')


@qwen2_moe.fault("argument", at="model", argument="position_ids")
def late_positions_clamped(pair: Pair) -> None:
    """Positions beyond 16 all count as 16."""
    pair.rewrite("(hidden_states, position_ids)", "(hidden_states, position_ids.clamp(max=16))")


@qwen2_moe.fault("buffer", at="model.rotary_emb", reason=r"\binv_freq\b")
def rotary_base_of_another_model(pair: Pair) -> None:
    """The rotary frequencies come from the base 1e6."""
    rotary = pair.faulty
    rotary.inv_freq.copy_(1e6 ** -(torch.arange(0, 16, 2) / 16))


@qwen2_moe.fault("container", at="model", kind=["structure", "miscalls"])
def last_norm_is_a_layers(pair: Pair) -> None:
    """The model norms its last states with the first layer's input_layernorm: another module in the place of one."""
    pair.rewrite("self.norm(hidden_states)", "self.layers[0].input_layernorm(hidden_states)")


@qwen2_moe.fault("container", at="model.layers.0")
def attention_forgotten(pair: Pair) -> None:
    """The first layer calls its attention and goes on with the residual alone."""
    pair.rewrite("residual + hidden_states\n\n        # Fully Connected", "residual\n\n        # Fully Connected")


@qwen2_moe.several("model.layers.0.self_attn", "model.layers.1.self_attn")
def scale_of_the_hidden_size_everywhere(pair: Pair) -> None:
    """Both attentions divide their logits by the root of the hidden size."""
    for layer in range(2):
        pair.at(f"model.layers.{layer}.self_attn").scaling = 64**-0.5


@qwen2_moe.several("model.layers.0.input_layernorm", "model.layers.0.mlp", "model.layers.1.mlp.shared_expert.act_fn")
def eps_gate_and_activation(pair: Pair) -> None:
    """A norm's eps is 1e-3, a shared expert is not gated, and another one's activation is a GELU."""
    pair.at("model.layers.0.input_layernorm").variance_epsilon = 1e-3
    shared_expert_ungated(pair)
    pair.replace(nn.GELU(), at="model.layers.1.mlp.shared_expert.act_fn")


@qwen2_moe.correct()
def hidden_channels_of_experts_permuted(pair: Pair) -> None:
    """The hidden channels of every expert are in another order, in both of its weights."""
    order = torch.randperm(48, generator=torch.Generator().manual_seed(2))
    for layer in range(2):
        experts = pair.at(f"model.layers.{layer}.mlp.experts")
        experts.gate_up_proj.copy_(experts.gate_up_proj[:, torch.cat((order, order + 48))])
        experts.down_proj.copy_(experts.down_proj[:, :, order])


@qwen2_moe.correct()
def experts_of_equal_rank_permuted(pair: Pair) -> None:
    """Experts and the router's rows are both in reverse order."""
    for layer in range(2):
        block = pair.at(f"model.layers.{layer}.mlp")
        for weight in (block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj):
            weight.copy_(weight.flip(0))


@folded.fault("parameter", at=["model.layers.0.mlp.experts", "model.layers.0.mlp.gate"], reason=ORDER)
def experts_permuted_without_their_router(pair: Pair) -> None:
    """Both layers' experts are in reverse order, one router is not: it or its experts may be called wrong."""
    experts_of_equal_rank_permuted(pair)
    weight = pair.at("model.layers.0.mlp.gate").weight
    weight.copy_(weight.flip(0))


@qwen2_moe.correct()
def experts_batched(pair: Pair) -> None:
    """The candidate multiplies all experts at once."""
    pair.candidate.set_experts_implementation("batched_mm")


@qwen2_moe.correct()
def every_linear_wrapped(pair: Pair) -> None:
    """Every linear layer is inside a wrapper."""
    _wrap_linears(pair)


@qwen2_moe.fault("parameter", at="model.layers.1.mlp.shared_expert.down_proj", reason=all_of(WEIGHT, PART, HALVED))
def every_linear_wrapped_one_row_stale(pair: Pair) -> None:
    """The same, and one row inside a wrapper is half as large as it should be."""
    _wrap_linears(pair)
    pair.at("model.layers.1.mlp.shared_expert.down_proj.wrapped").weight[11].mul_(0.5)


def _wrap_linears(pair: Pair) -> None:
    for path, module in list(pair.candidate.named_modules()):
        if isinstance(module, nn.Linear):
            pair.replace(Wrapped(module), at=path)
