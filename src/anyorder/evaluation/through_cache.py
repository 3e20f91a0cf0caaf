"""What a cache of another type costs: a model that reads its keys and values back from one.

In the engine a token sees what the cache holds of others and of itself, however a text is cut into
passes. A pass over whole texts that stores its keys and values first sees the same.
"""

from __future__ import annotations

import dataclasses

import torch

from anyorder.core.batch import KeyValuePool, Network, PackedBatch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.engine.roles import Role, open_role


class ThroughCache(torch.nn.Module):
    """A decoder whose passes over fresh texts go through a cache, for evaluation only."""

    def __init__(self, network: Network, abilities: Abilities, cache_dtype: str) -> None:
        """UserError for an encoder-decoder, and for a type that there is no cache of."""
        super().__init__()
        if abilities.source_length:
            raise UserError(
                f"{abilities.name} is an encoder-decoder, and pairs are measured without a "
                "cache; leave --cache-dtype out."
            )
        self._network = network
        self._abilities = abilities
        self._dtype = cache_dtype
        self._role = self._open(1)

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        """Final hidden states [N, W]."""
        assert pool is None and batch.slots_N is None, "fresh texts"
        num_tokens = len(batch.tokens_N)
        if self._role.num_cache_tokens < num_tokens:
            self._role = self._open(num_tokens)
        slots_N = torch.arange(num_tokens, device=batch.tokens_N.device)
        stored = dataclasses.replace(batch, slots_N=slots_N)
        return self._network.hidden(stored, self._role.pool)

    def logits(self, hidden_MW: torch.Tensor, tokens_S: torch.Tensor | None = None) -> torch.Tensor:
        """float32 logits [M, V], or [M, S] of these tokens alone."""
        logits_MV = self._network.logits(hidden_MW)
        return logits_MV if tokens_S is None else logits_MV[:, tokens_S]

    def _open(self, num_tokens: int) -> Role:
        return open_role(
            "target",
            self._network,
            self._abilities,
            num_cache_tokens=num_tokens,
            cache_dtype=self._dtype,
        )
