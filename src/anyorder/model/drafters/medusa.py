"""Medusa (arXiv 2401.10774): further prediction heads on a target's last hidden state.

Head h guesses the token h + 2 positions after its row's: residual blocks, x + SiLU(linear(x)), and
an unembedding of its own. Published checkpoints hold the heads alone, as
`{head}.{block}.linear.weight` and `{head}.{number of blocks}.weight`; some of the names start with
`medusa_head`. Pickled ones are refused.

Where config.json has `draft_vocab_size`, which is this package's own addition, heads have no
unembedding: the tokens of `d2t` are read out with the target's rows (`draft_vocabulary`), so that a
head is its blocks, a hundredth of a published one for a small target with many words.

Not here: the variant that trains the target along (its folder is that of a whole model).

Shape suffixes: M rows, W width, C heads, S scored tokens, V vocabulary.
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
from anyorder.model.backends.linear import Linear, linear
from anyorder.model.drafters.draft_vocabulary import (
    MAPS,
    output_rows,
    read_scored,
    scored_tensors,
    spread,
)
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

    def __init__(
        self,
        *,
        num_heads: int,
        num_blocks: int,
        width: int,
        vocabulary: int,
        own_outputs: bool = True,
    ) -> None:
        super().__init__()

        def head() -> nn.Sequential:
            modules: list[nn.Module] = [ResidualBlock(width) for _ in range(num_blocks)]
            if own_outputs:
                modules.append(Linear(width, vocabulary, bias=False))
            return nn.Sequential(*modules)

        self.vocabulary = vocabulary
        self.own_outputs = own_outputs
        self.each = nn.ModuleList(head() for _ in range(num_heads))
        for name in ("rows_SW", "scored"):
            self.register_buffer(name, None, persistent=False)
        self.rows_SW: torch.Tensor | None
        """The target's rows that they read out with, where they have none of their own."""
        self.scored: torch.Tensor | None
        """The tokens of those rows; None: all, in order."""

    def attach(self, target: Transformer, scored: torch.Tensor | None) -> None:
        """Read these tokens (None: all) out as this target does, unless heads do so themselves."""
        if not self.own_outputs:
            self.scored, self.rows_SW = scored, output_rows(target, scored)

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, C, V]; minus infinity for what they do not score."""
        return spread(self.draft_logits(hidden_MW), self.scored, self.vocabulary)

    def draft_logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, C, S] of what they score."""
        outputs = [head(hidden_MW) for head in self.each]
        if self.rows_SW is not None:
            # One product for all heads.
            flat = linear(torch.cat(outputs), self.rows_SW).float()
            return flat.view(len(outputs), len(hidden_MW), -1).transpose(0, 1)
        return torch.stack(outputs, dim=1).float()


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

    def edits(
        self, hidden_MW: torch.Tensor, behind_MW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The decoder's; see `EditingNetwork`."""
        return self.base.edits(hidden_MW, behind_MW)


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
    own_outputs = not fields.has("draft_vocab_size")
    first = f"{prefix}0.{num_blocks if own_outputs else '0.linear'}.weight"
    expected = own if own_outputs else (own[1], own[1])
    given = source.shape(first) if first in present else expected
    if given != expected:
        raise CheckpointError(
            f"the Medusa heads {name} are for {' by '.join(map(str, given))} "
            f"({'tokens' if own_outputs else 'dimensions'} by dimensions) and the target "
            f"{host.name} has {expected[0]} by {expected[1]}; use heads trained for {host.name}."
        )
    with torch.device("meta"):
        heads = MedusaHeads(
            num_heads=num_heads,
            num_blocks=num_blocks,
            width=own[1],
            vocabulary=own[0],
            own_outputs=own_outputs,
        )
    stems = {parameter.rpartition(".")[0] for parameter, _ in heads.named_parameters()}
    fill(
        heads,
        config,
        source,
        {stem: stem.removeprefix("each.") for stem in stems},
        prefix=prefix,
        owner=f"a set of {num_heads} Medusa heads",
        ignored=() if own_outputs else MAPS,
        dtype=target.dtype,
        device=target.device,
    )
    if not own_outputs:
        scored = read_scored(source, fields.size("draft_vocab_size"), own[0])
        heads.attach(target, None if scored is None else scored.to(target.device))
    decoding = {**host.decoding, "speculative": {"drafter": "medusa"}}
    able = replace(host, num_heads=num_heads, decoding=decoding)
    return NetworkWithHeads(target, heads.eval()), able


def save_medusa(folder: Path, heads: MedusaHeads, fields: Mapping[str, Any]) -> None:
    """Write heads as `load_medusa` reads them; `fields` is their config.json."""
    tensors = {
        name.removeprefix("each."): parameter.detach().contiguous()
        for name, parameter in heads.named_parameters()
    }
    tensors |= scored_tensors(heads.scored, heads.vocabulary)
    save_drafter(folder, tensors, fields, file="medusa_lm_head")
