"""The decoder of Qwen2, Qwen2.5, Qwen3 and Llama 3, with its modules named as in Hugging Face files.

Rows are packed: activations are [T, hidden] for the T tokens of several documents, and `cu_seqlens` and `positions`
keep the documents apart. Weights come from a folder (see hf.py), so nothing is initialised: build on the meta device,
shard, `to_empty`, load.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skytrain.attention import packed_attention
from skytrain.kernels.linear import linear
from skytrain.kernels.linear_cross_entropy import keep_fp32_gradient, linear_cross_entropy
from skytrain.kernels.rms_norm import add_rms_norm, rms_norm
from skytrain.kernels.rope import rope
from skytrain.kernels.swiglu import swiglu
from skytrain.rotary import Rope, rotary_tables


@dataclass(frozen=True)
class ModelConfig:
    """What `hf.read_config` understood of config.json, under its names where it has them."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: Rope
    qkv_bias: bool
    """Biases of the query, key and value projections."""
    output_bias: bool
    """Bias of attention's output projection."""
    qk_norm: bool
    """RMSNorm over each head of the queries and keys, before they are rotated."""

    def as_json(self) -> dict[str, Any]:
        """Of JSON's types alone, and equal to what reading it back gives: what a checkpoint remembers of the model."""
        return asdict(self)


@dataclass(frozen=True)
class Backends:
    """How the model computes, resolved: no `auto` is left."""

    attention: str
    """As `attention.resolve_backend` gives it."""
    kernels: str
    """As `kernels.backend.resolve` gives it."""
    head_chunk_bytes: int
    """Memory for the logits held at a time."""
    logits_dtype: torch.dtype = torch.float32


class Linear(nn.Linear):
    """nn.Linear without initialisation, through skytrain.kernels."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding without initialisation."""

    def reset_parameters(self) -> None:
        pass


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension. With a residual: that of the sum, and the sum."""

    def __init__(self, size: int, eps: float, backend: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps, self.backend = eps, backend

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            return rms_norm(x, self.weight, self.eps, backend=self.backend)
        return add_rms_norm(x, residual, self.weight, self.eps, backend=self.backend)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, backends: Backends) -> None:
        super().__init__()
        hidden, self.head_dim, self.backends = config.hidden_size, config.head_dim, backends
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(hidden, queries, bias=config.qkv_bias)
        self.k_proj = Linear(hidden, keys, bias=config.qkv_bias)
        self.v_proj = Linear(hidden, keys, bias=config.qkv_bias)
        self.o_proj = Linear(queries, hidden, bias=config.output_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, backends.kernels) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, backends.kernels) if config.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        # -1 is the number of heads.
        q, k, v = (p(x).view(len(x), -1, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rope(q, k, cos, sin, backend=self.backends.kernels)
        backend = self.backends.attention
        mixed = packed_attention(q, k, v, cu_seqlens, max_seqlen, scale=self.head_dim**-0.5, backend=backend)
        return self.o_proj(mixed.flatten(1))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, backends: Backends) -> None:
        super().__init__()
        self.backend = backends.kernels
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), backend=self.backend))


class DecoderLayer(nn.Module):
    """Attention and MLP, each on the normalised stream and added to it."""

    def __init__(self, config: ModelConfig, backends: Backends) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, backends.kernels)
        self.self_attn = Attention(config, backends)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, backends.kernels)
        self.mlp = MLP(config, backends)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """x: [T, hidden]; cos, sin: fp32 [T, head_dim / 2]; cu_seqlens: int32 [documents + 1]. Returns [T, hidden]."""
        mixed = self.self_attn(self.input_layernorm(x), cos, sin, cu_seqlens, max_seqlen)
        normalised, x = self.post_attention_layernorm(mixed, residual=x)
        return x + self.mlp(normalised)


class Decoder(nn.Module):
    """Everything below the head."""

    def __init__(self, config: ModelConfig, backends: Backends) -> None:
        super().__init__()
        self.rope, self.head_dim = config.rope, config.head_dim
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, backends) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, backends.kernels)

    def forward(
        self, input_ids: Tensor, positions: Tensor, cu_seqlens: Tensor, max_seqlen: int, rows: Tensor | None
    ) -> Tensor:
        """The normalised stream of `rows` (int64 [K], all where it is None): [K, hidden]."""
        x = self.embed_tokens(input_ids)
        cos, sin = rotary_tables(self.rope, self.head_dim, positions)
        for layer in self.layers:
            x = layer(x, cos, sin, cu_seqlens, max_seqlen)
        return self.norm(x if rows is None else x.index_select(0, rows))


class Head(nn.Module):
    """Logits, or the loss of them without ever holding them all.

    The loss is computed in this forward and not after it, because under FSDP2 the weight is whole only here. A tied
    head has no weight of its own and is given the embedding's: two names for one parameter do not survive `to_empty`.
    """

    def __init__(self, config: ModelConfig, backends: Backends) -> None:
        super().__init__()
        self.backends = backends
        weight = (
            None if config.tie_word_embeddings else nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        )
        self.register_parameter("weight", weight)

    def forward(
        self, hidden: Tensor, labels: Tensor | None, scale: float | Tensor, tied_weight: Tensor | None
    ) -> Tensor:
        weight = self.weight if tied_weight is None else tied_weight
        if labels is None:
            return linear(hidden, weight).float()
        # Else the autograd engine rounds the fp32 gradient to the weight's bf16 before FSDP2 reduces it.
        keep_fp32_gradient(weight)
        return linear_cross_entropy(
            hidden, weight, labels, scale=scale, chunk_bytes=self.backends.head_chunk_bytes,
            logits_dtype=self.backends.logits_dtype, backend=self.backends.kernels,
        )  # fmt: skip


class CausalLM(nn.Module):
    """The decoder and its head: logits of a packed row, or its loss.

    Parameters have torch's default dtype on torch's default device.

    FSDP groups: each layer, `lm_head`, `model.embed_tokens` and `model.norm` can be groups of their own. The weight of
    the head has an fp32 gradient under bf16 compute, and FSDP2 wants one dtype in a group: the head's weight (when
    tied, the embedding's, which must then stay with the root so that it is whole in both places) is alone in its group.
    """

    def __init__(self, config: ModelConfig, backends: Backends) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, backends)
        self.lm_head = Head(config, backends)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        target_index: Tensor | None = None,
        labels: Tensor | None = None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """Logits fp32 [T, vocab] without labels, else the scalar fp32 loss: scale * the sum of the targets' losses.

        input_ids, positions: int64 [T]; cu_seqlens: int32 [documents + 1]; max_seqlen: the longest document;
        target_index: int64 [K], the tokens whose next token is trained; labels: int64 [K], those next tokens. K = 0 is
        a loss of 0 with zero gradients.
        """
        hidden = self.model(input_ids, positions, cu_seqlens, max_seqlen, target_index)
        tied_weight = self.model.embed_tokens.weight if self.config.tie_word_embeddings else None
        return self.lm_head(hidden, labels, scale, tied_weight)
