"""What the recipes of drafters' networks share: the target they are made for, and first weights.

Shape suffixes: W width, V vocabulary, S tokens that a drafter scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from anyorder.core import lookup
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.model.config import ModelConfig
from anyorder.model.saving import llama_fields
from anyorder.model.transformer import Transformer
from anyorder.training.network import Surroundings

_SPREAD = 0.02
"""Standard deviation of new weights, as of a new decoder's."""


def target_of(surroundings: Surroundings, objective: str) -> tuple[Transformer, Abilities]:
    """The frozen target and what it can do; UserError where the recipe's objective is not the one
    that the drafter learns by."""
    given = lookup.name_of(surroundings.objective)
    if given != objective:
        raise UserError(f"this [model] kind is trained with objective {objective}, got {given}.")
    teacher = surroundings.teacher
    assert teacher is not None, "a recipe without a teacher is refused"
    assert isinstance(teacher.network, Transformer), "a teacher is a decoder"
    return teacher.network, teacher.abilities


def most_frequent(
    surroundings: Surroundings, vocabulary: int, count: int | None
) -> torch.Tensor | None:
    """So many of the vocabulary's tokens, those that are most often targets, int64 [S] in order;
    None: all of them."""
    if count is None or count >= vocabulary:
        return None
    order = surroundings.counts(vocabulary).argsort(descending=True, stable=True)
    return order[:count].sort().values


def unembedding(target: Transformer) -> torch.Tensor:
    """What its logits are made with, float32 [V, W]."""
    head = target.embedding if target.config.tied_embeddings else target.head
    return head.weight.detach().float().cpu()


def layer_fields(config: ModelConfig, *, num_layers: int, mlp_width: int | None) -> dict[str, Any]:
    """config.json of a drafter's layers, in LLaMA's words: sizes are the target's."""
    fields = llama_fields(
        vocabulary_size=config.vocabulary_size,
        width=config.width,
        num_layers=num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        mlp_width=mlp_width or config.mlp_width,
        context_length=config.context_length,
        tied_embeddings=False,
        end_token=min(config.end_tokens, default=None),
    )
    base = config.ropes[0].base if config.ropes else fields["rope_theta"]
    epsilon = config.norm_epsilon
    return {**fields, "head_dim": config.head_width, "rope_theta": base, "rms_norm_eps": epsilon}


@torch.no_grad()
def start(network: nn.Module, seed: int) -> None:
    """First weights: norms 1, biases 0, matrices small and random, those that end a branch of the
    residual stream smaller the more layers there are (GPT-2)."""
    generator = torch.Generator().manual_seed(seed)
    layers = getattr(network, "layers", ())
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, _SPREAD, generator=generator)
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                parameter.mul_((2 * max(len(layers), 1)) ** -0.5)
