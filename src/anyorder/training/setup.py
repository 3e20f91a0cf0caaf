"""From a recipe to what its run works on: network, tokenizer and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from anyorder.core.batch import PackedBatch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import TrainingBatch
from anyorder.model import catalog
from anyorder.model.architecture import for_model_type
from anyorder.model.checkpoint import open_folder
from anyorder.model.fields import Fields
from anyorder.model.loading import load_network
from anyorder.model.safetensors_folder import read_json
from anyorder.model.saving import llama_fields
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.transformer import Transformer
from anyorder.training.config import Recipe

_SPREAD = 0.02
"""Standard deviation of new weights, as in GPT-2 and LLaMA."""


class Sequences(Protocol):
    """Training data; `data.PackedDataset` is one."""

    @property
    def num_sequences(self) -> int:
        """Of an epoch."""

    @property
    def length(self) -> int:
        """Tokens of each."""

    def batch(
        self, step: int, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> TrainingBatch:
        """The sequences of step 0, 1, ..., a function of the arguments alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """What a run learns from."""

    train: Sequences
    validation: Sequences | None
    tokenizer_folder: Path
    fingerprint: str = ""
    """Changes when the data do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
    """A network as objectives see it (`core.objective.TrainableModel`)."""

    network: Transformer
    abilities: Abilities
    fields: Mapping[str, Any]
    """config.json of the checkpoint that it will be saved as."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Final hidden states, with gradients."""
        return self.network.hidden(batch)

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits of some rows of `hidden`."""
        return self.network.logits(hidden_MW)


def tokenizer_folder(source: str) -> Path:
    """The folder of the model whose tokenizer is asked for."""
    found = catalog.resolve(source)
    if found.kind != "folder":
        raise UserError(
            f"{source} is a GGUF file; training needs a folder of safetensors with a tokenizer."
        )
    return found.path


def make_decoder(recipe: Recipe, tokenizer: Tokenizer, device: torch.device) -> Decoder:
    """The recipe's model in float32: new, or loaded to be fine-tuned. UserError if the recipe asks
    for what does not fit together."""
    if recipe.model.init is None:
        fields = _new_fields(recipe, tokenizer)
        origin = "[model] of the recipe"
        config = for_model_type("llama").config(Fields(fields, origin))
        network = _new_network(Transformer.random(config, seed=recipe.run.seed, spread=_SPREAD))
        name = "the recipe's model"
    else:
        folder = tokenizer_folder(recipe.source(recipe.model.init))
        fields = read_json(folder / "config.json")
        config, tensors = open_folder(folder)
        network = load_network(config, tensors, dtype=torch.float32)
        name = recipe.model.init
    if tokenizer.vocabulary_size > config.vocabulary_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens, but {name} has "
            f"{config.vocabulary_size}; use the model's own tokenizer."
        )
    if recipe.data.length > config.context_length:
        raise UserError(
            f"[data] length is {recipe.data.length}, but the context of {name} is "
            f"{config.context_length} tokens; lower length."
        )
    abilities = Abilities(
        name=name,
        vocabulary_size=config.vocabulary_size,
        context_length=config.context_length,
        end_tokens=config.end_tokens | tokenizer.end_tokens,
        mask_token=tokenizer.mask_token,
        num_layers=len(config.layers),
    )
    recipe.objective.check(abilities)
    network = network.to(device).train().requires_grad_(True)
    return Decoder(network=network, abilities=abilities, fields=fields)


def _new_fields(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Any]:
    model = recipe.model
    assert model.width is not None and model.layers is not None and model.heads is not None
    # 8/3, so that the gated MLP has as many weights as a plain one of 4; a multiple of 32.
    mlp_width = model.mlp_width or -(-model.width * 8 // (3 * 32)) * 32
    return llama_fields(
        vocabulary_size=tokenizer.vocabulary_size,
        width=model.width,
        num_layers=model.layers,
        num_heads=model.heads,
        num_kv_heads=model.kv_heads or model.heads,
        mlp_width=mlp_width,
        context_length=model.context or recipe.data.length,
        tied_embeddings=model.tied_embeddings,
        end_token=min(tokenizer.end_tokens, default=None),
    )


@torch.no_grad()
def _new_network(network: Transformer) -> Transformer:
    """Norms start at 1, and what each layer adds to the residual stream starts smaller the more
    layers there are (GPT-2)."""
    for name, parameter in network.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
        elif name.endswith(("attention.out.weight", "mlp.down.weight")):
            parameter.mul_((2 * len(network.layers)) ** -0.5)
    return network
