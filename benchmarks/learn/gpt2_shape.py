"""GPT-2's shape as nanoGPT trains it: layer norms, GELU, learned positions, a tied head.

Radford et al. 2019, without biases as in nanoGPT's train.py. Weights start as N(0, 0.02), those
that add to the residual stream with 1/sqrt(2 L) of that. B batch, T tokens, D hidden, H heads.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend
from model.config import ModelConfig
from model.loss import chunked_cross_entropy
from model.transformer import Linear

# The inner width of a block's feed-forward part, by D.
WIDENING = 4
EPSILON = 1e-5


class LayerNorm(nn.LayerNorm):
    """A layer norm without a bias."""

    def __init__(self, size: int) -> None:
        super().__init__(size, eps=EPSILON, bias=False)


class Block(nn.Module):
    """Causal attention, then two layers with a GELU between them, each added to the stream."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ln_1 = LayerNorm(size)
        self.c_attn = Linear(size, 3 * size)
        self.attn_c_proj = Linear(size, size)
        self.ln_2 = LayerNorm(size)
        self.c_fc = Linear(size, WIDENING * size)
        self.mlp_c_proj = Linear(WIDENING * size, size)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.c_attn(self.ln_1(x)).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
        x = x + self.attn_c_proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return x + cast(Tensor, self.mlp_c_proj(F.gelu(self.c_fc(self.ln_2(x)))))


class GPT2(nn.Module):
    """The language model; it is called as model/transformer.py: Transformer is in a run."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.wte = nn.Embedding(config.num_ids, size)
        self.wpe = nn.Embedding(config.max_position_embeddings, size)
        self.h = nn.ModuleList(
            Block(size, config.num_attention_heads) for _ in range(config.num_hidden_layers)
        )
        self.ln_f = LayerNorm(size)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                is_added = name.endswith("c_proj.weight")
                scale = 1 / math.sqrt(2 * config.num_hidden_layers) if is_added else 1.0
                nn.init.normal_(weight, std=0.02 * scale)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        grad_scale: Tensor | float = 1.0,
        z_loss: float = 0.0,
        has_ignored: bool = False,
        firsts: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of tokens (B, T); with targets (B, T), their mean loss, 0-dim fp32."""
        assert firsts is None, "windows are read whole here"
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        hidden = self.ln_f(x)
        if targets is None:
            return F.linear(hidden, self.wte.weight)
        return chunked_cross_entropy(
            hidden,
            self.wte.weight,
            targets,
            grad_scale,
            z_loss=z_loss,
            has_ignored=has_ignored,
        )

    def num_block_parameters(self) -> int:
        """The weights of the blocks: all but the embeddings and the last norm."""
        return sum(weight.numel() for weight in self.h.parameters())
