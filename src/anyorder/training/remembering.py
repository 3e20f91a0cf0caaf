"""A frozen model that keeps what it made of a row of the data, for later epochs and other runs.

A drafter is small beside its target, whose pass over the same rows in every epoch is most of what
its training takes. Rows are told apart by their tokens, positions and mask, and run one by one, so
that a row's hidden states have the same bits in whatever company. A file holds a row's, in the type
of the passes: for an EAGLE-3 drafter of a target 576 wide 4.6 kB a token in bfloat16. Nothing is
ever deleted.

Shape suffixes: B rows, T tokens each, N = B * T packed tokens, W width.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from anyorder.core.batch import KeyValuePool, PackedBatch, dense_batch
from anyorder.training.network import Trainee

_FINAL = "final"
_SAMPLE = 32
"""Numbers of each parameter that tell one model from another."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RememberingTeacher(Trainee):
    """A teacher whose `hidden` runs a row once."""

    folder: Path
    origin: bytes
    """Of the model whose states they are."""

    @classmethod
    def of(cls, teacher: Trainee, folder: Path) -> RememberingTeacher:
        """`teacher`, with what was made of rows in this folder."""
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.blake2b(digest_size=16)
        for name, parameter in teacher.network.named_parameters():
            sample = parameter.detach().flatten()[:_SAMPLE].float().cpu()
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(sample.numpy().tobytes())
        return cls(
            network=teacher.network,
            abilities=teacher.abilities,
            tokenizer=teacher.tokenizer,
            folder=folder,
            origin=digest.digest(),
        )

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        """As `Trainee.hidden`, for batches that `core.batch.dense_batch` makes of tokens alone."""
        assert pool is None, "a teacher reads whole rows"
        (group,) = batch.groups
        shape, visible_BTT = (group.num_requests, group.num_queries), group.visible_RQK
        tokens_BT, positions_BT = batch.tokens_N.view(shape), batch.positions_N.view(shape)
        found = []
        causal_TT = torch.ones(shape[1], shape[1], dtype=torch.bool, device=tokens_BT.device).tril()
        for row in range(len(tokens_BT)):
            visible_1TT = None
            if visible_BTT is not None:
                # It may be given once for all rows; or for the sake of others in the batch alone.
                visible_TT = visible_BTT[row % len(visible_BTT)]
                visible_1TT = None if torch.equal(visible_TT, causal_TT) else visible_TT[None]
            packed = dense_batch(tokens_BT[row][None], visible_1TT, positions_BT[row][None])
            packed.taps.update(batch.taps)
            found.append(self._row(packed))
        for layer in batch.taps:
            batch.taps[layer] = torch.cat([states[str(layer)] for states in found])
        return torch.cat([states[_FINAL] for states in found])

    def _row(self, packed: PackedBatch) -> dict[str, torch.Tensor]:
        """States [T, W] by layer, the final ones among them."""
        digest = hashlib.blake2b(self.origin, digest_size=16)
        visible_1TT = packed.groups[0].visible_RQK
        for part in (packed.tokens_N, packed.positions_N, visible_1TT):
            if part is not None:
                digest.update(part.cpu().contiguous().numpy().tobytes())
        file = self.folder / f"{digest.hexdigest()}.safetensors"
        wanted = {_FINAL, *map(str, packed.taps)}
        if file.exists():
            with safe_open(file, framework="pt", device=str(packed.tokens_N.device)) as states:
                if wanted <= set(states.keys()):
                    return {name: states.get_tensor(name) for name in wanted}
        made = {_FINAL: super().hidden(packed).detach()}
        made |= {str(layer): tap for layer, tap in packed.taps.items() if tap is not None}
        # Whole or not at all; and processes that share the work may write the same row.
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file({name: tensor.contiguous() for name, tensor in made.items()}, partial)
        partial.replace(file)
        return made
