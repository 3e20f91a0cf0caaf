"""An EAGLE-3 drafter for the target of [teacher] (arXiv 2503.01840), saved as published ones are.

One LLaMA layer of the target's width. It scores the tokens that are most frequent among the
training data's targets (`vocabulary`, d2t in the checkpoint), or all; its output layer begins as
the target's rows for them. Every embedding is the target's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch

from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.options import Range
from anyorder.model.architectures.llama import Llama
from anyorder.model.drafters.eagle import Eagle as Network
from anyorder.model.drafters.eagle import save_eagle, usual_features
from anyorder.model.fields import Fields
from anyorder.training.drafting import layer_fields, start, target_of, unembedding
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee


@dataclass(frozen=True, kw_only=True)
class Eagle(NetworkRecipe):
    """A layer that goes on from a frozen target's hidden states."""

    needs_teacher: ClassVar[bool] = True

    vocabulary: Annotated[
        int | None, Range(2), "tokens it scores, the most frequent ones; none: all"
    ] = None
    mlp_width: Annotated[int | None, Range(1), "of the MLP; none: as the target's"] = None

    def make(self, surroundings: Surroundings) -> Trainee:
        """A new drafter."""
        target, host = target_of(surroundings, "eagle")
        num_layers = len(target.config.layers)
        if num_layers < 4:
            raise UserError(
                f"EAGLE-3 reads three layers of its target, the last but two among them; "
                f"{host.name} has {num_layers} in all, and 4 are needed."
            )
        num_scored = host.vocabulary_size
        scored = None
        if self.vocabulary is not None and self.vocabulary < num_scored:
            order = surroundings.counts(num_scored).argsort(descending=True, stable=True)
            num_scored = self.vocabulary
            scored = order[:num_scored].sort().values
        fields = {
            **layer_fields(target.config, num_layers=1, mlp_width=self.mlp_width),
            "model_type": "llama",
            "architectures": ["LlamaForCausalLMEagle3"],
            "draft_vocab_size": num_scored,
        }
        config = Llama.config(Fields(fields, "[model] of the recipe"))
        network = Network(
            replace(config, attention_width=2 * config.width, tied_embeddings=False),
            num_features=3,
            num_scored=num_scored,
            own_embedding=False,
        )
        start(network, surroundings.seed)
        network.attach(target)
        network.scored = scored
        rows = slice(None) if scored is None else scored
        with torch.no_grad():
            network.head.weight.copy_(unembedding(target)[rows])
        abilities = Abilities(
            name="the recipe's drafter",
            vocabulary_size=host.vocabulary_size,
            context_length=config.context_length,
            kind="eagle",
            features=usual_features(num_layers),
        )
        return Trainee(network=network, abilities=abilities, fields=fields)

    def save(self, folder: Path, trainee: Trainee, tokenizer_folder: Path) -> None:
        """A folder for `anyorder.Engine(target, draft=folder)`."""
        assert isinstance(trainee.network, Network), "make() made one"
        save_eagle(folder, trainee.network, trainee.fields)
