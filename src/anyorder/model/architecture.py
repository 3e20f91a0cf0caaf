"""A model family: how its checkpoints describe a network and name its tensors.

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
from anyorder.model.naming import NameMap, Stored, TensorSource

_FOLDER = "model/architectures"


class Architecture:
    """Base of all families."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """`model_type` in config.json."""
    marks: ClassVar[tuple[str, ...]] = ()
    """Fields of its config.json, of a family whose checkpoints have no `model_type`."""
    gguf_types: ClassVar[tuple[str, ...]] = ()
    """`general.architecture` in GGUF files."""
    prefixes: ClassVar[tuple[str, ...]] = ("",)
    """What tensor names may start with; the first under which the embedding is found."""
    names: ClassVar[NameMap] = {}
    """Of safetensors checkpoints."""
    gguf_names: ClassVar[NameMap] = {}
    ignored: ClassVar[tuple[str, ...]] = ()
    """Endings of tensors in published checkpoints that hold no weights of the network."""
    beyond: ClassVar[tuple[str, ...]] = ()
    """Beginnings of tensors' names in parts that are not loaded: a vision tower."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Endings of tensors' names in older checkpoints, and how they end today."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Tensors that a checkpoint may lack; all zeros then."""

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        """The network that a config.json describes."""
        raise AssertionError(f"{cls.__name__} does not define config()")

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], source: TensorSource) -> dict[str, Any]:
        """The metadata of a GGUF file in the words of config.json."""
        prefix = metadata["general.architecture"] + "."
        inner = {key.removeprefix(prefix): value for key, value in metadata.items()}
        data = {name: inner[key] for key, name in _GGUF_FIELDS.items() if key in inner}
        checked = Fields(inner, f"the {prefix}* metadata of the GGUF file")
        for key in _GGUF_SIZES:
            data[_GGUF_FIELDS[key]] = checked.size(key)
        present = set(source.names())
        if "token_embd.weight" in present:
            data["vocab_size"] = source.shape("token_embd.weight")[0]
        data["tie_word_embeddings"] = "output.weight" not in present
        data["attention_bias"] = any(
            f"blk.0.{name}.bias" in present for name in ("attn_q", "attn_qkv")
        )
        data["mlp_bias"] = "blk.0.ffn_up.bias" in present
        ends = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom"))
        data["eos_token_id"] = [end for end in ends if end is not None]
        if "rope.dimension_count" in inner:
            head = max(data["hidden_size"] // data["num_attention_heads"], 1)
            head = checked.size("attention.key_length", head)
            data["partial_rotary_factor"] = checked.size("rope.dimension_count") / head
        data["rope_scaling"] = _gguf_scaling(inner, source)
        return data


_GGUF_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.clamp_kqv": "clip_qkv",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "rope.freq_base": "rope_theta",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""GGUF metadata, without the architecture's prefix -> config.json."""
_GGUF_SIZES = tuple(_GGUF_FIELDS)[:5]


def _gguf_scaling(inner: Mapping[str, Any], source: TensorSource) -> dict[str, Any] | None:
    if "rope_freqs.weight" in set(source.names()):
        return {"type": "divisors", "divisors": source.read("rope_freqs.weight").tolist()}
    kind = inner.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {"type": kind, "factor": inner.get("rope.scaling.factor")}
    if "rope.scaling.original_context_length" in inner:
        original = inner["rope.scaling.original_context_length"]
        scaling["original_max_position_embeddings"] = original
    return scaling


def architectures() -> dict[str, type[Architecture]]:
    """Every family by the name of its file."""
    return {name: architecture(name) for name in lookup.names(_FOLDER)}


def architecture(name: str) -> type[Architecture]:
    """The family with this file name."""
    family: type[Architecture] = lookup.find(_FOLDER, name, kind="architecture")
    return family


def for_model_type(model_type: str) -> type[Architecture]:
    """The family that reads config.json files of this type; UnknownName lists those supported."""
    if model_type in lookup.names(_FOLDER):  # most are called like their file: read no other
        family = architecture(model_type)
        if model_type in family.model_types:
            return family
    known = {kind: family for family in architectures().values() for kind in family.model_types}
    if model_type not in known:
        raise UnknownName("model_type", model_type, known)
    return known[model_type]


def for_fields(fields: Fields) -> type[Architecture]:
    """The family that reads this config.json: by its `model_type`, or by what it holds instead."""
    if not fields.has("model_type"):
        for family in architectures().values():
            if family.marks and all(fields.has(name) for name in family.marks):
                return family
    return for_model_type(fields.text("model_type"))


def for_gguf_type(gguf_type: str) -> type[Architecture]:
    """The family that reads GGUF files of this architecture; UnknownName lists those supported."""
    if gguf_type in lookup.names(_FOLDER):
        family = architecture(gguf_type)
        if gguf_type in family.gguf_types:
            return family
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
    entry = family.names["embedding"]
    embedding = f"{entry}.weight"
    if isinstance(entry, Stored):
        embedding = f"{entry.name}.weight" if entry.suffixed else entry.name
    for prefix in family.prefixes:
        if prefix + embedding in present:
            return family.names, prefix
    raise CheckpointError(
        f"the checkpoint lacks the token embedding {family.prefixes[0]}{embedding}."
    )
