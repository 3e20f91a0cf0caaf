"""Encoder-decoders (arXiv 1706.03762): a decoder whose layers cross-attend to an encoder's output.

Both are the one stack (`transformer.Transformer`); the encoder has the decoder's embedding and no
head, and its batches let tokens see each other both ways. In training, the encoder's output is
handed to the decoder's batch as `core.batch.CrossMemory`. In inference the encoder is a model role
of its own (`Encoder`) whose cache holds what the decoder's layers read of it: their cross-attention
keys and values, computed once.

A network that fills in masks must know how many: the length head tells from the encoder's output at
a source's first token how long its target is, as one class a length (Mask-Predict, arXiv
1904.09324, reads it from a token added for that). One whose texts are paths through a graph of
vertices has links between them (`links.Links`).

Not here: encoders with an embedding of their own.

Shape suffixes: N packed tokens, M some of their rows, W width, L lengths.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import nn

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.model.config import ModelConfig
from anyorder.model.links import Links
from anyorder.model.transformer import Layer, Transformer


class EncoderDecoder(Transformer):
    """The decoder, with its encoder as a part."""

    def __init__(self, config: ModelConfig) -> None:
        assert config.encoder is not None, "an encoder-decoder has an encoder"
        super().__init__(config)
        self.encoder = Transformer(config.encoder)
        self.encoder.embedding = self.embedding
        if config.length_classes:
            self.length_head = nn.Linear(config.encoder.width, config.length_classes)
        if config.link_heads:
            self.link_head = Links(config.width, config.link_heads)

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """The encoder's output [N, W] for its own tokens, which see each other as the batch says:
        both ways, each document by itself."""
        assert all(group.visible_RQK is not None for group in batch.groups), (
            "an encoder's batch says who sees whom; without that it would be causal"
        )
        return self.encoder.hidden(batch)

    def length_logits(self, states_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, L] of the target's length, from rows of `encode`: the first token of
        each source."""
        assert self.config.length_classes, "this network does not predict lengths"
        return self.length_head(states_MW).float()  # type: ignore[no-any-return]

    def links(self, hidden_DLW: torch.Tensor, num_vertices_D: torch.Tensor) -> torch.Tensor:
        """Where paths through graphs of vertices go on, from rows of `hidden`: float32
        log-probabilities [D, L, L]. A path starts at a graph's first vertex."""
        return self.link_head(hidden_DLW, num_vertices_D)  # type: ignore[no-any-return]


class Encoder:
    """An encoder as the engine runs it; implements `core.batch.Network`."""

    def __init__(self, whole: EncoderDecoder) -> None:
        self._whole = whole

    @property
    def cache_shapes(self) -> list[tuple[int, int]]:
        """What the decoder's layers read: (key/value heads, head width) of each."""
        return self._whole.cache_shapes

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""
        return self._whole.dtype

    @property
    def device(self) -> torch.device:
        """Where weights, activations and cache live."""
        return self._whole.device

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None) -> torch.Tensor:
        """The encoder's output [N, W]. Writes every decoder layer's keys and values of it."""
        assert pool is not None and batch.slots_N is not None, "an encoder's pass fills a cache"
        states_NW = self._whole.encode(dataclasses.replace(batch, slots_N=None))
        for index, layer in enumerate(self._whole.layers):
            cross = cast(Layer, layer).cross
            assert cross is not None, "every layer of an encoder-decoder cross-attends"
            pool.write(index, batch.slots_N, *cross.keys_and_values(states_NW))
        return states_NW

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, L] of the target's length, for networks that predict it."""
        return self._whole.length_logits(hidden_MW)

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """See Network: an encoder has no further heads."""
        raise AssertionError("an encoder has no prediction heads")
