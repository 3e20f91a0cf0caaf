"""A draft model for benchmarks: the lower layers of a model, with its embedding, norm and head.

No smaller model with the default model's tokenizer can be fetched; this one shares the target's
weights and takes no memory of its own. It drafts no better than an untrained exit does.
"""

from __future__ import annotations

import copy
import dataclasses

from torch import nn

from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer


def lower_layers(model: LoadedModel, num_layers: int) -> LoadedModel:
    """A model of the first `num_layers` layers."""
    network = model.network
    assert isinstance(network, Transformer), "only a plain decoder can be cut"
    small = copy.copy(network)
    small._modules = dict(network._modules)
    small.layers = nn.ModuleList(list(network.layers)[:num_layers])
    small.config = dataclasses.replace(network.config, layers=network.config.layers[:num_layers])
    abilities = dataclasses.replace(
        model.abilities,
        name=f"{model.abilities.name}, lower {num_layers} layers",
        num_layers=num_layers,
    )
    return dataclasses.replace(model, network=small, abilities=abilities)
