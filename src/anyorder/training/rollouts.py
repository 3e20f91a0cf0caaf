"""Texts drawn from the model that is being trained, many at once.

A plain batched loop with its own key/value cache: every text has a fixed stretch of one tensor, all
go on together, one that has ended is left out of the passes. Equal prompts are run once. What the
engine does beyond this (pages, chunks, admission, streams) training does not need.

A text depends on its place among the prompts and on the generator alone, not on its company.

Shape suffixes: R texts, N packed tokens, P prompts that differ, K places of a text, G key/value
heads, D head width, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from anyorder.core.batch import AttentionGroup, Network, PackedBatch
from anyorder.core.errors import UserError
from anyorder.core.forward import Outputs
from anyorder.core.method import Abilities
from anyorder.core.request import Request
from anyorder.sampling.draws import draw_on_device
from anyorder.sampling.row import Row
from anyorder.sampling.truncation import shape


class ContiguousCache:
    """Keys and values of R texts with room for K tokens each: page r is text r.

    Implements `core.batch.KeyValuePool`. Only the first `length` places are read."""

    def __init__(self, network: Network, *, num_texts: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = capacity
        # Zeros: attention multiplies what it does not see by zero, which must not be NaN.
        self._layers = [
            [
                torch.zeros(
                    (num_texts, capacity, heads, width), dtype=network.dtype, device=network.device
                )
                for _ in ("keys", "values")
            ]
            for heads, width in network.cache_shapes
        ]

    def write(
        self, layer: int, slots_N: torch.Tensor, keys_NGD: torch.Tensor, values_NGD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens' keys and values of one layer."""
        for stored, new_NGD in zip(self._layers[layer], (keys_NGD, values_NGD), strict=True):
            stored.flatten(0, 1).index_copy_(0, slots_N, new_NGD)
        return keys_NGD, values_NGD

    def read(self, layer: int, pages_RP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [R, K, G, D] of one layer; a view while all texts go on."""
        keys, values = (stored[:, : self.length] for stored in self._layers[layer])
        if len(pages_RP) == len(keys):
            return keys, values
        return keys[pages_RP[:, 0]], values[pages_RP[:, 0]]

    def pages(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of one layer."""
        keys, values = self._layers[layer]
        return keys, values

    def scales(self, layer: int) -> None:
        """They are stored as they are."""

    def spread(self, sources: Seq[int]) -> None:
        """Text r becomes a copy of what text sources[r] is now, one of each."""
        index = torch.tensor(sources, device=self._layers[0][0].device)
        for pair in self._layers:
            for stored in pair:
                stored.copy_(stored[index])


@torch.no_grad()
def generate(
    network: Network,
    abilities: Abilities,
    prompts: Seq[Seq[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    rng: torch.Generator,
    top_p: float = 1.0,
) -> list[list[int]]:
    """New tokens after each prompt, up to and with an end token. Temperature 0 takes the likeliest
    token, and draws nothing.

    Raises UserError for a prompt that is empty or leaves no room in the model's context.
    """
    if not prompts:
        return []
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    if shortest < 1 or longest + max_new_tokens > abilities.context_length:
        raise UserError(
            f"prompts of {shortest} to {longest} tokens and {max_new_tokens} new ones do not fit: "
            f"the context of {abilities.name} is {abilities.context_length} tokens, and a prompt "
            "has at least one; lower max_new_tokens or shorten the prompts."
        )
    places: dict[tuple[int, ...], int] = {}
    sources = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    cache = ContiguousCache(network, num_texts=len(prompts), capacity=longest + max_new_tokens)
    hidden_PW = _prefill(network, cache, list(places))
    cache.spread(sources)
    device = network.device
    hidden_RW = hidden_PW[torch.tensor(sources, device=device)]
    lengths_R = torch.tensor([len(prompt) for prompt in prompts], device=device)
    uniforms_RT = torch.empty(len(prompts), 0, dtype=torch.float64)
    if temperature > 0:
        uniforms_RT = torch.rand(
            (len(prompts), max_new_tokens), generator=rng, dtype=torch.float64
        ).to(device)
    ends = torch.tensor(sorted(abilities.end_tokens), device=device, dtype=torch.int64)
    going_R = torch.arange(len(prompts), device=device)
    texts: list[list[int]] = [[] for _ in prompts]
    for step in range(max_new_tokens):
        uniforms_R = uniforms_RT[going_R, step] if temperature > 0 else None
        tokens_R = _choose(network.logits(hidden_RW), uniforms_R, temperature, top_p)
        for text, token in zip(going_R.tolist(), tokens_R.tolist(), strict=True):
            texts[text].append(token)
        stays_R = ~torch.isin(tokens_R, ends)
        going_R, tokens_R = going_R[stays_R], tokens_R[stays_R]
        if not len(going_R) or step + 1 == max_new_tokens:
            break
        hidden_RW = _advance(network, cache, tokens_R, going_R, lengths_R[going_R] + step)
    return texts


def _prefill(
    network: Network, cache: ContiguousCache, prompts: Seq[tuple[int, ...]]
) -> torch.Tensor:
    """Final hidden states [P, W] of the prompts' last tokens; one group for each length."""
    device = network.device
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    groups, last, start = [], [0] * len(prompts), 0
    while start < len(order):
        length = len(prompts[order[start]])
        same = [place for place in order[start:] if len(prompts[place]) == length]
        rows = torch.arange(length, device=device).expand(len(same), length)
        groups.append(
            AttentionGroup(
                first_row=len(tokens),
                num_requests=len(same),
                num_queries=length,
                pages_RP=None,
                query_positions_RQ=rows,
                key_positions_RK=rows,
                visible_RQK=None,
            )
        )
        for place in same:
            tokens += prompts[place]
            positions += range(length)
            slots += range(place * cache.capacity, place * cache.capacity + length)
            last[place] = len(tokens) - 1
        start += len(same)
    batch = PackedBatch(
        tokens_N=torch.tensor(tokens, device=device),
        positions_N=torch.tensor(positions, device=device),
        slots_N=torch.tensor(slots, device=device),
        groups=tuple(groups),
    )
    return network.hidden(batch, cache)[torch.tensor(last, device=device)]


def _advance(
    network: Network,
    cache: ContiguousCache,
    tokens_R: torch.Tensor,
    texts_R: torch.Tensor,
    positions_R: torch.Tensor,
) -> torch.Tensor:
    """Final hidden states [R, W] of one more token each."""
    cache.length = int(positions_R.max()) + 1
    keys_K = torch.arange(cache.length, device=tokens_R.device)
    group = AttentionGroup(
        first_row=0,
        num_requests=len(tokens_R),
        num_queries=1,
        pages_RP=texts_R[:, None],
        query_positions_RQ=positions_R[:, None],
        key_positions_RK=keys_K.expand(len(tokens_R), -1),
        visible_RQK=keys_K <= positions_R[:, None, None],
    )
    batch = PackedBatch(
        tokens_N=tokens_R,
        positions_N=positions_R,
        slots_N=texts_R * cache.capacity + positions_R,
        groups=(group,),
    )
    return network.hidden(batch, cache)


def _choose(
    logits_RV: torch.Tensor, uniforms_R: torch.Tensor | None, temperature: float, top_p: float
) -> torch.Tensor:
    if uniforms_R is None:
        return logits_RV.argmax(-1)
    request = Request(prompt=(), temperature=temperature, top_p=top_p)
    row = Row(request=request, outputs=Outputs(), history=(), num_prompt=0, draw=())
    return draw_on_device(shape(logits_RV, [row] * len(logits_RV)), uniforms_R)
