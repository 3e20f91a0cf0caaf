"""CALM (arXiv 2510.27688): a new stack and head around a trained autoencoder.

The autoencoder stays as it is, and is saved along, so that the finished folder is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.method import Abilities
from anyorder.core.options import Range
from anyorder.core.vectors import VectorObjective
from anyorder.model.calm import MODEL_TYPE, make_calm
from anyorder.model.calm_autoencoder import load_autoencoder
from anyorder.model.plain_folder import save_plain
from anyorder.model.saving import llama_fields
from anyorder.training.calm import CalmTrainee
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee


@dataclass(frozen=True, kw_only=True)
class Calm(NetworkRecipe):
    """The autoencoder's folder and the sizes of the rest."""

    autoencoder: Annotated[str, "folder of a trained one; its tokenizer is used"]
    width: Annotated[int, Range(8), "of the residual stream"]
    layers: Annotated[int, Range(1, 1000), "attention and MLP layers"]
    heads: Annotated[int, Range(1), "query heads"]
    kv_heads: Annotated[int | None, Range(1), "key/value heads; none: as many as heads"] = None
    mlp_width: Annotated[int | None, Range(1), "of the MLP; none: 8/3 of width"] = None
    context: Annotated[int | None, Range(2), "longest text in tokens; none: [data] length"] = None
    noise_width: Annotated[int, Range(1), "uniform numbers behind each draw of a vector"] = 64
    head_layers: Annotated[int, Range(1, 64), "MLP blocks of the head that draws"] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (2 * self.heads) or self.heads % (self.kv_heads or self.heads):
            raise InvalidRequest(
                "[model] width must be an even multiple of heads and heads a multiple of kv_heads, "
                f"got {self.width}, {self.heads} and {self.kv_heads or self.heads}."
            )

    @property
    def source(self) -> str | None:
        """The autoencoder, for its tokenizer."""
        return self.autoencoder

    @property
    def longest(self) -> int | None:
        """The context, where it is given."""
        return self.context

    def make(self, surroundings: Surroundings) -> Trainee:
        """A new one around the autoencoder, whose weights are not trained."""
        objective, tokenizer = surroundings.objective, surroundings.tokenizer
        if not isinstance(objective, VectorObjective):
            raise UserError(
                "[model] kind calm is trained by the objective calm_energy, got "
                f"{lookup.name_of(objective)}."
            )
        autoencoder = load_autoencoder(Path(surroundings.locate(self.autoencoder)))
        sizes = autoencoder.sizes
        context = self.context or surroundings.length
        fields = llama_fields(
            vocabulary_size=sizes.vocab_size,
            width=self.width,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads or self.heads,
            mlp_width=self.mlp_width or -(-self.width * 8 // (3 * 32)) * 32,
            context_length=context,
            tied_embeddings=True,
            end_token=sizes.fill_token_id,
        )
        fields |= {
            "architectures": ["AnyorderCalm"],
            "model_type": MODEL_TYPE,
            "patch_size": sizes.patch_size,
            "latent_size": sizes.latent_size,
            "noise_size": self.noise_width,
            "num_mlp_layers": self.head_layers,
            "autoencoder": sizes.fields(),
        }
        network = make_calm(fields, autoencoder, seed=surroundings.seed)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not name.startswith("autoencoder."))
        abilities = Abilities(
            name="the recipe's model",
            vocabulary_size=sizes.vocab_size,
            context_length=context,
            end_tokens=tokenizer.end_tokens,
            kind="calm",
        )
        return CalmTrainee(network=network, abilities=abilities, fields=fields)

    def save(self, folder: Path, trainee: Trainee, tokenizer_folder: Path) -> None:
        """A folder for `model.calm.load_calm`."""
        save_plain(folder, trainee.network, trainee.fields, tokenizer_folder)
