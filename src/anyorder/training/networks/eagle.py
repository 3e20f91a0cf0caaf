"""An EAGLE-3 drafter for the target of [teacher] (arXiv 2503.01840), saved as published ones are.

One LLaMA layer of the target's width. It scores the tokens that are most frequent among the
training data's targets (`vocabulary`, d2t in the checkpoint), or all; its output layer begins as
the target's rows for them, or is just those (without `own_head`). Every embedding is the target's
own. With `from_target` the layer begins as the target's last one, with the first neurons of a wider
MLP, and reads the last of the features; it then learns in fewer steps.
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
from anyorder.model.drafters.draft_vocabulary import output_rows
from anyorder.model.drafters.eagle import Eagle as Network
from anyorder.model.drafters.eagle import save_eagle, usual_features
from anyorder.model.fields import Fields
from anyorder.model.layers import RmsNorm
from anyorder.model.transformer import Transformer
from anyorder.training.drafting import layer_fields, most_frequent, start, target_of
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee


@dataclass(frozen=True, kw_only=True)
class Eagle(NetworkRecipe):
    """A layer that goes on from a frozen target's hidden states."""

    needs_teacher: ClassVar[bool] = True

    vocabulary: Annotated[
        int | None, Range(2), "tokens it scores, the most frequent ones; none: all"
    ] = None
    own_head: Annotated[
        bool, "an output layer of its own; otherwise the target's rows, neither trained nor stored"
    ] = True
    mlp_width: Annotated[int | None, Range(1), "of the MLP; none: as the target's"] = None
    from_target: Annotated[
        bool, "its layer begins as the target's last one, reading what that reads; or at random"
    ] = False

    def make(self, surroundings: Surroundings) -> Trainee:
        """A new drafter."""
        target, host = target_of(surroundings, "eagle")
        num_layers = len(target.config.layers)
        if num_layers < 4:
            raise UserError(
                f"EAGLE-3 reads three layers of its target, the last but two among them; "
                f"{host.name} has {num_layers} in all, and 4 are needed."
            )
        scored = most_frequent(surroundings, host.vocabulary_size, self.vocabulary)
        num_scored = host.vocabulary_size if scored is None else len(scored)
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
            own_head=self.own_head,
        )
        start(network, surroundings.seed)
        network.attach(target, scored)
        if self.own_head:
            with torch.no_grad():
                network.head.weight.copy_(output_rows(target, scored))
        if self.from_target:
            _begin_as(network, target, host.name)
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


@torch.no_grad()
def _begin_as(network: Network, target: Transformer, name: str) -> None:
    """Give the layer the target's last one's weights, and have it read the last of the features:
    what embeddings and the other features are worth is left to be learnt."""
    theirs = dict(target.layers[-1].named_parameters())
    own = dict(network.layers[0].named_parameters())
    if theirs.keys() != own.keys() or not isinstance(target.final_norm, RmsNorm):
        raise UserError(
            f"the layers of {name} are not LLaMA's, as an EAGLE-3 drafter's are; leave [model] "
            "from_target out."
        )
    width, inner = network.config.width, network.config.mlp_width
    for part, weight in own.items():
        values = theirs[part].float()
        if part == "attention.qkv.weight":
            weight[:, width:] = values  # beside what it reads of the embedding
        elif part == "mlp.gate_up.weight":
            weight.copy_(torch.cat([half[:inner] for half in values.chunk(2)]))
        elif part == "mlp.down.weight":
            weight.copy_(values[:, :inner])
        elif part != "attention_norm.weight":
            weight.copy_(values)
    network.hidden_norm.weight.copy_(theirs["attention_norm.weight"])
    network.final_norm.weight.copy_(target.final_norm.weight)
    network.fusion.weight.mul_(0.1)[:, -width:] += torch.eye(width)
