"""Loading what is measured, with progress, and the name it has in a table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.cli.request_flags import make_request, request_fields
from anyorder.core.errors import UserError
from anyorder.core.request import Request

if TYPE_CHECKING:
    from anyorder.engine.engine import Engine
    from anyorder.model.loaded import LoadedModel
    from anyorder.model.tokenizer import Tokenizer
    from anyorder.training.network import Trainee

Shown = Callable[[str, int, int], None]
"""Shows progress."""


def load_shown(
    model: str, shown: Shown, *, dtype: str | None = None, quantize: str | None = None
) -> LoadedModel:
    """A model in memory."""
    from anyorder.model.loaded import load

    return load(model, dtype=dtype, quantize=quantize, progress=shown)


def open_shown(model: str, arguments: argparse.Namespace, shown: Shown) -> Engine:
    """An engine with one model."""
    from anyorder.engine.engine import Engine

    return Engine(load_shown(model, shown, dtype=arguments.dtype, quantize=arguments.quantize))


def tokenizer_of(loaded: LoadedModel) -> Tokenizer:
    """A model's tokenizer; UserError if it has none, and so nothing to do with text."""
    if loaded.tokenizer is None:
        raise UserError(f"{loaded.abilities.name} has no tokenizer, so no text can be measured.")
    return loaded.tokenizer


def as_trainee(loaded: LoadedModel, *, cache_dtype: str | None = None) -> Trainee:
    """A finished model as objectives see it; with `cache_dtype` it sees keys and values as they
    come back from such a cache."""
    import torch

    from anyorder.training.network import Trainee

    network, abilities = loaded.network, loaded.abilities
    assert isinstance(network, torch.nn.Module), "every loaded network is one"
    module: torch.nn.Module = network
    if cache_dtype is not None:
        from anyorder.evaluation.through_cache import ThroughCache

        module = ThroughCache(network, abilities, cache_dtype)
    return Trainee(network=module, abilities=abilities, tokenizer=loaded.tokenizer)


def controls(arguments: argparse.Namespace, defaults: Mapping[str, Any]) -> Request:
    """The request that the flags describe, without its prompt."""
    method = arguments.method or defaults.get("method")  # whose options -o names
    named = argparse.Namespace(**{**vars(arguments), "method": method})
    return make_request("", {**defaults, **request_fields(named)})


def name_of_model(model: str) -> str:
    """As it was given, without what every run's folder ends in."""
    path = Path(model)
    return str(path.parent) if path.name == "model" and len(path.parts) > 1 else model
