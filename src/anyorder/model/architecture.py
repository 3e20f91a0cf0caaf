"""A model family: how its checkpoints describe a decoder and name its tensors.

A family is one file in `architectures/` with one subclass of `Architecture`, found by the file's
name; which `model_type` it serves is data in the file. None of them imports torch, so that listing
and recognising checkpoints is quick. Adding a family is adding a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from anyorder.core import lookup
from anyorder.core.errors import CheckpointError, UnknownName
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import NameMap, TensorSource

_FOLDER = "model/architectures"


class Architecture:
    """Base of all families."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """`model_type` in config.json."""
    gguf_types: ClassVar[tuple[str, ...]] = ()
    """`general.architecture` in GGUF files."""
    prefixes: ClassVar[tuple[str, ...]] = ("",)
    """What tensor names may start with; the first under which the embedding is found."""
    names: ClassVar[NameMap] = {}
    """Of safetensors checkpoints."""
    gguf_names: ClassVar[NameMap] = {}
    ignored: ClassVar[tuple[str, ...]] = ()
    """Endings of tensors in published checkpoints that hold no weights of the decoder."""

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        """The decoder that a config.json describes."""
        raise AssertionError(f"{cls.__name__} does not define config()")

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], source: TensorSource) -> dict[str, Any]:
        """The metadata of a GGUF file in the words of config.json."""
        raise AssertionError(f"{cls.__name__} does not define gguf_fields()")


def architectures() -> dict[str, type[Architecture]]:
    """Every family by the name of its file."""
    return {name: architecture(name) for name in lookup.names(_FOLDER)}


def architecture(name: str) -> type[Architecture]:
    """The family with this file name."""
    family: type[Architecture] = lookup.find(_FOLDER, name, kind="architecture")
    return family


def for_model_type(model_type: str) -> type[Architecture]:
    """The family that reads config.json files of this type; UnknownName lists those supported."""
    known = {kind: family for family in architectures().values() for kind in family.model_types}
    if model_type not in known:
        raise UnknownName("model_type", model_type, known)
    return known[model_type]


def for_gguf_type(gguf_type: str) -> type[Architecture]:
    """The family that reads GGUF files of this architecture; UnknownName lists those supported."""
    known = {kind: family for family in architectures().values() for kind in family.gguf_types}
    if gguf_type not in known:
        raise UnknownName("GGUF architecture", gguf_type, known)
    return known[gguf_type]


def name_map(config: ModelConfig, source: TensorSource) -> tuple[NameMap, str]:
    """Where the parts of this network lie in this source, and the prefix of the tensor names."""
    family = architecture(config.architecture)
    if source.format == "gguf":
        return family.gguf_names, ""
    present = set(source.names())
    embedding = family.names["embedding"]
    for prefix in family.prefixes:
        if f"{prefix}{embedding}.weight" in present:
            return family.names, prefix
    raise CheckpointError(
        f"the checkpoint lacks the token embedding {family.prefixes[0]}{embedding}.weight."
    )
