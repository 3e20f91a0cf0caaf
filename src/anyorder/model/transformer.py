"""The one stack that all families share: decoders, and with another batch encoders.

It runs packed tokens (`core.batch.PackedBatch`) and keeps keys and values in a `KeyValuePool`; it
knows nothing of requests, methods or pages. Implements `core.batch.Network`.

Shape suffixes: N packed tokens, M some of their rows, W width, V vocabulary, B sequences, T tokens
each.
"""

from __future__ import annotations

from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.model.attention import Attention, CrossAttention
from anyorder.model.backends.linear import Linear, linear
from anyorder.model.backends.native.stack import LayerStack
from anyorder.model.backends.quantized import (
    Bits,
    QuantizedEmbedding,
    QuantizedLinear,
    quantize_linears,
)
from anyorder.model.config import Activation, ModelConfig, NormPlacement, Rope
from anyorder.model.edits import Edits
from anyorder.model.layers import ACTIVATIONS, Mlp, RmsNorm, make_norm
from anyorder.model.modulation import NoiseLevel, modulated
from anyorder.model.moe import DenseAndExperts, MixtureOfExperts
from anyorder.model.relative import RelativeBias
from anyorder.model.rotary import Rotation, rotation


class Layer(nn.Module):
    """Attention, with an encoder cross-attention, and MLP on a residual stream."""

    def __init__(
        self, config: ModelConfig, index: int, relative: RelativeBias | None = None
    ) -> None:
        super().__init__()

        def norm_if(*placements: NormPlacement) -> nn.Module | None:
            return make_norm(config, config.width) if config.norm_placement in placements else None

        normed = config.layers[index].attention_norm
        self.parallel = config.parallel_residual
        self.attention = Attention(config, index, relative)
        experts = config.layers[index].experts
        self.mlp: nn.Module
        if experts is None:
            self.mlp = Mlp(config, config.mlp_width)
        elif experts.beside_dense:
            self.mlp = DenseAndExperts(config, experts)
        else:
            self.mlp = MixtureOfExperts(config, experts)
        self.attention_norm = norm_if("before", "around") if normed else None
        self.attention_out_norm = norm_if("around", "after_branch")
        self.attention_residual_norm = norm_if("after_residual")
        self.cross: CrossAttention | None = None
        if config.encoder is not None:
            self.cross = CrossAttention(config, index)
            self.cross_norm = norm_if("before", "around")
            self.cross_out_norm = norm_if("around", "after_branch")
            self.cross_residual_norm = norm_if("after_residual")
        normed = experts is None or not experts.beside_dense
        self.mlp_norm = norm_if("before", "around") if normed else None
        self.mlp_out_norm = norm_if("around", "after_branch")
        self.mlp_residual_norm = norm_if("after_residual")
        self.scale = LayerScale() if config.layer_scale else None
        two = config.layer_scale and config.canvas_length
        self.text_scale = LayerScale() if two else None
        if config.modulation is not None:
            self.modulation = Linear(config.modulation.width, 6 * config.width, bias=True)

    def forward(
        self,
        x_NW: torch.Tensor,
        rotation: Rotation | None,
        batch: PackedBatch,
        pool: KeyValuePool | None,
        level_NC: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Same shape as `x_NW`; `level_NC` is for networks with a modulation."""
        if level_NC is not None:
            return self._modulated(x_NW, rotation, batch, pool, level_NC)
        branch_NW = self.attention(self.normalize(x_NW), rotation, batch, pool)
        if self.cross is None:
            return self.merge(x_NW, branch_NW)
        sum_NW = self._attended(x_NW, branch_NW)
        branch_NW = self.cross(_apply(self.cross_norm, sum_NW), batch)
        sum_NW = _apply(self.cross_out_norm, branch_NW).add_(sum_NW)
        sum_NW = _apply(self.cross_residual_norm, sum_NW)
        return self._transformed(sum_NW, sum_NW)

    def _modulated(
        self,
        x_NW: torch.Tensor,
        rotation: Rotation | None,
        batch: PackedBatch,
        pool: KeyValuePool | None,
        level_NC: torch.Tensor,
    ) -> torch.Tensor:
        """After both branches, as the noise level has them."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(level_NC).chunk(6, -1)
        read_NW = modulated(self.normalize(x_NW), shift, scale)
        x_NW = torch.addcmul(x_NW, gate, self.attention(read_NW, rotation, batch, pool))
        read_NW = modulated(_apply(self.mlp_norm, x_NW), mlp_shift, mlp_scale)
        return torch.addcmul(x_NW, mlp_gate, self.mlp(read_NW))

    def normalize(self, x_NW: torch.Tensor) -> torch.Tensor:
        """What attention reads of the residual stream."""
        return _apply(self.attention_norm, x_NW)

    def merge(self, x_NW: torch.Tensor, branch_NW: torch.Tensor) -> torch.Tensor:
        """The residual stream after what attention adds to it and after the MLP."""
        sum_NW = self._attended(x_NW, branch_NW)
        return self._transformed(sum_NW, x_NW if self.parallel else sum_NW)

    def _attended(self, x_NW: torch.Tensor, branch_NW: torch.Tensor) -> torch.Tensor:
        # A branch's output is fresh, so the residual stream is added to it in place.
        sum_NW = _apply(self.attention_out_norm, branch_NW).add_(x_NW)
        return _apply(self.attention_residual_norm, sum_NW)

    def _transformed(self, sum_NW: torch.Tensor, x_NW: torch.Tensor) -> torch.Tensor:
        """After the MLP, which reads `x_NW`."""
        branch_NW = self.mlp(_apply(self.mlp_norm, x_NW))
        sum_NW = _apply(self.mlp_out_norm, branch_NW).add_(sum_NW)
        return _apply(self.mlp_residual_norm, sum_NW)

    def scaled(self, x_NW: torch.Tensor, canvas_N: torch.Tensor | None) -> torch.Tensor:
        """The layer's output by its numbers, where it has some."""
        if self.scale is None:
            return x_NW
        factor: torch.Tensor = self.scale.weight
        if self.text_scale is not None:
            of_text = self.text_scale.weight
            factor = (
                of_text if canvas_N is None else torch.where(canvas_N[:, None], factor, of_text)
            )
        return x_NW * factor


def _of(values: torch.Tensor, tokens_S: torch.Tensor | None) -> torch.Tensor:
    """Columns of some tokens, or all of them."""
    return values if tokens_S is None else values[..., tokens_S]


def _apply(norm: nn.Module | None, x_NW: torch.Tensor) -> torch.Tensor:
    return x_NW if norm is None else norm(x_NW)


class Transformer(nn.Module):
    """A decoder-only language model, or one stack of an encoder-decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        embedding_width = config.embedding_width or config.width
        table = make_embedding(config.vocabulary_size, embedding_width)
        self.embedding: nn.Embedding | QuantizedEmbedding = table
        if config.learned_positions:
            self.positions = make_embedding(config.learned_positions, config.width)
        if config.self_conditioning:
            self.self_conditioning = SelfConditioning(config)
        if config.token_types:
            self.token_types = make_embedding(config.token_types, config.width)
        if config.embedding_norm:
            self.embedding_norm = make_norm(config, config.width)
        if config.embedding_width is not None:
            self.project_in = Linear(embedding_width, config.width, bias=False)
            self.project_out = Linear(config.width, embedding_width, bias=False)
        relative = None
        if config.relative_positions is not None:
            relative = RelativeBias(config.relative_positions, config.num_heads)
            self.relative_bias = relative
        self.layers = nn.ModuleList(
            Layer(config, index, relative) for index in range(len(config.layers))
        )
        self._stack: LayerStack | None = None
        self.quantized_head: QuantizedLinear | None = None
        """What reads out tied embeddings, where weights are quantised."""
        self.final_norm = make_norm(config, config.width) if config.final_norm else nn.Identity()
        if config.modulation is not None:
            self.noise_level = NoiseLevel(config.modulation)
            self.final_modulation = Linear(config.modulation.width, 2 * config.width, bias=True)
        if config.head_transform is not None:
            self.head_transform = HeadTransform(config, config.head_transform)
        if config.logit_bias:
            self.logit_bias = LogitBias(config.vocabulary_size)
        if not config.tied_embeddings:
            self.head = Linear(embedding_width, config.vocabulary_size, bias=config.head_bias)
        if config.insertion_classes:
            self.edit_head = Edits(embedding_width, config.insertion_classes)

    @classmethod
    def random(
        cls,
        config: ModelConfig,
        *,
        seed: int,
        spread: float = 0.2,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """A model with random weights, the same for the same seed on every device.

        `spread` is the weights' standard deviation; the default gives tiny models logits that are
        far from flat, so that tests see a wrong weight or position.
        """
        network = cls(config).requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.normal_(0.0, spread, generator=generator)
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1.0)
        return network.to(device=device, dtype=dtype).eval()

    def quantize(self, bits: Bits) -> None:
        """Hold the weights of linear layers in so many bits, for inference. Embeddings, norms and
        layers whose width does not fit (`QuantizedLinear.fits`) stay as they are."""
        quantize_linears(self, bits)
        self._stack = None
        table = self.embedding
        if isinstance(table, QuantizedEmbedding):
            return  # it is the head's rows
        if self.config.tied_embeddings and QuantizedLinear.fits(table.weight):
            # Read out with 8 bits at least: the head decides between near-ties.
            self.quantized_head = QuantizedLinear(table.weight, None, 8)

    @property
    def cache_shapes(self) -> list[tuple[int, int]]:
        """(key/value heads, head width) of every layer."""
        config = self.config
        return [
            (config.num_kv_heads_of(layer), config.head_width_of(layer))
            for layer in range(len(config.layers))
        ]

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""
        table = self.embedding
        return table.dtype if isinstance(table, QuantizedEmbedding) else table.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where weights, activations and cache live."""
        table = self.embedding
        if isinstance(table, QuantizedEmbedding):
            return table.head.packed.device
        return table.weight.device

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        """Final hidden states [N, W], after the last norm (and projection, where there is one)."""
        x_NW: torch.Tensor = self._embed(batch)
        level_NC = None
        if self.config.modulation is not None:
            level_NC = self.noise_level(batch.noise_N, x_NW)
        last = batch.num_layers or len(self.layers)
        done, normed, norm = 0, False, self.final_norm
        rotations: dict[Rope, Rotation] = {}
        for stop in sorted({*(tap for tap in batch.taps if tap < last), last}):
            if self._stack is None:
                self._stack = LayerStack(self.config, list(self.layers))
            if pool is not None and self._stack.takes(x_NW, batch):
                fused = norm if stop == last and last not in batch.taps else None
                fused = fused if isinstance(fused, RmsNorm) else None
                normed = fused is not None
                x_NW = self._stack.run(x_NW, batch, pool, done, stop, fused)
            else:
                x_NW = self._run_layers(x_NW, batch, pool, rotations, done, stop, level_NC)
            if stop in batch.taps:
                batch.taps[stop] = x_NW
            done = stop
        if not normed:
            x_NW = norm(x_NW)
        if level_NC is not None:
            x_NW = modulated(x_NW, *self.final_modulation(level_NC).chunk(2, dim=-1))
        if self.config.embedding_width is not None:
            return self.project_out(x_NW)  # type: ignore[no-any-return]
        return x_NW

    def _run_layers(
        self,
        x_NW: torch.Tensor,
        batch: PackedBatch,
        pool: KeyValuePool | None,
        rotations: dict[Rope, Rotation],
        first: int,
        last: int,
        level_NC: torch.Tensor | None,
    ) -> torch.Tensor:
        """The residual stream after layers `first` to before `last`, by torch."""
        if not rotations:
            for kind in self.config.ropes:
                rotations[kind] = rotation(kind, batch.positions_N, x_NW.dtype)
        for index in range(first, last):
            rope = self.config.layers[index].rope
            turn = None if rope is None else rotations[rope]
            layer = cast(Layer, self.layers[index])
            x_NW = layer(x_NW, turn, batch, pool, level_NC)
            x_NW = layer.scaled(x_NW, batch.canvas_N)
        return x_NW

    def logits(self, hidden_MW: torch.Tensor, tokens_S: torch.Tensor | None = None) -> torch.Tensor:
        """float32 logits [M, V] of some rows of `hidden`; or [M, S], of these tokens alone."""
        if self.config.head_transform is not None:
            hidden_MW = self.head_transform(hidden_MW)
        if self.config.logit_scale != 1.0:
            hidden_MW = hidden_MW * self.config.logit_scale
        if self.quantized_head is not None:
            logits_MV: torch.Tensor = _of(self.quantized_head(hidden_MW).float(), tokens_S)
        elif self.config.tied_embeddings:
            weight = self.embedding.weight
            weight_SW = weight if tokens_S is None else weight[tokens_S]
            logits_MV = linear(hidden_MW, weight_SW).float()
        else:
            logits_MV = _of(self.head(hidden_MW).float(), tokens_S)
        if self.config.logit_bias:
            logits_MV = logits_MV + _of(self.logit_bias.bias, tokens_S)
        if self.config.logit_cap is not None:
            logits_MV = torch.tanh(logits_MV / self.config.logit_cap) * self.config.logit_cap
        return logits_MV

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """See Network: a plain decoder has no further heads."""
        raise AssertionError("this network has one prediction head")

    def edits(
        self, hidden_MW: torch.Tensor, behind_MW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 logits, for networks that edit, from rows of `hidden` and those of the tokens
        behind (zeros: there is none): of how many tokens are missing in between [M, counts], and of
        the row's own token not belonging where it is [M]."""
        return self.edit_head(hidden_MW, behind_MW)  # type: ignore[no-any-return]

    def embed(self, tokens_N: torch.Tensor) -> torch.Tensor:
        """The tokens' embeddings, scaled where the family scales them."""
        x_NW: torch.Tensor = self.embedding(tokens_N)
        if self.config.embedding_scale != 1.0:
            # Rounded to the weights' type first, as the models were trained.
            x_NW = x_NW * torch.tensor(self.config.embedding_scale, dtype=x_NW.dtype).item()
        return x_NW

    def mean_embedding(self, shares_MV: torch.Tensor) -> torch.Tensor:
        """See `core.batch.SelfConditionedNetwork`."""
        mean_MW = shares_MV.to(self.dtype) @ self.embedding.weight
        return mean_MW * torch.tensor(self.config.embedding_scale, dtype=self.dtype).item()

    def _embed(self, batch: PackedBatch) -> torch.Tensor:
        if batch.mixture is None:
            x_NW = self.embed(batch.tokens_N)
        else:
            ids_NK, weights_NK = batch.mixture
            x_NKW = self.embed(ids_NK)
            x_NW = (x_NKW * weights_NK.to(x_NKW.dtype)[..., None]).sum(1)
        config = self.config
        if config.self_conditioning and batch.canvas_N is not None:
            belief_NW = torch.zeros_like(x_NW)
            for first_row, rows_NW in batch.conditioning:
                belief_NW[first_row : first_row + len(rows_NW)] = rows_NW
            conditioned_NW = self.self_conditioning(x_NW, belief_NW)
            x_NW = torch.where(batch.canvas_N[:, None], conditioned_NW, x_NW)
        if config.embedding_width is not None:
            x_NW = self.project_in(x_NW)
        if config.learned_positions:
            x_NW = x_NW + self.positions(batch.positions_N + config.position_offset)
        if config.token_types:
            x_NW = x_NW + self.token_types.weight[0]
        if config.sinusoidal_positions:
            x_NW = x_NW + sinusoids(batch.positions_N, config.width).to(x_NW.dtype)
        if config.embedding_norm:
            x_NW = self.embedding_norm(x_NW)
        return x_NW


class LayerScale(nn.Module):
    """A number that a layer's output is multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


class SelfConditioning(nn.Module):
    """A canvas's embeddings with what the network believed of it before (arXiv 2208.04202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = make_norm(config, config.width)
        self.mlp = Mlp(config, config.mlp_width)
        self.epsilon = config.norm_epsilon

    def forward(self, x_NW: torch.Tensor, belief_NW: torch.Tensor) -> torch.Tensor:
        """Same shape as `x_NW`; beliefs are mean embeddings, zeros where there are none."""
        x_NW = x_NW + self.mlp(self.norm(belief_NW))
        return F.rms_norm(x_NW, x_NW.shape[-1:], eps=self.epsilon)


class HeadTransform(nn.Module):
    """What BERT has between its layers and its head: norm(activation(dense(x)))."""

    def __init__(self, config: ModelConfig, activation: Activation) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width, bias=config.head_transform_bias)
        self.activation = ACTIVATIONS[activation]
        self.norm = make_norm(config, config.width)

    def forward(self, x_MW: torch.Tensor) -> torch.Tensor:
        """Same shape as `x_MW`."""
        return self.norm(self.activation(self.dense(x_MW)))  # type: ignore[no-any-return]


class LogitBias(nn.Module):
    """A bias of logits beside any head, [V]."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))


def sinusoids(positions_N: torch.Tensor, width: int) -> torch.Tensor:
    """[N, width]: the sines of a position at falling frequencies, then its cosines."""
    steps = torch.arange(0, width, 2, dtype=torch.float64, device=positions_N.device)
    angles = positions_N[:, None] / 10_000 ** (steps / width)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def make_embedding(num_rows: int, width: int) -> nn.Embedding:
    """A table without values. nn.Embedding(num_rows, width) would draw some, for which torch, on
    the meta device, imports its compiler: a second or more of every cold start."""
    empty = torch.empty(num_rows, width)
    table: nn.Embedding = nn.Embedding.from_pretrained(empty, freeze=False)  # type: ignore[no-untyped-call]
    return table
