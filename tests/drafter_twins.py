"""Drafters' networks once more, straight from their definitions: dense, slow, without a cache."""

from __future__ import annotations

import math

import torch

from tests.drafter_folders import HEAD_WIDTH, HEADS, KV_HEADS, SHAPE, VOCABULARY, Weights

EPSILON, BASE = SHAPE["rms_norm_eps"], SHAPE["rope_theta"]


def rms(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * scale


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def turned(head: torch.Tensor, positions: list[int]) -> torch.Tensor:
    """Rotary positions: dimension i and i + D/2 are a complex number, turned by its angle."""
    half = HEAD_WIDTH // 2
    numbers = torch.complex(head[:, :half], head[:, half:])
    speeds = torch.tensor([BASE ** (-i / half) for i in range(half)], dtype=torch.float64)
    angles = torch.tensor(positions, dtype=torch.float64)[:, None] * speeds
    numbers = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((numbers.real, numbers.imag), dim=-1)


def attention(
    weights: Weights,
    prefix: str,
    asking: torch.Tensor,
    asked: torch.Tensor,
    positions: tuple[list[int], list[int]],
    visible: torch.Tensor,
) -> torch.Tensor:
    """Head by head; `asking` rows read from `asked` rows."""
    queries = asking @ weights[f"{prefix}q_proj.weight"].T
    keys = asked @ weights[f"{prefix}k_proj.weight"].T
    values = asked @ weights[f"{prefix}v_proj.weight"].T
    mixed = []
    for head in range(HEADS):
        own = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
        group = head // (HEADS // KV_HEADS)
        shared = slice(group * HEAD_WIDTH, (group + 1) * HEAD_WIDTH)
        query, key = queries[:, own], keys[:, shared]
        if f"{prefix}q_norm.weight" in weights:
            query = rms(query, weights[f"{prefix}q_norm.weight"])
            key = rms(key, weights[f"{prefix}k_norm.weight"])
        scores = turned(query, positions[0]) @ turned(key, positions[1]).T / math.sqrt(HEAD_WIDTH)
        chances = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        mixed.append(chances @ values[:, shared])
    return torch.cat(mixed, dim=-1) @ weights[f"{prefix}o_proj.weight"].T


def mlp(weights: Weights, prefix: str, x: torch.Tensor) -> torch.Tensor:
    normed = rms(x, weights[f"{prefix}post_attention_layernorm.weight"])
    gate = silu(normed @ weights[f"{prefix}mlp.gate_proj.weight"].T)
    up = normed @ weights[f"{prefix}mlp.up_proj.weight"].T
    return x + (gate * up) @ weights[f"{prefix}mlp.down_proj.weight"].T


def llama(weights: Weights, tokens: list[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The residual stream before every layer and after the last; the final hidden state."""
    x = weights["model.embed_tokens.weight"][tokens]
    visible = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    places = list(range(len(tokens)))
    stream = [x]
    while f"model.layers.{len(stream) - 1}.mlp.up_proj.weight" in weights:
        prefix = f"model.layers.{len(stream) - 1}."
        normed = rms(x, weights[f"{prefix}input_layernorm.weight"])
        x = x + attention(weights, f"{prefix}self_attn.", normed, normed, (places, places), visible)
        x = mlp(weights, prefix, x)
        stream.append(x)
    return stream, rms(x, weights["model.norm.weight"])


def medusa(weights: Weights, num_heads: int, num_blocks: int, x: torch.Tensor) -> torch.Tensor:
    """Logits [rows, heads, vocabulary]."""
    found = []
    for head in range(num_heads):
        y = x
        for block in range(num_blocks):
            linear = f"{head}.{block}.linear"
            y = y + silu(y @ weights[f"{linear}.weight"].T + weights[f"{linear}.bias"])
        found.append(y @ weights[f"{head}.{num_blocks}.weight"].T)
    return torch.stack(found, dim=1)


def eagle(
    weights: Weights, embedding: torch.Tensor, tokens: list[int], features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A chain: tokens 1 .. n of a text with what the target made of tokens 0 .. m - 1 (m <= n);
    from there on every row reads the output of the one before. Output and logits of all rows."""
    fused = features @ weights["fc.weight"].T
    outputs: list[torch.Tensor] = []
    for length in range(len(features), len(tokens) + 1):
        below = torch.cat((fused, *[row[None] for row in outputs[len(features) - 1 :]]))[:length]
        embedded = embedding[tokens[:length]]
        inputs = torch.cat(
            (
                rms(embedded, weights["midlayer.input_layernorm.weight"]),
                rms(below, weights["midlayer.hidden_norm.weight"]),
            ),
            dim=-1,
        )
        places = list(range(length))
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        branch = attention(
            weights, "midlayer.self_attn.", inputs, inputs, (places, places), visible
        )
        outputs = list(mlp(weights, "midlayer.", below + branch))
    output = torch.stack(outputs)
    scores = rms(output, weights["norm.weight"]) @ weights["lm_head.weight"].T
    logits = torch.full((len(output), VOCABULARY), -torch.inf, dtype=torch.float64)
    for row, offset in enumerate(weights["d2t"].tolist()):
        logits[:, row + offset] = scores[:, row]
    return output, logits


def dflash(
    weights: Weights,
    embedding: torch.Tensor,
    head: torch.Tensor,
    block: list[int],
    features: torch.Tensor,
) -> torch.Tensor:
    """Logits of a block after a context whose features are given."""
    context = rms(features @ weights["fc.weight"].T, weights["hidden_norm.weight"])
    num_context, size = len(features), len(block)
    places = list(range(num_context + size))
    visible = torch.ones(size, num_context + size, dtype=torch.bool)
    x, layer = embedding[block], 0
    while f"layers.{layer}.mlp.up_proj.weight" in weights:
        prefix = f"layers.{layer}."
        normed = rms(x, weights[f"{prefix}input_layernorm.weight"])
        x = x + attention(
            weights,
            f"{prefix}self_attn.",
            normed,
            torch.cat((context, normed)),
            (places[num_context:], places),
            visible,
        )
        x = mlp(weights, prefix, x)
        layer += 1
    return rms(x, weights["norm.weight"]) @ head.T
