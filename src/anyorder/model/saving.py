"""A network written as an ordinary checkpoint folder: safetensors, config.json and tokenizer files.

The reverse of loading: fused parameters are taken apart, rows and scales put back as the family
stores them, so that `anyorder.Engine(folder)` and transformers both load the result. Folders appear
whole or not at all. Shards are not written: one file holds all weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from anyorder.core.errors import UserError
from anyorder.model.architecture import architecture
from anyorder.model.config import ModelConfig
from anyorder.model.loading import parts
from anyorder.model.naming import NameMap
from anyorder.model.transformer import Transformer

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
    *("merges.txt", "chat_template.jinja", "generation_config.json"),
)
"""What of a model folder says how texts become tokens, and when they end."""


def llama_fields(
    *,
    vocabulary_size: int,
    width: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    mlp_width: int,
    context_length: int,
    tied_embeddings: bool,
    end_token: int | None,
) -> dict[str, Any]:
    """config.json of a new decoder in LLaMA's layout."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary_size,
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": width // num_heads,
        "intermediate_size": mlp_width,
        "max_position_embeddings": context_length,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied_embeddings,
        "bos_token_id": end_token,
        "eos_token_id": end_token,
        "torch_dtype": "float32",
    }


def save_model(
    folder: Path, network: Transformer, fields: Mapping[str, Any], tokenizer_folder: Path
) -> None:
    """Write a model folder, in place of whatever model was there.

    `fields` is its config.json; the tokenizer's files are copied. UserError if the disk is full.
    """
    dtype = str(network.dtype).removeprefix("torch.")
    config = {**fields, "torch_dtype": dtype}
    for of_the_origin in ("dtype", "quantization_config"):
        config.pop(of_the_origin, None)
    with whole_folder(folder) as partial:
        tensors = stored_tensors(network)
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_tokenizer(tokenizer_folder, partial)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what of a model folder says how texts become tokens."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def stored_tensors(network: Transformer) -> dict[str, torch.Tensor]:
    """The network's weights under the names, and in the layouts, of its family's checkpoints."""
    family = architecture(network.config.architecture)
    return named_tensors(network, network.config, family.names, family.prefixes[0])


def named_tensors(
    network: torch.nn.Module, config: ModelConfig, names: NameMap, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """The network's weights as the tensors that `loading.fill` takes for them."""
    tensors = {}
    for name, parameter in network.named_parameters():
        values = parameter.detach()
        if config.norm_scale_offset and "norm" in name:
            values = values - config.norm_scale_offset
        for part in parts(name, values, config, names, prefix):
            piece = part.target
            if part.stored.order is not None:
                # An order is a permutation of rows: see where it puts each and undo it.
                places = part.stored.order(torch.arange(len(piece)), config)
                piece = piece[places.argsort().to(piece.device)]
            if part.stored.transposed:
                piece = piece.T
            if part.stored.stacked:
                piece = piece[None]
            tensors[part.tensor] = piece.contiguous()
    return tensors


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write files into that takes the place of `folder` once all are on the disk.

    If writing fails, what was there stays as it was; UserError if the disk is full or read-only.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    replaced = folder.with_name(f".{folder.name}.replaced")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for path in partial.iterdir():
            _flush(path)
        _flush(partial)
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        _flush(folder.parent)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot save {folder} ({reason}); what was saved before is untouched. Free some space "
            "and run the same command again."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(path: Path) -> None:
    """See that a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
