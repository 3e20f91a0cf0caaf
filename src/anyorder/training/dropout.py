"""Dropout (Srivastava et al., 2014) for networks that are trained on little data.

A share of the embeddings' elements and of what each branch of a layer adds to the residual stream
is zeroed, and the rest scaled up to make good for it, as in "Attention is all you need" (arXiv
1706.03762). Only passes with gradients have it: validation, first guesses and rollouts do not.
Networks themselves know nothing of it; attention weights are left alone.

Shape suffixes: N packed tokens, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.core.errors import UserError
from anyorder.model.transformer import Layer, Transformer


def add_dropout(network: nn.Module, share: float) -> None:
    """Let the network's passes drop this share."""

    def drop(module: nn.Module, given: object, found_NW: torch.Tensor) -> torch.Tensor:
        return F.dropout(found_NW, share) if torch.is_grad_enabled() else found_NW

    stacks = [module for module in network.modules() if isinstance(module, Transformer)]
    if not stacks:
        raise UserError("[run] dropout is for networks with layers of a transformer.")
    branches: list[nn.Module | None] = [stack.embedding for stack in stacks]
    for stack in stacks:
        for layer in cast(Sequence[Layer], stack.layers):
            branches += [layer.attention, layer.cross, layer.mlp]
    for branch in dict.fromkeys(branches):  # an embedding may be two stacks'
        if branch is not None:
            branch.register_forward_hook(drop)


@contextmanager
def drawn_by(rng: torch.Generator) -> Iterator[None]:
    """What is dropped follows from the generator's seed, and torch's own generators are left as
    they were."""
    with torch.random.fork_rng():
        torch.manual_seed(rng.initial_seed())
        yield
