"""Folders of networks whose checkpoints are our own: each parameter under its name, whole.

Published families are read and written by `loading` and `saving`, which know their names and
layouts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from anyorder.core.errors import CheckpointError
from anyorder.model.naming import TensorSource
from anyorder.model.saving import copy_tokenizer, whole_folder


def save_plain(
    folder: Path, network: torch.nn.Module, fields: Mapping[str, Any], tokenizer_folder: Path
) -> None:
    """Write weights, config.json (`fields`) and the tokenizer's files, in place of what was
    there. UserError if the disk is full."""
    with whole_folder(folder) as partial:
        tensors = {name: p.detach().contiguous() for name, p in network.named_parameters()}
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        copy_tokenizer(tokenizer_folder, partial)


def fill_plain(
    network: torch.nn.Module,
    source: TensorSource,
    *,
    owner: str,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Give every parameter of an empty network (on the meta device) its values. CheckpointError
    names the tensor that is missing, left over or of another shape; `owner` is what messages call
    the network's kind."""
    parameters = dict(network.named_parameters())
    present = set(source.names())
    if left := sorted(present - parameters.keys()):
        raise CheckpointError(f"the checkpoint holds {left[0]!r}, which {owner} does not have.")
    for name, empty in parameters.items():
        if name not in present:
            raise CheckpointError(f"the checkpoint lacks tensor {name!r}; fetch it again.")
        if source.shape(name) != tuple(empty.shape):
            raise CheckpointError(
                f"tensor {name!r} has shape {list(source.shape(name))}, but the configuration "
                f"calls for {list(empty.shape)}."
            )
    for name in parameters:
        module, _, attribute = name.rpartition(".")
        values = source.read(name).to(dtype=dtype, device=device, copy=True)
        parameter = torch.nn.Parameter(values, requires_grad=False)
        setattr(network.get_submodule(module), attribute, parameter)
