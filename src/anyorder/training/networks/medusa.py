"""Medusa heads for the target of [teacher] (arXiv 2401.10774), saved as the authors publish them.

Each head begins as the target's own output layer behind blocks that change nothing yet, as in the
paper, and so first guesses what the target does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch

from anyorder.core.options import Range
from anyorder.model.drafters.medusa import MedusaHeads, ResidualBlock, save_medusa
from anyorder.training.drafting import target_of, unembedding
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee


@dataclass(frozen=True, kw_only=True)
class Medusa(NetworkRecipe):
    """Further prediction heads for a frozen target."""

    needs_teacher: ClassVar[bool] = True

    heads: Annotated[int, Range(1, 64), "tokens after the next that are guessed"] = 4
    blocks: Annotated[int, Range(1, 8), "residual blocks of a head"] = 1

    def make(self, surroundings: Surroundings) -> Trainee:
        """New heads."""
        target, abilities = target_of(surroundings, "medusa")
        weight_VW = unembedding(target)
        heads = MedusaHeads(
            num_heads=self.heads,
            num_blocks=self.blocks,
            width=weight_VW.shape[1],
            vocabulary=weight_VW.shape[0],
        )
        with torch.no_grad():
            for module in heads.modules():
                if isinstance(module, ResidualBlock):
                    module.linear.weight.zero_()
                    module.linear.bias.zero_()
            for name, parameter in heads.named_parameters():
                if name.endswith(f"{self.blocks}.weight"):
                    parameter.copy_(weight_VW)
        return Trainee(
            network=heads,
            abilities=replace(abilities, num_heads=self.heads),
            fields={
                "medusa_num_heads": self.heads,
                "medusa_num_layers": self.blocks,
                "base_model_name_or_path": abilities.name,
                "hidden_size": weight_VW.shape[1],
                "vocab_size": weight_VW.shape[0],
            },
        )

    def save(self, folder: Path, trainee: Trainee, tokenizer_folder: Path) -> None:
        """A folder for `anyorder.Engine(target, draft=folder)`."""
        assert isinstance(trainee.network, MedusaHeads), "make() made them"
        save_medusa(folder, trainee.network, trainee.fields)
