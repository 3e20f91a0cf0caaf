"""Tiny folders of every kind of network that a recipe trains, saved as `anyorder train` saves them,
and the same networks as they were in memory.

Weights are random and large, so that networks are sure of what they say.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anyorder.core import lookup
from anyorder.core.objective import Objective
from anyorder.core.options import build, describe
from anyorder.core.plans import TAGS
from anyorder.model.calm import Calm, calm_abilities
from anyorder.model.drafters.medusa import MedusaHeads, NetworkWithHeads
from anyorder.model.loaded import LoadedModel
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee
from anyorder.training.tokenizers import train_tokenizer

TEXT = "Pens and pads, plums and pears: all of them 12 or 345 at a time, once a day, day by day."
CONTEXT = 192
SIZES = {"width": 32, "heads": 4, "context": CONTEXT}
DECODER = {"layers": 2, "kv_heads": 2, "mlp_width": 48, **SIZES}
TWO_STACKS = {"encoder_layers": 1, "decoder_layers": 2, "mlp_width": 48, **SIZES}
CALM = {"layers": 2, "head_layers": 1, "noise_width": 8, **SIZES}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is trained, and by which objective."""

    network: str
    objective: str
    sizes: dict[str, Any]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    beside: str | None = None
    """The kind that it is made for, or holds."""


def decoder(objective: str, **options: Any) -> Kind:
    return Kind(network="decoder", objective=objective, sizes=DECODER, options=options)


def translator(objective: str, **sizes: Any) -> Kind:
    return Kind(network="encoder_decoder", objective=objective, sizes={**TWO_STACKS, **sizes})


KINDS = {
    "text": decoder("next_token"),
    "masks": decoder("masked_diffusion"),
    "noise": decoder("uniform_diffusion"),
    "blocks": decoder("block_diffusion", block_size=4),
    "plans": decoder("planned_diffusion"),
    "translation": translator("encoder_decoder"),
    "lengths": translator("mask_predict", length_head=True),
    "edits": translator("insertion", edits=True),
    "graph": translator("dag", vertices_per_token=2),
    "row": translator("ctc", vertices_per_token=2, links=False),
    "coder": Kind(
        network="calm_autoencoder",
        objective="calm_autoencoder",
        sizes={"patch_size": 3, "width": 32, "latent_width": 8},
    ),
    "patches": Kind(network="calm", objective="calm_energy", sizes=CALM, beside="coder"),
    "heads": Kind(network="medusa", objective="medusa", sizes={"heads": 3}, beside="text"),
}


@functools.cache
def home() -> Path:
    """Where the folders are, for as long as the tests run."""
    place = tempfile.TemporaryDirectory()
    _kept.append(place)
    return Path(place.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def tokenizer() -> Tokenizer:
    """Of bytes and a few pairs, with an end, a mask and the tags of plans."""
    return train_tokenizer([TEXT], home() / "tokenizer", size=272, further=TAGS)


def objective(name: str) -> Objective:
    """That the kind is trained by."""
    kind = KINDS[name]
    cls = lookup.find("training/objectives", kind.objective, kind="objective")
    found: Objective = build(cls, kind.options)
    return found


@functools.cache
def recipe(name: str) -> NetworkRecipe:
    """[model] of the kind's recipe."""
    kind = KINDS[name]
    cls = lookup.find("training/networks", kind.network, kind="[model] kind")
    holds_another = any(option.name == "autoencoder" for option in describe(cls))
    found: NetworkRecipe = cls(
        **kind.sizes, **({"autoencoder": str(folder(str(kind.beside)))} if holds_another else {})
    )
    return found


@functools.cache
def trainee(name: str) -> Trainee:
    """A network as a recipe makes it, with random weights."""
    kind = KINDS[name]
    made = recipe(name).make(
        Surroundings(
            tokenizer=tokenizer(),
            objective=objective(name),
            length=CONTEXT,
            seed=1,
            locate=str,
            counts=torch.arange,
            teacher=model(str(kind.beside)) if recipe(name).needs_teacher else None,
        )
    )
    rng = torch.Generator().manual_seed(list(KINDS).index(name))
    for parameter in made.network.parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.4, generator=rng)
    return dataclasses.replace(made, abilities=objective(name).trained(made.abilities))


@functools.cache
def folder(name: str) -> Path:
    """The same, saved."""
    path = home() / name
    tokenizer()
    recipe(name).save(path, trainee(name), home() / "tokenizer")
    return path


@functools.cache
def model(name: str) -> LoadedModel:
    """The same in memory, never saved; heads with the decoder that they are made for."""
    made = trainee(name)
    network: Any = made.network.requires_grad_(False).eval()
    abilities = made.abilities
    if isinstance(network, Calm):
        abilities = calm_abilities(name, network, tokenizer())
    if isinstance(network, MedusaHeads):
        base: Any = trainee(str(KINDS[name].beside)).network
        network = NetworkWithHeads(base, network)
    return LoadedModel(network=network, abilities=abilities, tokenizer=tokenizer())
