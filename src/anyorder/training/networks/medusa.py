"""Medusa heads for the target of [teacher] (arXiv 2401.10774), saved as the authors publish them.

Each head begins as the target's own output layer behind blocks that change nothing yet, as in the
paper, and so first guesses what the target does.

With `vocabulary`, heads have no output layer of their own: they score the tokens that are most
frequent among the training data's targets, with the target's rows for them. That is a hundredth of
the weights, in a layout of this package (`model/drafters/medusa.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch

from anyorder.core.options import Range
from anyorder.model.drafters.medusa import MedusaHeads, ResidualBlock, save_medusa
from anyorder.training.drafting import most_frequent, target_of, unembedding
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee


@dataclass(frozen=True, kw_only=True)
class Medusa(NetworkRecipe):
    """Further prediction heads for a frozen target."""

    needs_teacher: ClassVar[bool] = True

    heads: Annotated[int, Range(1, 64), "tokens after the next that are guessed"] = 4
    blocks: Annotated[int, Range(1, 8), "residual blocks of a head"] = 1
    vocabulary: Annotated[
        int | None,
        Range(2),
        "read out with the target's rows for so many tokens, the most frequent ones; none: an "
        "output layer of its own for each head",
    ] = None

    def make(self, surroundings: Surroundings) -> Trainee:
        """New heads."""
        target, abilities = target_of(surroundings, "medusa")
        weight_VW = unembedding(target)
        vocabulary, width = weight_VW.shape
        own_outputs = self.vocabulary is None
        heads = MedusaHeads(
            num_heads=self.heads,
            num_blocks=self.blocks,
            width=width,
            vocabulary=vocabulary,
            own_outputs=own_outputs,
        )
        heads.attach(target, most_frequent(surroundings, vocabulary, self.vocabulary))
        with torch.no_grad():
            for module in heads.modules():
                if isinstance(module, ResidualBlock):
                    module.linear.weight.zero_()
                    module.linear.bias.zero_()
            for name, parameter in heads.named_parameters():
                if own_outputs and name.endswith(f"{self.blocks}.weight"):
                    parameter.copy_(weight_VW)
        fields = {
            "medusa_num_heads": self.heads,
            "medusa_num_layers": self.blocks,
            "base_model_name_or_path": abilities.name,
            "hidden_size": width,
            "vocab_size": vocabulary,
        }
        if self.vocabulary is not None:
            fields["draft_vocab_size"] = min(self.vocabulary, vocabulary)
        return Trainee(
            network=heads, abilities=replace(abilities, num_heads=self.heads), fields=fields
        )

    def save(self, folder: Path, trainee: Trainee, tokenizer_folder: Path) -> None:
        """A folder for `anyorder.Engine(target, draft=folder)`."""
        assert isinstance(trainee.network, MedusaHeads), "make() made them"
        save_medusa(folder, trainee.network, trainee.fields)
