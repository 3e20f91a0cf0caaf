"""From a name or a path to a model that can run: weights, tokenizer and what it can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from anyorder.core.batch import Network
from anyorder.core.errors import CheckpointError, UserError
from anyorder.core.garbage import uncollected
from anyorder.core.method import Abilities
from anyorder.model import calm, catalog
from anyorder.model.backends.quantized import Bits
from anyorder.model.checkpoint import open_folder, open_gguf
from anyorder.model.config import ModelConfig
from anyorder.model.drafters.loading import drafter_loader
from anyorder.model.drafters.medusa import NetworkWithHeads
from anyorder.model.gguf import GGUFFile
from anyorder.model.loading import load_network
from anyorder.model.lora import Adapter, add, open_adapter
from anyorder.model.recorded import recorded
from anyorder.model.safetensors_folder import read_json
from anyorder.model.settings import settings
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.transformer import Transformer

if TYPE_CHECKING:
    from anyorder.model.naming import TensorSource

Progress = Callable[[str, int, int], None]
"""Told what is being done ("downloading", "loading"), how much is done, how much there is."""

_QUANTIZED: dict[str, Bits] = {"int8": 8, "int4": 4}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model in memory."""

    network: Network
    abilities: Abilities
    tokenizer: Tokenizer | None = None


@uncollected()
def load(
    source: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a catalog name, a folder of safetensors, a .gguf file or a hub id. A folder of LoRA's
    additions is loaded as the model they were trained for, with them added.

    `device` is the first GPU, or else the CPU; `dtype` bfloat16 on a GPU and float32 on a CPU.
    `quantize` (int8 or int4, on a CPU) holds the weights of linear layers in so many bits; the rest
    computes in `dtype`. Downloads what is not on this machine yet, unless settings forbid it.
    """
    threads = settings().num_threads
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    elif isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise UserError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}.")
        dtype = _DTYPES[dtype]
    bits = _bits(quantize, device)
    found = catalog.resolve(str(source), progress=_stage(progress, "downloading"))
    name, adapter = found.name, None
    if found.kind == "folder":
        adapter = open_adapter(found.path)
    if adapter is not None:
        found = _base_of(adapter, progress)
    config: ModelConfig
    tensors: TensorSource
    if found.kind == "gguf":
        file = GGUFFile(found.path)
        config, tensors = open_gguf(file)
        tokenizer = Tokenizer.from_gguf(file.metadata)
    else:
        tokenizer = Tokenizer.from_folder(found.path)
        if read_json(found.path / "config.json").get("model_type") == calm.MODEL_TYPE:
            if bits is not None or adapter is not None:
                what, hint = ("quantised", "leave quantize out")
                if adapter is not None:
                    what, hint = ("added to by an adapter", f"load {found.name} by itself")
                raise UserError(
                    f"{found.name} is a CALM model, whose weights cannot be {what}; {hint}."
                )
            drawing = calm.load_calm(found.path, dtype=dtype, device=device)
            abilities = calm.calm_abilities(found.name, drawing, tokenizer)
            return LoadedModel(network=drawing, abilities=abilities, tokenizer=tokenizer)
        config, tensors = open_folder(found.path)
    network = load_network(
        config,
        tensors,
        dtype=dtype,
        device=device,
        bits=bits if adapter is None else None,
        progress=_stage(progress, "loading"),
    )
    if adapter is not None:
        add(adapter, network)
        if bits is not None:
            network.quantize(bits)
        if (adapter.folder / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_folder(adapter.folder)
    abilities = abilities_of(name, config, tokenizer)
    if found.kind == "folder":
        abilities = recorded(found.path, abilities)
    return LoadedModel(network=network, abilities=abilities, tokenizer=tokenizer)


def _base_of(adapter: Adapter, progress: Progress | None) -> catalog.ResolvedModel:
    """The model that an adapter adds to."""
    try:
        found = catalog.resolve(adapter.base, progress=_stage(progress, "downloading"))
    except UserError as error:
        raise CheckpointError(
            f"{adapter.folder} adds to the model {adapter.base!r}, which cannot be had: {error}"
        ) from None
    if found.kind == "folder" and open_adapter(found.path) is not None:
        raise CheckpointError(
            f"{adapter.folder} adds to {adapter.base}, which is an adapter itself; merge that into "
            "its model first."
        )
    return found


def _bits(quantize: str | None, device: torch.device) -> Bits | None:
    if quantize is None:
        return None
    if quantize not in _QUANTIZED:
        raise UserError(f"quantize must be one of {', '.join(_QUANTIZED)}, got {quantize!r}.")
    if device.type != "cpu":
        raise UserError(f"quantize={quantize!r} is for CPUs, and the model is to run on {device}.")
    return _QUANTIZED[quantize]


def abilities_of(name: str, config: ModelConfig, tokenizer: Tokenizer | None) -> Abilities:
    """What a network of this configuration can do with this tokenizer."""
    ends = config.end_tokens | (tokenizer.end_tokens if tokenizer is not None else frozenset())
    mask_token = config.mask_token
    if mask_token is None and tokenizer is not None and config.knows_masks:
        mask_token = tokenizer.mask_token
    closing: tuple[int, ...] = ()
    if config.closes_texts and tokenizer is not None:
        closing = tuple(tokenizer.frame[1])
    return Abilities(
        name=name,
        vocabulary_size=config.vocabulary_size,
        context_length=config.context_length,
        end_tokens=ends.union(closing),
        attention=config.attention,
        block_size=config.block_size,
        canvas_length=config.canvas_length,
        tells_ratios=config.tells_ratios,
        token_shift=config.token_shift,
        decoding=config.decoding,
        closing_tokens=closing,
        num_layers=len(config.layers),
        mask_token=mask_token,
        source_length=_source_length(config),
        num_lengths=config.length_classes,
        vertices_per_token=config.vertices_per_token,
        num_links=config.link_heads,
        num_insertions=config.insertion_classes,
        text_rules=config.text_rules,
        infill_tokens=tokenizer.infill_tokens if tokenizer is not None else None,
        plan_tokens=tokenizer.plan_tokens if tokenizer is not None else None,
    )


def _source_length(config: ModelConfig) -> int:
    """Most tokens of a source: a graph of vertices must fit into the decoder's context."""
    if config.encoder is None:
        return 0
    longest = config.encoder.context_length
    if config.vertices_per_token:
        longest = min(longest, config.context_length // config.vertices_per_token - 2)
    return longest


def load_draft(
    source: str | Path,
    target: LoadedModel,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
    progress: Progress | None = None,
) -> dict[str, LoadedModel]:
    """What drafts for `target`, by role: a "draft" model, or a new "target" with more heads.

    `source` is as for `load`. A folder may hold a decoder, or a drafter's checkpoint as its authors
    publish it: Medusa heads, an EAGLE-3 or a DFlash drafter. Those take the target's type and
    place and share its embedding. What it drafts by is the default of methods that draft.
    """
    found = catalog.resolve(str(source), progress=_stage(progress, "downloading"))
    is_model = found.kind == "gguf" or open_adapter(found.path) is not None
    loader = None if is_model else drafter_loader(found.path)
    if loader is None:
        loaded = load(source, dtype=dtype, device=device, quantize=quantize, progress=progress)
        decoding = {"speculative": {"drafter": "draft_model"}}
        return {"draft": replace(loaded, abilities=replace(loaded.abilities, decoding=decoding))}
    network, host = target.network, target.abilities
    if isinstance(network, NetworkWithHeads):
        network = network.base
    if not isinstance(network, Transformer):
        raise UserError(
            f"the drafter {found.name} needs a target loaded from a checkpoint, and {host.name} "
            f"is a {type(network).__name__}."
        )
    drafter, abilities = loader(found.path, found.name, network, host)
    role = "draft" if abilities.kind != "decoder" else "target"
    tokenizer = target.tokenizer if role == "target" else None
    return {role: LoadedModel(network=drafter, abilities=abilities, tokenizer=tokenizer)}


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(stage, done, total)
