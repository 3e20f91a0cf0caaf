"""The packed batch: what the engine hands to a model for one forward pass.

All tokens of all requests lie one behind the other, without padding. Attention alone needs to
know where one request ends and the next begins; it gets a list of groups, each a contiguous range
of rows that is attended as one padded batch.

Shape suffixes: N packed tokens, R requests in a group, Q queries per request, K keys per request
(padded to whole pages), P pages per request, H query heads, G key/value heads, D head width,
S tokens of an encoder, W width, T rows of a page table, M entries of masks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossMemory:
    """What a group's tokens read of an encoder: its output, or keys and values made of it."""

    states_RSW: torch.Tensor | None = None
    """The encoder's output; keys and values are computed from it (training)."""
    pages_RP: torch.Tensor | None = None
    """int64; pages of `pool` that hold keys and values of every layer (inference). One tensor for
    all layers of a pass."""
    pool: KeyValuePool | None = None
    """Where `pages_RP` are: the encoder's, not that of the pass."""
    visible_RQS: torch.Tensor | None = None
    """bool, its first two dimensions may be 1; which of the group's tokens see which of the
    encoder's. A token that sees none reads their mean. None: all see all."""
    masks: dict[object, torch.Tensor | None] = field(default_factory=dict)
    """Filled by attention, as in AttentionGroup."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionGroup:
    """Requests with the same number of new tokens, attended together."""

    first_row: int
    num_requests: int
    num_queries: int
    """Packed rows first_row .. first_row + num_requests * num_queries belong to the group, request
    by request."""
    pages_RP: torch.Tensor | None
    """int64; page ids in order of position. None: keys are the group's own new tokens and nothing
    is read from the pool (fresh prompts, training)."""
    page_rows_R: torch.Tensor | None = None
    """int64; which row of `pages_RP`, the table of all sequences' pages, each request has. None:
    one row for each, in their order."""
    query_positions_RQ: torch.Tensor
    """int64"""
    key_positions_RK: torch.Tensor | None
    """int64; undefined where `visible_RQK` is false for every query. None: keys lie in pages in
    order of position, but for the new ones, which are where their queries are."""
    window_positions_RQ: torch.Tensor | None = None
    """int64; where queries measure windows from, if not from where they stand."""
    visible_RQK: torch.Tensor | None
    """bool; None means causal: over keys = queries without a past, or with pages over what they
    hold up to each query's position."""
    past_R: torch.Tensor | None = None
    """int64; how many keys lie in pages before those that `visible_RQK` tells of: it then tells of
    the new ones alone, and all before them are seen. None: it tells of all keys."""
    memory: CrossMemory | None = None
    """Decoders behind an encoder: what to cross-attend to."""
    masks: dict[object, torch.Tensor | None] = field(default_factory=dict)
    """Filled by attention: masks shared by all layers of one kind, for the time of this pass."""

    @property
    def rows(self) -> slice:
        """The packed rows of this group."""
        return slice(self.first_row, self.first_row + self.num_requests * self.num_queries)

    @cached_property
    def own_pages_RP(self) -> torch.Tensor | None:
        """`pages_RP` of this group's requests alone; a copy of the table's rows."""
        if self.pages_RP is None or self.page_rows_R is None:
            return self.pages_RP
        return self.pages_RP[self.page_rows_R]


@dataclass(frozen=True, kw_only=True, eq=False)
class RaggedRows:
    """All requests of a pass, however long each, for kernels that attend them in one call.

    A request's keys are those of its cached tokens, which lie in its pages, are where they stand in
    them and are seen by all its new tokens, and behind them those of its new tokens, which lie in
    the batch's slots. Every row of the batch belongs to one request.
    """

    requests_R5: torch.Tensor
    """int64; first packed row, number of rows, number of cached tokens, row of `pages_TP`, and
    where in `visible_M` its mask begins (-1: its new tokens see causally). By first row."""
    pages_TP: torch.Tensor
    """int64; page ids in order of position, a row for each sequence."""
    visible_M: torch.Tensor
    """bool; the masks one behind the other, each rows by rows of its request."""
    window_positions_N: torch.Tensor
    """int64; where tokens measure windows from."""
    most_rows: int
    """Of any request."""
    most_keys: int
    """Of any request; at least 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch:
    """One forward pass of one model."""

    tokens_N: torch.Tensor
    """int64"""
    positions_N: torch.Tensor
    """int64"""
    slots_N: torch.Tensor | None
    """int64; where each token's key and value go: page * page_size + offset. None: not stored."""
    groups: tuple[AttentionGroup, ...]
    """Empty where there is `ragged`."""
    ragged: RaggedRows | None = None
    num_layers: int | None = None
    """Run only so many of the lower layers; None: all."""
    taps: dict[int, torch.Tensor | None] = field(default_factory=dict)
    """The residual stream [N, width] after so many layers, filled in by the network for the keys
    that are there."""
    conditioning: tuple[tuple[int, torch.Tensor], ...] = ()
    """What stretches of rows are conditioned on, by their first row: [rows, any width]."""
    canvas_N: torch.Tensor | None = None
    """bool; which tokens are a noisy canvas, for networks that tell it from text. None: none."""
    noise_N: torch.Tensor | None = None
    """float32; which share of the canvas that each token belongs to is noise, for networks that
    look at it. None: they read no noise."""
    mixture: tuple[torch.Tensor, torch.Tensor] | None = None
    """Ids and weights [N, K each]: the network reads weighted sums of these tokens' embeddings, in
    place of the embeddings of `tokens_N` (training)."""


class KeyValuePool(Protocol):
    """Pages of keys and values of one model; attention's view of `cache.pool`."""

    def write(
        self, layer: int, slots_N: torch.Tensor, keys_NGD: torch.Tensor, values_NGD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens' keys and values of one layer. Returns them as `read` will give
        them, which is what the new tokens themselves must see."""

    def read(self, layer: int, pages_RP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [R, K, G, D] of one layer, K = P * page_size; a view where it can be."""

    def pages(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of one layer, [pages, page_size, G, D] without gaps. They stay where
        they are in memory as long as the pool is: kernels keep their addresses."""

    def scales(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where `pages` holds int8: what keys and values are to be multiplied by, float32 [pages,
        page_size, G] without gaps. None: they are of the network's type, as they are."""


class Network(Protocol):
    """A decoder as the engine sees it."""

    @property
    def cache_shapes(self) -> list[tuple[int, int]]:
        """(key/value heads, head width) of every layer that caches."""

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""

    @property
    def device(self) -> torch.device:
        """Where weights, activations and cache live."""

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None) -> torch.Tensor:
        """Final hidden states [N, width] (after the last norm). Writes new keys and values first,
        then attends, layer by layer."""

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, vocabulary] of some rows of `hidden`."""

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, heads, vocabulary] of further prediction heads, for networks that
        have some: head h guesses the token h + 2 positions after its row's."""


class SelfConditionedNetwork(Network, Protocol):
    """A decoder that reads what it believed of a canvas before (`Outputs.belief`)."""

    def mean_embedding(self, shares_MV: torch.Tensor) -> torch.Tensor:
        """[M, width]; the mean of tokens' embeddings with these weights."""


class LinkedNetwork(Network, Protocol):
    """A decoder that writes a graph of vertices in one pass (`Abilities.num_links`)."""

    def links(self, hidden_DLW: torch.Tensor, num_vertices_D: torch.Tensor) -> torch.Tensor:
        """Where paths through graphs of vertices go on, from rows of `hidden`: float32
        log-probabilities [D, L, L], -inf where not possible."""


class EditingNetwork(Network, Protocol):
    """A decoder that tells what its text lacks and what does not belong there
    (`Abilities.num_insertions`)."""

    def edits(
        self, hidden_MW: torch.Tensor, behind_MW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 logits, from rows of `hidden` and those of the tokens behind (zeros: there is
        none): of how many tokens are missing in between [M, counts], and of the row's own token not
        belonging where it is [M]."""


def dense_batch(
    tokens_BT: torch.Tensor,
    visible_BTT: torch.Tensor | None = None,
    positions_BT: torch.Tensor | None = None,
    *,
    memory: CrossMemory | None = None,
) -> PackedBatch:
    """B sequences of equal length T from position 0, without a cache: for training and tests.

    `visible_BTT` (bool; its first dimension may be 1) says which tokens see which; None is causal.
    `positions_BT` are other positions, such as those within packed documents. `memory` is what an
    encoder-decoder's decoder reads of its encoder: `CrossMemory(states_RSW=..., visible_RQS=...)`
    with the output of `encode`, one row a sequence.
    """
    import torch

    num_sequences, length = tokens_BT.shape
    if positions_BT is None:
        positions_BT = torch.arange(length, device=tokens_BT.device).expand(num_sequences, length)
    group = AttentionGroup(
        first_row=0,
        num_requests=num_sequences,
        num_queries=length,
        pages_RP=None,
        query_positions_RQ=positions_BT,
        key_positions_RK=positions_BT,
        visible_RQK=visible_BTT,
        memory=memory,
    )
    return PackedBatch(
        tokens_N=tokens_BT.flatten(),
        positions_N=positions_BT.flatten(),
        slots_N=None,
        groups=(group,),
    )
