"""Attention of one layer: project, rotate, cache, attend, project back; and cross-attention.

Queries, keys and values come from one fused projection: on a CPU, and for one token, the number of
calls weighs as much as the arithmetic.

Shape suffixes: N packed tokens, W width of what comes in and of the residual stream (which differ
in some drafters), H query heads, G key/value heads, T = H + 2G all heads, D head width, R requests
of a group, S tokens of an encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.core.batch import AttentionGroup, KeyValuePool, PackedBatch
from anyorder.model.backends import ragged, sdpa
from anyorder.model.backends.linear import Linear
from anyorder.model.backends.native import attention as kernels
from anyorder.model.config import ModelConfig
from anyorder.model.layers import RmsNorm
from anyorder.model.relative import RelativeBias
from anyorder.model.rotary import Rotation, rotate


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Slope of each head (arXiv 2108.12409): a geometric sequence, for 2^n heads; other counts take
    every second slope of the next power of two for the rest."""
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * head + 1) / power) for head in range(num_heads - power)]
    return tuple(slopes)


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values."""

    def __init__(
        self, config: ModelConfig, layer: int, relative: RelativeBias | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads_of(layer)
        self.head_width = config.head_width_of(layer)
        self.keys_are_values = config.layers[layer].keys_are_values
        self.value_epsilon = config.norm_epsilon if config.value_norm else None
        self.clip = config.clip_qkv
        self.qk_norm = config.qk_norm
        self.pattern = sdpa.Pattern(
            scale=config.layers[layer].attention_scale,
            window=config.layers[layer].window,
            window_ahead=config.layers[layer].window_ahead,
            slopes=alibi_slopes(config.num_heads) if config.alibi else None,
            relative=relative,
        )
        query_width = self.num_heads * self.head_width
        key_width = self.num_kv_heads * self.head_width
        num_others = 1 if self.keys_are_values else 2
        input_width = config.attention_width or config.width
        self.qkv = Linear(input_width, query_width + num_others * key_width, bias=config.qkv_bias)
        self.out = Linear(query_width, config.width, bias=config.output_bias)
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            widths = (self.head_width,) * 2 if per_head else (query_width, key_width)
            self.query_norm = RmsNorm(widths[0], config.norm_epsilon)
            self.key_norm = RmsNorm(widths[1], config.norm_epsilon)

    def forward(
        self,
        x_NW: torch.Tensor,
        rotation: Rotation | None,
        batch: PackedBatch,
        pool: KeyValuePool | None,
    ) -> torch.Tensor:
        """What the branch adds to the residual stream; new keys and values are in the pool when it
        returns."""
        queries_NHD, keys_NGD, values_NGD = self.project(x_NW, rotation, batch, pool)
        if batch.ragged is not None:
            assert pool is not None, "ragged rows are read from a pool"
            mixed = ragged.attend(queries_NHD, batch, pool, self.layer, self.pattern)
        elif len(batch.groups) == 1:
            mixed = self._attend(queries_NHD, keys_NGD, values_NGD, batch.groups[0], batch, pool)
        else:
            parts = []
            for group in batch.groups:
                new = queries_NHD[group.rows], keys_NGD[group.rows], values_NGD[group.rows]
                parts.append(self._attend(*new, group, batch, pool))
            mixed = torch.cat(parts)
        return self.out(mixed)  # type: ignore[no-any-return]

    def project(
        self,
        x_NW: torch.Tensor,
        rotation: Rotation | None,
        batch: PackedBatch,
        pool: KeyValuePool | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values; the new keys and values are in the pool when it returns."""
        heads_NTD = self.qkv(x_NW)
        heads_NTD = heads_NTD.view(len(x_NW), -1, self.head_width)
        num_queries = self.num_heads
        turned_NTD = heads_NTD[:, : num_queries + self.num_kv_heads]
        if self.qk_norm != "none":
            turned_NTD = self._normalize(turned_NTD)
        values_NGD = heads_NTD[:, -self.num_kv_heads :]
        if self.value_epsilon is not None:
            values_NGD = F.rms_norm(values_NGD, (self.head_width,), eps=self.value_epsilon)
        if self.clip is not None:
            turned_NTD = turned_NTD.clamp(-self.clip, self.clip)
            values_NGD = values_NGD.clamp(-self.clip, self.clip)
        if rotation is not None:
            turned_NTD = rotate(turned_NTD, rotation)
        queries_NHD, keys_NGD = turned_NTD[:, :num_queries], turned_NTD[:, num_queries:]
        if batch.slots_N is not None:
            assert pool is not None, "a batch with slots needs a pool to write to"
            keys_NGD, values_NGD = pool.write(self.layer, batch.slots_N, keys_NGD, values_NGD)
        return queries_NHD, keys_NGD, values_NGD

    def _attend(
        self,
        queries_NHD: torch.Tensor,
        keys_NGD: torch.Tensor,
        values_NGD: torch.Tensor,
        group: AttentionGroup,
        batch: PackedBatch,
        pool: KeyValuePool | None,
    ) -> torch.Tensor:
        if pool is not None and kernels.takes(queries_NHD, group, self.pattern):
            return kernels.attend(queries_NHD, group, batch, pool, self.layer, self.pattern)
        return sdpa.attend(queries_NHD, keys_NGD, values_NGD, group, pool, self.layer, self.pattern)

    def _normalize(self, turned_NTD: torch.Tensor) -> torch.Tensor:
        """Queries and keys, normalised head by head or over all heads at once."""
        queries, keys = torch.split(turned_NTD, [self.num_heads, self.num_kv_heads], dim=1)
        if self.qk_norm == "full":
            queries, keys = self.query_norm(queries.flatten(1)), self.key_norm(keys.flatten(1))
            return torch.cat((queries, keys), dim=-1).view_as(turned_NTD)
        return torch.cat((self.query_norm(queries), self.key_norm(keys)), dim=1)


class CrossAttention(nn.Module):
    """Attention of a decoder's tokens to an encoder's (arXiv 1706.03762).

    Keys and values depend on the encoder's output alone: they are computed once and cached, or from
    `CrossMemory.states_RSW` in every pass.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.encoder is not None, "cross-attention needs an encoder"
        self.layer = layer
        self.head_width = config.head_width
        self.scale = config.layers[layer].attention_scale
        query_width = config.num_heads * config.head_width
        key_width = config.num_kv_heads * config.head_width
        self.q = Linear(config.width, query_width, bias=config.qkv_bias)
        self.kv = Linear(config.encoder.width, 2 * key_width, bias=config.qkv_bias)
        self.out = Linear(query_width, config.width, bias=config.output_bias)

    def forward(self, x_NW: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """What the branch adds to the residual stream."""
        queries_NHD = self.q(x_NW).view(len(x_NW), -1, self.head_width)
        parts = [self._attend(queries_NHD[group.rows], group) for group in batch.groups]
        return self.out(parts[0] if len(parts) == 1 else torch.cat(parts))  # type: ignore[no-any-return]

    def keys_and_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [..., G, D] of an encoder's output [..., W]."""
        heads = self.kv(states).unflatten(-1, (2, -1, self.head_width))
        return heads.unbind(-3)  # type: ignore[no-any-return]

    def _attend(self, queries_NHD: torch.Tensor, group: AttentionGroup) -> torch.Tensor:
        memory = group.memory
        assert memory is not None, "a decoder behind an encoder needs a memory"
        if memory.states_RSW is not None:
            keys_RSGD, values_RSGD = self.keys_and_values(memory.states_RSW)
        else:
            assert memory.pool is not None and memory.pages_RP is not None, (
                "neither states nor pages"
            )
            keys_RSGD, values_RSGD = memory.pool.read(self.layer, memory.pages_RP)
        return sdpa.attend_memory(queries_NHD, keys_RSGD, values_RSGD, group, memory, self.scale)


def attentions(network: nn.Module) -> list[Attention]:
    """All layers of this kind."""
    return [module for module in network.modules() if isinstance(module, Attention)]


def attends_ragged(network: nn.Module) -> bool:
    """Can attention of the engine's passes be one call a layer?"""
    layers = attentions(network)
    weight = next(network.parameters())
    return (
        ragged.serves(weight.device, weight.dtype)
        and all(ragged.takes(layer.pattern, layer.head_width) for layer in layers)
        and not any(isinstance(module, CrossAttention) for module in network.modules())
    )
