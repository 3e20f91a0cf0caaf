"""The least paged pool that satisfies `core.batch.KeyValuePool`, and batches of it by hand.

Pages are handed out in a scrambled order and uninitialised ones hold large numbers, so that a wrong
page, slot or mask shows.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from anyorder.core.batch import AttentionGroup, KeyValuePool, PackedBatch
from anyorder.model.transformer import Transformer

PAGE = 4


class Pool:
    """Keys and values of every layer in pages of four."""

    def __init__(self, network: Transformer, num_pages: int) -> None:
        self._layers = [
            torch.full((2, num_pages, PAGE, heads, width), 1e4, dtype=network.dtype)
            for heads, width in network.cache_shapes
        ]

    def write(
        self, layer: int, slots_N: torch.Tensor, keys_NGD: torch.Tensor, values_NGD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        flat = self._layers[layer].flatten(1, 2)
        flat[0, slots_N], flat[1, slots_N] = keys_NGD, values_NGD
        return keys_NGD, values_NGD

    def read(self, layer: int, pages_RP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._layers[layer][:, pages_RP].flatten(2, 3)
        return keys, values

    def pages(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._layers[layer]
        return keys, values

    def scales(self, layer: int) -> None:
        return None


class Cached:
    """Sequences whose tokens are run in pieces."""

    def __init__(
        self,
        network: Transformer,
        num_sequences: int,
        length: int,
        *,
        masks: bool = False,
        pool: KeyValuePool | None = None,
    ) -> None:
        self.network = network
        self.masks = masks
        """Say by a mask who sees whom, where it could be left out."""
        num_pages = -(-length // PAGE)
        self.pool = pool or Pool(network, num_sequences * num_pages)
        scrambled = torch.randperm(
            num_sequences * num_pages, generator=torch.Generator().manual_seed(0)
        )
        self.pages_SP = scrambled.view(num_sequences, num_pages)
        self.lengths = [0] * num_sequences

    def run(self, pieces: Seq[tuple[int, torch.Tensor]]) -> list[torch.Tensor]:
        """Logits [tokens, vocabulary] of new tokens, given as (sequence, ids); those of equal
        length are attended as one group."""
        ordered = sorted(pieces, key=lambda piece: len(piece[1]))
        positions = [
            torch.arange(self.lengths[sequence], self.lengths[sequence] + len(ids))
            for sequence, ids in ordered
        ]
        slots = [
            self.pages_SP[sequence][position // PAGE] * PAGE + position % PAGE
            for (sequence, _), position in zip(ordered, positions, strict=True)
        ]
        groups: list[AttentionGroup] = []
        row = 0
        for length in sorted({len(ids) for _, ids in pieces}):
            members = [index for index, piece in enumerate(ordered) if len(piece[1]) == length]
            queries_RQ = torch.stack([positions[index] for index in members])
            num_pages = int(queries_RQ.max()) // PAGE + 1
            keys_RK = torch.arange(num_pages * PAGE).expand(len(members), -1)
            visible_RQK = keys_RK[:, None, :] <= queries_RQ[:, :, None]
            groups.append(
                AttentionGroup(
                    first_row=row,
                    num_requests=len(members),
                    num_queries=length,
                    pages_RP=self.pages_SP[[ordered[index][0] for index in members], :num_pages],
                    query_positions_RQ=queries_RQ,
                    key_positions_RK=keys_RK if self.masks else None,
                    visible_RQK=visible_RQK if self.masks else None,
                )
            )
            row += length * len(members)
        batch = PackedBatch(
            tokens_N=torch.cat([ids for _, ids in ordered]),
            positions_N=torch.cat(positions),
            slots_N=torch.cat(slots),
            groups=tuple(groups),
        )
        logits_NV = self.network.logits(self.network.hidden(batch, self.pool))
        rows = torch.split(logits_NV, [len(ids) for _, ids in ordered])
        by_sequence = {sequence: part for (sequence, _), part in zip(ordered, rows, strict=True)}
        for sequence, ids in pieces:
            self.lengths[sequence] += len(ids)
        return [by_sequence[sequence] for sequence, _ in pieces]
