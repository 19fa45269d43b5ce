"""Vision transformer for image classification, ported with the names and the structure that timm uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification


class PatchEmbed(nn.Module):
    """Cuts the image into patches and projects each of them."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        x = self.norm(x.flatten(2).transpose(1, 2))
        return x


class Attention(nn.Module):
    """Self-attention with one fused projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.q_norm = nn.Identity()
        self.k_norm = nn.Identity()
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        x = x.transpose(1, 2).reshape(B, N, C)
        x = self.proj(x)
        x = self.proj_drop(x)
        return x


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(0.0)
        self.norm = nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.act(x)
        x = self.drop1(x)
        x = self.norm(x)
        x = self.fc2(x)
        x = self.drop2(x)
        return x


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads)
        self.ls1 = nn.Identity()
        self.drop_path1 = nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden)
        self.ls2 = nn.Identity()
        self.drop_path2 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x


class VisionTransformer(nn.Module):
    """The classifier; `forward` returns the logits."""

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        num_classes: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_hidden: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        self.pos_drop = nn.Dropout(0.0)
        self.norm_pre = nn.Identity()
        self.blocks = nn.Sequential(*[Block(embed_dim, num_heads, mlp_hidden, eps) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim, eps=eps)
        self.fc_norm = nn.Identity()
        self.head_drop = nn.Dropout(0.0)
        self.head = nn.Linear(embed_dim, num_classes)

    def _pos_embed(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        out: Tensor = self.pos_drop(x + self.pos_embed)
        return out

    def forward_features(self, x: Tensor) -> Tensor:
        """Every token after the last norm."""
        x = self.patch_embed(x)
        x = self._pos_embed(x)
        x = self.norm_pre(x)
        x = self.blocks(x)
        x = self.norm(x)
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """The logits from the class token."""
        x = self.fc_norm(x[:, 0])
        x = self.head_drop(x)
        out: Tensor = self.head(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Renames the reference's weights and joins query, key and value."""
    out = {
        "cls_token": state_dict["vit.embeddings.cls_token"],
        "pos_embed": state_dict["vit.embeddings.position_embeddings"],
    }
    names = {
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    for i in range(depth):
        names[f"blocks.{i}.norm1"] = f"vit.layers.{i}.layernorm_before"
        names[f"blocks.{i}.attn.proj"] = f"vit.layers.{i}.attention.o_proj"
        names[f"blocks.{i}.norm2"] = f"vit.layers.{i}.layernorm_after"
        names[f"blocks.{i}.mlp.fc1"] = f"vit.layers.{i}.mlp.fc1"
        names[f"blocks.{i}.mlp.fc2"] = f"vit.layers.{i}.mlp.fc2"
    for kind in ("weight", "bias"):
        for new, old in names.items():
            out[f"{new}.{kind}"] = state_dict[f"{old}.{kind}"]
        for i in range(depth):
            parts = [state_dict[f"vit.layers.{i}.attention.{n}_proj.{kind}"] for n in "qkv"]
            out[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts, dim=0)
    return out


def reference() -> nn.Module:
    """A ViT of two layers for 16 x 16 images with random weights, biases and norm weights."""
    settings: dict[str, Any] = {
        "hidden_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 16,
        "patch_size": 4,
        "num_channels": 3,
        "num_labels": 7,
        "initializer_range": 0.15,
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(31)
        model: nn.Module = ViTForImageClassification(ViTConfig(**settings))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def port(reference: nn.Module) -> nn.Module:
    """The model above with the weights of `reference`."""
    config: Any = reference.config
    with torch.random.fork_rng(devices=[]):
        model = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.num_channels,
            num_classes=config.num_labels,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_hidden=config.intermediate_size,
            eps=config.layer_norm_eps,
        )
    model.load_state_dict(checkpoint_filter_fn(reference.state_dict(), config.num_hidden_layers))
    return model.eval()


def inputs() -> Tensor:
    """A batch of two images."""
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(32))


def _scale(name: str, *index: int) -> Callable[[nn.Module], None]:
    """A function that multiplies one row (or entry) of the named parameter by 1.5."""

    def apply(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name)[index].mul_(1.5)

    return apply


# Rows of the fused weight: 40 query, 40 key and 40 value rows.
FAULTS: list[tuple[str, str, Callable[[nn.Module], None]]] = [
    ("vit.embeddings.patch_embeddings.projection", "output channel 6", _scale("patch_embed.proj.weight", 6)),
    ("vit.embeddings", "position embedding of token 3", _scale("pos_embed", 0, 3)),
    ("vit.layers.0.layernorm_before", "weight entry 12", _scale("blocks.0.norm1.weight", 12)),
    ("vit.layers.0.attention.k_proj", "row 25", _scale("blocks.0.attn.qkv.weight", 40 + 25)),
    ("vit.layers.1.attention.v_proj", "row 3", _scale("blocks.1.attn.qkv.weight", 80 + 3)),
    ("vit.layers.0.attention.o_proj", "row 18", _scale("blocks.0.attn.proj.weight", 18)),
    ("vit.layers.0.mlp.fc1", "row 70", _scale("blocks.0.mlp.fc1.weight", 70)),
    ("vit.layers.1.mlp.fc2", "row 9", _scale("blocks.1.mlp.fc2.weight", 9)),
    ("vit.layernorm", "weight entry 22", _scale("norm.weight", 22)),
    ("classifier", "row 4", _scale("head.weight", 4)),
]
