"""A DFlash drafter for the target of [teacher] (arXiv 2602.06036), saved as published ones are.

A few layers of Qwen3's kind of the target's width; they read as many of the target's layers, evenly
spaced, as there are of them. Embedding and output layer are the target's own. The mask token is the
tokenizer's, or any that never occurs in texts: the drafter learns what it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.options import Range
from anyorder.model.architectures.qwen3 import Qwen3
from anyorder.model.drafters.dflash import DFlash, save_dflash
from anyorder.model.fields import Fields
from anyorder.training.drafting import layer_fields, start, target_of
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee


@dataclass(frozen=True, kw_only=True)
class Dflash(NetworkRecipe):
    """Bidirectional layers that fill in a block after what a frozen target has read."""

    needs_teacher: ClassVar[bool] = True

    layers: Annotated[int, Range(1, 100), "of the drafter, and of the target that it reads"] = 2
    block_size: Annotated[int, Range(2, 256), "the last token and the masks after it"] = 8
    mlp_width: Annotated[int | None, Range(1), "of the MLP; none: as the target's"] = None
    mask_token: Annotated[int | None, Range(0), "its id; none: the tokenizer's mask token"] = None

    def make(self, surroundings: Surroundings) -> Trainee:
        """A new drafter."""
        target, host = target_of(surroundings, "block_drafter")
        mask_token = self.mask_token
        if mask_token is None:
            mask_token = surroundings.tokenizer.mask_token
        if mask_token is None or mask_token >= host.vocabulary_size:
            raise UserError(
                f"a DFlash drafter needs a mask token, and {host.name} has none; give [model] "
                f"mask_token, the id (below {host.vocabulary_size}) of a token that never occurs."
            )
        num_layers = len(target.config.layers)
        read = _evenly(num_layers, self.layers)
        fields = {
            **layer_fields(target.config, num_layers=self.layers, mlp_width=self.mlp_width),
            "model_type": "qwen3",
            "architectures": ["DFlashDraftModel"],
            "block_size": self.block_size,
            "num_target_layers": num_layers,
            "dflash_config": {"target_layer_ids": list(read), "mask_token_id": mask_token},
        }
        config = Qwen3.config(Fields(fields, "[model] of the recipe"))
        network = DFlash(config, num_features=len(read))
        start(network, surroundings.seed)
        network.attach(target)
        abilities = Abilities(
            name="the recipe's drafter",
            vocabulary_size=host.vocabulary_size,
            context_length=config.context_length,
            mask_token=mask_token,
            attention=frozenset({"bidirectional"}),
            kind="dflash",
            features=tuple(layer + 1 for layer in read),
            block_size=self.block_size,
        )
        return Trainee(network=network, abilities=abilities, fields=fields)

    def save(self, folder: Path, trainee: Trainee, tokenizer_folder: Path) -> None:
        """A folder for `anyorder.Engine(target, draft=folder)`."""
        assert isinstance(trainee.network, DFlash), "make() made one"
        save_dflash(folder, trainee.network, trainee.fields)


def _evenly(num_layers: int, count: int) -> tuple[int, ...]:
    """Layers from the second to the last but two, as far apart as can be; or one, in the middle."""
    first, last = min(1, num_layers - 1), max(num_layers - 3, 0)
    if count == 1 or last <= first:
        return (num_layers // 2,)
    return tuple(round(first + place * (last - first) / (count - 1)) for place in range(count))
