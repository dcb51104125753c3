"""The model on one page: norm, rotation, attention, feed-forward part, block, decoder, head.

Llama's architecture (Touvron et al. 2023): RMSNorm before each part, rotary positions, SwiGLU, no
biases; several heads may share keys and values, and the embedding may also be the head. Weights are
named as in transformers' LlamaForCausalLM, so a state dict of one works for the other.

B batch, T tokens, D hidden, H heads, G of keys and values, K head size, F intermediate,
V vocabulary. Unless a model says otherwise, D = H * K and G = H.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend
from model.cache import KVCache, LayerCache
from model.config import ModelConfig
from model.documents import Documents, Separation
from model.logits.differentiate import (
    Differentiate,
    compile_differentiate,
    differentiate_in_place,
)
from model.loss import Scores, chunked_cross_entropy, lose_each, score_targets
from model.products import linear
from model.recompute import RUNNERS, ActivationCheckpointing, keep_share
from model.rotation import Rotation, make_rotation

# Methods of Transformer that compute with its weights; they are gathered first where it is sharded.
FORWARD_METHODS = ("token_losses", "predict")

# What tokens see besides themselves: None = those before them in their window.
Scope = LayerCache | Documents | None


class Linear(nn.Linear):
    """x @ weight.T, without a bias."""

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__(in_size, out_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class Embedding(nn.Embedding):
    """A row (D) for each token; on the meta device, nothing is drawn.

    Drawing from a normal distribution there would load torch's compiler, which takes seconds.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in fp32 (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight).to(x.dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x[i], x[i + K/2]) of x (B, H, T, K) by its angle: the half-split layout."""
    cos, sin = rotation
    left, right = x.chunk(2, dim=-1)
    turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
    return turned.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with H heads, of which H / G share keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        size, shared_size = (
            n * self.head_size for n in (config.num_attention_heads, config.num_kv_heads)
        )
        self.q_proj = Linear(config.hidden_size, size)
        self.k_proj = Linear(config.hidden_size, shared_size)
        self.v_proj = Linear(config.hidden_size, shared_size)
        self.o_proj = Linear(size, config.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, scope: Scope = None) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_size)
        q = rotate(self.q_proj(x).view(heads).transpose(1, 2), rotation)  # (B, H, T, K)
        k = rotate(self.k_proj(x).view(heads).transpose(1, 2), rotation)  # (B, G, T, K)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if isinstance(scope, LayerCache):
            y = attend(q, *scope.append(k, v))  # (B, H, T, K)
        else:
            y = attend(q, k, v) if scope is None else scope.attend(q, k, v)  # (B, H, T, K)
        return cast(Tensor, self.o_proj(y.transpose(1, 2).flatten(2)))  # (B, T, D)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)): SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.silu(self.gate_proj(x)) * self.up_proj(x)  # (B, T, F)
        return cast(Tensor, self.down_proj(inner))  # (B, T, D)


class Block(nn.Module):
    """Attention, then the MLP, each reading a normed copy of the stream and adding to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: Rotation, scope: Scope = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, scope)
        return x + cast(Tensor, self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    """Tokens (B, T) to hidden states (B, T, D): embedding, blocks, norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.num_ids, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        # While this is a list, the largest |x| behind each block is added to it.
        self.largest: list[Tensor] | None = None
        # Whether blocks are compiled for batches of all sizes.
        self.takes_any_batch = False
        # Whether attention stays inside documents, where no cache says what tokens see.
        self.separation = Separation()

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        activation_checkpointing: ActivationCheckpointing = "none",
        firsts: Tensor | None = None,
    ) -> Tensor:
        x = self.embed_tokens(tokens).to(self.norm.weight.dtype)
        if torch.is_autocast_enabled(x.device.type):
            # Otherwise the residual stream would stay in the embedding's fp32, at twice the memory.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        documents = None
        if cache is not None:
            positions = cache.begin(tokens.shape[1])
        elif firsts is None and self.separation.marks is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        else:
            size = self.config.head_size
            positions, documents = self.separation.find(tokens, x.dtype, size, firsts)
        rotation = make_rotation(positions, self.config)
        if self.takes_any_batch:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        run_block = RUNNERS[activation_checkpointing]
        for layer, block in enumerate(self.layers):
            scope = cache.layer(layer) if cache is not None else documents
            x = run_block(block, x, rotation, scope)
            if self.largest is not None:
                self.largest.append(x.detach().abs().amax())
        return cast(Tensor, self.norm(x))


class Transformer(nn.Module):
    """The language model: a decoder and its head, which may be the embedding.

    Weights start as N(0, initializer_range), norms as 1; with init "depth_scaled", what is added to
    the residual stream is smaller at first (GPT-2: Radford et al. 2019). `activation_checkpointing`
    says what training keeps for the backward pass (model/recompute.py); it may be set until blocks
    are compiled.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: ActivationCheckpointing = "none"
        self.differentiate: Differentiate = differentiate_in_place
        self.model = Decoder(config)
        # Where it is the embedding, its own weight is never allocated.
        with torch.device("meta") if config.tie_word_embeddings else nullcontext():
            self.lm_head = Linear(config.hidden_size, config.num_ids)
        self.tie_head()
        for name, weight in self.named_parameters():
            if weight.dim() == 2 and not weight.is_meta:
                nn.init.normal_(weight, std=config.initial_deviation(name))

    def tie_head(self) -> None:
        """Make the embedding the head, if the model is so; again after weights were assigned."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def draw_weights(self, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """The weights of a new model on `device`, by name, one after another: for one without any.

        That is one made on the meta device. torch's generator, seeded alike, gives the same numbers
        as to a model made on `device`, whose layers first draw weights that are then drawn again.
        """
        has_own_head = not self.config.tie_word_embeddings
        for module in (self if has_own_head else self.model).modules():
            if isinstance(module, nn.Embedding):
                nn.Embedding(module.num_embeddings, module.embedding_dim, device=device)
            elif isinstance(module, nn.Linear):
                nn.Linear(module.in_features, module.out_features, bias=False, device=device)
        for name, weight in self.named_parameters():
            whole = torch.ones(weight.shape, device=device)
            if weight.dim() == 2:
                nn.init.normal_(whole, std=self.config.initial_deviation(name))
            yield name, whole

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        grad_scale: Tensor | float | None = 1.0,
        z_loss: float = 0.0,
        has_ignored: bool = False,
        firsts: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of tokens (B, T); with targets (B, T), their mean loss, 0-dim fp32.

        `grad_scale` is the factor that the caller multiplies the loss by before backward; the loss
        itself does not depend on it. With None, the loss of each target, (B, T). With `z_loss`, the
        loss and the z-loss, (2,), to be differentiated as their sum. With `has_ignored`, targets
        may be IGNORED (model/loss.py). `firsts` (B, T) says where documents begin that are to be
        kept apart, in place of the marks in `model.separation`.
        """
        hidden = self.model(
            tokens,
            activation_checkpointing=self.activation_checkpointing if self.training else "none",
            firsts=firsts,
        )
        if targets is None:
            return cast(Tensor, self.lm_head(hidden))
        if grad_scale is None:
            return lose_each(hidden, self.lm_head.weight, targets, None, self.differentiate)
        rest = None, self.differentiate, z_loss, has_ignored
        return chunked_cross_entropy(hidden, self.lm_head.weight, targets, grad_scale, *rest)

    @torch.no_grad()
    def token_losses(
        self,
        tokens: Tensor,
        targets: Tensor,
        places: Tensor | None = None,
        firsts: Tensor | None = None,
    ) -> Scores:
        """Of targets (B, T), or those at `places` (B, T): the losses (N,), and which were best.

        Documents begin at `firsts` (B, T), as in the forward pass.
        """
        return score_targets(self.model(tokens, firsts=firsts), self.lm_head, targets, places)

    @contextmanager
    def watch_activations(self) -> Iterator[list[Tensor]]:
        """Within this, the largest |x| of the residual stream behind each block, 0-dim each.

        fp16 ends at 65,504. Nothing waits for the device, and compiled blocks stay as they are.
        """
        self.model.largest = []
        try:
            yield self.model.largest
        finally:
            self.model.largest = None

    @torch.inference_mode()
    def predict(self, tokens: Tensor, cache: KVCache, places: Tensor | None = None) -> Tensor:
        """The next token's logits (B, V) in fp32 after tokens (B, T), now in the cache.

        With `places` (P,), counted through the B * T tokens, the logits (P, V) after each of those.
        """
        hidden = self.model(tokens, cache)
        cache.set_lengths([length + tokens.shape[1] for length in cache.lengths])
        last = hidden[:, -1] if places is None else hidden.flatten(0, 1)[places]
        return cast(Tensor, self.lm_head(last).float())

    def compile_blocks(
        self, backend: str = "inductor", memory_budget: float = 0.5, takes_any_batch: bool = False
    ) -> None:
        """Compile every block in place: one graph for all, names kept, gradients block by block.

        What the loss does between its products is compiled, too.
        Where activation_checkpointing is `selective`, the compiler chooses what to compute again so
        that about the share `memory_budget` of what it would keep otherwise is kept. With
        `takes_any_batch`, the first batch is compiled for all sizes; else those of the first one's
        size have a graph of their own, and all others another.
        """
        compiler: Any = backend
        if self.activation_checkpointing == "selective":
            compiler = keep_share(backend, memory_budget)
            self.activation_checkpointing = "none"
        self.model.takes_any_batch = takes_any_batch
        self.model.separation.compile()
        for block in self.model.layers:
            block.compile(backend=compiler)
        self.differentiate = compile_differentiate(backend)

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Let the blocks run as they are written: for shapes that would each be compiled anew."""
        compiled = [block._compiled_call_impl for block in self.model.layers]
        for block in self.model.layers:
            block._compiled_call_impl = None
        try:
            yield
        finally:
            for block, call in zip(self.model.layers, compiled, strict=True):
                block._compiled_call_impl = call
