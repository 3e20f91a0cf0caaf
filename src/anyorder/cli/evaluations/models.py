"""Loading what is measured, with progress, and the name it has in a table."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.cli.request_flags import make_request, request_fields
from anyorder.core.request import Request

if TYPE_CHECKING:
    from anyorder.engine.engine import Engine
    from anyorder.model.loaded import LoadedModel

Shown = Callable[[str, int, int], None]
"""Shows progress."""


def load_shown(model: str, dtype: str | None, shown: Shown) -> LoadedModel:
    """A model in memory."""
    from anyorder.model.loaded import load

    return load(model, dtype=dtype, progress=shown)


def open_shown(model: str, arguments: argparse.Namespace, shown: Shown) -> Engine:
    """An engine with one model."""
    from anyorder.engine.engine import Engine

    return Engine(load_shown(model, arguments.dtype, shown))


def controls(arguments: argparse.Namespace, **defaults: Any) -> Request:
    """The request that the flags describe, without its prompt."""
    return make_request("", {**defaults, **request_fields(arguments)})


def name_of_model(model: str) -> str:
    """As it was given, without what every run's folder ends in."""
    path = Path(model)
    return str(path.parent) if path.name == "model" and len(path.parts) > 1 else model
