"""Medusa (arXiv 2401.10774): further prediction heads on a target's last hidden state.

Head h guesses the token h + 2 positions after its row's: residual blocks, x + SiLU(linear(x)), and
an unembedding of its own. Published checkpoints hold the heads alone, as
`{head}.{block}.linear.weight` and `{head}.{number of blocks}.weight`; some of the names start with
`medusa_head`. Pickled ones are refused.

Not here: the variant that trains the target along (its folder is that of a whole model).

Shape suffixes: M rows, W width, C heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.errors import CheckpointError
from anyorder.core.method import Abilities
from anyorder.model.backends.linear import Linear
from anyorder.model.drafters.network import save_drafter
from anyorder.model.fields import Fields
from anyorder.model.loading import fill
from anyorder.model.safetensors_folder import SafetensorsFolder, read_json
from anyorder.model.transformer import Transformer

_MOST = 64
_PREFIX = "medusa_head."


class ResidualBlock(nn.Module):
    """x + SiLU(linear(x))"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(width, width)

    def forward(self, x_MW: torch.Tensor) -> torch.Tensor:
        """Same shape as `x_MW`."""
        return x_MW + F.silu(self.linear(x_MW))


class MedusaHeads(nn.Module):
    """Several prediction heads that do not see each other."""

    def __init__(self, *, num_heads: int, num_blocks: int, width: int, vocabulary: int) -> None:
        super().__init__()

        def head() -> nn.Sequential:
            blocks = [ResidualBlock(width) for _ in range(num_blocks)]
            return nn.Sequential(*blocks, Linear(width, vocabulary, bias=False))

        self.each = nn.ModuleList(head() for _ in range(num_heads))

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, C, V]."""
        return torch.stack([head(hidden_MW) for head in self.each], dim=1).float()


class NetworkWithHeads:
    """A decoder and further prediction heads for it; implements `core.batch.Network`."""

    def __init__(self, base: Transformer, further: MedusaHeads) -> None:
        self.base = base
        self.further = further

    @property
    def cache_shapes(self) -> list[tuple[int, int]]:
        """The decoder's."""
        return self.base.cache_shapes

    @property
    def dtype(self) -> torch.dtype:
        """The decoder's."""
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        """The decoder's."""
        return self.base.device

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        """The decoder's final hidden states."""
        return self.base.hidden(batch, pool)

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """The decoder's logits of the next token."""
        return self.base.logits(hidden_MW)

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, C, V] of the tokens after the next."""
        return self.further.heads(hidden_MW)


def load_medusa(
    folder: Path, name: str, target: Transformer, host: Abilities
) -> tuple[NetworkWithHeads, Abilities]:
    """The target with the heads in a folder, in the target's type and place; CheckpointError if
    they do not fit."""
    fields = Fields(read_json(folder / "config.json"), str(folder / "config.json"))
    num_heads, num_blocks = fields.size("medusa_num_heads"), fields.integer("medusa_num_layers", 1)
    if max(num_heads, num_blocks) > _MOST:
        raise CheckpointError(
            f"{fields.origin} asks for {num_heads} heads of {num_blocks} blocks; at most {_MOST} "
            "of each are supported."
        )
    source = SafetensorsFolder(folder)
    present = set(source.names())
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in present) else ""
    config = target.config
    own = config.vocabulary_size, config.embedding_width or config.width
    first = f"{prefix}0.{num_blocks}.weight"
    given = source.shape(first) if first in present else own
    if given != own:
        raise CheckpointError(
            f"the Medusa heads {name} are for {' by '.join(map(str, given))} (tokens by "
            f"dimensions) and the target {host.name} has {own[0]} by {own[1]}; use heads trained "
            f"for {host.name}."
        )
    with torch.device("meta"):
        heads = MedusaHeads(
            num_heads=num_heads, num_blocks=num_blocks, width=own[1], vocabulary=own[0]
        )
    stems = {parameter.rpartition(".")[0] for parameter, _ in heads.named_parameters()}
    fill(
        heads,
        config,
        source,
        {stem: stem.removeprefix("each.") for stem in stems},
        prefix=prefix,
        owner=f"a set of {num_heads} Medusa heads",
        dtype=target.dtype,
        device=target.device,
    )
    return NetworkWithHeads(target, heads.eval()), replace(host, num_heads=num_heads)


def save_medusa(folder: Path, heads: MedusaHeads, fields: Mapping[str, Any]) -> None:
    """Write heads as `load_medusa` reads them; `fields` is their config.json."""
    tensors = {
        name.removeprefix("each."): parameter.detach().contiguous()
        for name, parameter in heads.named_parameters()
    }
    save_drafter(folder, tensors, fields, file="medusa_lm_head")
