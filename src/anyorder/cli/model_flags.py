"""Which model, how it is held, and opening an engine with progress shown."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli.terminal import LineProgress, progress
from anyorder.core.errors import InvalidRequest
from anyorder.core.garbage import uncollected

if TYPE_CHECKING:
    from anyorder.engine.engine import Engine
    from anyorder.model.loaded import LoadedModel
    from anyorder.model.progress import TerminalProgress

DEFAULT_MODEL = "smollm2-135m-instruct"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """`-m`, and how the model is held in memory."""
    add = parser.add_argument_group("model").add_argument
    add(
        "-m",
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=f"catalog name, folder of safetensors, .gguf file or hub id [{DEFAULT_MODEL}]",
    )
    add("--draft", metavar="MODEL", help="a second model, for methods that need one")
    add("--dtype", metavar="TYPE", help="float32, bfloat16 or float16 [float32 on a CPU]")
    add("--quantize", metavar="BITS", help="weights as int8 or int4 [as --dtype says]")
    add("--cache-tokens", metavar="N", help="capacity of the KV cache in tokens [by memory]")
    add("--cache-dtype", metavar="TYPE", help="int8 for a KV cache of 8 bits [as --dtype says]")
    add(
        "--overlap",
        action="store_true",
        help="on a GPU: work on one half's answers while the other half's pass is computed",
    )


def open_engine(arguments: argparse.Namespace) -> Engine:
    """An engine with the models that the flags name, with progress on stderr."""
    cache_tokens = _cache_tokens(arguments.cache_tokens)
    target = open_model(arguments)
    from anyorder.engine.engine import Engine

    shown = progress()
    try:
        return Engine(
            target,
            draft=arguments.draft,
            dtype=arguments.dtype,
            quantize=arguments.quantize,
            cache_tokens=cache_tokens,
            cache_dtype=arguments.cache_dtype,
            overlap=arguments.overlap,
            progress=shown,
        )
    finally:
        shown.close()


def open_model(arguments: argparse.Namespace) -> LoadedModel:
    """The target model alone."""
    shown = progress()
    try:
        _find_early(arguments.model, shown)
        with uncollected(for_good=True):
            from anyorder.model.loaded import load

        return load(
            arguments.model, dtype=arguments.dtype, quantize=arguments.quantize, progress=shown
        )
    finally:
        shown.close()


def _find_early(model: str, shown: TerminalProgress | LineProgress) -> None:
    """Refuse an unknown model, and download a new one, before torch is imported.

    Hub ids are left to the engine: looking them up takes the network a second time.
    """
    if "/" in model and not Path(model).exists():
        return
    from anyorder.model import catalog

    catalog.resolve(model, progress=lambda done, total: shown("downloading", done, total))


def _cache_tokens(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 2**40:
        raise InvalidRequest(f"--cache-tokens must be an integer of at least 1, got {text!r}.")
    return int(text)
