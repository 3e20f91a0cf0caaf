"""Low-rank additions to a model's matrices, in folders as PEFT writes them, added for good.

LoRA (arXiv 2106.09685): W + scale * up @ down. DoRA (arXiv 2402.09353): the rows of that sum scaled
to lengths of their own. The sum is a model like any other: every method runs on it, at its speed.

Not here: additions to embeddings, biases and whole layers (`modules_to_save`), other kinds of
adapters, and several in turn on one model.

Shape suffixes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anyorder.core.errors import CheckpointError
from anyorder.model.architecture import architecture
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.loading import Part, parts
from anyorder.model.safetensors_folder import SafetensorsFolder, read_json
from anyorder.model.transformer import Transformer

_CONFIG = "adapter_config.json"
_TENSOR = re.compile(
    r"base_model\.model\.(?P<stem>.+)\.lora_"
    r"(?:(?P<kind>A|B)\.weight|(?P<length>magnitude_vector)(?:\.weight)?)"
)
_UNSUPPORTED = (
    "modules_to_save",
    "layer_replication",
    "lora_bias",
    "use_qalora",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
)
"""Fields of PEFT that say of more than additions to matrices, where they are set."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A folder of additions."""

    folder: Path
    base: str
    """The model that they were trained for: a name, a path or a hub id."""
    data: Mapping[str, Any]

    def scale(self, stem: str, rank: int) -> float:
        """What the product of a matrix's additions is multiplied by."""
        alpha = self._of(stem, "alpha_pattern", "lora_alpha", 8)
        return float(alpha / (math.sqrt(rank) if self.data.get("use_rslora") else rank))

    def rank(self, stem: str) -> int:
        """Of a matrix's additions."""
        return int(self._of(stem, "rank_pattern", "r", 8))

    def _of(self, stem: str, patterns: str, name: str, default: int) -> float:
        """A number, perhaps another for names that end as a regular expression says."""
        fields = Fields(self.data, str(self.folder / _CONFIG))
        found = self.data.get(patterns)
        for pattern in found if isinstance(found, dict) else ():
            try:
                fits = re.match(rf"(.*\.)?({pattern})$", stem)
            except re.error as error:
                raise CheckpointError(
                    f"{pattern!r} in {patterns} of {fields.origin} is no regular expression: "
                    f"{error}."
                ) from None
            if fits:
                return fields.inside(patterns).number(pattern, above=0.0)
        return fields.number(name, default, above=0.0)


def open_adapter(folder: Path) -> Adapter | None:
    """The additions in this folder; None if it holds none, or a model. CheckpointError if they are
    of a kind that cannot be added."""
    path = folder / _CONFIG
    if not path.exists() or (folder / "config.json").exists():
        return None
    data = read_json(path)
    fields = Fields(data, str(path))
    if data.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder} holds an adapter of the kind {data.get('peft_type')!r}; supported is 'LORA'."
        )
    for name in _UNSUPPORTED:
        if data.get(name):
            raise CheckpointError(
                f"{path} sets {name}, which is not supported; merge the adapter into its model "
                "with PEFT and load that."
            )
    if data.get("bias", "none") != "none":
        raise CheckpointError(
            f"{path} has bias {data['bias']!r}, and only 'none' is supported; merge the adapter "
            "into its model with PEFT and load that."
        )
    return Adapter(folder=folder, base=fields.text("base_model_name_or_path"), data=data)


def add(adapter: Adapter, network: Transformer) -> None:
    """Add them to the network's matrices, in place. CheckpointError where they do not fit."""
    source = SafetensorsFolder(adapter.folder)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in source.names():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{adapter.folder} holds {name!r}, which is no addition to a matrix; merge the "
                "adapter into its model with PEFT and load that."
            )
        kind = match["kind"] or "length"
        found.setdefault(match["stem"], {})[kind] = source.read(name).float()
    places = _matrices(network)
    for stem, tensors in found.items():
        place = places.get(f"{stem}.weight")
        if place is None:
            raise CheckpointError(
                f"{adapter.folder} adds to {stem!r}, which {adapter.base} does not have as a "
                "matrix of a layer."
            )
        _add(adapter, stem, tensors, place, network.config)


@torch.no_grad()
def _add(
    adapter: Adapter,
    stem: str,
    tensors: Mapping[str, torch.Tensor],
    part: Part,
    config: ModelConfig,
) -> None:
    rank, (num_outputs, num_inputs) = adapter.rank(stem), part.target.shape
    wanted = {"A": [rank, num_inputs], "B": [num_outputs, rank]}
    if adapter.data.get("use_dora"):
        wanted["length"] = [num_outputs]
    shapes = {kind: list(tensor.shape) for kind, tensor in tensors.items()}
    if shapes != wanted:
        raise CheckpointError(
            f"the additions to {stem!r} in {adapter.folder} have shapes {_in_words(shapes)}, but "
            f"{adapter.base} and {_CONFIG} call for {_in_words(wanted)}."
        )
    added_OI = tensors["B"] @ tensors["A"] * adapter.scale(stem, rank)
    length_O = tensors.get("length")
    if part.stored.order is not None:
        added_OI = part.stored.order(added_OI, config)
        length_O = None if length_O is None else part.stored.order(length_O, config)
    sum_OI = part.target.float() + added_OI.to(part.target.device)
    if length_O is not None:
        sum_OI *= (length_O.to(sum_OI.device) / sum_OI.norm(dim=1))[:, None]
    part.target.copy_(sum_OI)


def _matrices(network: Transformer) -> dict[str, Part]:
    """By the names that the family's checkpoints have for them, the matrices of linear layers."""
    config = network.config
    family = architecture(config.architecture)
    found: dict[str, Part] = {}
    for name, parameter in network.named_parameters():
        if not name.endswith(".weight") or parameter.dim() < 2 or "layers." not in name:
            continue
        for prefix in family.prefixes:
            for part in parts(name, parameter, config, family.names, prefix):
                if part.target.dim() == 2:
                    found[part.tensor] = part
    return found


def _in_words(shapes: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{kind} {shapes[kind]}" for kind in sorted(shapes))
