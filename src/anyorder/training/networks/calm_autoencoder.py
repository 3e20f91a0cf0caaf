"""CALM's autoencoder (arXiv 2510.27688): patches of tokens to vectors and back; always new."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyorder.core import lookup
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.options import Range
from anyorder.core.vectors import VectorObjective
from anyorder.model.calm_autoencoder import AutoencoderSizes, start
from anyorder.model.calm_autoencoder import CalmAutoencoder as Network
from anyorder.model.plain_folder import save_plain
from anyorder.training.calm import CalmTrainee
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee


@dataclass(frozen=True, kw_only=True)
class CalmAutoencoder(NetworkRecipe):
    """Sizes of a new autoencoder."""

    patch_size: Annotated[int, Range(1, 64), "tokens of a patch, which becomes one vector"] = 4
    width: Annotated[int, Range(8), "of the embedding and the layers"] = 512
    mlp_width: Annotated[int | None, Range(1), "of the MLPs; none: 8/3 of width"] = None
    latent_width: Annotated[int, Range(1), "of a patch's vector"] = 128

    def make(self, surroundings: Surroundings) -> Trainee:
        """A new one."""
        tokenizer, objective = surroundings.tokenizer, surroundings.objective
        if not isinstance(objective, VectorObjective):
            raise UserError(
                "[model] kind calm_autoencoder is trained by the objective calm_autoencoder, got "
                f"{lookup.name_of(objective)}."
            )
        if not tokenizer.end_tokens:
            raise UserError(
                "a text's last patch is filled up with end tokens, and the tokenizer has none; use "
                "another one."
            )
        sizes = AutoencoderSizes(
            vocab_size=tokenizer.vocabulary_size,
            patch_size=self.patch_size,
            hidden_size=self.width,
            intermediate_size=self.mlp_width or -(-self.width * 8 // (3 * 32)) * 32,
            latent_size=self.latent_width,
            fill_token_id=min(tokenizer.end_tokens),
        )
        network = Network(sizes)
        start(network.named_parameters(), seed=surroundings.seed)
        abilities = Abilities(
            name="the recipe's autoencoder",
            vocabulary_size=sizes.vocab_size,
            context_length=surroundings.length,
            end_tokens=tokenizer.end_tokens,
            kind="calm_autoencoder",
        )
        return CalmTrainee(network=network, abilities=abilities, fields=sizes.fields())

    def save(self, folder: Path, trainee: Trainee, tokenizer_folder: Path) -> None:
        """A folder for `model.calm_autoencoder.load_autoencoder`."""
        save_plain(folder, trainee.network, trainee.fields, tokenizer_folder)
